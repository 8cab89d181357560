"""Pages that look like the memory of running programs, the same ones for the same seed.

Standard library only, so that a program in a test machine can use it alone.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

PAGE_SIZE: Final = 4096
_WORDS: Final = (
    b"the quick brown fox swap page kernel memory tier cluster slot of and to in is it that was "
    b"for on are with as his they be at one have this from or had by hot but some what there we "
    b"can out other were all your when up use word how said an each she which do their time if"
).split()


def _zero(_: random.Random) -> bytes:
    return bytes(PAGE_SIZE)


def _same(rng: random.Random) -> bytes:
    kinds = (
        rng.randrange(256) * 0x0101010101010101,
        rng.randrange(1 << 20),
        rng.randrange(1 << 64),
    )
    return struct.pack("<Q", rng.choice(kinds)) * (PAGE_SIZE // 8)


def _text(rng: random.Random) -> bytes:
    page = b" ".join(rng.choices(_WORDS, k=PAGE_SIZE // 3))
    return page[:PAGE_SIZE]


def _numbers(rng: random.Random) -> bytes:
    value, words = rng.randrange(1 << 30), []
    for _ in range(PAGE_SIZE // 8):
        value += rng.randrange(1000)
        words.append(value)
    return struct.pack(f"<{len(words)}Q", *words)


def _heap(rng: random.Random) -> bytes:
    """Records of a pointer, a type word, a count and a short string, as allocators leave them."""
    base = 0x7F0000000000 | rng.randrange(1 << 24) << 12
    out = bytearray()
    while len(out) < PAGE_SIZE:
        name = rng.choice(_WORDS)
        out += struct.pack("<QQII", base + len(out), base, rng.randrange(4), len(name))
        out += name.ljust(24, b"\0")
    return bytes(out[:PAGE_SIZE])


def _random(rng: random.Random) -> bytes:
    return rng.randbytes(PAGE_SIZE)


_MAKERS: Final[dict[str, Callable[[random.Random], bytes]]] = {
    "zero": _zero,
    "same": _same,
    "text": _text,
    "numbers": _numbers,
    "heap": _heap,
    "random": _random,
}
KINDS: Final = tuple(_MAKERS)
_WEIGHTS: Final = (1, 1, 20, 20, 50, 8)  # percent, after the pages of ten running programs


def page(kind: str, seed: int) -> bytes:
    """Return a page of 4096 bytes; *kind* is one of KINDS."""
    return _MAKERS[kind](random.Random(f"{kind}:{seed}"))


def mixed_pages(seed: int, n: int) -> list[bytes]:
    """Return *n* pages in the mix that programs have."""
    rng = random.Random(seed)
    kinds = rng.choices(KINDS, _WEIGHTS, k=n)
    return [page(kind, rng.randrange(1 << 32)) for kind in kinds]
