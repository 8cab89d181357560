/*
 * Random writes of given data, for block.py. fio cannot do this: it writes one pattern, or bytes
 * of its own making, and what a compressor costs depends on what it is given.
 *
 * Writes BLOCK_BYTES at random multiples of it for MILLISECONDS, with direct I/O, DEPTH at once.
 * Each write takes its bytes straight from a random page of DATA on. Depth 1 is pwrite(2), more is
 * the kernel's AIO, like the engines psync and libaio of fio, which does the reads. Prints one
 * line of JSON.
 *
 *     cc -O2 mix_writer.c -o mix_writer
 *     ./mix_writer DEVICE DATA BLOCK_BYTES DEPTH MILLISECONDS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define DEPTH_MAX 256
#define SAMPLES_MAX (64u << 20)

static struct {
	int fd;
	char *data;
	uint64_t starts; /* pages of the data that a block may start at */
	uint64_t blocks; /* of the device */
	uint64_t block_bytes;
	unsigned depth;
	uint64_t end_ns;
} job;

static uint32_t *samples; /* latencies in ns; what is not touched costs nothing */
static uint64_t sample_count;
static uint64_t random_state = 0x9e3779b97f4a7c15;

static void die(const char *what, int error)
{
	fprintf(stderr, "mix_writer: %s: %s\n", what, strerror(error));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t random_below(uint64_t limit) /* xorshift64 */
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

static char *random_data(void)
{
	return job.data + random_below(job.starts) * PAGE_BYTES;
}

static off_t random_place(void)
{
	return (off_t)(random_below(job.blocks) * job.block_bytes);
}

static void note(uint64_t started_ns, uint64_t ended_ns, int64_t written)
{
	uint64_t took = ended_ns - started_ns;

	if (written != (int64_t)job.block_bytes)
		die("write", written < 0 ? (int)-written : EIO);
	if (sample_count == SAMPLES_MAX)
		die("too many writes, take less time", ENOSPC);
	samples[sample_count++] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
}

static void write_one_at_a_time(void)
{
	uint64_t started_ns, ended_ns;

	do {
		char *data = random_data();
		off_t place = random_place();
		ssize_t written;

		started_ns = now_ns();
		written = pwrite(job.fd, data, job.block_bytes, place);
		ended_ns = now_ns();
		note(started_ns, ended_ns, written < 0 ? -errno : written);
	} while (ended_ns < job.end_ns);
}

static void submit(aio_context_t context, struct iocb *request)
{
	request->aio_buf = (uint64_t)(uintptr_t)random_data();
	request->aio_offset = random_place();
	request->aio_data = now_ns();
	if (syscall(SYS_io_submit, context, 1L, &request) != 1)
		die("io_submit", errno);
}

static void write_many_at_once(void)
{
	static struct iocb requests[DEPTH_MAX];
	static struct io_event events[DEPTH_MAX];
	aio_context_t context = 0;
	unsigned under_way = 0;

	if (syscall(SYS_io_setup, job.depth, &context) != 0)
		die("io_setup", errno);
	for (; under_way < job.depth; under_way++) {
		requests[under_way].aio_fildes = (uint32_t)job.fd;
		requests[under_way].aio_lio_opcode = IOCB_CMD_PWRITE;
		requests[under_way].aio_nbytes = job.block_bytes;
		submit(context, &requests[under_way]);
	}
	while (under_way > 0) {
		long ended = syscall(SYS_io_getevents, context, 1L, (long)job.depth, events, NULL);
		uint64_t ended_ns = now_ns();

		if (ended < 0)
			die("io_getevents", errno);
		for (long i = 0; i < ended; i++) {
			note(events[i].data, ended_ns, events[i].res);
			if (ended_ns < job.end_ns)
				submit(context, (struct iocb *)(uintptr_t)events[i].obj);
			else
				under_way--;
		}
	}
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static void open_all(char **argv)
{
	int data_fd = open(argv[2], O_RDONLY | O_CLOEXEC);
	struct stat stat;
	off_t device_bytes;

	if (data_fd < 0 || fstat(data_fd, &stat) != 0)
		die(argv[2], errno);
	job.data = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, data_fd, 0);
	samples = mmap(NULL, SAMPLES_MAX * sizeof(*samples), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (job.data == MAP_FAILED || samples == MAP_FAILED)
		die("mmap", errno);
	job.fd = open(argv[1], O_WRONLY | O_DIRECT | O_CLOEXEC);
	if (job.fd < 0)
		die(argv[1], errno);
	device_bytes = lseek(job.fd, 0, SEEK_END);
	if (device_bytes < (off_t)job.block_bytes || stat.st_size < (off_t)job.block_bytes)
		die("device or data smaller than a block", EINVAL);
	job.blocks = (uint64_t)device_bytes / job.block_bytes;
	job.starts = ((uint64_t)stat.st_size - job.block_bytes) / PAGE_BYTES + 1;
}

int main(int argc, char **argv)
{
	uint64_t started_ns, took_ns;

	if (argc == 6) {
		job.block_bytes = strtoull(argv[3], NULL, 10);
		job.depth = (unsigned)strtoul(argv[4], NULL, 10);
	}
	if (argc != 6 || job.block_bytes == 0 || job.block_bytes % PAGE_BYTES != 0 ||
	    job.depth == 0 || job.depth > DEPTH_MAX) {
		fprintf(stderr, "usage: %s DEVICE DATA BLOCK_BYTES DEPTH MILLISECONDS\n", argv[0]);
		return 2;
	}
	open_all(argv);
	started_ns = now_ns();
	random_state ^= started_ns;
	job.end_ns = started_ns + strtoull(argv[5], NULL, 10) * 1000000u;
	if (job.depth == 1)
		write_one_at_a_time();
	else
		write_many_at_once();
	took_ns = now_ns() - started_ns;
	qsort(samples, sample_count, sizeof(*samples), compare);
	printf("{\"writes\": %llu, \"took_ns\": %llu, \"p50_ns\": %u, \"p99_ns\": %u}\n",
	       (unsigned long long)sample_count, (unsigned long long)took_ns,
	       samples[sample_count / 2], samples[sample_count - 1 - sample_count / 100]);
	return 0;
}
