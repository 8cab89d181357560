/*
 * Pages out of tiers on disks, without the GIL from the request to the answer: words are looked at
 * under the layer's lock, sectors read off it, blobs verified, opened and unpacked from there. A
 * place is never trusted after the lock was let go: header and tag tell whether the bytes are the
 * blob that the word named (I4). Whatever else comes up (damage, a disk that fails, a slot that has
 * changed) is left to Python, which reads again, alone decides what is lost, and says so.
 *
 * Read-ahead: when slots are asked for in order, the sectors of those that follow are read with them
 * as far as they lie near. They stay sealed until somebody asks for their slot; the word is looked at
 * then. What was written is forgotten before a word names it (disks_forget), so no word names bytes
 * that were there before its blob.
 */
#include "disks.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "buffers.h"
#include "clock.h"

#define WINDOW_SECTORS (WINDOW_BYTES / SECTOR_BYTES)
#define FLAGS (MOVING | HEAT_MASK)
/* sector_ref.py */
#define REF_GRAINS_MASK 0xFFu
#define REF_CHECK_SHIFT 8
#define REF_CHECK_MASK 0x1FFFu
#define REF_SECTOR_SHIFT 21
#define GRAIN_BYTES 16u
#define GRAIN_OFFSET 8u
#define GRAINS_LEAST 2u
/* streams: how far a read may be from where the last one ended, and how often until it is one */
#define BEFORE_SLOTS 16
#define AFTER_SLOTS 128
#define STREAM_READS 2

/* Blobs of consecutive slots that lie side by side. */
struct run {
    unsigned tier;
    Py_ssize_t count;
    uint64_t first, end, ahead; /* sectors; those that are read with them end at *ahead* */
    uint64_t words[RUN_SLOTS], sequences[RUN_SLOTS];
    uint16_t lengths[RUN_SLOTS];
};

static uint64_t ref_sector(uint64_t word)
{
    return word >> REF_SHIFT >> REF_SECTOR_SHIFT;
}

static unsigned grains_of(size_t length)
{
    unsigned grains = (unsigned)((length + GRAIN_OFFSET + GRAIN_BYTES - 1) / GRAIN_BYTES);
    return (grains > GRAINS_LEAST ? grains : GRAINS_LEAST) - GRAINS_LEAST;
}

static uint64_t ref_sectors(uint64_t word)
{
    size_t length = ((word >> REF_SHIFT & REF_GRAINS_MASK) + GRAINS_LEAST) * GRAIN_BYTES - GRAIN_OFFSET;
    return blob_sectors(length < PAGE_BYTES ? length : PAGE_BYTES);
}

/* ---- what to read; the layer's lock is held ---- */

/* Whether reads come in the order of the slots, this one of *count* from *slot* on among them. */
static bool is_in_order(Disks *self, uint64_t slot, uint64_t count)
{
    struct stream *oldest = &self->streams[0], *found = NULL;
    for (int i = 0; i < STREAMS && found == NULL; i++) {
        struct stream *stream = &self->streams[i];
        if (slot + BEFORE_SLOTS >= stream->next && slot <= stream->next + AFTER_SLOTS)
            found = stream;
        else if (stream->used < oldest->used)
            oldest = stream;
    }
    if (found == NULL)
        *(found = oldest) = (struct stream){0};
    found->next = slot + count;
    found->used = ++self->reads;
    return ++found->reads > STREAM_READS;
}

static bool is_in_tier(uint64_t word, unsigned tier)
{
    return is_below(word) && (word >> TIER_SHIFT & TIER_MASK) == tier;
}

/* Where the blobs of the slots that follow *slot* end, of those that lie in the window of *run*. */
static uint64_t end_of_near(const Disks *self, const struct run *run, uint64_t slot)
{
    uint64_t limit = run->first + WINDOW_SECTORS, end = run->end;
    uint64_t slots = self->reader->size_bytes >> PAGE_SHIFT, last = slot + CLUSTER_SLOTS;
    for (Py_ssize_t some; slot < last && slot < slots; slot += (uint64_t)some) {
        const uint64_t *words = reader_words(self->reader, slot, (Py_ssize_t)(last - slot), &some);
        if (some == 0)
            break;
        for (Py_ssize_t i = 0; words != NULL && i < some; i++) {
            uint64_t until = ref_sector(words[i]) + ref_sectors(words[i]);
            if (is_in_tier(words[i], run->tier) && ref_sector(words[i]) >= run->first &&
                until <= limit && until > end)
                end = until;
        }
    }
    return end;
}

/* Finds the blobs of *slot* and those after it, at most *count*, that are best read at once; false:
 * the first is on no disk of ours. */
static bool plan(Disks *self, uint64_t slot, Py_ssize_t count, bool in_order, struct run *run)
{
    Py_ssize_t some;
    const uint64_t *words = reader_words(self->reader, slot, count, &some);
    if (some == 0 || words == NULL || !is_below(words[0]))
        return false;
    run->tier = words[0] >> TIER_SHIFT & TIER_MASK;
    if (!self->disks[run->tier].there)
        return false;
    run->first = run->end = ref_sector(words[0]);
    for (run->count = 0; run->count < some; run->count++) {
        uint64_t word = words[run->count], sectors = ref_sectors(word);
        if (!is_in_tier(word, run->tier) || ref_sector(word) != run->end ||
            run->end + sectors > run->first + WINDOW_SECTORS)
            break;
        run->words[run->count] = word;
        run->end += sectors;
    }
    run->ahead = in_order ? end_of_near(self, run, slot + (uint64_t)run->count) : run->end;
    ++*(uint64_t *)self->disks[run->tier].readers.buf;
    return true;
}

/* ---- reading it; no lock is held ---- */

static bool read_sectors(const struct disk *disk, struct extent *extent, uint64_t end)
{
    uint64_t block = disk->block_sectors, lead = extent->first % block;
    size_t bytes = (size_t)((lead + end - extent->first + block - 1) / block * block) * SECTOR_BYTES;
    ssize_t got;
    do
        got = pread(disk->fd, extent->bytes, bytes, (off_t)((extent->first - lead) * SECTOR_BYTES));
    while (got < 0 && errno == EINTR);
    extent->lead = (size_t)lead * SECTOR_BYTES;
    return got == (ssize_t)bytes;
}

/* The payload of the blob of *slot* whose word is *word*, into *to*; false: it is not there. */
static bool open_blob(const struct disk *disk, uint64_t slot, uint64_t word, const char *at,
                      char *to, struct blob_header *header)
{
    uint32_t check;
    uint64_t ref = word >> REF_SHIFT;
    memcpy(header, at, sizeof(*header));
    if (header->magic != BLOB_MAGIC || header->slot != slot || header->codec != blob_codec(word) ||
        header->length > PAGE_BYTES || header->length == 0 ||
        grains_of(header->length) != (ref & REF_GRAINS_MASK))
        return false;
    memcpy(&check, at + sizeof(*header) + header->length, sizeof(check));
    return (check & REF_CHECK_MASK) == (ref >> REF_CHECK_SHIFT & REF_CHECK_MASK) &&
           disk->seal->open(disk->seal, at, sizeof(*header), header->sequence,
                            at + sizeof(*header), header->length, to);
}

/* Makes pages at *out* of the blobs of *run*; false: one is not what its word says. */
static bool unpack(const struct disk *disk, uint64_t slot, struct run *run, const char *at,
                   const struct place *place, char *out)
{
    for (Py_ssize_t i = 0; i < run->count; i++, out += PAGE_BYTES) {
        struct blob_header header;
        uint64_t word = run->words[i];
        if (!open_blob(disk, slot + (uint64_t)i, word, at, place->payload, &header) ||
            !decode(place->decoder, place->payload, header.length, header.codec, out))
            return false;
        run->sequences[i] = header.sequence;
        run->lengths[i] = header.length;
        at += ref_sectors(word) * SECTOR_BYTES;
    }
    return true;
}

/* What a read took: nothing if the sectors were there. */
struct traffic {
    bool read;
    uint64_t sectors, ahead_sectors, took_ns;
};

static bool fetch(Disks *self, uint64_t slot, struct run *run, const struct place *place, char *out,
                  struct traffic *traffic)
{
    const struct disk *disk = &self->disks[run->tier];
    bool good = true;
    struct extent *extent = shelf_take(&self->shelf, run->tier, run->first, run->end, run->ahead,
                                       &traffic->read);
    if (extent == NULL)
        return false;
    if (traffic->read) {
        uint64_t began_ns = now_ns();
        uint64_t end = extent->end;
        good = read_sectors(disk, extent, end);
        if (!good && end > run->end) /* whose sector is bad? Not ours, perhaps */
            good = read_sectors(disk, extent, end = run->end);
        traffic->took_ns = now_ns() - began_ns;
        traffic->sectors = run->end - run->first;
        traffic->ahead_sectors = end - run->end;
        shelf_landed(&self->shelf, extent, good ? end : 0);
    }
    good = good && unpack(disk, slot, run,
                          extent->bytes + extent->lead + (run->first - extent->first) * SECTOR_BYTES,
                          place, out);
    shelf_leave(&self->shelf, extent);
    if (!good) /* the next to ask should not find them */
        shelf_forget(&self->shelf, run->tier, run->first, run->end);
    return good;
}

/* ---- what becomes of it; the layer's lock is held ---- */

static void count(Disks *self, int which, uint64_t more)
{
    ((uint64_t *)self->reader->counters.buf)[self->counts[which]] += more;
}

static void count_for(struct disk *disk, int which, uint64_t more)
{
    ((uint64_t *)disk->row.buf)[disk->counts[which]] += more;
}

/* Counts how long a read took: buckets of powers of two from 2^-15 s on, and the sum (durations.py). */
static void note_duration(struct disk *disk, uint64_t took_ns)
{
    uint64_t *buckets = disk->durations.buf;
    Py_ssize_t last = disk->durations.len / (Py_ssize_t)sizeof(uint64_t) - 2, i = 0;
    while (i < last && ((took_ns << 15) > 1000000000ull << i))
        i++;
    buckets[i]++;
    buckets[last + 1] += took_ns;
}

static void note_traffic(Disks *self, struct disk *disk, const struct traffic *traffic)
{
    if (!traffic->read)
        return;
    uint64_t bytes = (traffic->sectors + traffic->ahead_sectors) * SECTOR_BYTES;
    note_duration(disk, traffic->took_ns);
    count(self, READ_OPS, 1), count_for(disk, ROW_READS, 1);
    count(self, READ_BYTES, bytes), count_for(disk, ROW_READ_BYTES, bytes);
    if (traffic->ahead_sectors) {
        count(self, AHEAD_OPS, 1);
        count(self, AHEAD_BYTES, traffic->ahead_sectors * SECTOR_BYTES);
    }
}

/* Counts the pages of *run*, and makes their words hotter: what is warm does not sink. */
static void account(Disks *self, uint64_t slot, const struct run *run, bool was_there)
{
    struct disk *disk = &self->disks[run->tier];
    uint64_t newest = *(uint64_t *)self->newest.buf;
    uint64_t oldest = newest > self->recent ? newest - self->recent : 0;
    Log *log = self->reader->log;
    uint64_t now = log != NULL ? now_ns() : 0;
    Py_ssize_t some;
    uint64_t *words = reader_words(self->reader, slot, run->count, &some);
    for (Py_ssize_t i = 0; i < run->count; i++) {
        bool near = run->sequences[i] >= oldest;
        unsigned size_class = log != NULL ? log_size_class(log, run->lengths[i]) : 0;
        if (log != NULL)
            log_append(log, EVENT_LOAD, slot + (uint64_t)i, size_class, run->tier, run->tier, now);
        if (log != NULL && near)
            log_append(log, EVENT_REFAULT, slot + (uint64_t)i, size_class, run->tier, run->tier,
                       now);
        if (near)
            count(self, REFAULTED_PAGES, 1);
        if (words != NULL && i < some && ((words[i] ^ run->words[i]) & ~(uint64_t)FLAGS) == 0 &&
            (words[i] & HEAT_MASK) != HEAT_MASK)
            words[i] += HEAT_ONE;
    }
    count(self, READ_PAGES, (uint64_t)run->count);
    count_for(disk, ROW_READ_PAGES, (uint64_t)run->count);
    if (was_there)
        count(self, AHEAD_PAGES, (uint64_t)run->count);
}

bool disks_read(Disks *self, uint64_t slot, Py_ssize_t wanted, const struct place *place)
{
    Lock *lock = self->reader->lock;
    uint64_t reads[READ_KINDS] = {0};
    struct run run;
    bool good = false;
    if (wanted > RUN_SLOTS || wanted > place->slots || lock_enter(lock) != 0)
        return false;
    bool in_order = is_in_order(self, slot, (uint64_t)wanted);
    for (Py_ssize_t done = 0;;) {
        uint64_t at = slot + (uint64_t)done;
        char *out = place->pages + ((size_t)done << PAGE_SHIFT);
        Py_ssize_t got = reader_load_run(self->reader, at, wanted - done, out, reads);
        at += (uint64_t)got, out += (size_t)got << PAGE_SHIFT, done += got;
        good = done == wanted;
        if (good || !plan(self, at, wanted - done, in_order, &run))
            break;
        struct traffic traffic = {0};
        lock_leave(lock);
        bool fetched = fetch(self, at, &run, place, out, &traffic);
        lock_enter(lock);
        struct disk *disk = &self->disks[run.tier];
        --*(uint64_t *)disk->readers.buf;
        note_traffic(self, disk, &traffic);
        if (!fetched)
            break;
        account(self, at, &run, !traffic.read);
        done += run.count;
    }
    if (good) { /* else Python does it all again, and counts it */
        reader_count(self->reader, reads);
        ((uint64_t *)self->reader->counters.buf)[self->reader->bytes_read] +=
            (uint64_t)wanted << PAGE_SHIFT;
    }
    lock_leave(lock);
    return good;
}

/* ---- disks that come and go; the layer's lock is held ---- */

static void detach(Disks *self, unsigned number)
{
    struct disk *disk = &self->disks[number];
    if (!disk->there)
        return;
    disk->there = false;
    Py_CLEAR(disk->sealer);
    PyBuffer_Release(&disk->row);
    PyBuffer_Release(&disk->durations);
    PyBuffer_Release(&disk->readers);
    shelf_forget(&self->shelf, number, 0, UINT64_MAX);
}

void disks_detach_all(Disks *self)
{
    for (unsigned number = 0; number < DISKS_MAX; number++)
        detach(self, number);
}

PyObject *disks_attach(Disks *self, PyObject *args)
{
    unsigned number;
    struct disk disk = {.there = true};
    PyObject *views[3];
    Py_buffer b[3];
    if (!PyArg_ParseTuple(args, "IiIOOOO(nnn)", &number, &disk.fd, &disk.block_sectors,
                          &disk.sealer, &views[0], &views[1], &views[2], &disk.counts[ROW_READS],
                          &disk.counts[ROW_READ_BYTES], &disk.counts[ROW_READ_PAGES]) ||
        (disk.seal = sealer_seal(disk.sealer)) == NULL || !buffers_get(views, 3, 7u, b))
        return NULL;
    disk.row = b[0], disk.durations = b[1], disk.readers = b[2];
    bool good = number < DISKS_MAX && !self->disks[number].there && disk.block_sectors > 0 &&
                disk.block_sectors <= PAGE_BYTES / SECTOR_BYTES && has_words(&b[1], 0, 2) &&
                has_words(&b[2], 0, 1);
    for (int i = 0; i < ROW_COUNTS; i++)
        good = good && has_words(&b[0], disk.counts[i], 1);
    if (!good) {
        buffers_release(b, 3);
        PyErr_SetString(PyExc_ValueError, "no such disk");
        return NULL;
    }
    if (!shelf_fill(&self->shelf)) {
        buffers_release(b, 3);
        return PyErr_NoMemory();
    }
    Py_INCREF(disk.sealer);
    self->disks[number] = disk;
    Py_RETURN_NONE;
}

PyObject *disks_detach(Disks *self, PyObject *argument)
{
    unsigned long number = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (number < DISKS_MAX && self->disks[number].there &&
        *(uint64_t *)self->disks[number].readers.buf != 0) {
        PyErr_SetString(PyExc_RuntimeError, "it is being read");
        return NULL;
    }
    if (number < DISKS_MAX)
        detach(self, (unsigned)number);
    Py_RETURN_NONE;
}

PyObject *disks_forget(Disks *self, PyObject *args)
{
    unsigned number;
    unsigned long long first, sectors;
    if (!PyArg_ParseTuple(args, "IKK", &number, &first, &sectors))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    shelf_forget(&self->shelf, number, first, first + sectors);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
