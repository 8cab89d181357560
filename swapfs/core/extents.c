/*
 * A few extents, looked through one by one: there are no more than threads that read, and some.
 */
#include "extents.h"

#include <sys/mman.h>

void shelf_begin(struct shelf *shelf, unsigned count)
{
    shelf->count = count;
    pthread_mutex_init(&shelf->lock, NULL);
    pthread_cond_init(&shelf->landed, NULL);
}

bool shelf_fill(struct shelf *shelf)
{
    if (shelf->memory != NULL)
        return true;
    char *memory = mmap(NULL, (size_t)shelf->count * EXTENT_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    for (unsigned i = 0; i < shelf->count; i++)
        shelf->extents[i].bytes = memory + (size_t)i * EXTENT_BYTES;
    shelf->memory = memory;
    return true;
}

void shelf_end(struct shelf *shelf)
{
    if (shelf->memory != NULL)
        munmap(shelf->memory, (size_t)shelf->count * EXTENT_BYTES);
    pthread_mutex_destroy(&shelf->lock);
    pthread_cond_destroy(&shelf->landed);
}

static bool has(const struct extent *extent, unsigned tier, uint64_t first, uint64_t end)
{
    return extent->state != EXTENT_FREE && !extent->stale && extent->tier == tier &&
           extent->first <= first && end <= extent->end;
}

static struct extent *find(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end)
{
    for (unsigned i = 0; i < shelf->count; i++)
        if (has(&shelf->extents[i], tier, first, end))
            return &shelf->extents[i];
    return NULL;
}

/* Whether *a* should be given up rather than *b*: what is free, then what was read for one reader,
 * then what was read ahead, and of equals what was used longest ago. */
static bool goes_before(const struct extent *a, const struct extent *b)
{
    int rank_a = a->state == EXTENT_FREE ? 0 : 1 + a->ahead;
    int rank_b = b->state == EXTENT_FREE ? 0 : 1 + b->ahead;
    return rank_a != rank_b ? rank_a < rank_b : a->used < b->used;
}

static struct extent *take_unused(struct shelf *shelf)
{
    struct extent *best = NULL;
    for (unsigned i = 0; i < shelf->count; i++) {
        struct extent *extent = &shelf->extents[i];
        if (extent->users == 0 && (best == NULL || goes_before(extent, best)))
            best = extent;
    }
    return best;
}

struct extent *shelf_take(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end,
                          uint64_t ahead, bool *reads)
{
    struct extent *extent;
    *reads = false;
    pthread_mutex_lock(&shelf->lock);
    while ((extent = find(shelf, tier, first, end)) != NULL && extent->state == EXTENT_READING)
        pthread_cond_wait(&shelf->landed, &shelf->lock);
    if (extent == NULL && (extent = take_unused(shelf)) != NULL) {
        *reads = true;
        extent->tier = tier, extent->first = first, extent->end = ahead > end ? ahead : end;
        extent->state = EXTENT_READING;
        extent->ahead = ahead > end, extent->stale = extent->followed = false;
    }
    if (extent != NULL) {
        extent->users++;
        extent->used = ++shelf->now;
    }
    pthread_mutex_unlock(&shelf->lock);
    return extent;
}

struct extent *shelf_find(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end)
{
    pthread_mutex_lock(&shelf->lock);
    struct extent *extent = find(shelf, tier, first, end);
    if (extent != NULL && extent->state != EXTENT_READY)
        extent = NULL;
    if (extent != NULL) {
        extent->users++;
        extent->used = ++shelf->now;
    }
    pthread_mutex_unlock(&shelf->lock);
    return extent;
}

bool shelf_follow(struct shelf *shelf, struct extent *extent, uint64_t until)
{
    pthread_mutex_lock(&shelf->lock);
    bool wanted = extent->ahead && !extent->followed && 2 * until > extent->first + extent->end;
    extent->followed |= wanted;
    pthread_mutex_unlock(&shelf->lock);
    return wanted;
}

void shelf_landed(struct shelf *shelf, struct extent *extent, uint64_t end)
{
    pthread_mutex_lock(&shelf->lock);
    extent->state = end ? EXTENT_READY : EXTENT_FREE;
    extent->end = end;
    pthread_cond_broadcast(&shelf->landed);
    pthread_mutex_unlock(&shelf->lock);
}

void shelf_leave(struct shelf *shelf, struct extent *extent)
{
    pthread_mutex_lock(&shelf->lock);
    if (--extent->users == 0 && extent->stale)
        extent->state = EXTENT_FREE;
    pthread_mutex_unlock(&shelf->lock);
}

void shelf_forget(struct shelf *shelf, unsigned tier, uint64_t first, uint64_t end)
{
    pthread_mutex_lock(&shelf->lock);
    for (unsigned i = 0; i < shelf->count; i++) {
        struct extent *extent = &shelf->extents[i];
        if (extent->state == EXTENT_FREE || extent->tier != tier || extent->end <= first ||
            end <= extent->first)
            continue;
        extent->stale = true;
        if (extent->users == 0)
            extent->state = EXTENT_FREE;
    }
    pthread_cond_broadcast(&shelf->landed); /* who waits for a stale one looks for another */
    pthread_mutex_unlock(&shelf->lock);
}
