"""Every store to a region on a tape, and what the region was after each (see ``tape.c``)."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

from swapfs.region.layout import Region
from swapfs.units import PAGE_SIZE

_STORES_MAX: Final = 20_000
_RECORD: Final = struct.Struct("<QQQ")  # offset of the store, pages that follow, instruction
_RECORD_BYTES: Final = _RECORD.size + 2 * PAGE_SIZE
_VECTOR_BYTES: Final = frozenset({16, 32, 64})
"""What one store of a copy moves."""
_WORD_BYTES: Final = 8


@functools.cache
def _library() -> ctypes.CDLL:
    if platform.machine() != "x86_64":
        pytest.skip("stores are followed by the trap flag of amd64")
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    source = Path(__file__).with_name("tape.c")
    with tempfile.TemporaryDirectory(prefix="swapfs-tape-") as folder:
        target = Path(folder) / "tape.so"
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(source)], check=True
        )
        library = ctypes.CDLL(str(target))
    library.tape_start.argtypes = [ctypes.c_void_p, ctypes.c_size_t] * 2
    return library


class Tape:
    """What is stored to *region* inside the ``with`` block, by its own thread."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._library = _library()
        self._count = ctypes.c_size_t.in_dll(self._library, "tape_count")
        self._records = mmap.mmap(-1, _STORES_MAX * _RECORD_BYTES)
        self.first = os.pread(region.fd, region.geometry.total_bytes, 0)
        """The region before the first store."""

    def __enter__(self) -> Tape:
        region = self._region
        records = ctypes.addressof(ctypes.c_char.from_buffer(self._records))
        error = self._library.tape_start(
            *(region.address, region.geometry.total_bytes),
            *(records, _STORES_MAX),
        )
        assert not error, os.strerror(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.tape_stop()
        problem = ctypes.c_char_p.in_dll(self._library, "tape_problem").value
        assert problem is None, problem.decode()
        self.last = os.pread(self._region.fd, self._region.geometry.total_bytes, 0)

    @property
    def stores(self) -> int:
        """How many stores there were so far."""
        return self._count.value

    def images(self) -> Iterator[tuple[int, bytearray]]:
        """Yield (stores so far, the region after them), from 0 stores on; the image is reused."""
        image, records = bytearray(self.first), memoryview(self._records)
        yield 0, image
        for number in range(self.stores):
            start = number * _RECORD_BYTES
            offset, pages, _ = _RECORD.unpack_from(records, start)
            page, size = offset // PAGE_SIZE * PAGE_SIZE, pages * PAGE_SIZE
            image[page : page + size] = records[start + _RECORD.size :][:size]
            yield number + 1, image
        assert image == self.last, "a store is not on the tape"

    def is_inside_a_run(self, stores: int) -> bool:
        """Whether the store before and the next one are both of the middle of one long run.

        That is the copy of a blob, or the links of a free list. Its first and its last stores
        say all there is: the rest only moves the border.
        """
        if not 2 <= stores < self.stores:
            return False
        places, codes = zip(*(self._place(n) for n in range(stores - 2, stores + 1)), strict=True)
        step = places[1] - places[0]
        if places[2] - places[1] != step or abs(step) <= _WORD_BYTES:
            return False
        return step in _VECTOR_BYTES or len(set(codes)) == 1

    def _place(self, number: int) -> tuple[int, int]:
        offset, _, code = _RECORD.unpack_from(self._records, number * _RECORD_BYTES)
        return offset, code
