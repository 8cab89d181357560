/*
 * The floor that swapfs is measured against: a FUSE server that does nothing.
 *
 * One file, MOUNTPOINT/swap, of the given size. Reads are answered with zeros from one static
 * buffer, writes are accepted and dropped, fallocate succeeds. Single-threaded libfuse3
 * low-level loop, direct_io (no page cache), foreground; ends on SIGINT, SIGTERM or unmount.
 *
 *     cc -O2 noop_server.c -o noop_server $(pkg-config --cflags --libs fuse3)
 *     ./noop_server MOUNTPOINT SIZE_BYTES
 */
#define FUSE_USE_VERSION 34

#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES 4096
#define SWAP_INODE 2
#define SWAP_NAME "swap"
#define FOREVER_S 86400.0
/* libfuse negotiates max_pages from max_write, which bounds reads too: no read is longer. */
#define REQUEST_BYTES_MAX (1 << 20)

static const char zeros[REQUEST_BYTES_MAX];
static off_t swap_bytes;

static int fill_attr(fuse_ino_t ino, struct stat *attr)
{
	memset(attr, 0, sizeof(*attr));
	attr->st_ino = ino;
	attr->st_blksize = BLOCK_BYTES;
	if (ino == FUSE_ROOT_ID) {
		attr->st_mode = S_IFDIR | 0700;
		attr->st_nlink = 2;
		return 0;
	}
	if (ino == SWAP_INODE) {
		attr->st_mode = S_IFREG | 0600;
		attr->st_nlink = 1;
		attr->st_size = swap_bytes;
		attr->st_blocks = swap_bytes / 512;
		return 0;
	}
	return ENOENT;
}

static void noop_init(void *userdata, struct fuse_conn_info *conn)
{
	(void)userdata;
	conn->max_write = REQUEST_BYTES_MAX;
	/* Splice would put a pipe between us and the kernel: more work than two copies of a page. */
	conn->want &= ~(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void noop_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {
		.ino = SWAP_INODE, .attr_timeout = FOREVER_S, .entry_timeout = FOREVER_S
	};

	if (parent != FUSE_ROOT_ID || strcmp(name, SWAP_NAME) != 0) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill_attr(SWAP_INODE, &entry.attr);
	fuse_reply_entry(req, &entry);
}

static void noop_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat attr;
	int error = fill_attr(ino, &attr);

	(void)fi;
	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_attr(req, &attr, FOREVER_S);
}

static void noop_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (ino != SWAP_INODE) {
		fuse_reply_err(req, EISDIR);
		return;
	}
	fi->direct_io = 1;
	fuse_reply_open(req, fi);
}

static void noop_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
		      struct fuse_file_info *fi)
{
	size_t length = size;

	(void)ino;
	(void)fi;
	if (offset >= swap_bytes)
		length = 0;
	else if ((off_t)length > swap_bytes - offset)
		length = (size_t)(swap_bytes - offset);
	if (length > sizeof(zeros)) /* cannot happen, see REQUEST_BYTES_MAX; never read past it */
		fuse_reply_err(req, EIO);
	else
		fuse_reply_buf(req, zeros, length);
}

static void noop_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size,
		       off_t offset, struct fuse_file_info *fi)
{
	(void)ino;
	(void)data;
	(void)fi;
	if (offset > swap_bytes || (off_t)size > swap_bytes - offset)
		fuse_reply_err(req, ENOSPC);
	else
		fuse_reply_write(req, size);
}

static void noop_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
			   struct fuse_file_info *fi)
{
	(void)ino;
	(void)mode;
	(void)offset;
	(void)length;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void noop_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void noop_statfs(fuse_req_t req, fuse_ino_t ino)
{
	/* loop offers discard only when f_bsize is set */
	struct statvfs stat = {
		.f_bsize = BLOCK_BYTES,
		.f_frsize = BLOCK_BYTES,
		.f_blocks = (fsblkcnt_t)(swap_bytes / BLOCK_BYTES),
		.f_files = 2,
		.f_namemax = 255,
	};

	(void)ino;
	fuse_reply_statfs(req, &stat);
}

static const struct fuse_lowlevel_ops noop_ops = {
	.init = noop_init,
	.lookup = noop_lookup,
	.getattr = noop_getattr,
	.open = noop_open,
	.read = noop_read,
	.write = noop_write,
	.fallocate = noop_fallocate,
	.fsync = noop_fsync,
	.statfs = noop_statfs,
};

static int serve(struct fuse_session *session, const char *mountpoint)
{
	int result = 1;

	if (fuse_set_signal_handlers(session) != 0)
		return 1;
	if (fuse_session_mount(session, mountpoint) == 0) {
		result = fuse_session_loop(session);
		fuse_session_unmount(session);
	}
	fuse_remove_signal_handlers(session);
	/* the loop's result is the signal number that ended it, which is a normal end here */
	return result < 0;
}

int main(int argc, char **argv)
{
	char *end = NULL;
	char *fuse_argv[] = { argv[0], "-o", "fsname=swapfs:noop,subtype=noop", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, fuse_argv);
	struct fuse_session *session;
	int result;

	if (argc == 3)
		swap_bytes = strtoll(argv[2], &end, 10);
	if (argc != 3 || *end != '\0' || swap_bytes <= 0 || swap_bytes % BLOCK_BYTES) {
		fprintf(stderr, "usage: %s MOUNTPOINT SIZE_BYTES (a multiple of %d)\n", argv[0],
			BLOCK_BYTES);
		return 2;
	}
	session = fuse_session_new(&args, &noop_ops, sizeof(noop_ops), NULL);
	if (!session)
		return 1;
	result = serve(session, argv[1]);
	fuse_session_destroy(session);
	fuse_opt_free_args(&args);
	return result;
}
