/*
 * What a `Reader` holds, for the sources that read pages; all of it under the layer's lock.
 */
#ifndef SWAPFS_LOAD_H
#define SWAPFS_LOAD_H

#include "core.h"

#include "decode.h"
#include "log.h"
#include "reader.h"
#include "word.h"

enum { READ_KINDS = KIND_BLOB + 1 }; /* whose reads are counted: EMPTY, SAME, and BLOB in the pool */

typedef struct {
    PyObject_HEAD
    struct swapfs_reader entry; /* what the session loop calls */
    Lock *lock;
    Log *log; /* NULL: there is none */
    struct decoder decoder; /* under the lock */
    Py_buffer directory, arena, counters, pool_bytes;
    uint64_t size_bytes;
    Py_ssize_t pages_read[READ_KINDS], bytes_read; /* indexes among the counters */
} Reader;

/* Words of the slots from *slot* on that lie in one cluster, at most *count* (*run*); NULL: none of
 * them was ever written. *run* is 0 for a directory that is not sound. */
uint64_t *reader_words(const Reader *self, uint64_t slot, Py_ssize_t count, Py_ssize_t *run);

/* Fills the pages of a run of slots up to the first that cannot be had; how many those were. Adds to
 * *reads*, by kind, for reader_count. */
Py_ssize_t reader_load_run(const Reader *self, uint64_t slot, Py_ssize_t count, char *out,
                           uint64_t *reads);
void reader_count(const Reader *self, const uint64_t *reads);

#endif
