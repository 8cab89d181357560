"""What devices are filled with: files of pages that are written over a whole device."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swapfs.testing.pages import PAGE_SIZE, mixed_pages

PAGES: Final = 4096
"""Distinct pages in a file; a device gets them again and again."""
_CHUNK_BYTES: Final = 1 << 20


def mixed(directory: Path) -> Path:
    """Make a file of pages in the mix that programs have."""
    return _make(directory / "mixed", b"".join(mixed_pages(1, PAGES)))


def same_filled(directory: Path) -> Path:
    """Make a file of pages that each repeat one byte, not the same in all."""
    pages = (bytes([number % 256]) * PAGE_SIZE for number in range(PAGES))
    return _make(directory / "same-filled", b"".join(pages))


def incompressible(directory: Path) -> Path:
    """Make a file of random bytes."""
    return _make(directory / "incompressible", random.Random(1).randbytes(PAGES * PAGE_SIZE))


def fill(device: Path, data: Path) -> None:
    """Write the file *data* over all of *device*, past the page cache."""
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        for offset, chunk in _chunks(fd, data):
            if os.pwrite(fd, chunk, offset) != len(chunk):
                raise RuntimeError(f"{device}: short write at {offset}")
        os.fsync(fd)
    finally:
        os.close(fd)


def verify(device: Path, data: Path) -> None:
    """Read all of *device* past the page cache; raise unless it holds what `fill` wrote."""
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _CHUNK_BYTES) as buffer:
            for offset, chunk in _chunks(fd, data):
                got = os.preadv(fd, [memoryview(buffer)[: len(chunk)]], offset)
                if got != len(chunk) or buffer[:got] != chunk:
                    raise RuntimeError(f"{device}: not what was written, at {offset}")
    finally:
        os.close(fd)


def _make(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def _chunks(fd: int, data: Path) -> Iterator[tuple[int, memoryview]]:
    """Give the place and the bytes of each piece of device *fd*; the bytes are page-aligned."""
    size = os.lseek(fd, 0, os.SEEK_END)
    with data.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        view = memoryview(content)
        try:
            for offset in range(0, size, _CHUNK_BYTES):
                start = offset % len(content)
                with view[start : start + min(_CHUNK_BYTES, size - offset)] as chunk:
                    yield offset, chunk
        finally:
            view.release()
