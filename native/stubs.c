/* stubs.c - weak stand-ins while files are being written; removed before the first release. */
#include "internal.h"
#define W __attribute__((weak))
static hc_status none(void) { return HC_ERR_UNSUPPORTED; }
W const char *hc_last_error(void) { return "stub"; }
W int32_t hc_abi_version(void) { return HC_ABI_VERSION; }
W hc_status hc_fail(hc_status s, const char *f, ...) { (void)f; return s; }
W const char *hc_cpu_variant(int32_t i) { (void)i; return 0; }
W const char *hc_cpu_active(void) { return "stub"; }
W hc_status hc_cpu_force(const char *n) { (void)n; return none(); }
W hc_pool *hc_pool_create(int32_t t, const int32_t *c) { (void)t; (void)c; return 0; }
W void hc_pool_destroy(hc_pool *p) { (void)p; }
W int32_t hc_pool_threads(const hc_pool *p) { (void)p; return 1; }
W void hc_pool_run(hc_pool *p, hc_task b, void *c, int64_t n) { (void)p; for (int64_t i = 0; i < n; i++) b(c, i, 0); }
W hc_status hc_gemv(const hc_gemv_args *a, hc_pool *p) { (void)a; (void)p; return none(); }
W hc_status hc_ffn(hc_ffn_args *a, hc_pool *p) { (void)a; (void)p; return none(); }
W int64_t hc_active_bytes(int64_t c, int32_t b, int32_t g) { (void)c; (void)b; (void)g; return 0; }
W int32_t *hc_active_ids(hc_active *l) { (void)l; return 0; }
W uint32_t *hc_active_members(hc_active *l) { (void)l; return 0; }
W float *hc_active_gate(hc_active *l) { (void)l; return 0; }
W hc_status hc_split(const hc_split_args *a) { (void)a; return none(); }
W hc_status hc_rmsnorm(const float *x, const float *w, float e, float *y, int32_t b, int64_t d) { (void)x; (void)w; (void)e; (void)y; (void)b; (void)d; return none(); }
W hc_status hc_rotary(float *x, int64_t s, int32_t h, int32_t hd, const float *c, const float *sn, const int32_t *p, int32_t b) { (void)x; (void)s; (void)h; (void)hd; (void)c; (void)sn; (void)p; (void)b; return none(); }
W hc_status hc_attention(const hc_attention_args *a, hc_pool *p) { (void)a; (void)p; return none(); }
W hc_status hc_sample(hc_sample_args *a) { (void)a; return none(); }
W hc_status hc_segment_init(hc_segment *s, uint64_t b, uint64_t e, uint32_t n, int64_t f, const int64_t *sp, int64_t c) { (void)s; (void)b; (void)e; (void)n; (void)f; (void)sp; (void)c; return none(); }
W hc_status hc_segment_check(const hc_segment *s, uint64_t b, uint64_t e) { (void)s; (void)b; (void)e; return none(); }
W void hc_segment_poison(hc_segment *s, int32_t c, int32_t a) { (void)s; (void)c; (void)a; }
W uint64_t hc_segment_poisoned(const hc_segment *s) { (void)s; return 0; }
W void hc_flag_signal(hc_segment *s, int32_t f, uint32_t q) { (void)s; (void)f; (void)q; }
W hc_status hc_flag_wait(hc_segment *s, int32_t f, uint32_t q, uint64_t e, int64_t t, int64_t *w) { (void)s; (void)f; (void)q; (void)e; (void)t; (void)w; return none(); }
W uint64_t hc_now_ns(void) { return 0; }
W hc_watcher *hc_watcher_start(hc_segment *s, const int32_t *p, const int32_t *a, int32_t n) { (void)s; (void)p; (void)a; (void)n; return 0; }
W void hc_watcher_stop(hc_watcher *w) { (void)w; }
W hc_status hc_hop(hc_segment *s, int32_t side, int32_t o, int32_t i, int64_t n, uint64_t e, int32_t c, uint32_t *r) { (void)s; (void)side; (void)o; (void)i; (void)n; (void)e; (void)c; (void)r; return none(); }
