/*
 * Playing a trace: stores, loads and discards of the access log, done again to a region without
 * their pages. Where something has to be decided it ends, as `publish` does, and Python goes on
 * (lab/player.py). A blob is so many zeros; nothing is ever unpacked.
 */
#include "core.h"

#include <stdbool.h>

#include "buffers.h"
#include "writer.h"

/* The draft of a page whose blob has size class *size_class*. */
static uint64_t draft_of(const Writer *w, unsigned size_class)
{
    if (size_class >= w->size_classes)
        return KIND_SAME | 1u << SAME_SHIFT;
    uint64_t length = w->sizes[size_class];
    if (length >= PAGE_BYTES)
        return IN_POOL | HEAT_ONE | (uint64_t)CODEC_RAW << CODEC_SHIFT;
    return IN_POOL | HEAT_ONE | (uint64_t)CODEC_LZ4 << CODEC_SHIFT | (length - 1) << LENGTH_SHIFT;
}

static void note(const Writer *w, unsigned kind, uint64_t slot, uint64_t of, uint64_t old,
                 uint64_t time_ns)
{
    if (w->log != NULL)
        log_append(w->log, kind, slot, log_class_of(w->log, of), 0, log_tier(old), time_ns);
}

static bool store(Writer *w, uint64_t slot, unsigned size_class, const char *blank, uint64_t ns)
{
    uint64_t *word = writer_word(w, slot), old = word == NULL ? 0 : *word;
    if (word == NULL ||
        !writer_publish_one(w, slot, word, draft_of(w, size_class), blank, blank))
        return false;
    note(w, EVENT_STORE, slot, *word, old, ns);
    return true;
}

static bool load(Writer *w, uint64_t slot, uint64_t ns, Py_ssize_t pool_reads)
{
    uint64_t *word = writer_word(w, slot);
    if (word == NULL || *word == 0)
        return true; /* stored before the trace began */
    if (is_below(*word))
        return false;
    if (in_pool(*word)) {
        if ((*word & HEAT_MASK) != HEAT_MASK)
            *word += HEAT_ONE;
        w->counters[pool_reads]++;
    }
    note(w, EVENT_LOAD, slot, *word, 0, ns);
    return true;
}

static bool discard(Writer *w, uint64_t slot, uint64_t ns)
{
    uint64_t *word = writer_word(w, slot), old = word == NULL ? 0 : *word;
    if (old == 0)
        return true;
    if (w->occupied[slot >> CLUSTER_SHIFT] <= 1 || !writer_frees_easily(w, old, -1))
        return false;
    note(w, EVENT_DISCARD, slot, old, old, ns);
    writer_exchange(w, writer_export(w, slot), word, old, 0);
    w->occupied[slot >> CLUSTER_SHIFT]--;
    return true;
}

static bool play_one(Writer *w, const uint64_t *event, const char *blank, Py_ssize_t pool_reads)
{
    uint64_t slot = event[0] & ((1ull << EVENT_SLOT_BITS) - 1);
    switch (event[0] >> EVENT_KIND_SHIFT & 15) {
    case EVENT_STORE:
        return store(w, slot, event[0] >> EVENT_SIZE_SHIFT & NO_SIZE, blank, event[1]);
    case EVENT_LOAD:
        return load(w, slot, event[1], pool_reads);
    case EVENT_DISCARD:
        return discard(w, slot, event[1]);
    default:
        return true; /* what came of it then is not what comes of it now */
    }
}

PyObject *writer_play(Writer *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { EVENTS, BLANK, BUFFERS };
    Py_buffer b[BUFFERS];
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "play(events, first, end, blank, pool_reads)");
        return NULL;
    }
    PyObject *const from[BUFFERS] = {args[0], args[3]};
    Py_ssize_t first = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]);
    Py_ssize_t pool_reads = PyLong_AsSsize_t(args[4]);
    if (PyErr_Occurred() || !buffers_get(from, BUFFERS, 0, b))
        return NULL;
    uint64_t clusters = (uint64_t)self->parts[OCCUPIED].len / sizeof(uint16_t);
    bool good = is_run_of(&b[EVENTS], EVENT_WORDS * sizeof(uint64_t), first, end - first) &&
                has_pages(&b[BLANK], 0, 1) && has_words(&self->parts[COUNTERS], pool_reads, 1);
    const uint64_t *events = b[EVENTS].buf;
    for (; good && first < end; first++) {
        const uint64_t *event = events + EVENT_WORDS * first;
        if ((event[0] & ((1ull << EVENT_SLOT_BITS) - 1)) >> CLUSTER_SHIFT >= clusters)
            good = false;
        else if (!play_one(self, event, b[BLANK].buf, pool_reads))
            break;
    }
    buffers_release(b, BUFFERS);
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "the events are not those of a file of this size");
        return NULL;
    }
    return PyLong_FromSsize_t(first);
}
