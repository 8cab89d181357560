"""Encryption of blobs: AES-256-GCM (NIST SP 800-38D), whose tag is the checksum.

The key lives in the locked region only, so what is left on a disk cannot be read after the
instance has ended. In a module of its own since its library takes 14 MiB of locked memory, which
an instance without encryption need not load.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swapfs.errors import BlobCorrupt
from swapfs.tiers.seal import Seal

KEY_BYTES: Final = 32


class AeadSeal(Seal):
    """AES-256-GCM; the sequence number is the nonce, the header is authenticated with it.

    :param key: KEY_BYTES random bytes; whoever has them can read the blobs
    """

    encrypted = True

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._cipher = AESGCM(key)

    def seal(self, header: bytes, sequence: int, payload: bytes | memoryview) -> bytes:  # noqa: D102
        # bytes(): cryptography before 40 takes no other buffer; of bytes it is no copy.
        return self._cipher.encrypt(sequence.to_bytes(12, "little"), bytes(payload), header)

    def open(self, header: bytes, sequence: int, sealed: memoryview) -> bytes:  # noqa: D102
        try:
            return self._cipher.decrypt(sequence.to_bytes(12, "little"), bytes(sealed), header)
        except InvalidTag:
            raise BlobCorrupt("authentication failed") from None
