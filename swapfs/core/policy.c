/*
 * What policies are made of: `Tracked`, slots sorted into lists, and `cool`, the clock hand's look
 * at a run of words. A Tracked takes all its memory at its start (I5) and finds a slot by a hash
 * of its own, so that it costs the same whatever the size of the file.
 */
#include "core.h"

#include <stdbool.h>

#include "buffers.h"
#include "log.h"

#define NO_NODE 0xFFFFFFFFu
#define LISTS_MAX 16

typedef struct {
    uint64_t slot;
    uint32_t newer, older; /* rings, closed by a sentinel of each list */
    uint32_t chain;        /* the next node of the bucket, or that is free */
    uint32_t mark;
    uint8_t list;
} Node;

typedef struct {
    PyObject_HEAD
    Node *nodes; /* count, and one sentinel a list */
    uint32_t *buckets;
    uint32_t count, lists, bits, free, lengths[LISTS_MAX];
} Tracked;

static uint32_t *bucket_of(const Tracked *t, uint64_t slot)
{
    return &t->buckets[(slot * 0x9E3779B97F4A7C15u) >> (64 - t->bits)];
}

static uint32_t find(const Tracked *t, uint64_t slot)
{
    uint32_t node = *bucket_of(t, slot);
    while (node != NO_NODE && t->nodes[node].slot != slot)
        node = t->nodes[node].chain;
    return node;
}

static void unlink_node(Tracked *t, uint32_t node)
{
    Node *n = &t->nodes[node];
    t->nodes[n->newer].older = n->older;
    t->nodes[n->older].newer = n->newer;
    t->lengths[n->list]--;
}

/* Makes *node* the newest of *list*. */
static void link_node(Tracked *t, uint32_t node, unsigned list)
{
    uint32_t head = t->count + list, newest = t->nodes[head].older;
    t->nodes[node].list = (uint8_t)list;
    t->nodes[node].newer = head, t->nodes[node].older = newest;
    t->nodes[newest].newer = node, t->nodes[head].older = node;
    t->lengths[list]++;
}

/* ---- arguments ---- */

static bool get_slot(PyObject *from, uint64_t *slot)
{
    *slot = PyLong_AsUnsignedLongLong(from);
    return !PyErr_Occurred();
}

static bool get_list(const Tracked *t, PyObject *from, unsigned *list)
{
    unsigned long number = PyLong_AsUnsignedLong(from);
    if (PyErr_Occurred())
        return false;
    *list = (unsigned)number;
    if (number < t->lists)
        return true;
    PyErr_SetString(PyExc_IndexError, "there is no such list");
    return false;
}

/* The slot of *node*, or -1 if it is the end of a list. */
static PyObject *slot_of(const Tracked *t, uint32_t node)
{
    return node < t->count ? PyLong_FromUnsignedLongLong(t->nodes[node].slot)
                           : PyLong_FromLong(-1);
}

/* ---- methods ---- */

static PyObject *tracked_add(Tracked *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t slot;
    unsigned list;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "add(slot, list)");
        return NULL;
    }
    if (!get_slot(args[0], &slot) || !get_list(self, args[1], &list))
        return NULL;
    uint32_t node = find(self, slot);
    if (node != NO_NODE) {
        unlink_node(self, node);
    } else if ((node = self->free) != NO_NODE) {
        uint32_t *bucket = bucket_of(self, slot);
        self->free = self->nodes[node].chain;
        self->nodes[node].slot = slot, self->nodes[node].mark = 0;
        self->nodes[node].chain = *bucket;
        *bucket = node;
    } else {
        Py_RETURN_FALSE;
    }
    link_node(self, node, list);
    Py_RETURN_TRUE;
}

static PyObject *tracked_remove(Tracked *self, PyObject *argument)
{
    uint64_t slot;
    if (!get_slot(argument, &slot))
        return NULL;
    uint32_t *at = bucket_of(self, slot), node;
    while ((node = *at) != NO_NODE && self->nodes[node].slot != slot)
        at = &self->nodes[node].chain;
    if (node == NO_NODE)
        Py_RETURN_FALSE;
    unlink_node(self, node);
    *at = self->nodes[node].chain;
    self->nodes[node].chain = self->free;
    self->free = node;
    Py_RETURN_TRUE;
}

static PyObject *tracked_where(Tracked *self, PyObject *argument)
{
    uint64_t slot;
    if (!get_slot(argument, &slot))
        return NULL;
    uint32_t node = find(self, slot);
    return PyLong_FromLong(node == NO_NODE ? -1 : self->nodes[node].list);
}

static PyObject *tracked_oldest(Tracked *self, PyObject *argument)
{
    unsigned list;
    if (!get_list(self, argument, &list))
        return NULL;
    return slot_of(self, self->nodes[self->count + list].newer);
}

static PyObject *tracked_newer(Tracked *self, PyObject *argument)
{
    uint64_t slot;
    if (!get_slot(argument, &slot))
        return NULL;
    uint32_t node = find(self, slot);
    return node == NO_NODE ? PyLong_FromLong(-1) : slot_of(self, self->nodes[node].newer);
}

static PyObject *tracked_length(Tracked *self, PyObject *argument)
{
    unsigned list;
    if (!get_list(self, argument, &list))
        return NULL;
    return PyLong_FromUnsignedLong(self->lengths[list]);
}

static PyObject *tracked_mark(Tracked *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t slot;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "mark(slot, value)");
        return NULL;
    }
    unsigned long value = PyLong_AsUnsignedLongMask(args[1]);
    if (PyErr_Occurred() || !get_slot(args[0], &slot))
        return NULL;
    uint32_t node = find(self, slot);
    if (node != NO_NODE)
        self->nodes[node].mark = (uint32_t)value;
    return PyBool_FromLong(node != NO_NODE);
}

static PyObject *tracked_marked(Tracked *self, PyObject *argument)
{
    uint64_t slot;
    if (!get_slot(argument, &slot))
        return NULL;
    uint32_t node = find(self, slot);
    return PyLong_FromUnsignedLong(node == NO_NODE ? 0 : self->nodes[node].mark);
}

static PyObject *tracked_pick(Tracked *self, PyObject *const *args, Py_ssize_t nargs)
{
    unsigned list;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "pick(list, number)");
        return NULL;
    }
    unsigned long long number = PyLong_AsUnsignedLongLongMask(args[1]);
    if (PyErr_Occurred() || !get_list(self, args[0], &list))
        return NULL;
    if (self->lengths[list] == 0)
        return PyLong_FromLong(-1);
    uint32_t bucket = (uint32_t)(number & ((1u << self->bits) - 1)), node = NO_NODE;
    for (;; bucket = (bucket + 1) & ((1u << self->bits) - 1))
        for (node = self->buckets[bucket]; node != NO_NODE; node = self->nodes[node].chain)
            if (self->nodes[node].list == list)
                return slot_of(self, node);
}

static PyObject *tracked_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    unsigned count, lists;
    if (!PyArg_ParseTuple(args, "II", &count, &lists))
        return NULL;
    if (count < 1 || count > 1u << 30 || lists < 1 || lists > LISTS_MAX) {
        PyErr_SetString(PyExc_ValueError, "Tracked(slots, lists): 1 to 2**30, and 1 to 16");
        return NULL;
    }
    Tracked *self = (Tracked *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    for (self->bits = 4; 1u << self->bits < count; self->bits++)
        ;
    self->count = count, self->lists = lists;
    self->nodes = PyMem_RawMalloc((size_t)(count + lists) * sizeof(Node));
    self->buckets = PyMem_RawMalloc(sizeof(uint32_t) << self->bits);
    if (self->nodes == NULL || self->buckets == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (uint32_t i = 0; i < 1u << self->bits; i++)
        self->buckets[i] = NO_NODE;
    for (uint32_t i = 0; i < count; i++)
        self->nodes[i] = (Node){.chain = i + 1 < count ? i + 1 : NO_NODE};
    for (uint32_t i = count; i < count + lists; i++)
        self->nodes[i] = (Node){.newer = i, .older = i, .chain = NO_NODE};
    return (PyObject *)self;
}

static void tracked_dealloc(Tracked *self)
{
    PyMem_RawFree(self->nodes);
    PyMem_RawFree(self->buckets);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef tracked_methods[] = {
    {"add", FASTCALL(tracked_add), METH_FASTCALL,
     "add(slot, list) -> whether there was room: make slot the newest of list; its mark stays, and\n"
     "is 0 for a slot that was not tracked."},
    {"remove", (PyCFunction)tracked_remove, METH_O,
     "remove(slot) -> whether it was tracked: forget it."},
    {"where", (PyCFunction)tracked_where, METH_O, "where(slot) -> its list, or -1."},
    {"oldest", (PyCFunction)tracked_oldest, METH_O, "oldest(list) -> slot, or -1."},
    {"newer", (PyCFunction)tracked_newer, METH_O,
     "newer(slot) -> the slot that was added to its list after it, or -1."},
    {"length", (PyCFunction)tracked_length, METH_O, "length(list) -> slots."},
    {"mark", FASTCALL(tracked_mark), METH_FASTCALL,
     "mark(slot, value) -> whether it is tracked: note 32 bits beside it."},
    {"marked", (PyCFunction)tracked_marked, METH_O, "marked(slot) -> its mark."},
    {"pick", FASTCALL(tracked_pick), METH_FASTCALL,
     "pick(list, number) -> a slot of list that follows from number alone, or -1."},
    {NULL}};

PyTypeObject TrackedType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Tracked",
    .tp_basicsize = sizeof(Tracked),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Tracked(slots, lists): up to so many slots, each in one of the lists, by age.",
    .tp_new = tracked_new,
    .tp_dealloc = (destructor)tracked_dealloc,
    .tp_methods = tracked_methods,
};

/* ---- cool ---- */

/* Second chance: of *count* words, those of blobs in the pool that are hot become cold; the slots
 * of those that were cold already, last first. *raw_first*: pages kept raw, which gain no room in
 * memory, count as cold unless they were read (zram: huge). */
static PyObject *policy_cool(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer arena;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "cool(arena, index, count, slot, raw_first)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]);
    unsigned long long slot = PyLong_AsUnsignedLongLong(args[3]);
    bool raw_first = PyObject_IsTrue(args[4]) > 0;
    if (PyErr_Occurred() || !buffers_get(args, 1, 1u, &arena))
        return NULL;
    PyObject *cold = NULL;
    if (!has_words(&arena, index, count))
        PyErr_SetString(PyExc_ValueError, "the words are not inside the arena");
    else
        cold = PyList_New(0);
    uint64_t *words = (uint64_t *)arena.buf + index;
    for (Py_ssize_t i = count - 1; cold != NULL && i >= 0; i--) {
        if ((words[i] & (BACKING_MASK | MOVING)) != IN_POOL)
            continue;
        bool goes = raw_first && is_raw(words[i]) && (words[i] & HEAT_MASK) == HEAT_ONE;
        if ((words[i] & HEAT_MASK) && !goes) {
            words[i] &= ~(uint64_t)HEAT_MASK;
            continue;
        }
        words[i] &= ~(uint64_t)HEAT_MASK;
        PyObject *found = PyLong_FromUnsignedLongLong(slot + (unsigned long long)i);
        if (found == NULL || PyList_Append(cold, found) < 0)
            Py_CLEAR(cold);
        Py_XDECREF(found);
    }
    buffers_release(&arena, 1);
    return cold;
}

PyMethodDef policy_functions[] = {
    {"cool", FASTCALL(policy_cool), METH_FASTCALL,
     "cool(arena, index, count, slot, raw_first) -> slots, last first\n\n"
     "Cool the blobs in the pool that count words from number index on name, which are those of\n"
     "slot on; return the slots of those that were cold, and if raw_first of raw ones that were not\n"
     "read. Blobs that are moving stay as they are."},
    {NULL}};
