/* moves.h - the part of the ABI by which neurons change their owner between two passes.
 *
 * A segment has two tables of owners, one byte a neuron: the device that computes it. Version v of the
 * ownership is in table v & 1. Whoever moves neurons writes the table that nobody reads, then says
 * which version is wanted; the GPU executor names a version in the header of each pass, and every loop
 * follows before its first step of that pass. A table is written again once all loops have followed.
 * Included by hotcold.h, and fed to cffi and to the compilers exactly as that is.
 */
#ifndef HOTCOLD_MOVES_H
#define HOTCOLD_MOVES_H

/* cffi: begin */
typedef struct {      /* at owners_offset of the segment */
    uint32_t wanted;  /* own line: the version of the next pass; raised by one who moves neurons */
    uint32_t pad[13]; /* and how many neurons have changed owner, all versions taken together */
    int64_t moved;
    uint32_t followed[HC_MAX_ACTORS]; /* by actor, each its own: the version it computes with */
    int64_t table[2]; /* offsets in the segment of int8 [L][N]: version v in table v & 1 */
} hc_owners;
/* Have the next pass begin with this version, whose table is there. Where no request runs, a pass of
 * no rows takes it through all loops at once. */
void hc_executor_own(hc_executor *executor, uint32_t version);
/* For tests: ids that an executor owns in a layer, ascending; valid until the next version. */
const int32_t *hc_executor_owned(const hc_executor *executor, int32_t layer, int64_t *n_ids);
/* cffi: end */

#endif
