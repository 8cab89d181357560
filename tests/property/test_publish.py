"""What `Writer.publish` does in bulk, against the same pages stored one by one in Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapfs.core._core import Writer
from swapfs.errors import OverQuota
from swapfs.region.export_rows import ExportRow
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import KINDS, page
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE
from swapfs.vlayer import layer

SLOTS = 3 * CLUSTER_SLOTS
POOL_BYTES = 16 * 64 * 1024
runs_st = st.tuples(
    st.just("write"),
    st.one_of(st.integers(0, 40), st.integers(CLUSTER_SLOTS - 40, CLUSTER_SLOTS + 8)),
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=64),
)
discards_st = st.tuples(st.just("discard"), st.integers(0, CLUSTER_SLOTS), st.integers(1, 600))
demotions_st = st.tuples(st.just("demote"), st.integers(1, 40), st.none())
compactions_st = st.tuples(st.just("compact"), st.integers(1, 4), st.none())
histories_st = st.lists(
    st.one_of(runs_st, runs_st, discards_st, demotions_st, compactions_st), max_size=24
)


EXPORTS = (
    ExportRow("swap", 0, CLUSTER_SLOTS - 2),
    ExportRow("batch", CLUSTER_SLOTS, 2 * CLUSTER_SLOTS, quota_bytes=12 * PAGE_SIZE),
)
OVER_QUOTA = -1


def _run(history: list[Any], exports: Sequence[ExportRow]) -> tuple[Harness, list[int]]:
    harness = Harness(SLOTS, POOL_BYTES, MemoryTier(4), exports=exports)
    results = []
    for kind, first, rest in history:
        if kind == "write":
            try:
                results.append(harness.store(first, *(page(*which) for which in rest)))
            except OverQuota:
                results.append(OVER_QUOTA)
        elif kind == "discard":
            results.append(harness.layer.discard_run(first, rest))
        elif kind == "demote":
            results.append(harness.down.demote(first))
        else:
            results.append(harness.stalled.compactor.pack(first))
        harness.check()
    return harness, results


def _state(harness: Harness) -> dict[str, Any]:
    """Return every byte that a history leaves in the region, and every list beside it."""
    pool, table = harness.layer.pool, harness.layer.table
    return {
        "arena": bytes(harness.region.arena),
        "classes": bytes(harness.region.classes),
        "counters": harness.layer.counters.snapshot(),
        "pool": pool.stats(),
        "lists": (pool.zspages.free, *(bytes(each) for each in pool.zspages.tables().values())),
        "table": (table.state_counts(), list(table.occupied), table.clusters()),
        "exports": [bytes(each) for each in harness.layer.exports.tables().values()],
    }


@pytest.mark.parametrize("exports", [(), EXPORTS], ids=["one export", "two, one with a quota"])
@settings(deadline=None, max_examples=150)
@given(history=histories_st)
def test_the_same_books_as_page_by_page(exports: tuple[ExportRow, ...], history: list[Any]) -> None:
    in_bulk, results = _run(history, exports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "Writer", lambda *_, **__: SimpleNamespace(publish=lambda *_: 0))
        one_by_one, expected = _run(history, exports)
    assert results == expected
    assert _state(in_bulk) == _state(one_by_one)


def test_a_full_pool_that_is_overwritten_is_no_special_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_bulk = 0

    class Counting:
        def __init__(self, *arguments: Any, **tables: Any) -> None:
            self.writer = Writer(*arguments, **tables)

        def publish(self, *arguments: Any) -> int:
            nonlocal in_bulk
            done = self.writer.publish(*arguments)
            in_bulk += done
            return done

    monkeypatch.setattr(layer, "Writer", Counting)
    harness = Harness(SLOTS, POOL_BYTES, MemoryTier(4))
    pages = [page("heap", seed) for seed in range(200)]
    rng = random.Random(1)
    for slot in range(0, 400, 8):
        harness.store(slot, *rng.sample(pages, 8))

    in_bulk = 0
    for _ in range(200):
        assert harness.store(rng.randrange(392), *rng.sample(pages, 8)) == 8
    assert in_bulk > 0.95 * 200 * 8
    harness.check()
