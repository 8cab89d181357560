/*
 * The session loop: READ, WRITE and FALLOCATE of the swap file, served without an event loop.
 *
 * pyfuse3 waits for each request in trio, which costs more than serving the request. So this
 * module reads /dev/fuse itself, in one blocking loop. A request for the swap file that moves
 * data is answered here: reads of what is in memory by a Reader (core/load.c) without Python, all
 * else by a synchronous Python handler. Every other request is passed,
 * byte for byte, down a socket pair to pyfuse3, which serves it unaware.
 *
 * How pyfuse3 comes to read from the pair: it finds its session's descriptor with
 * fuse_session_fd() and reads requests with fuse_session_receive_buf(). This module defines
 * both names. Loaded with RTLD_GLOBAL before pyfuse3, its definitions are the ones that the
 * dynamic linker binds. Until arm() is called they pass through to libfuse. Neither function is
 * versioned differently between libfuse 3.2 and 3.17 (fuse_session_new is, so it is left alone).
 *
 * The wire format is the kernel's: include/uapi/linux/fuse.h. Replies to requests that pyfuse3
 * serves are written by libfuse; the kernel allows any number of writers.
 *
 * Memory: two buffers of one maximal request each are mapped by arm(); nothing else is
 * allocated to serve a request but the arguments of the Python call (I5).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#define FUSE_USE_VERSION 31
#include <fuse3/fuse_lowlevel.h>

#include <dlfcn.h>
#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"
#include "reader.h"

#ifndef FUSE_NOTIFY_RESEND /* linux/fuse.h 7.41, kernel 6.9 */
#define FUSE_NOTIFY_RESEND_CODE 7
#else
#define FUSE_NOTIFY_RESEND_CODE FUSE_NOTIFY_RESEND
#endif

#define PAGE 4096u
/* libfuse 3.14 negotiates at most FUSE_MAX_MAX_PAGES pages; 3.17 goes by the sysctl. */
#define DEFAULT_MAX_PAGES 256u
/* What pyfuse3 may be handed: names and xattrs, never page data. */
#define CONTROL_BYTES (192u * 1024u)
#define STOP_SIGNAL (SIGRTMIN + 3)

enum op { OP_READ, OP_WRITE, OP_FALLOCATE, OP_COUNT };
enum path { PATH_INLINE, PATH_DEFERRED, PATH_COUNT };

static const char *const op_names[OP_COUNT] = {"read", "write", "discard"};
static const char *const path_names[PATH_COUNT] = {"memory", "file"};

/* Upper bounds of the latency buckets, in ns; one more bucket takes the rest. */
static const uint64_t bounds_ns[] = {
    10000,    20000,    50000,     100000,    200000,    500000,     1000000,    2000000,
    5000000,  10000000, 20000000,  50000000,  100000000, 200000000,  500000000,  1000000000,
};
#define BOUNDS (sizeof(bounds_ns) / sizeof(bounds_ns[0]))

struct series {
    _Atomic uint64_t counts[BOUNDS + 1];
    _Atomic uint64_t sum_ns;
};

static struct {
    bool armed;
    int dev_fd;       /* /dev/fuse, owned by libfuse */
    int pair_loop;    /* our end of the socket pair; -1 once the session ended */
    int pair_pyfuse3; /* pyfuse3's end */
    size_t bytes_max; /* the largest request or reply payload */
    char *in_map;     /* PAGE of headers, then the payload, page aligned */
    char *out_map;    /* reply payload */
    PyObject *in_view, *out_view;
    Py_buffer init; /* u32 length, then the kernel's FUSE_INIT request; outlives this process */
    uint64_t inode; /* the swap file's node id */
    const struct swapfs_reader *reader; /* answers what is in memory, without the GIL */
    _Atomic bool stop;
    _Atomic bool running;
    pthread_t thread;
    _Atomic uint64_t in_flight, hot_requests, cold_requests, dropped_requests, handler_errors;
    struct series latency[OP_COUNT][PATH_COUNT];
    /* the request being served, for defer() */
    bool current, deferred;
    uint64_t current_unique, current_start_ns;
    enum op current_op;
} g = {.dev_fd = -1, .pair_loop = -1, .pair_pyfuse3 = -1};

static void observe(enum op op, enum path path, uint64_t start_ns)
{
    uint64_t ns = now_ns() - start_ns;
    size_t i = 0;
    while (i < BOUNDS && ns > bounds_ns[i])
        i++;
    atomic_fetch_add_explicit(&g.latency[op][path].counts[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&g.latency[op][path].sum_ns, ns, memory_order_relaxed);
}

/* ---- the two libfuse functions that pyfuse3 finds here ---- */

static void *real(const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    if (symbol == NULL) {
        fprintf(stderr, "swapfs: libfuse3 has no %s\n", name);
        abort(); /* a broken installation: nothing is mounted yet */
    }
    return symbol;
}

__attribute__((visibility("default"))) int fuse_session_fd(struct fuse_session *se)
{
    int (*real_fd)(struct fuse_session *) = real("fuse_session_fd");
    int fd = real_fd(se);
    if (!g.armed)
        return fd;
    g.dev_fd = fd;
    return g.pair_pyfuse3;
}

__attribute__((visibility("default"))) int fuse_session_receive_buf(struct fuse_session *se,
                                                                    struct fuse_buf *buf)
{
    if (!g.armed) {
        int (*real_receive)(struct fuse_session *, struct fuse_buf *) =
            real("fuse_session_receive_buf");
        return real_receive(se, buf);
    }
    if (buf->mem == NULL && (buf->mem = malloc(CONTROL_BYTES)) == NULL) /* pyfuse3 frees it */
        return -ENOMEM;
    ssize_t n = recv(g.pair_pyfuse3, buf->mem, CONTROL_BYTES, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN ? -EINTR : -errno; /* pyfuse3 tries again after EINTR */
    if (n == 0) /* the loop has ended; without this pyfuse3 spawns readers for ever */
        fuse_session_exit(se);
    buf->size = (size_t)n;
    buf->flags = 0;
    return (int)n;
}

/* ---- replies ---- */

/* Answers one request; 0 or an errno value. ENOENT: the kernel no longer waits for it. */
static int reply(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof(header) + (error ? 0 : size)), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)data, size}};
    for (;;) {
        if (writev(g.dev_fd, iov, error || size == 0 ? 1 : 2) >= 0)
            return 0;
        if (errno != EINTR)
            return errno;
    }
}

/* Answers *op* with *result*: bytes moved, or a negative errno value. */
static int reply_result(uint64_t unique, enum op op, long result, const void *data)
{
    if (result < 0)
        return reply(unique, (int)-result, NULL, 0);
    if (op == OP_READ)
        return reply(unique, 0, data, (size_t)result);
    if (op == OP_WRITE) {
        struct fuse_write_out out = {.size = (uint32_t)result};
        return reply(unique, 0, &out, sizeof(out));
    }
    return reply(unique, 0, NULL, 0);
}

/* ---- Ticket: the right and the duty to answer one deferred request ---- */

typedef struct {
    PyObject_HEAD
    uint64_t unique, start_ns;
    enum op op;
    bool open;
} Ticket;

static void ticket_finish(Ticket *self, long result, const void *data)
{
    self->open = false;
    Py_BEGIN_ALLOW_THREADS
    reply_result(self->unique, self->op, result, data);
    observe(self->op, PATH_DEFERRED, self->start_ns);
    atomic_fetch_sub(&g.in_flight, 1);
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

static void ticket_dealloc(Ticket *self)
{
    if (self->open) { /* a worker lost it: the kernel must not wait for ever */
        atomic_fetch_add(&g.handler_errors, 1);
        ticket_finish(self, -EIO, NULL);
    }
    PyObject_Free(self);
}

static PyMethodDef ticket_methods[] = {
    {"reply", (PyCFunction)ticket_reply, METH_O,
     "reply(result): answer with bytes moved (write), 0 (discard) or a negative errno."},
    {"reply_data", (PyCFunction)ticket_reply_data, METH_O,
     "reply_data(buffer): answer a read with these bytes."},
    {NULL}};

static PyTypeObject TicketType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.session._session.Ticket",
    .tp_basicsize = sizeof(Ticket),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The right and the duty to answer one deferred request, once, from any thread.",
    .tp_dealloc = (destructor)ticket_dealloc,
    .tp_methods = ticket_methods,
};

static PyObject *session_defer(PyObject *self, PyObject *unused)
{
    if (!g.current || g.deferred) {
        PyErr_SetString(PyExc_RuntimeError, "defer() is for a handler, once per request");
        return NULL;
    }
    Ticket *ticket = PyObject_New(Ticket, &TicketType);
    if (ticket == NULL)
        return NULL;
    ticket->unique = g.current_unique;
    ticket->start_ns = g.current_start_ns;
    ticket->op = g.current_op;
    ticket->open = true;
    g.deferred = true;
    return (PyObject *)ticket;
}

/* ---- the loop ---- */

/* Calls handler(args...) for the current request. Returns its result, or sets *deferred. */
static long call_handler(PyObject *handler, const uint64_t *values, size_t count, bool *deferred)
{
    PyObject *args[3] = {NULL};
    PyObject *value = NULL;
    long result = -EIO;
    size_t made = 0;

    for (; made < count; made++)
        if ((args[made] = PyLong_FromUnsignedLongLong(values[made])) == NULL)
            break;
    g.current = true;
    g.deferred = false;
    if (made == count)
        value = PyObject_Vectorcall(handler, args, count, NULL);
    g.current = false;
    if (value != NULL && g.deferred && value == Py_None) {
        *deferred = true;
    } else if (value != NULL && !g.deferred) {
        result = PyLong_AsLong(value);
        if (result == -1 && PyErr_Occurred())
            result = -EIO;
    } else if (value != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a handler that deferred must return None");
    }
    if (PyErr_Occurred()) {
        atomic_fetch_add(&g.handler_errors, 1);
        PyErr_WriteUnraisable(handler); /* the mount outlives a bug in a handler */
        result = -EIO;
    }
    /* A handler that raised after defer() has answered through its Ticket's dealloc. */
    if (g.deferred)
        *deferred = true;
    Py_XDECREF(value);
    for (size_t i = 0; i < made; i++)
        Py_DECREF(args[i]);
    return result;
}

/* Decodes a hot request into a handler's arguments; -1 when its sizes are not sound. */
static int decode(const struct fuse_in_header *in, size_t length, enum op *op, uint64_t *values)
{
    const void *body = in + 1;
    size_t body_size = length - sizeof(*in);

    switch (in->opcode) {
    case FUSE_READ: {
        const struct fuse_read_in *arg = body;
        if (body_size < sizeof(*arg) || arg->size > g.bytes_max)
            return -1;
        *op = OP_READ;
        values[0] = arg->offset;
        values[1] = arg->size;
        return 2;
    }
    case FUSE_WRITE: {
        const struct fuse_write_in *arg = body;
        if (body_size < sizeof(*arg) || arg->size > body_size - sizeof(*arg))
            return -1;
        *op = OP_WRITE;
        values[0] = arg->offset;
        values[1] = arg->size;
        return 2;
    }
    default: {
        const struct fuse_fallocate_in *arg = body;
        if (body_size < sizeof(*arg))
            return -1;
        *op = OP_FALLOCATE;
        values[0] = arg->mode;
        values[1] = arg->offset;
        values[2] = arg->length;
        return 3;
    }
    }
}

static bool is_hot(const struct fuse_in_header *in)
{
    return in->nodeid == g.inode && (in->opcode == FUSE_READ || in->opcode == FUSE_WRITE ||
                                     in->opcode == FUSE_FALLOCATE);
}

/* Keeps the kernel's FUSE_INIT, for the server that may have to resume this session. */
static void keep_init(const struct fuse_in_header *in, uint32_t length)
{
    if (in->opcode == FUSE_INIT && length + 2 * sizeof(length) <= (size_t)g.init.len) {
        memcpy((char *)g.init.buf + sizeof(length), in, length);
        memcpy(g.init.buf, &length, sizeof(length));
    }
}

/* Hands a request to pyfuse3. It never waits: a stuck namespace must not stop swapping. */
static void pass_on(const struct fuse_in_header *in, size_t length)
{
    if (in->opcode == FUSE_INTERRUPT) /* allowed to be ignored; libfuse would queue it */
        return;
    keep_init(in, (uint32_t)length);
    atomic_fetch_add(&g.cold_requests, 1);
    if (send(g.pair_loop, in, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length)
        return;
    atomic_fetch_add(&g.dropped_requests, 1);
    if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET)
        reply(in->unique, EIO, NULL, 0);
}

static void take_gil(PyThreadState *state)
{
    if (g.reader != NULL)
        atomic_fetch_add_explicit(g.reader->waiting, 1, memory_order_relaxed);
    PyEval_RestoreThread(state);
    if (g.reader != NULL)
        atomic_fetch_sub_explicit(g.reader->waiting, 1, memory_order_relaxed);
}

/* Serves one hot request; takes the GIL (*state) if Python must. */
static void serve(const struct fuse_in_header *in, size_t length, uint64_t start_ns,
                  PyObject *const *handlers, PyThreadState **state)
{
    uint64_t values[3];
    enum op op = OP_READ;
    bool deferred = false;
    int count = decode(in, length, &op, values);
    long result = -EINVAL;

    if (count > 0 && op == OP_READ && g.reader != NULL &&
        (result = g.reader->read(g.reader->context, values[0], values[1], g.out_map)) >= 0) {
        reply_result(in->unique, op, result, g.out_map);
        observe(op, PATH_INLINE, start_ns);
        return;
    }
    if (count > 0) {
        take_gil(*state);
        g.current_unique = in->unique;
        g.current_start_ns = start_ns;
        g.current_op = op;
        atomic_fetch_add(&g.in_flight, 1);
        result = call_handler(handlers[op], values, (size_t)count, &deferred);
        if (!deferred)
            atomic_fetch_sub(&g.in_flight, 1);
        *state = PyEval_SaveThread();
    }
    if (deferred)
        return;
    if (op == OP_READ && result > (long)g.bytes_max)
        result = -EIO;
    reply_result(in->unique, op, result, g.out_map);
    observe(op, PATH_INLINE, start_ns);
}

static int loop(PyObject *const *handlers)
{
    char *base = g.in_map + PAGE - sizeof(struct fuse_in_header) - sizeof(struct fuse_write_in);
    const struct fuse_in_header *in = (const struct fuse_in_header *)base;
    size_t capacity = g.bytes_max + sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);
    PyThreadState *state = PyEval_SaveThread();
    int error = 0;

    while (!atomic_load(&g.stop)) {
        ssize_t n = read(g.dev_fd, base, capacity);
        if (n < 0) {
            /* ENOENT: the request was withdrawn while it was being read */
            if (errno == EINTR || errno == ENOENT || errno == EAGAIN)
                continue;
            error = errno == ENODEV ? 0 : errno; /* ENODEV: unmounted */
            break;
        }
        if ((size_t)n < sizeof(*in) || in->len != (size_t)n) {
            error = EPROTO;
            break;
        }
        if (is_hot(in)) {
            atomic_fetch_add_explicit(&g.hot_requests, 1, memory_order_relaxed);
            serve(in, (size_t)n, now_ns(), handlers, &state);
        } else {
            pass_on(in, (size_t)n);
        }
    }
    PyEval_RestoreThread(state);
    return error;
}

static void on_stop_signal(int signal)
{
}

static PyObject *session_run(PyObject *self, PyObject *args)
{
    PyObject *handlers[OP_COUNT];
    unsigned long long inode;
    PyObject *reader = Py_None;
    if (!PyArg_ParseTuple(args, "KOOO|O", &inode, &handlers[0], &handlers[1], &handlers[2],
                          &reader))
        return NULL;
    const struct swapfs_reader *entry = NULL;
    if (reader != Py_None && (entry = PyCapsule_GetPointer(reader, SWAPFS_READER)) == NULL)
        return NULL;
    if (!g.armed || g.dev_fd < 0 || g.pair_loop < 0) {
        PyErr_SetString(PyExc_RuntimeError, "run() needs arm() and then pyfuse3.init()");
        return NULL;
    }
    if (atomic_exchange(&g.running, true)) {
        PyErr_SetString(PyExc_RuntimeError, "the session loop already runs");
        return NULL;
    }
    /* Without SA_RESTART, so that stop() interrupts the blocking read. */
    struct sigaction action = {.sa_handler = on_stop_signal};
    sigaction(STOP_SIGNAL, &action, NULL);
    g.inode = inode;
    g.reader = entry;
    g.thread = pthread_self();
    int error = loop(handlers);
    atomic_store(&g.running, false);
    close(g.pair_loop); /* end of file for pyfuse3 */
    g.pair_loop = -1;
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *session_stop(PyObject *self, PyObject *unused)
{
    atomic_store(&g.stop, true);
    Py_BEGIN_ALLOW_THREADS
    /* A signal that lands just before the read is lost, hence the repetition. */
    while (atomic_load(&g.running)) {
        pthread_kill(g.thread, STOP_SIGNAL);
        poll(NULL, 0, 1);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- set-up ---- */

static size_t max_pages(void)
{
    unsigned pages = DEFAULT_MAX_PAGES, limit = 0;
    FILE *file = fopen("/proc/sys/fs/fuse/max_pages_limit", "r"); /* kernel >= 6.13 */
    if (file != NULL) {
        if (fscanf(file, "%u", &limit) == 1 && limit > pages)
            pages = limit;
        fclose(file);
    }
    return pages;
}

/* The largest request of this session: every server must offer what the first one did, whatever
 * became of the sysctl since. It is kept behind the FUSE_INIT, in the last bytes of its place. */
static size_t session_bytes(void)
{
    uint32_t pages;
    char *kept = (char *)g.init.buf + g.init.len - sizeof(pages);
    memcpy(&pages, kept, sizeof(pages));
    if (pages == 0) {
        pages = (uint32_t)max_pages();
        memcpy(kept, &pages, sizeof(pages));
    }
    return (size_t)pages * PAGE;
}

static char *map(size_t size)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static PyObject *session_arm(PyObject *self, PyObject *init)
{
    int pair[2];
    if (g.armed) {
        PyErr_SetString(PyExc_RuntimeError, "one session per process");
        return NULL;
    }
    if (PyObject_GetBuffer(init, &g.init, PyBUF_WRITABLE) < 0)
        return NULL;
    if (g.init.len < 2 * (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "too small for the session's opening");
        return NULL;
    }
    g.bytes_max = session_bytes();
    g.in_map = map(PAGE + g.bytes_max);
    g.out_map = map(g.bytes_max);
    if (g.in_map == NULL || g.out_map == NULL ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    g.in_view = PyMemoryView_FromMemory(g.in_map + PAGE, (Py_ssize_t)g.bytes_max, PyBUF_READ);
    g.out_view = PyMemoryView_FromMemory(g.out_map, (Py_ssize_t)g.bytes_max, PyBUF_WRITE);
    if (g.in_view == NULL || g.out_view == NULL)
        return NULL;
    g.pair_loop = pair[0];
    g.pair_pyfuse3 = pair[1];
    g.armed = true;
    return PyTuple_Pack(2, g.in_view, g.out_view);
}

static PyObject *session_resend(PyObject *self, PyObject *unused)
{
    struct fuse_out_header header = {
        .len = sizeof(header), .error = FUSE_NOTIFY_RESEND_CODE, .unique = 0};
    if (write(g.dev_fd, &header, sizeof(header)) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* libfuse wants FUSE_INIT before anything else, and the kernel sends it once. The one that it
 * sent to an earlier server is played again, under a number that the kernel does not know: it
 * drops the answer (ENOENT), which libfuse takes for a withdrawn request. */
static PyObject *session_replay_init(PyObject *self, PyObject *unused)
{
    struct {
        struct fuse_in_header header;
        char body[512];
    } request;
    uint32_t length;

    memcpy(&length, g.init.buf, sizeof(length));
    if (length < sizeof(request.header) || length > sizeof(request) ||
        length + 2 * sizeof(length) > (size_t)g.init.len) {
        PyErr_SetString(PyExc_ValueError, "no FUSE_INIT was kept");
        return NULL;
    }
    memcpy(&request, (const char *)g.init.buf + sizeof(length), length);
    request.header.unique = UINT64_MAX - 1;
    if (send(g.pair_loop, &request, length, MSG_NOSIGNAL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* ---- what it measured ---- */

static PyObject *latency_series(enum op op, enum path path)
{
    struct series *s = &g.latency[op][path];
    PyObject *counts = PyList_New(BOUNDS + 1);
    if (counts == NULL)
        return NULL;
    for (size_t i = 0; i <= BOUNDS; i++)
        PyList_SET_ITEM(counts, (Py_ssize_t)i,
                        PyLong_FromUnsignedLongLong(atomic_load(&s->counts[i])));
    return Py_BuildValue("{s:s,s:s,s:N,s:d}", "op", op_names[op], "tier", path_names[path],
                         "counts", counts, "sum_s", (double)atomic_load(&s->sum_ns) / 1e9);
}

static PyObject *session_latency(PyObject *self, PyObject *unused)
{
    PyObject *bounds = PyList_New(BOUNDS), *series = PyList_New(0);
    if (bounds == NULL || series == NULL)
        return NULL;
    for (size_t i = 0; i < BOUNDS; i++)
        PyList_SET_ITEM(bounds, (Py_ssize_t)i, PyFloat_FromDouble((double)bounds_ns[i] / 1e9));
    for (int op = 0; op < OP_COUNT; op++)
        for (int path = 0; path < PATH_COUNT; path++) {
            PyObject *one = latency_series(op, path);
            if (one == NULL || PyList_Append(series, one) < 0)
                return NULL;
            Py_DECREF(one);
        }
    return Py_BuildValue("{s:N,s:N}", "bounds_s", bounds, "series", series);
}

static PyObject *session_counts(PyObject *self, PyObject *unused)
{
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K}", "in_flight", atomic_load(&g.in_flight), "hot",
                         atomic_load(&g.hot_requests), "cold", atomic_load(&g.cold_requests),
                         "dropped", atomic_load(&g.dropped_requests), "handler_errors",
                         atomic_load(&g.handler_errors));
}

static PyMethodDef methods[] = {
    {"arm", session_arm, METH_O,
     "arm(init_store) -> (request_view, reply_view): take over sessions made from now on."},
    {"run", session_run, METH_VARARGS,
     "run(inode, read, write, fallocate): serve until unmounted or stopped; blocks."},
    {"stop", session_stop, METH_NOARGS, "stop(): end run() without unmounting."},
    {"defer", session_defer, METH_NOARGS,
     "defer() -> Ticket: in a handler, promise to answer later; then return None."},
    {"resend", session_resend, METH_NOARGS,
     "resend(): ask the kernel for every request that was read but not answered."},
    {"replay_init", session_replay_init, METH_NOARGS,
     "replay_init(): hand pyfuse3 the FUSE_INIT that an earlier server was sent."},
    {"latency", session_latency, METH_NOARGS, "latency() -> histograms of served requests."},
    {"counts", session_counts, METH_NOARGS, "counts() -> requests by kind, in_flight."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.session._session",
                                    "The compiled session loop. See swapfs.session.", -1, methods};

PyMODINIT_FUNC PyInit__session(void)
{
    if (PyType_Ready(&TicketType) < 0)
        return NULL;
    PyObject *m = PyModule_Create(&module);
    if (m != NULL && PyModule_AddObjectRef(m, "Ticket", (PyObject *)&TicketType) < 0)
        Py_CLEAR(m);
    /* Also what makes the linker record libfuse as needed, for real() to find its functions. */
    if (m != NULL && PyModule_AddIntConstant(m, "LIBFUSE_VERSION", fuse_version()) < 0)
        Py_CLEAR(m);
    return m;
}
