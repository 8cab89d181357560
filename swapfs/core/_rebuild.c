/*
 * Reading the swap table after a server died: what is occupied, and which places are taken. Every
 * process that waits for a page waits for this, so it is done a cluster at a time. Nothing is
 * believed of the table that can be checked against the pool's classes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <string.h>

#include "_entry.h"

#define MARKS_PER_ZSPAGE 2048 /* bits: objects of 32 bytes, the smallest */
#define NO_CLASS 0xFFu

/* Gets the buffers of *count* arguments; how many could be had. All but the first *writable* of
 * them are only read. */
static int get_buffers(PyObject *const *args, int count, int writable, Py_buffer *b)
{
    int have = 0;
    while (have < count &&
           PyObject_GetBuffer(args[have], &b[have], have < writable ? PyBUF_WRITABLE
                                                                    : PyBUF_SIMPLE) == 0)
        have++;
    return have;
}

static void release_buffers(Py_buffer *b, int have)
{
    while (have-- > 0)
        PyBuffer_Release(&b[have]);
}

static bool has_cluster(const Py_buffer *arena, Py_ssize_t index)
{
    Py_ssize_t words = arena->len / (Py_ssize_t)sizeof(uint64_t);
    if (index >= 0 && words >= CLUSTER_SLOTS && index <= words - CLUSTER_SLOTS)
        return true;
    PyErr_SetString(PyExc_ValueError, "the cluster is not inside the arena");
    return false;
}

/* ---- count ---- */

static PyObject *rebuild_count(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { ARENA, STATE_COUNTS, STATE_OF_KIND, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;
    if (nargs != BUFFERS + 1) {
        PyErr_SetString(PyExc_TypeError, "count(arena, state_counts, state_of_kind, index)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(args[BUFFERS]);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    int have = get_buffers(args, BUFFERS, STATE_OF_KIND, b);
    if (have == BUFFERS && has_cluster(&b[ARENA], index)) {
        uint64_t *words = (uint64_t *)b[ARENA].buf + index;
        int64_t *counts = b[STATE_COUNTS].buf;
        const uint8_t *state = b[STATE_OF_KIND].buf;
        long occupied = 0;
        for (int i = 0; i < CLUSTER_SLOTS; i++) {
            if (words[i] == 0)
                continue;
            if (words[i] & MOVING)
                words[i] &= ~(uint64_t)MOVING;
            counts[state[words[i] & KIND_MASK]]++;
            occupied++;
        }
        result = PyLong_FromLong(occupied);
    }
    release_buffers(b, have);
    return result;
}

/* ---- mark ---- */

struct places {
    uint8_t *marks;
    uint16_t *used;
    int64_t *objects, *payload;
    const uint8_t *classes;
    const uint16_t *sizes;
    uint64_t zspages;
    size_t size_classes;
};

/* Takes the place of a POOL *word*; what is wrong with it, or NULL. */
static const char *take_place(struct places *p, uint64_t word)
{
    uint64_t place = pool_place(word), zspage = place >> ZSPAGE_SHIFT;
    if (zspage >= p->zspages || p->classes[zspage] == NO_CLASS)
        return "the table names a place in a free zspage";
    unsigned size_class = p->classes[zspage];
    if (size_class >= p->size_classes)
        return "a zspage is of no class that there is";
    unsigned size = p->sizes[size_class], object = (unsigned)(place & ZSPAGE_MASK) / size;
    if ((place & ZSPAGE_MASK) % size != 0 || blob_length(word) > size ||
        object >= (1u << ZSPAGE_SHIFT) / size)
        return "the table names a place that is no object";
    uint64_t bit = zspage * MARKS_PER_ZSPAGE + object;
    if (p->marks[bit >> 3] & 1u << (bit & 7))
        return "the table names a place twice";
    p->marks[bit >> 3] |= (uint8_t)(1u << (bit & 7));
    p->used[zspage]++;
    p->objects[size_class]++;
    *p->payload += (int64_t)blob_length(word);
    return NULL;
}

/* Takes the place of each POOL word and collects the FILE words in *below*. */
static bool take_cluster(struct places *p, const uint64_t *words, PyObject *below)
{
    for (int i = 0; i < CLUSTER_SLOTS; i++) {
        unsigned tag = words[i] & TAG_MASK;
        if (tag == TAG_POOL) {
            const char *wrong = take_place(p, words[i]);
            if (wrong != NULL) {
                PyErr_SetString(PyExc_AssertionError, wrong);
                return false;
            }
        } else if (tag == TAG_FILE) {
            PyObject *word = PyLong_FromUnsignedLongLong(words[i]);
            int failed = word == NULL || PyList_Append(below, word) < 0;
            Py_XDECREF(word);
            if (failed)
                return false;
        }
    }
    return true;
}

static PyObject *rebuild_mark(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { MARKS, USED, OBJECTS, PAYLOAD, CLASSES, SIZES, ARENA, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *below = NULL;
    if (nargs != 2 || !PyTuple_CheckExact(args[0]) || PyTuple_GET_SIZE(args[0]) != BUFFERS) {
        PyErr_SetString(PyExc_TypeError, "mark(Pool.marking(), index)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(args[1]);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    int have = get_buffers(((PyTupleObject *)args[0])->ob_item, BUFFERS, CLASSES, b);
    if (have == BUFFERS && has_cluster(&b[ARENA], index) && (below = PyList_New(0)) != NULL) {
        struct places p = {b[MARKS].buf, b[USED].buf, b[OBJECTS].buf, b[PAYLOAD].buf,
                           b[CLASSES].buf, b[SIZES].buf, (uint64_t)b[CLASSES].len,
                           (size_t)b[SIZES].len / sizeof(uint16_t)};
        if (b[MARKS].len < b[CLASSES].len * (MARKS_PER_ZSPAGE / 8) ||
            b[USED].len < b[CLASSES].len * 2) {
            PyErr_SetString(PyExc_ValueError, "fewer marks than zspages");
            Py_CLEAR(below);
        } else if (!take_cluster(&p, (const uint64_t *)b[ARENA].buf + index, below)) {
            Py_CLEAR(below);
        }
    }
    release_buffers(b, have);
    return below;
}

/* ---- relink ---- */

static PyObject *rebuild_relink(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { ARENA, MARKS, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;
    if (nargs != BUFFERS + 3) {
        PyErr_SetString(PyExc_TypeError, "relink(arena, marks, zspage, size, capacity)");
        return NULL;
    }
    Py_ssize_t zspage = PyLong_AsSsize_t(args[2]);
    Py_ssize_t size = PyLong_AsSsize_t(args[3]), capacity = PyLong_AsSsize_t(args[4]);
    if (PyErr_Occurred())
        return NULL;
    int have = get_buffers(args, BUFFERS, MARKS, b);
    if (have == BUFFERS) {
        if (zspage < 0 || zspage >= b[ARENA].len >> ZSPAGE_SHIFT || size < 2 || capacity < 0 ||
            capacity > MARKS_PER_ZSPAGE || capacity * size > (Py_ssize_t)ZSPAGE_MASK + 1 ||
            (zspage + 1) * (MARKS_PER_ZSPAGE / 8) > b[MARKS].len) {
            PyErr_SetString(PyExc_ValueError, "the zspage is not inside its buffers");
        } else {
            const uint8_t *marks = (uint8_t *)b[MARKS].buf + zspage * (MARKS_PER_ZSPAGE / 8);
            char *base = (char *)b[ARENA].buf + (zspage << ZSPAGE_SHIFT);
            uint16_t head = NO_INDEX;
            for (Py_ssize_t object = capacity - 1; object >= 0; object--)
                if (!(marks[object >> 3] & 1u << (object & 7))) {
                    memcpy(base + object * size, &head, sizeof(head));
                    head = (uint16_t)object;
                }
            result = PyLong_FromLong(head);
        }
    }
    release_buffers(b, have);
    return result;
}

static PyMethodDef methods[] = {
    {"count", (PyCFunction)(void (*)(void))rebuild_count, METH_FASTCALL,
     "count(arena, state_counts, state_of_kind, index) -> occupied slots\n\n"
     "Count the slots of the cluster at word index by state, and forget that any was moving."},
    {"mark", (PyCFunction)(void (*)(void))rebuild_mark, METH_FASTCALL,
     "mark(marking, index) -> FILE words\n\n"
     "Take the place of every POOL word of the cluster at word index. AssertionError: the table\n"
     "and the pool do not agree."},
    {"relink", (PyCFunction)(void (*)(void))rebuild_relink, METH_FASTCALL,
     "relink(arena, marks, zspage, size, capacity) -> first free object\n\n"
     "Link the objects of a zspage that have no mark."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.core._rebuild",
                                    "Reading the swap table after a crash.", -1, methods};

PyMODINIT_FUNC PyInit__rebuild(void)
{
    return PyModule_Create(&module);
}
