/*
 * Sealer: blobs sealed and opened, for Python; and the seal that is only a checksum, a CRC-32 (that
 * of zlib) over header and payload, whose body is the payload.
 */
#include "core.h"

#include <string.h>
#include <zlib.h>

#include "blob.h"
#include "buffers.h"
#include "seal.h"

/* ---- the checksum ---- */

static uint32_t sum(const void *header, size_t header_length, const void *payload, size_t length)
{
    return (uint32_t)crc32(crc32(0, header, (uInt)header_length), payload, (uInt)length);
}

static bool checksum_close(struct swapfs_seal *self, const void *header, size_t header_length,
                           uint64_t sequence, const void *payload, size_t length, char *to)
{
    uint32_t tag[TAG_BYTES / 4] = {sum(header, header_length, payload, length)};
    memcpy(to, payload, length);
    memcpy(to + length, tag, TAG_BYTES);
    return true;
}

static bool checksum_open(struct swapfs_seal *self, const void *header, size_t header_length,
                          uint64_t sequence, const void *sealed, size_t length, char *to)
{
    uint32_t tag[TAG_BYTES / 4] = {sum(header, header_length, sealed, length)};
    memcpy(to, sealed, length);
    return memcmp(tag, (const char *)sealed + length, TAG_BYTES) == 0;
}

static struct swapfs_seal checksum = {checksum_close, checksum_open};

/* ---- Sealer ---- */

typedef struct {
    PyObject_HEAD
    PyObject *capsule; /* keeps what seal points to; NULL: the checksum */
    struct swapfs_seal *seal;
} Sealer;

struct swapfs_seal *sealer_seal(PyObject *sealer)
{
    if (!PyObject_TypeCheck(sealer, &SealerType)) {
        PyErr_SetString(PyExc_TypeError, "not a Sealer");
        return NULL;
    }
    return ((Sealer *)sealer)->seal;
}

static PyObject *sealer_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *capsule = NULL;
    struct swapfs_seal *seal = &checksum;
    if (!PyArg_ParseTuple(args, "|O", &capsule))
        return NULL;
    if (capsule != NULL && (seal = PyCapsule_GetPointer(capsule, SWAPFS_SEAL)) == NULL)
        return NULL;
    Sealer *self = (Sealer *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->capsule = Py_XNewRef(capsule), self->seal = seal;
    return (PyObject *)self;
}

static void sealer_dealloc(Sealer *self)
{
    Py_XDECREF(self->capsule);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *sealer_seal_bytes(Sealer *self, PyObject *args)
{
    Py_buffer header, payload;
    unsigned long long sequence;
    if (!PyArg_ParseTuple(args, "y*Ky*", &header, &sequence, &payload))
        return NULL;
    PyObject *sealed = PyBytes_FromStringAndSize(NULL, payload.len + (Py_ssize_t)TAG_BYTES);
    if (sealed != NULL &&
        !self->seal->close(self->seal, header.buf, (size_t)header.len, sequence, payload.buf,
                           (size_t)payload.len, PyBytes_AS_STRING(sealed))) {
        PyErr_SetString(PyExc_RuntimeError, "the cipher failed");
        Py_CLEAR(sealed);
    }
    PyBuffer_Release(&header);
    PyBuffer_Release(&payload);
    return sealed;
}

static PyObject *sealer_open_bytes(Sealer *self, PyObject *args)
{
    Py_buffer header, sealed;
    unsigned long long sequence;
    PyObject *payload = NULL;
    if (!PyArg_ParseTuple(args, "y*Ky*", &header, &sequence, &sealed))
        return NULL;
    Py_ssize_t length = sealed.len - (Py_ssize_t)TAG_BYTES;
    if (length < 0)
        PyErr_SetString(PyExc_ValueError, "less than a tag");
    else
        payload = PyBytes_FromStringAndSize(NULL, length);
    if (payload != NULL &&
        !self->seal->open(self->seal, header.buf, (size_t)header.len, sequence, sealed.buf,
                          (size_t)length, PyBytes_AS_STRING(payload))) {
        Py_DECREF(payload);
        payload = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&header);
    PyBuffer_Release(&sealed);
    return payload;
}

static PyObject *sealer_put(Sealer *self, PyObject *args)
{
    Py_buffer view, payload;
    Py_ssize_t at;
    unsigned long long slot, sequence;
    unsigned int codec;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "w*nKIKy*", &view, &at, &slot, &codec, &sequence, &payload))
        return NULL;
    size_t length = (size_t)payload.len, bytes = blob_sectors(length) * SECTOR_BYTES;
    uint32_t check;
    if (length < 1 || length > PAGE_BYTES || codec > UINT8_MAX || at < 0 ||
        (size_t)view.len < bytes || (size_t)at > (size_t)view.len - bytes)
        PyErr_SetString(PyExc_ValueError, "the blob is not inside its buffer");
    else if (!blob_put(self->seal, slot, codec, sequence, payload.buf, length,
                       (char *)view.buf + at, &check))
        PyErr_SetString(PyExc_RuntimeError, "the cipher failed");
    else
        result = PyLong_FromUnsignedLong(check);
    PyBuffer_Release(&view);
    PyBuffer_Release(&payload);
    return result;
}

/* ---- many blobs at once ---- */

/* One of a batch: what Staged has of it, in its order (tiers/base.py); then its reference. */
enum { SLOT, START, LENGTH, CODEC, SEQUENCE, PARTS };

/* Notes *count* items, PARTS words for each; false with an exception. */
static bool note_items(PyObject *items, Py_ssize_t count, uint64_t *words)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) < PARTS) {
            PyErr_SetString(PyExc_TypeError, "not a list of Staged");
            return false;
        }
        for (int part = 0; part < PARTS; part++)
            *words++ = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(item, part));
    }
    return !PyErr_Occurred();
}

/* Seals what was noted, one after the other, and replaces each slot by the reference of its blob;
 * NULL, or what is wrong. */
static const char *seal_items(struct swapfs_seal *seal, uint64_t *words, Py_ssize_t count,
                              const Py_buffer *source, const Py_buffer *view, uint64_t sector,
                              size_t *sectors)
{
    for (; count > 0; count--, words += PARTS) {
        uint64_t start = words[START], length = words[LENGTH], most = (uint64_t)source->len;
        size_t at = *sectors * SECTOR_BYTES, bytes = blob_sectors(length) * SECTOR_BYTES;
        uint32_t check;
        if (length < 1 || length > PAGE_BYTES || start > most || length > most - start ||
            words[CODEC] > UINT8_MAX || at + bytes > (size_t)view->len)
            return "a blob is not inside its buffer";
        if (!blob_put(seal, words[SLOT], (unsigned)words[CODEC], words[SEQUENCE],
                      (const char *)source->buf + start, length, (char *)view->buf + at, &check))
            return "the cipher failed";
        words[SLOT] = blob_ref(sector + *sectors, length, check);
        *sectors += bytes / SECTOR_BYTES;
    }
    return NULL;
}

static PyObject *list_refs(const uint64_t *words, Py_ssize_t count)
{
    PyObject *refs = PyList_New(count);
    for (Py_ssize_t i = 0; refs != NULL && i < count; i++, words += PARTS) {
        PyObject *ref = PyLong_FromUnsignedLongLong(words[SLOT]);
        if (ref == NULL)
            Py_CLEAR(refs);
        else
            PyList_SET_ITEM(refs, i, ref);
    }
    return refs;
}

static PyObject *sealer_put_all(Sealer *self, PyObject *args)
{
    enum { VIEW, SOURCE, NOTES, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *items, *views[BUFFERS], *result = NULL;
    unsigned long long sector;
    size_t sectors = 0;
    if (!PyArg_ParseTuple(args, "OOO!OK", &views[VIEW], &views[SOURCE], &PyList_Type, &items,
                          &views[NOTES], &sector) ||
        !buffers_get(views, BUFFERS, 1u << VIEW | 1u << NOTES, b))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(items);
    uint64_t *words = b[NOTES].buf;
    if (!has_words(&b[NOTES], 0, count * PARTS)) {
        PyErr_SetString(PyExc_ValueError, "more blobs than can be noted");
    } else if (note_items(items, count, words)) {
        const char *wrong;
        Py_BEGIN_ALLOW_THREADS
        wrong = seal_items(self->seal, words, count, &b[SOURCE], &b[VIEW], sector, &sectors);
        Py_END_ALLOW_THREADS
        if (wrong != NULL)
            PyErr_SetString(PyExc_ValueError, wrong);
        else
            result = Py_BuildValue("(Nn)", list_refs(words, count), (Py_ssize_t)sectors);
    }
    buffers_release(b, BUFFERS);
    return result;
}

static PyMethodDef sealer_methods[] = {
    {"seal", (PyCFunction)sealer_seal_bytes, METH_VARARGS,
     "seal(header, sequence, payload) -> body and tag."},
    {"open", (PyCFunction)sealer_open_bytes, METH_VARARGS,
     "open(header, sequence, sealed) -> payload, or None for what is not as it was."},
    {"put", (PyCFunction)sealer_put, METH_VARARGS,
     "put(view, position, slot, codec, sequence, payload) -> the tag's first four bytes\n\n"
     "Put a blob, header and all, at byte position of view, and zeros up to the end of a sector."},
    {"put_all", (PyCFunction)sealer_put_all, METH_VARARGS,
     "put_all(view, source, items, notes, sector) -> references, sectors taken\n\n"
     "Put a blob of each Staged in items, whose payloads are in source, one after the other into view,\n"
     "which is to lie at sector; without the GIL. notes: room for five words a blob."},
    {NULL}};

PyTypeObject SealerType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Sealer",
    .tp_basicsize = sizeof(Sealer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Sealer(capsule=None)\n\nSeals by what the capsule has (_aead), or by a CRC-32.",
    .tp_new = sealer_new,
    .tp_dealloc = (destructor)sealer_dealloc,
    .tp_methods = sealer_methods,
};
