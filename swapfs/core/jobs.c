/*
 * Disks: what has to wait for a disk, in the order in which it came, for the threads that do it. A
 * read that needs no decision is done and answered here, without the GIL; all else is Python's.
 */
#include "disks.h"

#include <string.h>

#include "buffers.h"

enum { SPARE_EXTENTS = 2 }; /* beside one for each thread: what was read ahead lasts a while */

/* ---- the queue ---- */

static void append(Disks *self, struct job *job)
{
    job->next = NULL;
    *self->last = job;
    self->last = &job->next;
    pthread_cond_signal(&self->come);
}

/* There are as many nodes as the kernel has requests under way. */
static bool submit(Disks *self, const struct job *what)
{
    pthread_mutex_lock(&self->lock);
    struct job *job = self->free;
    if (job != NULL) {
        self->free = job->next;
        *job = *what;
        append(self, job);
    }
    pthread_mutex_unlock(&self->lock);
    return job != NULL;
}

static bool submit_read(void *context, const struct swapfs_read *read)
{
    const struct job job = {.kind = JOB_READ, .read = *read};
    return submit(context, &job);
}

/* For the session's thread: what was read already need not wait for another one. */
static bool read_there(void *context, const struct swapfs_read *read, char *out)
{
    struct job job = {.kind = JOB_AHEAD};
    Py_ssize_t count = (Py_ssize_t)(read->size >> PAGE_SHIFT);
    if (!disks_read_there(context, read->offset >> PAGE_SHIFT, count, out, &job.ahead))
        return false;
    if (job.ahead.end != 0)
        submit(context, &job);
    return true;
}

static PyObject *disks_submit(Disks *self, PyObject *call)
{
    struct job *job = PyMem_RawMalloc(sizeof(*job));
    if (job == NULL)
        return PyErr_NoMemory();
    job->kind = JOB_CALL, job->call = Py_NewRef(call);
    pthread_mutex_lock(&self->lock);
    append(self, job);
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

/* The next job; waits for one. It is a copy, or a call, which has to be freed. */
static struct job *next_job(Disks *self, struct job *copy)
{
    pthread_mutex_lock(&self->lock);
    while (self->first == NULL)
        pthread_cond_wait(&self->come, &self->lock);
    struct job *job = self->first;
    self->first = job->next;
    if (self->first == NULL)
        self->last = &self->first;
    if (job->kind != JOB_CALL) {
        *copy = *job;
        job->next = self->free;
        self->free = job;
        job = copy;
    }
    pthread_mutex_unlock(&self->lock);
    return job;
}

/* ---- a thread ---- */

static bool serve(Disks *self, const struct job *job, const struct place *place)
{
    const struct swapfs_read *read = &job->read;
    if (job->kind == JOB_AHEAD) {
        disks_read_ahead(self, &job->ahead);
        return true;
    }
    if (!disks_read(self, read->offset >> PAGE_SHIFT, (Py_ssize_t)(read->size >> PAGE_SHIFT), place))
        return false;
    self->entry.answer(read, (long)read->size, place->pages);
    return true;
}

static bool get_place(PyObject *const *args, Py_buffer *b, struct place *place)
{
    place->decoder = decoder_of(args[2]);
    if (place->decoder == NULL || !buffers_get(args, 2, 3u, b))
        return false;
    if (!has_pages(&b[1], 0, 1)) {
        buffers_release(b, 2);
        PyErr_SetString(PyExc_ValueError, "less than a page");
        return false;
    }
    place->pages = b[0].buf, place->slots = b[0].len >> PAGE_SHIFT;
    place->payload = b[1].buf;
    return true;
}

static PyObject *disks_get(Disks *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer b[2];
    struct place place;
    struct job copy, *job;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "get(pages, page, decoder)");
        return NULL;
    }
    if (!get_place(args, b, &place))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    do
        job = next_job(self, &copy);
    while (job->kind != JOB_CALL && serve(self, job, &place));
    Py_END_ALLOW_THREADS
    buffers_release(b, 2);
    PyObject *result = NULL;
    if (job->kind == JOB_CALL) {
        result = job->call;
        PyMem_RawFree(job);
    } else {
        PyObject *ticket = (PyObject *)self->entry.ticket(&copy.read);
        if (ticket != NULL)
            result = Py_BuildValue("(NKK)", ticket, copy.read.offset, copy.read.size);
    }
    return result;
}

static PyObject *disks_load(Disks *self, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer b[2];
    struct place place;
    bool done = false;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "load(pages, page, decoder, slot, count)");
        return NULL;
    }
    Py_ssize_t slot = PyLong_AsSsize_t(args[3]), count = PyLong_AsSsize_t(args[4]);
    Py_ssize_t slots = (Py_ssize_t)(self->reader->size_bytes >> PAGE_SHIFT);
    if (PyErr_Occurred() || !get_place(args, b, &place))
        return NULL;
    if (slot >= 0 && count > 0 && count <= slots && slot <= slots - count) {
        Py_BEGIN_ALLOW_THREADS
        struct job job = {.kind = JOB_AHEAD};
        pthread_mutex_lock(&self->one);
        if (count <= place.slots)
            done = disks_read_there(self, (uint64_t)slot, count, place.pages, &job.ahead);
        pthread_mutex_unlock(&self->one);
        if (done && job.ahead.end != 0)
            disks_read_ahead(self, &job.ahead);
        done = done || disks_read(self, (uint64_t)slot, count, &place);
        Py_END_ALLOW_THREADS
    }
    buffers_release(b, 2);
    return PyBool_FromLong(done);
}

/* ---- Disks ---- */

static PyObject *disks_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *reader, *newest;
    unsigned extents, nodes;
    unsigned long long recent;
    Py_ssize_t c[DISK_COUNTS];
    if (!PyArg_ParseTuple(args, "O!OKII(nnnnnnn)", &ReaderType, &reader, &newest, &recent, &extents,
                          &nodes, &c[READ_OPS], &c[READ_BYTES], &c[READ_PAGES],
                          &c[REFAULTED_PAGES], &c[AHEAD_OPS], &c[AHEAD_BYTES], &c[AHEAD_PAGES]))
        return NULL;
    if (extents < 1 || extents > EXTENTS_MAX - SPARE_EXTENTS || nodes < 1 || nodes > 1u << 16) {
        PyErr_SetString(PyExc_ValueError, "so many threads or requests there are not");
        return NULL;
    }
    Disks *self = (Disks *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->last = &self->first;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->come, NULL);
    pthread_mutex_init(&self->one, NULL);
    memcpy(self->counts, c, sizeof(c));
    self->recent = recent;
    self->reader = (Reader *)Py_NewRef(reader);
    self->entry = (struct swapfs_disks){.read = read_there, .submit = submit_read,
                                         .context = self};
    bool good = decoder_begin(&self->decoder) &&
                PyObject_GetBuffer(newest, &self->newest, PyBUF_SIMPLE) == 0 &&
                has_words(&self->newest, 0, 1);
    for (int i = 0; i < DISK_COUNTS; i++)
        good = good && has_words(&self->reader->counters, c[i], 1);
    shelf_begin(&self->shelf, extents + SPARE_EXTENTS);
    if (good && (self->nodes = PyMem_RawCalloc(nodes, sizeof(struct job))) != NULL) {
        for (unsigned i = 0; i < nodes; i++)
            self->nodes[i].next = self->free, self->free = &self->nodes[i];
        return (PyObject *)self;
    }
    Py_DECREF(self);
    if (good)
        return PyErr_NoMemory();
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the words are not inside their buffers");
    return NULL;
}

static PyObject *disks_capsule(Disks *self, PyObject *unused)
{
    return PyCapsule_New(&self->entry, SWAPFS_DISKS, NULL);
}

static void disks_dealloc(Disks *self)
{
    disks_detach_all(self);
    for (struct job *job = self->first, *next; job != NULL; job = next) {
        next = job->next;
        if (job->kind == JOB_CALL) {
            Py_DECREF(job->call);
            PyMem_RawFree(job);
        }
    }
    PyMem_RawFree(self->nodes);
    decoder_end(&self->decoder);
    shelf_end(&self->shelf);
    PyBuffer_Release(&self->newest);
    Py_XDECREF(self->reader);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef disks_methods[] = {
    {"capsule", (PyCFunction)disks_capsule, METH_NOARGS,
     "capsule() -> itself for the session loop, which must end before it is dropped."},
    {"attach", (PyCFunction)disks_attach, METH_VARARGS,
     "attach(number, fd, block_sectors, sealer, row, durations, readers, indexes)\n\n"
     "Read the blobs of tier number from fd from now on; the caller holds the lock. row: words of\n"
     "which those of indexes count reads, their bytes and pages; durations: buckets and the sum in\n"
     "ns; readers: one word, how many read from it now."},
    {"detach", (PyCFunction)disks_detach, METH_O,
     "detach(number): read from it no more; the caller holds the lock, and nobody does."},
    {"forget", (PyCFunction)disks_forget, METH_VARARGS,
     "forget(number, sector, sectors): they were written, and no word names them yet."},
    {"submit", (PyCFunction)disks_submit, METH_O, "submit(object): have get return it, to one."},
    {"get", FASTCALL(disks_get), METH_FASTCALL,
     "get(pages, page, decoder) -> what was submitted next, or (Ticket, offset, size)\n\n"
     "Serve reads of the session until something comes up that Python has to do: what was submitted,\n"
     "or a read of what is damaged, fails or is on no disk here. pages: for the answer, page: one, both\n"
     "this thread's, as is the decoder."},
    {"load", FASTCALL(disks_load), METH_FASTCALL,
     "load(pages, page, decoder, slot, count) -> whether the pages of count slots are in pages\n\n"
     "As get does it."},
    {NULL}};

PyTypeObject DisksType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Disks",
    .tp_basicsize = sizeof(Disks),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Disks(reader, newest, recent, threads, requests, counts)\n\n"
              "Reads blobs from disks, and has other work done by the same threads. newest: one word,\n"
              "the sequence number of the newest blob; who is no more than recent older was refaulted.\n"
              "counts: the indexes of the counters of reads, their bytes and pages, of refaulted pages,\n"
              "and of reads ahead, their bytes and the pages that needed no read.",
    .tp_new = disks_new,
    .tp_dealloc = (destructor)disks_dealloc,
    .tp_methods = disks_methods,
};
