/*
 * The session loop: READ, WRITE and FALLOCATE of the swap files, served without an event loop.
 *
 * pyfuse3 waits for each request in trio, which costs more than serving the request. So this loop
 * reads /dev/fuse itself, in one blocking thread. Data requests are answered here: reads of what
 * is in memory by a Reader without Python, all else by a synchronous Python handler. Every
 * namespace request is passed, byte for byte, down a socket pair to pyfuse3, which serves it
 * unaware (interpose.c).
 *
 * Memory: two buffers of one maximal request each, and one for a reply, are mapped by arm(); nothing
 * else is allocated to serve a request but the arguments of the Python call (I5).
 */
#include "session.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#define STOP_SIGNAL (SIGRTMIN + 3)

/* What run() was given. */
static struct {
    PyObject *handlers[OP_COUNT];
    PyObject *failed;
    const struct swapfs_reader *reader; /* answers what is in memory, without the GIL */
    struct swapfs_disks *disks;         /* likewise, by other threads, what is on disks */
} serving;

static atomic_bool stop_wanted;
/* The thread that stop() may signal: none once run() is about to return, for its thread may end
 * then, and who signals a thread that has ended signals whatever came after it. */
static pthread_mutex_t running_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t running_thread;
static bool running;

/* ---- data requests ---- */

/* Hands the exception that a handler raised to failed(op, error): the mount outlives a bug. */
static void tell_failure(enum op op)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *error = PyErr_GetRaisedException();
#else
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace != NULL)
        PyException_SetTraceback(error, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
#endif
    PyObject *told = PyObject_CallFunction(serving.failed, "sO", op_names[op], error);
    if (told == NULL) {
        atomic_fetch_add(&session.handler_errors, 1);
        PyErr_WriteUnraisable(serving.failed);
    }
    Py_XDECREF(told);
    Py_XDECREF(error);
}

/* The result of a handler that returned *value*; sets an exception if it is not one. */
static long result_of(PyObject *value, bool deferred)
{
    if (deferred && value != Py_None) {
        PyErr_SetString(PyExc_RuntimeError, "a handler that deferred must return None");
        return -EIO;
    }
    return deferred ? 0 : PyLong_AsLong(value);
}

/* Calls handler(request, arguments...). Returns its result, or sets *deferred. */
static long call_handler(const struct data_request *request, uint64_t unique, uint64_t start_ns,
                         bool *deferred)
{
    PyObject *args[4] = {begin_request(unique, request->op, start_ns)};
    PyObject *value = NULL;
    long result = -EIO;
    size_t made = 0;

    for (; made < request->count; made++)
        if ((args[1 + made] = PyLong_FromUnsignedLongLong(request->arguments[made])) == NULL)
            break;
    if (made == request->count)
        value = PyObject_Vectorcall(serving.handlers[request->op], args, 1 + made, NULL);
    *deferred = end_request();
    if (value != NULL)
        result = result_of(value, *deferred);
    if (PyErr_Occurred()) {
        /* One that raised after defer() is answered when its Ticket goes. */
        tell_failure(request->op);
        result = -EIO;
    }
    Py_XDECREF(value);
    while (made > 0)
        Py_DECREF(args[made--]);
    return result;
}

static void take_gil(PyThreadState *state)
{
    if (serving.reader != NULL)
        atomic_fetch_add_explicit(serving.reader->waiting, 1, memory_order_relaxed);
    PyEval_RestoreThread(state);
    if (serving.reader != NULL)
        atomic_fetch_sub_explicit(serving.reader->waiting, 1, memory_order_relaxed);
}

/* Has Python serve a request; takes the GIL (*state) for it. */
static long serve_in_python(const struct data_request *request, uint64_t unique, uint64_t start_ns,
                            bool *deferred, PyThreadState **state)
{
    take_gil(*state);
    atomic_fetch_add(&session.in_flight, 1);
    handler_runs(true);
    long result = call_handler(request, unique, start_ns, deferred);
    handler_runs(false);
    if (!*deferred)
        atomic_fetch_sub(&session.in_flight, 1);
    *state = PyEval_SaveThread();
    return result;
}

/* For threads that read disks: the answer to what read_below gave them. */
static void answer_read(const struct swapfs_read *read, long result, const void *data)
{
    reply_result(read->unique, OP_READ, result, data);
    observe(OP_READ, SLOWEST_FILE, read->start_ns);
    atomic_fetch_sub(&session.in_flight, 1);
}

static PyObject *ticket_for(const struct swapfs_read *read)
{
    return make_ticket(read->unique, OP_READ, read->start_ns);
}

/* Answers a read of what is on a disk, or has it answered by another thread; false: that needs
 * Python. */
static bool read_below(const struct fuse_in_header *in, const struct data_request *request,
                       uint64_t start_ns)
{
    struct swapfs_disks *disks = serving.disks;
    const struct swapfs_read read = {in->unique, start_ns, request->arguments[0],
                                     request->arguments[1]};
    if (disks == NULL)
        return false;
    if (disks->read(disks->context, &read, session.out_map)) {
        reply_result(in->unique, OP_READ, (long)read.size, session.out_map);
        observe(OP_READ, SLOWEST_FILE, start_ns);
        awake_read(start_ns);
        return true;
    }
    atomic_fetch_add(&session.in_flight, 1);
    if (!disks->submit(disks->context, &read)) {
        atomic_fetch_sub(&session.in_flight, 1);
        return false;
    }
    awake_read(start_ns);
    return true;
}

/* Answers a read of what is in memory, or has one answered; false: it is none, or needs Python. */
static bool read_memory(const struct fuse_in_header *in, const struct data_request *request,
                        uint64_t start_ns)
{
    const struct swapfs_reader *reader = serving.reader;
    if (request->op != OP_READ || reader == NULL)
        return false;
    long result = reader->read(reader->context, request->arguments[0], request->arguments[1],
                               session.out_map);
    if (result == SWAPFS_BELOW)
        return read_below(in, request, start_ns);
    if (result < 0)
        return false;
    reply_result(in->unique, OP_READ, result, session.out_map);
    observe(OP_READ, SLOWEST_MEMORY, start_ns);
    awake_read(start_ns);
    return true;
}

static void serve(const struct fuse_in_header *in, size_t length, PyThreadState **state)
{
    struct data_request request = {.op = OP_READ};
    uint64_t start_ns = now_ns();
    bool deferred = false;
    long result = -EINVAL;

    atomic_fetch_add_explicit(&session.data_requests, 1, memory_order_relaxed);
    if (decode(in, length, &request)) {
        if (read_memory(in, &request, start_ns))
            return;
        result = serve_in_python(&request, in->unique, start_ns, &deferred, state);
    }
    if (request.op == OP_READ && result > (long)session.bytes_max)
        result = -EIO;
    if (!deferred) {
        reply_result(in->unique, request.op, result, session.out_map);
        observe(request.op, SLOWEST_MEMORY, start_ns);
    }
    if (request.op == OP_READ)
        awake_read(start_ns);
}

/* ---- namespace requests ---- */

/* Hands a request to pyfuse3. It never waits: a stuck namespace must not stop swapping. */
static void pass_on(const struct fuse_in_header *in, size_t length)
{
    if (in->opcode == FUSE_INTERRUPT) /* allowed to be ignored; libfuse would queue it */
        return;
    keep_init(in, (uint32_t)length);
    atomic_fetch_add(&session.namespace_requests, 1);
    if (send(session.pair_loop, in, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length)
        return;
    atomic_fetch_add(&session.dropped_requests, 1);
    if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET)
        reply(in->unique, EIO, NULL, 0);
}

/* Likewise any request, while Python serves another one. */
bool serve_without_python(const struct fuse_in_header *in, size_t length)
{
    struct data_request request;
    if (!is_data_request(in)) {
        pass_on(in, length);
        return true;
    }
    if (in->opcode != FUSE_READ || !decode(in, length, &request) ||
        !read_memory(in, &request, now_ns()))
        return false;
    atomic_fetch_add_explicit(&session.data_requests, 1, memory_order_relaxed);
    return true;
}

/* ---- the loop ---- */

static int loop(void)
{
    PyThreadState *state = PyEval_SaveThread();
    int error = 0;

    requests_block();
    while (request_waits() || !atomic_load(&stop_wanted)) {
        const struct fuse_in_header *in;
        awake_look();
        ssize_t n = next_request(&in);
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
        if (is_data_request(in))
            serve(in, (size_t)n, &state);
        else
            pass_on(in, (size_t)n);
    }
    PyEval_RestoreThread(state);
    return error;
}

static void on_stop_signal(int signal)
{
}

/* Makes this thread the one that stop() signals; false: another is. */
static bool begin_running(void)
{
    pthread_mutex_lock(&running_lock);
    bool first = !running;
    running = true;
    if (first)
        running_thread = pthread_self();
    pthread_mutex_unlock(&running_lock);
    return first;
}

static void end_running(void)
{
    pthread_mutex_lock(&running_lock);
    running = false;
    pthread_mutex_unlock(&running_lock);
}

static bool signal_if_running(void)
{
    pthread_mutex_lock(&running_lock);
    bool signalled = running;
    if (signalled)
        pthread_kill(running_thread, STOP_SIGNAL);
    pthread_mutex_unlock(&running_lock);
    return signalled;
}

PyObject *session_run(PyObject *self, PyObject *args)
{
    unsigned long long inode;
    PyObject *files, *read, *write, *fallocate, *failed;
    PyObject *reader = Py_None, *disks = Py_None;
    const struct swapfs_reader *entry = NULL;
    struct swapfs_disks *below = NULL;
    if (!PyArg_ParseTuple(args, "KOOOOO|OO", &inode, &files, &read, &write, &fallocate, &failed,
                          &reader, &disks))
        return NULL;
    if (reader != Py_None && (entry = PyCapsule_GetPointer(reader, SWAPFS_READER)) == NULL)
        return NULL;
    if (disks != Py_None && (below = PyCapsule_GetPointer(disks, SWAPFS_DISKS)) == NULL)
        return NULL;
    if (!session.armed || session.dev_fd < 0 || session.pair_loop < 0) {
        PyErr_SetString(PyExc_RuntimeError, "run() needs arm() and then pyfuse3.init()");
        return NULL;
    }
    if (!begin_running()) {
        PyErr_SetString(PyExc_RuntimeError, "the session loop already runs");
        return NULL;
    }
    if (!set_files(inode, files)) {
        end_running();
        return NULL;
    }
    /* Without SA_RESTART, so that stop() interrupts the blocking read. */
    struct sigaction action = {.sa_handler = on_stop_signal};
    sigaction(STOP_SIGNAL, &action, NULL);
    serving.handlers[OP_READ] = read; /* the caller's arguments keep them alive */
    serving.handlers[OP_WRITE] = write;
    serving.handlers[OP_FALLOCATE] = fallocate;
    serving.failed = failed;
    serving.reader = entry;
    serving.disks = below;
    if (below != NULL)
        below->answer = answer_read, below->ticket = ticket_for;
    awake_begin();
    int error = loop();
    awake_end();
    end_running();
    close(session.pair_loop); /* end of file for pyfuse3 */
    session.pair_loop = -1;
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyObject *session_stop(PyObject *self, PyObject *unused)
{
    atomic_store(&stop_wanted, true);
    Py_BEGIN_ALLOW_THREADS
    /* A signal that lands just before the read is lost, hence the repetition. */
    while (signal_if_running())
        poll(NULL, 0, 1);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
