/*
 * Reads that overtake a write.
 *
 * The kernel writes up to 1 MiB at a time, which takes a millisecond to compress. A process that
 * waits for a page would wait for all of it. So a handler calls overtake() between the steps of a
 * long write: requests to read that have come meanwhile are answered there and then, if what they
 * want is in memory. The first request that is anything else stays in the other buffer, and is the
 * next to be served: no other order changes.
 *
 * A read and a write of one page at the same time have no order that the kernel relies on: it does
 * not read a page that it still writes. Each page changes by one store (I3), so a read that
 * overtakes finds each page as it was or as it will be.
 *
 * The descriptor is made not to block meanwhile, for /dev/fuse knows no other way to look: poll(2)
 * says that there is a request, but it may have been withdrawn by the time of the read(2). Its
 * flags are shared with those who hold it for the next server, who therefore begins with
 * requests_block().
 */
#include "session.h"

#include <fcntl.h>
#include <unistd.h>

#define HEADERS (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

static struct {
    unsigned current; /* the buffer of the request that is being served */
    ssize_t waiting;  /* length of the request that waits in the other one; 0: none does */
    bool serving;     /* a request is in Python's hands, in the session's thread */
    pthread_t thread;
} order;

/* So placed that the payload of a write begins on a page. */
static char *place_in(unsigned buffer)
{
    return session.in_maps[buffer] + PAGE - HEADERS;
}

static ssize_t read_into(unsigned buffer)
{
    return read(session.dev_fd, place_in(buffer), HEADERS + session.bytes_max);
}

static void set_blocking(bool blocking)
{
    int flags = fcntl(session.dev_fd, F_GETFL);
    if (flags >= 0)
        fcntl(session.dev_fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

/* Before the first request: a server that died while it looked may have left the flag behind. */
void requests_block(void)
{
    order.thread = pthread_self();
    set_blocking(true);
}

/* The next request and its length, or a negative result with errno; waits for one to come. */
ssize_t next_request(const struct fuse_in_header **in)
{
    ssize_t length = order.waiting;
    if (length > 0)
        order.current ^= 1;
    else
        length = read_into(order.current);
    order.waiting = 0;
    *in = (const struct fuse_in_header *)place_in(order.current);
    return length;
}

/* Whether one was taken that nobody serves yet; who stops must serve it first. */
bool request_waits(void)
{
    return order.waiting > 0;
}

unsigned current_buffer(void)
{
    return order.current;
}

void handler_runs(bool runs)
{
    order.serving = runs;
}

/* Serves what is in the other buffer if that can be done now; else it waits. */
static void serve_or_keep(ssize_t length)
{
    const struct fuse_in_header *in = (const struct fuse_in_header *)place_in(order.current ^ 1);
    if ((size_t)length < sizeof(*in) || in->len != (size_t)length ||
        !serve_without_python(in, (size_t)length))
        order.waiting = length;
}

PyObject *session_overtake(PyObject *self, PyObject *unused)
{
    if (!order.serving || order.waiting > 0 || !pthread_equal(order.thread, pthread_self()))
        Py_RETURN_NONE;
    set_blocking(false);
    ssize_t length = read_into(order.current ^ 1); /* with the GIL: it does not wait */
    if (length > 0) {
        Py_BEGIN_ALLOW_THREADS
        do
            serve_or_keep(length);
        while (order.waiting == 0 && (length = read_into(order.current ^ 1)) > 0);
        Py_END_ALLOW_THREADS
    }
    set_blocking(true);
    Py_RETURN_NONE;
}
