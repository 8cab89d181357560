"""A client that fills a Redis and gets values at random; just enough of its protocol for that."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIX: Final = lab.JOB / "mix"
BATCH: Final = 32
_SEED: Final = 5


class _Values:
    """Value i is page i of the mix, begun with its number."""

    def __init__(self) -> None:
        mix = MIX.read_bytes()
        self._tails = [
            mix[start + 16 : start + lab.PAGE_BYTES] for start in range(0, len(mix), lab.PAGE_BYTES)
        ]

    def __getitem__(self, index: int) -> bytes:
        return b"%016d" % index + self._tails[index % len(self._tails)]


def command(*words: bytes) -> bytes:
    """Return a request in the protocol of Redis."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def in_no_order(count: int, gets: int) -> Sequence[int]:
    """Return *gets* of *count* values, each once, in a random order that is always the same."""
    return random.Random(_SEED).sample(range(count), min(gets, count))


def exercise(path: Path, count: int, asked: Sequence[int]) -> int:
    """Set *count* values, get those that are *asked* for in turn; return how many were wrong."""
    values = _Values()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(path))
        answers = link.makefile("rb")
        for first in range(0, count, BATCH):
            batch = range(first, min(first + BATCH, count))
            link.sendall(b"".join(command(b"SET", b"key:%d" % i, values[i]) for i in batch))
            for _ in batch:
                if (line := answers.readline()) != b"+OK\r\n":
                    raise lab.LabError(f"Redis answered SET with {line!r}")
        wrong = 0
        for index in asked:
            link.sendall(command(b"GET", b"key:%d" % index))
            if (line := answers.readline()) != b"$%d\r\n" % lab.PAGE_BYTES:
                raise lab.LabError(f"Redis answered GET with {line!r}")
            wrong += answers.read(lab.PAGE_BYTES + 2)[:-2] != values[index]
    return wrong
