"""From a page to a blob and back: lz4 block format, no size header.

Python compresses with the lz4 package. The data path packs pages with liblz4 (``_core.pack``),
which makes the same format; both come back by ``_core.Decoder``, which makes no object.
"""

from __future__ import annotations

from typing import Final

import lz4.block

from swapfs.tiers.pool.size_classes import INCOMPRESSIBLE_BYTES
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
