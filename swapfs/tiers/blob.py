"""How blobs lie in a backing file, and the batch that carries them there.

A blob starts on a sector: a header of 24 bytes, little endian, the body, and a tag::

    0 magic "SwBl"   4 codec   5 zero   6 payload length   8 sequence number   16 slot
    24 body, as long as the payload   then the seal's tag, 16 bytes (``seal.py``)

The tag covers slot and sequence, so a blob that landed in the wrong place, or an older one that
a lost write left behind, does not pass for the one that the table names (I4): the table word
keeps the low bits of the tag, and no two blobs share a sequence number.
"""

from __future__ import annotations

import struct
from array import array
from typing import Final, NamedTuple

from swapfs.errors import BlobCorrupt
from swapfs.tiers import sector_ref
from swapfs.tiers.base import Staging
from swapfs.tiers.seal import Seal
from swapfs.tiers.sector_ref import BLOB_SECTORS_MAX as BLOB_SECTORS_MAX
from swapfs.tiers.sector_ref import HEADER_BYTES, TAG_BYTES, blob_sectors
from swapfs.units import PAGE_SIZE, SECTOR_SIZE

HEADER: Final = struct.Struct("<4sBxHQQ")
MAGIC: Final = b"SwBl"
_CHECK_BYTES: Final = 4
_NOTES: Final = 5  # words for each blob that is sealed (seal.c)

assert HEADER.size == HEADER_BYTES


class BatchItem(NamedTuple):
    """One blob of a batch: whose it is, and where in the batch it lies."""

    slot: int
    start_sector: int
    sectors: int
    length: int
    codec: int
    checksum: int


class Batch:
    """Blobs packed one after the other, to be written in one piece.

    :param view: writable, page aligned for direct I/O; its length bounds the batch
    :param seal: of the tier that the batch is for

    ``slots``: whose blobs are in it; ``items``: what is known of those that ``add`` put there.
    """

    __slots__ = ("_notes", "items", "limit_sectors", "seal", "sectors", "slots", "view")

    def __init__(self, view: memoryview, seal: Seal) -> None:
        self.view = view
        self.seal = seal
        self.limit_sectors = len(view) // SECTOR_SIZE
        self.sectors = 0
        self.items: list[BatchItem] = []
        self.slots: list[int] = []
        self._notes = array("Q", bytes(8 * _NOTES * self.limit_sectors))

    def reset(self, limit_sectors: int) -> None:
        """Empty the batch; it may then grow to *limit_sectors*."""
        assert limit_sectors * SECTOR_SIZE <= len(self.view)
        self.limit_sectors = limit_sectors
        self.sectors = 0
        self.items.clear()
        self.slots.clear()

    def fits(self, length: int) -> bool:
        """Whether a blob with *length* bytes of payload still fits."""
        return self.sectors + blob_sectors(length) <= self.limit_sectors

    def add(
        self,
        slot: int,
        payload: bytes | memoryview,
        codec: int,
        sequence: int,
    ) -> BatchItem:
        """Append a blob; the caller has asked ``fits``. The payload is copied."""
        length = len(payload)
        sectors = blob_sectors(length)
        assert self.sectors + sectors <= self.limit_sectors
        start = self.sectors * SECTOR_SIZE
        put = self.seal.sealer.put
        checksum = put(self.view, start, slot, codec, sequence, payload)
        item = BatchItem(slot, self.sectors, sectors, length, codec, checksum)
        self.items.append(item)
        self.slots.append(slot)
        self.sectors += sectors
        return item

    def fill(self, staging: Staging, sector: int) -> list[int]:
        """Put all of *staging* into the batch, which is empty; return their references.

        :param sector: where the batch is to lie
        """
        view, items = self.view[: self.limit_sectors * SECTOR_SIZE], staging.items
        self.slots += [item.slot for item in items]
        refs, self.sectors = self.seal.sealer.put_all(
            view, staging.view, items, self._notes, sector
        )
        return refs


def check_blob(
    view: memoryview, slot: int, codec: int, ref: int, seal: Seal
) -> tuple[bytes | memoryview, int]:
    """Return the payload and the sequence number of the blob that *view* starts with.

    :param ref: where the table says that it lies, and what it knows of its length and tag
    :raises BlobCorrupt: not the blob that the table names, or damaged
    """
    magic, blob_codec, length, sequence, blob_slot = HEADER.unpack_from(view)
    if (magic, blob_slot, blob_codec) != (MAGIC, slot, codec) or not sector_ref.may_be(ref, length):
        raise BlobCorrupt(f"slot {slot}: another blob lies in its place")
    tag = HEADER_BYTES + length
    if int.from_bytes(view[tag : tag + _CHECK_BYTES], "little") & sector_ref.CHECK_MASK != (
        sector_ref.check(ref)
    ):
        raise BlobCorrupt(f"slot {slot}: an older blob lies in its place")
    header = bytes(view[:HEADER_BYTES])
    try:
        payload = seal.open(header, sequence, view[HEADER_BYTES : tag + TAG_BYTES])
    except BlobCorrupt as error:
        raise BlobCorrupt(f"slot {slot}: {error}") from None
    return payload, sequence


def check_value(
    value: bytes, slot: int, codec: int, ref: int, seal: Seal
) -> tuple[bytes | memoryview, int]:
    """Likewise of a value that is a blob and nothing else, without sectors.

    :raises BlobCorrupt: it is not the one that the table names, or damaged
    """
    if len(value) <= HEADER_BYTES + TAG_BYTES:
        raise BlobCorrupt(f"slot {slot}: its value is cut short")
    magic, blob_codec, length, sequence, blob_slot = HEADER.unpack_from(value)
    whole = HEADER_BYTES + length + TAG_BYTES == len(value)
    if (blob_slot, blob_codec, magic) != (slot, codec, MAGIC) or not (
        whole and sector_ref.may_be(ref, length)
    ):
        raise BlobCorrupt(f"slot {slot}: its key has another blob")
    return seal.open(value[:HEADER_BYTES], sequence, memoryview(value)[HEADER_BYTES:]), sequence


def blob_ref(view: memoryview, sector: int) -> tuple[int, int, int] | None:
    """Return (slot, reference, codec) of the blob that *view*, of *sector*, claims to start with.

    None: there is no header, or less than a blob.
    """
    if len(view) < HEADER_BYTES:
        return None
    magic, codec, length, _, slot = HEADER.unpack_from(view)
    tag = HEADER_BYTES + length
    if magic != MAGIC or not 1 <= length <= PAGE_SIZE or len(view) < tag + TAG_BYTES:
        return None
    checksum = int.from_bytes(view[tag : tag + _CHECK_BYTES], "little")
    return slot, sector_ref.encode(sector, length, checksum), codec
