/*
 * A blob as it lies on sectors, and how a word refers to one there. What the bits mean is told in
 * tiers/blob.py and tiers/sector_ref.py.
 */
#ifndef SWAPFS_BLOB_H
#define SWAPFS_BLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "seal.h"
#include "word.h"

#define SECTOR_BYTES 512u
#define BLOB_MAGIC 0x6C427753u /* "SwBl" */

struct blob_header {
    uint32_t magic;
    uint8_t codec, zero;
    uint16_t length;
    uint64_t sequence, slot;
};
_Static_assert(sizeof(struct blob_header) == 24, "tiers/sector_ref.py HEADER_BYTES");

static inline size_t blob_sectors(size_t length)
{
    return (sizeof(struct blob_header) + length + TAG_BYTES + SECTOR_BYTES - 1) / SECTOR_BYTES;
}

/* The bits of a reference (sector_ref.py): the length in grains, the check, the sector. */
#define REF_GRAINS_MASK 0xFFu
#define REF_CHECK_SHIFT 8
#define REF_CHECK_MASK 0x1FFFu
#define REF_SECTOR_SHIFT 21
#define GRAIN_BYTES 16u
#define GRAIN_OFFSET 8u
#define GRAINS_LEAST 2u

static inline uint64_t blob_grains(size_t length)
{
    size_t grains = (length + GRAIN_OFFSET + GRAIN_BYTES - 1) / GRAIN_BYTES;
    return (grains > GRAINS_LEAST ? grains : GRAINS_LEAST) - GRAINS_LEAST;
}

static inline uint64_t blob_ref(uint64_t sector, size_t length, uint32_t check)
{
    return blob_grains(length) | (uint64_t)(check & REF_CHECK_MASK) << REF_CHECK_SHIFT |
           sector << REF_SECTOR_SHIFT;
}

/* Puts a blob at *to*, zeros up to the end of its sectors too; *check*: the tag's first bytes. */
static inline bool blob_put(struct swapfs_seal *seal, uint64_t slot, unsigned codec,
                            uint64_t sequence, const void *payload, size_t length, char *to,
                            uint32_t *check)
{
    const struct blob_header header = {BLOB_MAGIC, (uint8_t)codec, 0, (uint16_t)length, sequence,
                                       slot};
    char *body = to + sizeof(header), *tag = body + length, *end = tag + TAG_BYTES;
    memcpy(to, &header, sizeof(header));
    if (!seal->close(seal, &header, sizeof(header), sequence, payload, length, body))
        return false;
    memset(end, 0, (size_t)(to + blob_sectors(length) * SECTOR_BYTES - end)); /* no stale memory */
    memcpy(check, tag, sizeof(*check));
    return true;
}

#endif
