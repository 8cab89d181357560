/*
 * What the sources of the _core extension know of each other.
 */
#ifndef SWAPFS_CORE_H
#define SWAPFS_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* The layer's lock (lock.c). */
typedef struct {
    PyObject_HEAD
    pthread_mutex_t mutex;
    _Atomic unsigned waiting; /* requests and threads that wait for it, or for the GIL */
    _Atomic uint64_t reads;   /* requests to read that have had it */
    /* Under the GIL: when `reads` last grew, and when whoever had the lock last let others go. */
    uint64_t reads_seen, read_ns, let_go_ns;
} Lock;

/* For threads without the GIL; an errno value. */
int lock_enter(Lock *self);
void lock_leave(Lock *self);

extern PyTypeObject DisksType, LockType, ReaderType, WriterType, MarkerType, DecoderType,
    RecoderType, SealerType, TrackedType;
struct swapfs_seal;
/* What a Sealer seals with, as long as it lives; NULL with an exception: it is none. */
struct swapfs_seal *sealer_seal(PyObject *sealer);

extern PyMethodDef check_functions[], store_functions[], rebuild_functions[], log_functions[],
    policy_functions[], relocate_functions[];

#endif
