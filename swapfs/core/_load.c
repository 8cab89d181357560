/*
 * Reading pages: from the words of a run of slots to the pages. `load` does it for Python; a
 * `Reader` does it for the session loop, without the GIL, so that neither Python's own time nor
 * another Python thread stands between the kernel and a page in memory. What it cannot answer
 * (a page on disk, a damaged one, a part of a page) it leaves to Python, untouched. Both read
 * under the layer's `Lock`, which is here because the Reader must take it without the GIL.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <lz4.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "_clock.h"
#include "_entry.h"
#include "_reader.h"

#define PAGE_SHIFT 12
#define GIVE_WAY_BREATHS 5
#define HELD_MAX_NS 60000u
#define BREATH_NS 20000
/* likewise, while reads come in */
#define HELD_READ_NS 15000u
#define BREATH_READ_NS 40000
#define READ_LATELY_NS 10000000u

static uint64_t same_value(uint64_t word)
{
    uint64_t value = word >> SAME_SHIFT;
    if (word & SAME_DOUBLED)
        return value << 32 | value;
    return (uint64_t)((int64_t)word >> SAME_SHIFT); /* 58 bits, sign-extended */
}

/* Puts the page of a blob at *to*; false when it is no page. */
static bool unpack(const char *blob, uint64_t length, unsigned codec, char *to)
{
    if (length > PAGE_BYTES)
        return false;
    if (codec != CODEC_RAW)
        return LZ4_decompress_safe(blob, to, (int)length, PAGE_BYTES) == (int)PAGE_BYTES;
    if (length != PAGE_BYTES)
        return false;
    memcpy(to, blob, PAGE_BYTES);
    return true;
}

/* Likewise the page of a POOL *word*. */
static bool unpack_word(uint64_t word, const Py_buffer *arena, char *to)
{
    uint64_t place = pool_place(word), length = blob_length(word);
    return place + length <= (uint64_t)arena->len &&
           unpack((const char *)arena->buf + place, length, blob_codec(word), to);
}

/* Fills pages from *words on; stops at the first that is not in memory, or damaged. */
static Py_ssize_t load(uint64_t *words, Py_ssize_t count, const Py_buffer *arena, char *to,
                       uint64_t *reads)
{
    Py_ssize_t done = 0;
    for (; done < count; done++, to += PAGE_BYTES) {
        uint64_t word = words[done];
        unsigned tag = word & TAG_MASK;
        if (tag == TAG_POOL) {
            if (!unpack_word(word, arena, to))
                break;
            if (!(word & REFERENCED))
                words[done] = word | REFERENCED;
        } else if (tag == TAG_EMPTY) {
            memset(to, 0, PAGE_BYTES);
        } else if (tag == TAG_SAME) {
            uint64_t value = same_value(word);
            for (size_t at = 0; at < PAGE_BYTES; at += sizeof(value))
                memcpy(to + at, &value, sizeof(value));
        } else {
            break;
        }
        reads[tag]++;
    }
    return done;
}

static PyObject *load_load(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { WORDS, ARENA, OUT, READS, BUFFERS };
    static const int at[BUFFERS] = {0, 3, 4, 6};
    Py_buffer b[BUFFERS];
    int have = 0;
    PyObject *result = NULL;

    if (nargs != 7) {
        PyErr_SetString(PyExc_TypeError, "load(words, index, count, arena, out, position, reads)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]);
    Py_ssize_t position = PyLong_AsSsize_t(args[5]);
    if (PyErr_Occurred())
        return NULL;
    for (; have < BUFFERS; have++)
        if (PyObject_GetBuffer(args[at[have]], &b[have], have == ARENA ? PyBUF_SIMPLE
                                                                       : PyBUF_WRITABLE) < 0)
            break;
    if (have == BUFFERS) {
        Py_ssize_t words = b[WORDS].len / (Py_ssize_t)sizeof(uint64_t);
        Py_ssize_t pages = b[OUT].len / (Py_ssize_t)PAGE_BYTES;
        if (index < 0 || count < 0 || position < 0 || count > words || index > words - count ||
            count > pages || position > b[OUT].len - count * (Py_ssize_t)PAGE_BYTES ||
            b[READS].len < 3 * (Py_ssize_t)sizeof(uint64_t))
            PyErr_SetString(PyExc_ValueError, "the run is not inside its buffers");
        else
            result = PyLong_FromSsize_t(load((uint64_t *)b[WORDS].buf + index, count, &b[ARENA],
                                             (char *)b[OUT].buf + position, b[READS].buf));
    }
    while (have-- > 0)
        PyBuffer_Release(&b[have]);
    return result;
}

static PyObject *load_unpack(PyObject *self, PyObject *args)
{
    Py_buffer blob, out;
    int codec;
    Py_ssize_t position;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*iw*n", &blob, &codec, &out, &position))
        return NULL;
    if (position < 0 || position > out.len - (Py_ssize_t)PAGE_BYTES)
        PyErr_SetString(PyExc_ValueError, "the page is not inside its buffer");
    else /* with the GIL: it takes less time than to get it back when many threads read */
        result = PyBool_FromLong(unpack(blob.buf, (uint64_t)blob.len, (unsigned)codec,
                                        (char *)out.buf + position));
    PyBuffer_Release(&blob);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *load_layout(PyObject *self, PyObject *unused)
{
    return Py_BuildValue("(iiiiiiiiiiiiiiiii)", TAG_EMPTY, TAG_SAME, TAG_POOL, TAG_FILE, TAG_MASK,
                         REFERENCED, MOVING, CODEC_SHIFT, CODEC_MASK, CODEC_RAW, CODEC_LZ4, LENGTH_SHIFT,
                         LENGTH_MASK, PLACE_SHIFT, SAME_DOUBLED, SAME_SHIFT, KIND_MASK);
}

/* ---- Lock ---- */

typedef struct {
    PyObject_HEAD
    pthread_mutex_t mutex;
    uint64_t let_go_ns; /* when give_way last did */
    uint64_t reads, reads_seen; /* requests to read that have had it; and when that last grew */
    uint64_t read_ns;
    _Atomic unsigned waiting; /* requests and threads that wait for it, or for the GIL */
} Lock;

/* Waits without the GIL, so whoever has the lock and wants the GIL gets on. */
static int lock_take(Lock *self)
{
    int error = pthread_mutex_trylock(&self->mutex);
    if (error == EBUSY) {
        atomic_fetch_add(&self->waiting, 1);
        Py_BEGIN_ALLOW_THREADS
        error = pthread_mutex_lock(&self->mutex);
        Py_END_ALLOW_THREADS
        atomic_fetch_sub(&self->waiting, 1);
    }
    return error;
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
    return lock_result(lock_take(self));
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

static bool is_wanted(Lock *self)
{
    return atomic_load_explicit(&self->waiting, memory_order_relaxed) != 0;
}

static bool is_read_lately(Lock *self, uint64_t now)
{
    if (self->reads != self->reads_seen) {
        self->reads_seen = self->reads;
        self->read_ns = now;
    }
    return now - self->read_ns < READ_LATELY_NS;
}

/* Under SCHED_FIFO a thread that computes keeps everybody else off its CPU: who would want the
 * lock, the loop device's thread or the process that reads, cannot even say so. Rests cost half
 * the speed of a demotion, so they are that frequent only while somebody does read. */
static bool is_overdue(Lock *self)
{
    uint64_t now = now_ns();
    return now - self->let_go_ns > (is_read_lately(self, now) ? HELD_READ_NS : HELD_MAX_NS);
}

static PyObject *lock_wanted(Lock *self, PyObject *unused)
{
    return PyBool_FromLong(is_wanted(self) || is_overdue(self));
}

/* Lets who waits go first. A lock or a GIL that is let go and taken again at once goes to the
 * same thread: the one that waits has not even woken up by then. Hence the short sleeps. */
static PyObject *lock_give_way(Lock *self, PyObject *unused)
{
    int error = 0;
    if (is_wanted(self) || is_overdue(self)) {
        const struct timespec breath = {
            .tv_nsec = is_read_lately(self, now_ns()) ? BREATH_READ_NS : BREATH_NS};
        error = pthread_mutex_unlock(&self->mutex);
        if (error == 0) {
            Py_BEGIN_ALLOW_THREADS
            int breaths = 0;
            do
                nanosleep(&breath, NULL);
            while (++breaths < GIVE_WAY_BREATHS && is_wanted(self));
            error = pthread_mutex_lock(&self->mutex);
            Py_END_ALLOW_THREADS
            self->let_go_ns = now_ns();
        }
    }
    return lock_result(error);
}

static PyMethodDef lock_methods[] = {
    {"wanted", (PyCFunction)lock_wanted, METH_NOARGS,
     "wanted() -> whether anyone waits for it, or a request for Python, or may be unable to say."},
    {"give_way", (PyCFunction)lock_give_way, METH_NOARGS,
     "give_way(): if it is wanted, let it go, let others go first, and take it again."},
    {"acquire", (PyCFunction)lock_acquire, METH_NOARGS, "acquire(): wait for it and take it."},
    {"release", (PyCFunction)lock_release, METH_NOARGS, "release(): give it back."},
    {"locked", (PyCFunction)lock_locked, METH_NOARGS, "locked() -> whether anyone has it."},
    {"__enter__", (PyCFunction)lock_acquire, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))lock_exit, METH_FASTCALL, NULL},
    {NULL}};

static PyTypeObject LockType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._load.Lock",
    .tp_basicsize = sizeof(Lock),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A lock for Python and C, which knows whether it is wanted.",
    .tp_new = lock_new,
    .tp_dealloc = (destructor)lock_dealloc,
    .tp_methods = lock_methods,
};

/* ---- Reader ---- */

typedef struct {
    PyObject_HEAD
    struct swapfs_reader entry; /* what the session loop calls */
    Lock *lock;
    Py_buffer directory, arena, counters;
    uint64_t size_bytes;
    Py_ssize_t read_bytes; /* index among the counters */
} Reader;

/* Reads the pages of one request under the lock; false: some are not in memory. */
static bool read_run(Reader *self, uint64_t slot, uint64_t end, char *out)
{
    const uint32_t *directory = self->directory.buf;
    uint64_t *words = self->arena.buf, *counters = self->counters.buf;
    uint64_t reads[TAG_POOL + 1] = {0};

    while (slot < end) {
        uint64_t next = (slot | (CLUSTER_SLOTS - 1)) + 1;
        Py_ssize_t count = (Py_ssize_t)((next < end ? next : end) - slot);
        uint64_t page = directory[slot >> CLUSTER_SHIFT];
        if (page == 0) {
            memset(out, 0, (size_t)count * PAGE_BYTES);
            reads[TAG_EMPTY] += (uint64_t)count;
        } else {
            uint64_t index = ((page - 1) << CLUSTER_SHIFT) + (slot & (CLUSTER_SLOTS - 1));
            if (index + (uint64_t)count > (uint64_t)self->arena.len / sizeof(uint64_t) ||
                load(words + index, count, &self->arena, out, reads) < count)
                return false;
        }
        slot += (uint64_t)count;
        out += (size_t)count * PAGE_BYTES;
    }
    for (unsigned tag = TAG_EMPTY; tag <= TAG_POOL; tag++)
        counters[tag] += reads[tag];
    return true;
}

static long reader_read(void *context, uint64_t offset, uint64_t size, char *out)
{
    Reader *self = context;
    if ((offset | size) & (PAGE_BYTES - 1) || size == 0 || offset > self->size_bytes ||
        size > self->size_bytes - offset)
        return -1;
    if (pthread_mutex_trylock(&self->lock->mutex) != 0) {
        atomic_fetch_add(&self->lock->waiting, 1);
        int error = pthread_mutex_lock(&self->lock->mutex);
        atomic_fetch_sub(&self->lock->waiting, 1);
        if (error)
            return -1;
    }
    self->lock->reads++;
    bool done = read_run(self, offset >> PAGE_SHIFT, (offset + size) >> PAGE_SHIFT, out);
    if (done)
        ((uint64_t *)self->counters.buf)[self->read_bytes] += size;
    pthread_mutex_unlock(&self->lock->mutex);
    return done ? (long)size : -1;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *lock, *views[3];
    unsigned long long size_bytes;
    Py_ssize_t read_bytes;
    if (!PyArg_ParseTuple(args, "O!OOOnK", &LockType, &lock, &views[0], &views[1], &views[2],
                          &read_bytes, &size_bytes))
        return NULL;
    Reader *self = (Reader *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_buffer *buffers[3] = {&self->directory, &self->arena, &self->counters};
    for (int i = 0; i < 3; i++)
        if (PyObject_GetBuffer(views[i], buffers[i], PyBUF_WRITABLE) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    self->lock = (Lock *)Py_NewRef(lock);
    self->read_bytes = read_bytes;
    self->size_bytes = size_bytes;
    self->entry = (struct swapfs_reader){reader_read, self, &self->lock->waiting};
    uint64_t clusters = (uint64_t)self->directory.len / sizeof(uint32_t);
    if (size_bytes > clusters << (CLUSTER_SHIFT + PAGE_SHIFT) || read_bytes < 0 ||
        read_bytes >= self->counters.len / (Py_ssize_t)sizeof(uint64_t)) {
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
    return PyLong_FromLong(result);
}

static void reader_dealloc(Reader *self)
{
    PyBuffer_Release(&self->directory);
    PyBuffer_Release(&self->arena);
    PyBuffer_Release(&self->counters);
    Py_XDECREF(self->lock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef reader_methods[] = {
    {"capsule", (PyCFunction)reader_capsule, METH_NOARGS,
     "capsule() -> itself for the session loop, which must end before it is dropped."},
    {"read", (PyCFunction)reader_try, METH_VARARGS,
     "read(offset, size, out) -> bytes read, or -1 for what is not whole pages in memory."},
    {NULL}};

static PyTypeObject ReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._load.Reader",
    .tp_basicsize = sizeof(Reader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Reader(lock, directory, arena, counters, read_bytes, size_bytes)\n\n"
              "Answers reads of whole pages that are in memory. read_bytes: index of that counter.",
    .tp_new = reader_new,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_methods = reader_methods,
};

static PyMethodDef methods[] = {
    {"unpack", load_unpack, METH_VARARGS,
     "unpack(blob, codec, out, position) -> whether the blob was a page, which is then in out."},
    {"load", (PyCFunction)(void (*)(void))load_load, METH_FASTCALL,
     "load(words, index, count, arena, out, position, reads) -> pages filled.\n\n"
     "Fill out from byte position on with the pages of words[index:index+count]. Ends early at a\n"
     "word that is not EMPTY, SAME or POOL, or whose blob is damaged. reads: three counters of\n"
     "EMPTY, SAME and POOL pages. Words that were read become REFERENCED."},
    {"layout", load_layout, METH_NOARGS, "layout() -> the bits of a word that C code knows."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.core._load", "Reading pages.", -1,
                                    methods};

PyMODINIT_FUNC PyInit__load(void)
{
    PyObject *self = PyModule_Create(&module);
    if (self != NULL && (PyModule_AddType(self, &LockType) < 0 ||
                         PyModule_AddType(self, &ReaderType) < 0))
        Py_CLEAR(self);
    return self;
}
