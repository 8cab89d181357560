/*
 * Blobs to pages: raw, lz4 blocks, and zstd frames without magic number, size and checksum.
 */
#include "core.h"

#include <lz4.h>
#include <string.h>

#include "buffers.h"
#include "decode.h"
#include "word.h"

bool decoder_begin(struct decoder *decoder)
{
    size_t bytes = ZSTD_estimateDCtxSize();
    decoder->workspace = PyMem_RawMalloc(bytes);
    if (decoder->workspace == NULL) {
        PyErr_NoMemory();
        return false;
    }
    decoder->context = ZSTD_initStaticDCtx(decoder->workspace, bytes);
    if (decoder->context == NULL ||
        ZSTD_isError(ZSTD_DCtx_setParameter(decoder->context, ZSTD_d_format,
                                            ZSTD_f_zstd1_magicless))) {
        PyErr_SetString(PyExc_RuntimeError, "libzstd makes no context to decompress with");
        return false;
    }
    return true;
}

void decoder_end(struct decoder *decoder)
{
    PyMem_RawFree(decoder->workspace);
}

bool decode(const struct decoder *decoder, const char *blob, uint64_t length, unsigned codec,
            char *to)
{
    if (length > PAGE_BYTES)
        return false;
    switch (codec & ~CODEC_KEPT) {
    case CODEC_RAW:
        if (length != PAGE_BYTES)
            return false;
        memcpy(to, blob, PAGE_BYTES);
        return true;
    case CODEC_LZ4:
        return LZ4_decompress_safe(blob, to, (int)length, PAGE_BYTES) == (int)PAGE_BYTES;
    case CODEC_ZSTD:
        return ZSTD_decompressDCtx(decoder->context, to, PAGE_BYTES, blob, length) == PAGE_BYTES;
    }
    return false;
}

/* ---- Decoder: the same for Python ---- */

typedef struct {
    PyObject_HEAD
    struct decoder decoder;
} Decoder;

static PyObject *unpack(Decoder *self, PyObject *args)
{
    Py_buffer blob, out;
    int codec;
    Py_ssize_t position;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*iw*n", &blob, &codec, &out, &position))
        return NULL;
    if (!has_pages(&out, position, 1))
        PyErr_SetString(PyExc_ValueError, "the page is not inside its buffer");
    else /* with the GIL: it takes less time than to get it back when many threads read */
        result = PyBool_FromLong(decode(&self->decoder, blob.buf, (uint64_t)blob.len,
                                        (unsigned)codec, (char *)out.buf + position));
    PyBuffer_Release(&blob);
    PyBuffer_Release(&out);
    return result;
}

struct decoder *decoder_of(PyObject *object)
{
    if (!PyObject_TypeCheck(object, &DecoderType)) {
        PyErr_SetString(PyExc_TypeError, "not a Decoder");
        return NULL;
    }
    return &((Decoder *)object)->decoder;
}

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    if (!PyArg_ParseTuple(args, ""))
        return NULL;
    Decoder *self = (Decoder *)type->tp_alloc(type, 0);
    if (self != NULL && !decoder_begin(&self->decoder))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void decoder_dealloc(Decoder *self)
{
    decoder_end(&self->decoder);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef decoder_methods[] = {
    {"unpack", (PyCFunction)unpack, METH_VARARGS,
     "unpack(blob, codec, out, position) -> whether the blob was a page, which is then in out."},
    {NULL}};

PyTypeObject DecoderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Decoder",
    .tp_basicsize = sizeof(Decoder),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Decoder()\n\nMakes pages of blobs; under the GIL.",
    .tp_new = decoder_new,
    .tp_dealloc = (destructor)decoder_dealloc,
    .tp_methods = decoder_methods,
};
