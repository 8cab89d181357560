"""How blobs lie in a backing file, and the batch that carries them there.

A blob starts on a sector with a header of 32 bytes, little endian::

    0 magic "SwBl"   4 crc32 of bytes 8.. of the header and of the payload   8 sequence number
    16 slot   24 payload length   26 codec   27..31 zero

The checksum covers slot and sequence, so a blob that landed in the wrong place, or an older
one that a lost write left behind, does not pass for the one that the table names (I4): the
table word keeps the low bits of the checksum, and no two blobs share a sequence number.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from swapfs.errors import BlobCorrupt
from swapfs.units import PAGE_SIZE, SECTOR_SIZE

HEADER: Final = struct.Struct("<4sIQQHB5x")
HEADER_BYTES: Final = HEADER.size
_MAGIC: Final = b"SwBl"
_CHECKED_FROM: Final = 8
BLOB_SECTORS_MAX: Final = -(-(HEADER_BYTES + PAGE_SIZE) // SECTOR_SIZE)
"""Sectors of the largest blob, a raw page."""

assert HEADER_BYTES == 32


def blob_sectors(length: int) -> int:
    """Return the sectors that a blob with *length* bytes of payload takes."""
    return (HEADER_BYTES + length + SECTOR_SIZE - 1) // SECTOR_SIZE


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One blob of a batch: whose it is, and where in the batch it lies.

    ``expected`` is the table word that the blob was copied from; what it means is the
    caller's business.
    """

    slot: int
    start_sector: int
    sectors: int
    length: int
    codec: int
    checksum: int
    expected: int


class Batch:
    """Blobs packed one after the other, to be written in one piece.

    :param view: writable, page aligned for direct I/O; its length bounds the batch
    """

    __slots__ = ("items", "limit_sectors", "sectors", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.limit_sectors = len(view) // SECTOR_SIZE
        self.sectors = 0
        self.items: list[BatchItem] = []

    def reset(self, limit_sectors: int) -> None:
        """Empty the batch; it may then grow to *limit_sectors*."""
        assert limit_sectors * SECTOR_SIZE <= len(self.view)
        self.limit_sectors = limit_sectors
        self.sectors = 0
        self.items.clear()

    def fits(self, length: int) -> bool:
        """Whether a blob with *length* bytes of payload still fits."""
        return self.sectors + blob_sectors(length) <= self.limit_sectors

    def add(
        self,
        slot: int,
        payload: bytes | memoryview,
        codec: int,
        sequence: int,
        *,
        expected: int = 0,
    ) -> BatchItem:
        """Append a blob; the caller has asked ``fits``. The payload is copied."""
        length = len(payload)
        sectors = blob_sectors(length)
        assert self.sectors + sectors <= self.limit_sectors
        start = self.sectors * SECTOR_SIZE
        body = start + HEADER_BYTES
        HEADER.pack_into(self.view, start, _MAGIC, 0, sequence, slot, length, codec)
        self.view[body : body + length] = payload
        end = start + sectors * SECTOR_SIZE
        self.view[body + length : end] = bytes(end - body - length)  # no stale memory on disk
        checksum = zlib.crc32(self.view[start + _CHECKED_FROM : body + length])
        struct.pack_into("<I", self.view, start + 4, checksum)
        item = BatchItem(slot, self.sectors, sectors, length, codec, checksum, expected)
        self.items.append(item)
        self.sectors += sectors
        return item


def check_blob(
    view: memoryview, slot: int, length: int, codec: int, check: int, check_mask: int
) -> tuple[memoryview, int]:
    """Return the payload and the sequence number of the blob that *view* starts with.

    :param check: the low bits of the checksum that the table word keeps
    :raises BlobCorrupt: not the blob that the table names, or damaged
    """
    magic, checksum, sequence, blob_slot, blob_length, blob_codec = HEADER.unpack_from(view)
    if (magic, blob_slot, blob_length, blob_codec) != (_MAGIC, slot, length, codec):
        raise BlobCorrupt(f"slot {slot}: another blob lies in its place")
    if checksum & check_mask != check:
        raise BlobCorrupt(f"slot {slot}: an older blob lies in its place")
    if zlib.crc32(view[_CHECKED_FROM : HEADER_BYTES + length]) != checksum:
        raise BlobCorrupt(f"slot {slot}: checksum mismatch")
    return view[HEADER_BYTES : HEADER_BYTES + length], sequence


def peek(view: memoryview) -> tuple[int, int] | None:
    """Return (slot, sectors) as the header that *view* starts with claims; None: no header."""
    if len(view) < HEADER_BYTES:
        return None
    magic, _, _, slot, length, _ = HEADER.unpack_from(view)
    if magic != _MAGIC or not 1 <= length <= PAGE_SIZE:
        return None
    return slot, blob_sectors(length)
