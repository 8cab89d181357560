/*
 * Messages of the kernel's FUSE protocol, include/uapi/linux/fuse.h: what of it the loop reads and
 * writes itself. Replies to namespace requests are written by libfuse; the kernel allows any
 * number of writers.
 */
#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef FUSE_NOTIFY_RESEND /* linux/fuse.h 7.41, kernel 6.9 */
#define FUSE_NOTIFY_RESEND_CODE 7
#else
#define FUSE_NOTIFY_RESEND_CODE FUSE_NOTIFY_RESEND
#endif

/* libfuse 3.14 negotiates at most FUSE_MAX_MAX_PAGES pages; 3.17 goes by the sysctl. */
#define DEFAULT_MAX_PAGES 256u
#define INIT_BYTES_MAX 512u

const char *const op_names[OP_COUNT] = {"read", "write", "discard"};

/* Serves *files*, a sequence of (base, size), whose node ids begin with *inode*; false with an
 * exception if it is none. */
bool set_files(unsigned long long inode, PyObject *files)
{
    Py_ssize_t count = PySequence_Size(files);
    if (count < 1 || count > (Py_ssize_t)FILES_MAX) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "1 to %d files", (int)FILES_MAX);
        return false;
    }
    session.inode = inode, session.files_count = (size_t)count, session.end = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long long base, size;
        PyObject *file = PySequence_GetItem(files, i);
        bool good = file != NULL && PyArg_ParseTuple(file, "KK", &base, &size);
        Py_XDECREF(file);
        if (!good)
            return false;
        session.files[i] = (struct swap_file){base, size};
        if (session.end < base + size)
            session.end = base + size;
    }
    return true;
}

bool is_data_request(const struct fuse_in_header *in)
{
    return in->nodeid - session.inode < session.files_count &&
           (in->opcode == FUSE_READ || in->opcode == FUSE_WRITE || in->opcode == FUSE_FALLOCATE);
}

/* From bytes of the file that *in* is about to those of the space of all files. What reaches beyond
 * its end is cut off, so that it never meets the next; what begins there begins at the end of all,
 * where nobody has anything. */
static void place_in_space(const struct fuse_in_header *in, uint64_t *offset, uint64_t *size)
{
    const struct swap_file *file = &session.files[in->nodeid - session.inode];
    if (*offset >= file->size) {
        *offset = session.end;
        return;
    }
    if (*size > file->size - *offset)
        *size = file->size - *offset;
    *offset += file->base;
}

static bool set(struct data_request *request, enum op op, size_t count, uint64_t first,
                uint64_t second, uint64_t third)
{
    *request = (struct data_request){op, count, {first, second, third}};
    return true;
}

static bool decode_as_sent(const struct fuse_in_header *in, size_t length,
                           struct data_request *request)
{
    const void *body = in + 1;
    size_t body_size = length - sizeof(*in);

    switch (in->opcode) {
    case FUSE_READ: {
        const struct fuse_read_in *arg = body;
        return body_size >= sizeof(*arg) && arg->size <= session.bytes_max &&
               set(request, OP_READ, 2, arg->offset, arg->size, 0);
    }
    case FUSE_WRITE: {
        const struct fuse_write_in *arg = body;
        return body_size >= sizeof(*arg) && arg->size <= body_size - sizeof(*arg) &&
               set(request, OP_WRITE, 2, arg->offset, arg->size, 0);
    }
    default: {
        const struct fuse_fallocate_in *arg = body;
        return body_size >= sizeof(*arg) &&
               set(request, OP_FALLOCATE, 3, arg->mode, arg->offset, arg->length);
    }
    }
}

/* Decodes a data request; false when its sizes are not sound. */
bool decode(const struct fuse_in_header *in, size_t length, struct data_request *request)
{
    if (!decode_as_sent(in, length, request))
        return false;
    uint64_t *range = request->arguments + (request->op == OP_FALLOCATE);
    place_in_space(in, &range[0], &range[1]);
    return true;
}

/* Answers one request; 0 or an errno value. ENOENT: the kernel no longer waits for it. */
int reply(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof(header) + (error ? 0 : size)), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)data, size}};
    for (;;) {
        if (writev(session.dev_fd, iov, error || size == 0 ? 1 : 2) >= 0)
            return 0;
        if (errno != EINTR)
            return errno;
    }
}

/* Answers *op* with *result*: bytes moved, or a negative errno value. */
int reply_result(uint64_t unique, enum op op, long result, const void *data)
{
    if (result < 0)
        return reply(unique, (int)-result, NULL, 0);
    if (op == OP_READ)
        return reply(unique, 0, data, (size_t)result);
    if (op == OP_WRITE) {
        struct fuse_write_out out = {.size = (uint32_t)result};
        return reply(unique, 0, &out, sizeof(out));
    }
    return reply(unique, 0, NULL, 0);
}

/* ---- the session's opening, for the server that may have to resume it ---- */

/* Keeps the kernel's FUSE_INIT. */
void keep_init(const struct fuse_in_header *in, uint32_t length)
{
    if (in->opcode == FUSE_INIT && length + 2 * sizeof(length) <= (size_t)session.init.len) {
        memcpy((char *)session.init.buf + sizeof(length), in, length);
        memcpy(session.init.buf, &length, sizeof(length));
    }
}

/* libfuse wants FUSE_INIT before anything else, and the kernel sends it once. The one that it
 * sent to an earlier server is played again, under a number that the kernel does not know: it
 * drops the answer (ENOENT), which libfuse takes for a withdrawn request. */
PyObject *session_replay_init(PyObject *self, PyObject *unused)
{
    struct {
        struct fuse_in_header header;
        char body[INIT_BYTES_MAX];
    } request;
    uint32_t length;

    memcpy(&length, session.init.buf, sizeof(length));
    if (length < sizeof(request.header) || length > sizeof(request) ||
        length + 2 * sizeof(length) > (size_t)session.init.len) {
        PyErr_SetString(PyExc_ValueError, "no FUSE_INIT was kept");
        return NULL;
    }
    memcpy(&request, (const char *)session.init.buf + sizeof(length), length);
    request.header.unique = UINT64_MAX - 1;
    if (send(session.pair_loop, &request, length, MSG_NOSIGNAL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

PyObject *session_resend(PyObject *self, PyObject *unused)
{
    struct fuse_out_header header = {
        .len = sizeof(header), .error = FUSE_NOTIFY_RESEND_CODE, .unique = 0};
    if (write(session.dev_fd, &header, sizeof(header)) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static size_t max_pages(void)
{
    unsigned pages = DEFAULT_MAX_PAGES, limit = 0;
    FILE *file = fopen("/proc/sys/fs/fuse/max_pages_limit", "r"); /* kernel >= 6.13 */
    if (file != NULL) {
        if (fscanf(file, "%u", &limit) == 1 && limit > pages)
            pages = limit;
        fclose(file);
    }
    return pages;
}

/* The largest request of this session: every server must offer what the first one did, whatever
 * became of the sysctl since. It is kept behind the FUSE_INIT, in the last bytes of its place. */
size_t session_bytes(void)
{
    uint32_t pages;
    char *kept = (char *)session.init.buf + session.init.len - sizeof(pages);
    memcpy(&pages, kept, sizeof(pages));
    if (pages == 0) {
        pages = (uint32_t)max_pages();
        memcpy(kept, &pages, sizeof(pages));
    }
    return (size_t)pages * PAGE;
}
