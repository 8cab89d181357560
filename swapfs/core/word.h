/*
 * The bits of a swap table word, and what else of the region's format C code must know. Python
 * has all of it from here (module.c); what the bits mean is told in vlayer/entry.py.
 */
#ifndef SWAPFS_WORD_H
#define SWAPFS_WORD_H

#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_BYTES (1u << PAGE_SHIFT)
#define CLUSTER_SHIFT 9
#define CLUSTER_SLOTS (1u << CLUSTER_SHIFT)

enum { TAG_EMPTY, TAG_SAME, TAG_POOL, TAG_FILE };
enum { CODEC_RAW, CODEC_LZ4 };

/* all words */
#define TAG_MASK 7u
#define REFERENCED (1u << 3)
#define MOVING (1u << 4)
#define KIND_MASK 0x7Fu
/* POOL and FILE */
#define CODEC_SHIFT 5
#define CODEC_MASK 3u
#define LENGTH_SHIFT 7
#define LENGTH_MASK 0xFFFu
/* POOL */
#define PLACE_SHIFT 20
#define GRAIN_SHIFT 4 /* every object of the pool starts at a multiple of 16 bytes */
#define GRAIN_MASK ((1u << GRAIN_SHIFT) - 1)
/* SAME */
#define SAME_DOUBLED (1u << 5)
#define SAME_SHIFT 6

#define ZSPAGE_SHIFT 16
#define ZSPAGE_BYTES (1u << ZSPAGE_SHIFT)
#define ZSPAGE_MASK (ZSPAGE_BYTES - 1)
#define NO_CLASS 0xFFu   /* of a free zspage */
#define NO_INDEX 0xFFFFu /* ends the list of a zspage's objects that were given back */

/* The lists of zspages: full, free or being drained; and with room, that of class c is ROOM + c. */
enum { LIST_NO_ROOM, LIST_ROOM };

static inline uint64_t pool_place(uint64_t word)
{
    return word >> PLACE_SHIFT << GRAIN_SHIFT;
}

static inline uint64_t blob_length(uint64_t word)
{
    return (word >> LENGTH_SHIFT & LENGTH_MASK) + 1;
}

static inline unsigned blob_codec(uint64_t word)
{
    return word >> CODEC_SHIFT & CODEC_MASK;
}

#endif
