"""From a page to a blob and back. lz4 block format, no size header: every page is 4096 bytes."""

from __future__ import annotations

from typing import Final

import lz4.block

from swapfs.tiers.size_classes import INCOMPRESSIBLE_BYTES
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.entry import Codec

ALGORITHM: Final = "lz4"
_compress = lz4.block.compress
_decompress = lz4.block.decompress


def compress(page: memoryview) -> tuple[bytes | memoryview, int]:
    """Return the blob of *page* (4096 bytes) and its codec.

    A page that would not fit a class below a whole page is kept raw (zram: huge): then the
    blob is *page* itself.
    """
    blob: bytes = _compress(page, store_size=False)
    if len(blob) > INCOMPRESSIBLE_BYTES:
        return page, Codec.RAW
    return blob, Codec.LZ4


def decompress(blob: bytes | memoryview, codec: int) -> bytes | memoryview:
    """Return the page of *blob*.

    :raises ValueError: the blob is damaged
    """
    if codec == Codec.RAW:
        page: bytes | memoryview = blob
    else:
        try:
            page = _decompress(blob, uncompressed_size=PAGE_SIZE)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
    if len(page) != PAGE_SIZE:
        raise ValueError(f"a page of {len(page)} bytes")
    return page
