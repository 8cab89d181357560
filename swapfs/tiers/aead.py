"""Encryption of blobs: AES-256-GCM (NIST SP 800-38D), whose tag is the checksum.

The key lives in the locked region only, so what is left on a disk cannot be read after the
instance has ended. In a module of its own since its library takes 5 MiB of locked memory, which
an instance without encryption need not load.
"""

from __future__ import annotations

from typing import Final

from swapfs.core import _aead
from swapfs.core._core import Sealer
from swapfs.tiers.seal import Seal

KEY_BYTES: Final = _aead.KEY_BYTES


class AeadSeal(Seal):
    """AES-256-GCM; the sequence number is the nonce, the header is authenticated with it.

    :param key: KEY_BYTES random bytes; whoever has them can read the blobs
    """

    encrypted = True
    _damage = "authentication failed"

    def __init__(self, key: bytes) -> None:
        super().__init__(Sealer(_aead.aead(key)))
