/*
 * How long data requests took, by operation and by the slowest thing that they waited for.
 */
#include "session.h"

static const char *const slowest_names[SLOWEST_COUNT] = {"memory", "file"};

/* Upper bounds of the latency buckets, in ns; one more bucket takes the rest. */
static const uint64_t bounds_ns[] = {
    10000,    20000,    50000,     100000,    200000,    500000,     1000000,    2000000,
    5000000,  10000000, 20000000,  50000000,  100000000, 200000000,  500000000,  1000000000,
};
#define BOUNDS (sizeof(bounds_ns) / sizeof(bounds_ns[0]))

static struct series {
    _Atomic uint64_t counts[BOUNDS + 1];
    _Atomic uint64_t sum_ns;
} latency[OP_COUNT][SLOWEST_COUNT];

void observe(enum op op, enum slowest slowest, uint64_t start_ns)
{
    uint64_t ns = now_ns() - start_ns;
    size_t i = 0;
    while (i < BOUNDS && ns > bounds_ns[i])
        i++;
    atomic_fetch_add_explicit(&latency[op][slowest].counts[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&latency[op][slowest].sum_ns, ns, memory_order_relaxed);
}

static PyObject *one_series(enum op op, enum slowest slowest)
{
    struct series *s = &latency[op][slowest];
    PyObject *counts = PyList_New(BOUNDS + 1);
    if (counts == NULL)
        return NULL;
    for (size_t i = 0; i <= BOUNDS; i++) {
        PyObject *count = PyLong_FromUnsignedLongLong(atomic_load(&s->counts[i]));
        if (count == NULL) {
            Py_DECREF(counts);
            return NULL;
        }
        PyList_SET_ITEM(counts, (Py_ssize_t)i, count);
    }
    return Py_BuildValue("{s:s,s:s,s:N,s:d}", "op", op_names[op], "tier", slowest_names[slowest],
                         "counts", counts, "sum_s", (double)atomic_load(&s->sum_ns) / 1e9);
}

static PyObject *all_series(void)
{
    PyObject *series = PyList_New(0);
    for (int op = 0; series != NULL && op < OP_COUNT; op++)
        for (int slowest = 0; series != NULL && slowest < SLOWEST_COUNT; slowest++) {
            PyObject *one = one_series(op, slowest);
            if (one == NULL || PyList_Append(series, one) < 0)
                Py_CLEAR(series);
            Py_XDECREF(one);
        }
    return series;
}

PyObject *session_latency(PyObject *self, PyObject *unused)
{
    PyObject *bounds = PyList_New(BOUNDS), *series = all_series();
    for (size_t i = 0; bounds != NULL && i < BOUNDS; i++) {
        PyObject *bound = PyFloat_FromDouble((double)bounds_ns[i] / 1e9);
        if (bound == NULL)
            Py_CLEAR(bounds);
        else
            PyList_SET_ITEM(bounds, (Py_ssize_t)i, bound);
    }
    if (bounds == NULL || series == NULL) {
        Py_XDECREF(bounds);
        Py_XDECREF(series);
        return NULL;
    }
    return Py_BuildValue("{s:N,s:N}", "bounds_s", bounds, "series", series);
}
