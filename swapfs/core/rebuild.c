/*
 * Reading the swap table after a server died: what is occupied, and which places are taken. Every
 * process that waits for a page waits for this, so it is done a cluster at a time. Nothing is
 * believed of the table that can be checked against the pool's classes.
 */
#include "core.h"

#include <stdbool.h>
#include <string.h>

#include "buffers.h"
#include "word.h"

#define MARKS_PER_ZSPAGE 2048 /* bits: objects of 32 bytes, the smallest */
#define MARK_BYTES (MARKS_PER_ZSPAGE / 8)

static bool has_cluster(const Py_buffer *arena, Py_ssize_t index)
{
    if (has_words(arena, index, CLUSTER_SLOTS))
        return true;
    PyErr_SetString(PyExc_ValueError, "the cluster is not inside the arena");
    return false;
}

/* ---- count_states ---- */

static PyObject *rebuild_count_states(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { ARENA, STATE_COUNTS, STATE_OF_WORD, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;
    if (nargs != BUFFERS + 1) {
        PyErr_SetString(PyExc_TypeError, "count_states(arena, state_counts, state_of_word, index)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(args[BUFFERS]);
    if (PyErr_Occurred() || !buffers_get(args, BUFFERS, 1u << ARENA | 1u << STATE_COUNTS, b))
        return NULL;
    if (has_cluster(&b[ARENA], index)) {
        uint64_t *words = (uint64_t *)b[ARENA].buf + index;
        int64_t *counts = b[STATE_COUNTS].buf;
        const uint8_t *state = b[STATE_OF_WORD].buf;
        long occupied = 0;
        for (unsigned i = 0; i < CLUSTER_SLOTS; i++) {
            if (words[i] == 0)
                continue;
            if (words[i] & MOVING)
                words[i] &= ~(uint64_t)MOVING;
            counts[state[words[i] & STATE_MASK]]++;
            occupied++;
        }
        result = PyLong_FromLong(occupied);
    }
    buffers_release(b, BUFFERS);
    return result;
}

PyMethodDef rebuild_functions[] = {
    {"count_states", FASTCALL(rebuild_count_states), METH_FASTCALL,
     "count_states(arena, state_counts, state_of_word, index) -> occupied slots\n\n"
     "Count the slots of the cluster at word index by state, and forget that any was moving."},
    {NULL}};

/* ---- Marker ---- */

/* Its buffers, by the names of its arguments; nothing writes to those from CLASSES on. */
enum { ARENA, USED, OBJECTS, PAYLOAD, TAKEN, CLASSES, SIZES, PARTS };
static const char *const part_names[PARTS] = {"arena", "used", "objects", "payload", "taken",
                                              "classes", "sizes"};

typedef struct {
    PyObject_HEAD
    Py_buffer parts[PARTS];
    char *arena;
    uint16_t *used;
    int64_t *objects, *payload, *taken;
    const uint8_t *classes;
    const uint16_t *sizes;
    uint64_t zspages;
    size_t size_classes;
    uint8_t *marks; /* one bit for each object that a zspage may have */
} Marker;

/* Takes *place* for *length* bytes; what is wrong with it, or NULL. */
static const char *take_place(Marker *m, uint64_t place, uint64_t length)
{
    uint64_t zspage = place >> ZSPAGE_SHIFT;
    if (zspage >= m->zspages || m->classes[zspage] == NO_CLASS)
        return "the table names a place in a free zspage";
    unsigned size_class = m->classes[zspage];
    if (size_class >= m->size_classes)
        return "a zspage is of no class that there is";
    unsigned size = m->sizes[size_class], object = (unsigned)(place & ZSPAGE_MASK) / size;
    if ((place & ZSPAGE_MASK) % size != 0 || length > size || object >= ZSPAGE_BYTES / size)
        return "the table names a place that is no object";
    uint64_t bit = zspage * MARKS_PER_ZSPAGE + object;
    if (m->marks[bit >> 3] & 1u << (bit & 7))
        return "the table names a place twice";
    m->marks[bit >> 3] |= (uint8_t)(1u << (bit & 7));
    m->used[zspage]++;
    m->objects[size_class]++;
    return NULL;
}

static bool take_blob(Marker *m, uint64_t place, uint64_t length)
{
    const char *wrong = take_place(m, place, length);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_AssertionError, wrong);
        return false;
    }
    *m->payload += (int64_t)length;
    *m->taken += m->sizes[m->classes[place >> ZSPAGE_SHIFT]];
    return true;
}

/* Takes the place of each blob in the pool; collects the others in *below*, as (index, word). */
static bool take_cluster(Marker *m, const uint64_t *words, PyObject *below)
{
    for (unsigned i = 0; i < CLUSTER_SLOTS; i++) {
        if (in_pool(words[i])) {
            if (!take_blob(m, pool_place(words[i]), blob_length(words[i])))
                return false;
        } else if (is_below(words[i])) {
            PyObject *found = Py_BuildValue("(IK)", i, (unsigned long long)words[i]);
            int failed = found == NULL || PyList_Append(below, found) < 0;
            Py_XDECREF(found);
            if (failed)
                return false;
        }
    }
    return true;
}

static PyObject *marker_mark(Marker *self, PyObject *args)
{
    unsigned long long place, length;
    if (!PyArg_ParseTuple(args, "KK", &place, &length) || !take_blob(self, place, length))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *marker_mark_page(Marker *self, PyObject *argument)
{
    unsigned long long place = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    const char *wrong = take_place(self, place, PAGE_BYTES);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_AssertionError, wrong);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *marker_mark_words(Marker *self, PyObject *argument)
{
    Py_ssize_t index = PyLong_AsSsize_t(argument);
    if (PyErr_Occurred() || !has_cluster(&self->parts[ARENA], index))
        return NULL;
    PyObject *below = PyList_New(0);
    if (below != NULL && !take_cluster(self, (const uint64_t *)self->arena + index, below))
        Py_CLEAR(below);
    return below;
}

static PyObject *marker_relink(Marker *self, PyObject *argument)
{
    Py_ssize_t zspage = PyLong_AsSsize_t(argument);
    if (PyErr_Occurred())
        return NULL;
    if (zspage < 0 || (uint64_t)zspage >= self->zspages ||
        self->classes[zspage] >= self->size_classes) {
        PyErr_SetString(PyExc_ValueError, "the zspage is of no class");
        return NULL;
    }
    const uint8_t *marks = self->marks + zspage * MARK_BYTES;
    char *base = self->arena + (zspage << ZSPAGE_SHIFT);
    unsigned size = self->sizes[self->classes[zspage]];
    uint16_t head = NO_INDEX;
    for (int object = (int)(ZSPAGE_BYTES / size) - 1; object >= 0; object--)
        if (!(marks[object >> 3] & 1u << (object & 7))) {
            memcpy(base + (unsigned)object * size, &head, sizeof(head));
            head = (uint16_t)object;
        }
    return PyLong_FromLong(head);
}

static bool fits_together(const Marker *m)
{
    const Py_buffer *b = m->parts;
    for (size_t i = 0; i < m->size_classes; i++)
        if (m->sizes[i] < ZSPAGE_BYTES / MARKS_PER_ZSPAGE)
            return false;
    return is_array_of(&b[ARENA], ZSPAGE_BYTES, m->zspages) &&
           is_array_of(&b[USED], sizeof(uint16_t), m->zspages) &&
           is_array_of(&b[OBJECTS], sizeof(int64_t), m->size_classes) &&
           is_array_of(&b[PAYLOAD], sizeof(int64_t), 1) &&
           is_array_of(&b[TAKEN], sizeof(int64_t), 1);
}

static PyObject *marker_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    if (!PyArg_ParseTuple(args, ""))
        return NULL;
    Marker *self = (Marker *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_buffer *b = self->parts;
    if (!buffers_of_keywords(keywords, part_names, PARTS, CLASSES, b)) {
        Py_DECREF(self);
        return NULL;
    }
    self->arena = b[ARENA].buf, self->used = b[USED].buf, self->objects = b[OBJECTS].buf;
    self->payload = b[PAYLOAD].buf, self->taken = b[TAKEN].buf;
    self->classes = b[CLASSES].buf, self->sizes = b[SIZES].buf;
    self->zspages = (uint64_t)b[CLASSES].len;
    self->size_classes = (size_t)b[SIZES].len / sizeof(uint16_t);
    if (!fits_together(self)) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "the tables do not fit together");
        return NULL;
    }
    if ((self->marks = PyMem_RawCalloc(self->zspages, MARK_BYTES)) == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void marker_dealloc(Marker *self)
{
    buffers_release(self->parts, PARTS);
    PyMem_RawFree(self->marks);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef marker_methods[] = {
    {"mark", (PyCFunction)marker_mark, METH_VARARGS,
     "mark(place, length): note that a blob of length bytes is at place. AssertionError: it cannot\n"
     "be there."},
    {"mark_page", (PyCFunction)marker_mark_page, METH_O,
     "mark_page(place): the same for a page of the swap table."},
    {"mark_words", (PyCFunction)marker_mark_words, METH_O,
     "mark_words(index) -> [(number, word)]\n\n"
     "Mark the place of every blob in the pool that the cluster at word index names; the words of\n"
     "the blobs that are below it, each with its number in the cluster."},
    {"relink", (PyCFunction)marker_relink, METH_O,
     "relink(zspage) -> first free object\n\nLink the objects of a zspage that have no mark."},
    {NULL}};

PyTypeObject MarkerType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Marker",
    .tp_basicsize = sizeof(Marker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Marker(*, arena, used, objects, payload, taken, classes, sizes)\n\n"
              "Notes which places of the pool are taken, and counts them in used, objects, payload\n"
              "and taken (bytes of the blobs, and of their objects), which must be zero.",
    .tp_new = marker_new,
    .tp_dealloc = (destructor)marker_dealloc,
    .tp_methods = marker_methods,
};
