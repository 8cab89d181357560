/*
 * Runs of blobs on a disk: found under the layer's lock, read and unpacked off it.
 */
#ifndef SWAPFS_RUNS_H
#define SWAPFS_RUNS_H

#include "disks.h"

/* Blobs of consecutive slots that lie side by side. */
struct run {
    unsigned tier;
    Py_ssize_t count;
    uint64_t first, end, ahead; /* sectors; those that are read with them end at *ahead* */
    uint64_t words[RUN_SLOTS], sequences[RUN_SLOTS];
    uint16_t lengths[RUN_SLOTS];
};

/* What a read took: nothing if the sectors were there. */
struct traffic {
    bool read;
    uint64_t sectors, ahead_sectors, took_ns;
};

/* What to read; the layer's lock is held. */

/* Whether reads come in the order of the slots, this one of *count* from *slot* on among them. */
bool run_is_in_order(Disks *self, uint64_t slot, uint64_t count);

/* Finds the blobs of *slot* and those after it, at most *count*, that are best read at once; false:
 * the first is on no disk of ours. */
bool run_plan(Disks *self, uint64_t slot, Py_ssize_t count, bool in_order, struct run *run);

/* Notes in *run* the words of *count* slots, if all are in one tier on a disk; they may lie anywhere. */
bool run_plan_there(Disks *self, uint64_t slot, Py_ssize_t count, struct run *run);

/* Finds the first blob of the slots from *ahead* on that lies beyond its extent, and those near it. */
bool run_plan_ahead(Disks *self, const struct ahead *ahead, struct run *run);

/* Reading it; no lock is held. */

/* The extent with the blobs of *run*, read if need be; NULL: it cannot be. shelf_leave must follow. */
struct extent *run_take(Disks *self, const struct run *run, struct traffic *traffic);

/* Makes a page at *out* of blob *i* of *run*, which *extent* has; false: it is not what its word says. */
bool run_unpack(const struct disk *disk, uint64_t slot, struct run *run, Py_ssize_t i,
                const struct extent *extent, const struct place *place, char *out);

/* The sectors of the blob of *word*: the first, and the one after the last. */
uint64_t run_first_sector(uint64_t word);
uint64_t run_end_sector(uint64_t word);

#endif
