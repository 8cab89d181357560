/*
 * The module: what it is made of, and the constants that Python has from here, by their C names.
 */
#include "core.h"

#include "log.h"
#include "check.h"
#include "word.h"

#define CONSTANT(name) {#name, (long)(name)}

static const struct {
    const char *name;
    long value;
} constants[] = {
    CONSTANT(PAGE_BYTES), CONSTANT(CLUSTER_SLOTS), CONSTANT(KIND_EMPTY), CONSTANT(KIND_SAME),
    CONSTANT(KIND_BLOB), CONSTANT(KIND_LOST), CONSTANT(KIND_MASK), CONSTANT(CODEC_RAW),
    CONSTANT(CODEC_LZ4), CONSTANT(CODEC_ZSTD),
    CONSTANT(CODEC_KEPT), CONSTANT(MOVING), CONSTANT(HEAT_ONE), CONSTANT(HEAT_MASK),
    CONSTANT(TIER_SHIFT), CONSTANT(TIER_MASK), CONSTANT(CODEC_SHIFT), CONSTANT(CODEC_MASK),
    CONSTANT(STATE_MASK), CONSTANT(REF_SHIFT), CONSTANT(BACKING_MASK), CONSTANT(IN_POOL),
    CONSTANT(LENGTH_SHIFT), CONSTANT(LENGTH_MASK), CONSTANT(PLACE_SHIFT), CONSTANT(GRAIN_SHIFT),
    CONSTANT(ZSPAGE_SHIFT), CONSTANT(NO_CLASS),
    CONSTANT(NO_INDEX), CONSTANT(LIST_NO_ROOM), CONSTANT(LIST_ROOM), CONSTANT(EVENT_STORE),
    CONSTANT(EVENT_LOAD), CONSTANT(EVENT_DISCARD), CONSTANT(EVENT_DEMOTE), CONSTANT(EVENT_PROMOTE),
    CONSTANT(EVENT_MOVE), CONSTANT(EVENT_REFAULT), CONSTANT(EVENT_SLOT_BITS),
    CONSTANT(EVENT_KIND_SHIFT), CONSTANT(EVENT_SIZE_SHIFT), CONSTANT(EVENT_AGE_SHIFT),
    CONSTANT(EVENT_TIER_SHIFT), CONSTANT(EVENT_WAS_SHIFT), CONSTANT(NO_SIZE),
    CONSTANT(AGE_TICK_SHIFT), CONSTANT(USAGE_SLOTS), CONSTANT(USAGE_PAYLOAD), CONSTANT(USAGE_TIERS),
    CONSTANT(USAGE_FIELDS), CONSTANT(EXPORT_END), CONSTANT(EXPORT_QUOTA), CONSTANT(EXPORT_FIELDS),
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.core._core",
                                    "Pages in and out of memory, and the lock.", -1};

PyMODINIT_FUNC PyInit__core(void)
{
    PyTypeObject *const types[] = {&DisksType, &LockType, &ReaderType, &WriterType, &MarkerType,
                                   &DecoderType, &RecoderType, &LogType,
                                   &SealerType, &TrackedType};
    PyMethodDef *const functions[] = {check_functions, store_functions, rebuild_functions,
                                      log_functions, policy_functions, relocate_functions};
    PyObject *self = PyModule_Create(&module);
    check_begin();
    for (size_t i = 0; self != NULL && i < sizeof(types) / sizeof(types[0]); i++)
        if (PyModule_AddType(self, types[i]) < 0)
            Py_CLEAR(self);
    for (size_t i = 0; self != NULL && i < sizeof(functions) / sizeof(functions[0]); i++)
        if (PyModule_AddFunctions(self, functions[i]) < 0)
            Py_CLEAR(self);
    for (size_t i = 0; self != NULL && i < sizeof(constants) / sizeof(constants[0]); i++)
        if (PyModule_AddIntConstant(self, constants[i].name, constants[i].value) < 0)
            Py_CLEAR(self);
    return self;
}
