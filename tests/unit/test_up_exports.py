"""Up and down with several swap files: all of them, or none."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import swapfs.command
from swapfs.command import lifecycle, reserve, stale, turn_on
from swapfs.config.exports import ExportConfig
from swapfs.config.model import Config, describe
from swapfs.errors import OperationError
from swapfs.host import headroom, instance_lock, loop, mounts, swap
from swapfs.host.headroom import Room
from swapfs.host.loop import LoopDevice
from swapfs.host.mounts import MountEntry
from swapfs.host.swap import SwapEntry
from swapfs.units import MiB
from swapfs.wire import control, state_file

NAMES = ("swap", "batch", "rest")
DEVICES = [Path(f"/dev/loop{number}") for number in (7001, 7002, 7003)]
NO_PROCESS = 1 << 30


class World:
    """A kernel with loop devices and swap areas; *fail* is the step that fails."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.mounted = False
        self.files: dict[Path, str] = {}
        self.areas: dict[Path, int] = {}
        self.labels: dict[Path, str] = {}
        self.fail = ""

    def step(self, name: str) -> None:
        if name == self.fail:
            raise OperationError(f"{name} failed")

    def launch(self, config: Config) -> int:
        self.mounted = True
        return NO_PROCESS

    def mounts(self, root: Path | None = None) -> list[MountEntry]:
        mine = MountEntry(self.config.mountpoint, "fuse.swapfs", "swapfs:one", 0)
        return [mine] if self.mounted else []

    def umount(self, path: Path) -> None:
        assert not self.files, "a loop device stands on it"
        self.mounted = False

    def devices(self, root: Path | None = None) -> list[LoopDevice]:
        return [
            LoopDevice(device, f"{self.config.mountpoint}/{name}", False, True, 4096, 4096)
            for device, name in sorted(self.files.items())
        ]

    def attach(self, backing: Path) -> LoopDevice:
        self.step(f"attach {backing.name}")
        device = next(device for device in DEVICES if device not in self.files)
        self.files[device] = backing.name
        return next(each for each in self.devices() if each.device == device)

    def detach(self, device: Path) -> None:
        assert device not in self.areas, "swap is on it"
        self.files.pop(device, None)

    def find(self, device: Path) -> SwapEntry | None:
        if device not in self.areas:
            return None
        return SwapEntry(str(device), "partition", 4096, 0, self.areas[device], False)

    def entries(self, root: Path | None = None) -> list[SwapEntry]:
        return [entry for entry in map(self.find, self.areas) if entry]

    def mkswap(self, device: Path, label: str) -> None:
        self.step(f"mkswap {self.files[device]}")
        self.labels[device] = label

    def swapon(self, device: Path, priority: int) -> None:
        self.step(f"swapon {self.files[device]}")
        self.areas[device] = priority

    def swapoff(self, device: Path) -> bool:
        self.step(f"swapoff {self.files[device]}")
        del self.areas[device]
        return True

    @property
    def on(self) -> dict[str, int]:
        """The priority of each file that swap is on."""
        return {self.files[device]: priority for device, priority in self.areas.items()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    exports = [
        ExportConfig(name=name, size_bytes=MiB, priority=10 - number)
        for number, name in enumerate(NAMES)
    ]
    config = Config(
        name="one",
        mountpoint=tmp_path / "run/one/mnt",
        size_bytes=MiB,
        pool_bytes=4 * MiB,
        runtime_dir=tmp_path / "run",
        min_free_bytes=0,
        described=tuple(exports),
    )
    world = World(config)
    for module, names in (
        (mounts, ("umount",)),
        (loop, ("devices", "attach", "detach")),
        (swap, ("find", "entries", "mkswap", "swapon", "swapoff")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(world, name))
    monkeypatch.setattr(mounts, "entries", world.mounts)
    monkeypatch.setattr(swap, "is_leaving", lambda _area, _areas: False)
    monkeypatch.setattr(stale, "ghost_swaps", lambda _known=(): [])
    monkeypatch.setattr(reserve, "release", lambda *_: None)
    monkeypatch.setattr(headroom, "of_machine", lambda *_: Room(0, MiB))
    monkeypatch.setattr(headroom, "of_groups", lambda *_: [])
    daemon = types.ModuleType("swapfs.command.launch")
    daemon.launch = world.launch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swapfs.command.launch", daemon)
    monkeypatch.setattr(swapfs.command, "launch", daemon, raising=False)
    return world


def test_up_turns_all_of_them_on_and_down_all_off(world: World) -> None:
    assert lifecycle.up(world.config) == DEVICES
    assert world.on == {"swap": 10, "batch": 9, "rest": 8}
    assert list(world.labels.values()) == ["one", "one-batch", "one-rest"]
    done = lifecycle.down("one", world.config.runtime_dir)
    assert done[:6] == [
        *(f"swapoff {device}" for device in DEVICES),
        *(f"detached {device}" for device in DEVICES),
    ]
    assert (world.on, world.files, world.mounted) == ({}, {}, False)


@pytest.mark.parametrize("step", ["attach", "mkswap", "swapon"])
@pytest.mark.parametrize("name", NAMES)
def test_one_that_fails_undoes_all(world: World, step: str, name: str) -> None:
    world.fail = f"{step} {name}"
    with pytest.raises(OperationError, match=f"^{step} {name} failed$") as caught:
        lifecycle.up(world.config)
    assert not hasattr(caught.value, "__notes__")
    assert (world.on, world.files, world.mounted) == ({}, {}, False)
    assert not control.wanted_path(world.config.runtime_dir, "one").exists()


def test_an_undo_that_fails_is_told_and_leaves_what_it_stands_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fail = "swapon rest"

    def fails(device: Path) -> bool:
        raise OperationError("swapoff failed")

    monkeypatch.setattr(swap, "swapoff", fails)
    with pytest.raises(OperationError, match="swapon rest failed") as caught:
        lifecycle.up(world.config)
    (note,) = caught.value.__notes__
    assert f"undoing it stopped at swapoff {DEVICES[1]}" in note
    assert world.on == {"swap": 10, "batch": 9}
    assert world.mounted


@pytest.fixture
def running(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Bring it up, with a daemon that lives and answers."""
    lifecycle.up(world.config)
    described = json.loads(describe(world.config, as_json=True))
    monkeypatch.setattr(control, "request", lambda *_: {"config": described})
    lock = instance_lock.acquire(world.config.runtime_dir / "one.lock")
    assert lock is not None
    yield world
    os.close(lock)


@pytest.mark.parametrize("detached", [True, False])
def test_up_turns_on_again_what_is_off_and_nothing_else(running: World, detached: bool) -> None:
    running.swapoff(DEVICES[1])
    if detached:
        running.detach(DEVICES[1])
    running.labels.clear()
    assert lifecycle.up(running.config) == DEVICES
    assert running.on == {"swap": 10, "batch": 9, "rest": 8}
    assert list(running.labels) == [DEVICES[1]], "no header is written under a swap area"


def test_up_with_other_exports_is_refused(running: World) -> None:
    running.swapoff(DEVICES[1])
    others = dataclasses.replace(running.config, described=running.config.described[:2])
    with pytest.raises(OperationError, match="one runs with another export"):
        lifecycle.up(others)
    assert running.on == {"swap": 10, "rest": 8}


def test_down_that_fails_at_one_can_be_called_again(running: World) -> None:
    running.fail = "swapoff batch"
    with pytest.raises(OperationError, match="nothing was detached or unmounted"):
        lifecycle.down("one", running.config.runtime_dir)
    assert running.on == {"batch": 9, "rest": 8}
    assert len(running.files) == 3
    assert turn_on.devices_by_name(running.config) == dict(zip(NAMES, DEVICES, strict=True))


def test_what_an_older_version_remembers_has_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {"mountpoint": "/run/x/mnt", "loop": "/dev/loop7", "loop_sequence": 5}
    monkeypatch.setattr(state_file, "read", lambda *_: (0.0, last))
    known = stale.remembered(tmp_path, "x")
    assert known.attachments == {("/dev/loop7", 5)}
    assert known.names == ("swap",)
    of_two = [{"name": "swap"}, {"name": "batch", "loop": "/dev/loop8", "loop_sequence": 6}]
    monkeypatch.setattr(state_file, "read", lambda *_: (0.0, {**last, "exports": of_two}))
    known = stale.remembered(tmp_path, "x")
    assert known.attachments == {("/dev/loop8", 6)}
    assert known.names == ("swap", "batch")
