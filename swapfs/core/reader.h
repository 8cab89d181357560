/*
 * How the session loop asks for pages without the GIL: pointers to these structs, in capsules.
 */
#ifndef SWAPFS_READER_H
#define SWAPFS_READER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SWAPFS_READER "swapfs.reader"
#define SWAPFS_DISKS "swapfs.disks"

#define SWAPFS_BELOW (-2L)

struct swapfs_reader {
    /* Fills *out* with *size* bytes from *offset* on and returns size; SWAPFS_BELOW: some are whole
     * pages in a tier below memory; -1: ask Python. */
    long (*read)(void *context, uint64_t offset, uint64_t size, char *out);
    void *context;
    /* Counts requests that wait for Python, for long-running Python to see (Lock.contended). */
    _Atomic unsigned *waiting;
};

/* A read that is answered later. */
struct swapfs_read {
    uint64_t unique, start_ns, offset, size;
};

struct _object; /* a Python object */

struct swapfs_disks {
    /* Fills *out* from what was read already; false: not all of it was. For one thread. */
    bool (*read)(void *context, const struct swapfs_read *read, char *out);
    /* Takes a read; false: there is no room for one more. */
    bool (*submit)(void *context, const struct swapfs_read *read);
    void *context;
    /* The session's, which sets them before its first read: the answer, bytes or a negative errno
     * value, by any thread; or a Ticket for Python to answer with, by one that has the GIL. */
    void (*answer)(const struct swapfs_read *read, long result, const void *data);
    struct _object *(*ticket)(const struct swapfs_read *read);
};

#endif
