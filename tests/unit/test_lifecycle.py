"""Up is all or nothing, down takes what there is and nothing that swap stands on."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import swapfs.command
from swapfs.command import ending, lifecycle, reserve, stale
from swapfs.command.stale import GhostSwap
from swapfs.config.model import Config, describe
from swapfs.errors import OperationError, SwapfsError
from swapfs.host import headroom, instance_lock, loop, mounts, proc, swap
from swapfs.host.headroom import Room
from swapfs.host.loop import LoopDevice
from swapfs.host.mounts import MountEntry
from swapfs.host.swap import SwapEntry
from swapfs.wire import control, state_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_PROCESS = 1 << 30  # beyond every pid_max
LOOP = Path("/dev/loop7")
STEPS = ["launch", "attach", "mkswap", "swapon"]
UNDOS = ["umount", "detach", "swapoff"]


class Machine:
    """A kernel and a daemon in a few variables; *fail* is the steps that fail."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.mounted = False
        self.loop = False
        self.swap_priority: int | None = None
        self.ghosts: list[GhostSwap] = []
        self.fail: set[str] = set()
        self.log: list[str] = []

    @property
    def state(self) -> tuple[bool, bool, bool]:
        return self.mounted, self.loop, self.swap_priority is not None

    def step(self, name: str) -> None:
        self.log.append(name)
        if name in self.fail:
            raise OperationError(f"{name} failed")

    def launch(self, config: Config) -> int:
        assert config.mountpoint.is_dir()
        self.step("launch")
        self.mounted = True
        return NO_PROCESS

    def run_foreground(self, config: Config) -> None:
        self.step("foreground")

    def mounts(self, _root: Path | None = None) -> list[MountEntry]:
        mine = MountEntry(self.config.mountpoint, "fuse.swapfs", "swapfs:one", 0)
        return [MountEntry(Path("/"), "ext4", "root", 0), *([mine] if self.mounted else [])]

    def loops(self, _root: Path | None = None) -> list[LoopDevice]:
        swap_file = str(self.config.mountpoint / "swap")
        mine = LoopDevice(LOOP, swap_file, False, True, 4096, 4096)
        other = LoopDevice(Path("/dev/loop1"), "/other", False, True, 4096, 4096)
        return [other, *([mine] if self.loop else [])]

    def find_swap(self, device: Path) -> SwapEntry | None:
        if device != LOOP or self.swap_priority is None:
            return None
        return SwapEntry(str(LOOP), "partition", 4096, 0, self.swap_priority, False)

    def swaps(self, _root: Path | None = None) -> list[SwapEntry]:
        area = self.find_swap(LOOP)
        return [area] if area else []

    def ghost_swaps(self, dead: object = ()) -> list[GhostSwap]:
        return self.ghosts

    def attach_loop(self, backing: Path) -> LoopDevice:
        assert self.mounted
        self.step("attach")
        self.loop = True
        return self.loops()[-1]

    def mkswap(self, device: Path, label: str) -> None:
        assert (device, label) == (LOOP, "one")
        self.step("mkswap")

    def swapon(self, device: Path, priority: int) -> None:
        self.step("swapon")
        self.swap_priority = priority

    def swapoff(self, device: Path) -> bool:
        self.step("swapoff")
        self.swap_priority = None
        return True

    def detach_loop(self, device: Path) -> None:
        assert self.swap_priority is None, "detached below active swap"
        self.step("detach")
        self.loop = False

    def umount(self, path: Path) -> None:
        assert not self.loop, "unmounted below a loop device"
        self.step("umount")
        self.mounted = False


def fake_proc(tmp_path: Path) -> Path:
    """Return the root of a machine with 256 MiB of memory, 1 MiB of it in reserve."""
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/min_free_kbytes").write_text("1024\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:  262144 kB\n")
    return tmp_path


def reserve_kib(tmp_path: Path) -> int:
    return int((tmp_path / "proc/sys/vm/min_free_kbytes").read_text())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    config = Config(
        name="one",
        mountpoint=tmp_path / "run/one/mnt",
        size_bytes=1 << 20,
        pool_bytes=1 << 22,
        runtime_dir=tmp_path / "run",
    )
    machine = Machine(config)
    root = fake_proc(tmp_path)
    monkeypatch.setattr(mounts, "entries", machine.mounts)
    monkeypatch.setattr(mounts, "umount", machine.umount)
    monkeypatch.setattr(loop, "devices", machine.loops)
    monkeypatch.setattr(loop, "attach", machine.attach_loop)
    monkeypatch.setattr(loop, "detach", machine.detach_loop)
    monkeypatch.setattr(swap, "find", machine.find_swap)
    monkeypatch.setattr(swap, "entries", machine.swaps)
    monkeypatch.setattr(swap, "is_leaving", lambda _area, _areas: False)
    for name in ("mkswap", "swapon", "swapoff"):
        monkeypatch.setattr(swap, name, getattr(machine, name))
    monkeypatch.setattr(stale, "ghost_swaps", machine.ghost_swaps)
    monkeypatch.setattr(reserve, "wanted_bytes", functools.partial(reserve.wanted_bytes, root=root))
    monkeypatch.setattr(reserve, "hold", functools.partial(reserve.hold, root=root))
    monkeypatch.setattr(reserve, "release", functools.partial(reserve.release, root=root))
    daemon = types.ModuleType("swapfs.command.launch")
    daemon.launch = machine.launch  # type: ignore[attr-defined]
    daemon.run_foreground = machine.run_foreground  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swapfs.command.launch", daemon)
    monkeypatch.setattr(swapfs.command, "launch", daemon, raising=False)
    return machine


def test_up_then_down(machine: Machine, tmp_path: Path) -> None:
    assert lifecycle.up(machine.config) == [LOOP]
    assert reserve_kib(tmp_path) == 16384
    assert machine.state == (True, True, True)
    done = lifecycle.down("one", machine.config.runtime_dir)
    assert done == [
        f"swapoff {LOOP}",
        f"detached {LOOP}",
        f"unmounted {machine.config.mountpoint}",
        "vm.min_free_kbytes is 1024 again",
    ]
    assert machine.state == (False, False, False)
    assert reserve_kib(tmp_path) == 1024
    assert machine.log == [*STEPS, "swapoff", "detach", "umount"]
    assert not machine.config.mountpoint.parent.exists()
    assert lifecycle.down("one", machine.config.runtime_dir) == []


@pytest.mark.parametrize("failing", STEPS)
def test_failed_step_undoes_all_before_it_in_reverse(
    machine: Machine, tmp_path: Path, failing: str
) -> None:
    machine.fail = {failing}
    with pytest.raises(OperationError, match=f"^{failing} failed$") as caught:
        lifecycle.up(machine.config)
    assert not hasattr(caught.value, "__notes__")
    assert machine.state == (False, False, False)
    done = STEPS[: STEPS.index(failing) + 1]
    undone = {
        "launch": [],
        "attach": ["umount"],
        "mkswap": ["detach", "umount"],
        "swapon": ["detach", "umount"],
    }
    assert machine.log == done + undone[failing]
    assert reserve_kib(tmp_path) == 1024
    assert not machine.config.mountpoint.parent.exists()


@pytest.mark.parametrize("priority", [None, 3])
def test_swapon_that_the_kernel_does_not_show_is_undone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, priority: int | None
) -> None:
    def swapon(device: Path, wanted: int) -> None:
        machine.swap_priority = priority

    monkeypatch.setattr(swap, "swapon", swapon)
    with pytest.raises(OperationError, match=r"not in /proc/swaps|priority 3 instead of 100"):
        lifecycle.up(machine.config)
    assert machine.state == (False, False, False)


@pytest.mark.parametrize("failing", UNDOS)
def test_failed_undo_is_a_note_on_the_first_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def swapon(device: Path, wanted: int) -> None:
        machine.swap_priority = wanted - 1

    monkeypatch.setattr(swap, "swapon", swapon)
    machine.fail = {failing}
    with pytest.raises(OperationError, match="priority 99 instead of 100") as caught:
        lifecycle.up(machine.config)
    (note,) = caught.value.__notes__
    assert f"{failing} failed" in note
    # What stands on the failed step is gone, what it stands on is not touched.
    assert (
        machine.state
        == {
            "swapoff": (True, True, True),
            "detach": (True, True, False),
            "umount": (True, False, False),
        }[failing]
    )
    assert machine.config.mountpoint.is_dir()


def test_interrupt_undoes_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapon(device: Path, priority: int) -> None:
        machine.swapon(device, priority)
        raise KeyboardInterrupt

    monkeypatch.setattr(swap, "swapon", swapon)
    with pytest.raises(KeyboardInterrupt):
        lifecycle.up(machine.config)
    assert machine.state == (False, False, False)


@pytest.mark.parametrize(
    "start", [lifecycle.up, lambda config: lifecycle.mount(config, foreground=False)]
)
def test_second_start_is_refused_and_harms_nothing(
    machine: Machine, start: Callable[[Config], object]
) -> None:
    lifecycle.up(machine.config)
    before = machine.state, list(machine.log)
    with pytest.raises(OperationError, match=r"still mounted on .*else run swapfs down one first"):
        start(machine.config)
    assert (machine.state, machine.log) == before


def test_loop_left_over_is_refused(machine: Machine) -> None:
    machine.loop = True
    with pytest.raises(OperationError, match="/dev/loop7 is left over"):
        lifecycle.up(machine.config)
    assert machine.log == []


def test_ghost_is_refused_unless_unsafe(machine: Machine) -> None:
    machine.ghosts = [GhostSwap(Path("/dev/loop3"), "/x/swap", "it is deleted")]
    with pytest.raises(OperationError, match="/dev/loop3 is swap but it is deleted"):
        lifecycle.up(machine.config)
    assert machine.log == []
    lifecycle.up(dataclasses.replace(machine.config, unsafe=True))
    assert machine.state == (True, True, True)


def test_down_leaves_everything_when_swapoff_fails(machine: Machine, tmp_path: Path) -> None:
    lifecycle.up(machine.config)
    machine.fail = {"swapoff"}
    with pytest.raises(OperationError, match="nothing was detached or unmounted"):
        lifecycle.down("one", machine.config.runtime_dir)
    assert machine.state == (True, True, True)
    assert reserve_kib(tmp_path) == 16384
    machine.fail = set()
    lifecycle.down("one", machine.config.runtime_dir)
    assert machine.state == (False, False, False)


# swap that somebody turned off


@pytest.fixture
def running(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Bring it up, with a daemon that lives and answers."""
    lifecycle.up(machine.config)
    described = json.loads(describe(machine.config, as_json=True))
    monkeypatch.setattr(control, "request", lambda *_: {"config": described})
    lock = instance_lock.acquire(machine.config.runtime_dir / "one.lock")
    assert lock is not None
    machine.log.clear()
    yield machine
    os.close(lock)


@pytest.mark.parametrize("attached", [True, False])
def test_up_turns_swap_on_again(running: Machine, tmp_path: Path, attached: bool) -> None:
    running.swap_priority, running.loop = None, attached
    (tmp_path / "proc/sys/vm/min_free_kbytes").write_text("1024\n")
    assert lifecycle.up(running.config) == [LOOP]
    assert running.log == [*([] if attached else ["attach"]), "mkswap", "swapon"]
    assert running.state == (True, True, True)
    assert reserve_kib(tmp_path) == 16384


def test_up_of_what_is_on_is_refused(running: Machine) -> None:
    with pytest.raises(OperationError, match=r"one is already mounted on .*: run swapfs down"):
        lifecycle.up(running.config)
    assert running.log == []


def test_up_with_other_values_is_refused(running: Machine) -> None:
    running.swap_priority = None
    other = dataclasses.replace(running.config, priority=3, pool_bytes=1 << 23)
    with pytest.raises(OperationError, match=r"runs with another pool, priority: run swapfs down"):
        lifecycle.up(other)
    assert running.log == []


def test_up_turns_nothing_on_that_mount_made(running: Machine) -> None:
    running.swap_priority, running.loop = None, False
    control.wanted_path(running.config.runtime_dir, "one").unlink()
    with pytest.raises(OperationError, match="already mounted"):
        lifecycle.up(running.config)
    assert running.log == []


@pytest.mark.parametrize("failing", ["attach", "mkswap", "swapon"])
def test_turning_on_again_that_fails_leaves_it_as_it_was(
    running: Machine, tmp_path: Path, failing: str
) -> None:
    running.swap_priority, running.loop, running.fail = None, False, {failing}
    with pytest.raises(OperationError, match=f"^{failing} failed$"):
        lifecycle.up(running.config)
    assert running.state == (True, False, False)
    running.fail = set()
    lifecycle.up(running.config)
    assert running.state == (True, True, True)


def test_what_was_wanted_of_a_dead_instance_is_forgotten(machine: Machine) -> None:
    lifecycle.up(machine.config)
    machine.mounted, machine.loop, machine.swap_priority = False, False, None  # all of it died
    lifecycle.mount(machine.config, foreground=False)
    assert not control.wanted_path(machine.config.runtime_dir, "one").exists()


def test_down_takes_back_that_swap_is_wanted(machine: Machine) -> None:
    lifecycle.up(machine.config)
    wanted = control.wanted_path(machine.config.runtime_dir, "one")
    machine.fail = {"swapoff"}
    with pytest.raises(OperationError):
        lifecycle.down("one", machine.config.runtime_dir)
    assert wanted.exists()
    machine.fail = {"detach"}
    with pytest.raises(OperationError):
        lifecycle.down("one", machine.config.runtime_dir)
    assert not wanted.exists()


def test_down_waits_for_the_swapoff_of_another_and_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.up(machine.config)

    def refused(_device: Path) -> bool:
        return False

    def ends(_device: Path, _wait_s: float) -> None:
        machine.swap_priority = None

    monkeypatch.setattr(swap, "swapoff", refused)
    monkeypatch.setattr(swap, "wait_for_change", ends)
    assert lifecycle.down("one", machine.config.runtime_dir)[0] == f"swapoff {LOOP}"
    assert machine.state == (False, False, False)


def test_down_without_room_takes_nothing_away(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.up(machine.config)
    state_file.path(machine.config.runtime_dir, "one").touch()
    lock = instance_lock.acquire(machine.config.runtime_dir / "one.lock")
    assert lock is not None
    monkeypatch.setattr(headroom, "of_machine", lambda _area, _areas: Room(2, 1))
    with pytest.raises(OperationError, match=r"no room .* nothing was detached or unmounted"):
        lifecycle.down("one", machine.config.runtime_dir)
    assert machine.state == (True, True, True)
    os.close(lock)
    # Of the dead nothing comes back.
    lifecycle.down("one", machine.config.runtime_dir)
    assert machine.state == (False, False, False)


@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("swap", [True, False])
def test_down_takes_any_parts(machine: Machine, mounted: bool, loop: bool, swap: bool) -> None:
    machine.config.runtime_dir.mkdir()
    snapshot = {"mountpoint": str(machine.config.mountpoint), "loop": str(LOOP), "pid": NO_PROCESS}
    path = state_file.path(machine.config.runtime_dir, "one")
    path.write_text(json.dumps({"written_unix_s": 0, "status": snapshot}))
    machine.mounted, machine.loop = mounted, loop
    machine.swap_priority = 1 if swap and loop else None
    lifecycle.down("one", machine.config.runtime_dir)
    assert machine.state == (False, False, False)
    assert not path.exists()


def test_down_knows_nothing_of_other_instances(machine: Machine) -> None:
    lifecycle.up(machine.config)
    assert lifecycle.down("two", machine.config.runtime_dir) == []
    assert machine.state == (True, True, True)


def test_mount_in_the_foreground_leaves_no_mount_point(machine: Machine) -> None:
    assert lifecycle.mount(machine.config, foreground=True) is None
    assert machine.log == ["foreground"]
    assert not machine.config.mountpoint.exists()
    assert lifecycle.mount(machine.config, foreground=False) == NO_PROCESS


def test_a_mount_point_of_the_user_is_kept(machine: Machine, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    machine.config = Config(
        name="one",
        mountpoint=mine,
        size_bytes=1 << 20,
        pool_bytes=1 << 22,
        runtime_dir=tmp_path / "run",
    )
    machine.fail = {"attach"}
    with pytest.raises(OperationError):
        lifecycle.up(machine.config)
    assert mine.is_dir()


def test_reserve_off_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    lifecycle.up(dataclasses.replace(machine.config, min_free_bytes=0))
    assert reserve_kib(tmp_path) == 1024
    done = lifecycle.down("one", machine.config.runtime_dir)
    assert not any("min_free" in line for line in done)


def hold(machine: Machine, **changes: object) -> Path:
    """Leave the state file of a monitor that has given up restarting its server."""
    run = machine.config.runtime_dir
    run.mkdir(exist_ok=True)
    place = str(machine.config.mountpoint)
    state_file.write(run, "one", {"held": True, "mountpoint": place, **changes})
    return run


def test_down_of_a_held_instance_touches_nothing_while_a_loop_is_on_it(machine: Machine) -> None:
    run = hold(machine, pid=4711)
    machine.mounted = machine.loop = True
    lock = instance_lock.acquire(run / "one.lock")
    assert lock is not None
    with pytest.raises(OperationError, match=r"no server.*kill -HUP 4711"):
        lifecycle.down("one", run)
    os.close(lock)
    assert machine.log == []


def test_down_asks_a_held_monitor_to_end(machine: Machine) -> None:
    machine.config.runtime_dir.mkdir()
    command = [sys.executable, "-c", HOLDER, str(machine.config.runtime_dir / "one.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == b"held\n"
        run = hold(machine, pid=monitor.pid, born=proc.births(monitor.pid))
        lifecycle.down("one", run)
        assert monitor.wait(timeout=10) == -signal.SIGTERM
    assert not state_file.path(run, "one").exists()


def test_down_signals_no_process_that_has_the_number_of_a_dead_monitor(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "STOP_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ending, "EXIT_WAIT_S", 0.0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        run = hold(machine, pid=stranger.pid, born={str(stranger.pid): "boot/1"})
        lock = instance_lock.acquire(run / "one.lock")  # of a server that goes on alone
        assert lock is not None
        with pytest.raises(OperationError, match="still runs"):
            lifecycle.down("one", run)
        os.close(lock)
        assert stranger.poll() is None


HOLDER = """
import pathlib, sys
from swapfs.host import instance_lock
assert instance_lock.acquire(pathlib.Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("exits", [True, False])
def test_down_waits_for_the_daemon(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, exits: bool
) -> None:
    run = machine.config.runtime_dir
    run.mkdir()
    command = [sys.executable, "-c", HOLDER, str(run / "one.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"held\n"
        status = {
            "pid": daemon.pid,
            "born": proc.births(daemon.pid),
            "mountpoint": str(machine.config.mountpoint),
        }
        written = json.dumps({"written_unix_s": 0, "status": status})
        state_file.path(run, "one").write_text(written)
        machine.mounted = True

        def umount(path: Path) -> None:
            machine.umount(path)
            if exits:
                assert daemon.stdin is not None
                daemon.stdin.close()

        monkeypatch.setattr(mounts, "umount", umount)
        if exits:
            assert lifecycle.down("one", run)[-1] == "stopped the daemon"
            assert daemon.wait(timeout=10) == 0
        else:
            monkeypatch.setattr(ending, "STOP_TIMEOUT_S", 0.1)
            monkeypatch.setattr(ending, "EXIT_WAIT_S", 0.0)
            with pytest.raises(
                OperationError,
                match="but its daemon still runs",
            ):
                lifecycle.down("one", run)
            assert state_file.path(run, "one").exists()


@pytest.mark.parametrize("held", [False, True])
def test_no_upgrade_while_a_disk_hangs_and_a_server_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    tier = {"path": "/dev/slow", "state": "stuck", "detail": "a write has been stuck for 7s"}
    status = {"pid": NO_PROCESS, "held": held, "tiers": [tier], "config": {}}
    monkeypatch.setattr(control, "request", lambda *_: status)
    with pytest.raises(SwapfsError) as caught:
        lifecycle.upgrade("x", tmp_path)
    # A held instance has no server that could be in its way: it comes as far as the next step.
    assert ("upgrade when the disk answers" in str(caught.value)) is not held
