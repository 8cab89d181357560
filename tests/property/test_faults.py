"""The N-th call of the tier fails, for each N and each way to fail: never a wrong byte (I4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from swapfs.errors import BlobCorrupt, TierIOError
from swapfs.policy import BUILT_IN, DEFAULT, find
from swapfs.testing import far_engine
from swapfs.testing.far_engine import FaultyFar
from swapfs.testing.faulty import FAULTS, FaultyTier
from swapfs.testing.faulty_calls import CALLS, FaultyCalls
from swapfs.testing.harness import AnyTier, Harness
from swapfs.testing.media import TIERS, open_stack
from swapfs.testing.memory import MemoryTier
from swapfs.testing.model import SwapModel
from swapfs.testing.pages import mixed_pages
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.layer import SlotDamaged
from swapfs.vlayer.stack import Phase

SLOTS = 2 * CLUSTER_SLOTS
POOL_BYTES = 8 * 64 * 1024
STEPS = 60
PAGES = mixed_pages(seed=11, n=200)
LASTING = 1 << 30


class History:
    """One fixed random history; a fault may end a request but must not falsify one."""

    def __init__(
        self,
        tier: FaultyTier | FaultyCalls | FaultyFar,
        *,
        promote: bool = False,
        tiers: Sequence[AnyTier] = (),
        policy: str = DEFAULT,
    ) -> None:
        self.tier = tier
        self.harness = Harness(
            *(SLOTS, POOL_BYTES, tiers or tier),
            promote=promote,
            recompress=promote,
            policy=find(policy),
            log_bytes=PAGE_SIZE,
        )
        self.model = SwapModel(SLOTS)
        self.rng = random.Random(5)

    def run(self) -> None:
        for _ in range(STEPS):
            actions: list[Callable[[], object]]
            actions = [self.write, self.read, self.discard, self.demote, self.clean]
            weights = [8, 6, 1, 3, 1]
            if self.harness.down.writer.recoder is not None:
                actions.append(self.harness.recompress)
                weights.append(1)
            if len(self.harness.stack) > 1:
                actions += [self.drain, self.sink, self.waterfall]
                weights += [1, 2, 1]
            self.rng.choices(actions, weights)[0]()
            self.tend()
            self.harness.now_s += 100  # every pause after a failure is over
            self.harness.check()

    def write(self) -> None:
        first = self.rng.randrange(SLOTS - 60)
        for slot in range(first, first + self.rng.randrange(1, 60)):
            data = self.rng.choice(PAGES)
            if self.harness.write(slot, data) > 0:
                self.model.write(slot, data)

    def read(self) -> None:
        slot = self.rng.randrange(SLOTS - 40)
        self.read_run(slot, self.rng.randrange(1, 40))

    def read_run(self, slot: int, count: int) -> None:
        """Read as the kernel does after a short answer: again from where it ended."""
        while count:
            try:
                got = self.harness.load(slot, count)
            except (TierIOError, BlobCorrupt, SlotDamaged):
                assert self.has_failed()
                got = b"?" * PAGE_SIZE
            else:
                good = len(got) // PAGE_SIZE
                assert good
                assert got == b"".join(self.model.read(s) for s in range(slot, slot + good))
            slot += len(got) // PAGE_SIZE
            count -= len(got) // PAGE_SIZE

    def has_failed(self) -> bool:
        return any(getattr(level.tier, "failures", 0) for level in self.harness.stack) or bool(
            self.tier.failures
        )

    def discard(self) -> None:
        slot, count = self.rng.randrange(SLOTS - 90), self.rng.randrange(90)
        self.harness.layer.discard_run(slot, count)
        self.model.discard(slot, count)

    def demote(self) -> None:
        self.harness.down.demote(self.rng.randrange(1, 150))

    def clean(self) -> None:
        self.harness.down.clean()

    def tend(self) -> None:
        """Do what the thread of far memory does ten times a second: a history takes less."""
        if isinstance(self.tier, FaultyFar):
            with suppress(TierIOError):
                self.tier.delete_released()

    def drain(self) -> None:
        level = self.harness.stack[self.rng.randrange(1, len(self.harness.stack) + 1)]
        end = self.harness.down.drains.drain(level.number).run()
        assert end.done == (not self.harness.layer.table.slots_in(level.number))
        assert end.done or end.problem
        level.phase = Phase.ACTIVE

    def sink(self) -> None:
        self.harness.down.drains.sink(1, self.rng.randrange(1, 150)).run()

    def waterfall(self) -> None:
        for level in self.harness.stack:
            level.presses = level.health.full = True
        for _ in range(50):
            if not self.harness.down.drains.step(lambda: True):
                break

    def lost_slots(self) -> set[int]:
        """Return the slots that are damaged; every other one must read right."""
        lost = set()
        for slot in range(SLOTS):
            try:
                assert self.harness.load(slot) == self.model.read(slot)
            except (BlobCorrupt, SlotDamaged):
                lost.add(slot)
        return lost


@pytest.mark.parametrize("promote", [False, True], ids=["stay", "promote"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_failing_call_never_falsifies_a_page(fault: str, promote: bool) -> None:
    hits = 0
    for number in (1, 2, 4, 8):
        history = History(FaultyTier(MemoryTier(6), fault, number), promote=promote)
        history.run()
        hits += history.tier.failures
        history.tier.heal()
        lost = history.lost_slots()
        assert lost <= history.tier.damaged_slots
        if "write" not in fault or fault == "write_error":
            assert not lost
        history.harness.region.close()
    assert hits >= 3, "the history has too few such calls to be a test"


@pytest.mark.parametrize("fault", ["write_error", "read_error", "lost_write"])
@pytest.mark.parametrize("policy", BUILT_IN)
def test_a_failing_call_under_every_policy(fault: str, policy: str) -> None:
    history = History(FaultyTier(MemoryTier(6), fault, 2, 3), promote=True, policy=policy)
    history.run()
    assert history.tier.failures
    history.tier.heal()
    assert history.lost_slots() <= history.tier.damaged_slots
    assert not history.harness.counter("policy_failures")
    history.harness.region.close()


@pytest.mark.parametrize("others", ["memory", "blobs + memory"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_call_of_one_tier_of_several(
    fault: str, first: bool, others: str, tmp_path: Path
) -> None:
    """Costs no page but those that a write lied about, wherever they are moved then."""
    hits = 0
    for number in (1, 2, 4, 8):
        folder = tmp_path / str(number)
        folder.mkdir()
        faulty, more = FaultyTier(MemoryTier(4), fault, number), open_stack(others, folder)(3)
        history = History(faulty, tiers=[faulty, *more] if first else [more[0], faulty, *more[1:]])
        history.run()
        hits += faulty.failures
        faulty.heal()
        assert history.lost_slots() <= faulty.damaged_slots
        history.harness.region.close()
    assert hits >= 2, "the history has too few such calls to be a test"


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_never_falsifies_a_page_and_passes(
    fault: str, tier: str, tmp_path: Path
) -> None:
    history = History(FaultyTier(TIERS[tier](tmp_path)(6), fault, 3, LASTING))
    history.run()
    assert history.tier.failures
    history.tier.heal()
    assert history.lost_slots() <= history.tier.damaged_slots
    history.harness.now_s += 1000
    assert (
        history.harness.down.demote(5)
        or not history.harness.layer.table.state_counts()["compressed"]
    )
    history.harness.region.close()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("fault", ["lost_write", "flipped_write"])
def test_a_write_that_lied_is_found_at_the_read(fault: str, tier: str, tmp_path: Path) -> None:
    history = History(FaultyTier(TIERS[tier](tmp_path)(6), fault, 1, LASTING))
    for slot, data in enumerate(PAGES[:60]):
        assert history.harness.store(slot, data)
        history.model.write(slot, data)
    assert history.harness.down.demote(50) > 40
    lost = history.lost_slots()
    assert len(lost) == history.harness.layer.table.state_counts()["file"]
    assert history.harness.counter("failed_read_checksum") == len(lost)
    history.harness.region.close()


@pytest.mark.parametrize("stands", ["alone", "first", "last"])
@pytest.mark.parametrize("fault", far_engine.FAULTS)
def test_one_failing_call_of_far_memory_never_falsifies_a_page(fault: str, stands: str) -> None:
    """Of several keys in one call, some may be done and some not."""
    hits = 0
    for number in (1, 2, 3, 5, 8):
        far = FaultyFar(2 * MiB, fault, number)
        tiers: list[AnyTier] = [far]
        if stands != "alone":
            tiers.insert(0 if stands == "last" else 1, MemoryTier(4))
        history = History(far, promote=stands == "alone", tiers=tiers)
        history.run()
        hits += far.failures
        far.heal()
        assert history.lost_slots() <= far.damaged_slots
        if fault not in ("lost_write", "flipped_write"):
            assert not far.damaged_slots
        history.harness.region.close()
        far.close()
    assert hits >= 3, "the history has too few such calls to be a test"


@pytest.mark.parametrize("fault", far_engine.FAULTS)
def test_far_memory_that_goes_on_failing_passes_when_it_is_well_again(fault: str) -> None:
    far = FaultyFar(2 * MiB, fault, 2, LASTING)
    history = History(far)
    history.run()
    assert far.failures
    far.heal()
    assert history.lost_slots() <= far.damaged_slots
    history.harness.now_s += 1000
    states = history.harness.layer.table.state_counts()
    assert history.harness.down.demote(5) or not states["compressed"]
    history.harness.layer.discard_run(0, SLOTS)
    far.delete_released()
    assert not far.engine.values, "what a failed call left behind is deleted"
    assert far.stats().used_bytes == 0
    history.harness.region.close()
    far.close()


@pytest.mark.parametrize("call", CALLS)
def test_the_same_call_of_each_of_seven_tiers_fails(call: str, tmp_path: Path) -> None:
    """A failing call of the contract costs no page, whatever the tier is and wherever it stands."""
    hits = 0
    for number in (1, 2, 3, 5, 8):
        folder = tmp_path / str(number)
        folder.mkdir()
        inner = open_stack("memory + blobs + memory + blobs + memory + blobs + memory", folder)(3)
        tiers = [FaultyCalls(tier, call, number) for tier in inner]
        history = History(tiers[0], tiers=tiers)
        history.run()
        hits += sum(tier.failures for tier in tiers)
        for tier in tiers:
            tier.heal()
        assert history.lost_slots() == set()
        history.harness.region.close()
    assert hits >= 7, "the history has too few such calls to be a test"
