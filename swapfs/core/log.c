/*
 * The access log as Python has it (log.h says what an event is): adding an event where a slot is
 * changed from Python, and reading the ring, in the server or in a process that maps it read-only.
 */
#include "core.h"

#include <stdbool.h>
#include <string.h>

#include "buffers.h"
#include "log.h"

enum { HEAD, TOUCHED, EVENTS, CLASS_OF_GRAINS, PARTS };
static const char *const part_names[PARTS] = {"head", "touched", "events", "class_of_grains"};

static bool is_ring(const Py_buffer *events)
{
    uint64_t count = (uint64_t)events->len / (EVENT_WORDS * sizeof(uint64_t));
    return count > 0 && (count & (count - 1)) == 0 &&
           is_array_of(events, EVENT_WORDS * sizeof(uint64_t), count);
}

static PyObject *log_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    if (!PyArg_ParseTuple(args, ""))
        return NULL;
    Log *self = (Log *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_buffer *b = self->parts;
    if (!buffers_of_keywords(keywords, part_names, PARTS, CLASS_OF_GRAINS, b)) {
        Py_DECREF(self);
        return NULL;
    }
    self->head = b[HEAD].buf, self->touched = b[TOUCHED].buf, self->events = b[EVENTS].buf;
    self->class_of_grains = b[CLASS_OF_GRAINS].buf;
    self->mask = (uint64_t)b[EVENTS].len / (EVENT_WORDS * sizeof(uint64_t)) - 1;
    self->clusters = (uint64_t)b[TOUCHED].len / sizeof(uint32_t);
    if (!is_ring(&b[EVENTS]) || !has_words(&b[HEAD], 0, 1) ||
        !is_array_of(&b[CLASS_OF_GRAINS], 1, (PAGE_BYTES >> GRAIN_SHIFT) + 1)) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "the parts of the log do not fit together");
        return NULL;
    }
    return (PyObject *)self;
}

static void log_dealloc(Log *self)
{
    buffers_release(self->parts, PARTS);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *log_add(Log *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "add(kind, slot, old, new, length)");
        return NULL;
    }
    unsigned long kind = PyLong_AsUnsignedLong(args[0]);
    uint64_t slot = PyLong_AsUnsignedLongLong(args[1]), old = PyLong_AsUnsignedLongLong(args[2]);
    uint64_t new = PyLong_AsUnsignedLongLong(args[3]), length = PyLong_AsUnsignedLongLong(args[4]);
    if (PyErr_Occurred())
        return NULL;
    if (kind > EVENT_REFAULT || slot >> CLUSTER_SHIFT >= self->clusters) {
        PyErr_SetString(PyExc_ValueError, "no such kind of event, or no such slot");
        return NULL;
    }
    unsigned size_class = length ? log_size_class(self, length) : log_class_of(self, new);
    if (size_class == NO_SIZE && kind != EVENT_STORE)
        size_class = log_class_of(self, old);
    log_append(self, (unsigned)kind, slot, size_class, log_tier(new), log_tier(old),
               self->fixed_ns ? self->fixed_ns : now_ns());
    Py_RETURN_NONE;
}

/* Copies events from number *since* on into *out*; what is gone by then is skipped. Right also
 * while another process adds: the event under way takes the place of the oldest one. */
static PyObject *log_read(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { HEAD_WORD, RING, OUT, BUFFERS };
    Py_buffer b[BUFFERS];
    if (nargs != BUFFERS + 1) {
        PyErr_SetString(PyExc_TypeError, "log_read(head, events, out, since)");
        return NULL;
    }
    uint64_t since = PyLong_AsUnsignedLongLong(args[BUFFERS]);
    if (PyErr_Occurred() || !buffers_get(args, BUFFERS, 1u << OUT, b))
        return NULL;
    uint64_t first = 0, count = 0;
    bool good = is_ring(&b[RING]) && has_words(&b[HEAD_WORD], 0, 1);
    if (good) {
        const size_t event_bytes = EVENT_WORDS * sizeof(uint64_t);
        uint64_t capacity = (uint64_t)b[RING].len / event_bytes, *out = b[OUT].buf;
        uint64_t room = (uint64_t)b[OUT].len / event_bytes;
        const uint64_t *head = b[HEAD_WORD].buf, *events = b[RING].buf;
        uint64_t end = __atomic_load_n(head, __ATOMIC_ACQUIRE);
        first = since > end ? end : since; /* a head that was reset */
        if (end - first > capacity)
            first = end - capacity;
        count = end - first < room ? end - first : room;
        for (uint64_t i = 0; i < count; i++)
            memcpy(out + EVENT_WORDS * i, events + EVENT_WORDS * ((first + i) & (capacity - 1)),
                   event_bytes);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        end = __atomic_load_n(head, __ATOMIC_RELAXED);
        uint64_t whole = end < capacity ? 0 : end - capacity + 1, gone = 0;
        if (first < whole)
            gone = whole - first < count ? whole - first : count;
        memmove(out, out + EVENT_WORDS * gone, (count - gone) * event_bytes);
        first += gone, count -= gone;
    }
    buffers_release(b, BUFFERS);
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "that is no ring of events");
        return NULL;
    }
    return Py_BuildValue("(KK)", (unsigned long long)first, (unsigned long long)count);
}

PyMethodDef log_functions[] = {
    {"log_read", FASTCALL(log_read), METH_FASTCALL,
     "log_read(head, events, out, since) -> (first, count)\n\n"
     "Copy the events from number since on into out, as many as fit; the first one that is there is\n"
     "number first. The ring may be that of another process."},
    {NULL}};

static PyObject *log_set_clock(Log *self, PyObject *argument)
{
    uint64_t time_ns = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    self->fixed_ns = time_ns;
    Py_RETURN_NONE;
}

static PyMethodDef log_methods[] = {
    {"set_clock", (PyCFunction)log_set_clock, METH_O,
     "set_clock(time_ns): from now on it is this time for add; 0: the machine's."},
    {"add", FASTCALL(log_add), METH_FASTCALL,
     "add(kind, slot, old, new, length): note that the word of slot became new; the layer's lock\n"
     "is held. length: of the blob, where neither word says it, else 0."},
    {NULL}};

PyTypeObject LogType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Log",
    .tp_basicsize = sizeof(Log),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Log(*, head, touched, events, class_of_grains): the access log; see log.h.",
    .tp_new = log_new,
    .tp_dealloc = (destructor)log_dealloc,
    .tp_methods = log_methods,
};
