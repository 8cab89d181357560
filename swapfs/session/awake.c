/*
 * CPUs kept from sleeping while pages are read: the PM QoS file /dev/cpu_dma_latency held at 0.
 *
 * A swap-in goes from the process to the loop device's thread, to this one, and back. On an idle
 * machine each of them wakes a CPU that sleeps, which costs an interrupt and in a virtual machine
 * 20 to 50 us each: half of what a random swap-in takes. So the first read holds the file at 0,
 * and when none has come for a while it is given back. In between a read costs no system call.
 *
 * All of it happens in the session's thread, so nothing here is locked. While it holds, a timer
 * interrupts that thread (or the read(2) that it waits in) to look whether it still should; it
 * fires again and again, as one that comes just before the read(2) is lost. The descriptor's end
 * gives back what it holds, so no death of the server leaves CPUs awake.
 *
 * Source: Documentation/power/pm_qos_interface.rst, kernel/power/qos.c (the value is an s32 in us;
 * -1 is "no wish").
 */
#include "session.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOK_SIGNAL (SIGRTMIN + 4)
#define NO_WISH (-1)
#define NS_PER_S 1000000000u

static struct {
    /* set by keep(), fd last: it is what makes them count */
    bool always;
    uint64_t linger_ns;
    _Atomic int fd;
    /* the session thread's own */
    timer_t timer;
    bool has_timer;
    uint64_t read_ns;
    /* shown */
    _Atomic bool held;
    _Atomic uint64_t holds, held_since_ns, held_before_ns;
    _Atomic int error;
} awake = {.fd = -1};

static volatile sig_atomic_t is_time_to_look;

static void on_look_signal(int signal)
{
    is_time_to_look = 1;
}

/* A wish that cannot be written is not tried again: what it is for works without. */
static bool wish(int32_t us)
{
    int fd = atomic_load(&awake.fd);
    if (fd >= 0 && write(fd, &us, sizeof(us)) == (ssize_t)sizeof(us))
        return true;
    atomic_store(&awake.error, errno);
    atomic_store(&awake.fd, -1);
    return false;
}

static void set_timer(uint64_t period_ns)
{
    struct timespec period = {.tv_sec = (time_t)(period_ns / NS_PER_S),
                              .tv_nsec = (long)(period_ns % NS_PER_S)};
    struct itimerspec setting = {.it_value = period, .it_interval = period};
    timer_settime(awake.timer, 0, &setting, NULL);
}

static void hold(uint64_t now)
{
    if (!wish(0))
        return;
    atomic_store(&awake.held_since_ns, now);
    atomic_fetch_add(&awake.holds, 1);
    atomic_store(&awake.held, true);
}

static void give_back(uint64_t now)
{
    wish(NO_WISH);
    set_timer(0);
    atomic_store(&awake.held, false);
    atomic_fetch_add(&awake.held_before_ns, now - atomic_load(&awake.held_since_ns));
}

/* Begins in the thread whose reads are to be noted. Without a timer nothing is ever held. */
void awake_begin(void)
{
    struct sigaction action = {.sa_handler = on_look_signal}; /* no SA_RESTART: ends a read(2) */
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = LOOK_SIGNAL};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    sigaction(LOOK_SIGNAL, &action, NULL);
    awake.has_timer = timer_create(CLOCK_MONOTONIC, &event, &awake.timer) == 0;
    if (!awake.has_timer)
        atomic_store(&awake.error, errno);
}

void awake_end(void)
{
    if (!awake.has_timer)
        return;
    if (atomic_load(&awake.held) && !awake.always)
        give_back(now_ns());
    timer_delete(awake.timer);
    awake.has_timer = false;
}

/* Notes that a request to read came at *at_ns*; after its answer, so that it does not wait. */
void awake_read(uint64_t at_ns)
{
    awake.read_ns = at_ns;
    if (atomic_load_explicit(&awake.held, memory_order_relaxed) ||
        atomic_load_explicit(&awake.fd, memory_order_acquire) < 0 || awake.always ||
        !awake.has_timer)
        return;
    hold(at_ns);
    if (atomic_load(&awake.held))
        set_timer(awake.linger_ns);
}

/* Gives back what is held once no read has come for long enough; cheap unless the timer fired. */
void awake_look(void)
{
    if (!is_time_to_look)
        return;
    is_time_to_look = 0;
    uint64_t now = now_ns();
    if (atomic_load(&awake.held) && !awake.always && now - awake.read_ns >= awake.linger_ns)
        give_back(now);
}

PyObject *session_keep_awake(PyObject *self, PyObject *args)
{
    int fd, always;
    double linger_s;
    if (!PyArg_ParseTuple(args, "idp", &fd, &linger_s, &always))
        return NULL;
    if (atomic_load(&awake.fd) >= 0) {
        PyErr_SetString(PyExc_RuntimeError, "CPUs are kept awake already");
        return NULL;
    }
    if (fd < 0 || !(linger_s > 0 && linger_s <= 3600)) {
        PyErr_SetString(PyExc_ValueError, "keep_awake() needs a descriptor and a time");
        return NULL;
    }
    awake.always = always;
    awake.linger_ns = (uint64_t)(linger_s * NS_PER_S);
    atomic_store(&awake.error, 0);
    atomic_store_explicit(&awake.fd, fd, memory_order_release);
    if (always)
        hold(now_ns());
    Py_RETURN_NONE;
}

PyObject *session_awake(PyObject *self, PyObject *unused)
{
    bool held = atomic_load(&awake.held);
    uint64_t ns = atomic_load(&awake.held_before_ns);
    if (held)
        ns += now_ns() - atomic_load(&awake.held_since_ns);
    return Py_BuildValue("{s:O,s:K,s:d,s:i}", "held", held ? Py_True : Py_False, "holds",
                         atomic_load(&awake.holds), "held_s", (double)ns / NS_PER_S, "error",
                         atomic_load(&awake.error));
}
