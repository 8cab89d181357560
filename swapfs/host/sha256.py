"""SHA-256 by the interpreter's own module: ``hashlib`` has OpenSSL's, 5 MiB of locked memory."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

_module: Final[Any] = importlib.import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256")


def sha256(data: bytes | memoryview) -> bytes:
    """Return the digest of *data*, 32 bytes."""
    digest: bytes = _module.sha256(data).digest()
    return digest
