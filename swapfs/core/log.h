/*
 * The access log: a ring of events in the region, which all that changes or reads a slot adds to.
 *
 * An event is two words, lowest bits first: slot (40), kind (4), size class (8), age class (4),
 * tier (3), tier before (3), 2 unused; and the time, CLOCK_MONOTONIC in ns. One adds at a time,
 * under the layer's lock, and waits for nobody: the ring holds the newest events, whoever is late
 * finds the oldest gone and knows how many (log_read). Whoever reads it from another process sees
 * `head` grow only when the event is there, so nothing but the ring itself need be shared.
 */
#ifndef SWAPFS_LOG_H
#define SWAPFS_LOG_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#include "clock.h"
#include "word.h"

enum { EVENT_STORE, EVENT_LOAD, EVENT_DISCARD, EVENT_DEMOTE, EVENT_PROMOTE, EVENT_MOVE,
       EVENT_REFAULT };

#define EVENT_WORDS 2
#define EVENT_SLOT_BITS 40
#define EVENT_KIND_SHIFT 40
#define EVENT_SIZE_SHIFT 44
#define EVENT_AGE_SHIFT 52
#define EVENT_TIER_SHIFT 56
#define EVENT_WAS_SHIFT 59
#define EVENT_AGE_MAX 15u
#define NO_SIZE 0xFFu      /* nothing was stored: repeated words; or it is not known */
#define AGE_TICK_SHIFT 24 /* ages are told apart from 17 ms on, and doubled from class to class */

typedef struct {
    PyObject_HEAD
    Py_buffer parts[4];
    uint64_t *head, *events;
    uint32_t *touched;
    const uint8_t *class_of_grains;
    uint64_t mask, clusters;
    uint64_t fixed_ns; /* the time of what Python adds; 0: now. Of a trace that is played */
} Log;

extern PyTypeObject LogType;

/* How long ago an event met the cluster of *slot*, which it does now. */
static inline uint64_t log_age(Log *log, uint64_t slot, uint64_t now)
{
    uint32_t *touched = &log->touched[slot >> CLUSTER_SHIFT];
    uint32_t tick = (uint32_t)(now >> AGE_TICK_SHIFT), passed = tick - *touched;
    *touched = tick;
    unsigned age = passed == 0 ? 0 : 32u - (unsigned)__builtin_clz(passed);
    return age < EVENT_AGE_MAX ? age : EVENT_AGE_MAX;
}

/* Adds an event of *slot*, which is in the file; the layer's lock is held. */
static inline void log_append(Log *log, unsigned kind, uint64_t slot, unsigned size_class,
                              unsigned tier, unsigned was, uint64_t now)
{
    uint64_t head = *log->head, *event = log->events + EVENT_WORDS * (head & log->mask);
    event[0] = slot | (uint64_t)kind << EVENT_KIND_SHIFT |
               (uint64_t)size_class << EVENT_SIZE_SHIFT |
               log_age(log, slot, now) << EVENT_AGE_SHIFT | (uint64_t)tier << EVENT_TIER_SHIFT |
               (uint64_t)was << EVENT_WAS_SHIFT;
    event[1] = now;
    __atomic_store_n(log->head, head + 1, __ATOMIC_RELEASE);
}

static inline unsigned log_size_class(const Log *log, uint64_t length)
{
    return length == 0 || length > PAGE_BYTES
               ? NO_SIZE
               : log->class_of_grains[(length + GRAIN_MASK) >> GRAIN_SHIFT];
}

/* The size class of the blob of *word* if that is in the pool, else NO_SIZE. */
static inline unsigned log_class_of(const Log *log, uint64_t word)
{
    return in_pool(word) ? log_size_class(log, blob_length(word)) : NO_SIZE;
}

static inline unsigned log_tier(uint64_t word)
{
    return (word & KIND_MASK) == KIND_BLOB ? (unsigned)(word >> TIER_SHIFT) & TIER_MASK : 0;
}

#endif
