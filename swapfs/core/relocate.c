/*
 * Blobs that go from one disk to another as they lie, sealed. In a stretch that was read their headers
 * say whose they are; each that the table names is opened, to see that it is whole, and copied; then
 * the words are exchanged. A seal covers slot and sequence number and not the place, so it stays.
 * vlayer/relocate.py has the order of these steps. What is written there of a reference is that of
 * tiers/sector_ref.py.
 */
#include "core.h"

#include <stdbool.h>
#include <string.h>

#include "blob.h"
#include "buffers.h"
#include "log.h"
#include "word.h"
#include "writer.h"

#define GRAIN_BYTES 16u
#define GRAIN_OFFSET 8u
#define GRAINS_LEAST 2u
#define GRAINS_MASK 0xFFu
#define REF_CHECK_SHIFT 8
#define REF_CHECK_MASK 0x1FFFu
#define REF_SECTOR_SHIFT 21
#define TIER_AND_PLACE ((uint64_t)TIER_MASK << TIER_SHIFT | ~(uint64_t)0 << (REF_SHIFT + REF_SECTOR_SHIFT))

struct moving {
    uint64_t slot, old, new; /* words without MOVING; new 0: it stays where it is */
    uint32_t at;             /* its first sector in the stretch */
    uint16_t length;
    uint8_t sectors, taken;
};
_Static_assert(sizeof(struct moving) == 32, "vlayer/relocate.py RECORD_BYTES");

static uint64_t place_of(unsigned tier, uint64_t sector)
{
    return (uint64_t)tier << TIER_SHIFT | sector << (REF_SHIFT + REF_SECTOR_SHIFT);
}

static uint64_t grains(size_t length)
{
    size_t found = (length + GRAIN_OFFSET + GRAIN_BYTES - 1) / GRAIN_BYTES;
    return (found < GRAINS_LEAST ? GRAINS_LEAST : found) - GRAINS_LEAST;
}

/* What tiers/sector_ref.py longest() says of the blob of *word*. */
static uint64_t longest(uint64_t word)
{
    uint64_t bytes = ((word >> REF_SHIFT & GRAINS_MASK) + GRAINS_LEAST) * GRAIN_BYTES - GRAIN_OFFSET;
    return bytes < PAGE_BYTES ? bytes : PAGE_BYTES;
}

static bool is_still(uint64_t word, uint64_t seen)
{
    return ((word ^ seen) & ~(uint64_t)HEAT_MASK) == 0;
}

/* ---- claim ---- */

/* Reads the header at *at* of *sectors* sectors, of which the first is number *first* in *tier*; the
 * word that it would have, or 0. */
static uint64_t claimed(const char *stretch, size_t at, size_t sectors, unsigned tier,
                        uint64_t first, struct blob_header *header)
{
    const char *blob = stretch + at * SECTOR_BYTES;
    uint32_t check;
    memcpy(header, blob, sizeof(*header));
    if (header->magic != BLOB_MAGIC || header->length < 1 || header->length > PAGE_BYTES ||
        header->codec > CODEC_MASK || blob_sectors(header->length) > sectors - at)
        return 0;
    memcpy(&check, blob + sizeof(*header) + header->length, sizeof(check));
    uint64_t ref = grains(header->length) | (uint64_t)(check & REF_CHECK_MASK) << REF_CHECK_SHIFT;
    return KIND_BLOB | (uint64_t)header->codec << CODEC_SHIFT | ref << REF_SHIFT |
           place_of(tier, first + at);
}

PyObject *writer_claim(Writer *self, PyObject *args)
{
    Py_buffer view, found;
    Py_ssize_t at, count, room, most;
    unsigned long long first;
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "y*nKIw*nnn", &view, &at, &first, &tier, &found, &count, &room, &most))
        return NULL;
    size_t sectors = (size_t)view.len / SECTOR_BYTES;
    Py_ssize_t capacity = found.len / (Py_ssize_t)sizeof(struct moving), end = count + most;
    PyObject *result = NULL;
    if (at < 0 || count < 0 || most < 0 || tier > TIER_MASK || end > capacity) {
        PyErr_SetString(PyExc_ValueError, "there is no room for what is found");
    } else {
        uint64_t slots = (uint64_t)self->parts[OCCUPIED].len / 2 << CLUSTER_SHIFT;
        struct moving *out = found.buf;
        while ((size_t)at < sectors && count < end) {
            struct blob_header header;
            uint64_t wanted = claimed(view.buf, (size_t)at, sectors, tier, first, &header);
            uint64_t *word = wanted != 0 && header.slot < slots ? writer_word(self, header.slot) : NULL;
            if (word == NULL || !is_still(*word, wanted)) {
                at++;
                continue;
            }
            Py_ssize_t taken = (Py_ssize_t)blob_sectors(header.length);
            if (taken > room)
                break;
            out[count++] = (struct moving){header.slot, *word, 0, (uint32_t)at, header.length,
                                           (uint8_t)taken, 0};
            *word |= MOVING;
            at += taken, room -= taken;
        }
        result = Py_BuildValue("(nn)", count, at);
    }
    PyBuffer_Release(&view);
    PyBuffer_Release(&found);
    return result;
}

/* ---- carry ---- */

static bool carry_one(struct swapfs_seal *seal, const char *blob, struct moving *m)
{
    char page[PAGE_BYTES];
    struct blob_header header;
    memcpy(&header, blob, sizeof(header));
    return header.length == m->length && header.slot == m->slot &&
           seal->open(seal, blob, sizeof(header), header.sequence, blob + sizeof(header),
                      header.length, page);
}

static PyObject *relocate_carry(PyObject *self, PyObject *args)
{
    PyObject *sealer;
    Py_buffer view, found, out;
    Py_ssize_t first, end, position;
    unsigned long long sector;
    unsigned int tier;
    if (!PyArg_ParseTuple(args, "Oy*w*nnw*nIK", &sealer, &view, &found, &first, &end, &out,
                          &position, &tier, &sector))
        return NULL;
    struct swapfs_seal *seal = sealer_seal(sealer);
    struct moving *records = found.buf;
    Py_ssize_t need = position;
    bool good = seal != NULL && first >= 0 && tier <= TIER_MASK && position >= 0 &&
                end <= found.len / (Py_ssize_t)sizeof(*records);
    for (Py_ssize_t i = first; good && i < end; i++) {
        size_t bytes = (size_t)records[i].sectors * SECTOR_BYTES;
        need += records[i].sectors;
        good = bytes >= sizeof(struct blob_header) + records[i].length + TAG_BYTES &&
               records[i].length <= PAGE_BYTES &&
               (size_t)records[i].at * SECTOR_BYTES + bytes <= (size_t)view.len;
    }
    if (good && (size_t)need * SECTOR_BYTES <= (size_t)out.len) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = first; i < end; i++) {
            struct moving *m = &records[i];
            const char *blob = (const char *)view.buf + (size_t)m->at * SECTOR_BYTES;
            if (!carry_one(seal, blob, m))
                continue; /* damaged: who reads it is told */
            memcpy((char *)out.buf + (size_t)position * SECTOR_BYTES, blob,
                   (size_t)m->sectors * SECTOR_BYTES);
            m->new = (m->old & ~(TIER_AND_PLACE | HEAT_MASK)) |
                     place_of(tier, sector + (uint64_t)position);
            position += m->sectors;
        }
        Py_END_ALLOW_THREADS
    } else if (seal != NULL) {
        PyErr_SetString(PyExc_ValueError, "the blobs are not inside their buffers");
    }
    PyBuffer_Release(&view);
    PyBuffer_Release(&found);
    PyBuffer_Release(&out);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(position);
}

/* ---- settle ---- */

static void publish(Writer *w, uint64_t *word, struct moving *m, uint64_t now)
{
    uint64_t old = *word, new = m->new | (old & HEAT_MASK);
    __atomic_store_n(word, new, __ATOMIC_RELEASE); /* I3: after the bytes, before the free */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    w->state_counts[w->state_of_word[old & STATE_MASK]]--;
    w->state_counts[w->state_of_word[new & STATE_MASK]]++;
    int64_t *taken = w->usage + writer_export(w, m->slot) * USAGE_FIELDS + USAGE_TIERS;
    taken[old >> TIER_SHIFT & TIER_MASK] -= (int64_t)m->sectors * SECTOR_BYTES;
    taken[new >> TIER_SHIFT & TIER_MASK] += (int64_t)m->sectors * SECTOR_BYTES;
    if (w->log != NULL)
        log_append(w->log, EVENT_MOVE, m->slot, log_size_class(w->log, m->length), log_tier(new),
                   log_tier(old), now);
    m->taken = 1;
}

PyObject *writer_settle(Writer *self, PyObject *args)
{
    Py_buffer found;
    Py_ssize_t first, end;
    int store;
    if (!PyArg_ParseTuple(args, "w*nnp", &found, &first, &end, &store))
        return NULL;
    struct moving *records = found.buf;
    Py_ssize_t taken = 0;
    uint64_t payload = 0, now = self->log != NULL ? now_ns() : 0;
    uint64_t slots = (uint64_t)self->parts[OCCUPIED].len / 2 << CLUSTER_SHIFT;
    bool good = first >= 0 && end <= found.len / (Py_ssize_t)sizeof(*records);
    for (Py_ssize_t i = first; good && i < end; i++) {
        struct moving *m = &records[i];
        uint64_t *word = m->slot < slots ? writer_word(self, m->slot) : NULL;
        if (word == NULL || !is_still(*word, m->old | MOVING))
            continue; /* rewritten or discarded */
        if (store && m->new != 0) {
            publish(self, word, m, now);
            payload += longest(m->new);
            taken++;
        } else {
            *word &= ~(uint64_t)MOVING;
        }
    }
    PyBuffer_Release(&found);
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "there are not so many");
        return NULL;
    }
    return Py_BuildValue("(nK)", taken, (unsigned long long)payload);
}

/* ---- runs ---- */

static bool append_run(PyObject *list, uint64_t sector, uint64_t sectors)
{
    PyObject *run = Py_BuildValue("(KK)", (unsigned long long)sector, (unsigned long long)sectors);
    bool good = run != NULL && PyList_Append(list, run) == 0;
    Py_XDECREF(run);
    return good;
}

static PyObject *relocate_runs(PyObject *self, PyObject *args)
{
    Py_buffer found;
    Py_ssize_t first, end;
    unsigned long long segment;
    int taken;
    if (!PyArg_ParseTuple(args, "y*nnKp", &found, &first, &end, &segment, &taken))
        return NULL;
    const struct moving *records = found.buf;
    PyObject *list = PyList_New(0);
    uint64_t start = 0, sectors = 0;
    bool good = list != NULL && first >= 0 && segment > 0 &&
                end <= found.len / (Py_ssize_t)sizeof(*records);
    if (list != NULL && !good)
        PyErr_SetString(PyExc_ValueError, "there are not so many");
    for (Py_ssize_t i = first; good && i < end; i++) {
        const struct moving *m = &records[i];
        if (m->new == 0 || m->taken != taken)
            continue;
        uint64_t sector = (taken ? m->old : m->new) >> (REF_SHIFT + REF_SECTOR_SHIFT);
        if (sectors != 0 && (sector != start + sectors || sector % segment == 0)) {
            good = append_run(list, start, sectors);
            sectors = 0;
        }
        start = sectors == 0 ? sector : start;
        sectors += m->sectors;
    }
    if (good && sectors != 0)
        good = append_run(list, start, sectors);
    if (!good)
        Py_CLEAR(list);
    PyBuffer_Release(&found);
    return list;
}

PyMethodDef relocate_functions[] = {
    {"carry", relocate_carry, METH_VARARGS,
     "carry(sealer, view, found, first, end, out, position, tier, sector) -> position\n\n"
     "Copy the blobs of records first to end, which lie in view and are whole, to sector position of\n"
     "out and on, which will be sector and on in tier; no lock and no GIL is held."},
    {"runs", relocate_runs, METH_VARARGS,
     "runs(found, first, end, segment, taken) -> [(sector, sectors)]\n\n"
     "What records first to end, of those that were carried, have left behind: what was taken where\n"
     "it was before, and what was not taken where it has been put. None is in two segments."},
    {NULL}};
