/*
 * Reading pages in bulk: from the words of a run of slots to the pages, without an object for
 * each. Python takes two to four times as long; everything that decides anything stays there.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <lz4.h>
#include <stdbool.h>
#include <string.h>

#include "_entry.h"

static uint64_t same_value(uint64_t word)
{
    uint64_t value = word >> SAME_SHIFT;
    if (word & SAME_DOUBLED)
        return value << 32 | value;
    return (uint64_t)((int64_t)word >> SAME_SHIFT); /* 58 bits, sign-extended */
}

/* Puts the page of a POOL *word* at *to*; false when the blob is no page. */
static bool unpack(uint64_t word, const Py_buffer *arena, char *to)
{
    uint64_t place = pool_place(word), length = blob_length(word);
    if (place + length > (uint64_t)arena->len)
        return false;
    const char *blob = (const char *)arena->buf + place;
    if (blob_codec(word) != CODEC_RAW)
        return LZ4_decompress_safe(blob, to, (int)length, PAGE_BYTES) == (int)PAGE_BYTES;
    if (length != PAGE_BYTES)
        return false;
    memcpy(to, blob, PAGE_BYTES);
    return true;
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
            if (!unpack(word, arena, to))
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

static PyObject *page_load(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
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

static PyObject *page_layout(PyObject *self, PyObject *unused)
{
    return Py_BuildValue("(iiiiiiiiiiiiiiii)", TAG_EMPTY, TAG_SAME, TAG_POOL, TAG_FILE, TAG_MASK,
                         REFERENCED, CODEC_SHIFT, CODEC_MASK, CODEC_RAW, CODEC_LZ4, LENGTH_SHIFT,
                         LENGTH_MASK, PLACE_SHIFT, SAME_DOUBLED, SAME_SHIFT, KIND_MASK);
}

static PyMethodDef methods[] = {
    {"load", (PyCFunction)(void (*)(void))page_load, METH_FASTCALL,
     "load(words, index, count, arena, out, position, reads) -> pages filled.\n\n"
     "Fill out from byte position on with the pages of words[index:index+count]. Ends early at a\n"
     "word that is not EMPTY, SAME or POOL, or whose blob is damaged. reads: three counters of\n"
     "EMPTY, SAME and POOL pages. Words that were read become REFERENCED."},
    {"layout", page_layout, METH_NOARGS, "layout() -> the bits of a word that C code knows."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs._page", "Pages in bulk.", -1,
                                    methods};

PyMODINIT_FUNC PyInit__page(void)
{
    return PyModule_Create(&module);
}
