/*
 * Cuts a FUSE connection when a run takes too long, so that a server that hangs while the machine
 * swaps on it costs the pages on it and not the machine.
 *
 *     guard SECONDS ABORT     ABORT: the file connections/N/abort of a mounted fusectl
 *
 * Locked in memory and in real time: it must run when nothing else does. Killed in time, it does
 * nothing. Exit status 3: it had to cut.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sched_param first = {.sched_priority = 50};
    if (argc != 3 || atoi(argv[1]) < 1) {
        fprintf(stderr, "usage: guard SECONDS ABORT\n");
        return 2;
    }
    int fd = open(argv[2], O_WRONLY);
    if (fd < 0 || mlockall(MCL_CURRENT | MCL_FUTURE) < 0 ||
        sched_setscheduler(0, SCHED_FIFO, &first) < 0) {
        perror(argv[2]);
        return 1;
    }
    printf("guarding\n");
    fflush(stdout);
    struct timespec rest = {.tv_sec = atoi(argv[1])};
    while (nanosleep(&rest, &rest) < 0)
        ;
    if (write(fd, "1", 1) != 1)
        return 1;
    return 3;
}
