/*
 * From a blob to its page, in any codec, without an allocation: contexts are made in memory that is
 * reserved before pages are served.
 */
#ifndef SWAPFS_DECODE_H
#define SWAPFS_DECODE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* Contexts in memory of ours, and frames without a magic number, are in this part of zstd.h. Both
 * are exported by the shared library of every release since 1.4. */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

struct decoder {
    void *workspace;
    ZSTD_DCtx *context;
};

/* Makes what is all zero a decoder; false with an exception when there is no memory. */
bool decoder_begin(struct decoder *decoder);
void decoder_end(struct decoder *decoder);

/* That of a Decoder, as long as it lives; NULL with an exception: it is none. */
struct decoder *decoder_of(PyObject *object);

/* Puts the page of a blob at *to*; false when it is no page. One thread at a time. */
bool decode(const struct decoder *decoder, const char *blob, uint64_t length, unsigned codec,
            char *to);

#endif
