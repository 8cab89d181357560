"""Pages on their way into memory: compressed before the layer's lock is taken."""

from __future__ import annotations

from array import array
from typing import Final

from swapfs.core._core import pack
from swapfs.tiers.pool.size_classes import INCOMPRESSIBLE_BYTES
from swapfs.units import PAGE_SHIFT, PAGE_SIZE
from swapfs.vlayer.entry import Codec, blob_codec, blob_length

STORE_STEP: Final = 32
"""Pages packed together, and stored under one hold of the layer's lock."""


class Packer:
    """Buffers for the blobs of up to *pages* pages; for one thread at a time.

    After ``pack`` of a run, ``drafts`` has each page's word but for the place of a POOL word,
    and ``blobs`` the blob of page i at byte ``i * 4096``, unless it is kept raw.
    """

    def __init__(self, pages: int = STORE_STEP) -> None:
        self.pages = pages
        self.raw = False
        self.drafts = array("Q", bytes(8 * pages))
        self.blobs = memoryview(bytearray(pages * PAGE_SIZE))

    def pack(self, source: memoryview, position: int, count: int) -> None:
        """Draft *count* pages that begin at byte *position* of *source*; lets the GIL go.

        A page that would not fit a size class below a whole page is kept raw (zram: huge), and
        every one while ``raw`` is set, but for repeated words.
        """
        longest = 1 if self.raw else INCOMPRESSIBLE_BYTES
        pack(source, position, count, self.blobs, self.drafts, longest)

    def blob(self, index: int, source: memoryview, position: int) -> memoryview:
        """Return the blob of page *index* of the run that was packed from *source*."""
        draft = self.drafts[index]
        if blob_codec(draft) == Codec.RAW:
            return source[position + (index << PAGE_SHIFT) :][:PAGE_SIZE]
        return self.blobs[index << PAGE_SHIFT :][: blob_length(draft)]
