/*
 * Blobs from one codec to another, many at a time, without the GIL and without the layer's lock.
 */
#include "core.h"

#include <errno.h>
#include <lz4.h>
#include <sched.h>
#include <string.h>

#include "buffers.h"
#include "check.h"
#include "decode.h"
#include "word.h"

#define TRIAL_STACK_BYTES (64u << 10)

typedef struct {
    PyObject_HEAD
    struct decoder decoder;
    void *workspace;
    ZSTD_CCtx *context;
    bool idle;
    char page[PAGE_BYTES], blob[PAGE_BYTES];
} Recoder;

/* ---- giving way ---- */

/* A thread that computes for nobody puts itself below all others, and holds nothing meanwhile; the
 * threads of a server run under SCHED_FIFO, and would keep all else off their CPU. Returns the
 * policy to go back to, or -1. */
static int sink(struct sched_param *was)
{
    const struct sched_param none = {0};
    int policy = sched_getscheduler(0);
    if (policy < 0 || sched_getparam(0, was) != 0 || sched_setscheduler(0, SCHED_IDLE, &none) != 0)
        return -1;
    return policy;
}

/* Somebody may have set it meanwhile (host/process_guards.py), and that is what holds. */
static void rise(int policy, const struct sched_param *was)
{
    if (policy >= 0 && (sched_getscheduler(0) & ~SCHED_RESET_ON_FORK) == SCHED_IDLE)
        sched_setscheduler(0, policy, was);
}

static void *try_it(void *comes_back)
{
    struct sched_param was;
    int policy = sink(&was);
    rise(policy, &was);
    *(bool *)comes_back = policy >= 0 && sched_getscheduler(0) == policy;
    return NULL;
}

/* Whether a thread that sinks comes back: not without CAP_SYS_NICE (user_check_sched_setscheduler()
 * in kernel/sched/syscalls.c), and it would hold the layer's lock where everybody else comes first. */
static bool can_sink(void)
{
    pthread_t thread;
    pthread_attr_t small;
    bool comes_back = false;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, TRIAL_STACK_BYTES); /* all of it is locked, and soon gone */
    if (pthread_create(&thread, &small, try_it, &comes_back) == 0)
        pthread_join(thread, NULL);
    pthread_attr_destroy(&small);
    return comes_back;
}

/* ---- one blob ---- */

static size_t compress(Recoder *self, unsigned codec, size_t longest)
{
    if (codec == CODEC_LZ4)
        return (size_t)LZ4_compress_default(self->page, self->blob, PAGE_BYTES, (int)longest);
    size_t length =
        ZSTD_compress2(self->context, self->blob, longest, self->page, PAGE_BYTES);
    return ZSTD_isError(length) ? 0 : length;
}

/* Returns what becomes of the draft of *blob*, which is put into *target* in its place; into no
 * more than *longest* bytes (0: fewer than before), else it stays and says so. */
static uint64_t recode_one(Recoder *self, char *blob, uint64_t draft, unsigned target,
                           size_t longest)
{
    unsigned codec = blob_codec(draft);
    size_t length = blob_length(draft);
    if (codec & CODEC_KEPT || codec == target)
        return draft;
    if (!check_holds(draft, blob) || !decode(&self->decoder, blob, length, codec, self->page))
        return KIND_LOST;
    size_t made = compress(self, target, longest ? longest : length - 1);
    if (made == 0)
        return draft | CODEC_KEPT << CODEC_SHIFT;
    memcpy(blob, self->blob, made);
    draft = IN_POOL | (uint64_t)target << CODEC_SHIFT | (uint64_t)(made - 1) << LENGTH_SHIFT;
    return check_sign(draft, blob);
}

/* Whether each blob, which may grow to *longest* bytes, is in its buffer. */
static bool fits(const Py_buffer *view, const uint64_t *drafts, const uint32_t *starts,
                 Py_ssize_t count, size_t longest)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t length = blob_length(drafts[i]), bytes = longest > length ? longest : length;
        if (bytes > (size_t)view->len || starts[i] > (size_t)view->len - bytes)
            return false;
    }
    return true;
}

static PyObject *recoder_recode(Recoder *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { VIEW, STARTS, DRAFTS, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;
    if (nargs != BUFFERS + 3) {
        PyErr_SetString(PyExc_TypeError, "recode(view, starts, drafts, count, deep, longest)");
        return NULL;
    }
    Py_ssize_t count = PyLong_AsSsize_t(args[3]), longest = PyLong_AsSsize_t(args[5]);
    int deep = PyObject_IsTrue(args[4]);
    if (PyErr_Occurred() || !buffers_get(args, BUFFERS, 1u << VIEW | 1u << DRAFTS, b))
        return NULL;
    const uint32_t *starts = b[STARTS].buf;
    uint64_t *drafts = b[DRAFTS].buf;
    if (!is_run_of(&b[STARTS], sizeof(*starts), 0, count) || !has_words(&b[DRAFTS], 0, count) ||
        longest < 0 || longest > (Py_ssize_t)PAGE_BYTES ||
        !fits(&b[VIEW], drafts, starts, count, (size_t)longest)) {
        PyErr_SetString(PyExc_ValueError, "the blobs are not inside their buffer");
    } else {
        char *view = b[VIEW].buf;
        unsigned target = deep ? CODEC_ZSTD : CODEC_LZ4;
        struct sched_param was;
        Py_BEGIN_ALLOW_THREADS
        int policy = self->idle ? sink(&was) : -1;
        for (Py_ssize_t i = 0; i < count; i++)
            drafts[i] = recode_one(self, view + starts[i], drafts[i], target, (size_t)longest);
        rise(policy, &was);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    buffers_release(b, BUFFERS);
    return result;
}

/* ---- what there is to recode ---- */

/* Whether the blob of *word* should be put into zstd (*deep*) or back into lz4. */
static bool is_wanted(uint64_t word, bool deep)
{
    unsigned codec = blob_codec(word), heat = word & HEAT_MASK;
    if (deep)
        return heat == 0 && codec <= CODEC_LZ4;
    return heat == HEAT_MASK && codec == CODEC_ZSTD;
}

static PyObject *recoder_collect(Recoder *self, PyObject *const *args, Py_ssize_t nargs)
{
    enum { ARENA, SLOTS, WORDS, VIEW, BUFFERS };
    Py_buffer b[BUFFERS];
    PyObject *result = NULL;
    if (nargs != BUFFERS + 5) {
        PyErr_SetString(PyExc_TypeError,
                        "collect(arena, slots, words, view, have, index, slot, count, deep)");
        return NULL;
    }
    Py_ssize_t have = PyLong_AsSsize_t(args[4]), index = PyLong_AsSsize_t(args[5]);
    Py_ssize_t slot = PyLong_AsSsize_t(args[6]), count = PyLong_AsSsize_t(args[7]);
    int deep = PyObject_IsTrue(args[8]);
    if (PyErr_Occurred() || !buffers_get(args, BUFFERS, 0xFu, b))
        return NULL;
    if (have < 0 || count < 0 || have > PY_SSIZE_T_MAX - count ||
        !has_words(&b[ARENA], index, count) || !has_words(&b[SLOTS], 0, have + count) ||
        !has_words(&b[WORDS], 0, have + count) || !has_pages(&b[VIEW], 0, have + count)) {
        PyErr_SetString(PyExc_ValueError, "the run is not inside its buffers");
    } else {
        uint64_t *found = (uint64_t *)b[ARENA].buf + index;
        uint64_t *slots = b[SLOTS].buf, *words = b[WORDS].buf;
        for (Py_ssize_t i = 0; i < count; i++) {
            uint64_t word = found[i], place = pool_place(word);
            if (!in_pool(word) || word & MOVING ||
                place + blob_length(word) > (uint64_t)b[ARENA].len)
                continue;
            if (!is_wanted(word, deep)) {
                if (deep && word & HEAT_MASK)
                    found[i] = word - HEAT_ONE;
                continue;
            }
            memcpy((char *)b[VIEW].buf + (have << PAGE_SHIFT), (char *)b[ARENA].buf + place,
                   blob_length(word));
            found[i] = word | MOVING;
            slots[have] = (uint64_t)(slot + i), words[have++] = word;
        }
        result = PyLong_FromSsize_t(have);
    }
    buffers_release(b, BUFFERS);
    return result;
}

/* ---- making one ---- */

static bool is_set(ZSTD_CCtx *context, int level)
{
    return !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)) &&
           !ZSTD_isError(
               ZSTD_CCtx_setParameter(context, ZSTD_c_format, ZSTD_f_zstd1_magicless)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_dictIDFlag, 0));
}

static PyObject *recoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    int level, idle;
    if (!PyArg_ParseTuple(args, "ip", &level, &idle))
        return NULL;
    Recoder *self = (Recoder *)type->tp_alloc(type, 0);
    if (self == NULL || !decoder_begin(&self->decoder)) {
        Py_XDECREF(self);
        return NULL;
    }
    self->idle = idle && can_sink();
    size_t bytes = ZSTD_estimateCCtxSize_usingCParams(ZSTD_getCParams(level, PAGE_BYTES, 0));
    self->workspace = PyMem_RawMalloc(bytes);
    if (self->workspace == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    memset(self->workspace, 0, bytes); /* have it in memory */
    self->context = ZSTD_initStaticCCtx(self->workspace, bytes);
    if (self->context == NULL || !is_set(self->context, level) ||
        compress(self, CODEC_ZSTD, PAGE_BYTES) == 0) {
        Py_DECREF(self);
        PyErr_Format(PyExc_RuntimeError, "libzstd does not compress pages at level %d", level);
        return NULL;
    }
    return (PyObject *)self;
}

static void recoder_dealloc(Recoder *self)
{
    decoder_end(&self->decoder);
    PyMem_RawFree(self->workspace);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef recoder_methods[] = {
    {"recode", FASTCALL(recoder_recode), METH_FASTCALL,
     "recode(view, starts, drafts, count, deep, longest)\n\n"
     "Put count blobs of view into zstd (deep) or lz4, each in its place: the drafts, words but\n"
     "for where the blob is, then say what it has become. One that would have more than longest\n"
     "bytes (0: that would not be shorter) stays, and its codec gets CODEC_KEPT; one that has it\n"
     "is left alone. The draft of a damaged one becomes KIND_LOST."},
    {"collect", FASTCALL(recoder_collect), METH_FASTCALL,
     "collect(arena, slots, words, view, have, index, slot, count, deep) -> have\n\n"
     "Copy out what is worth recoding of count slots from slot on, whose words begin at word index\n"
     "of the arena, and mark it as moving; the caller holds the lock. have is how many there are\n"
     "already: number n is in slots and words, and its blob at byte 4096*n of view. deep: cold ones\n"
     "that are not in zstd, and all others cool by one; else hot ones that are."},
    {NULL}};

PyTypeObject RecoderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "swapfs.core._core.Recoder",
    .tp_basicsize = sizeof(Recoder),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Recoder(level, idle)\n\n"
              "Puts blobs into zstd of a level and back, in memory that it gets here. idle: only while\n"
              "no other thread wants the CPU, if the thread may come back then. For one thread at\n"
              "a time.",
    .tp_new = recoder_new,
    .tp_dealloc = (destructor)recoder_dealloc,
    .tp_methods = recoder_methods,
};
