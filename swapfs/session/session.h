/*
 * What the files of the session loop share. One session per process, so its state is one struct.
 *
 * A *data request* moves data of a swap file (READ, WRITE, FALLOCATE) and is answered here; every
 * other is a *namespace request* and goes to pyfuse3.
 */
#ifndef SWAPFS_SESSION_H
#define SWAPFS_SESSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "reader.h"

#define PAGE 4096u
#define FILES_MAX 8u
#define IN_BUFFERS 2u /* one request is served, one may wait (overtake.c) */

enum op { OP_READ, OP_WRITE, OP_FALLOCATE, OP_COUNT };
/* The slowest thing that a request waited for. */
enum slowest { SLOWEST_MEMORY, SLOWEST_FILE, SLOWEST_COUNT };

extern const char *const op_names[OP_COUNT];

struct session {
    bool armed;
    int dev_fd;       /* /dev/fuse, owned by libfuse */
    int pair_loop;    /* our end of the socket pair; -1 once the session ended */
    int pair_pyfuse3; /* pyfuse3's end */
    size_t bytes_max; /* the largest request or reply payload */
    char *in_maps[IN_BUFFERS]; /* PAGE of headers, then the payload, page aligned */
    PyObject *payloads[IN_BUFFERS]; /* read-only views of the payloads */
    char *out_map;                  /* reply payload */
    Py_buffer init;   /* u32 length, then the kernel's FUSE_INIT request; outlives this process */
    /* The swap files: their node ids are successive, and each has its bytes from base on of one
     * space that ends at *end*. */
    uint64_t inode, end;
    size_t files_count;
    struct swap_file { uint64_t base, size; } files[FILES_MAX];
    _Atomic uint64_t in_flight, data_requests, namespace_requests, dropped_requests, handler_errors;
};
extern struct session session;

/* A data request as a handler takes it: arguments in the order of its parameters. */
struct data_request {
    enum op op;
    size_t count;
    uint64_t arguments[3];
};

/* wire.c: the kernel's FUSE messages */
bool set_files(unsigned long long inode, PyObject *files);
bool is_data_request(const struct fuse_in_header *in);
bool decode(const struct fuse_in_header *in, size_t length, struct data_request *request);
int reply(uint64_t unique, int error, const void *data, size_t size);
int reply_result(uint64_t unique, enum op op, long result, const void *data);
void keep_init(const struct fuse_in_header *in, uint32_t length);
size_t session_bytes(void);
PyObject *session_resend(PyObject *self, PyObject *unused);
PyObject *session_replay_init(PyObject *self, PyObject *unused);

/* request.c: what a handler is given, and what it may keep */
int add_request_types(PyObject *module);
PyObject *make_ticket(uint64_t unique, enum op op, uint64_t start_ns);
PyObject *begin_request(uint64_t unique, enum op op, uint64_t start_ns); /* borrowed */
bool end_request(void); /* whether a Ticket was taken; the Request is inert from now on */

/* latency.c */
void observe(enum op op, enum slowest slowest, uint64_t start_ns);
PyObject *session_latency(PyObject *self, PyObject *unused);

/* awake.c: CPUs kept from sleeping while pages are read; the session thread's but the last two */
void awake_begin(void);
void awake_end(void);
void awake_read(uint64_t at_ns);
void awake_look(void);
PyObject *session_keep_awake(PyObject *self, PyObject *args);
PyObject *session_awake(PyObject *self, PyObject *unused);

/* overtake.c: which request is next, and the reads that need not wait for it */
void requests_block(void);
ssize_t next_request(const struct fuse_in_header **in);
bool request_waits(void);
unsigned current_buffer(void);
void handler_runs(bool runs);
PyObject *session_overtake(PyObject *self, PyObject *unused);

/* loop.c */
bool serve_without_python(const struct fuse_in_header *in, size_t length);
PyObject *session_run(PyObject *self, PyObject *args);
PyObject *session_stop(PyObject *self, PyObject *unused);

#endif
