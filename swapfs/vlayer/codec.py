"""From a page to a blob: lz4 block format, no size header. Back is `_load.unpack`."""

from __future__ import annotations

from typing import Final

import lz4.block

from swapfs.tiers.size_classes import INCOMPRESSIBLE_BYTES
from swapfs.vlayer.entry import Codec

ALGORITHM: Final = "lz4"
_compress = lz4.block.compress


def compress(page: memoryview) -> tuple[bytes | memoryview, int]:
    """Return the blob of *page* (4096 bytes) and its codec.

    A page that would not fit a class below a whole page is kept raw (zram: huge): then the
    blob is *page* itself.
    """
    blob: bytes = _compress(page, store_size=False)
    if len(blob) > INCOMPRESSIBLE_BYTES:
        return page, Codec.RAW
    return blob, Codec.LZ4
