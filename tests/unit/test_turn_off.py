"""Swap goes off once, whoever does it, and only if there is room for what comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swapfs.command.turn_off import BETTER_BYTES, turn_off
from swapfs.errors import OperationError
from swapfs.host import headroom, proc, swap
from swapfs.host.headroom import Room
from swapfs.host.swap import SwapEntry
from swapfs.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOOP = Path("/dev/loop7")


class Kernel:
    """One swap area, and what happens at the next waits."""

    def __init__(self) -> None:
        self.area: SwapEntry | None = SwapEntry(str(LOOP), "partition", 100, 50, 1, False)
        self.leaving = False
        self.kills = 0
        self.room = Room(50, 100)
        self.groups: list[Room] = []
        self.log: list[str] = []
        self.meanwhile: list[Callable[[], object]] = []
        self.swapoff_does: Callable[[], bool] = self.go

    def go(self) -> bool:
        self.area, self.leaving = None, False
        return True

    def refuse(self) -> bool:
        """Answer as the kernel does while another swapoff is at it."""
        return False

    def oom(self) -> bool:
        self.kills += 1
        raise swap.OomKilled("swapoff: killed")

    def starve(self) -> bool:
        """Find no memory for a page, as where its owner's group is at its limit."""
        raise swap.NoMemory("swapoff: Cannot allocate memory")

    def swapoff(self, _device: Path) -> bool:
        self.log.append("swapoff")
        return self.swapoff_does()

    def wait(self, _device: Path, _wait_s: float) -> None:
        self.log.append("wait")
        self.meanwhile.pop(0)()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(swap, "find", lambda _device: kernel.area)
    monkeypatch.setattr(swap, "entries", lambda: [kernel.area] if kernel.area else [])
    monkeypatch.setattr(swap, "is_leaving", lambda _area, _areas: kernel.leaving)
    monkeypatch.setattr(swap, "wait_for_change", kernel.wait)
    monkeypatch.setattr(swap, "swapoff", kernel.swapoff)
    monkeypatch.setattr(proc, "oom_kills", lambda: kernel.kills)
    monkeypatch.setattr(headroom, "of_machine", lambda _area, _areas: kernel.room)
    monkeypatch.setattr(headroom, "of_groups", lambda _area, _areas: iter(kernel.groups))
    return kernel


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


def test_alone(kernel: Kernel, note: Path) -> None:
    assert turn_off(LOOP, note)
    assert kernel.log == ["swapoff"]
    assert not turn_off(LOOP, note), "it was off"


def test_what_another_does_is_waited_for(kernel: Kernel, note: Path) -> None:
    kernel.leaving = True
    kernel.meanwhile = [lambda: None, kernel.go]
    assert turn_off(LOOP, note)
    assert kernel.log == ["wait", "wait"]


def test_a_refusal_while_it_is_listed_is_another_that_began_just_before(
    kernel: Kernel, note: Path
) -> None:
    kernel.swapoff_does = kernel.refuse
    kernel.meanwhile = [lambda: None, kernel.go]
    assert turn_off(LOOP, note)
    assert kernel.log == ["swapoff", "wait", "swapoff", "wait"]


def test_when_the_other_fails_this_one_does_it(kernel: Kernel, note: Path) -> None:
    kernel.leaving = True

    def fail() -> None:
        kernel.leaving = False

    kernel.meanwhile = [fail]
    assert turn_off(LOOP, note)
    assert kernel.log == ["wait", "swapoff"]


def test_a_device_that_the_kernel_never_takes_is_an_error_at_last(
    kernel: Kernel, note: Path
) -> None:
    kernel.swapoff_does = kernel.refuse
    kernel.meanwhile = [lambda: None] * 1000
    with pytest.raises(OperationError, match="no swap area"):
        turn_off(LOOP, note)


def test_what_finds_no_memory_is_tried_again_while_pages_come_back(
    kernel: Kernel, note: Path
) -> None:
    kernel.swapoff_does = kernel.starve

    def come_back() -> None:
        assert kernel.area is not None
        kernel.area = replace(kernel.area, used_bytes=kernel.area.used_bytes - 1)

    def have_memory() -> None:
        kernel.swapoff_does = kernel.go

    kernel.meanwhile = [*[come_back] * 30, *[lambda: None] * 3, have_memory]
    assert turn_off(LOOP, note, force=True)
    assert kernel.log.count("swapoff") == 35


def test_what_finds_no_memory_at_all_is_an_error_that_says_what_to_do(
    kernel: Kernel, note: Path
) -> None:
    kernel.swapoff_does = kernel.starve
    kernel.meanwhile = [lambda: None] * 1000
    with pytest.raises(OperationError, match=r"Cannot allocate memory.*memory\.max"):
        turn_off(LOOP, note, force=True)


def test_no_room_is_refused_before_anything_is_done(kernel: Kernel, note: Path) -> None:
    kernel.room = Room(300 * MiB, 200 * MiB)
    with pytest.raises(OperationError) as caught:
        turn_off(LOOP, note)
    assert "100M is missing, as 300M comes back and 200M is free" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kernel.log == []
    assert turn_off(LOOP, note, force=True)


def test_another_that_goes_on_without_room_is_waited_for(kernel: Kernel, note: Path) -> None:
    kernel.room, kernel.leaving, kernel.meanwhile = Room(300, 200), True, [kernel.go]
    assert turn_off(LOOP, note)


def test_a_group_without_room_is_named(kernel: Kernel, note: Path) -> None:
    kernel.groups = [Room(1, 1, "/fits"), Room(30 * MiB, 10 * MiB, "/hog")]
    with pytest.raises(OperationError, match=r"cgroup /hog: 20M is missing"):
        turn_off(LOOP, note)
    assert kernel.log == []


def test_after_an_oom_kill_nobody_tries_again_until_there_is_more_room(
    kernel: Kernel, note: Path
) -> None:
    kernel.swapoff_does = kernel.oom
    with pytest.raises(OperationError, match="ended by the kernel's OOM killer"):
        turn_off(LOOP, note)
    for _ in range(2):
        with pytest.raises(OperationError, match="was ended by the OOM killer, and there is no mo"):
            turn_off(LOOP, note)
    assert kernel.log == ["swapoff"]
    kernel.swapoff_does = kernel.go
    kernel.room = replace(kernel.room, free_bytes=kernel.room.free_bytes + BETTER_BYTES)
    assert turn_off(LOOP, note)
    assert not note.exists()


def test_force_tries_again_after_an_oom_kill(kernel: Kernel, note: Path) -> None:
    note.write_text("1000\n")
    assert turn_off(LOOP, note, force=True)
    assert not note.exists()


def test_after_the_oom_kill_of_another_this_one_does_not_begin(kernel: Kernel, note: Path) -> None:
    kernel.swapoff_does = kernel.refuse

    def kill() -> None:
        kernel.kills += 1

    kernel.meanwhile = [kill]
    with pytest.raises(OperationError, match="another swapoff seems to have been ended"):
        turn_off(LOOP, note)
    assert kernel.log == ["swapoff", "wait"]


# what is counted


def area(path: str, size: int, used: int) -> SwapEntry:
    return SwapEntry(path, "partition", size * MiB, used * MiB, 1, False)


def meminfo(root: Path, **mib: int) -> None:
    (root / "proc").mkdir(exist_ok=True)
    lines = [f"{name}:  {value * 1024} kB\n" for name, value in mib.items()]
    (root / "proc/meminfo").write_text("".join(lines))


@pytest.mark.parametrize(
    ("others", "needed", "free"),
    [
        ([], 90, 200),  # the swap cache is in memory already
        ([area("/dev/b", 100, 0)], 90, 300),
        ([area("/dev/b", 100, 30)], 100, 270),  # whose the swap cache is nobody knows
    ],
)
def test_room_of_the_machine(
    tmp_path: Path, others: list[SwapEntry], needed: int, free: int
) -> None:
    ours = area("/dev/a", 500, 100)
    meminfo(tmp_path, MemAvailable=200, SwapCached=10)
    found = headroom.of_machine(ours, [ours, *others], tmp_path)
    assert (found.needed_bytes, found.free_bytes) == (needed * MiB, free * MiB)


def group(root: Path, name: str, **mib: int | str) -> None:
    path = root / headroom.CGROUPS / name
    path.mkdir(parents=True)
    for key, value in mib.items():
        text = str(value * MiB) if isinstance(value, int) else value
        (path / f"memory.{key.replace('_', '.')}").write_text(f"{text}\n")


def groups(root: Path, areas: Iterable[SwapEntry]) -> dict[str, int]:
    areas = list(areas)
    found = headroom.of_groups(areas[0], areas, root)
    return {room.group: room.spare_bytes // MiB for room in found}


def test_room_of_groups(tmp_path: Path) -> None:
    stat = f"anon 5\nactive_file {MiB}\ninactive_file {MiB}"
    group(tmp_path, "tight", swap_current=50, max=40, current=20, stat=stat)
    group(tmp_path, "tight/inner", swap_current=50, max="max", current=20)
    group(tmp_path, "wide", swap_current=10, max=100, current=20)
    group(tmp_path, "idle", swap_current=0, max=10, current=20)
    assert groups(tmp_path, [area("/dev/a", 500, 100)]) == {"/tight": 22 - 50, "/wide": 70}
    # Another area can take pages of the group, and may hold some of what it has swapped.
    assert groups(tmp_path, [area("/dev/a", 500, 100), area("/dev/b", 20, 0)])["/tight"] == -8
    assert groups(tmp_path, [area("/dev/a", 500, 100), area("/dev/b", 40, 40)])["/tight"] == 12


def test_a_group_may_swap_no_more_than_it_may(tmp_path: Path) -> None:
    group(tmp_path, "hog", swap_current=50, swap_max=20, max=10, current=10)
    assert groups(tmp_path, [area("/dev/a", 500, 100), area("/dev/b", 500, 0)]) == {"/hog": -30}


def group_v1(root: Path, name: str, limit: int, usage: int, **stat_mib: int) -> None:
    path = root / headroom.CGROUPS / "memory" / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (path / "memory.usage_in_bytes").write_text(f"{usage * MiB}\n")
    lines = (f"{key} {value * MiB}\n" for key, value in stat_mib.items())
    (path / "memory.stat").write_text("".join(lines))


def test_room_of_groups_of_version_1(tmp_path: Path) -> None:
    none = 2**63 - 4096  # what the kernel shows where there is no limit
    group_v1(tmp_path, "", none, 900, total_swap=100)
    group_v1(
        tmp_path, "tight", 40 * MiB, 20, swap=1, total_swap=50,
        total_active_file=1, total_inactive_file=1,
    )  # fmt: skip
    group_v1(tmp_path, "tight/inner", none, 20, total_swap=49)
    group_v1(tmp_path, "wide", 100 * MiB, 20, total_swap=10)
    group_v1(tmp_path, "idle", 10 * MiB, 20, total_swap=0)
    group_v1(tmp_path, "unaccounted", 10 * MiB, 20)
    group(tmp_path, "unified/other")  # as systemd has it beside them
    assert groups(tmp_path, [area("/dev/a", 500, 100)]) == {"/tight": 22 - 50, "/wide": 70}
    assert groups(tmp_path, [area("/dev/a", 500, 100), area("/dev/b", 20, 0)])["/tight"] == -8
    assert groups(tmp_path, [area("/dev/a", 500, 100), area("/dev/b", 40, 40)])["/tight"] == 12


def test_a_limit_of_memory_and_swap_together_binds_nobody(tmp_path: Path) -> None:
    """What comes back from swap counted against it before, and does so after."""
    group_v1(tmp_path, "", 2**63 - 4096, 900)
    group_v1(tmp_path, "hog", 40 * MiB, 20, total_swap=10)
    (tmp_path / headroom.CGROUPS / "memory/hog/memory.memsw.limit_in_bytes").write_text(
        f"{30 * MiB}\n"
    )
    assert groups(tmp_path, [area("/dev/a", 500, 100)]) == {"/hog": 10}


def test_without_cgroups_there_are_none(tmp_path: Path) -> None:
    assert groups(tmp_path, [area("/dev/a", 1, 1)]) == {}


def test_an_area_that_leaves_is_known_by_what_swap_lacks(tmp_path: Path) -> None:
    ours, other = area("/dev/a", 500, 100), area("/dev/b", 50, 10)

    def leaves(total_mib: int) -> bool:
        meminfo(tmp_path, SwapTotal=total_mib)
        return swap.is_leaving(ours, [ours, other], tmp_path)

    assert not leaves(550)
    assert leaves(150), "only what is in use counts"
    assert leaves(140), "and that falls while we look"
    assert not leaves(510), "the other one leaves"
