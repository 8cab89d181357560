"""Random histories of a swap file against a dict of pages, over every combination of tiers."""

from __future__ import annotations

import shutil
import tempfile
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

from swapfs.region.layout import ZSPAGE_BYTES
from swapfs.testing.harness import Harness
from swapfs.testing.media import TIERS
from swapfs.testing.memory import MemoryTier
from swapfs.testing.model import SwapModel
from swapfs.testing.pages import KINDS, page
from swapfs.tiers.pool import RAW_CLASS
from swapfs.units import CLUSTER_SLOTS, MiB

SLOTS = 6 * CLUSTER_SLOTS
ROOMY_BYTES, TINY_BYTES = 2 * MiB, 8 * 64 * 1024
slots_st = st.one_of(
    st.integers(0, 24),
    st.integers(CLUSTER_SLOTS - 8, CLUSTER_SLOTS + 8),
    st.integers(0, SLOTS - 1),
)
pages_st = st.builds(page, st.sampled_from(KINDS), st.integers(0, 30))
counts_st = st.integers(1, 80)


class Slots(RuleBasedStateMachine):
    """Every rule does the same to the harness and to the model."""

    segments = 0
    pool_bytes = ROOMY_BYTES
    promote = False
    tier = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.model = SwapModel(SLOTS)
        self.harness: Harness

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swapfs-tier-"))
        self.opener = TIERS[self.tier](self.folder)
        tier = self.opener(self.segments) if self.segments else None
        self.harness = Harness(SLOTS, self.pool_bytes, tier, promote=self.promote)

    def has_file(self) -> bool:
        return self.segments > 0

    @rule(slot=slots_st, kind=st.sampled_from(KINDS), seed=st.integers(0, 30), count=counts_st)
    def write(self, slot: int, kind: str, seed: int, count: int) -> None:
        for at in range(slot, min(slot + count, SLOTS)):
            data = page(kind, seed * 7 + at % 5)
            result = self.harness.write(at, data)
            if result > 0:
                self.model.write(at, data)
            else:
                assert result == -ENOSPC
                self.refused()

    def refused(self) -> None:
        """A write is refused only if no tier has room (I6)."""
        states = self.harness.layer.table.state_counts()
        # One zspage for the tables, one to compact with, and a place for the new page.
        zspages = self.pool_bytes // ZSPAGE_BYTES - 2
        assert states["raw"] + states["compressed"] >= zspages * 16 - 1
        if self.harness.tier is not None:
            in_file = self.harness.layer.table.state_counts()["file"]
            assert in_file >= self.harness.tier.room_pages()

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
        assert not self.harness.tier.segments_to_clean()  # type: ignore[union-attr]

    @rule(wanted=st.integers(1, 20), pages=st.integers(0, 40))
    def compact(self, wanted: int, pages: int) -> None:
        layer, compactor = self.harness.layer, self.harness.second.compactor
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
        tier = self.harness.tier
        if tier is not None:
            tier.close()
            tier = self.opener(self.segments)
        self.harness = Harness(
            SLOTS, self.pool_bytes, tier, promote=self.promote, region=self.harness.region
        )

    @invariant()
    def region_is_sound(self) -> None:
        if hasattr(self, "harness"):
            self.harness.check()
            if isinstance(self.harness.tier, MemoryTier):
                self.harness.tier.map.check()
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
        if self.harness.tier is not None:
            self.harness.tier.close()
        shutil.rmtree(self.folder)


@pytest.mark.parametrize(
    ("pool_bytes", "segments", "promote", "tier"),
    [
        (ROOMY_BYTES, 0, False, "memory"),
        (TINY_BYTES, 0, False, "memory"),
        (ROOMY_BYTES, 8, False, "memory"),
        (TINY_BYTES, 8, True, "memory"),
        (ROOMY_BYTES, 8, True, "memory"),
        *((TINY_BYTES, 4, False, tier) for tier in TIERS),
    ],
    ids=["pool", "tiny pool", "pool + tier", "tiny + promote", "promote", *TIERS],
)
def test_slots_behave_like_a_dict_of_pages(
    pool_bytes: int, segments: int, promote: bool, tier: str
) -> None:
    attributes: dict[str, Any] = {
        "pool_bytes": pool_bytes,
        "segments": segments,
        "promote": promote,
        "tier": tier,
    }
    machine = type("Configured", (Slots,), attributes)
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))
