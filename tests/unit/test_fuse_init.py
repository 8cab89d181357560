"""What a FUSE_INIT request says of the kernel."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapfs.session import fuse_init

EXT = fuse_init.FLAG_INIT_EXT


def stored(minor: int, flags: int, flags2: int | None, opcode: int = fuse_init.OP_INIT) -> bytes:
    """Return the request as include/uapi/linux/fuse.h has it, after its length."""
    body = struct.pack("=IIII", 7, minor, 1 << 17, flags)
    if flags2 is not None:
        body += struct.pack("=I", flags2) + bytes(44)
    header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0)
    request = header + body
    return struct.pack("=I", len(request)) + request


@pytest.mark.parametrize(
    ("minor", "flags", "flags2", "resend"),
    [
        (41, EXT | 0x3FF, 1 << 7, True),  # 6.12
        (38, EXT | 0x3FF, 0x1F, False),  # 6.1
        (38, EXT | 0x3FF, ~(1 << 7) & 0xFFFFFFFF, False),
        (34, 0x3FF, None, False),  # before 5.17: 16 bytes, one word of flags
        (45, 0x3FF, 1 << 7, False),  # the second word counts only where the first says so
    ],
)
def test_decode(minor: int, flags: int, flags2: int | None, resend: bool) -> None:
    session = fuse_init.decode(stored(minor, flags, flags2) + bytes(100))
    assert session is not None
    assert session.as_dict() == {"fuse_minor": minor, "resend": resend}
    assert session.flags & 0xFFFFFFFF == flags


@pytest.mark.parametrize(
    "raw", [b"", bytes(512), stored(41, EXT, 0)[:80], stored(41, EXT, 0, opcode=1), b"\xff" * 512]
)
def test_no_session_yet(raw: bytes) -> None:
    assert fuse_init.decode(memoryview(raw)) is None


@given(st.binary(max_size=512))
def test_any_bytes_are_survived(raw: bytes) -> None:
    fuse_init.decode(raw)
