"""How much of a region's arena is there: its end is opened and closed while it is in use.

What lies beyond the end is mapped, so that no view of the arena ever changes, but may not be
touched, and so neither mlockall(2) nor a mistake brings it into memory: a mapping that may not be
touched is not populated (mm/gup.c, populate_vma_page_range). Each process that has the region
mapped opens and closes its own; the pages are shared.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

_MADV_POPULATE_WRITE: Final = 23  # include/uapi/asm-generic/mman-common.h, kernel 5.14
_PROT_NONE: Final = 0
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Extent:
    """Opens and closes the bytes of *mapping*, of the memfd *fd*, that are at its end."""

    def __init__(self, mapping: mmap.mmap, fd: int) -> None:
        self._mapping = mapping
        self._fd = fd
        self._bytes = len(mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))

    def populate(self, end: int) -> None:
        """Have every page before *end* in memory and mapped, so that no later use faults.

        :raises OSError: not enough memory, or a kernel before 5.14
        """
        self._mapping.madvise(_MADV_POPULATE_WRITE, 0, end)

    def open(self, start: int, end: int) -> None:
        """Let the bytes from *start* to *end* be touched, and have them in memory.

        :raises OSError: there is not enough
        """
        if start < end:
            self._protect(start, end, mmap.PROT_READ | mmap.PROT_WRITE)
            self._mapping.madvise(_MADV_POPULATE_WRITE, start, end - start)

    def close(self, start: int) -> None:
        """Let nobody here touch what lies from *start* on."""
        if start < self._bytes:
            self._protect(start, self._bytes, _PROT_NONE)

    def give_back(self, start: int) -> None:
        """Give the memory from *start* on back to the system, for every process."""
        length = self._bytes - start
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        if length and _libc.fallocate(self._fd, mode, start, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _protect(self, start: int, end: int, access: int) -> None:
        if _libc.mprotect(self.address + start, end - start, access):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
