/*
 * Bytes that were read from disks: extents of sectors in memory that is reserved at the start. Who
 * wants sectors that another thread reads waits for it; what was read for one is there for the next,
 * until those sectors are written anew or the room is needed.
 */
#ifndef SWAPFS_EXTENTS_H
#define SWAPFS_EXTENTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXTENTS_MAX 32u
#define WINDOW_BYTES (256u << 10)              /* the most that one read asks for */
#define EXTENT_BYTES (WINDOW_BYTES + (8u << 10)) /* and room for blocks larger than sectors */

enum extent_state { EXTENT_FREE, EXTENT_READING, EXTENT_READY };

struct extent {
    char *bytes; /* page aligned; sector *first* begins at *lead*, which its reader sets */
    size_t lead;
    unsigned tier, users;
    uint64_t first, end; /* sectors */
    uint64_t used;       /* when, as the shelf counts */
    enum extent_state state;
    bool stale; /* its sectors were written since: for those who have it, and nobody else */
    bool ahead; /* more was read than was asked for */
    bool followed; /* somebody reads what comes after it */
};

struct shelf {
    pthread_mutex_t lock;
    pthread_cond_t landed;
    struct extent extents[EXTENTS_MAX];
    unsigned count;
    uint64_t now;
    char *memory;
};

/* *count* extents, which have no memory until shelf_fill gives them EXTENT_BYTES each; false: there
 * is none. */
void shelf_begin(struct shelf *shelf, unsigned count);
bool shelf_fill(struct shelf *shelf);
void shelf_end(struct shelf *shelf);

/* The extent that has sectors *first* to *end* of *tier*, after a wait if it is being read. Or one
 * to read them into, up to *ahead* if that is more: then *reads* is set, and shelf_landed must
 * follow, with the sector where what was read ends, or 0. shelf_leave must follow in any case. NULL:
 * all are in use. */
struct extent *shelf_take(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end,
                          uint64_t ahead, bool *reads);
void shelf_landed(struct shelf *shelf, struct extent *extent, uint64_t end);
void shelf_leave(struct shelf *shelf, struct extent *extent);

/* The extent that has those sectors, if one does already; NULL: none. shelf_leave must follow. */
struct extent *shelf_find(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end);

/* Whether what comes after *extent* should be read now, as all before sector *until* was asked for;
 * says so once. */
bool shelf_follow(struct shelf *shelf, struct extent *extent, uint64_t until);

/* Forgets what is known of the sectors *first* to *end*. */
void shelf_forget(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end);

#endif
