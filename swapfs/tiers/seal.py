"""What keeps a blob's bytes honest while they are on a medium: a tag of 16 bytes.

``AeadSeal`` encrypts the payload with AES-256-GCM (NIST SP 800-38D) under a key that lives in
the locked region only, so that what is left on a disk cannot be read after the instance has
ended; its tag is the checksum. ``ChecksumSeal`` leaves the payload readable and costs less.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swapfs.errors import BlobCorrupt

TAG_BYTES: Final = 16
KEY_BYTES: Final = 32


class Seal(ABC):
    """Turns payload into body and tag, and back."""

    encrypted: bool

    @abstractmethod
    def seal(self, header: bytes, sequence: int, payload: bytes | memoryview) -> bytes:
        """Return the body of *payload*, as long as it, followed by the tag.

        :param header: covered by the tag, not part of the body
        :param sequence: 0..2^64-1, never the same twice under one key
        """

    @abstractmethod
    def open(self, header: bytes, sequence: int, sealed: memoryview) -> bytes | memoryview:
        """Return the payload of what ``seal`` returned.

        :raises BlobCorrupt: a bit of it, of the header or of the sequence is not as it was
        """


class ChecksumSeal(Seal):
    """A CRC-32 over header and payload; the body is the payload."""

    encrypted = False

    def seal(self, header: bytes, sequence: int, payload: bytes | memoryview) -> bytes:  # noqa: D102
        checksum = zlib.crc32(payload, zlib.crc32(header))
        return bytes(payload) + checksum.to_bytes(TAG_BYTES, "little")

    def open(self, header: bytes, sequence: int, sealed: memoryview) -> memoryview:  # noqa: D102
        payload = sealed[:-TAG_BYTES]
        checksum = zlib.crc32(payload, zlib.crc32(header))
        if sealed[-TAG_BYTES:] != checksum.to_bytes(TAG_BYTES, "little"):
            raise BlobCorrupt("checksum mismatch")
        return payload


class AeadSeal(Seal):
    """AES-256-GCM; the sequence number is the nonce, the header is authenticated with it.

    :param key: KEY_BYTES random bytes; whoever has them can read the blobs
    """

    encrypted = True

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._cipher = AESGCM(key)

    def seal(self, header: bytes, sequence: int, payload: bytes | memoryview) -> bytes:  # noqa: D102
        return self._cipher.encrypt(sequence.to_bytes(12, "little"), payload, header)

    def open(self, header: bytes, sequence: int, sealed: memoryview) -> bytes:  # noqa: D102
        try:
            return self._cipher.decrypt(sequence.to_bytes(12, "little"), sealed, header)
        except InvalidTag:
            raise BlobCorrupt("authentication failed") from None
