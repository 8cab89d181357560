/*
 * Request: what a handler is given. There is one, used for every request in turn, so that nothing
 * is allocated; it means nothing once the handler has returned.
 * Ticket: what a handler takes from it to answer later: the right and the duty to do so once.
 */
#include "session.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    uint64_t unique, start_ns;
    enum op op;
    bool open, deferred;
} Request;

typedef struct {
    PyObject_HEAD
    uint64_t unique, start_ns;
    enum op op;
    enum slowest slowest;
    bool open;
} Ticket;

static PyTypeObject TicketType;
static Request *the_request;

/* ---- Ticket ---- */

static void ticket_finish(Ticket *self, long result, const void *data)
{
    self->open = false;
    Py_BEGIN_ALLOW_THREADS
    reply_result(self->unique, self->op, result, data);
    observe(self->op, self->slowest, self->start_ns);
    atomic_fetch_sub(&session.in_flight, 1);
    Py_END_ALLOW_THREADS
}

static bool ticket_check(Ticket *self)
{
    if (!self->open)
        PyErr_SetString(PyExc_RuntimeError, "this request is already answered");
    return self->open;
}

static PyObject *ticket_reply(Ticket *self, PyObject *arg)
{
    long result = PyLong_AsLong(arg);
    if ((result == -1 && PyErr_Occurred()) || !ticket_check(self))
        return NULL;
    if (self->op == OP_READ && result > 0) {
        PyErr_SetString(PyExc_ValueError, "a read is answered with reply_data or an errno");
        return NULL;
    }
    ticket_finish(self, result, NULL);
    Py_RETURN_NONE;
}

static PyObject *ticket_reply_data(Ticket *self, PyObject *arg)
{
    Py_buffer data;
    if (!ticket_check(self) || PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    ticket_finish(self, data.len, data.buf);
    PyBuffer_Release(&data);
    Py_RETURN_NONE;
}

static PyObject *ticket_used_file(Ticket *self, PyObject *unused)
{
    self->slowest = SLOWEST_FILE;
    Py_RETURN_NONE;
}

static void ticket_dealloc(Ticket *self)
{
    if (self->open) { /* a worker lost it: the kernel must not wait for ever */
        atomic_fetch_add(&session.handler_errors, 1);
        ticket_finish(self, -EIO, NULL);
    }
    PyObject_Free(self);
}

static PyMethodDef ticket_methods[] = {
    {"reply", (PyCFunction)ticket_reply, METH_O,
     "reply(result): answer with bytes moved (write), 0 (discard) or a negative errno."},
    {"reply_data", (PyCFunction)ticket_reply_data, METH_O,
     "reply_data(buffer): answer a read with these bytes."},
    {"used_file", (PyCFunction)ticket_used_file, METH_NOARGS,
     "used_file(): note that the answer waits for the file tier, for latency()."},
    {NULL}};

static PyTypeObject TicketType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.session._session.Ticket",
    .tp_basicsize = sizeof(Ticket),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The right and the duty to answer one deferred request, once, from any thread.",
    .tp_dealloc = (destructor)ticket_dealloc,
    .tp_methods = ticket_methods,
};

/* ---- Request ---- */

PyObject *make_ticket(uint64_t unique, enum op op, uint64_t start_ns)
{
    Ticket *ticket = PyObject_New(Ticket, &TicketType);
    if (ticket == NULL)
        return NULL;
    ticket->unique = unique;
    ticket->start_ns = start_ns;
    ticket->op = op;
    ticket->slowest = SLOWEST_MEMORY;
    ticket->open = true;
    return (PyObject *)ticket;
}

static PyObject *request_defer(Request *self, PyObject *unused)
{
    if (!self->open || self->deferred) {
        PyErr_SetString(PyExc_RuntimeError, "defer() is for the request's handler, once");
        return NULL;
    }
    PyObject *ticket = make_ticket(self->unique, self->op, self->start_ns);
    self->deferred = ticket != NULL;
    return ticket;
}

static PyMethodDef request_methods[] = {
    {"defer", (PyCFunction)request_defer, METH_NOARGS,
     "defer() -> Ticket: promise to answer later; the handler then returns None."},
    {NULL}};

static PyObject *request_payload(Request *self, void *unused)
{
    return Py_NewRef(session.payloads[current_buffer()]);
}

static PyGetSetDef request_attributes[] = {
    {"payload", (getter)request_payload, NULL, "What the kernel wrote, until the handler returns."},
    {NULL}};

static PyTypeObject RequestType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.session._session.Request",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The request that a handler was called for, until it returns.",
    .tp_dealloc = (destructor)PyObject_Free,
    .tp_methods = request_methods,
    .tp_getset = request_attributes,
};

PyObject *begin_request(uint64_t unique, enum op op, uint64_t start_ns)
{
    the_request->unique = unique;
    the_request->start_ns = start_ns;
    the_request->op = op;
    the_request->deferred = false;
    the_request->open = true;
    return (PyObject *)the_request;
}

bool end_request(void)
{
    the_request->open = false;
    return the_request->deferred;
}

int add_request_types(PyObject *module)
{
    if (PyType_Ready(&TicketType) < 0 || PyType_Ready(&RequestType) < 0 ||
        PyModule_AddObjectRef(module, "Ticket", (PyObject *)&TicketType) < 0 ||
        PyModule_AddObjectRef(module, "Request", (PyObject *)&RequestType) < 0)
        return -1;
    the_request = PyObject_New(Request, &RequestType);
    if (the_request == NULL)
        return -1;
    end_request();
    return 0;
}
