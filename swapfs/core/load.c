/*
 * Pages out of memory. A `Reader` holds what it reads from for its life. The session loop calls it
 * without the GIL, so that neither Python's own time nor another Python thread stands between the
 * kernel and a page in memory; what it cannot answer (a page on disk, a damaged one, a part of a
 * page) it leaves to Python, untouched. Python calls `load` for that, under the layer's lock.
 */
#include "core.h"

#include <stdbool.h>
#include <string.h>

#include "buffers.h"
#include "check.h"
#include "load.h"
#include "word.h"

/* ---- one page ---- */

static uint64_t same_value(uint64_t word)
{
    uint64_t value = word >> SAME_SHIFT;
    if (word & SAME_DOUBLED)
        return value << 32 | value;
    return (uint64_t)((int64_t)word >> SAME_SHIFT); /* 58 bits, sign-extended */
}

/* ---- Reader ---- */

/* Where the pool ends. What of the arena lies beyond may not be touched, and the pool grows and
 * shrinks (region/extent.py): a word that is damaged must not name a place there. */
static uint64_t pool_end(const Reader *self)
{
    uint64_t bytes = *(const uint64_t *)self->pool_bytes.buf, all = (uint64_t)self->arena.len;
    return bytes != 0 && bytes < all ? bytes : all;
}

/* Puts the page of a *word* whose blob is in the pool at *to*; false when it is no page. */
static bool unpack_word(const Reader *self, uint64_t word, char *to)
{
    uint64_t place = pool_place(word), length = blob_length(word);
    const char *blob = (const char *)self->arena.buf + place;
    return place + length <= pool_end(self) && check_holds(word, blob) &&
           decode(&self->decoder, blob, length, blob_codec(word), to);
}

/* Notes the reads of *count* slots from *slot* on, which *words* were about. */
static void log_loads(const Reader *self, uint64_t slot, const uint64_t *words, Py_ssize_t count)
{
    uint64_t now = self->log != NULL && count > 0 ? now_ns() : 0;
    for (Py_ssize_t i = 0; self->log != NULL && i < count; i++)
        if (words[i] != 0)
            log_append(self->log, EVENT_LOAD, slot + (uint64_t)i,
                       log_class_of(self->log, words[i]), 0, 0, now);
}

/* Fills pages from *words on; stops at the first that is not in memory, or damaged. */
static Py_ssize_t load_words(const Reader *self, uint64_t *words, Py_ssize_t count, char *to,
                             uint64_t *reads)
{
    Py_ssize_t done = 0;
    for (; done < count; done++, to += PAGE_BYTES) {
        uint64_t word = words[done];
        unsigned kind = word & KIND_MASK;
        if (in_pool(word)) {
            if (!unpack_word(self, word, to))
                break;
            if ((word & HEAT_MASK) != HEAT_MASK)
                words[done] = word + HEAT_ONE;
        } else if (word == 0) { /* EMPTY; with other bits set it is damaged */
            memset(to, 0, PAGE_BYTES);
        } else if (kind == KIND_SAME) {
            uint64_t value = same_value(word);
            for (size_t at = 0; at < PAGE_BYTES; at += sizeof(value))
                memcpy(to + at, &value, sizeof(value));
        } else {
            break;
        }
        reads[kind]++;
    }
    return done;
}

uint64_t *reader_words(const Reader *self, uint64_t slot, Py_ssize_t count, Py_ssize_t *run)
{
    const uint32_t *directory = self->directory.buf;
    uint64_t index = slot & (CLUSTER_SLOTS - 1), page = directory[slot >> CLUSTER_SHIFT];
    Py_ssize_t left = (Py_ssize_t)(CLUSTER_SLOTS - index);

    *run = count < left ? count : left;
    if (page == 0)
        return NULL;
    index += (page - 1) << CLUSTER_SHIFT;
    if ((index + (uint64_t)*run) * sizeof(uint64_t) > pool_end(self))
        *run = 0;
    return (uint64_t *)self->arena.buf + index;
}

/* Whether a page of the run is in a tier below memory: worth a look at the words first, as pages
 * that are loaded in front of it would be loaded again with it. */
static bool any_below(const Reader *self, uint64_t slot, Py_ssize_t count)
{
    for (Py_ssize_t done = 0, run; done < count; done += run) {
        const uint64_t *words = reader_words(self, slot + (uint64_t)done, count - done, &run);
        if (run == 0)
            return false;
        for (Py_ssize_t i = 0; words != NULL && i < run; i++)
            if (is_below(words[i]))
                return true;
    }
    return false;
}

Py_ssize_t reader_load_run(const Reader *self, uint64_t slot, Py_ssize_t count, char *out,
                           uint64_t *reads)
{
    for (Py_ssize_t done = 0, run, got; done < count; done += got) {
        uint64_t *words = reader_words(self, slot + (uint64_t)done, count - done, &run);
        char *to = out + ((size_t)done << PAGE_SHIFT);
        got = run;
        if (words == NULL) {
            memset(to, 0, (size_t)run << PAGE_SHIFT);
            reads[KIND_EMPTY] += (uint64_t)run;
        } else {
            got = load_words(self, words, run, to, reads);
            log_loads(self, slot + (uint64_t)done, words, got);
        }
        if (got < run || run == 0)
            return done + got;
    }
    return count;
}

void reader_count(const Reader *self, const uint64_t *reads)
{
    uint64_t *counters = self->counters.buf;
    for (int kind = KIND_EMPTY; kind < READ_KINDS; kind++)
        counters[self->pages_read[kind]] += reads[kind];
}

static PyObject *reader_load(Reader *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer out;
    PyObject *result = NULL;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "load(slot, count, out, position, whole)");
        return NULL;
    }
    Py_ssize_t slot = PyLong_AsSsize_t(args[0]), count = PyLong_AsSsize_t(args[1]);
    Py_ssize_t position = PyLong_AsSsize_t(args[3]);
    int whole = PyObject_IsTrue(args[4]);
    if (PyErr_Occurred() || !buffers_get(&args[2], 1, 1u, &out))
        return NULL;
    Py_ssize_t slots = (Py_ssize_t)(self->size_bytes >> PAGE_SHIFT);
    if (slot < 0 || count < 0 || count > slots || slot > slots - count ||
        !has_pages(&out, position, count))
        PyErr_SetString(PyExc_ValueError, "the run is not inside its buffers");
    else if (whole && any_below(self, (uint64_t)slot, count))
        result = PyLong_FromLong(-1);
    else {
        uint64_t reads[READ_KINDS] = {0};
        result = PyLong_FromSsize_t(
            reader_load_run(self, (uint64_t)slot, count, (char *)out.buf + position, reads));
        reader_count(self, reads);
    }
    PyBuffer_Release(&out);
    return result;
}

static long reader_read(void *context, uint64_t offset, uint64_t size, char *out)
{
    Reader *self = context;
    if ((offset | size) & (PAGE_BYTES - 1) || size == 0 || offset > self->size_bytes ||
        size > self->size_bytes - offset)
        return -1;
    if (lock_enter(self->lock) != 0)
        return -1;
    atomic_fetch_add_explicit(&self->lock->reads, 1, memory_order_relaxed);
    Py_ssize_t count = (Py_ssize_t)(size >> PAGE_SHIFT);
    uint64_t slot = offset >> PAGE_SHIFT, reads[READ_KINDS] = {0};
    bool below = any_below(self, slot, count);
    bool done = !below && reader_load_run(self, slot, count, out, reads) == count;
    if (done) { /* else who answers counts */
        reader_count(self, reads);
        ((uint64_t *)self->counters.buf)[self->bytes_read] += size;
    }
    lock_leave(self->lock);
    return done ? (long)size : below ? SWAPFS_BELOW : -1;
}

static PyObject *reader_try(Reader *self, PyObject *args)
{
    unsigned long long offset, size;
    Py_buffer out;
    if (!PyArg_ParseTuple(args, "KKw*", &offset, &size, &out))
        return NULL;
    long result = -1;
    if ((uint64_t)out.len >= size) {
        Py_BEGIN_ALLOW_THREADS
        result = reader_read(self, offset, size, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    return PyLong_FromLong(result < 0 ? -1 : result);
}

static bool are_counters(const Reader *self)
{
    bool good = has_words(&self->counters, self->bytes_read, 1);
    for (int kind = KIND_EMPTY; kind < READ_KINDS; kind++)
        good = good && has_words(&self->counters, self->pages_read[kind], 1);
    return good;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    enum { VIEWS = 4 };
    PyObject *lock, *log = Py_None, *views[VIEWS];
    unsigned long long size_bytes;
    Py_ssize_t reads[READ_KINDS], bytes_read;
    if (!PyArg_ParseTuple(args, "O!OOOO(nnnn)K|O", &LockType, &lock, &views[0], &views[1],
                          &views[2], &views[3], &reads[KIND_EMPTY], &reads[KIND_SAME], &reads[KIND_BLOB], &bytes_read,
                          &size_bytes, &log))
        return NULL;
    if (log != Py_None && !PyObject_TypeCheck(log, &LogType)) {
        PyErr_SetString(PyExc_TypeError, "log is a Log or None");
        return NULL;
    }
    Reader *self = (Reader *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_buffer b[VIEWS];
    if (!decoder_begin(&self->decoder) || !buffers_get(views, VIEWS, 7u, b)) {
        Py_DECREF(self);
        return NULL;
    }
    self->directory = b[0], self->arena = b[1], self->counters = b[2];
    self->pool_bytes = b[3];
    self->lock = (Lock *)Py_NewRef(lock);
    self->log = log == Py_None ? NULL : (Log *)Py_NewRef(log);
    memcpy(self->pages_read, reads, sizeof(reads));
    self->bytes_read = bytes_read;
    self->size_bytes = size_bytes;
    self->entry = (struct swapfs_reader){reader_read, self, &self->lock->waiting};
    uint64_t clusters = (uint64_t)self->directory.len / sizeof(uint32_t);
    if (size_bytes > clusters << (CLUSTER_SHIFT + PAGE_SHIFT) || !are_counters(self) ||
        !has_words(&self->pool_bytes, 0, 1) ||
        (self->log != NULL && self->log->clusters < clusters)) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "the file is not inside its buffers");
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *reader_capsule(Reader *self, PyObject *unused)
{
    return PyCapsule_New(&self->entry, SWAPFS_READER, NULL);
}

static void reader_dealloc(Reader *self)
{
    decoder_end(&self->decoder);
    PyBuffer_Release(&self->directory);
    PyBuffer_Release(&self->arena);
    PyBuffer_Release(&self->counters);
    PyBuffer_Release(&self->pool_bytes);
    Py_XDECREF(self->lock);
    Py_XDECREF(self->log);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef reader_methods[] = {
    {"capsule", (PyCFunction)reader_capsule, METH_NOARGS,
     "capsule() -> itself for the session loop, which must end before it is dropped."},
    {"load", FASTCALL(reader_load), METH_FASTCALL,
     "load(slot, count, out, position, whole) -> pages filled\n\n"
     "Fill out from byte position on with the pages of count slots; the caller holds the lock.\n"
     "Ends early at a slot that is not in memory, damaged or lost. whole: load nothing and return\n"
     "-1 if a tier below has one of them. Words that were read become hotter."},
    {"read", (PyCFunction)reader_try, METH_VARARGS,
     "read(offset, size, out) -> bytes read, or -1 for what is not whole pages in memory."},
    {NULL}};

PyTypeObject ReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Reader",
    .tp_basicsize = sizeof(Reader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Reader(lock, directory, arena, counters, pool_bytes, counts, size_bytes, log=None)\n\n"
              "Reads pages that are in memory. pool_bytes: how much of the arena the pool has now,\n"
              "0: all. counts: the indexes of the counters of empty, same\n"
              "and pool pages, and of bytes that the session loop was given.",
    .tp_new = reader_new,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_methods = reader_methods,
};
