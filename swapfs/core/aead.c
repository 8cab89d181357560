/*
 * AES-256-GCM (NIST SP 800-38D) by libcrypto. A module of its own, so that an instance that does not
 * encrypt has not 5 MiB of library locked in its memory.
 *
 * A context has its key schedule made once, and then takes a nonce for each blob. There are as many
 * as threads that may seal or open at once, and each thread keeps to one; two that share one take
 * turns.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "seal.h"

#define SEATS 16u
#define KEY_BYTES 32
#define NONCE_BYTES 12

struct seat {
    pthread_mutex_t lock;
    EVP_CIPHER_CTX *close, *open;
};

struct aead {
    struct swapfs_seal entry;
    struct seat seats[SEATS];
};

static atomic_uint seats_taken;
static _Thread_local unsigned own_seat; /* and one more; 0: none yet */

static struct seat *sit_down(struct aead *aead)
{
    if (own_seat == 0)
        own_seat = atomic_fetch_add(&seats_taken, 1) % SEATS + 1;
    struct seat *seat = &aead->seats[own_seat - 1];
    pthread_mutex_lock(&seat->lock);
    return seat;
}

/* The sequence number is the nonce: 12 bytes, little endian. */
static void make_nonce(uint64_t sequence, unsigned char *nonce)
{
    for (int i = 0; i < NONCE_BYTES; i++, sequence >>= 8)
        nonce[i] = (unsigned char)sequence;
}

static bool aead_close(struct swapfs_seal *self, const void *header, size_t header_length,
                       uint64_t sequence, const void *payload, size_t length, char *to)
{
    unsigned char nonce[NONCE_BYTES], *out = (unsigned char *)to;
    int done;
    struct seat *seat = sit_down((struct aead *)self);
    make_nonce(sequence, nonce);
    bool good = EVP_EncryptInit_ex(seat->close, NULL, NULL, NULL, nonce) == 1 &&
                EVP_EncryptUpdate(seat->close, NULL, &done, header, (int)header_length) == 1 &&
                EVP_EncryptUpdate(seat->close, out, &done, payload, (int)length) == 1 &&
                EVP_EncryptFinal_ex(seat->close, out + length, &done) == 1 &&
                EVP_CIPHER_CTX_ctrl(seat->close, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES,
                                    out + length) == 1;
    pthread_mutex_unlock(&seat->lock);
    return good;
}

static bool aead_open(struct swapfs_seal *self, const void *header, size_t header_length,
                      uint64_t sequence, const void *sealed, size_t length, char *to)
{
    unsigned char nonce[NONCE_BYTES], tag[TAG_BYTES], *out = (unsigned char *)to;
    int done;
    struct seat *seat = sit_down((struct aead *)self);
    make_nonce(sequence, nonce);
    memcpy(tag, (const char *)sealed + length, TAG_BYTES);
    bool good = EVP_DecryptInit_ex(seat->open, NULL, NULL, NULL, nonce) == 1 &&
                EVP_DecryptUpdate(seat->open, NULL, &done, header, (int)header_length) == 1 &&
                EVP_DecryptUpdate(seat->open, out, &done, sealed, (int)length) == 1 &&
                EVP_CIPHER_CTX_ctrl(seat->open, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, tag) == 1 &&
                EVP_DecryptFinal_ex(seat->open, out + length, &done) == 1;
    pthread_mutex_unlock(&seat->lock);
    return good;
}

/* ---- making one ---- */

static EVP_CIPHER_CTX *context(const EVP_CIPHER *cipher, const unsigned char *key, int encrypts)
{
    EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
    if (made != NULL && EVP_CipherInit_ex(made, cipher, NULL, key, NULL, encrypts) == 1)
        return made;
    EVP_CIPHER_CTX_free(made);
    return NULL;
}

static void aead_free(struct aead *aead)
{
    for (unsigned i = 0; i < SEATS; i++) {
        EVP_CIPHER_CTX_free(aead->seats[i].close);
        EVP_CIPHER_CTX_free(aead->seats[i].open);
    }
    PyMem_RawFree(aead);
}

static bool fill_seats(struct aead *aead, const unsigned char *key)
{
    /* Without a configuration file: that may put other code in the place of the cipher. */
    OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    bool good = cipher != NULL;
    for (unsigned i = 0; i < SEATS && good; i++) {
        struct seat *seat = &aead->seats[i];
        pthread_mutex_init(&seat->lock, NULL);
        seat->close = context(cipher, key, 1);
        seat->open = context(cipher, key, 0);
        good = seat->close != NULL && seat->open != NULL;
    }
    EVP_CIPHER_free(cipher);
    return good;
}

static void capsule_end(PyObject *capsule)
{
    aead_free(PyCapsule_GetPointer(capsule, SWAPFS_SEAL));
}

static PyObject *aead_new(PyObject *self, PyObject *argument)
{
    Py_buffer key;
    if (PyObject_GetBuffer(argument, &key, PyBUF_SIMPLE) < 0)
        return NULL;
    struct aead *aead = NULL;
    PyObject *capsule = NULL;
    if (key.len != KEY_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a key has 32 bytes");
    } else if ((aead = PyMem_RawCalloc(1, sizeof(*aead))) == NULL) {
        PyErr_NoMemory();
    } else if (!fill_seats(aead, key.buf)) {
        PyErr_SetString(PyExc_RuntimeError, "libcrypto makes no context for AES-256-GCM");
    } else {
        aead->entry = (struct swapfs_seal){aead_close, aead_open};
        capsule = PyCapsule_New(&aead->entry, SWAPFS_SEAL, capsule_end);
    }
    if (capsule == NULL && aead != NULL)
        aead_free(aead);
    PyBuffer_Release(&key);
    return capsule;
}

static PyMethodDef methods[] = {
    {"aead", aead_new, METH_O,
     "aead(key) -> what a Sealer takes to seal with AES-256-GCM, in a capsule.\n\n"
     "key: 32 random bytes. The sequence number is the nonce."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "swapfs.core._aead",
                                    "AES-256-GCM by libcrypto.", -1, methods};

PyMODINIT_FUNC PyInit__aead(void)
{
    PyObject *self = PyModule_Create(&module);
    if (self != NULL && PyModule_AddIntConstant(self, "KEY_BYTES", KEY_BYTES) < 0)
        Py_CLEAR(self);
    return self;
}
