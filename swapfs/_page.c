/*
 * What the virtual slot layer asks of a page and Python cannot answer without copying it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define PAGE_BYTES 4096u

/* Idea: drivers/block/zram/zram_drv.c page_same_filled(), for any repeated 64-bit word. */
static PyObject *page_same_filled(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer data;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "same_filled(buffer, offset)");
        return NULL;
    }
    Py_ssize_t offset = PyLong_AsSsize_t(args[1]);
    if ((offset == -1 && PyErr_Occurred()) || PyObject_GetBuffer(args[0], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result = NULL;
    if (offset < 0 || data.len < (Py_ssize_t)PAGE_BYTES || offset > data.len - (Py_ssize_t)PAGE_BYTES) {
        PyErr_SetString(PyExc_ValueError, "the page is not inside the buffer");
    } else {
        const char *page = (const char *)data.buf + offset;
        uint64_t word;
        memcpy(&word, page, sizeof(word));
        if (memcmp(page, page + sizeof(word), PAGE_BYTES - sizeof(word)) == 0)
            result = PyLong_FromUnsignedLongLong(word);
        else
            result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef methods[] = {
    {"same_filled", (PyCFunction)(void (*)(void))page_same_filled, METH_FASTCALL,
     "same_filled(buffer, offset) -> the 64-bit word that fills that page, or None."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs._page",
                                    "Questions about one page.", -1, methods};

PyMODINIT_FUNC PyInit__page(void)
{
    return PyModule_Create(&module);
}
