"""Blobs as they lie in a file."""

from __future__ import annotations

import threading
from array import array

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swapfs.core._core import Sealer
from swapfs.errors import BlobCorrupt
from swapfs.tiers import sector_ref
from swapfs.tiers.aead import AeadSeal
from swapfs.tiers.base import Room, Staging
from swapfs.tiers.blob import Batch, BatchItem, blob_ref, check_blob
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.tiers.sector_ref import BLOB_SECTORS_MAX, HEADER_BYTES, TAG_BYTES, blob_sectors
from swapfs.units import PAGE_SIZE, SECTOR_SIZE

SEALS = [ChecksumSeal(), AeadSeal(bytes(range(32)))]


class Space(Room):
    """So many sectors."""

    def __init__(self, size: int) -> None:
        self.size = size

    def cost(self, length: int) -> int:
        return blob_sectors(length)


seals = pytest.mark.parametrize("seal", SEALS, ids=["checksum", "aead"])


@pytest.mark.parametrize(
    ("length", "sectors"), [(1, 1), (472, 1), (473, 2), (984, 2), (985, 3), (PAGE_SIZE, 9)]
)
def test_blob_sectors(length: int, sectors: int) -> None:
    assert blob_sectors(length) == sectors
    assert sectors <= BLOB_SECTORS_MAX


@pytest.mark.parametrize("length", range(1, PAGE_SIZE + 1, 7))
def test_a_reference_knows_what_a_blob_takes_and_almost_its_length(length: int) -> None:
    ref = sector_ref.encode((1 << 32) - 1, length, 0xFFFFFFFF)
    assert ref >> 53 == 0
    assert sector_ref.sector(ref) == (1 << 32) - 1
    assert sector_ref.check(ref) == 0x1FFF
    assert sector_ref.sectors(ref) == blob_sectors(length)
    assert length <= sector_ref.longest(ref) <= max(24, min(length + 15, PAGE_SIZE))
    assert sector_ref.may_be(ref, length)
    assert not sector_ref.may_be(ref, length + 24)


def _ref(item: BatchItem, length: int = 0) -> int:
    return sector_ref.encode(0, length or item.length, item.checksum)


def _batch(sectors: int = 64, seal: Seal = SEALS[0]) -> Batch:
    return Batch(memoryview(bytearray(b"\xaa" * sectors * SECTOR_SIZE)), seal)


@seals
def test_a_batch_packs_blobs_at_sectors_and_leaks_no_memory(seal: Seal) -> None:
    batch = _batch(seal=seal)
    first = batch.add(5, b"x" * 100, 1, 10)
    second = batch.add(6, memoryview(b"y" * PAGE_SIZE), 0, 11)
    assert (first.start_sector, first.sectors) == (0, 1)
    assert (second.start_sector, second.sectors) == (1, 9)
    assert batch.sectors == 10
    assert bytes(batch.view[HEADER_BYTES + 116 : SECTOR_SIZE]) == bytes(SECTOR_SIZE - 140)
    for item, data, sequence in ((first, b"x" * 100, 10), (second, b"y" * PAGE_SIZE, 11)):
        view = batch.view[item.start_sector * SECTOR_SIZE :]
        payload, found = check_blob(view, item.slot, item.codec, _ref(item), seal)
        assert (bytes(payload), found) == (data, sequence)
        assert blob_ref(view, 0) == (item.slot, _ref(item), item.codec)


def test_fits_is_exact() -> None:
    batch = _batch(12)
    batch.reset(10)
    batch.add(1, b"z", 1, 1)
    assert batch.fits(PAGE_SIZE)
    batch.add(2, bytes(PAGE_SIZE), 0, 2)
    assert not batch.fits(1)
    batch.reset(12)
    assert batch.fits(PAGE_SIZE)
    assert not batch.items


@seals
def test_every_flipped_bit_is_found(seal: Seal) -> None:
    batch = _batch(2, seal)
    item = batch.add(3, bytes(range(200)), 1, 77)
    whole = bytes(batch.view)
    for bit in range((HEADER_BYTES + 200 + TAG_BYTES) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BlobCorrupt):
            check_blob(memoryview(damaged), 3, 1, _ref(item), seal)


@pytest.mark.parametrize(("slot", "length", "codec"), [(4, 200, 1), (3, 180, 1), (3, 200, 0)])
def test_another_blob_in_its_place_is_found(slot: int, length: int, codec: int) -> None:
    batch = _batch(2)
    item = batch.add(3, bytes(200), 1, 1)
    with pytest.raises(BlobCorrupt, match=f"slot {slot}"):
        check_blob(batch.view, slot, codec, _ref(item, length), SEALS[0])


def test_an_older_copy_of_the_same_page_is_found() -> None:
    old, new = _batch(2), _batch(2)
    old.add(3, b"same page", 1, sequence=1)
    item = new.add(3, b"same page", 1, sequence=2)
    with pytest.raises(BlobCorrupt, match="older"):
        check_blob(old.view, 3, 1, _ref(item), SEALS[0])


def test_an_encrypted_blob_shows_nothing_of_its_page() -> None:
    batch = _batch(2, SEALS[1])
    batch.add(3, b"a secret that is long enough " * 8, 1, 1)
    assert b"secret" not in bytes(batch.view)
    assert len(set(bytes(batch.view[HEADER_BYTES : HEADER_BYTES + 200]))) > 60


@pytest.mark.parametrize("length", [1, 15, 16, 17, 1400, PAGE_SIZE])
def test_a_blob_is_sealed_as_by_another_library(length: int) -> None:
    payload, key = bytes(range(256)) * 17, bytes(range(32))
    sequence = (1 << 63) + 5
    batch = _batch(9, SEALS[1])
    item = batch.add(3, payload[:length], 1, sequence)
    header = bytes(batch.view[:HEADER_BYTES])
    sealed = bytes(batch.view[HEADER_BYTES : HEADER_BYTES + length + TAG_BYTES])
    other, nonce = AESGCM(key), sequence.to_bytes(12, "little")
    assert other.decrypt(nonce, sealed, header) == payload[:length]
    assert SEALS[1].open(header, sequence, memoryview(sealed)) == payload[:length]
    assert SEALS[1].seal(header, sequence, payload[:length]) == sealed
    assert int.from_bytes(sealed[-TAG_BYTES:][:4], "little") == item.checksum


def test_many_threads_seal_and_open_at_once() -> None:
    seal, wrong = SEALS[1], []

    def work(number: int) -> None:
        header = number.to_bytes(HEADER_BYTES, "little")
        for sequence in range(300):
            payload = bytes([number, sequence % 256]) * 700
            if seal.open(header, sequence, memoryview(seal.seal(header, sequence, payload))) != (
                payload
            ):
                wrong.append((number, sequence))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@seals
def test_many_blobs_are_sealed_as_one_by_one(seal: Seal) -> None:
    staging = Staging(memoryview(bytearray(64 * 1024)))
    staging.reset(Space(128))
    one_by_one, at_once = _batch(130, seal), _batch(130, seal)
    for number, length in enumerate((1, 472, 473, 1400, PAGE_SIZE, 30)):
        payload = bytes([number + 1]) * length
        staging.add(100 + number, payload, number % 2, 50 + number)
        one_by_one.add(100 + number, payload, number % 2, 50 + number)
    at_once.reset(128)
    refs = at_once.fill(staging, 1 << 20)
    assert at_once.view == one_by_one.view
    assert at_once.sectors == one_by_one.sectors
    assert at_once.slots == one_by_one.slots == list(range(100, 106))
    assert refs == [
        sector_ref.encode((1 << 20) + item.start_sector, item.length, item.checksum)
        for item in one_by_one.items
    ]
    at_once.reset(5)
    with pytest.raises(ValueError, match="not inside"):
        at_once.fill(staging, 0)
    with pytest.raises(TypeError, match="Staged"):
        seal.sealer.put_all(at_once.view, staging.view, [1], array("Q", bytes(40)), 0)
    with pytest.raises(ValueError, match="can be noted"):
        seal.sealer.put_all(at_once.view, staging.view, staging.items, array("Q"), 0)


@seals
def test_a_blob_that_is_not_inside_its_buffer_is_refused(seal: Seal) -> None:
    view = bytearray(2 * SECTOR_SIZE)
    for position, length in ((0, PAGE_SIZE), (1, 900), (-1, 1), (2 * SECTOR_SIZE, 1), (0, 0)):
        with pytest.raises(ValueError, match="not inside"):
            seal.sealer.put(view, position, 1, 1, 1, bytes(length))
    assert view == bytes(2 * SECTOR_SIZE)
    with pytest.raises(ValueError, match="less than a tag"):
        seal.sealer.open(bytes(HEADER_BYTES), 1, bytes(TAG_BYTES - 1))


def test_only_a_seal_makes_a_sealer() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AeadSeal(bytes(31))
    with pytest.raises(ValueError, match="PyCapsule"):
        Sealer(object())


def test_another_key_opens_nothing() -> None:
    batch = _batch(2, SEALS[1])
    item = batch.add(3, b"x" * 50, 1, 1)
    other = AeadSeal(bytes(32))
    with pytest.raises(BlobCorrupt, match="slot 3: authentication failed"):
        check_blob(batch.view, 3, 1, _ref(item), other)


def test_no_blob_is_seen_in_anything_else() -> None:
    assert blob_ref(memoryview(bytes(SECTOR_SIZE)), 0) is None
    assert blob_ref(memoryview(b"SwBl"), 0) is None
    batch = _batch(1)
    batch.add(3, b"x", 1, 1)
    batch.view[6:8] = (5000).to_bytes(2, "little")
    assert blob_ref(batch.view, 0) is None
