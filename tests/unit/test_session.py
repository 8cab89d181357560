"""What every server of a session must agree on."""

from __future__ import annotations

import subprocess
import sys

ARM = """
import sys
from swapfs import session
kept = bytearray.fromhex(sys.argv[1])
reply = session.arm(kept)
print(len(reply), kept.hex())
"""
PAGE = 4096


def _arm(kept: bytes) -> tuple[int, bytes]:
    """Return the size of a server's buffers, and *kept* as it leaves it."""
    command = [sys.executable, "-c", ARM, kept.hex()]
    reply, left = subprocess.check_output(command, text=True).split()
    return int(reply), bytes.fromhex(left)


def test_later_servers_have_the_buffers_of_the_first() -> None:
    reply, kept = _arm(bytes(512))
    assert reply >= 256 * PAGE
    assert int.from_bytes(kept[-4:], sys.byteorder) * PAGE == reply
    smaller = kept[:-4] + (64).to_bytes(4, sys.byteorder)
    assert _arm(smaller) == (64 * PAGE, smaller)
