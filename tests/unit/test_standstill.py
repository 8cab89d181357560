"""standstill: told from swap that is slow, and the OOM killer is called."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swapfs.errors import OperationError
from swapfs.host.loop import LoopDevice
from swapfs.host.oom_killer import HandedDown, Memory, OomKiller
from swapfs.server.standstill import LOOKS, Look, Rule, Sight, Standstill, below_hangs
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.units import MiB
from swapfs.vlayer.health import STUCK_AFTER_S

STUCK = Look(handed_down=3, taken=100, in_hand=0, refused=0, elsewhere=False, memory_short=True)
SWAPS = """\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/loop0                              partition\t524284\t\t100\t\t100
"""


def meminfo(available_kib: int) -> str:
    return (
        f"MemTotal: 448000 kB\nMemFree: 27000 kB\nMemAvailable: {available_kib} kB\nBuffers: 1 kB\n"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("loop0", "loop1"):
        (tmp_path / "sys/block" / name).mkdir(parents=True)
        (tmp_path / "sys/block" / name / "inflight").write_text("       0        0\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(meminfo(0))
    (tmp_path / "proc/sysrq-trigger").touch()
    (tmp_path / "proc/swaps").write_text(SWAPS)
    return tmp_path


def device(number: int) -> LoopDevice:
    return LoopDevice(Path(f"/dev/loop{number}"), "/run/swapfs/a/mnt/swap", False, True, 1, 4096)


def verdicts(rule: Rule, *looks: Look) -> list[bool]:
    return [rule.stands_still(look) for look in looks]


class TestRule:
    def test_the_same_look_again_and_again_is_a_standstill(self) -> None:
        found = verdicts(Rule(), *[STUCK] * (LOOKS + 1))
        assert found == [False] * LOOKS + [True]

    def test_it_is_counted_anew_after_that(self) -> None:
        rule = Rule()
        assert verdicts(rule, *[STUCK] * (2 * LOOKS + 1)).count(True) == 2

    @pytest.mark.parametrize(
        "other",
        [
            STUCK._replace(handed_down=0),
            STUCK._replace(taken=101),
            STUCK._replace(in_hand=1),
            STUCK._replace(memory_short=False),
        ],
        ids=["nothing waits", "one has come", "one is in our hands", "there is memory"],
    )
    def test_one_look_that_differs_begins_anew(self, other: Look) -> None:
        rule = Rule()
        after = [STUCK._replace(taken=other.taken)] * LOOKS
        assert not any(verdicts(rule, *[STUCK] * LOOKS, other, *after[:-1]))

    @pytest.mark.parametrize("in_hand", [1, 128])
    def test_a_disk_that_hangs_is_none(self, in_hand: int) -> None:
        assert not any(verdicts(Rule(), *[STUCK._replace(in_hand=in_hand)] * 100))

    def test_a_busy_server_is_none(self) -> None:
        looks = [STUCK._replace(taken=100 + number) for number in range(100)]
        assert not any(verdicts(Rule(), *looks))

    def test_writes_that_are_refused_again_and_again_are_one(self) -> None:
        looks = [STUCK._replace(taken=number, refused=number) for number in range(LOOKS + 1)]
        assert verdicts(Rule(), *looks) == [False] * LOOKS + [True]

    def test_refusals_and_a_halt_in_turn_are_one(self) -> None:
        looks = [STUCK._replace(taken=n // 2, refused=n // 2, in_hand=0) for n in range(LOOKS + 1)]
        assert verdicts(Rule(), *looks)[-1]

    def test_refused_writes_that_another_area_takes_are_none(self) -> None:
        looks = [STUCK._replace(taken=n, refused=n, elsewhere=True) for n in range(100)]
        assert not any(verdicts(Rule(), *looks))

    def test_refused_writes_while_a_disk_hangs_are_none(self) -> None:
        """It may answer again, and then there is room."""
        looks = [STUCK._replace(taken=n, refused=n, hangs=True) for n in range(100)]
        assert not any(verdicts(Rule(), *looks))

    def test_refused_writes_of_a_group_at_its_limit_are_none(self) -> None:
        looks = [STUCK._replace(taken=n, refused=n, memory_short=False) for n in range(100)]
        assert not any(verdicts(Rule(), *looks))

    def test_a_starved_worker_with_memory_left_is_none(self) -> None:
        assert not any(verdicts(Rule(), *[STUCK._replace(memory_short=False)] * 100))


@dataclass
class Killer:
    fails: bool = False
    calls: int = 0

    def call(self) -> None:
        self.calls += 1
        if self.fails:
            raise OSError(1, "Operation not permitted")


@dataclass
class Scene:
    """What is seen, and what was done about it."""

    killer: Killer = field(default_factory=Killer)
    counted: int = 0
    retires: bool = False

    def standstill(self) -> Standstill:
        return Standstill(lambda: STUCK, self.killer, self.count, lambda: not self.retires)

    def count(self) -> None:
        self.counted += 1


class TestHangs:
    def test_a_tier_that_does_not_answer_is_seen(self) -> None:
        now_s = time.monotonic()
        harness = Harness(1024, 4 * MiB, MemoryTier(8))
        (level,) = harness.layer.stack
        assert not below_hangs(harness.layer)
        level.health.begin(1, now_s - 1)
        assert not below_hangs(harness.layer)
        level.health.begin(2, now_s - 2 * STUCK_AFTER_S)
        assert below_hangs(harness.layer)
        level.health.failed("no answer", now_s)  # that of another writer
        assert below_hangs(harness.layer)
        level.health.end(2)
        assert not below_hangs(harness.layer)


class TestStandstill:
    def test_the_oom_killer_is_called_and_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        scene = Scene()
        standstill = scene.standstill()
        for _ in range(LOOKS):
            standstill.look_once()
        assert (scene.killer.calls, scene.counted) == (0, 0)
        standstill.look_once()
        assert (scene.killer.calls, scene.counted) == (1, 1)
        assert "3 requests held by the kernel; calling its OOM killer" in caplog.text

    def test_a_server_that_retires_takes_no_request_and_calls_nobody(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scene, slept = Scene(), []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            scene.retires = len(slept) == LOOKS

        monkeypatch.setattr(time, "sleep", sleep)
        scene.standstill().run()
        assert (scene.killer.calls, len(slept)) == (0, LOOKS)

    def test_a_killer_that_cannot_be_called_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        standstill = Scene(Killer(fails=True)).standstill()
        for _ in range(LOOKS + 1):
            standstill.look_once()
        assert "cannot be called: Operation not permitted" in caplog.text


class TestSight:
    def sight(self, root: Path, *devices: LoopDevice | None) -> Sight:
        """Return one that finds *devices* one after the other, and then the last for ever."""
        left = [[each] if each else [] for each in devices]
        found = lambda: left.pop(0) if len(left) > 1 else left[0]  # noqa: E731
        return Sight(found, lambda: (7, 1, 5), root)

    def waits(self, root: Path, name: str, count: int) -> None:
        (root / "sys/block" / name / "inflight").write_text(f"       0 {count:8d}\n")

    def test_no_device_is_nothing_that_waits(self, root: Path) -> None:
        assert self.sight(root, None).look() == Look(0, 7, 1, 5, True, True)

    @pytest.mark.parametrize(("used", "elsewhere"), [(1000, False), (999, True)])
    def test_another_area_with_room_is_seen(self, root: Path, used: int, elsewhere: bool) -> None:
        line = f"/dev/vdb partition 1000 {used} -2\n"
        (root / "proc/swaps").write_text(SWAPS + line)
        sight = self.sight(root, device(0))
        sight.look()
        assert sight.look().elsewhere is elsewhere

    def test_a_device_that_is_attached_later_is_found(self, root: Path) -> None:
        self.waits(root, "loop0", 3)
        sight = self.sight(root, None, device(0))
        assert [sight.look().handed_down for _ in range(7)][-1] == 3

    def test_another_device_is_found_when_the_first_is_quiet(self, root: Path) -> None:
        self.waits(root, "loop1", 4)
        sight = self.sight(root, device(0), device(1))
        assert [sight.look().handed_down for _ in range(7)][-1] == 4

    @pytest.mark.parametrize(("available_kib", "short"), [(0, True), (13999, True), (14001, False)])
    def test_memory_is_short_below_a_part_in_32(
        self, root: Path, available_kib: int, short: bool
    ) -> None:
        (root / "proc/meminfo").write_text(meminfo(available_kib))
        self.waits(root, "loop0", 1)
        assert self.sight(root, device(0)).look().memory_short is short

    @pytest.mark.parametrize(("available_kib", "short"), [(262143, True), (262144, False)])
    def test_a_large_machine_is_not_short_with_a_quarter_gigabyte(
        self, root: Path, available_kib: int, short: bool
    ) -> None:
        lines = f"MemTotal: {1 << 30} kB\nMemFree: 0 kB\nMemAvailable: {available_kib} kB\n"
        (root / "proc/meminfo").write_text(lines)
        self.waits(root, "loop0", 1)
        assert self.sight(root, device(0)).look().memory_short is short


class TestHost:
    def test_the_oom_killer_is_called_by_its_key(self, root: Path) -> None:
        killer = OomKiller(root)
        killer.set()
        assert killer.check()[0]
        killer.call()
        assert (root / "proc/sysrq-trigger").read_text() == "f"

    def test_a_killer_that_may_not_be_called_is_a_guard_that_does_not_hold(
        self, tmp_path: Path
    ) -> None:
        killer = OomKiller(tmp_path)
        with pytest.raises(FileNotFoundError):
            killer.set()
        assert killer.check() == (False, f"{tmp_path}/proc/sysrq-trigger cannot be written to")
        with pytest.raises(OSError, match="not open"):
            killer.call()

    def test_a_machine_that_does_not_say_what_is_available(self, root: Path) -> None:
        (root / "proc/meminfo").write_text("MemTotal: 1 kB\n")
        with pytest.raises(OperationError, match="proc/meminfo"):
            Memory(root)

    def test_this_machine_can_be_read(self) -> None:
        assert Memory().is_short() in (True, False)

    def test_a_device_that_is_absent(self, root: Path) -> None:
        with pytest.raises(FileNotFoundError):
            HandedDown(Path("/dev/loop9"), root)
