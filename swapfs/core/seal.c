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

static PyMethodDef sealer_methods[] = {
    {"seal", (PyCFunction)sealer_seal_bytes, METH_VARARGS,
     "seal(header, sequence, payload) -> body and tag."},
    {"open", (PyCFunction)sealer_open_bytes, METH_VARARGS,
     "open(header, sequence, sealed) -> payload, or None for what is not as it was."},
    {"put", (PyCFunction)sealer_put, METH_VARARGS,
     "put(view, position, slot, codec, sequence, payload) -> the tag's first four bytes\n\n"
     "Put a blob, header and all, at byte position of view, and zeros up to the end of a sector."},
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
