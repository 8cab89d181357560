/*
 * Three CRC-32C at once, each over a third of the blob, as the instruction takes three cycles and
 * may begin in each: 4096 bytes take 0.2 us. What is kept of them is their parity and low bits: 17 for
 * a raw page, whose length bits are free, 5 for others. The parity of a CRC-32C is that of its
 * message, since x + 1 divides its polynomial, so whatever an odd number of flipped bits does is
 * seen, one above all; of all else 1 in 2^17 passes, or 1 in 32 (and then it must still decompress
 * to a page).
 */
#include "check.h"

#include <string.h>

#include "buffers.h"
#include "core.h"

#define POLYNOMIAL 0x82F63B78u /* bits reversed */

static uint32_t table[256];
static bool has_instruction;

static uint32_t step_plain(uint32_t crc, const char *at, size_t bytes)
{
    while (bytes-- > 0)
        crc = crc >> 8 ^ table[(crc ^ (uint8_t)*at++) & 0xFF];
    return crc;
}

static uint32_t sum_plain(const char *blob, size_t length)
{
    size_t third = length / 24 * 8;
    uint32_t a = step_plain(0, blob, third), b = step_plain(0, blob + third, third);
    uint32_t c = step_plain(0, blob + 2 * third, length - 2 * third);
    return a ^ (b << 11 | b >> 21) ^ (c << 22 | c >> 10);
}

#ifdef __x86_64__
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t sum_fast(const char *blob, size_t length)
{
    size_t third = length / 24 * 8;
    const char *at = blob, *end = blob + third;
    uint64_t a = 0, b = 0, c = 0, word[3];
    for (; at < end; at += 8) {
        memcpy(&word[0], at, 8);
        memcpy(&word[1], at + third, 8);
        memcpy(&word[2], at + 2 * third, 8);
        a = _mm_crc32_u64(a, word[0]);
        b = _mm_crc32_u64(b, word[1]);
        c = _mm_crc32_u64(c, word[2]);
    }
    for (at = blob + 3 * third, end = blob + length; at < end; at++)
        c = _mm_crc32_u8((uint32_t)c, (uint8_t)*at);
    uint32_t x = (uint32_t)a, y = (uint32_t)b, z = (uint32_t)c;
    return x ^ (y << 11 | y >> 21) ^ (z << 22 | z >> 10);
}
#else
#define sum_fast sum_plain
#endif

void check_begin(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        table[i] = crc;
    }
#ifdef __x86_64__
    has_instruction = __builtin_cpu_supports("sse4.2");
#endif
}

uint64_t check_sign(uint64_t draft, const char *blob)
{
    size_t length = blob_length(draft);
    uint32_t sum = has_instruction ? sum_fast(blob, length) : sum_plain(blob, length);
    uint64_t kept = (uint64_t)__builtin_parity(sum) << (CHECK_BITS - 1) | (sum & CHECK_LOW_MASK);
    draft = (draft & ~((uint64_t)CHECK_MASK << CHECK_SHIFT)) | kept << CHECK_SHIFT;
    if (!is_raw(draft))
        return draft;
    uint64_t more = sum >> (CHECK_BITS - 1) & LENGTH_MASK;
    return (draft & ~((uint64_t)LENGTH_MASK << LENGTH_SHIFT)) | more << LENGTH_SHIFT;
}

/* ---- the same for Python ---- */

static PyObject *call(PyObject *const *args, Py_ssize_t nargs, bool sign)
{
    Py_buffer blob;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "a word and its blob");
        return NULL;
    }
    uint64_t word = PyLong_AsUnsignedLongLong(args[0]);
    if (PyErr_Occurred() || !buffers_get(&args[1], 1, 0, &blob))
        return NULL;
    PyObject *result = NULL;
    if ((uint64_t)blob.len != blob_length(word))
        PyErr_SetString(PyExc_ValueError, "the blob is not as long as its word says");
    else if (sign)
        result = PyLong_FromUnsignedLongLong(check_sign(word, blob.buf));
    else
        result = PyBool_FromLong(check_holds(word, blob.buf));
    PyBuffer_Release(&blob);
    return result;
}

static PyObject *sign(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return call(args, nargs, true);
}

static PyObject *is_intact(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return call(args, nargs, false);
}

/* For tests: what a processor without the instruction computes. */
static PyObject *check_plainly(PyObject *self, PyObject *plainly)
{
    int plain = PyObject_IsTrue(plainly);
    if (plain < 0)
        return NULL;
    check_begin();
    has_instruction = has_instruction && !plain;
    Py_RETURN_NONE;
}

PyMethodDef check_functions[] = {
    {"sign", FASTCALL(sign), METH_FASTCALL,
     "sign(word, blob) -> the word of the pool with the check of its blob"},
    {"is_intact", FASTCALL(is_intact), METH_FASTCALL,
     "is_intact(word, blob) -> whether it is the blob of which the word has the check"},
    {"check_plainly", check_plainly, METH_O,
     "check_plainly(yes): compute checks without the instruction for it, or with it if there is one"},
    {NULL}};
