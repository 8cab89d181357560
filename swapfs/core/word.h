/*
 * The bits of a swap table word, and what else of the region's format C code must know. Python
 * has all of it from here (module.c); what the bits mean is told in vlayer/entry.py.
 */
#ifndef SWAPFS_WORD_H
#define SWAPFS_WORD_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_BYTES (1u << PAGE_SHIFT)
#define CLUSTER_SHIFT 9
#define CLUSTER_SLOTS (1u << CLUSTER_SHIFT)

enum { KIND_EMPTY, KIND_SAME, KIND_BLOB, KIND_LOST };
enum { CODEC_RAW, CODEC_LZ4, CODEC_ZSTD };
#define CODEC_KEPT 4u /* with one of these: another was tried, and is of no use */

/* all words */
#define KIND_MASK 3u
#define MOVING (1u << 2)
#define HEAT_SHIFT 3 /* reads since the clock hand passed, as far as two bits count */
#define HEAT_ONE (1u << HEAT_SHIFT)
#define HEAT_MASK (3u << HEAT_SHIFT)
/* BLOB */
#define TIER_SHIFT 5
#define TIER_MASK 7u
#define CODEC_SHIFT 8
#define CODEC_MASK 7u
#define STATE_MASK 0x7FFu /* all that says in which state a slot is */
#define REF_SHIFT 11
/* BLOB in tier 0, the pool */
#define LENGTH_SHIFT 11
#define LENGTH_MASK 0xFFFu
#define CHECK_SHIFT 23 /* of a raw page the length bits belong to the check too (check.c) */
#define CHECK_BITS 5
#define CHECK_MASK ((1u << CHECK_BITS) - 1)
#define CHECK_LOW_MASK (CHECK_MASK >> 1)
#define PLACE_SHIFT 28
#define GRAIN_SHIFT 4 /* every object of the pool starts at a multiple of 16 bytes */
#define GRAIN_MASK ((1u << GRAIN_SHIFT) - 1)
/* SAME */
#define SAME_DOUBLED (1u << 5)
#define SAME_SHIFT 6

/* Which blobs are in the pool: word & BACKING_MASK == IN_POOL. */
#define BACKING_MASK (KIND_MASK | TIER_MASK << TIER_SHIFT)
#define IN_POOL ((unsigned)KIND_BLOB)

#define ZSPAGE_SHIFT 16
#define ZSPAGE_BYTES (1u << ZSPAGE_SHIFT)
#define ZSPAGE_MASK (ZSPAGE_BYTES - 1)
#define NO_CLASS 0xFFu   /* of a free zspage */
#define NO_INDEX 0xFFFFu /* ends the list of a zspage's objects that were given back */

/* What an export has, a row of 64-bit numbers: slots, bytes of blobs, and what it takes in each tier
 * (vlayer/exports.py). */
enum { USAGE_SLOTS, USAGE_PAYLOAD, USAGE_TIERS, USAGE_FIELDS = USAGE_TIERS + TIER_MASK + 1 };
/* What bounds it, likewise: the slot after its last, and the bytes that it may take; 0: any. */
enum { EXPORT_END, EXPORT_QUOTA, EXPORT_FIELDS };

/* The lists of zspages: full, free or being drained; and with room, that of class c is ROOM + c. */
enum { LIST_NO_ROOM, LIST_ROOM };

static inline bool in_pool(uint64_t word)
{
    return (word & BACKING_MASK) == IN_POOL;
}

/* Whether a tier below memory has the blob. */
static inline bool is_below(uint64_t word)
{
    return (word & KIND_MASK) == KIND_BLOB && !in_pool(word);
}

static inline uint64_t pool_place(uint64_t word)
{
    return word >> PLACE_SHIFT << GRAIN_SHIFT;
}

static inline unsigned blob_codec(uint64_t word)
{
    return word >> CODEC_SHIFT & CODEC_MASK;
}

static inline bool is_raw(uint64_t word)
{
    return (blob_codec(word) & ~CODEC_KEPT) == CODEC_RAW;
}

static inline uint64_t blob_length(uint64_t word)
{
    return is_raw(word) ? PAGE_BYTES : (word >> LENGTH_SHIFT & LENGTH_MASK) + 1;
}

#endif
