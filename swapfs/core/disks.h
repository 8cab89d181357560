/*
 * What is needed to read blobs from disks without Python (disks.c), by requests that wait for a
 * thread to do it (jobs.c).
 */
#ifndef SWAPFS_DISKS_H
#define SWAPFS_DISKS_H

#include "core.h"

#include "blob.h"
#include "extents.h"
#include "load.h"

#define DISKS_MAX (TIER_MASK + 1)
#define RUN_SLOTS 64 /* of one request; a longer one is Python's */
#define STREAMS 4

/* What is counted, by its place among the indexes that Python gives. */
enum { READ_OPS, READ_BYTES, READ_PAGES, REFAULTED_PAGES, AHEAD_OPS, AHEAD_BYTES, AHEAD_PAGES,
       DISK_COUNTS };
/* Words of a tier's own, and where they are in its row. */
enum { ROW_READS, ROW_READ_BYTES, ROW_READ_PAGES, ROW_COUNTS };

/* A tier on sectors. */
struct disk {
    bool there;
    int fd;
    unsigned block_sectors; /* that reads are aligned to */
    PyObject *sealer;
    struct swapfs_seal *seal;
    Py_buffer row, durations, readers;
    Py_ssize_t counts[ROW_COUNTS]; /* words of the row */
};

/* Reads in the order of the slots, as far as they can be told from others. */
struct stream {
    uint64_t next; /* slot */
    unsigned reads;
    uint64_t used;
};

/* What comes after an extent, for slots from *slot* on. */
struct ahead {
    uint64_t slot, first, end; /* sectors of the extent */
    unsigned tier;
};

enum job_kind { JOB_CALL, JOB_READ, JOB_AHEAD };

struct job {
    struct job *next;
    enum job_kind kind;
    union {
        PyObject *call;
        struct swapfs_read read;
        struct ahead ahead;
    };
};

typedef struct {
    PyObject_HEAD
    struct swapfs_disks entry;
    Reader *reader;
    Py_buffer newest; /* one word: the sequence number of the newest blob */
    uint64_t recent;  /* blobs that count as refaulted when they are read */
    Py_ssize_t counts[DISK_COUNTS];
    struct disk disks[DISKS_MAX];
    struct shelf shelf;
    struct stream streams[STREAMS];
    uint64_t reads; /* taken, for the age of streams */
    struct decoder decoder; /* with payload, for who finds what was read already */
    char payload[PAGE_BYTES];
    /* jobs.c */
    pthread_mutex_t lock, one; /* of the queue; for load, which any thread may call */
    pthread_cond_t come;
    struct job *nodes, *free, *first, **last;
} Disks;

extern PyTypeObject DisksType;

/* What one thread reads with. */
struct place {
    char *pages;   /* *slots* of them, for the answer */
    char *payload; /* a page */
    Py_ssize_t slots;
    struct decoder *decoder;
};

/* Fills the pages of *count* slots, wherever they are; false: that is Python's to do, from the start,
 * because something is damaged, fails or is not on a disk here. Takes the layer's lock. */
bool disks_read(Disks *self, uint64_t slot, Py_ssize_t count, const struct place *place);

/* Likewise, if all of it was read already, into *out*; false: look elsewhere. *ahead*: what should be
 * read next, if its *end* is not 0. For one thread at a time. */
bool disks_read_there(Disks *self, uint64_t slot, Py_ssize_t count, char *out,
                      struct ahead *ahead);

/* Reads what comes after an extent. */
void disks_read_ahead(Disks *self, const struct ahead *ahead);

/* Methods of what is in disks.c. */
PyObject *disks_attach(Disks *self, PyObject *args);
PyObject *disks_detach(Disks *self, PyObject *number);
PyObject *disks_forget(Disks *self, PyObject *args);
void disks_detach_all(Disks *self);

#endif
