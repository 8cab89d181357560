/*
 * Writing pages in bulk. `pack` turns pages into drafts of words, with the blobs beside them, and
 * touches nothing shared, so it runs without the layer's lock and without the GIL. `publish` then
 * gives each draft a place and puts it into the swap table, as long as nothing has to be decided:
 * a zspage of the class has room, and no zspage becomes empty when the old place is given back.
 * Whatever else comes up ends it, and layer.py does that page; the two must keep
 * the same books (tests/property/test_publish.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <lz4.h>
#include <stdbool.h>
#include <string.h>

#include "_entry.h"

/* ---- pack ---- */

/* The word of a page filled with *value*; 0 if it does not fit (entry.py encode_same). */
static uint64_t encode_same(uint64_t value)
{
    if ((int64_t)(value << SAME_SHIFT) >> SAME_SHIFT == (int64_t)value)
        return TAG_SAME | value << SAME_SHIFT;
    if (value >> 32 == (value & 0xFFFFFFFFu))
        return TAG_SAME | SAME_DOUBLED | value >> 32 << SAME_SHIFT;
    return 0;
}

/* Idea: drivers/block/zram/zram_drv.c page_same_filled(), for any repeated 64-bit word. */
static uint64_t pack_page(const char *page, char *blob, int longest)
{
    uint64_t value, word;
    memcpy(&value, page, sizeof(value));
    if (memcmp(page, page + sizeof(value), PAGE_BYTES - sizeof(value)) == 0 &&
        (word = encode_same(value)) != 0)
        return word;
    int length = LZ4_compress_default(page, blob, PAGE_BYTES, longest);
    uint64_t codec = length > 0 ? CODEC_LZ4 : CODEC_RAW;
    uint64_t bytes = length > 0 ? (uint64_t)length : PAGE_BYTES;
    return TAG_POOL | REFERENCED | codec << CODEC_SHIFT | (bytes - 1) << LENGTH_SHIFT;
}

static PyObject *store_pack(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { SOURCE, BLOBS, DRAFTS, BUFFERS };
    static const int at[BUFFERS] = {0, 3, 4};
    Py_buffer b[BUFFERS];
    int have = 0;
    PyObject *result = NULL;

    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "pack(source, position, count, blobs, drafts, longest)");
        return NULL;
    }
    Py_ssize_t position = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]);
    long longest = PyLong_AsLong(args[5]);
    if (PyErr_Occurred())
        return NULL;
    for (; have < BUFFERS; have++)
        if (PyObject_GetBuffer(args[at[have]], &b[have], have == SOURCE ? PyBUF_SIMPLE
                                                                        : PyBUF_WRITABLE) < 0)
            break;
    if (have == BUFFERS) {
        const Py_ssize_t page = PAGE_BYTES;
        if (position < 0 || count < 0 || longest < 1 || longest > page ||
            count > b[SOURCE].len / page || position > b[SOURCE].len - count * page ||
            count > b[BLOBS].len / page ||
            count > b[DRAFTS].len / (Py_ssize_t)sizeof(uint64_t)) {
            PyErr_SetString(PyExc_ValueError, "the pages are not inside their buffers");
        } else {
            const char *from = (const char *)b[SOURCE].buf + position;
            char *blobs = b[BLOBS].buf;
            uint64_t *drafts = b[DRAFTS].buf;
            Py_BEGIN_ALLOW_THREADS
            for (Py_ssize_t i = 0; i < count; i++)
                drafts[i] = pack_page(from + i * page, blobs + i * page, (int)longest);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    while (have-- > 0)
        PyBuffer_Release(&b[have]);
    return result;
}

/* ---- publish ---- */

/* The buffers of the books, in the order of VirtualSlotLayer._books(). */
enum {
    ARENA, CLASSES, COUNTERS, STATE_COUNTS, OCCUPIED, USED, HEAD, FRESH, OBJECTS, PAYLOAD,
    NEXT, PREVIOUS, WHERE, LENGTHS, SIZES, CAPACITIES, CLASS_OF_GRAINS, STATE_OF_KIND, BOOKS
};

struct books {
    char *arena;
    uint8_t *classes;
    uint64_t *counters;
    int64_t *state_counts;
    uint16_t *occupied, *used, *head, *fresh;
    int64_t *objects, *payload;
    uint32_t *next, *previous; /* of ListHeads: the lists of zspages with room, by class */
    uint8_t *where;
    uint32_t *lengths;
    const uint16_t *sizes, *capacities;
    const uint8_t *class_of_grains, *state_of_kind;
    uint64_t zspages;
    size_t size_classes;
};

/* ---- the lists of zspages with room: ListHeads in region/lists.py ---- */

enum { NO_ROOM, ROOM }; /* as in pool.py: the list of class c is ROOM + c */

static void join(struct books *k, uint32_t left, uint32_t right)
{
    k->next[left] = right;
    k->previous[right] = left;
}

/* ListHeads.move */
static void move(struct books *k, uint32_t zspage, unsigned list)
{
    uint32_t sentinel = (uint32_t)k->zspages + list;
    join(k, k->previous[zspage], k->next[zspage]);
    k->lengths[k->where[zspage]]--;
    join(k, zspage, k->next[sentinel]);
    join(k, sentinel, zspage);
    k->where[zspage] = (uint8_t)list;
    k->lengths[list]++;
}

/* ListHeads.first, or -1 */
static int64_t with_room(const struct books *k, unsigned size_class)
{
    uint32_t zspage = k->next[k->zspages + ROOM + size_class];
    return zspage < k->zspages ? (int64_t)zspage : -1;
}

/* ---- places ---- */

/* Whether the place of *old* can be given back without its zspage becoming empty, if zspage
 * *taken* gets one object more before. */
static bool frees_easily(const struct books *k, uint64_t old, int64_t taken)
{
    unsigned tag = old & TAG_MASK;
    if (tag == TAG_EMPTY || tag == TAG_SAME)
        return true;
    if (tag != TAG_POOL)
        return false;
    uint64_t zspage = pool_place(old) >> ZSPAGE_SHIFT;
    if (zspage >= k->zspages)
        return false;
    unsigned size_class = k->classes[zspage];
    if (size_class >= k->size_classes || (pool_place(old) & ZSPAGE_MASK) % k->sizes[size_class] != 0)
        return false; /* free, or damaged: Python says so */
    unsigned used = k->used[zspage] + ((int64_t)zspage == taken);
    return used > 1;
}

/* Whether the next free place of *zspage* lies in it: its list is in the arena, and may be damaged. */
static bool is_sound(const struct books *k, int64_t zspage, unsigned size_class)
{
    uint16_t head = k->head[zspage];
    return (head == NO_INDEX ? k->fresh[zspage] : head) < k->capacities[size_class];
}

/* Pool._pop */
static uint64_t take(struct books *k, int64_t zspage, unsigned size_class)
{
    uint64_t place, base = (uint64_t)zspage << ZSPAGE_SHIFT, size = k->sizes[size_class];
    uint16_t index = k->head[zspage];
    if (index != NO_INDEX) {
        place = base + index * size;
        memcpy(&k->head[zspage], k->arena + place, sizeof(uint16_t));
    } else {
        place = base + k->fresh[zspage]++ * size;
    }
    if (++k->used[zspage] == k->capacities[size_class])
        move(k, (uint32_t)zspage, NO_ROOM);
    k->objects[size_class]++;
    return place;
}

/* Pool._give, for a zspage that does not become empty */
static void give(struct books *k, uint64_t place)
{
    uint64_t zspage = place >> ZSPAGE_SHIFT;
    unsigned size_class = k->classes[zspage];
    if (k->used[zspage]-- == k->capacities[size_class])
        move(k, (uint32_t)zspage, ROOM + size_class);
    k->objects[size_class]--;
    memcpy(k->arena + place, &k->head[zspage], sizeof(uint16_t));
    k->head[zspage] = (uint16_t)((place & ZSPAGE_MASK) / k->sizes[size_class]);
}

/* Stores one draft; false: nothing was done. */
static bool publish_one(struct books *k, uint64_t *word, uint64_t draft, const char *page,
                        const char *blob, Py_ssize_t cluster)
{
    enum { WRITE_SAME = 4, WRITE_COMPRESSED, WRITE_RAW }; /* in region/counters.py */
    uint64_t old = *word, new = draft;
    unsigned counter = WRITE_SAME;

    if ((draft & TAG_MASK) == TAG_POOL) {
        uint64_t length = blob_length(draft);
        unsigned size_class = k->class_of_grains[(length + 15) >> 4];
        int64_t zspage = with_room(k, size_class);
        if (zspage < 0 || !is_sound(k, zspage, size_class) || !frees_easily(k, old, zspage))
            return false;
        bool raw = blob_codec(draft) == CODEC_RAW;
        uint64_t place = take(k, zspage, size_class);
        memcpy(k->arena + place, raw ? page : blob, length);
        *k->payload += (int64_t)length;
        new = draft | place >> GRAIN_SHIFT << PLACE_SHIFT;
        counter = raw ? WRITE_RAW : WRITE_COMPRESSED;
    } else if (!frees_easily(k, old, -1)) {
        return false;
    }
    __atomic_store_n(word, new, __ATOMIC_RELEASE); /* I3: after the bytes, before the free */
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* release alone lets the compiler free it before */
    k->state_counts[k->state_of_kind[old & KIND_MASK]]--;
    k->state_counts[k->state_of_kind[new & KIND_MASK]]++;
    k->counters[counter]++;
    if (old == 0)
        k->occupied[cluster]++;
    if ((old & TAG_MASK) == TAG_POOL) {
        *k->payload -= (int64_t)blob_length(old);
        give(k, pool_place(old));
    }
    return true;
}

static PyObject *store_publish(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { DRAFTS = BOOKS, SOURCE, BLOBS, BUFFERS };
    Py_buffer b[BUFFERS];
    int have = 0;
    PyObject *result = NULL;

    if (nargs != 9 || !PyTuple_CheckExact(args[0]) || PyTuple_GET_SIZE(args[0]) != BOOKS) {
        PyErr_SetString(PyExc_TypeError, "publish(books, cluster, index, drafts, first, count,"
                                         " source, position, blobs)");
        return NULL;
    }
    Py_ssize_t cluster = PyLong_AsSsize_t(args[1]), index = PyLong_AsSsize_t(args[2]);
    Py_ssize_t first = PyLong_AsSsize_t(args[4]), count = PyLong_AsSsize_t(args[5]);
    Py_ssize_t position = PyLong_AsSsize_t(args[7]);
    if (PyErr_Occurred())
        return NULL;
    for (; have < BUFFERS; have++) {
        PyObject *from = have < BOOKS    ? PyTuple_GET_ITEM(args[0], have)
                         : have == DRAFTS ? args[3]
                         : have == SOURCE ? args[6]
                                          : args[8];
        bool writable = have < SIZES;
        if (PyObject_GetBuffer(from, &b[have], writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
            break;
    }
    if (have == BUFFERS) {
        const Py_ssize_t page = PAGE_BYTES, word = sizeof(uint64_t);
        if (cluster < 0 || index < 0 || first < 0 || count < 0 || position < 0 ||
            cluster >= b[OCCUPIED].len / 2 || count > b[ARENA].len / word ||
            index > b[ARENA].len / word - count || first + count > b[DRAFTS].len / word ||
            first + count > b[BLOBS].len / page ||
            position > b[SOURCE].len - (first + count) * page) {
            PyErr_SetString(PyExc_ValueError, "the run is not inside its buffers");
        } else {
            struct books k = {
                b[ARENA].buf, b[CLASSES].buf, b[COUNTERS].buf, b[STATE_COUNTS].buf,
                b[OCCUPIED].buf, b[USED].buf, b[HEAD].buf, b[FRESH].buf, b[OBJECTS].buf,
                b[PAYLOAD].buf, b[NEXT].buf, b[PREVIOUS].buf, b[WHERE].buf, b[LENGTHS].buf,
                b[SIZES].buf, b[CAPACITIES].buf,
                b[CLASS_OF_GRAINS].buf, b[STATE_OF_KIND].buf,
                (uint64_t)b[CLASSES].len, (size_t)b[SIZES].len / sizeof(uint16_t),
            };
            uint64_t *words = (uint64_t *)k.arena + index;
            const uint64_t *drafts = b[DRAFTS].buf;
            const char *source = (const char *)b[SOURCE].buf + position, *blobs = b[BLOBS].buf;
            Py_ssize_t done = 0;
            for (Py_ssize_t i = first; done < count; done++, i++)
                if (!publish_one(&k, &words[done], drafts[i], source + i * page, blobs + i * page,
                                 cluster))
                    break;
            result = PyLong_FromSsize_t(done);
        }
    }
    while (have-- > 0)
        PyBuffer_Release(&b[have]);
    return result;
}

static PyMethodDef methods[] = {
    {"pack", (PyCFunction)(void (*)(void))store_pack, METH_FASTCALL,
     "pack(source, position, count, blobs, drafts, longest)\n\n"
     "Make a draft of each page from byte position of source on: its word, but for the place of a\n"
     "POOL word. The blob of page i begins at byte 4096*i of blobs; a blob that would be longer\n"
     "than longest bytes is the page itself (RAW) and is not copied there."},
    {"publish", (PyCFunction)(void (*)(void))store_publish, METH_FASTCALL,
     "publish(books, cluster, index, drafts, first, count, source, position, blobs) -> stored\n\n"
     "Store the drafts first..first+count in the words of a cluster from word index of the arena\n"
     "on. Ends early at a page that changes more than counts and free lists."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.core._store",
                                    "Writing pages in bulk.", -1, methods};

PyMODINIT_FUNC PyInit__store(void)
{
    return PyModule_Create(&module);
}
