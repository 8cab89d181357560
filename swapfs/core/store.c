/*
 * Pages into memory. `pack` turns pages into drafts of words, with the blobs beside them, and
 * touches nothing shared, so it runs without the layer's lock and without the GIL. A `Writer`,
 * which holds all that a store changes, then gives each draft a place and publishes it in the
 * swap table, as long as nothing has to be decided: the cluster has a table page, a zspage of the
 * class has room, and none becomes empty when the old place is given back. Whatever else comes up
 * ends it, and layer.py does that page; what either leaves behind is the same
 * (tests/property/test_publish.py).
 */
#include "core.h"

#include <lz4.h>
#include <stdbool.h>
#include <string.h>

#include "buffers.h"
#include "check.h"
#include "log.h"
#include "word.h"
#include "writer.h"

/* ---- pack ---- */

/* The word of a page filled with *value*; 0 if it does not fit. */
static uint64_t encode_same(uint64_t value)
{
    if ((int64_t)(value << SAME_SHIFT) >> SAME_SHIFT == (int64_t)value)
        return KIND_SAME | value << SAME_SHIFT;
    if (value >> 32 == (value & 0xFFFFFFFFu))
        return KIND_SAME | SAME_DOUBLED | value >> 32 << SAME_SHIFT;
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
    uint64_t draft = IN_POOL | HEAT_ONE | codec << CODEC_SHIFT | (bytes - 1) << LENGTH_SHIFT;
    return check_sign(draft, length > 0 ? blob : page);
}

static PyObject *store_pack(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { SOURCE, BLOBS, DRAFTS, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;

    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "pack(source, position, count, blobs, drafts, longest)");
        return NULL;
    }
    PyObject *const from[BUFFERS] = {args[0], args[3], args[4]};
    Py_ssize_t position = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]);
    long longest = PyLong_AsLong(args[5]);
    if (PyErr_Occurred() || !buffers_get(from, BUFFERS, 1u << BLOBS | 1u << DRAFTS, b))
        return NULL;
    if (longest < 1 || longest > (long)PAGE_BYTES || !has_pages(&b[SOURCE], position, count) ||
        !has_pages(&b[BLOBS], 0, count) || !has_words(&b[DRAFTS], 0, count)) {
        PyErr_SetString(PyExc_ValueError, "the pages are not inside their buffers");
    } else {
        const char *page = (const char *)b[SOURCE].buf + position;
        char *blob = b[BLOBS].buf;
        uint64_t *drafts = b[DRAFTS].buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++, page += PAGE_BYTES, blob += PAGE_BYTES)
            drafts[i] = pack_page(page, blob, (int)longest);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    buffers_release(b, BUFFERS);
    return result;
}

PyMethodDef store_functions[] = {
    {"pack", FASTCALL(store_pack), METH_FASTCALL,
     "pack(source, position, count, blobs, drafts, longest)\n\n"
     "Make a draft of each page from byte position of source on: its word, but for the place of a\n"
     "POOL word. The blob of page i begins at byte 4096*i of blobs; a blob that would be longer\n"
     "than longest bytes is the page itself (RAW) and is not copied there."},
    {NULL}};

/* ---- Writer ---- */

static const char *const part_names[PARTS] = {
    "directory", "arena", "classes", "counters", "state_counts", "occupied", "used", "head",
    "fresh", "objects", "payload", "next", "previous", "where", "lengths", "usage", "sizes",
    "capacities", "class_of_grains", "state_of_word", "exports",
};

/* ---- the lists of zspages with room: ListHeads in region/lists.py ---- */

static void join(Writer *w, uint32_t left, uint32_t right)
{
    w->next[left] = right;
    w->previous[right] = left;
}

/* ListHeads.move */
static void move(Writer *w, uint32_t zspage, unsigned list)
{
    uint32_t sentinel = (uint32_t)w->zspages + list;
    join(w, w->previous[zspage], w->next[zspage]);
    w->lengths[w->where[zspage]]--;
    join(w, zspage, w->next[sentinel]);
    join(w, sentinel, zspage);
    w->where[zspage] = (uint8_t)list;
    w->lengths[list]++;
}

/* ListHeads.first, or -1 */
static int64_t with_room(const Writer *w, unsigned size_class)
{
    uint32_t zspage = w->next[w->zspages + LIST_ROOM + size_class];
    return zspage < w->zspages ? (int64_t)zspage : -1;
}

/* ---- places ---- */

/* Whether the place of *old* can be given back without its zspage becoming empty, if zspage
 * *taken* gets one object more before. */
bool writer_frees_easily(const Writer *w, uint64_t old, int64_t taken)
{
    if ((old & KIND_MASK) != KIND_BLOB)
        return true;
    if (!in_pool(old))
        return false;
    uint64_t zspage = pool_place(old) >> ZSPAGE_SHIFT;
    if (zspage >= w->zspages)
        return false;
    unsigned size_class = w->classes[zspage];
    if (size_class >= w->size_classes || (pool_place(old) & ZSPAGE_MASK) % w->sizes[size_class] != 0)
        return false; /* free, or damaged: Python says so */
    unsigned used = w->used[zspage] + ((int64_t)zspage == taken);
    return used > 1;
}

/* Whether the next free place of *zspage* lies in it: its list is in the arena, and may be damaged. */
static bool is_sound(const Writer *w, int64_t zspage, unsigned size_class)
{
    uint16_t head = w->head[zspage];
    return (head == NO_INDEX ? w->fresh[zspage] : head) < w->capacities[size_class];
}

/* Zspages.pop */
static uint64_t take(Writer *w, int64_t zspage, unsigned size_class)
{
    uint64_t place, base = (uint64_t)zspage << ZSPAGE_SHIFT, size = w->sizes[size_class];
    uint16_t index = w->head[zspage];
    if (index != NO_INDEX) {
        place = base + index * size;
        memcpy(&w->head[zspage], w->arena + place, sizeof(uint16_t));
    } else {
        place = base + w->fresh[zspage]++ * size;
    }
    if (++w->used[zspage] == w->capacities[size_class])
        move(w, (uint32_t)zspage, LIST_NO_ROOM);
    w->objects[size_class]++;
    return place;
}

/* Zspages.give, for a zspage that does not become empty */
static void give(Writer *w, uint64_t place)
{
    uint64_t zspage = place >> ZSPAGE_SHIFT;
    unsigned size_class = w->classes[zspage];
    if (w->used[zspage]-- == w->capacities[size_class])
        move(w, (uint32_t)zspage, LIST_ROOM + size_class);
    w->objects[size_class]--;
    memcpy(w->arena + place, &w->head[zspage], sizeof(uint16_t));
    w->head[zspage] = (uint16_t)((place & ZSPAGE_MASK) / w->sizes[size_class]);
}

unsigned writer_class(const Writer *w, uint64_t draft)
{
    return w->class_of_grains[(blob_length(draft) + GRAIN_MASK) >> GRAIN_SHIFT];
}

uint64_t writer_put(Writer *w, uint64_t old, uint64_t draft, const char *blob)
{
    unsigned size_class = writer_class(w, draft);
    int64_t zspage = with_room(w, size_class);
    if (zspage < 0 || !is_sound(w, zspage, size_class) || !writer_frees_easily(w, old, zspage))
        return 0;
    uint64_t place = take(w, zspage, size_class), length = blob_length(draft);
    memcpy(w->arena + place, blob, length);
    *w->payload += (int64_t)length;
    return draft | place >> GRAIN_SHIFT << PLACE_SHIFT;
}

/* ---- what the exports have: Exports in vlayer/exports.py ---- */

size_t writer_export(const Writer *w, uint64_t slot)
{
    const uint64_t *export = w->exports;
    while (slot >= export[EXPORT_END]) /* no slot is beyond the last end */
        export += EXPORT_FIELDS;
    return (size_t)(export - w->exports) / EXPORT_FIELDS;
}

/* The bytes that the place of *word* takes in the pool. */
static int64_t object_bytes(const Writer *w, uint64_t word)
{
    return in_pool(word) ? w->sizes[w->classes[pool_place(word) >> ZSPAGE_SHIFT]] : 0;
}

/* Whether *export* may have the blob of *draft* in the place of *old*. What takes no more than
 * before always may. */
static bool is_within_quota(const Writer *w, size_t export, uint64_t old, uint64_t draft)
{
    uint64_t quota = w->exports[export * EXPORT_FIELDS + EXPORT_QUOTA];
    if (quota == 0)
        return true;
    if (!writer_frees_easily(w, old, -1))
        return false;
    const int64_t *taken = w->usage + export * USAGE_FIELDS + USAGE_TIERS;
    int64_t more = (int64_t)w->sizes[writer_class(w, draft)] - object_bytes(w, old), all = more;
    for (unsigned tier = 0; tier <= TIER_MASK; tier++)
        all += taken[tier];
    return more <= 0 || all <= (int64_t)quota;
}

static void account(Writer *w, size_t export, uint64_t old, uint64_t new)
{
    int64_t *usage = w->usage + export * USAGE_FIELDS;
    usage[USAGE_SLOTS] += (new != 0) - (old != 0);
    usage[USAGE_PAYLOAD] += in_pool(new) ? (int64_t)blob_length(new) : 0;
    usage[USAGE_PAYLOAD] -= in_pool(old) ? (int64_t)blob_length(old) : 0;
    usage[USAGE_TIERS] += object_bytes(w, new) - object_bytes(w, old);
}

void writer_exchange(Writer *w, size_t export, uint64_t *word, uint64_t old, uint64_t new)
{
    __atomic_store_n(word, new, __ATOMIC_RELEASE); /* I3: after the bytes, before the free */
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* release alone lets the compiler free it before */
    w->state_counts[w->state_of_word[old & STATE_MASK]]--;
    w->state_counts[w->state_of_word[new & STATE_MASK]]++;
    account(w, export, old, new);
    if (in_pool(old)) {
        *w->payload -= (int64_t)blob_length(old);
        give(w, pool_place(old));
    }
}

/* Stores one draft; false: nothing was done. */
bool writer_publish_one(Writer *w, uint64_t slot, uint64_t *word, uint64_t draft, const char *page,
                        const char *blob)
{
    uint64_t old = *word, new = draft;
    size_t export = writer_export(w, slot);
    Py_ssize_t counter = w->write_same;

    if (in_pool(draft)) {
        bool raw = blob_codec(draft) == CODEC_RAW;
        if (!is_within_quota(w, export, old, draft) ||
            (new = writer_put(w, old, draft, raw ? page : blob)) == 0)
            return false;
        counter = raw ? w->write_raw : w->write_compressed;
    } else if (!writer_frees_easily(w, old, -1)) {
        return false;
    }
    writer_exchange(w, export, word, old, new);
    w->counters[counter]++;
    if (old == 0)
        w->occupied[slot >> CLUSTER_SHIFT]++;
    return true;
}

uint64_t *writer_word(const Writer *w, uint64_t slot)
{
    uint64_t page = w->directory[slot >> CLUSTER_SHIFT];
    if (page == 0 || page > w->zspages << (ZSPAGE_SHIFT - PAGE_SHIFT))
        return NULL;
    uint64_t index = ((page - 1) << CLUSTER_SHIFT) + (slot & (CLUSTER_SLOTS - 1));
    return (uint64_t *)w->arena + index;
}

static PyObject *writer_publish(Writer *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { DRAFTS, SOURCE, BLOBS, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;

    if (nargs != 7) {
        PyErr_SetString(PyExc_TypeError,
                        "publish(slot, count, drafts, first, source, position, blobs)");
        return NULL;
    }
    PyObject *const from[BUFFERS] = {args[2], args[4], args[6]};
    Py_ssize_t slot = PyLong_AsSsize_t(args[0]), count = PyLong_AsSsize_t(args[1]);
    Py_ssize_t first = PyLong_AsSsize_t(args[3]), position = PyLong_AsSsize_t(args[5]);
    if (PyErr_Occurred() || !buffers_get(from, BUFFERS, 0, b))
        return NULL;
    Py_ssize_t slots = self->parts[OCCUPIED].len / 2 << CLUSTER_SHIFT;
    if (slot < 0 || count < 0 || count > slots || slot > slots - count ||
        !has_words(&b[DRAFTS], first, count) || !has_pages(&b[BLOBS], 0, first + count) ||
        !has_pages(&b[SOURCE], position, first + count)) {
        PyErr_SetString(PyExc_ValueError, "the run is not inside its buffers");
    } else {
        const uint64_t *drafts = b[DRAFTS].buf;
        const char *source = (const char *)b[SOURCE].buf + position, *blobs = b[BLOBS].buf;
        uint64_t now = self->log != NULL ? now_ns() : 0;
        Py_ssize_t done = 0;
        for (; done < count; done++) {
            uint64_t at = (uint64_t)(slot + done), *word = writer_word(self, at);
            Py_ssize_t i = first + done, byte = i << PAGE_SHIFT;
            uint64_t old = word == NULL ? 0 : *word;
            if (word == NULL ||
                !writer_publish_one(self, at, word, drafts[i], source + byte, blobs + byte))
                break;
            if (self->log != NULL)
                log_append(self->log, EVENT_STORE, at, log_class_of(self->log, *word), 0,
                           log_tier(old), now);
        }
        result = PyLong_FromSsize_t(done);
    }
    buffers_release(b, BUFFERS);
    return result;
}

/* Whether every table has as many elements as the others ask for. */
static bool fits_together(const Writer *w)
{
    const Py_buffer *b = w->parts;
    size_t zspages = w->zspages, classes = w->size_classes, lists = LIST_ROOM + classes;
    const struct { int part; size_t item, count; } wanted[] = {
        {ARENA, ZSPAGE_BYTES, zspages}, {OCCUPIED, 2, (size_t)b[DIRECTORY].len / 4},
        {USED, 2, zspages}, {HEAD, 2, zspages}, {FRESH, 2, zspages}, {WHERE, 1, zspages},
        {OBJECTS, 8, classes}, {CAPACITIES, 2, classes}, {PAYLOAD, 8, 1}, {LENGTHS, 4, lists},
        {NEXT, 4, zspages + lists}, {PREVIOUS, 4, zspages + lists},
        {CLASS_OF_GRAINS, 1, (PAGE_BYTES >> GRAIN_SHIFT) + 1}, {STATE_OF_WORD, 1, STATE_MASK + 1},
    };
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if (!is_array_of(&b[wanted[i].part], wanted[i].item, wanted[i].count))
            return false;
    for (Py_ssize_t i = 0; i < b[CLASS_OF_GRAINS].len; i++)
        if (w->class_of_grains[i] >= classes)
            return false;
    for (Py_ssize_t i = 0; i < b[STATE_OF_WORD].len; i++)
        if (!has_words(&b[STATE_COUNTS], w->state_of_word[i], 1))
            return false;
    for (size_t i = 0; i < classes; i++)
        if (w->sizes[i] == 0)
            return false;
    size_t exports = (size_t)b[EXPORTS].len / (EXPORT_FIELDS * sizeof(uint64_t));
    if (exports == 0 || !is_array_of(&b[EXPORTS], EXPORT_FIELDS * sizeof(uint64_t), exports) ||
        !is_array_of(&b[USAGE], USAGE_FIELDS * sizeof(int64_t), exports) ||
        w->exports[(exports - 1) * EXPORT_FIELDS + EXPORT_END] <
            (uint64_t)b[OCCUPIED].len / 2 << CLUSTER_SHIFT)
        return false;
    if (w->log != NULL && w->log->clusters < (uint64_t)b[OCCUPIED].len / 2)
        return false;
    return has_words(&b[COUNTERS], w->write_same, 1) && has_words(&b[COUNTERS], w->write_raw, 1) &&
           has_words(&b[COUNTERS], w->write_compressed, 1);
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Py_ssize_t same, compressed, raw;
    PyObject *log;
    if (!PyArg_ParseTuple(args, "(nnn)O", &same, &compressed, &raw, &log))
        return NULL;
    if (log != Py_None && !PyObject_TypeCheck(log, &LogType)) {
        PyErr_SetString(PyExc_TypeError, "log is a Log or None");
        return NULL;
    }
    Writer *self = (Writer *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_buffer *b = self->parts;
    if (!buffers_of_keywords(keywords, part_names, PARTS, SIZES, b)) {
        Py_DECREF(self);
        return NULL;
    }
    self->directory = b[DIRECTORY].buf, self->arena = b[ARENA].buf, self->classes = b[CLASSES].buf;
    self->counters = b[COUNTERS].buf, self->state_counts = b[STATE_COUNTS].buf;
    self->occupied = b[OCCUPIED].buf, self->used = b[USED].buf, self->head = b[HEAD].buf;
    self->fresh = b[FRESH].buf, self->objects = b[OBJECTS].buf, self->payload = b[PAYLOAD].buf;
    self->next = b[NEXT].buf, self->previous = b[PREVIOUS].buf, self->where = b[WHERE].buf;
    self->lengths = b[LENGTHS].buf, self->sizes = b[SIZES].buf;
    self->capacities = b[CAPACITIES].buf, self->class_of_grains = b[CLASS_OF_GRAINS].buf;
    self->state_of_word = b[STATE_OF_WORD].buf;
    self->usage = b[USAGE].buf, self->exports = b[EXPORTS].buf;
    self->zspages = (uint64_t)b[CLASSES].len;
    self->size_classes = (size_t)b[SIZES].len / sizeof(uint16_t);
    self->write_same = same, self->write_compressed = compressed, self->write_raw = raw;
    self->log = log == Py_None ? NULL : (Log *)Py_NewRef(log);
    if (!fits_together(self)) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "the tables do not fit together");
        return NULL;
    }
    return (PyObject *)self;
}

static void writer_dealloc(Writer *self)
{
    buffers_release(self->parts, PARTS);
    Py_XDECREF(self->log);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef writer_methods[] = {
    {"publish", FASTCALL(writer_publish), METH_FASTCALL,
     "publish(slot, count, drafts, first, source, position, blobs) -> stored\n\n"
     "Store the drafts first..first+count in count slots from slot on; the caller holds the lock.\n"
     "Ends early at a page that changes more than counts and free lists."},
    {"replace", FASTCALL(writer_replace), METH_FASTCALL,
     "replace(slots, words, drafts, blobs, first, end, smaller) -> where it ended\n\n"
     "Have the slots of numbers first to end hold the blob of each draft, where their words are\n"
     "still words with MOVING; the caller holds the lock. smaller: only in a smaller place. Ends\n"
     "early at one that it does not do."},
    {"claim", (PyCFunction)writer_claim, METH_VARARGS,
     "claim(view, at, sector, tier, found, count, room, most) -> (count, at)\n\n"
     "Mark as moving what the table names of the blobs in view, which is sector and on in tier, from\n"
     "its sector at on, as long as they fit into room sectors, most of them at once; a record of\n"
     "each goes to found, from number count on. The caller holds the lock."},
    {"settle", (PyCFunction)writer_settle, METH_VARARGS,
     "settle(found, first, end, store) -> (taken, payload)\n\n"
     "Have the slots of records first to end, if their words have not changed, name what was carried,\n"
     "else, or unless store, go on as before. The caller holds the lock."},
    {"play", FASTCALL(writer_play), METH_FASTCALL,
     "play(events, first, end, blank, pool_reads) -> where it ended\n\n"
     "Do again what the events of a trace say, numbers first to end, without their pages. Ends\n"
     "early at one that it does not do. blank: a page of zeros; pool_reads: index of a counter."},
    {NULL}};

PyTypeObject WriterType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Writer",
    .tp_basicsize = sizeof(Writer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Writer(counts, log, *, directory, arena, ...)\n\n"
              "Stores pages in the pool. counts: the indexes of the counters of pages stored as\n"
              "SAME, compressed and RAW; log: a Log or None. A rebuild makes new tables, which need a new Writer.",
    .tp_new = writer_new,
    .tp_dealloc = (destructor)writer_dealloc,
    .tp_methods = writer_methods,
};
