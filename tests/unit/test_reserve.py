"""vm.min_free_kbytes: raised by the first, put back by the last, whatever happens in between."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from swapfs.command import reserve
from swapfs.errors import OperationError
from swapfs.units import KiB, MiB

FORMER_KIB = 1000
NOBODY: set[str] = set()


class Machine:
    """A fake /proc and a runtime directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self.run = directory / "run"
        self.run.mkdir()
        (directory / "proc/sys/vm").mkdir(parents=True)
        (directory / "proc/sys/kernel/random").mkdir(parents=True)
        self.boot("one")
        self.put(FORMER_KIB)

    @property
    def setting(self) -> Path:
        return self.root / "proc/sys/vm/min_free_kbytes"

    @property
    def kib(self) -> int:
        return int(self.setting.read_text())

    def put(self, kib: int) -> None:
        self.setting.write_text(f"{kib}\n")

    def boot(self, boot_id: str) -> None:
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{boot_id}\n")

    def hold(self, name: str, kib: int = 4000) -> None:
        reserve.hold(self.run, name, kib * KiB, self.root)

    def release(self, name: str, alive: set[str] = NOBODY) -> int | None:
        return reserve.release(self.run, name, alive.__contains__, self.root)

    @property
    def clean(self) -> bool:
        return list(self.run.iterdir()) == []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("asked", "memory_kib", "wanted"),
    [
        (None, 1 << 20, 32 * MiB),
        (None, 1 << 18, 16 * MiB),
        (None, 1 << 30, 32 * MiB),
        (0, 1 << 20, 0),
        (5 * MiB, 1 << 20, 5 * MiB),
    ],
)
def test_wanted(machine: Machine, asked: int | None, memory_kib: int, wanted: int) -> None:
    (machine.root / "proc/meminfo").write_text(f"MemTotal: {memory_kib} kB\n")
    assert reserve.wanted_bytes(asked, machine.root) == wanted


def test_raised_and_put_back_once(machine: Machine) -> None:
    machine.hold("a")
    assert machine.kib == 4000
    assert machine.release("a") == FORMER_KIB
    assert machine.kib == FORMER_KIB
    assert machine.clean
    machine.put(7)
    assert machine.release("a") is None
    assert machine.kib == 7


def test_never_lowered(machine: Machine) -> None:
    machine.put(9000)
    machine.hold("a")
    assert machine.kib == 9000
    assert machine.clean
    assert machine.release("a") is None


def test_the_last_one_puts_it_back(machine: Machine) -> None:
    machine.hold("a", 4000)
    machine.hold("b", 3000)
    machine.hold("c", 8000)
    assert machine.kib == 8000
    assert machine.release("a", alive={"b", "c"}) is None
    assert machine.release("c", alive={"b"}) is None
    assert machine.kib == 8000
    assert machine.release("b") == FORMER_KIB
    assert machine.kib == FORMER_KIB
    assert machine.clean


def test_one_that_died_without_down_holds_nothing(machine: Machine) -> None:
    machine.hold("a")
    machine.hold("b")
    assert machine.release("b", alive=NOBODY) == FORMER_KIB


def test_up_again_after_a_death_keeps_the_first_value(machine: Machine) -> None:
    machine.hold("a")
    machine.hold("a", 5000)
    assert machine.release("a") == FORMER_KIB


def test_a_stranger_does_not_put_it_back(machine: Machine) -> None:
    machine.hold("a")
    assert machine.release("b", alive=NOBODY) is None
    assert machine.kib == 4000


@pytest.mark.parametrize("changed_kib", [500, 6000])
def test_what_somebody_else_set_is_left(machine: Machine, changed_kib: int) -> None:
    machine.hold("a")
    machine.put(changed_kib)
    assert machine.release("a") is None
    assert machine.kib == changed_kib
    assert machine.clean


def test_what_somebody_else_set_is_put_back_if_we_raised_it_again(machine: Machine) -> None:
    machine.hold("a")
    machine.put(500)
    machine.hold("b")
    assert machine.kib == 4000
    assert machine.release("a", alive={"b"}) is None
    assert machine.release("b") == 500


@pytest.mark.parametrize("held_before", [False, True])
def test_crash_before_the_value_was_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, held_before: bool
) -> None:
    if held_before:
        machine.hold("b", 2000)

    write_text = Path.write_text

    def crash(path: Path, text: str) -> int:
        if path == machine.setting:
            raise KeyboardInterrupt
        return write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", crash)
        with pytest.raises(KeyboardInterrupt):
            machine.hold("a")
    machine.release("a", alive={"b"} if held_before else NOBODY)
    if held_before:
        assert machine.kib == 2000
        assert machine.release("b") == FORMER_KIB
    assert machine.kib == FORMER_KIB
    assert machine.clean


def test_crash_before_the_state_was_removed(machine: Machine) -> None:
    machine.hold("a")
    state = (machine.run / reserve.STATE_FILE).read_bytes()
    machine.release("a")
    (machine.run / reserve.STATE_FILE).write_bytes(state)
    assert machine.release("a") is None
    assert machine.kib == FORMER_KIB


@pytest.mark.parametrize("boot_id", ["one", "two"])
def test_a_state_of_another_boot_means_nothing(machine: Machine, boot_id: str) -> None:
    machine.hold("a")
    machine.boot(boot_id)
    assert machine.release("a") == (FORMER_KIB if boot_id == "one" else None)
    assert machine.clean


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"boot": 1, "holders": 2}'])
def test_garbage_is_replaced(machine: Machine, content: bytes) -> None:
    (machine.run / reserve.STATE_FILE).write_bytes(content)
    assert machine.release("a") is None
    machine.hold("a")
    assert machine.release("a") == FORMER_KIB


def test_a_value_that_cannot_be_read_or_set_is_one_line(machine: Machine) -> None:
    machine.setting.unlink()
    with pytest.raises(OperationError, match="min_free_kbytes: cannot be read"):
        machine.hold("a")


def _set_by(machine: Machine, monkeypatch: pytest.MonkeyPatch, how: Callable[[str], int]) -> None:
    """Have the kernel's value set by *how*; all other files are written as ever."""
    write = Path.write_text

    def write_text(path: Path, text: str) -> int:
        return how(text) if path == machine.setting else write(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)


def test_a_value_that_cannot_be_set_is_one_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    _set_by(machine, monkeypatch, refuse)
    with pytest.raises(OperationError, match=r"cannot be set to \d+: .*\(--min-free off\)"):
        machine.hold("a")


def test_a_kernel_that_keeps_its_value_is_noticed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_by(machine, monkeypatch, len)
    with pytest.raises(OperationError, match=rf"was set to \d+, is {FORMER_KIB}"):
        machine.hold("a")


def test_no_runtime_directory(tmp_path: Path) -> None:
    assert reserve.release(tmp_path / "none", "a", NOBODY.__contains__, tmp_path) is None
