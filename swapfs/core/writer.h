/*
 * What a `Writer` holds, and its steps, for the sources that store to the pool.
 */
#ifndef SWAPFS_WRITER_H
#define SWAPFS_WRITER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "log.h"
#include "word.h"

/* Its buffers, by the names of its arguments; nothing writes to those from SIZES on. */
enum {
    DIRECTORY, ARENA, CLASSES, COUNTERS, STATE_COUNTS, OCCUPIED, USED, HEAD, FRESH, OBJECTS,
    PAYLOAD, NEXT, PREVIOUS, WHERE, LENGTHS, USAGE, SIZES, CAPACITIES, CLASS_OF_GRAINS,
    STATE_OF_WORD, EXPORTS, PARTS
};

typedef struct {
    PyObject_HEAD
    Py_buffer parts[PARTS];
    const uint32_t *directory;
    char *arena;
    uint8_t *classes; /* of each zspage */
    uint64_t *counters;
    int64_t *state_counts;         /* slots by state */
    uint16_t *occupied;            /* slots in use, by cluster */
    uint16_t *used, *head, *fresh; /* of each zspage: its objects (tiers/pool/zspages.py) */
    int64_t *objects, *payload;    /* objects by class; bytes stored */
    uint32_t *next, *previous;     /* the lists of zspages (region/lists.py) */
    uint8_t *where;
    uint32_t *lengths;
    int64_t *usage; /* of each export, USAGE_FIELDS */
    const uint64_t *exports; /* EXPORT_FIELDS each */
    const uint16_t *sizes, *capacities; /* of each class: bytes an object, objects a zspage */
    const uint8_t *class_of_grains, *state_of_word;
    uint64_t zspages;
    size_t size_classes;
    Py_ssize_t write_same, write_compressed, write_raw; /* indexes among the counters */
    Log *log; /* NULL: there is none */
} Writer;

/* The class of the places for the blob of *draft*. */
unsigned writer_class(const Writer *w, uint64_t draft);

/* Gives *draft* a place that is there without more ado, and copies *blob* to it; its word, or 0 if
 * there is none or *old* cannot be freed easily: then nothing was done. */
uint64_t writer_put(Writer *w, uint64_t old, uint64_t draft, const char *blob);

/* The number of the export that *slot* is in. */
size_t writer_export(const Writer *w, uint64_t slot);

/* Publishes *new* instead of *old*, whose place is freed, in a slot of *export*. */
void writer_exchange(Writer *w, size_t export, uint64_t *word, uint64_t old, uint64_t new);

/* The word of *slot*; NULL: its cluster has no table page, or a damaged directory names it. */
uint64_t *writer_word(const Writer *w, uint64_t slot);

/* Whether the place of *old* can be given back without its zspage becoming empty, if zspage
 * *taken* gets one object more before. */
bool writer_frees_easily(const Writer *w, uint64_t old, int64_t taken);

/* Stores one draft in *slot*, whose word is there; false: nothing was done. */
bool writer_publish_one(Writer *w, uint64_t slot, uint64_t *word, uint64_t draft, const char *page,
                        const char *blob);

/* Writer.play (play.c) */
PyObject *writer_play(Writer *self, PyObject *const *args, Py_ssize_t nargs);

/* Writer.replace */
PyObject *writer_replace(Writer *self, PyObject *const *args, Py_ssize_t nargs);

/* Writer.claim and Writer.settle (relocate.c) */
PyObject *writer_claim(Writer *self, PyObject *args);
PyObject *writer_settle(Writer *self, PyObject *args);

#endif
