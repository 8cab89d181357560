"""The page at / and its JSON: what a cell says, and that it stays small."""

from __future__ import annotations

import base64
import json
from http import HTTPStatus

from swapfs.server import metrics
from swapfs.server.live import CELLS_MAX, LiveView
from swapfs.server.status import Status
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, KiB, MiB, TiB
from tests.unit.test_metrics import make_snapshot


def test_a_cell_says_how_much_is_there_and_how_much_of_it_below() -> None:
    harness = Harness(3 * CLUSTER_SLOTS, 2 * MiB, MemoryTier(4), log_bytes=64 * KiB)
    harness.store(0, *(page("text", seed) for seed in range(256)))
    harness.store(CLUSTER_SLOTS, *(page("text", seed) for seed in range(3)))
    cells = LiveView(harness.layer).cells()
    assert [cells[i : i + 2] for i in range(0, 9, 3)] == [b"\x32\0", b"\x01\0", b"\0\0"]
    assert cells[2] < 15 == cells[8]
    assert harness.down.demote(64) == 64
    assert LiveView(harness.layer).cells()[1] == 25
    harness.layer.discard_run(0, 2 * CLUSTER_SLOTS)
    assert set(LiveView(harness.layer).cells()[::3]) == {0}


def test_what_lies_below_is_counted_after_a_servers_death() -> None:
    harness = Harness(CLUSTER_SLOTS, 2 * MiB, tier := MemoryTier(4))
    harness.store(0, *(page("text", seed) for seed in range(40)))
    assert harness.down.demote(10) == 10
    after = Harness(CLUSTER_SLOTS, 2 * MiB, tier, region=harness.region)
    assert LiveView(after.layer).cells() == bytes((8, 25, 15))


def test_a_map_is_small_however_large_the_file() -> None:
    harness = Harness(TiB // 4096, 64 * MiB)
    assert len(LiveView(harness.layer).cells()) == 3 * CELLS_MAX
    assert len(LiveView(harness.layer).as_json(Status.from_dict(make_snapshot()))) < 16 * KiB


def test_the_page_and_its_json_are_served_beside_the_metrics() -> None:
    view = LiveView(Harness(CLUSTER_SLOTS, 2 * MiB).layer)
    answer = metrics.respond(lambda: Status.from_dict(make_snapshot()), view.as_json)
    status, content_type, body = answer("/", "")
    assert (status, content_type) == (HTTPStatus.OK, "text/html; charset=utf-8")
    assert b"http://" not in body
    assert b"https://" not in body, "no assets from elsewhere"
    status, content_type, body = answer("/live.json", "")
    assert (status, content_type) == (HTTPStatus.OK, "application/json")
    found = json.loads(body)
    assert found["name"] == "swap-a"
    assert len(base64.b64decode(found["map"]["cells"])) == 3
    assert answer("/nothing", "")[0] == HTTPStatus.NOT_FOUND
