"""Random histories of a swap file against a dict of pages, over every combination of tiers."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from swapfs.errors import OverQuota
from swapfs.policy import BUILT_IN, Policy, find
from swapfs.policy.base import NOTHING_YET, Eyes, Facts
from swapfs.policy.second_chance import SecondChance
from swapfs.region.export_rows import ExportRow
from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.testing.blobs import aligned
from swapfs.testing.harness import Harness
from swapfs.testing.media import TIERS, open_stack
from swapfs.testing.memory import MemoryTier
from swapfs.testing.model import SwapModel
from swapfs.testing.pages import KINDS, page
from swapfs.tiers.base import Tier
from swapfs.tiers.pool import RAW_CLASS
from swapfs.tiers.sector_tier import SectorTier
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, TIERS_MAX, MiB
from swapfs.vlayer import fetch
from swapfs.vlayer.shrink import Shrink, grow
from swapfs.vlayer.stack import Phase
from swapfs.vlayer.verify import Verify

SLOTS = 6 * CLUSTER_SLOTS
ROOMY_BYTES, TINY_BYTES = 2 * MiB, 8 * 64 * 1024
slots_st = st.one_of(
    st.integers(0, 24),
    st.integers(CLUSTER_SLOTS - 8, CLUSTER_SLOTS + 8),
    st.builds(
        lambda cluster, at: cluster * CLUSTER_SLOTS + at,
        st.sampled_from([2, 4]),
        st.integers(-8, 24),
    ),
    st.integers(0, SLOTS - 1),
)
pages_st = st.builds(page, st.sampled_from(KINDS), st.integers(0, 30))
counts_st = st.integers(1, 80)


SEVEN = "memory + blobs + memory + blobs + memory + blobs + memory"
"""With the pool as many as there may be."""
STACKS = (*TIERS, SEVEN, "blobs", "memory + memory", "blobs + memory", "memory + blobs")


EXPORTS = (
    ExportRow("swap", 0, 2 * CLUSTER_SLOTS - 3, tiers=0b0001_1110),
    ExportRow("batch", 2 * CLUSTER_SLOTS, 2 * CLUSTER_SLOTS, 0, 64 * PAGE_SIZE, 0b1110_0000),
    ExportRow("rest", 4 * CLUSTER_SLOTS, 2 * CLUSTER_SLOTS),
)
"""One may use the first four tiers, one the other three and has a quota, one may use all."""
RAW_BELOW_BYTES = 9 * 512
"""What a page that does not compress takes on a disk."""


class Slots(RuleBasedStateMachine):
    """Every rule does the same to the harness and to the model."""

    segments = 4
    pool_bytes = ROOMY_BYTES
    promote = False
    recompress = False
    tiers = ""
    policy: type[Policy] = SecondChance
    log_bytes = 0
    prefetch = 0
    exports: tuple[ExportRow, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.model = SwapModel(SLOTS)
        self.scratch = aligned(fetch.SCRATCH_BYTES)
        self.harness: Harness

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swapfs-tier-"))
        self.opener = self.make_opener()
        self.harness = Harness(
            *(SLOTS, self.pool_bytes, self._open()),
            promote=self.promote,
            recompress=self.recompress,
            policy=self.policy,
            prefetch=self.prefetch,
            log_bytes=self.log_bytes,
            exports=self.exports,
        )

    def make_opener(self) -> Callable[[int], list[Tier]]:
        return open_stack(self.tiers, self.folder)

    def _open(self) -> list[Tier] | None:
        return self.opener(self.segments) or None

    def has_file(self) -> bool:
        return bool(self.tiers)

    def has_several(self) -> bool:
        return " + " in self.tiers

    @rule(slot=slots_st, kind=st.sampled_from(KINDS), seed=st.integers(0, 30), count=counts_st)
    def write(self, slot: int, kind: str, seed: int, count: int) -> None:
        for at in range(slot, min(slot + count, SLOTS)):
            data = page(kind, seed * 7 + at % 5)
            before = self.harness.counter("failed_write_over_quota")
            result = self.harness.write(at, data)
            if result > 0:
                self.model.write(at, data)
            else:
                assert result == -ENOSPC
                over_quota = self.harness.counter("failed_write_over_quota") > before
                self.over_quota(at) if over_quota else self.refused(at)

    def over_quota(self, slot: int) -> None:
        """Nothing is refused that is within the quota, with a page of the table."""
        export = self.harness.layer.exports.at(slot)
        most = export.physical_bytes + RAW_BELOW_BYTES + PAGE_SIZE
        assert 0 < export.quota_bytes < most

    def refused(self, slot: int) -> None:
        """A write is refused only if no tier that it may go to has room (I6)."""
        states = self.harness.layer.table.state_counts()
        # One zspage for the tables, one to compact with, and a place for the new page.
        zspages = self.harness.layer.pool.zspages.limit - 2
        held = states["raw"] + states["compressed"] + states["recompressed"]
        assert held >= zspages * 16 - 1
        if self.harness.tier is not None:
            levels = self.harness.layer.exports.levels_at(slot)
            there = sum(self.harness.layer.table.slots_in(level.number) for level in levels)
            assert there >= sum(level.tier.guaranteed_pages() for level in levels)

    @rule(slot=slots_st, count=counts_st)
    def read(self, slot: int, count: int) -> None:
        count = min(count, SLOTS - slot)
        got = self.harness.load(slot, count)
        assert got == b"".join(self.model.read(s) for s in range(slot, slot + count))

    @rule(slot=slots_st, count=st.one_of(counts_st, st.integers(1, SLOTS)))
    def discard(self, slot: int, count: int) -> None:
        count = min(count, SLOTS - slot)
        assert self.harness.layer.discard_run(slot, count) == self.model.discard(slot, count)

    @rule(slot=slots_st, start=st.integers(0, 4095), data=st.binary(min_size=1, max_size=600))
    def patch(self, slot: int, start: int, data: bytes) -> None:
        data = data[: 4096 - start]
        with suppress(OverQuota):  # then the page is as it was
            self._patch(slot, start, data)

    def _patch(self, slot: int, start: int, data: bytes) -> None:
        layer = self.harness.layer
        done = layer.patch(slot, start, data, bytearray(4096))
        if done is None:
            seen = layer.table.get(slot)
            old = bytearray(self.harness.load(slot))
            old[start : start + len(data)] = data
            done = layer.replace_file_page(slot, seen, memoryview(old))
            if done is None:
                assert self.promote, "nothing else moves a page here"
                done = layer.patch(slot, start, data, bytearray(4096))
        if done:
            self.model.patch(slot, start, data)

    @precondition(lambda self: self.recompress)
    @rule()
    def walk(self) -> None:
        """What is cold becomes zstd, and what was read often lz4 again."""
        before = self.harness.counter("recompressed_pages")
        returned = self.harness.counter("recompress_returned_pages")
        turned = self.harness.recompressor.walk()
        returned = self.harness.counter("recompress_returned_pages") - returned
        assert turned == self.harness.counter("recompressed_pages") - before + returned

    @precondition(has_file)
    @rule(pages=st.integers(1, 300))
    def demote(self, pages: int) -> None:
        assert self.harness.down.demote(pages) <= pages

    @precondition(has_file)
    @rule()
    def balance(self) -> None:
        self.harness.down.balance()

    @precondition(has_file)
    @rule()
    def clean(self) -> None:
        self.harness.down.clean()
        assert not any(level.tier.cleaning() for level in self.harness.stack)

    @precondition(has_several)
    @rule(number=st.integers(0, 6))
    def drain(self, number: int) -> None:
        """A tier is emptied as far as the others have room, and then used again."""
        number = 1 + number % len(self.harness.stack)
        level = self.harness.stack[number]
        before = self.harness.layer.table.slots_in(number)
        end = self.harness.down.drains.drain(number).run()
        left = self.harness.layer.table.slots_in(number)
        assert end.moved == before - left
        assert end.done == (not left)
        assert end.done or end.problem == "no other tier has room"
        assert (end.lost, end.unreadable) == (0, 0)
        level.phase = Phase.ACTIVE

    @precondition(has_several)
    @rule(pages=st.integers(1, 300))
    def sink(self, pages: int) -> None:
        before = self.harness.layer.table.slots_in(1)
        end = self.harness.down.drains.sink(1, pages).run()
        assert end.moved <= pages
        assert self.harness.layer.table.slots_in(1) == before - end.moved
        assert end.moved == min(pages, before) or end.problem

    @precondition(has_several)
    @rule()
    def waterfall(self) -> None:
        """What is cold sinks from each tier that presses."""
        for level in self.harness.stack:
            level.presses = level.health.full = True
        before = self.harness.layer.table.state_counts()["file"]
        while self.harness.down.drains.step(lambda: True):
            pass
        assert self.harness.layer.table.state_counts()["file"] == before

    @precondition(lambda self: self.pool_bytes == ROOMY_BYTES)
    @rule(zspages=st.integers(16, ROOMY_BYTES // ZSPAGE_BYTES))
    def resize(self, zspages: int) -> None:
        """The pool gets another size, or has no room for that and stays as it is."""
        layer = self.harness.layer
        if zspages > layer.pool.zspages.limit:
            grow(layer, zspages)
        elif not Shrink(layer, zspages, self._make_room).run():
            return
        self.harness.region.pool_bytes = zspages * ZSPAGE_BYTES
        assert layer.pool.limit_bytes == zspages * ZSPAGE_BYTES

    def _make_room(self, pages: int) -> bool:
        return self.has_file() and self.harness.down.demote(pages) > 0

    @rule()
    def verify(self) -> None:
        """All is well, and stays so."""
        work = Verify(self.harness.layer, None, self.scratch, rest=lambda _: None)
        assert work.run()
        assert work.findings.checked == work.findings.total
        assert work.findings.told == []

    @rule(wanted=st.integers(1, 20), pages=st.integers(0, 40))
    def compact(self, wanted: int, pages: int) -> None:
        layer, compactor = self.harness.layer, self.harness.stalled.compactor
        before = layer.pool.free_zspages
        gained = compactor.squeeze(pages) if pages else compactor.pack(wanted)
        if pages:
            assert layer.pool.free_zspages >= before
        else:
            assert layer.pool.free_zspages == before + gained
            gain = sum(layer.pool.zspages.gain(size_class) for size_class in range(RAW_CLASS + 1))
            assert gained or not gain, "nothing hinders it here"

    @rule()
    def crash_and_rebuild(self) -> None:
        for level in self.harness.stack:
            level.tier.close()
        self.harness = Harness(
            *(SLOTS, self.pool_bytes, self._open()),
            promote=self.promote,
            recompress=self.recompress,
            policy=self.policy,
            prefetch=self.prefetch,
            region=self.harness.region,
        )

    @invariant()
    def region_is_sound(self) -> None:
        if hasattr(self, "harness"):
            self.harness.check()
            for export in self.harness.layer.exports:
                for number in range(1, TIERS_MAX):
                    assert export.may_use(number) or not export.bytes_in(number)
            for level in self.harness.stack:
                if isinstance(level.tier, SectorTier) and isinstance(
                    level.tier.sectors, MemoryTier
                ):
                    level.tier.sectors.map.check()
            empty = self.harness.layer.table.state_counts()["empty"]
            assert empty == SLOTS - len(self.model.pages)

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        for slot, data in self.model.pages.items():
            assert self.harness.load(slot) == data
        self.harness.layer.discard_run(0, SLOTS)
        self.harness.check()
        assert self.harness.layer.pool.used_bytes == 0
        self.harness.region.close()
        for level in self.harness.stack:
            level.tier.close()
        shutil.rmtree(self.folder)


ONE_EXPORT = (
    (ROOMY_BYTES, 0, False, "", True),
    (TINY_BYTES, 0, False, "", True),
    (ROOMY_BYTES, 8, True, "memory", True),
    (TINY_BYTES, 4, True, "blobs + memory", True),
    (ROOMY_BYTES, 0, False, "", False),
    (TINY_BYTES, 0, False, "", False),
    (ROOMY_BYTES, 8, False, "memory", False),
    (TINY_BYTES, 8, True, "memory", False),
    (ROOMY_BYTES, 8, True, "memory", False),
    *((TINY_BYTES, 4, False, tiers, False) for tiers in STACKS),
    (TINY_BYTES, 4, True, "memory + blobs + memory", False),
)


@pytest.mark.parametrize(
    ("pool_bytes", "segments", "promote", "tiers", "recompress", "exports"),
    [
        *((*row, ()) for row in ONE_EXPORT),
        (TINY_BYTES, 4, False, SEVEN, False, EXPORTS),
        (TINY_BYTES, 4, True, SEVEN, True, EXPORTS),
        (ROOMY_BYTES, 4, True, SEVEN, True, EXPORTS),
        (TINY_BYTES, 0, False, "", True, EXPORTS),
    ],
    ids=[
        "zstd",
        "tiny zstd",
        "zstd + tier",
        "zstd + tiers",
        "pool",
        "tiny pool",
        "pool + tier",
        "tiny + promote",
        "promote",
        *STACKS,
        "three",
        "8 tiers x 3 exports",
        "8 tiers x 3 exports, zstd + promote",
        "8 tiers x 3 exports, roomy",
        "pool x 3 exports",
    ],
)
def test_slots_behave_like_a_dict_of_pages(
    pool_bytes: int,
    segments: int,
    promote: bool,
    tiers: str,
    recompress: bool,
    exports: tuple[ExportRow, ...],
) -> None:
    attributes: dict[str, Any] = {
        "pool_bytes": pool_bytes,
        "segments": segments,
        "promote": promote,
        "tiers": tiers,
        "recompress": recompress,
        "exports": exports,
    }
    machine = type("Configured", (Slots,), attributes)
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))


class Unruly(Policy):
    """Offers anything, several times, and fails now and then."""

    name = "unruly"

    def __init__(self, facts: Facts, eyes: Eyes) -> None:
        super().__init__(facts, eyes)
        self.rng = random.Random(7)

    def candidates(self, tier: int) -> Iterator[int]:
        while self.rng.random() < 0.95:
            yield self.rng.choice([NOTHING_YET, 0, 5, self.rng.randrange(SLOTS)])
        if self.rng.random() < 0.1:
            raise KeyError("unruly")

    def brings_back(self, slot: int, *, refaulted: bool) -> bool | None:
        return self.rng.choice([True, False, None])

    def prefetch(self, slot: int, count: int, most: int) -> int:
        return self.rng.choice([0, 1, most, 3 * most])


@pytest.mark.parametrize("policy", [*BUILT_IN, "unruly"])
def test_under_every_policy(policy: str) -> None:
    """The log is so short that events are missed, and the server dies now and then."""
    attributes: dict[str, Any] = {
        "pool_bytes": TINY_BYTES,
        "segments": 8,
        "promote": True,
        "tiers": "memory",
        "prefetch": 8,
        "log_bytes": PAGE_SIZE,
        "policy": Unruly if policy == "unruly" else find(policy),
    }
    machine = type("Configured", (Slots,), attributes)
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=40))
