/*
 * How the session loop asks for pages without the GIL: a pointer to this struct, in a capsule.
 */
#ifndef SWAPFS_READER_H
#define SWAPFS_READER_H

#include <stdatomic.h>
#include <stdint.h>

#define SWAPFS_READER "swapfs.reader"

struct swapfs_reader {
    /* Fills *out* with *size* bytes from *offset* on and returns size; -1: ask Python. */
    long (*read)(void *context, uint64_t offset, uint64_t size, char *out);
    void *context;
    /* Counts requests that wait for Python, for long-running Python to see (Lock.contended). */
    _Atomic unsigned *waiting;
};

#endif
