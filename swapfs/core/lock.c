/*
 * The layer's lock: a mutex that C takes without the GIL, and that knows whether others want it.
 * Python waits for it without the GIL, so whoever has the lock and wants the GIL gets on.
 */
#include "core.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "clock.h"

#define RESCHED_RESTS 5
#define HELD_MAX_NS 60000u
#define REST_NS 20000
/* likewise, while reads come in */
#define HELD_READ_NS 15000u
#define REST_READ_NS 40000
#define READ_LATELY_NS 10000000u

int lock_enter(Lock *self)
{
    int error = pthread_mutex_trylock(&self->mutex);
    if (error == EBUSY) {
        atomic_fetch_add(&self->waiting, 1);
        error = pthread_mutex_lock(&self->mutex);
        atomic_fetch_sub(&self->waiting, 1);
    }
    return error;
}

void lock_leave(Lock *self)
{
    pthread_mutex_unlock(&self->mutex);
}

static PyObject *lock_result(int error)
{
    if (error) { /* EDEADLK: it has it already; EPERM: it has it not */
        PyErr_SetString(PyExc_RuntimeError, strerror(error));
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *lock_acquire(Lock *self, PyObject *unused)
{
    int error = pthread_mutex_trylock(&self->mutex);
    if (error == EBUSY) { /* as lock_enter, but it waits until it has the GIL too */
        atomic_fetch_add(&self->waiting, 1);
        Py_BEGIN_ALLOW_THREADS
        error = pthread_mutex_lock(&self->mutex);
        Py_END_ALLOW_THREADS
        atomic_fetch_sub(&self->waiting, 1);
    }
    return lock_result(error);
}

static PyObject *lock_release(Lock *self, PyObject *unused)
{
    return lock_result(pthread_mutex_unlock(&self->mutex));
}

static PyObject *lock_exit(Lock *self, PyObject *const *args, Py_ssize_t nargs)
{
    return lock_result(pthread_mutex_unlock(&self->mutex));
}

static PyObject *lock_locked(Lock *self, PyObject *unused)
{
    int error = pthread_mutex_trylock(&self->mutex);
    if (error == 0)
        pthread_mutex_unlock(&self->mutex);
    return PyBool_FromLong(error != 0);
}

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    pthread_mutexattr_t attributes;
    Lock *self = (Lock *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    /* Not priority-inheriting: the kernel allocates for that while we serve (I5), in
     * refill_pi_state_cache(), and all threads of a server have one priority anyway. */
    pthread_mutex_init(&self->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return (PyObject *)self;
}

static void lock_dealloc(Lock *self)
{
    pthread_mutex_destroy(&self->mutex);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool is_waited_for(Lock *self)
{
    return atomic_load_explicit(&self->waiting, memory_order_relaxed) != 0;
}

static bool is_read_lately(Lock *self, uint64_t now)
{
    uint64_t reads = atomic_load_explicit(&self->reads, memory_order_relaxed);
    if (reads != self->reads_seen) {
        self->reads_seen = reads;
        self->read_ns = now;
    }
    return now - self->read_ns < READ_LATELY_NS;
}

/* Somebody waits, or nobody was let in for so long that somebody may be unable to say: under
 * SCHED_FIFO a thread that computes keeps everybody else off its CPU, the loop device's thread
 * and the process that reads too. Rests cost half the speed of a demotion, so they are that
 * frequent only while somebody does read. */
static bool is_contended(Lock *self)
{
    if (is_waited_for(self))
        return true;
    uint64_t now = now_ns();
    return now - self->let_go_ns > (is_read_lately(self, now) ? HELD_READ_NS : HELD_MAX_NS);
}

static PyObject *lock_contended(Lock *self, PyObject *unused)
{
    return PyBool_FromLong(is_contended(self));
}

/* Lets others go first; *held*: the lock is let go meanwhile. A lock or a GIL that is let go and
 * taken again at once goes to the same thread: the one that waits has not even woken up by then.
 * Hence the short sleeps. */
static PyObject *let_others_go(Lock *self, bool held)
{
    int error = 0;
    if (!is_contended(self))
        Py_RETURN_NONE;
    const struct timespec rest = {
        .tv_nsec = is_read_lately(self, now_ns()) ? REST_READ_NS : REST_NS};
    if (held && (error = pthread_mutex_unlock(&self->mutex)) != 0)
        return lock_result(error);
    Py_BEGIN_ALLOW_THREADS
    int rests = 0;
    do
        nanosleep(&rest, NULL);
    while (++rests < RESCHED_RESTS && is_waited_for(self));
    if (held)
        error = pthread_mutex_lock(&self->mutex);
    Py_END_ALLOW_THREADS
    self->let_go_ns = now_ns();
    return lock_result(error);
}

static PyObject *lock_resched(Lock *self, PyObject *unused)
{
    return let_others_go(self, true);
}

static PyObject *lock_relax(Lock *self, PyObject *unused)
{
    return let_others_go(self, false);
}

static PyMethodDef lock_methods[] = {
    {"contended", (PyCFunction)lock_contended, METH_NOARGS,
     "contended() -> whether others should have it: a thread or a request waits for it or for\n"
     "Python, or nobody was let in for so long that somebody may be unable to say."},
    {"resched", (PyCFunction)lock_resched, METH_NOARGS,
     "resched(): if it is contended, let it go, let others go first, and take it again\n"
     "(the kernel's cond_resched_lock)."},
    {"relax", (PyCFunction)lock_relax, METH_NOARGS,
     "relax(): the same for a thread that has let it go and will take it again (cond_resched)."},
    {"acquire", (PyCFunction)lock_acquire, METH_NOARGS, "acquire(): wait for it and take it."},
    {"release", (PyCFunction)lock_release, METH_NOARGS, "release(): give it back."},
    {"locked", (PyCFunction)lock_locked, METH_NOARGS, "locked() -> whether anyone has it."},
    {"__enter__", (PyCFunction)lock_acquire, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))lock_exit, METH_FASTCALL, NULL},
    {NULL}};

PyTypeObject LockType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Lock",
    .tp_basicsize = sizeof(Lock),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A lock for Python and C, which knows whether it is contended.",
    .tp_new = lock_new,
    .tp_dealloc = (destructor)lock_dealloc,
    .tp_methods = lock_methods,
};
