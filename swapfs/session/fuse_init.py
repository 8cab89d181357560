"""What the kernel said about itself when it opened the FUSE session.

Decodes the FUSE_INIT request that the region keeps (``Region.session_init``): a u32 length, then
struct fuse_in_header and struct fuse_init_in (include/uapi/linux/fuse.h); its last four bytes are
the pages of the largest request. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

OP_INIT: Final = 26
"""FUSE_INIT."""
FLAG_INIT_EXT: Final = 1 << 30
"""FUSE_INIT_EXT: the request has a second word of flags (Linux 5.17)."""
FLAG_HAS_RESEND: Final = 1 << 39
"""FUSE_HAS_RESEND: FUSE_NOTIFY_RESEND is understood (Linux 6.9)."""
CANNOT_RESEND: Final = (
    "this kernel cannot resend: if the server dies, requests under way hang (needs Linux 6.9)"
)

_LENGTH = struct.Struct("=I")
_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, 2 x ext
_INIT = struct.Struct("=IIII")  # major, minor, max_readahead, flags
_FLAGS2 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class KernelSession:
    """The kernel's end of a session: protocol version 7.*minor*, and all its flags as one."""

    minor: int
    flags: int

    @property
    def can_resend(self) -> bool:
        """Whether requests that a dead server had read can be asked for again."""
        return bool(self.flags & FLAG_HAS_RESEND)

    def as_dict(self) -> dict[str, Any]:
        """Return the part of the status snapshot that tells of this."""
        return {"fuse_minor": self.minor, "resend": self.can_resend}


def decode(stored: bytes | memoryview) -> KernelSession | None:
    """Return what *stored* says; None if it holds no FUSE_INIT (no session was opened yet)."""
    raw = bytes(stored)
    if len(raw) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(raw)
    request = raw[_LENGTH.size :][:length]
    if len(request) < length or length < _HEADER.size + _INIT.size:
        return None
    if _HEADER.unpack_from(request)[1] != OP_INIT:
        return None
    _, minor, _, flags = _INIT.unpack_from(request, _HEADER.size)
    more = _HEADER.size + _INIT.size
    if flags & FLAG_INIT_EXT and length >= more + _FLAGS2.size:
        flags |= _FLAGS2.unpack_from(request, more)[0] << 32
    return KernelSession(minor, flags)
