/*
 * Writes down every store to a mapping, by Python and C alike and without a hook in either: the
 * mapping is read-only, so a store faults; it is then let through alone, under the trap flag, and
 * the page is copied to the tape as it is after it. One thread, amd64.
 *
 * A `rep` string instruction would trap once a byte; it is carried out here, in two halves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define PAGE 4096u
#define TRAP_FLAG 0x100

/* A store may reach into a second page. */
struct record {
    uint64_t offset, pages, instruction;
    char after[2 * PAGE];
};

static struct {
    char *base;
    size_t size;
    struct record *records;
    size_t max;
    char *open; /* the page that is writable for the instruction under way */
    uint64_t offset, pages, instruction;
    struct sigaction old_fault, old_trap;
} tape;

size_t tape_count;        /* stores written down */
const char *tape_problem; /* why some are not */

static void protect(int protection)
{
    mprotect(tape.open, tape.pages * PAGE, protection);
}

static void write_down(void)
{
    if (tape_count == tape.max) {
        tape_problem = "the tape is full";
        return;
    }
    struct record *record = &tape.records[tape_count];
    record->offset = tape.offset;
    record->pages = tape.pages;
    record->instruction = tape.instruction;
    memcpy(record->after, tape.open, tape.pages * PAGE);
    tape_count++;
}

/* Bytes a step of the `rep movs` or `rep stos` at *code*, 0 if it is another instruction. */
static unsigned rep_width(const uint8_t *code, unsigned *length, bool *copies)
{
    if (code[0] != 0xF3)
        return 0;
    bool wide = code[1] == 0x48;
    uint8_t opcode = code[1 + wide];
    if ((opcode & 0xF4) != 0xA4 || (opcode & 0x0A) == 0x08) /* A4 A5: movs; AA AB: stos */
        return 0;
    *length = 2u + wide;
    *copies = opcode < 0xA8;
    return opcode & 1 ? (wide ? 8 : 4) : 1;
}

static void do_steps(greg_t *r, size_t steps, unsigned width, bool copies)
{
    char *to = (char *)r[REG_RDI];
    size_t bytes = steps * width;
    if (copies)
        memmove(to, (const char *)r[REG_RSI], bytes);
    else
        for (size_t at = 0; at < bytes; at += width)
            memcpy(to + at, &r[REG_RAX], width);
    r[REG_RDI] += (greg_t)bytes;
    r[REG_RSI] += copies ? (greg_t)bytes : 0;
    r[REG_RCX] -= (greg_t)steps;
}

/* Carries *width* bytes times RCX out, half by half, a page of the mapping after the other. */
static void do_rep(greg_t *r, unsigned width, bool copies)
{
    size_t half = ((size_t)r[REG_RCX] + 1) / 2;
    while (r[REG_RCX] != 0) {
        char *to = (char *)r[REG_RDI];
        size_t left = PAGE - ((uintptr_t)to & (PAGE - 1));
        size_t steps = left / width ? left / width : 1;
        if (steps > (size_t)r[REG_RCX])
            steps = (size_t)r[REG_RCX];
        if (steps > half)
            steps = half;
        tape.offset = (uint64_t)(to - tape.base);
        tape.open = tape.base + tape.offset / PAGE * PAGE;
        tape.pages = tape.open + PAGE < tape.base + tape.size ? 2 : 1;
        protect(PROT_READ | PROT_WRITE);
        do_steps(r, steps, width, copies);
        write_down();
        protect(PROT_READ);
    }
    tape.open = NULL;
}

static void give_up(const char *problem)
{
    tape_problem = problem;
    mprotect(tape.base, tape.size, PROT_READ | PROT_WRITE);
    tape.open = NULL;
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    int saved = errno;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    char *address = info->si_addr;
    unsigned length, width;
    bool copies;

    if (address < tape.base || address >= tape.base + tape.size) {
        sigaction(SIGSEGV, &tape.old_fault, NULL); /* a real one: let it happen again */
    } else if (tape.open != NULL) {
        give_up("one instruction stored to places far apart");
    } else if ((width = rep_width((const uint8_t *)r[REG_RIP], &length, &copies)) != 0) {
        tape.instruction = (uint64_t)r[REG_RIP];
        do_rep(r, width, copies);
        r[REG_RIP] += length;
    } else {
        tape.instruction = (uint64_t)r[REG_RIP];
        tape.offset = (uint64_t)(address - tape.base);
        tape.open = tape.base + tape.offset / PAGE * PAGE;
        tape.pages = tape.open + PAGE < tape.base + tape.size ? 2 : 1;
        protect(PROT_READ | PROT_WRITE);
        r[REG_EFL] |= TRAP_FLAG;
    }
    errno = saved;
}

static void on_trap(int signal, siginfo_t *info, void *context)
{
    int saved = errno;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
    if (tape.open != NULL) {
        write_down();
        protect(PROT_READ);
        tape.open = NULL;
    }
    errno = saved;
}

/* Starts: *records* has room for *max* stores to the *size* bytes at *base*. 0, or an errno. */
int tape_start(char *base, size_t size, struct record *records, size_t max)
{
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct sigaction trap = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigfillset(&fault.sa_mask);
    sigfillset(&trap.sa_mask);
    tape.base = base;
    tape.size = size;
    tape.records = records;
    tape.max = max;
    tape.open = NULL;
    tape_count = 0;
    tape_problem = NULL;
    if (sigaction(SIGTRAP, &trap, &tape.old_trap) < 0 ||
        sigaction(SIGSEGV, &fault, &tape.old_fault) < 0 || mprotect(base, size, PROT_READ) < 0)
        return errno;
    return 0;
}

void tape_stop(void)
{
    mprotect(tape.base, tape.size, PROT_READ | PROT_WRITE);
    sigaction(SIGSEGV, &tape.old_fault, NULL);
    sigaction(SIGTRAP, &tape.old_trap, NULL);
}
