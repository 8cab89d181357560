/*
 * The check that a word of the pool keeps of its blob: a CRC-32C, as far as the word has room.
 */
#ifndef SWAPFS_CHECK_H
#define SWAPFS_CHECK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "word.h"

/* Once, before any other call. */
void check_begin(void);

/* Returns *draft*, a word of the pool, with the check of its *blob*. */
uint64_t check_sign(uint64_t draft, const char *blob);

/* Whether *blob* is the one of which *word* has the check. */
static inline bool check_holds(uint64_t word, const char *blob)
{
    return check_sign(word, blob) == word;
}

#endif
