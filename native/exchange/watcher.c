/* watcher.c - one thread that polls the pidfds of the peers and poisons the segment when one ends.
 *
 * A pidfd becomes readable when its process has ended, however it ended and whether or not anyone
 * reaped it; a pid that was reused since cannot be mistaken for it. The thread sleeps in poll, so it
 * costs nothing; it blocks every signal, so handlers stay with the threads that expect them.
 */
#include "core/internal.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define STACK_BYTES (256 * 1024)

typedef struct {
    struct pollfd
        poll[HC_MAX_WATCHED + 1]; /* the pidfds (-1: gone), then the eventfd that ends us */
    int32_t actor[HC_MAX_WATCHED];
} watch_set;

struct hc_watcher {
    hc_segment *segment;
    pthread_t thread;
    int32_t n;
    watch_set set;
};

/* Ends by the eventfd alone. Poison is final and the first one stays, so a second death changes
 * nothing; the descriptor is closed at once, else poll would return for it for ever. */
static void *watch(void *argument) {
    hc_watcher *watcher = argument;
    struct pollfd *fds = watcher->set.poll;
    for (;;) {
        if (poll(fds, (nfds_t)watcher->n + 1, -1) < 0) {
            if (errno != EINTR)
                usleep(10000); /* out of kernel memory: try again, a peer must not die unseen */
            continue;
        }
        if (fds[watcher->n].revents != 0)
            return NULL;
        for (int32_t i = 0; i < watcher->n; i++) {
            if (fds[i].fd < 0 || fds[i].revents == 0)
                continue;
            hc_segment_poison(watcher->segment, HC_POISON_DIED, watcher->set.actor[i]);
            close(fds[i].fd);
            fds[i].fd = -1;
        }
    }
}

/* Behind pthread_join, or before there is a thread: nobody polls any more. */
static void release(hc_watcher *watcher) {
    for (int32_t i = 0; i <= watcher->n; i++)
        if (watcher->set.poll[i].fd >= 0)
            close(watcher->set.poll[i].fd);
    free(watcher);
}

/* Open one pidfd; a process that is gone already poisons at once. */
static hc_status open_pid(hc_watcher *watcher, int32_t index, int32_t pid) {
    if (pid <= 0)
        return hc_fail(HC_ERR_ARGUMENT, "watcher: %d is not a process id", pid);
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 && errno != ESRCH)
        return hc_fail(HC_ERR_SYSTEM, "watcher: pidfd_open(%d): %s (Linux 5.3 or newer is needed)",
                       pid, strerror(errno));
    if (fd < 0)
        hc_segment_poison(watcher->segment, HC_POISON_DIED, watcher->set.actor[index]);
    watcher->set.poll[index].fd = fd;
    return HC_OK;
}

/* A small stack: the thread calls poll and the exchange, no more. */
static int start_thread(hc_watcher *watcher) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited by the new thread */
    int error = pthread_create(&watcher->thread, &attributes, watch, watcher);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

/* The segment must stay mapped until hc_watcher_stop has returned. */
hc_watcher *hc_watcher_start(hc_segment *segment, const int32_t *pids, const int32_t *actors,
                             int32_t n) {
    if (!segment || n < 0 || n > HC_MAX_WATCHED || (n > 0 && (!pids || !actors))) {
        hc_fail(HC_ERR_ARGUMENT, "watcher: %d processes, at most %d can be watched", n,
                HC_MAX_WATCHED);
        return NULL;
    }
    hc_watcher *watcher = calloc(1, sizeof(*watcher));
    if (!watcher) {
        hc_fail(HC_ERR_MEMORY, "watcher: out of memory");
        return NULL;
    }
    watcher->segment = segment;
    watcher->n = n;
    for (int32_t i = 0; i <= n; i++)
        watcher->set.poll[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    for (int32_t i = 0; i < n; i++) {
        watcher->set.actor[i] = actors[i];
        if (open_pid(watcher, i, pids[i]) != HC_OK) {
            release(watcher);
            return NULL;
        }
    }
    watcher->set.poll[n].fd = eventfd(0, EFD_CLOEXEC);
    int error = watcher->set.poll[n].fd < 0 ? errno : start_thread(watcher);
    if (error != 0) {
        hc_fail(HC_ERR_SYSTEM, "watcher: cannot start its thread: %s", strerror(error));
        release(watcher);
        return NULL;
    }
    return watcher;
}

void hc_watcher_stop(hc_watcher *watcher) {
    if (!watcher)
        return;
    /* Raises the eventfd, which is the last descriptor that the thread polls. */
    uint64_t one = 1;
    while (write(watcher->set.poll[watcher->n].fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
    pthread_join(watcher->thread, NULL);
    release(watcher);
}
