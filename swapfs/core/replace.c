/*
 * Blobs of the pool in place of others for the same pages: `Writer.replace`, for recompression.
 */
#include "buffers.h"
#include "writer.h"

/* Has a slot hold its page as the blob of *draft*, if its word is *expected* and moving still; in a
 * *smaller* place, if that is wanted. False: nothing was done. */
static bool replace_one(Writer *w, uint64_t slot, uint64_t *word, uint64_t expected,
                        uint64_t draft, const char *blob, bool smaller)
{
    uint64_t old = *word, new;
    if (old != (expected | MOVING) || !in_pool(old) || !in_pool(draft) ||
        blob_codec(draft) & CODEC_KEPT ||
        pool_place(old) >> ZSPAGE_SHIFT >= w->zspages ||
        (smaller && writer_class(w, draft) >= w->classes[pool_place(old) >> ZSPAGE_SHIFT]) ||
        (new = writer_put(w, old, draft, blob)) == 0)
        return false;
    writer_exchange(w, writer_export(w, slot), word, old, new);
    return true;
}

PyObject *writer_replace(Writer *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { SLOTS, WORDS, DRAFTS, BLOBS, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;
    if (nargs != BUFFERS + 3) {
        PyErr_SetString(PyExc_TypeError, "replace(slots, words, drafts, blobs, first, end, smaller)");
        return NULL;
    }
    Py_ssize_t first = PyLong_AsSsize_t(args[4]), end = PyLong_AsSsize_t(args[5]);
    int smaller = PyObject_IsTrue(args[6]);
    if (PyErr_Occurred() || !buffers_get(args, BUFFERS, 0, b))
        return NULL;
    if (first < 0 || end < first || !has_words(&b[SLOTS], 0, end) ||
        !has_words(&b[WORDS], 0, end) || !has_words(&b[DRAFTS], 0, end) ||
        !has_pages(&b[BLOBS], 0, end)) {
        PyErr_SetString(PyExc_ValueError, "the blobs are not inside their buffers");
    } else {
        const uint64_t *slots = b[SLOTS].buf, *words = b[WORDS].buf, *drafts = b[DRAFTS].buf;
        const char *blobs = b[BLOBS].buf;
        uint64_t all = (uint64_t)self->parts[OCCUPIED].len / 2 << CLUSTER_SHIFT;
        for (; first < end; first++) {
            uint64_t *word = slots[first] < all ? writer_word(self, slots[first]) : NULL;
            if (word == NULL || !replace_one(self, slots[first], word, words[first], drafts[first],
                                             blobs + (first << PAGE_SHIFT), smaller))
                break;
        }
        result = PyLong_FromSsize_t(first);
    }
    buffers_release(b, BUFFERS);
    return result;
}
