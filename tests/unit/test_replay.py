"""Replays: the same policies over the same layer, and what simulators of caches say of them."""

from __future__ import annotations

import json
import lzma
import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import libcachesim
import pytest

from swapfs.command.main import main
from swapfs.errors import ConfigError
from swapfs.lab.convert import convert
from swapfs.lab.pages import PageCache, belady, floor, requests_of
from swapfs.lab.player import Player, Setup
from swapfs.lab.replay import replay
from swapfs.lab.trace import Meta, Trace, TraceWriter
from swapfs.policy import BUILT_IN, find
from swapfs.region.access_log import Event, EventKind, encode
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB

SLOTS = 96 * CLUSTER_SLOTS
"""As many as the recorded ones have."""
K = EventKind
DATA = Path(__file__).with_name("traces")
SIMULATORS = {
    "fifo": libcachesim.FIFO,
    "lru": libcachesim.LRU,
    "clock": libcachesim.Clock,
    "sieve": libcachesim.Sieve,
    "s3-fifo": libcachesim.S3FIFO,
}
NOT_EXACTLY_DEFINED = 0.005
"""S3-FIFO: whose paper leaves open how ghosts are counted."""


def write(path: Path, events: Sequence[tuple[EventKind, int]]) -> Trace:
    words = array("Q")
    for number, (kind, slot) in enumerate(events):
        words.extend(encode(Event(kind, slot, 10 + slot % 30, 0, 0, 0, 1000 * (number + 1))))
    meta = Meta(size_bytes=SLOTS * PAGE_SIZE, pool_bytes=4 * MiB, class_sizes=list(SIZES))
    with TraceWriter(path, meta) as writer:
        writer.write(memoryview(words), len(events))
    return Trace(path)


def skewed(count: int, seed: int) -> list[tuple[EventKind, int]]:
    """Return stores and loads of which few slots have most, some scans, and some discards."""
    rng = random.Random(seed)
    events: list[tuple[EventKind, int]] = []
    known: set[int] = set()
    while len(events) < count:
        slot = min(SLOTS - 64, int(rng.paretovariate(0.4)))
        run = 40 if rng.random() < 0.02 else 1
        for at in range(slot, slot + run):
            if rng.random() < 0.03 and at in known:
                known.discard(at)
                events.append((K.DISCARD, at))
                continue
            events.append((K.LOAD if at in known and rng.random() < 0.8 else K.STORE, at))
            known.add(at)
    return events[:count]


def uniform(count: int, seed: int) -> list[tuple[EventKind, int]]:
    rng = random.Random(seed)
    return [(K.STORE, slot) for slot in range(3000)] + [
        (K.LOAD, rng.randrange(3000)) for _ in range(count - 3000)
    ]


GENERATED = {"skewed": skewed, "uniform": uniform}
RECORDED = ("sqlite", "tree", "sort")
"""By `swapfs trace record`, of programs on ext4 on a loop device on the swap file: updates and
look-ups in a database, a source tree that is searched, a sort; the cache was dropped between."""


@pytest.fixture(params=GENERATED)
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Trace:
    return write(tmp_path / "t", GENERATED[request.param](30_000, 3))


@pytest.fixture(params=[*GENERATED, *RECORDED])
def any_trace(request: pytest.FixtureRequest, tmp_path: Path) -> Trace:
    if request.param in GENERATED:
        return write(tmp_path / "t", GENERATED[request.param](30_000, 3))
    path = tmp_path / "t"
    path.write_bytes(lzma.decompress((DATA / f"{request.param}.trace.xz").read_bytes()))
    return Trace(path)


# ---- beside libCacheSim ----


def simulate(trace: Trace, kind: type, capacity: int, folder: Path) -> tuple[int, array[int]]:
    """Return the misses that libCacheSim counts, and the requests."""
    out = folder / "oracleGeneral"
    convert(trace, "oracleGeneral", out)
    requests = array("q", requests_of(trace))
    served = sum(page >= 0 for page in requests)
    reader = libcachesim.TraceReader(str(out), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    ratio, _ = kind(capacity * PAGE_SIZE).process_trace(reader)
    return round(ratio * served), requests


def without_discards(trace: Trace, path: Path) -> Trace:
    """Return *trace* as libCacheSim can see it: it has no word for a discard."""
    return write(path, [(K.LOAD, page) for page in requests_of(trace) if page >= 0])


@pytest.mark.parametrize("capacity", [100, 1000])
@pytest.mark.parametrize("policy", SIMULATORS)
def test_misses_are_those_of_libcachesim(
    policy: str, capacity: int, any_trace: Trace, tmp_path: Path
) -> None:
    plain = without_discards(any_trace, tmp_path / "plain")
    theirs, requests = simulate(plain, SIMULATORS[policy], capacity, tmp_path)
    ours = PageCache(find(policy), capacity, SLOTS).run(requests)
    slack = NOT_EXACTLY_DEFINED * theirs if policy == "s3-fifo" else 0
    assert abs(ours - theirs) <= slack


@pytest.mark.parametrize("capacity", [100, 1000])
def test_the_optimum_is_that_of_libcachesim(
    capacity: int, any_trace: Trace, tmp_path: Path
) -> None:
    plain = without_discards(any_trace, tmp_path / "plain")
    theirs, requests = simulate(plain, libcachesim.Belady, capacity, tmp_path)
    assert belady(requests, capacity) == theirs


@pytest.mark.parametrize("policy", BUILT_IN)
def test_no_policy_beats_the_optimum(policy: str, any_trace: Trace) -> None:
    requests = array("q", requests_of(any_trace))
    best = belady(requests, 500)
    assert PageCache(find(policy), 500, SLOTS).run(requests) >= best


# ---- over the layer ----


def play(trace: Trace, policy: str, *, promote: bool = False) -> Player:
    setup = Setup(pool_bytes=MiB, tier_bytes=[128 * MiB], promote=promote)
    player = Player(trace, setup, find(policy))
    player.run()
    return player


@pytest.mark.parametrize("promote", [False, True])
@pytest.mark.parametrize("policy", BUILT_IN)
def test_every_policy_over_the_layer(policy: str, promote: bool, trace: Trace) -> None:
    player = play(trace, policy, promote=promote)
    outcome, table = player.outcome, player.layer.table
    assert outcome.events == trace.count
    assert outcome.demoted > 0
    assert outcome.refused == outcome.policy_failures == 0
    live: set[int] = set()
    for page in requests_of(trace):
        if page >= 0:
            live.add(page)
        else:
            live.discard(-2 - page)
    stored = {slot for slot, _ in table.occupied_words()}
    assert stored == live, "every page that was not discarded is somewhere"
    assert table.slots_in(1) == outcome.tiers[0] > 0
    assert outcome.misses >= floor(trace, outcome.peak_pages)
    player.close()


def test_a_replay_is_the_same_each_time(trace: Trace) -> None:
    outcomes = []
    for _ in range(2):
        player = play(trace, "second-chance")
        outcome = player.outcome
        outcomes.append((outcome.misses, outcome.demoted, outcome.written_bytes, outcome.ram))
        player.close()
    assert outcomes[0] == outcomes[1]


def test_a_tier_without_room_refuses_and_loses_nothing(trace: Trace) -> None:
    player = Player(trace, Setup(pool_bytes=MiB // 2, tier_bytes=[MiB // 2]), find("lru"))
    outcome = player.run()
    assert outcome.refused > 0
    player.close()


def test_misses_fall_with_the_pool_to_none(trace: Trace) -> None:
    setup = Setup(pool_bytes=MiB, tier_bytes=[128 * MiB])
    found = replay(trace, ["second-chance", "lru"], [4 * MiB, 8 * MiB, 64 * MiB], setup)
    for policy in ("second-chance", "lru"):
        misses = [run["misses"] for run in found["runs"] if run["policy"] == policy]
        assert misses == sorted(misses, reverse=True)
        assert misses[-1] == 0
    for each in found["floors"]:
        runs = [run for run in found["runs"] if run["pool_bytes"] == each["pool_bytes"]]
        assert all(run["misses"] >= each["misses"] for run in runs)


def in_order(count: int) -> list[tuple[EventKind, int]]:
    """Return two scans at once, a page of each in turn, again and again."""
    scan = [(K.LOAD, slot) for at in range(1500) for slot in (at, 1500 + at)]
    return ([(K.STORE, slot) for slot in range(3000)] + scan * (count // 3000))[:count]


def test_prefetch_is_played_too(tmp_path: Path) -> None:
    trace = write(tmp_path / "t", in_order(15_000))
    outcomes = []
    for prefetch in (0, 32):
        setup = Setup(pool_bytes=MiB, tier_bytes=[128 * MiB], prefetch=prefetch)
        player = Player(trace, setup, find("second-chance"))
        outcomes.append(player.run())
        player.close()
    without, along = outcomes
    assert without.prefetched == without.prefetch_used == 0
    assert along.prefetch_used > along.prefetched // 2 > 250
    assert along.misses < without.misses * 3 // 4
    assert along.refused == 0


def test_a_trace_says_what_it_was_recorded_on(tmp_path: Path) -> None:
    config = {"high-watermark": 70, "low-watermark": 60, "promote": True, "prefetch": 8}
    meta = Meta(
        size_bytes=64 * MiB, pool_bytes=MiB, class_sizes=[], tier_bytes=[5, 7], config=config
    )
    assert Setup.recorded(meta) == Setup(
        pool_bytes=MiB,
        tier_bytes=[5, 7],
        high_percent=70,
        low_percent=60,
        promote=True,
        prefetch=8,
    )
    bare = Setup.recorded(Meta(size_bytes=64 * MiB, pool_bytes=MiB, class_sizes=[]))
    assert bare == Setup(pool_bytes=MiB, tier_bytes=[128 * MiB])


@pytest.mark.parametrize(
    "config", [{"high-watermark": "x"}, {"low-watermark": 95}, {"prefetch": 65}, {"prefetch": None}]
)
def test_a_set_up_that_is_none_is_refused(config: dict[str, object]) -> None:
    meta = Meta(size_bytes=64 * MiB, pool_bytes=MiB, class_sizes=[], config=config)
    with pytest.raises(ConfigError, match="damaged"):
        Setup.recorded(meta)


def test_a_trace_for_another_size_is_refused(tmp_path: Path) -> None:
    trace = write(tmp_path / "t", [(K.STORE, SLOTS * 2)])
    with pytest.raises(Exception, match="cannot be played"):
        play(trace, "lru")


# ---- the command ----


def test_the_command_prints_a_table_and_json(
    trace: Trace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["replay", str(trace.path), "--policy", "lru,fifo", "--pool", "4M,8M"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["lru", "fifo", "(Belady)"] * 2
    assert main([*words, "--json", "--no-optimum"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--policy", "nonsense"], 2, "no policy"),
        (["--pool", "3X"], 2, "--pool"),
        (["--low-watermark", "95"], 2, "--low-watermark"),
        (["--tier", "nothing"], 2, "--tier"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    words: list[str], code: int, says: str, trace: Trace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(trace.path), *words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
