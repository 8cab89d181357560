/*
 * A place is never trusted after the lock was let go: header and tag tell whether the bytes are the
 * blob that the word named (I4).
 */
#include "runs.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define WINDOW_SECTORS (WINDOW_BYTES / SECTOR_BYTES)
/* streams: how far a read may be from where the last one ended, and how often until it is one */
#define BEFORE_SLOTS 16
#define AFTER_SLOTS 128
#define STREAM_READS 2

static uint64_t ref_sector(uint64_t word)
{
    return word >> REF_SHIFT >> REF_SECTOR_SHIFT;
}

static uint64_t ref_sectors(uint64_t word)
{
    size_t length = ((word >> REF_SHIFT & REF_GRAINS_MASK) + GRAINS_LEAST) * GRAIN_BYTES - GRAIN_OFFSET;
    return blob_sectors(length < PAGE_BYTES ? length : PAGE_BYTES);
}

uint64_t run_first_sector(uint64_t word)
{
    return ref_sector(word);
}

uint64_t run_end_sector(uint64_t word)
{
    return ref_sector(word) + ref_sectors(word);
}

/* ---- what to read; the layer's lock is held ---- */

bool run_is_in_order(Disks *self, uint64_t slot, uint64_t count)
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

bool run_plan(Disks *self, uint64_t slot, Py_ssize_t count, bool in_order, struct run *run)
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

bool run_plan_there(Disks *self, uint64_t slot, Py_ssize_t count, struct run *run)
{
    Py_ssize_t some;
    const uint64_t *words = reader_words(self->reader, slot, count, &some);
    if (words == NULL || some != count)
        return false;
    run->tier = words[0] >> TIER_SHIFT & TIER_MASK;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!is_in_tier(words[i], run->tier))
            return false;
    memcpy(run->words, words, (size_t)count * sizeof(*words));
    run->count = count;
    return self->disks[run->tier].there;
}

bool run_plan_ahead(Disks *self, const struct ahead *ahead, struct run *run)
{
    uint64_t slots = self->reader->size_bytes >> PAGE_SHIFT, last = ahead->slot + CLUSTER_SLOTS;
    if (!self->disks[ahead->tier].there)
        return false;
    for (uint64_t slot = ahead->slot; slot < last && slot < slots; slot++) {
        Py_ssize_t some;
        const uint64_t *word = reader_words(self->reader, slot, 1, &some);
        if (word == NULL || some == 0 || !is_in_tier(*word, ahead->tier))
            continue;
        uint64_t first = ref_sector(*word), end = first + ref_sectors(*word);
        if (first >= ahead->first && end <= ahead->end)
            continue;
        *run = (struct run){.tier = ahead->tier, .first = first, .end = end};
        run->ahead = end_of_near(self, run, slot + 1);
        return run->ahead > end;
    }
    return false;
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
        blob_grains(header->length) != (ref & REF_GRAINS_MASK))
        return false;
    memcpy(&check, at + sizeof(*header) + header->length, sizeof(check));
    return (check & REF_CHECK_MASK) == (ref >> REF_CHECK_SHIFT & REF_CHECK_MASK) &&
           disk->seal->open(disk->seal, at, sizeof(*header), header->sequence,
                            at + sizeof(*header), header->length, to);
}

bool run_unpack(const struct disk *disk, uint64_t slot, struct run *run, Py_ssize_t i,
                const struct extent *extent, const struct place *place, char *out)
{
    struct blob_header header;
    const char *at =
        extent->bytes + extent->lead + (ref_sector(run->words[i]) - extent->first) * SECTOR_BYTES;
    if (!open_blob(disk, slot + (uint64_t)i, run->words[i], at, place->payload, &header) ||
        !decode(place->decoder, place->payload, header.length, header.codec, out))
        return false;
    run->sequences[i] = header.sequence;
    run->lengths[i] = header.length;
    return true;
}

struct extent *run_take(Disks *self, const struct run *run, struct traffic *traffic)
{
    const struct disk *disk = &self->disks[run->tier];
    struct extent *extent = shelf_take(&self->shelf, run->tier, run->first, run->end, run->ahead,
                                       &traffic->read);
    if (extent == NULL || !traffic->read)
        return extent;
    uint64_t began_ns = now_ns(), end = extent->end;
    bool good = read_sectors(disk, extent, end);
    if (!good && end > run->end) /* whose sector is bad? Not ours, perhaps */
        good = read_sectors(disk, extent, end = run->end);
    traffic->took_ns = now_ns() - began_ns;
    traffic->sectors = run->end - run->first;
    traffic->ahead_sectors = end - run->end;
    shelf_landed(&self->shelf, extent, good ? end : 0);
    if (good)
        return extent;
    shelf_leave(&self->shelf, extent);
    return NULL;
}
