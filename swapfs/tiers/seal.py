"""What keeps a blob's bytes honest while they are on a medium: a tag of 16 bytes.

``ChecksumSeal`` leaves the payload readable; ``aead.AeadSeal`` encrypts it.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod

from swapfs.errors import BlobCorrupt
from swapfs.tiers.sector_ref import TAG_BYTES


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
