/*
 * The two libfuse functions that pyfuse3 finds here.
 *
 * How pyfuse3 comes to read from the pair: it finds its session's descriptor with
 * fuse_session_fd() and reads requests with fuse_session_receive_buf(). This module defines
 * both names. Loaded with RTLD_GLOBAL before pyfuse3, its definitions are the ones that the
 * dynamic linker binds. Until arm() is called they pass through to libfuse. Neither function is
 * versioned differently between libfuse 3.2 and 3.17 (fuse_session_new is, so it is left alone).
 */
#include "session.h"

#define FUSE_USE_VERSION 31
#include <fuse3/fuse_lowlevel.h>

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

/* What pyfuse3 may be handed: names and xattrs, never page data. */
#define NAMESPACE_BYTES (192u * 1024u)
#define EXPORTED __attribute__((visibility("default")))

static void *real(const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    if (symbol == NULL) {
        fprintf(stderr, "swapfs: libfuse3 has no %s\n", name);
        abort(); /* a broken installation: nothing is mounted yet */
    }
    return symbol;
}

EXPORTED int fuse_session_fd(struct fuse_session *se)
{
    int (*real_fd)(struct fuse_session *) = real("fuse_session_fd");
    int fd = real_fd(se);
    if (!session.armed)
        return fd;
    session.dev_fd = fd;
    return session.pair_pyfuse3;
}

EXPORTED int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
    if (!session.armed) {
        int (*real_receive)(struct fuse_session *, struct fuse_buf *) =
            real("fuse_session_receive_buf");
        return real_receive(se, buf);
    }
    if (buf->mem == NULL && (buf->mem = malloc(NAMESPACE_BYTES)) == NULL) /* pyfuse3 frees it */
        return -ENOMEM;
    ssize_t n = recv(session.pair_pyfuse3, buf->mem, NAMESPACE_BYTES, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN ? -EINTR : -errno; /* pyfuse3 tries again after EINTR */
    if (n == 0) /* the loop has ended; without this pyfuse3 spawns readers for ever */
        fuse_session_exit(se);
    buf->size = (size_t)n;
    buf->flags = 0;
    return (int)n;
}
