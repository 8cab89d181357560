"""What every tier below the pool must do (``tiers/base.py``), as checks that any tier can be given.

A tier is named once, in ``media.TIERS``; these checks, the property tests and those of faults then
run over it. A check gets an ``Opener`` of an empty medium and raises AssertionError.
Standard library only, like the rest of this package; ``tests/unit/test_conformance.py`` runs it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from swapfs.errors import TierFull, TierIOError
from swapfs.testing.blobs import SEGMENTS, Blobs, aligned
from swapfs.testing.media import Opener
from swapfs.tiers.blob import BLOB_SECTORS_MAX
from swapfs.tiers.sectors import READ_SLACK_BYTES, Extent, SectorStore
from swapfs.tiers.segments import SEGMENT_SECTORS
from swapfs.units import PAGE_SIZE, SECTOR_SIZE, PSector

Check = Callable[[Opener], None]

# ---- one blob and many ----


def check_what_is_written_is_read_back(opener: Opener) -> None:
    """Blobs of all lengths, alone and with their neighbours."""
    blobs = Blobs(opener(SEGMENTS))
    blobs.put(*((slot, 1 + slot * 397 % PAGE_SIZE) for slot in range(300)))
    blobs.put(*((slot, PAGE_SIZE) for slot in range(300, 310)))
    blobs.check()
    places = sorted(blobs.places.values())
    first, last = places[0], places[20]
    sectors = last.sector + last.sectors - first.sector
    scratch = aligned(sectors * SECTOR_SIZE + READ_SLACK_BYTES)
    together = bytes(blobs.tier.read(first.sector, sectors, scratch))
    at = (last.sector - first.sector) * SECTOR_SIZE
    assert together[at:] == blobs.read(last), "a read of several blobs is not what each is"
    blobs.tier.close()


def check_the_rest_of_an_extent_is_released(opener: Opener) -> None:
    """What a short batch does not need is free, and what is released is too."""
    blobs = Blobs(opener(SEGMENTS))
    for slot in range(20):
        blobs.put((slot, 3000))
    taken = sum(place.sectors for place in blobs.places.values()) * SECTOR_SIZE
    assert blobs.tier.stats().used_bytes == taken
    for slot in range(20):
        blobs.drop(slot)
    assert blobs.tier.stats().used_bytes == 0
    blobs.tier.close()


def check_an_overwritten_blob_leaves_its_neighbours(opener: Opener) -> None:
    """Sectors that were released are used again, and nothing beside them changes."""
    blobs, rng = Blobs(opener(SEGMENTS)), random.Random(1)
    for _ in range(60):
        blobs.put(*((slot, rng.randrange(1, 4097)) for slot in rng.sample(range(200), 12)))
    blobs.check()
    blobs.tier.close()


# ---- room ----


def _take_all(tier: SectorStore) -> list[Extent]:
    taken: list[Extent] = []
    while True:
        try:
            taken.append(tier.allocate(SEGMENT_SECTORS))
        except TierFull:
            return taken
        tier.settle(taken[-1])


def check_full_is_said_and_passes(opener: Opener) -> None:
    """Extents are disjoint and hold a blob; the last of them is followed by TierFull."""
    tier = opener(SEGMENTS)
    taken = _take_all(tier)
    assert taken
    limit = tier.stats().size_bytes // SECTOR_SIZE
    for extent in taken:
        assert BLOB_SECTORS_MAX <= extent.sectors <= SEGMENT_SECTORS
        assert 0 <= extent.sector <= limit - extent.sectors
    for extent, following in pairwise(sorted(taken)):
        assert extent.sector + extent.sectors <= following.sector, "two extents overlap"
    tier.release(*taken[0])
    again = tier.allocate(SEGMENT_SECTORS)
    assert again.sectors >= BLOB_SECTORS_MAX
    tier.settle(again)
    for extent in taken[1:]:
        tier.release(*extent)
    tier.close()


def check_short_room_is_handed_out(opener: Opener) -> None:
    """Less than was asked for is better than nothing; more than was asked for is never given."""
    tier = opener(SEGMENTS)
    assert tier.allocate(BLOB_SECTORS_MAX).sectors == BLOB_SECTORS_MAX
    last = _take_all(tier)[-1]
    hole = 4 * BLOB_SECTORS_MAX  # any hole of that many sectors must do, wherever it begins
    tier.release(last.sector, min(hole, last.sectors))
    extent = tier.allocate(SEGMENT_SECTORS)
    assert BLOB_SECTORS_MAX <= extent.sectors <= hole
    assert last.sector <= extent.sector
    tier.close()


def check_room_pages_are_kept(opener: Opener) -> None:
    """While fewer than ``room_pages`` raw pages are stored, one more finds room: after cleaning."""
    blobs, rng = Blobs(opener(SEGMENTS // 2)), random.Random(2)
    room = blobs.tier.room_pages()
    assert room > 0
    for _ in range(4 * room):
        slot = rng.randrange(room - 1)
        blobs.put_or_clean((slot, rng.choice((PAGE_SIZE, PAGE_SIZE, rng.randrange(1, 4097)))))
        if not rng.randrange(3):
            blobs.drop(rng.choice(sorted(blobs.places)))
    for slot in range(room - 1):
        blobs.put_or_clean((slot, PAGE_SIZE))
    blobs.check()
    blobs.tier.close()


def check_cleaning_comes_to_an_end(opener: Opener) -> None:
    """It gains free segments, loses nothing, and asks for nothing that it cannot be given."""
    blobs = Blobs(opener(SEGMENTS))
    assert not blobs.tier.segments_to_clean(), "an empty medium needs no cleaning"
    slot = 0
    while True:
        try:
            blobs.put(*((slot + index, 2000) for index in range(64)))
        except TierFull:
            break
        slot += 64
    for gone in sorted(blobs.places):
        if gone % 5:
            blobs.drop(gone)
    before = blobs.tier.stats().free_segments
    assert blobs.clean() > 0
    assert blobs.tier.stats().free_segments > before
    assert not blobs.tier.segments_to_clean()
    blobs.check()
    blobs.tier.close()


def check_a_skipped_segment_is_left_out(opener: Opener) -> None:
    """Until something in it changes; else a damaged blob would be cleaned round and round."""
    blobs = Blobs(opener(SEGMENTS))
    for slot in range(0, 4000, 100):
        try:
            blobs.put(*((slot + index, 3000) for index in range(100)))
        except TierFull:
            break
    for gone in sorted(blobs.places):
        if gone % 4:
            blobs.drop(gone)
    skipped: list[Extent] = []
    while sources := blobs.tier.segments_to_clean():
        for source in sources:
            assert source not in skipped
            blobs.tier.end_cleaning(source, skip=True)
        skipped += sources
    assert skipped
    changed = min(blobs.places)
    home = blobs.places[changed]
    blobs.drop(changed)
    for source in blobs.tier.segments_to_clean():
        is_home = source.sector <= home.sector < source.sector + source.sectors
        assert is_home or source not in skipped
        blobs.tier.end_cleaning(source, skip=False)
    blobs.tier.retry_skipped()
    assert blobs.clean() > 0
    blobs.check()
    blobs.tier.close()


def check_nothing_is_placed_in_what_is_being_cleaned(opener: Opener) -> None:
    """From ``segments_to_clean`` to ``end_cleaning``: else it would never become empty."""
    blobs = Blobs(opener(SEGMENTS))
    slot = 0
    while blobs.tier.stats().free_segments > 2:
        blobs.put(*((slot + index, 3000) for index in range(64)))
        slot += 64
    for gone in sorted(blobs.places):
        if gone % 4:
            blobs.drop(gone)
    sources = blobs.tier.segments_to_clean()
    assert sources
    for taken in _take_all(blobs.tier):
        for source in sources:
            assert not source.sector <= taken.sector < source.sector + source.sectors
    for source in sources:
        blobs.tier.end_cleaning(source, skip=False)
    assert _take_all(blobs.tier), "they are open again"
    blobs.tier.close()


def check_has_room_is_the_last_word(opener: Opener) -> None:
    """After an allocation that failed: True means that cleaning makes room, False that none can."""
    blobs = Blobs(opener(SEGMENTS // 2))
    slot = 0
    while True:  # ends with TierFull only if has_room said no
        try:
            blobs.put_or_clean((slot, PAGE_SIZE))
        except TierFull:
            assert not blobs.tier.has_room()
            break
        slot += 1
    assert slot >= blobs.tier.room_pages()
    for gone in range(0, slot, 2):
        blobs.drop(gone)
    assert blobs.tier.has_room()
    blobs.put_or_clean((0, PAGE_SIZE))
    blobs.check()
    blobs.tier.close()


# ---- what goes wrong ----


def check_bad_sectors_are_never_used_again(opener: Opener) -> None:
    """Neither after a release of what is beside them nor after a rebuild; and the room shrinks."""
    tier = opener(SEGMENTS)
    room = tier.room_pages()
    extent = tier.allocate(SEGMENT_SECTORS)
    bad = Extent(PSector(extent.sector + 8), 16)
    tier.mark_bad(bad)
    tier.release(extent.sector, 8)
    tier.release(PSector(bad.sector + bad.sectors), extent.sectors - 24)
    tier.settle(extent)
    assert tier.stats().bad_bytes == bad.sectors * SECTOR_SIZE
    assert tier.room_pages() <= room
    for _ in range(2):
        for taken in _take_all(tier):
            assert taken.sector + taken.sectors <= bad.sector or (
                taken.sector >= bad.sector + bad.sectors
            ), "bad sectors were handed out"
        tier.begin_rebuild()
        assert tier.stats().bad_bytes == bad.sectors * SECTOR_SIZE
    tier.close()


def check_errors_are_those_of_tiers(opener: Opener) -> None:
    """A read past the end of the medium is a TierIOError and nothing else."""
    tier = opener(SEGMENTS)
    end = PSector(tier.stats().size_bytes // SECTOR_SIZE)
    for sector in (PSector(end - 1), end, PSector(end * 2)):
        try:
            tier.read(sector, 8, aligned(8 * SECTOR_SIZE + READ_SLACK_BYTES))
        except TierIOError:
            continue
        raise AssertionError("a read past the end went well")
    tier.close()


# ---- another server, and many threads ----


def check_a_rebuild_knows_what_it_is_told(opener: Opener) -> None:
    """Another server opens the medium: what it marks stays, all else is free."""
    blobs = Blobs(opener(SEGMENTS))
    blobs.put(*((slot, 1500) for slot in range(200)))
    blobs.tier.close()
    blobs.tier = tier = opener(SEGMENTS)
    tier.begin_rebuild()
    for slot in range(0, 200, 2):
        del blobs.places[slot]
    for place in blobs.places.values():
        tier.mark(place.sector, place.sectors)
    assert tier.stats().used_bytes == sum(p.sectors for p in blobs.places.values()) * SECTOR_SIZE
    for _ in range(40):
        try:
            blobs.put(*((1000 + len(blobs.places) + index, 2500) for index in range(50)))
        except TierFull:
            break
    blobs.check()
    tier.close()


def check_threads_do_not_meet(opener: Opener) -> None:
    """Four of them store, read and release at once; each finds what is its own."""
    tier = opener(2 * SEGMENTS)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        rng, blobs = random.Random(number), Blobs(tier, first_sequence=number << 40)
        try:
            for _ in range(40):
                slots = rng.sample(range(number * 1000, number * 1000 + 60), 8)
                blobs.put(*((slot, rng.randrange(1, 4097)) for slot in slots))
                blobs.check()
            for slot in list(blobs.places):
                blobs.drop(slot)
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    assert tier.stats().used_bytes == 0
    tier.close()


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
