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
#include "runs.h"

#include "buffers.h"
#include "clock.h"

#define FLAGS (MOVING | HEAT_MASK)

static bool fetch(Disks *self, uint64_t slot, struct run *run, const struct place *place, char *out,
                  struct traffic *traffic)
{
    const struct disk *disk = &self->disks[run->tier];
    struct extent *extent = run_take(self, run, traffic);
    bool good = extent != NULL;
    for (Py_ssize_t i = 0; i < run->count && good; i++)
        good = run_unpack(disk, slot, run, i, extent, place, out + ((size_t)i << PAGE_SHIFT));
    if (extent != NULL)
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
    bool in_order = run_is_in_order(self, slot, (uint64_t)wanted);
    for (Py_ssize_t done = 0;;) {
        uint64_t at = slot + (uint64_t)done;
        char *out = place->pages + ((size_t)done << PAGE_SHIFT);
        Py_ssize_t got = reader_load_run(self->reader, at, wanted - done, out, reads);
        at += (uint64_t)got, out += (size_t)got << PAGE_SHIFT, done += got;
        good = done == wanted;
        if (good || !run_plan(self, at, wanted - done, in_order, &run))
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

/* ---- what was read already, and what is next ---- */

bool disks_read_there(Disks *self, uint64_t slot, Py_ssize_t count, char *out, struct ahead *ahead)
{
    Lock *lock = self->reader->lock;
    const struct place place = {.payload = self->payload, .decoder = &self->decoder};
    struct run run;
    ahead->end = 0;
    if (count > RUN_SLOTS || lock_enter(lock) != 0)
        return false;
    bool good = run_plan_there(self, slot, count, &run);
    struct disk *disk = &self->disks[good ? run.tier : 0];
    if (good)
        ++*(uint64_t *)disk->readers.buf;
    lock_leave(lock);
    if (!good)
        return false;
    for (Py_ssize_t i = 0; i < count && good; i++) {
        uint64_t first = run_first_sector(run.words[i]), end = run_end_sector(run.words[i]);
        struct extent *extent = shelf_find(&self->shelf, run.tier, first, end);
        good = extent != NULL && run_unpack(disk, slot, &run, i, extent, &place,
                                            out + ((size_t)i << PAGE_SHIFT));
        if (good && i == count - 1 && shelf_follow(&self->shelf, extent, end))
            *ahead = (struct ahead){slot + (uint64_t)count, extent->first, extent->end, run.tier};
        if (extent != NULL)
            shelf_leave(&self->shelf, extent);
    }
    lock_enter(lock);
    --*(uint64_t *)disk->readers.buf;
    if (good) { /* else another thread reads it all */
        run_is_in_order(self, slot, (uint64_t)count);
        account(self, slot, &run, true);
        ((uint64_t *)self->reader->counters.buf)[self->reader->bytes_read] +=
            (uint64_t)count << PAGE_SHIFT;
    }
    lock_leave(lock);
    return good;
}

void disks_read_ahead(Disks *self, const struct ahead *ahead)
{
    Lock *lock = self->reader->lock;
    struct disk *disk = &self->disks[ahead->tier];
    struct traffic traffic = {0};
    struct run run;
    if (lock_enter(lock) != 0)
        return;
    bool planned = run_plan_ahead(self, ahead, &run);
    if (planned)
        ++*(uint64_t *)disk->readers.buf;
    lock_leave(lock);
    if (!planned)
        return;
    struct extent *extent = run_take(self, &run, &traffic);
    if (extent != NULL)
        shelf_leave(&self->shelf, extent);
    lock_enter(lock);
    --*(uint64_t *)disk->readers.buf;
    note_traffic(self, disk, &traffic);
    lock_leave(lock);
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
