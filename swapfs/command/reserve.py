"""The kernel's reserve of free memory, ``vm.min_free_kbytes``: raised while swap is on.

A larger reserve lets the server get its memory while everybody else waits for some (measured in a
512 MiB VM). It belongs to the whole machine, so the instances of one runtime directory share one
state file: the first that needs more than there is notes what was set before, the last one puts
that back. The file is written before the kernel's value is changed, and removed after it was put
back, so that a crash in between leaves nothing that a later ``down`` would misread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.errors import OperationError
from swapfs.host import proc
from swapfs.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AUTO_BYTES_MAX: Final = 32 * MiB
"""16 to 32 MiB were measured to help; more only takes memory away."""
AUTO_SHARE: Final = 16
"""... and at most one part in so many of a small machine's memory."""
STATE_FILE: Final = ".reserve"
"""No instance's name begins with a dot."""


@dataclass(frozen=True, slots=True)
class _State:
    """Who holds the reserve up, and what was there before.

    :param boot: the kernel's boot id; a state of another boot means nothing
    :param former_kib: to be put back
    :param ours_kib: what we set, or were about to; any other value is somebody else's
    """

    boot: str
    former_kib: int
    ours_kib: tuple[int, ...]
    holders: tuple[str, ...]


def wanted_bytes(asked_bytes: int | None, root: Path = proc.ROOT) -> int:
    """Return the reserve to have: *asked_bytes* (0 is none), or what suits this machine if None.

    :raises OperationError: /proc/meminfo cannot be read
    """
    if asked_bytes is not None:
        return asked_bytes
    return min(AUTO_BYTES_MAX, proc.memory_total_bytes(root) // AUTO_SHARE)


def hold(runtime_dir: Path, name: str, needed_bytes: int, root: Path = proc.ROOT) -> None:
    """Have the kernel keep *needed_bytes* free at least, for instance *name*; never lowers.

    :raises OperationError: the kernel's value cannot be read or changed
    """
    needed_kib = needed_bytes // KiB
    with _locked(runtime_dir):
        now_kib = _read(root)
        state = _load(runtime_dir, root)
        if state is None and needed_kib <= now_kib:
            return None
        if state is None or (now_kib not in state.ours_kib and needed_kib > now_kib):
            # Nobody's yet, or somebody else has set it since: that is what to put back.
            holders = state.holders if state else ()
            state = _State(_boot(root), now_kib, (), holders)
        state = replace(state, holders=tuple(sorted({*state.holders, name})))
        if needed_kib <= now_kib:
            return _store(runtime_dir, state)
        _store(runtime_dir, replace(state, ours_kib=(*state.ours_kib, needed_kib)))
        _write(root, needed_kib)
        return None


def release(
    runtime_dir: Path, name: str, lives: Callable[[str], bool], root: Path = proc.ROOT
) -> int | None:
    """Put back what was there before *name* and the others; return it in KiB, or None.

    None: another living instance needs the reserve still, somebody else has set it since, or
    *name* holds none.

    :param lives: whether another instance lives; one that died without ``down`` holds nothing
    :raises OperationError: the kernel's value cannot be read or changed; to be called again
    """
    if not (runtime_dir / STATE_FILE).exists():
        return None
    with _locked(runtime_dir):
        state = _load(runtime_dir, root)
        if state is None:  # of another boot
            (runtime_dir / STATE_FILE).unlink(missing_ok=True)
            return None
        if name not in state.holders:
            return None
        others = tuple(holder for holder in state.holders if holder != name and lives(holder))
        if others:
            _store(runtime_dir, replace(state, holders=others))
            return None
        restored = None
        if _read(root) in state.ours_kib:
            _write(root, state.former_kib)
            restored = state.former_kib
        (runtime_dir / STATE_FILE).unlink(missing_ok=True)
        return restored


@contextlib.contextmanager
def _locked(runtime_dir: Path) -> Iterator[None]:
    """Keep every other ``up`` and ``down`` out; the directory itself is the lock."""
    try:
        descriptor = os.open(runtime_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OperationError(f"{runtime_dir}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _load(runtime_dir: Path, root: Path) -> _State | None:
    """Return the state of this boot; None if there is none that can be read."""
    try:
        found = json.loads((runtime_dir / STATE_FILE).read_bytes())
        state = _State(
            str(found["boot"]),
            int(found["former_kib"]),
            tuple(int(value) for value in found["ours_kib"]),
            tuple(str(holder) for holder in found["holders"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if state.boot == _boot(root) else None


def _store(runtime_dir: Path, state: _State) -> None:
    path = runtime_dir / STATE_FILE
    scratch = path.with_name(f"{STATE_FILE}.tmp")
    try:
        scratch.write_text(json.dumps(asdict(state)))
        scratch.rename(path)
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}") from error


def _boot(root: Path) -> str:
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(root: Path) -> int:
    path = _setting(root)
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise OperationError(f"{path}: cannot be read: {error}") from error


def _write(root: Path, value_kib: int) -> None:
    path = _setting(root)
    try:
        path.write_text(f"{value_kib}\n")
    except OSError as error:
        problem = f"{path}: cannot be set to {value_kib}: {error.strerror} (--min-free off)"
        raise OperationError(problem) from error
    if _read(root) != value_kib:
        raise OperationError(f"{path}: was set to {value_kib}, is {_read(root)}")


def _setting(root: Path) -> Path:
    return root / "proc/sys/vm/min_free_kbytes"
