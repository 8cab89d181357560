/*
 * What keeps a blob's bytes honest while they are on a medium: a body as long as the payload, and a
 * tag. A pointer to this struct goes in a capsule from whoever makes it (seal.c, aead.c) to whoever
 * stores and reads blobs. Any thread may call it, with or without the GIL; nothing is allocated.
 */
#ifndef SWAPFS_SEAL_H
#define SWAPFS_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SWAPFS_SEAL "swapfs.seal"
#define TAG_BYTES 16u

struct swapfs_seal {
    /* Puts body and tag of a payload at *to*. The tag covers the header too, and *sequence* is never
     * the same twice. False: the library failed. */
    bool (*close)(struct swapfs_seal *self, const void *header, size_t header_length,
                  uint64_t sequence, const void *payload, size_t length, char *to);
    /* The other way round: the payload of *length* bytes goes to *to*. False: a bit is not as it
     * was, and what is at *to* is worth nothing. */
    bool (*open)(struct swapfs_seal *self, const void *header, size_t header_length,
                 uint64_t sequence, const void *sealed, size_t length, char *to);
};

#endif
