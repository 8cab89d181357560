/*
 * A dictionary of zstd, ready to read and to write with, in memory that is got before it is used.
 */
#include "core.h"

#include <string.h>

#include "decode.h"
#include "word.h"

static bool is_made(Dictionary *self)
{
    const void *content = self->content.buf;
    size_t length = (size_t)self->content.len;
    ZSTD_compressionParameters how = ZSTD_getCParams(self->level, PAGE_BYTES, length);
    size_t reads = ZSTD_estimateDDictSize(length, ZSTD_dlm_byRef);
    size_t writes = ZSTD_estimateCDictSize_advanced(length, how, ZSTD_dlm_byRef);
    self->to_read = PyMem_RawMalloc(reads);
    self->to_write = PyMem_RawMalloc(writes);
    if (self->to_read == NULL || self->to_write == NULL) {
        PyErr_NoMemory();
        return false;
    }
    self->reads = ZSTD_initStaticDDict(self->to_read, reads, content, length, ZSTD_dlm_byRef,
                                       ZSTD_dct_fullDict);
    self->writes = ZSTD_initStaticCDict(self->to_write, writes, content, length, ZSTD_dlm_byRef,
                                        ZSTD_dct_fullDict, how);
    if (self->reads == NULL || self->writes == NULL || self->id == 0) {
        PyErr_SetString(PyExc_ValueError, "that is no dictionary of zstd");
        return false;
    }
    return true;
}

static PyObject *dictionary_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *content;
    int level;
    if (!PyArg_ParseTuple(args, "Oi", &content, &level))
        return NULL;
    Dictionary *self = (Dictionary *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->level = level;
    if (PyObject_GetBuffer(content, &self->content, PyBUF_SIMPLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->id = ZSTD_getDictID_fromDict(self->content.buf, (size_t)self->content.len);
    if (!is_made(self)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void dictionary_dealloc(Dictionary *self)
{
    PyMem_RawFree(self->to_read);
    PyMem_RawFree(self->to_write);
    PyBuffer_Release(&self->content);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *dictionary_id(Dictionary *self, void *unused)
{
    return PyLong_FromUnsignedLong(self->id);
}

static PyGetSetDef dictionary_values[] = {
    {"id", (getter)dictionary_id, NULL, "The number that zstd gave it.", NULL}, {NULL}};

PyTypeObject DictionaryType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Dictionary",
    .tp_basicsize = sizeof(Dictionary),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Dictionary(content, level)\n\n"
              "What pages are compressed with at level, and read with; refers to content, which\n"
              "must not change. ValueError: that is no dictionary of zstd.",
    .tp_new = dictionary_new,
    .tp_dealloc = (destructor)dictionary_dealloc,
    .tp_getset = dictionary_values,
};
