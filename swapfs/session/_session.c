/*
 * The module: setting a session up, and its counts. The parts: loop.c serves, wire.c knows the
 * kernel's messages, request.c is what handlers see, interpose.c is how pyfuse3 gets the rest.
 */
#include "session.h"

#define FUSE_USE_VERSION 31
#include <fuse3/fuse_lowlevel.h>

#include <sys/mman.h>
#include <sys/socket.h>

struct session session = {.dev_fd = -1, .pair_loop = -1, .pair_pyfuse3 = -1};

static char *map(size_t size)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static PyObject *session_arm(PyObject *self, PyObject *init)
{
    int pair[2];
    if (session.armed) {
        PyErr_SetString(PyExc_RuntimeError, "one session per process");
        return NULL;
    }
    if (PyObject_GetBuffer(init, &session.init, PyBUF_WRITABLE) < 0)
        return NULL;
    if (session.init.len < 2 * (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "too small for the session's opening");
        return NULL;
    }
    session.bytes_max = session_bytes();
    Py_ssize_t size = (Py_ssize_t)session.bytes_max;
    for (unsigned i = 0; i < IN_BUFFERS; i++) {
        session.in_maps[i] = map(PAGE + session.bytes_max);
        if (session.in_maps[i] == NULL)
            return PyErr_SetFromErrno(PyExc_OSError);
        session.payloads[i] = PyMemoryView_FromMemory(session.in_maps[i] + PAGE, size, PyBUF_READ);
        if (session.payloads[i] == NULL)
            return NULL;
    }
    session.out_map = map(session.bytes_max);
    if (session.out_map == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    session.pair_loop = pair[0];
    session.pair_pyfuse3 = pair[1];
    session.armed = true;
    return PyMemoryView_FromMemory(session.out_map, size, PyBUF_WRITE);
}

static PyObject *session_counts(PyObject *self, PyObject *unused)
{
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K}", "in_flight", atomic_load(&session.in_flight),
                         "data", atomic_load(&session.data_requests), "namespace",
                         atomic_load(&session.namespace_requests), "dropped",
                         atomic_load(&session.dropped_requests), "handler_errors",
                         atomic_load(&session.handler_errors));
}

static PyMethodDef methods[] = {
    {"arm", session_arm, METH_O,
     "arm(init_store) -> the reply payload: take over sessions made from now on."},
    {"run", session_run, METH_VARARGS,
     "run(inode, files, read, write, fallocate, failed, reader=None, disks=None): serve until\n"
     "unmounted or stopped.\n\n"
     "files: (base, size) of each, whose node ids begin with inode. Offsets are those of the space\n"
     "in which all of them lie; what reaches beyond the end of a file is cut off.\n"
     "Handlers get a Request first, then offset and size, or mode, offset and length. What one\n"
     "raises is handed to failed(op, error) and answered EIO. Blocks."},
    {"stop", session_stop, METH_NOARGS, "stop(): end run() without unmounting."},
    {"resend", session_resend, METH_NOARGS,
     "resend(): ask the kernel for every request that was read but not answered."},
    {"replay_init", session_replay_init, METH_NOARGS,
     "replay_init(): hand pyfuse3 the FUSE_INIT that an earlier server was sent."},
    {"latency", session_latency, METH_NOARGS, "latency() -> histograms of served data requests."},
    {"keep_awake", session_keep_awake, METH_VARARGS,
     "keep_awake(fd, linger_s, always): hold the PM QoS file *fd* at 0 while pages are read and\n"
     "linger_s after, or from now on; the caller keeps it open."},
    {"awake", session_awake, METH_NOARGS, "awake() -> held, holds, held_s, error (an errno)."},
    {"overtake", session_overtake, METH_NOARGS,
     "overtake(): from a handler: answer reads of what is in memory that came meanwhile."},
    {"counts", session_counts, METH_NOARGS, "counts() -> requests by kind, in_flight."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.session._session",
                                    "The compiled session loop. See swapfs.session.", -1, methods};

PyMODINIT_FUNC PyInit__session(void)
{
    PyObject *m = PyModule_Create(&module);
    if (m != NULL && add_request_types(m) < 0)
        Py_CLEAR(m);
    /* Also what makes the linker record libfuse as needed, for real() to find its functions. */
    if (m != NULL && PyModule_AddIntConstant(m, "LIBFUSE_VERSION", fuse_version()) < 0)
        Py_CLEAR(m);
    return m;
}
