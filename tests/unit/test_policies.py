"""Each policy by itself, and what the chooser makes of what a policy says."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import pytest

from swapfs.config.policy_name import parse_policy
from swapfs.core._core import Tracked
from swapfs.errors import ConfigError
from swapfs.policy import BUILT_IN, Policy, find
from swapfs.policy.base import NOTHING_YET, Eyes, Facts, Place, TierFacts
from swapfs.region.access_log import Event, EventKind, encode
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import CLUSTER_SLOTS, KiB, MiB
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.entry import MOVING

K = EventKind
SLOTS = 4 * CLUSTER_SLOTS
FROM_LOG = [name for name in BUILT_IN if find(name).hears]


class _Blind:
    def live_clusters(self) -> int:
        return 0

    def next_cluster(self) -> int | None:
        return None

    def cool(self, slot: int, count: int) -> list[int]:
        return []


def make(name: str, pages: int = 8) -> Policy:
    return find(name)(Facts(1024, pages, fixed=True), _Blind())


def hear(policy: Policy, *events: tuple[EventKind, int]) -> None:
    words = array("Q")
    for kind, slot in events:
        words.extend(encode(Event(kind, slot, 3, 0, 0, 0, 1)))
    policy.hear(words, len(events))


def order(policy: Policy) -> list[int]:
    """Return what goes down, one at a time, as when each is demoted at once."""
    gone = []
    while (slot := next(iter(policy.candidates(0)), -1)) >= 0:
        gone.append(slot)
        hear(policy, (K.DEMOTE, slot))
    return gone


STORED = [(K.STORE, slot) for slot in range(6)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fifo", [0, 1, 2, 3, 4, 5]),
        ("lru", [1, 2, 3, 4, 5, 0]),
        ("clock", [1, 2, 3, 4, 5, 0]),
        ("sieve", [1, 2, 3, 4, 5, 0]),
    ],
)
def test_what_was_read_goes_last(name: str, expected: list[int]) -> None:
    policy = make(name)
    hear(policy, *STORED, (K.LOAD, 0))
    assert order(policy) == expected


def test_sieve_keeps_its_hand_where_lru_would_begin_again() -> None:
    policy = make("sieve")
    hear(policy, *STORED, (K.LOAD, 0), (K.LOAD, 1))
    first = next(iter(policy.candidates(0)))
    hear(policy, (K.DEMOTE, first), (K.STORE, 9))
    assert first == 2
    assert order(policy) == [3, 4, 5, 9, 0, 1], "the hand goes on from where it was"


def test_s3_fifo_remembers_what_left_the_small_queue() -> None:
    policy = make("s3-fifo", 100)
    hear(policy, *((K.STORE, slot) for slot in range(100)))
    gone = next(iter(policy.candidates(0)))
    hear(policy, (K.DEMOTE, gone), (K.PROMOTE, gone))
    others = []
    for slot in range(200, 240):
        others.append(next(iter(policy.candidates(0))))
        hear(policy, (K.DEMOTE, others[-1]), (K.STORE, slot))
    assert gone not in others, "it came back to the main queue"


def test_2q_keeps_what_was_asked_for_again_and_lets_a_scan_pass() -> None:
    policy = make("2q", 8)
    hear(policy, *((K.STORE, slot) for slot in range(8)))
    gone = next(iter(policy.candidates(0)))
    hear(policy, (K.DEMOTE, gone), (K.PROMOTE, gone))
    hear(policy, *((K.STORE, slot) for slot in range(100, 140)))
    assert gone not in order(policy)[:30]


def test_refault_distance_brings_back_what_went_not_long_ago() -> None:
    policy = make("refault-distance", 8)
    hear(policy, *((K.STORE, slot) for slot in range(8)))
    hear(policy, (K.DEMOTE, 0))
    assert policy.brings_back(0, refaulted=True)
    for slot in range(20, 50):
        hear(policy, (K.STORE, slot), (K.DEMOTE, slot))
    assert not policy.brings_back(0, refaulted=True)
    assert not policy.brings_back(999, refaulted=False)


def test_generations_let_the_young_stay() -> None:
    policy = make("generations", 64)
    hear(policy, *((K.STORE, slot) for slot in range(40)), *((K.LOAD, slot) for slot in range(8)))
    assert set(order(policy)[-8:]) & set(range(8))


def test_random_takes_each_once_in_an_order_that_can_be_repeated() -> None:
    orders = []
    for _ in range(2):
        policy = make("random")
        hear(policy, *STORED)
        orders.append(order(policy))
    assert orders[0] == orders[1] != sorted(orders[0])
    assert sorted(orders[0]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", FROM_LOG)
def test_what_was_discarded_or_demoted_is_offered_no_more(name: str) -> None:
    policy = make(name)
    hear(policy, *STORED, (K.DISCARD, 2), (K.DEMOTE, 4))
    assert sorted(order(policy)) == [0, 1, 3, 5]


@pytest.mark.parametrize("name", FROM_LOG)
def test_what_was_offered_and_not_taken_is_offered_again_unless_it_was_read(name: str) -> None:
    policy = make(name)
    hear(policy, *STORED)
    batch = list(policy.candidates(0))
    assert sorted(batch) == [0, 1, 2, 3, 4, 5]
    policy.refused(batch[-1])
    assert sorted(policy.candidates(0)) == [0, 1, 2, 3, 4, 5], "the write failed"
    hear(policy, (K.LOAD, batch[0]))
    assert sorted(order(policy)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", FROM_LOG)
def test_more_slots_than_it_tracks_do_no_harm(name: str) -> None:
    policy = make(name, 1)
    hear(policy, *((K.STORE, slot) for slot in range(200)))
    offered = order(policy)
    assert len(set(offered)) == len(offered)


def test_a_built_in_policy_is_a_page_of_code() -> None:
    folder = Path(find("lru").__module__.replace(".", "/")).parent
    for source in BUILT_IN.values():
        lines = (folder / f"{source.partition(':')[0]}.py").read_text().splitlines()
        assert len(lines) <= 100, source


# ---- Tracked ----


def test_tracked_slots_are_found_after_many_came_and_went() -> None:
    pages, there = Tracked(100, 2), dict[int, int]()
    for step in range(5000):
        slot = step * 7919 % 331
        if slot in there:
            assert pages.remove(slot)
            del there[slot]
        else:
            ring = step % 2
            assert pages.add(slot, ring) == (len(there) < 100)
            if len(there) < 100:
                there[slot] = ring
        assert pages.length(0) + pages.length(1) == len(there)
    assert {slot: pages.where(slot) for slot in there} == there
    assert not pages.remove(1_000_000)
    assert pages.where(1_000_000) == pages.newer(1_000_000) == -1


@pytest.mark.parametrize(
    "wrong", [lambda t: t.add(1, 2), lambda t: t.oldest(2), lambda t: t.add(-1, 0)]
)
def test_tracked_refuses_nonsense(wrong: object) -> None:
    with pytest.raises((IndexError, OverflowError)):
        wrong(Tracked(4, 2))  # type: ignore[operator]
    with pytest.raises(ValueError, match="16"):
        Tracked(0, 1)


# ---- finding one ----

OWN = """
from swapfs.policy.base import Listed
class Mine(Listed):
    def stored(self, slot, age):
        self.pages.add(slot, 0)
    def victim(self):
        return self.pages.oldest(0)
class Broken(Mine):
    def candidates(self, tier):
        raise RuntimeError("no")
nothing = 3
"""


def test_a_policy_of_ones_own_by_module_or_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mymodule.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for given in ("mymodule:Mine", "./mymodule.py:Mine"):
        spec = parse_policy("policy", given)
        assert spec == f"{tmp_path}/mymodule.py:Mine"
        assert find(spec).__name__ == "Mine"


ENDING = """
class Ending(Mine):
    def candidates(self, tier):
        raise SystemExit(3)
class Looping(Mine):
    def candidates(self, tier):
        while True:
            pass
"""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nonsense", "no policy"),
        ("mymodule:Nope", "no subclass"),
        ("mymodule:nothing", "no subclass"),
        ("mymodule:Broken", "RuntimeError: no"),
        ("missing:Mine", "no module missing"),
        ("missing.py:Mine", "no file"),
        ("mymodule:", "MODULE:CLASS"),
        ("faulty:Mine", "SyntaxError"),
        ("ending:Mine", "cannot be loaded: SystemExit"),
        ("mymodule:Ending", "cannot be used: SystemExit"),
        ("mymodule:Looping", "cannot be used: RunsOn: it runs on and on"),
    ],
)
def test_what_is_no_policy_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: str
) -> None:
    (tmp_path / "mymodule.py").write_text(OWN + ENDING)
    (tmp_path / "ending.py").write_text("raise SystemExit(3)")
    (tmp_path / "faulty.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        find(parse_policy("policy", given))


# ---- the chooser ----


def harness_with(policy: type[Policy]) -> Harness:
    harness = Harness(SLOTS, 2 * MiB, MemoryTier(4), policy=policy, log_bytes=64 * KiB)
    harness.store(0, *(page("text", seed) for seed in range(20)))
    return harness


class Scripted(Policy):
    """Offers what it is told to."""

    script: Sequence[object] = ()

    def candidates(self, tier: int) -> Iterator[int]:
        for each in self.script:
            if isinstance(each, BaseException):
                raise each
            yield each  # type: ignore[misc]


@pytest.mark.parametrize(
    "script",
    [[RuntimeError("x")], [3, RuntimeError("x")], [SystemExit(3)], [SLOTS], [-2], ["a"], [2.5, 3]],
)
def test_a_policy_that_fails_is_replaced_and_swap_goes_on(
    script: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    harness = harness_with(type("Bad", (Scripted,), {"script": script}))
    assert harness.down.demote(20) == 20
    assert harness.counter("policy_failures") == 1
    assert harness.down.chooser.name == "second-chance"
    assert "policy Bad" in caplog.text
    harness.check()
    assert harness.load(3) == page("text", 3)


def test_a_policy_that_fails_to_hear_is_replaced() -> None:
    class Deaf(Scripted):
        def stored(self, slot: int, age: int) -> None:
            raise KeyError(slot)

    harness = harness_with(Deaf)
    assert harness.down.demote(5) == 5
    assert harness.counter("policy_failures") == 1


def test_a_policy_without_end_is_replaced() -> None:
    class Endless(Scripted):
        def candidates(self, tier: int) -> Iterator[int]:
            while True:
                yield 1000

    harness = harness_with(Endless)
    assert harness.down.demote(5) == 5
    assert harness.counter("policy_failures") == 1


def _loop(*_: object, **__: object) -> int:
    number = 0
    while True:
        try:
            number += 1
        except Exception:  # noqa: BLE001 - a policy may hold on to its mistakes
            number = 0


@pytest.mark.parametrize("place", ["candidates", "victim", "stored", "targets", "left"])
def test_a_policy_that_does_not_come_to_an_answer_is_replaced(place: str) -> None:
    class Looping(find("fifo")):  # type: ignore[misc]
        def candidates(self, tier: int) -> Iterator[int]:
            yield from (2000, *super().candidates(tier))  # 2000 has nothing: `left` is asked

    setattr(Looping, place, _loop)
    harness = harness_with(Looping)
    assert harness.down.demote(20) == 20
    assert harness.counter("policy_failures") == 1
    assert harness.down.chooser.name == "second-chance"
    assert sys.gettrace() is None
    harness.check()


@pytest.mark.parametrize("question", ["brings_back", "places"])
def test_a_question_under_the_lock_has_an_answer(question: str) -> None:
    looping = type("Looping", (Scripted,), {question: _loop})
    chooser = Chooser(harness_with(find("fifo")).layer, looping)
    assert chooser.place(0, 1) is Place.POOL
    assert chooser.brings_back(1, refaulted=True, otherwise=True)
    assert chooser.name == "second-chance"


def test_pauses_without_end_are_an_end() -> None:
    harness = harness_with(type("Pausing", (Scripted,), {"script": repeat(NOTHING_YET)}))
    assert harness.down.demote(5) == 5
    assert harness.counter("policy_failures") == 1


def test_an_offer_without_end_of_what_another_mover_has_is_an_end() -> None:
    harness = harness_with(type("Endless", (Scripted,), {"script": repeat(3)}))
    harness.layer.copied.add(3)
    assert harness.down.demote(5) == 5
    assert harness.counter("policy_failures") == 1
    assert not harness.layer.table.get(3) & MOVING


def test_what_a_policy_does_not_know_is_offered_by_the_default() -> None:
    harness = harness_with(type("Few", (Scripted,), {"script": [7, 7, 999]}))
    assert harness.down.demote(20) == 20
    assert not harness.counter("policy_failures")


def test_a_policy_knows_what_an_earlier_server_left() -> None:
    harness = harness_with(find("fifo"))
    after = Harness(SLOTS, 2 * MiB, MemoryTier(4), policy=find("fifo"), region=harness.region)
    after.down.chooser.hear()
    assert all(after.down.chooser.policy.knows(slot) for slot in range(20))


def test_a_policy_sends_victims_where_it_wants() -> None:
    class Second(find("fifo")):  # type: ignore[misc]
        def targets(self, tiers: Sequence[TierFacts]) -> Sequence[int]:
            return [99, tiers[-1].number]

    tiers = [MemoryTier(4), MemoryTier(4)]
    harness = Harness(SLOTS, 2 * MiB, tiers, policy=Second, log_bytes=64 * KiB)
    harness.store(0, *(page("text", seed) for seed in range(20)))
    assert harness.down.demote(20) == 20
    assert harness.layer.table.slots_in(2) == 20


@pytest.mark.parametrize("answer", [[[1]], None, repeat(1), repeat(99)], ids=str)
def test_targets_that_make_no_sense_do_not_stop_demotion(answer: Sequence[int]) -> None:
    harness = harness_with(type("Bad", (find("fifo"),), {"targets": lambda *_: answer}))
    assert harness.down.demote(20) == 20
    harness.check()


def test_a_policy_decides_what_comes_back() -> None:
    class Even(find("fifo")):  # type: ignore[misc]
        def brings_back(self, slot: int, *, refaulted: bool) -> bool | None:
            return None if slot == 0 else slot % 2 == 0

    chooser = Chooser(harness_with(Even).layer, Even)
    asked = [chooser.brings_back(s, refaulted=True, otherwise=s == 0) for s in range(4)]
    assert asked == [True, False, True, False]


def test_places_default_to_the_pool_and_may_fail() -> None:
    class Wrong(Scripted):
        def places(self, slot: int, count: int) -> Place:
            raise ZeroDivisionError

    chooser = Chooser(harness_with(find("fifo")).layer, Wrong)
    assert chooser.place(0, 1) is Place.POOL
    assert chooser.name == "second-chance"


def test_what_goes_down_first_is_what_the_policy_says() -> None:
    harness = harness_with(find("lru"))
    for slot in range(10):
        harness.load(slot)
    assert harness.down.demote(10) == 10
    below = [slot for slot in range(20) if harness.backing(slot).name == "BELOW"]
    assert below == list(range(10, 20))


def test_eyes_and_facts_are_what_a_policy_is_made_with() -> None:
    seen: list[tuple[Facts, Eyes]] = []

    class Curious(Scripted):
        def __init__(self, facts: Facts, eyes: Eyes) -> None:
            super().__init__(facts, eyes)
            seen.append((facts, eyes))

    harness_with(Curious)
    facts, eyes = seen[0]
    assert (facts.slots, facts.pool_pages) == (SLOTS, 512)
    assert eyes.live_clusters() == 0 or eyes.next_cluster() is not None
