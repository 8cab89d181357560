"""Blobs made by Python's lz4 and by liblz4 are of one format."""

from __future__ import annotations

import lz4.block
import pytest

from swapfs.core._core import Decoder
from swapfs.testing.pages import KINDS, page
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.codec import compress
from swapfs.vlayer.entry import Backing, Codec, backing, blob_codec
from swapfs.vlayer.packing import Packer

PAGES = [page(kind, seed) for kind in KINDS for seed in range(8)]


def _packed(source: bytes) -> tuple[bytes, int] | None:
    """Return what C makes of a page; None: it is filled with one word."""
    packer, view = Packer(1), memoryview(source)
    packer.pack(view, 0, 1)
    draft = packer.drafts[0]
    if backing(draft) != Backing.POOL:
        return None
    return bytes(packer.blob(0, view, 0)), blob_codec(draft)


@pytest.mark.parametrize("source", PAGES)
def test_what_one_makes_the_other_reads(source: bytes) -> None:
    blob, codec = compress(memoryview(source))
    out = bytearray(3 * PAGE_SIZE)
    assert Decoder().unpack(blob, codec, out, PAGE_SIZE)
    assert out == bytes(PAGE_SIZE) + source + bytes(PAGE_SIZE)
    if (packed := _packed(source)) is not None:
        blob, packed_codec = packed
        assert packed_codec == codec, "the same pages are kept raw"
        if codec == Codec.LZ4:
            assert lz4.block.decompress(blob, uncompressed_size=PAGE_SIZE) == source
        else:
            assert blob == source


def test_some_pages_are_kept_raw_and_some_are_not() -> None:
    assert {compress(memoryview(source))[1] for source in PAGES} == {Codec.RAW, Codec.LZ4}


def test_what_is_no_page_is_not_taken_for_one() -> None:
    blob, _ = compress(memoryview(page("text", 1)))
    half = lz4.block.compress(bytes(PAGE_SIZE // 2), store_size=False)
    out = bytearray(PAGE_SIZE)
    for wrong, codec in [
        *((blob[:-1], Codec.LZ4), (half, Codec.LZ4), (b"", Codec.LZ4)),
        *((bytes(PAGE_SIZE - 1), Codec.RAW), (bytes(PAGE_SIZE + 1), Codec.RAW)),
    ]:
        assert not Decoder().unpack(wrong, codec, out, 0)
    with pytest.raises(ValueError, match="not inside"):
        Decoder().unpack(blob, Codec.LZ4, out, 1)
