/*
 * Buffers of Python objects: several got at once, their lengths checked, and all given back.
 */
#ifndef SWAPFS_BUFFERS_H
#define SWAPFS_BUFFERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "word.h"

/* A function of C that takes its arguments as an array, for a PyMethodDef. */
#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function))

static inline void buffers_release(Py_buffer *buffers, int count)
{
    while (count-- > 0)
        PyBuffer_Release(&buffers[count]);
}

/* Gets the buffers of *count* objects, all or none; bit i of *writable*: buffer i is written to. */
static inline bool buffers_get(PyObject *const *from, int count, unsigned writable,
                               Py_buffer *buffers)
{
    for (int have = 0; have < count; have++)
        if (PyObject_GetBuffer(from[have], &buffers[have],
                               writable >> have & 1 ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
            buffers_release(buffers, have);
            return false;
        }
    return true;
}

/* Likewise of the *count* keyword arguments of these names; those from *constant* on are only read.
 * An object keeps them for its life, so what is not there yet must be zero: its end releases all. */
static inline bool buffers_of_keywords(PyObject *keywords, const char *const *names, int count,
                                       int constant, Py_buffer *buffers)
{
    if (keywords == NULL || PyDict_GET_SIZE(keywords) != count) {
        PyErr_Format(PyExc_TypeError, "expected %d keyword arguments", count);
        return false;
    }
    for (int i = 0; i < count; i++) {
        PyObject *from = PyDict_GetItemString(keywords, names[i]);
        if (from == NULL) {
            PyErr_Format(PyExc_TypeError, "missing argument: %s", names[i]);
            return false;
        }
        if (PyObject_GetBuffer(from, &buffers[i], i < constant ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
            return false;
    }
    return true;
}

static inline bool is_run_of(const Py_buffer *buffer, size_t item, Py_ssize_t first,
                             Py_ssize_t count)
{
    Py_ssize_t items = buffer->len / (Py_ssize_t)item;
    return first >= 0 && count >= 0 && count <= items && first <= items - count;
}

/* Whether *count* pages from byte *position* on are in the buffer. */
static inline bool has_pages(const Py_buffer *buffer, Py_ssize_t position, Py_ssize_t count)
{
    return count >= 0 && count <= buffer->len >> PAGE_SHIFT && position >= 0 &&
           position <= buffer->len - (count << PAGE_SHIFT);
}

static inline bool has_words(const Py_buffer *buffer, Py_ssize_t first, Py_ssize_t count)
{
    return is_run_of(buffer, sizeof(uint64_t), first, count);
}

static inline bool is_array_of(const Py_buffer *buffer, size_t item, size_t count)
{
    return (size_t)buffer->len == item * count;
}

#endif
