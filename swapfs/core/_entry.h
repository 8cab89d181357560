/*
 * The bits of a swap table word, as far as C code needs them; vlayer/entry.py is the reference
 * and checks at import that both agree. And the sizes of a cluster and of a zspage (units.py,
 * tiers/pool.py).
 */
#ifndef SWAPFS_ENTRY_H
#define SWAPFS_ENTRY_H

#include <stdint.h>

#define PAGE_BYTES 4096u

enum { TAG_EMPTY, TAG_SAME, TAG_POOL, TAG_FILE };
enum { CODEC_RAW, CODEC_LZ4 };
#define TAG_MASK 7u
#define REFERENCED (1u << 3)
#define MOVING (1u << 4)
#define CODEC_SHIFT 5
#define CODEC_MASK 3u
#define LENGTH_SHIFT 7
#define LENGTH_MASK 0xFFFu
#define PLACE_SHIFT 20
#define GRAIN_SHIFT 4
#define SAME_DOUBLED (1u << 5)
#define SAME_SHIFT 6
#define KIND_MASK 0x7Fu

#define CLUSTER_SHIFT 9
#define CLUSTER_SLOTS (1u << CLUSTER_SHIFT)
#define ZSPAGE_SHIFT 16
#define ZSPAGE_MASK ((1u << ZSPAGE_SHIFT) - 1)
#define NO_INDEX 0xFFFFu /* ends the list of places in a zspage that were given back */

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
