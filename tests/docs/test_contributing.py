"""The tier in CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from swapfs.errors import BlobCorrupt
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.model import SwapModel
from swapfs.testing.pages import KINDS, page
from swapfs.units import CLUSTER_SLOTS

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
IMPORTS = """
import itertools, queue, struct, threading, zlib
from swapfs.errors import BlobCorrupt, TierFull, TierIOError
from swapfs.tiers.base import Failure, Room, Stored, Tier, TierStats, Traffic
from swapfs.units import PAGE_SIZE
"""
SLOTS = 2 * CLUSTER_SLOTS


def _folder_tier(folder: Path, pages: int) -> Any:
    (code,) = re.findall(r"(?s)```python\n(.*?)```", TEXT)
    names: dict[str, Any] = {}
    exec(IMPORTS + code, names)
    return names["FolderTier"](folder, pages)


def test_it_is_as_short_as_it_says() -> None:
    (lines, code) = re.findall(r"(?s)a whole one in (\d+) lines.*?```python\n(.*?)```", TEXT)[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= int(lines) <= 60


def _history(harness: Harness, model: SwapModel, rng: random.Random) -> None:
    for _ in range(60):
        slot = rng.randrange(SLOTS - 40)
        for at in range(slot, slot + rng.randrange(40)):
            data = page(rng.choice(KINDS), rng.randrange(99))
            if harness.write(at, data) > 0:
                model.write(at, data)
        count = rng.randrange(40)
        assert harness.layer.discard_run(slot, count) == model.discard(slot, count)
        harness.down.demote(rng.randrange(90))
        harness.down.drains.sink(1, rng.randrange(90)).run()
        harness.check()


def test_the_tier_of_the_guide_keeps_every_page(tmp_path: Path) -> None:
    rng, model = random.Random(5), SwapModel(SLOTS)
    tiers = [MemoryTier(4), _folder_tier(tmp_path, 400)]
    harness = Harness(SLOTS, 8 * 65536, tiers)
    _history(harness, model, rng)
    assert harness.layer.table.slots_in(2) > 20
    tiers[1] = _folder_tier(tmp_path, 400)  # as another server opens it
    harness = Harness(SLOTS, 8 * 65536, tiers, region=harness.region)
    _history(harness, model, rng)
    for slot in range(SLOTS):
        assert harness.load(slot) == model.read(slot)
    slot = next(s for s, word in harness.layer.table.occupied_words() if word >> 5 & 7 == 2)
    ref = harness.layer.table.get(slot) >> 11
    damaged = bytearray((tmp_path / str(ref)).read_bytes())
    damaged[30] ^= 1
    (tmp_path / str(ref)).write_bytes(damaged)
    with pytest.raises(BlobCorrupt):
        harness.load(slot)
    harness.region.close()
