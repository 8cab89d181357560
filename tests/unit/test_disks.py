"""Reads of disks without Python: what they return, leave to Python, and read ahead."""

from __future__ import annotations

import os
import random
import threading
from array import array
from pathlib import Path

import pytest

from swapfs.core._core import Decoder, Disks
from swapfs.errors import BlobCorrupt, TierIOError
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.tiers import sector_ref
from swapfs.tiers.aead import AeadSeal
from swapfs.tiers.file import FileTier
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.units import PAGE_SIZE, SECTOR_SIZE, MiB
from swapfs.vlayer.disks import make_disks
from swapfs.vlayer.entry import blob_codec, is_raw, ref_of

SLOTS = 1024
SEALS: tuple[Seal, ...] = (AeadSeal(bytes(range(32))), ChecksumSeal())
KINDS = ("heap", "text", "random")


def content(slot: int, version: int = 0) -> bytes:
    return page(KINDS[slot % len(KINDS)], slot + 7919 * version)


class Setup:
    """A harness whose pages are all on a disk, and what one thread reads with."""

    def __init__(self, folder: Path, *, slots: int = SLOTS, seal: Seal = SEALS[0]) -> None:
        self.path = folder / "backing"
        tier = FileTier(self.path, 16 * MiB, seal=seal)
        self.harness = Harness(SLOTS, 8 * MiB, tier, log_bytes=PAGE_SIZE)
        for slot in range(slots):
            assert self.harness.write(slot, content(slot)) > 0
        while self.harness.down.demote(SLOTS):
            pass
        self.own = (bytearray(PAGE_SIZE), Decoder())

    def load(self, slot: int, count: int = 1) -> bytes | None:
        """Return the pages, or None if Python is to read them."""
        out = bytearray(64 * PAGE_SIZE)
        done = self.harness.disks.load(out, *self.own, slot, count)
        return bytes(out[: count * PAGE_SIZE]) if done else None

    def damage(self, slot: int, byte: int = 30) -> None:
        """Flip a bit of the blob of *slot* on the disk."""
        fd = os.open(self.path, os.O_RDWR)
        at = self.harness.sector(slot) * SECTOR_SIZE + byte
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 4]), at)
        os.close(fd)

    def assert_nothing_is_under_way(self) -> None:
        assert all(not level.in_use for level in self.harness.stack)


def expected(slot: int, count: int = 1) -> bytes:
    return b"".join(content(at) for at in range(slot, slot + count))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.parametrize("seal", SEALS, ids=["aead", "checksum"])
def test_pages_are_what_was_written(tmp_path: Path, seal: Seal) -> None:
    setup, rng = Setup(tmp_path, seal=seal), random.Random(2)
    assert setup.harness.layer.table.slots_in(1) == SLOTS
    for _ in range(300):
        count = rng.choice((1, 1, 8, 33, 64))
        slot = rng.randrange(SLOTS - count)
        assert setup.load(slot, count) == expected(slot, count)
    counters = setup.harness.layer.counters
    (level,) = setup.harness.stack
    assert counters.get("read_file_pages") == level.figures.get("read_pages") > 300
    assert counters.get("file_read_ops") == level.figures.get("reads") == sum(level.reading.counts)
    assert counters.get("file_read_bytes") == level.figures.get("read_bytes")
    assert level.reading.sum_s > 0
    setup.assert_nothing_is_under_way()
    setup.harness.check()


def test_a_run_mixes_memory_disk_and_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path, slots=20)
    setup.harness.write(5, content(5, 1))
    setup.harness.layer.discard_run(6, 1)
    wanted = [content(slot) for slot in range(20)] + [bytes(PAGE_SIZE)] * 2
    wanted[5], wanted[6] = content(5, 1), bytes(PAGE_SIZE)
    assert setup.load(0, 22) == b"".join(wanted)
    counters = setup.harness.layer.counters
    counted = [counters.get(f"read_{kind}_pages") for kind in ("pool", "empty", "file")]
    assert counted == [1, 3, 18]


@pytest.mark.parametrize("byte", [0, 4, 6, 9, 17, 24, 200], ids=str)
def test_a_flipped_bit_is_pythons_to_judge_and_costs_that_slot_only(
    setup: Setup, byte: int
) -> None:
    setup.damage(100, byte)
    assert setup.load(100) is None
    assert setup.load(96, 8) is None
    with pytest.raises(BlobCorrupt, match="slot 100"):
        setup.harness.load(100)
    for slot in (*range(90, 100), *range(101, 110)):
        assert setup.load(slot) == expected(slot)
    setup.assert_nothing_is_under_way()


def test_damage_in_what_was_read_ahead_costs_that_slot_only(setup: Setup) -> None:
    setup.damage(60)
    for slot in range(SLOTS):
        assert setup.load(slot) == (None if slot == 60 else expected(slot))
    with pytest.raises(BlobCorrupt, match="slot 60"):
        setup.harness.load(60)


def _blob(setup: Setup, slot: int, *, of: int, same_tag: bool) -> tuple[bytes, int]:
    """Return a good blob of slot *of*, as long as that of *slot*; with the tag bits of its word."""
    ref = ref_of(setup.harness.layer.table.get(slot))
    sectors, view = sector_ref.sectors(ref), memoryview(bytearray(9 * SECTOR_SIZE))
    payload = bytes(sector_ref.longest(ref))
    codec = blob_codec(setup.harness.layer.table.get(slot))
    for sequence in range(1 << 20, 1 << 21):
        tag = SEALS[0].sealer.put(view, 0, of, codec, sequence, payload)
        if (tag & sector_ref.CHECK_MASK == sector_ref.check(ref)) == same_tag:
            return bytes(view[: sectors * SECTOR_SIZE]), sector_ref.sector(ref) * SECTOR_SIZE
    raise AssertionError("no tag like it")


@pytest.mark.parametrize(("other", "same_tag"), [(1, True), (0, False)])
def test_another_blob_in_its_place_is_pythons_to_judge(
    setup: Setup, other: int, *, same_tag: bool
) -> None:
    """Of another slot, or an older one of the same: each is a good blob by itself."""
    slot = 98  # its page is kept raw, so any payload is a page
    assert is_raw(setup.harness.layer.table.get(slot))
    data, at = _blob(setup, slot, of=slot + other, same_tag=same_tag)
    fd = os.open(setup.path, os.O_RDWR)
    os.pwrite(fd, data, at)
    os.close(fd)
    assert setup.load(slot) is None
    with pytest.raises(BlobCorrupt, match="lies in its place"):
        setup.harness.load(slot)


def test_a_disk_that_ends_early_costs_what_lay_there(setup: Setup) -> None:
    size = setup.path.stat().st_size
    last = max(range(SLOTS), key=setup.harness.sector)
    os.truncate(setup.path, setup.harness.sector(last) * SECTOR_SIZE // PAGE_SIZE * PAGE_SIZE)
    assert setup.load(last) is None
    with pytest.raises(TierIOError):
        setup.harness.load(last)
    good = [slot for slot in range(last - 40, last) if setup.load(slot) == expected(slot)]
    assert good[:30] == list(range(last - 40, last - 10)), "although more was to be read ahead"
    os.truncate(setup.path, size)
    setup.assert_nothing_is_under_way()


def test_slots_in_order_are_read_ahead(setup: Setup) -> None:
    for slot in range(0, SLOTS, 8):
        assert setup.load(slot, 8) == expected(slot, 8)
    counters = setup.harness.layer.counters
    assert counters.get("read_file_pages") == SLOTS
    assert counters.get("file_read_ops") < SLOTS // 8 // 3
    assert 0 < counters.get("read_ahead_ops") <= counters.get("file_read_ops")
    assert counters.get("read_ahead_bytes") < counters.get("file_read_bytes")
    assert counters.get("read_ahead_pages") > SLOTS // 2


def test_slots_at_random_are_not(setup: Setup) -> None:
    for slot in range(0, SLOTS * 401, 401):
        assert setup.load(slot % SLOTS) == expected(slot % SLOTS)
    counters = setup.harness.layer.counters
    assert counters.get("read_ahead_ops") < SLOTS // 10


def test_what_was_read_ahead_is_forgotten_when_it_changes(setup: Setup) -> None:
    harness, rng = setup.harness, random.Random(4)
    wanted = {slot: content(slot) for slot in range(SLOTS)}
    for version in range(1, 9):
        for slot in range(0, SLOTS, 4):
            assert setup.load(slot, 4) == b"".join(wanted[s] for s in range(slot, slot + 4))
            changed = min(SLOTS - 1, slot + rng.randrange(1, 60))
            wanted[changed] = content(changed, version)
            assert harness.write_direct(changed, wanted[changed]) > 0
        harness.down.clean()
    harness.check()


def test_a_place_that_was_written_anew_is_not_found_as_it_was(setup: Setup) -> None:
    """The same sectors for the same slot: only that it was written tells the two apart."""
    harness = setup.harness
    for slot in range(256):
        assert setup.load(slot) == expected(slot)
    places = {slot: harness.sector(slot) for slot in range(256, 300)}
    (level,) = harness.stack
    disks = harness.disks
    for slot, sector in places.items():
        disks.forget(level.number, sector, 1)
        reads = harness.counter("file_read_ops")
        assert setup.load(slot) == expected(slot)
        assert harness.counter("file_read_ops") == reads + 1, "it was there still"


def test_what_was_written_is_told_before_a_word_names_it(setup: Setup) -> None:
    harness, told = setup.harness, []
    (level,) = harness.stack

    def written(sector: int, sectors: int) -> None:
        told.append((sector, sectors))
        assert not harness.layer.lock.locked()
        assert harness.layer.table.get(7) == before

    level.tier.direct(written)
    before = harness.layer.table.get(7)
    assert harness.write_direct(7, content(7, 1)) > 0
    ((sector, sectors),) = told
    assert sector <= harness.sector(7) < sector + sectors


def test_a_warm_page_stays_and_a_young_one_was_refaulted(setup: Setup) -> None:
    table = setup.harness.layer.table
    for heat in range(1, 5):
        assert setup.load(3) == expected(3)
        assert table.get(3) >> 3 & 3 == min(heat, 3)
    assert setup.harness.counter("refaulted_pages") == 4


def test_a_tier_that_only_python_reads_is_left_to_it() -> None:
    harness = Harness(64, MiB, MemoryTier(4))
    harness.write(1, content(1))
    harness.down.demote(1)
    out = bytearray(PAGE_SIZE)
    assert not harness.disks.load(out, bytearray(PAGE_SIZE), Decoder(), 1, 1)
    assert harness.load(1) == content(1)


def test_a_tier_that_went_is_not_read(setup: Setup) -> None:
    (level,) = setup.harness.stack
    with setup.harness.layer.lock:
        level.readers[0] = 1
        with pytest.raises(RuntimeError, match="being read"):
            setup.harness.disks.detach(level.number)
        level.readers[0] = 0
        setup.harness.disks.detach(level.number)
        setup.harness.disks.detach(level.number)
    assert setup.load(1) is None


@pytest.mark.parametrize(("slot", "count"), [(-1, 1), (0, 0), (0, 65), (SLOTS, 1), (SLOTS - 1, 2)])
def test_slots_that_are_not_there_are_refused(setup: Setup, slot: int, count: int) -> None:
    assert setup.load(slot, count) is None


def test_readers_of_the_same_pages_and_a_writer_at_once(setup: Setup) -> None:
    harness, wrong = setup.harness, []
    stop = threading.Event()

    def read(seed: int) -> None:
        rng, own, out = random.Random(seed), (bytearray(PAGE_SIZE), Decoder()), bytearray(1 << 16)
        slot = 0
        for _ in range(2000):
            slot = (slot + 4) % 896 if rng.random() < 0.9 else rng.randrange(896)
            if harness.disks.load(out, *own, slot, 4) and out[: 4 * PAGE_SIZE] != expected(slot, 4):
                wrong.append(slot)

    def write() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            for slot in range(960, SLOTS, 8):
                harness.write_direct(slot, *(content(slot + i, version) for i in range(8)))
            harness.down.clean()

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    writer = threading.Thread(target=write)
    for thread in (*readers, writer):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    writer.join()
    assert not wrong
    setup.assert_nothing_is_under_way()
    harness.check()


def test_what_is_submitted_is_handed_out_in_order(setup: Setup) -> None:
    disks, own = setup.harness.disks, (bytearray(PAGE_SIZE), *setup.own)
    jobs = [object() for _ in range(100)]
    for job in jobs:
        disks.submit(job)
    assert [disks.get(*own) for _ in jobs] == jobs
    disks.submit(None)
    assert disks.get(*own) is None


def test_arguments_that_do_not_fit_are_refused(setup: Setup) -> None:
    layer = setup.harness.layer
    counts = (0, 1, 2, 3, 4, 5, 6)
    with pytest.raises(ValueError, match="not inside"):
        Disks(layer.own_reader, array("Q", [0]), 1, 4, 16, (*counts[:6], 1 << 20))
    with pytest.raises(ValueError, match="so many"):
        Disks(layer.own_reader, array("Q", [0]), 1, 99, 16, counts)
    disks = make_disks(Harness(8, MiB).layer, array("Q", [0]), 1)
    with pytest.raises(ValueError, match="less than a page"):
        disks.get(bytearray(PAGE_SIZE), bytearray(8), Decoder())
    with pytest.raises(TypeError, match="not a Decoder"):
        disks.get(bytearray(PAGE_SIZE), bytearray(PAGE_SIZE), object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such disk"):
        disks.attach(
            *(9, 0, 1, SEALS[0].sealer, array("Q", bytes(32)), array("Q", bytes(32))),
            *(array("Q", [0]), (0, 1, 2)),
        )
