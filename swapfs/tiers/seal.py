"""What keeps a blob's bytes honest while they are on a medium: a tag of 16 bytes.

``ChecksumSeal`` leaves the payload readable; ``aead.AeadSeal`` encrypts it. What they do is done in
C (``core/seal.h``), by threads that hold no GIL where pages are read and written.
"""

from __future__ import annotations

from typing import ClassVar

from swapfs.core._core import Sealer
from swapfs.errors import BlobCorrupt


class Seal:
    """Turns payload into body and tag, and back.

    :param sealer: how
    """

    encrypted: ClassVar[bool]
    _damage: ClassVar[str]

    def __init__(self, sealer: Sealer) -> None:
        self.sealer = sealer

    def seal(self, header: bytes, sequence: int, payload: bytes | memoryview) -> bytes:
        """Return the body of *payload*, as long as it, followed by the tag.

        :param header: covered by the tag, not part of the body
        :param sequence: 0..2^64-1, never the same twice under one key
        """
        return self.sealer.seal(header, sequence, payload)

    def open(self, header: bytes, sequence: int, sealed: memoryview) -> bytes:
        """Return the payload of what ``seal`` returned.

        :raises BlobCorrupt: a bit of it, of the header or of the sequence is not as it was
        """
        payload = self.sealer.open(header, sequence, sealed)
        if payload is None:
            raise BlobCorrupt(self._damage)
        return payload


class ChecksumSeal(Seal):
    """A CRC-32 over header and payload; the body is the payload."""

    encrypted = False
    _damage = "checksum mismatch"

    def __init__(self) -> None:
        super().__init__(Sealer())
