/* exchange.c - flags, poison and waits on a segment that several processes map.
 *
 *   segment: | hc_segment | hc_flag[n_flags] | hc_span[span_capacity] x 3 | payload slots ... |
 *
 * A flag word has one setter. It holds the number of the last pass that signalled; a consumer waits
 * until it equals the number of its own pass. The value only ever takes the numbers of consecutive
 * passes, and no pass starts before the last one is wholly consumed (tests/exchange checks that),
 * so equality is enough.
 *
 * Waiting: pause; sched_yield every yield_every spins (two loops on one core would otherwise burn
 * each other's time: 468 us a hop instead of 3); after spin_ns a futex sleep of at most 100 ms.
 * Every round looks at poison and epoch. The futexes are the shared kind (no FUTEX_PRIVATE_FLAG):
 * sleepers sit in other processes.
 *
 * Memory order: a signal is a release store, behind the payload; a wait is an acquire load, before
 * the payload is read. The device uses the same words with the same two orders (load_flag and
 * store_flag of cuda/kernels/common.cuh). Poison is stored seq_cst and read with acquire.
 */
#include "core/internal.h"
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC          UINT64_C(0x31444c4f43544f48) /* "HOTCOLD1" */
#define MAX_FLAGS      (1u << 20)
#define SPIN_NS        200000
#define YIELD_EVERY    64
#define PARK_NS        INT64_C(100000000)
#define SPIN_EXHAUSTED (-1)

_Static_assert(sizeof(hc_flag) == HC_CACHE_LINE, "a flag fills its cache line");
_Static_assert(sizeof(hc_actor_state) == 3 * HC_CACHE_LINE, "an actor's state fills its lines");
_Static_assert(sizeof(hc_span) == 32, "two spans a line");
_Static_assert(offsetof(hc_segment, poison) % HC_CACHE_LINE == 0, "poison has its own line");
_Static_assert(offsetof(hc_segment, pass_batch) % HC_CACHE_LINE == 0, "the pass has its own line");
_Static_assert(offsetof(hc_segment, actor) % HC_CACHE_LINE == 0, "actors do not share a line");

/* The same clock in all processes of the machine: spans of actors are compared. */
uint64_t hc_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wake_all(uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns) {
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

static hc_flag *flag_at(hc_segment *segment, int32_t flag) {
    if (flag < 0 || (uint32_t)flag >= segment->n_flags)
        return NULL;
    return (hc_flag *)((char *)segment + segment->flags_offset) + flag;
}

/* Does [offset, offset + count * size) lie behind the header, on a cache line, inside bytes? */
static int inside(int64_t offset, uint64_t count, uint64_t size, uint64_t bytes) {
    if (offset < (int64_t)sizeof(hc_segment) || offset % HC_CACHE_LINE != 0 ||
        (uint64_t)offset > bytes)
        return 0;
    return count <= (bytes - (uint64_t)offset) / size;
}

/* Used, as the next, by the one who makes a segment and by all who map it. */
static hc_status check_place(const hc_segment *segment, uint64_t bytes) {
    if (!segment || (uintptr_t)segment % HC_CACHE_LINE != 0 || bytes < sizeof(hc_segment))
        return hc_fail(HC_ERR_ARGUMENT, "segment: %llu bytes, at least %zu on a cache line needed",
                       (unsigned long long)bytes, sizeof(hc_segment));
    return HC_OK;
}

/* Afterwards offsets are trusted. */
static hc_status check_layout(uint64_t bytes, uint32_t n_flags, int64_t flags_offset,
                              const int64_t *span_offset, int64_t span_capacity) {
    if (n_flags == 0 || n_flags > MAX_FLAGS || !inside(flags_offset, n_flags, HC_CACHE_LINE, bytes))
        return hc_fail(HC_ERR_ARGUMENT,
                       "segment: %u flags at %lld do not fit in %llu bytes on cache lines", n_flags,
                       (long long)flags_offset, (unsigned long long)bytes);
    for (int i = 0; i < HC_MAX_ACTORS; i++)
        if (span_capacity < 1 || /* 0: there is no such actor */
            (span_offset[i] &&
             !inside(span_offset[i], (uint64_t)span_capacity, sizeof(hc_span), bytes)))
            return hc_fail(HC_ERR_ARGUMENT, "segment: %lld spans at %lld do not fit in %llu bytes",
                           (long long)span_capacity, (long long)span_offset[i],
                           (unsigned long long)bytes);
    return HC_OK;
}

/* `segment` is fresh zeroed memory that nobody else looks at yet; payloads are not touched. */
hc_status hc_segment_init(hc_segment *segment, uint64_t bytes, uint64_t epoch, uint32_t n_flags,
                          int64_t flags_offset, const int64_t *span_offset, int64_t span_capacity) {
    hc_status status = check_place(span_offset ? segment : NULL, bytes);
    if (status == HC_OK)
        status = check_layout(bytes, n_flags, flags_offset, span_offset, span_capacity);
    if (status != HC_OK)
        return status;
    memset(segment, 0, sizeof(*segment));
    memset((char *)segment + flags_offset, 0, (size_t)n_flags * sizeof(hc_flag));
    segment->abi = HC_ABI_VERSION;
    segment->n_flags = n_flags;
    segment->epoch = epoch;
    segment->bytes = bytes;
    segment->flags_offset = flags_offset;
    memcpy(segment->span_offset, span_offset, sizeof(segment->span_offset));
    segment->span_capacity = span_capacity;
    segment->spin_ns = SPIN_NS;
    segment->yield_every = YIELD_EVERY;
    __atomic_store_n(&segment->magic, MAGIC,
                     __ATOMIC_RELEASE); /* last: a segment half made has none */
    return HC_OK;
}

/* The acquire pairs with init's release of the magic number: the rest of the header is there. */
hc_status hc_segment_check(const hc_segment *segment, uint64_t bytes, uint64_t epoch) {
    hc_status status = check_place(segment, bytes);
    if (status != HC_OK)
        return status;
    if (__atomic_load_n(&segment->magic, __ATOMIC_ACQUIRE) != MAGIC)
        return hc_fail(HC_ERR_ARGUMENT, "segment: not an exchange segment (no magic number)");
    if (segment->abi != HC_ABI_VERSION)
        return hc_fail(HC_ERR_ARGUMENT, "segment: ABI %u, these kernels have %d", segment->abi,
                       HC_ABI_VERSION);
    if (segment->epoch != epoch)
        return hc_fail(HC_ERR_EPOCH, "segment: epoch %llu, expected %llu",
                       (unsigned long long)segment->epoch, (unsigned long long)epoch);
    if (segment->bytes != bytes)
        return hc_fail(HC_ERR_ARGUMENT, "segment: made with %llu bytes, mapped with %llu",
                       (unsigned long long)segment->bytes, (unsigned long long)bytes);
    return check_layout(bytes, segment->n_flags, segment->flags_offset, segment->span_offset,
                        segment->span_capacity);
}

const uint32_t *hc_flag_word(hc_segment *segment, int32_t flag) {
    hc_flag *found = flag_at(segment, flag);
    return found ? &found->value : NULL;
}

/* The first poison stays; whoever is second only wakes again. A waiter that looked at poison just
 * before and sleeps just after this wake-up is not lost: its sleep is capped. */
void hc_segment_poison(hc_segment *segment, int32_t code, int32_t actor) {
    uint64_t none = 0;
    uint64_t poison =
        (uint64_t)(code > 0 ? code : HC_POISON_FAILED) << HC_POISON_SHIFT | (uint8_t)actor;
    __atomic_compare_exchange_n(&segment->poison, &none, poison, 0, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
    for (uint32_t i = 0; i < segment->n_flags; i++)
        futex_wake_all(&flag_at(segment, (int32_t)i)->value);
}

uint64_t hc_segment_poisoned(const hc_segment *segment) {
    return __atomic_load_n(&segment->poison, __ATOMIC_ACQUIRE);
}

hc_status hc_fail_poisoned(const hc_segment *segment) {
    return hc_fail(HC_ERR_POISONED, "the exchange is poisoned (code << 8 | actor = %llu)",
                   (unsigned long long)hc_segment_poisoned(segment));
}

/* The fence keeps the look at sleepers behind the store. A sleeper counts itself first and looks at
 * the value afterwards, so one of the two always sees the other: no wake-up is lost. */
void hc_flag_signal(hc_segment *segment, int32_t flag, uint32_t seq) {
    hc_flag *word = flag_at(segment, flag);
    if (!word)
        return;
    __atomic_store_n(&word->value, seq, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&word->sleepers, __ATOMIC_RELAXED) != 0)
        futex_wake_all(&word->value);
}

typedef struct {
    hc_segment *segment;
    hc_flag *word;
    uint32_t seq;
    uint64_t epoch, begin_ns;
    int64_t timeout_ns;
} wait_state;

static int arrived(const wait_state *wait) {
    return __atomic_load_n(&wait->word->value, __ATOMIC_ACQUIRE) == wait->seq;
}

/* Relaxed: an epoch never changes in a segment that is in use; another value means damaged
 * memory. */
static hc_status look(const wait_state *wait) {
    if (hc_segment_poisoned(wait->segment) != 0)
        return HC_ERR_POISONED;
    if (__atomic_load_n(&wait->segment->epoch, __ATOMIC_RELAXED) != wait->epoch)
        return HC_ERR_EPOCH;
    return HC_OK;
}

/* Spin within the budget: a status, or SPIN_EXHAUSTED. The clock is read once in yield_every spins. */
static int spin(const wait_state *wait) {
    int32_t every = wait->segment->yield_every > 0 ? wait->segment->yield_every : 1;
    int64_t budget_ns = wait->segment->spin_ns;
    for (;;) {
        for (int32_t i = 0; i < every; i++) {
            if (arrived(wait))
                return HC_OK;
            pause_cpu();
        }
        hc_status status = look(wait);
        if (status != HC_OK)
            return status;
        int64_t spent_ns = (int64_t)(hc_now_ns() - wait->begin_ns);
        if (wait->timeout_ns >= 0 && spent_ns >= wait->timeout_ns)
            return arrived(wait) ? HC_OK : HC_ERR_TIMEOUT;
        if (spent_ns >= budget_ns)
            return SPIN_EXHAUSTED;
        sched_yield();
    }
}

/* Sleep until the value changes, poison wakes us, the cap or the deadline passes; again and again. */
static hc_status park(const wait_state *wait) {
    for (;;) {
        int64_t sleep_ns = PARK_NS;
        if (wait->timeout_ns >= 0) {
            int64_t left_ns = wait->timeout_ns - (int64_t)(hc_now_ns() - wait->begin_ns);
            if (left_ns <= 0)
                return arrived(wait) ? HC_OK : HC_ERR_TIMEOUT;
            sleep_ns = left_ns < sleep_ns ? left_ns : sleep_ns;
        }
        /* First counted, then looked: the other half of hc_flag_signal. futex_wait looks once
         * more, in the kernel, and returns at once where the value has changed. */
        __atomic_fetch_add(&wait->word->sleepers, 1, __ATOMIC_SEQ_CST);
        uint32_t value = __atomic_load_n(&wait->word->value, __ATOMIC_SEQ_CST);
        hc_status status = look(wait);
        if (value != wait->seq && status == HC_OK)
            futex_wait(&wait->word->value, value, sleep_ns);
        __atomic_fetch_sub(&wait->word->sleepers, 1, __ATOMIC_SEQ_CST);
        status = look(wait);
        if (status != HC_OK || arrived(wait))
            return status;
    }
}

/* The common case, a flag that is set already, reads no clock. waited_ns counts real waits
 * only. */
hc_status hc_flag_wait(hc_segment *segment, int32_t flag, uint32_t seq, uint64_t epoch,
                       int64_t timeout_ns, int64_t *waited_ns) {
    wait_state wait = {segment, flag_at(segment, flag), seq, epoch, 0, timeout_ns};
    if (!wait.word)
        return hc_fail(HC_ERR_ARGUMENT, "wait: flag %d of %u", flag, segment->n_flags);
    int status = look(&wait);
    if (status == HC_OK && !arrived(&wait)) {
        wait.begin_ns = hc_now_ns();
        status = spin(&wait);
        if (status == SPIN_EXHAUSTED)
            status = park(&wait);
        if (waited_ns)
            *waited_ns += (int64_t)(hc_now_ns() - wait.begin_ns);
    }
    switch (status) {
    case HC_OK:
        return HC_OK;
    case HC_ERR_POISONED:
        return hc_fail_poisoned(segment);
    case HC_ERR_EPOCH:
        return hc_fail(HC_ERR_EPOCH, "wait: the segment has epoch %llu, not %llu",
                       (unsigned long long)segment->epoch, (unsigned long long)epoch);
    default:
        return hc_fail(HC_ERR_TIMEOUT, "flag %d did not reach %u within %lld ms (it is %u)", flag,
                       seq, (long long)(timeout_ns / 1000000),
                       __atomic_load_n(&wait.word->value, __ATOMIC_RELAXED));
    }
}
