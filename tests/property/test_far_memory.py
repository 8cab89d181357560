"""The histories of test_slots over a tier in an engine that runs for the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from swapfs.testing.engine import TestEngine, program
from swapfs.testing.memory import MemoryTier
from swapfs.tiers.base import Tier
from swapfs.tiers.seal import ChecksumSeal
from swapfs.tiers.sector_tier import SectorTier
from swapfs.tiers.segments import SEGMENT_BYTES
from swapfs.tiers.valkey import ValkeyTier
from swapfs.units import MiB
from tests.property.test_slots import TINY_BYTES, Slots

pytestmark = pytest.mark.skipif(program() is None, reason="install redis-server or valkey-server")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    made = TestEngine(tmp_path_factory.mktemp("engine"))
    yield made
    made.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("below", [False, True], ids=["alone", "above a file"])
def test_slots_over_far_memory_behave_like_a_dict_of_pages(engine: TestEngine, below: bool) -> None:
    class Far(Slots):
        pool_bytes = TINY_BYTES
        recompress = True
        tiers = "far + memory" if below else "far"

        def make_opener(self) -> Callable[[int], list[Tier]]:
            engine.client().flushall()
            medium = bytearray(4 * SEGMENT_BYTES)

            def open_tiers(segments: int) -> list[Tier]:
                far = ValkeyTier(engine.place, MiB, "swapfs:slots:1:", ChecksumSeal())
                far.look()
                return [far, SectorTier(MemoryTier(segments, medium))] if below else [far]

            return open_tiers

    run_state_machine_as_test(Far, settings=settings(max_examples=15, stateful_step_count=40))
    stats = engine.client().info("commandstats")
    assert stats["cmdstat_set"]["calls"] > 100
