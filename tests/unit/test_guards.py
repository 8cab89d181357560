"""guards: set, read back, report. What changes the process for good runs in a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from swapfs.errors import GuardError, OperationError
from swapfs.host import syscalls
from swapfs.host.device_guards import (
    DirectIo,
    Discard,
    LoopDeviceGuard,
    MaxBackground,
    RequestTimeout,
)
from swapfs.host.guards import Finding, Guard, Guards
from swapfs.host.loop import LoopDevice
from swapfs.host.process_guards import Heap, IoFlusher, MemoryLock, OomScore, Realtime
from swapfs.host.procself import ProcSelf

CAP_SYS_RESOURCE = 24
CAP_SYS_NICE = 23
CAP_IPC_LOCK = 14


def has_capability(bit: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def in_child(body: str, **environment: str) -> list[Finding]:
    """Run *body* with a fresh ``guards`` and return what ``verify`` says at its end."""
    script = (
        "import gc, json, mmap, os, threading\n"
        "from swapfs.host import syscalls\n"
        "from swapfs.host.guards import Guards\n"
        "from swapfs.host.process_guards import *\n"
        "guards = Guards(unsafe=False)\n"
        f"{body}\n"
        "print(json.dumps([guard.as_dict() for guard in guards.verify()]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [Finding(**fields) for fields in json.loads(result.stdout)]


def fake_proc(
    root: Path,
    flags: dict[int, int],
    status: str = "VmLck:\t 100 kB\n",
    heap: str = "1000-3000 rw-p 0 00:00 0 [heap]\n",
) -> Path:
    own = root / "self"
    for tid, bits in flags.items():
        task = own / "task" / str(tid)
        task.mkdir(parents=True)
        (task / "stat").write_text(f"{tid} (a) R 9 (b) S 1 2 3 0 -1 {bits} 10 0\n")
    (own / "status").write_text(status)
    (own / "maps").write_text(heap)
    (own / "oom_score_adj").write_text("0\n")
    return root


def only(guards: Guards) -> Finding:
    (guard,) = guards.verify()
    return guard


# io_flusher


@pytest.fixture
def refused_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(enabled: bool = True) -> None:
        raise PermissionError(1, "prctl(PR_SET_IO_FLUSHER): Operation not permitted")

    monkeypatch.setattr(syscalls, "set_io_flusher", refuse)


@pytest.fixture
def granted_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "set_io_flusher", lambda: None)


def test_real_io_flusher_holds_exactly_when_the_capability_is_there() -> None:
    (guard,) = in_child("guards.set(IoFlusher())")
    assert guard.name == "io_flusher"
    assert guard.required
    assert guard.ok is has_capability(CAP_SYS_RESOURCE)
    if not guard.ok:
        assert "prctl(PR_SET_IO_FLUSHER): Operation not permitted" in guard.detail
        assert "1 of 1 threads lack it" in guard.detail


@pytest.mark.usefixtures("refused_prctl")
def test_refused_io_flusher_says_why_and_how_to_cure_it() -> None:
    guards = Guards(unsafe=False)
    guards.set(IoFlusher())
    assert not only(guards).ok
    with pytest.raises(GuardError) as caught:
        guards.require()
    text = str(caught.value)
    assert "io_flusher: prctl(PR_SET_IO_FLUSHER): Operation not permitted" in text
    assert "CAP_SYS_RESOURCE" in text
    assert "--unsafe" in text
    assert "\n" not in text


@pytest.mark.usefixtures("refused_prctl")
def test_unsafe_goes_on_but_still_reports() -> None:
    guards = Guards(unsafe=True)
    guards.set(IoFlusher())
    guards.require()
    assert not only(guards).ok


@pytest.mark.usefixtures("granted_prctl")
@pytest.mark.parametrize(
    ("flags", "ok"),
    [
        ({1: syscalls.PF_IO_FLUSHER, 2: syscalls.PF_IO_FLUSHER | 0x400040}, True),
        ({1: syscalls.PF_IO_FLUSHER, 2: 0x400040}, False),
        ({1: syscalls.PF_MEMALLOC_NOIO}, False),
        ({1: syscalls.PF_LOCAL_THROTTLE}, False),
    ],
)
def test_io_flusher_needs_both_flags_on_every_thread(
    tmp_path: Path, flags: dict[int, int], ok: bool
) -> None:
    guards = Guards(unsafe=False)
    guards.set(IoFlusher(ProcSelf(fake_proc(tmp_path, flags))))
    assert only(guards).ok is ok


@pytest.mark.usefixtures("granted_prctl")
def test_io_flusher_names_the_thread_that_lost_it(tmp_path: Path) -> None:
    guards = Guards(unsafe=False)
    guards.set(IoFlusher(ProcSelf(fake_proc(tmp_path, {1: syscalls.PF_IO_FLUSHER, 77: 0}))))
    assert "1 of 2 threads" in only(guards).detail
    assert "[77]" in only(guards).detail


@pytest.mark.usefixtures("refused_prctl")
def test_inherited_io_flusher_counts_although_setting_it_again_is_refused(tmp_path: Path) -> None:
    guards = Guards(unsafe=False)
    guards.set(IoFlusher(ProcSelf(fake_proc(tmp_path, {1: syscalls.PF_IO_FLUSHER}))))
    assert only(guards).ok


@pytest.mark.usefixtures("granted_prctl")
def test_unreadable_proc_is_a_broken_guard_not_an_exception(tmp_path: Path) -> None:
    guards = Guards(unsafe=False)
    guards.set(IoFlusher(ProcSelf(tmp_path)))
    assert not only(guards).ok
    assert "cannot be read back" in only(guards).detail


# mlock

needs_lock = pytest.mark.skipif(
    not has_capability(CAP_IPC_LOCK), reason="needs CAP_IPC_LOCK: run the tests as root"
)


@needs_lock
@pytest.mark.parametrize("on_fault", [False, True])
def test_mlock_is_seen_in_vmlck_and_covers_future_mappings(on_fault: bool) -> None:
    (guard,) = in_child(
        "class OnlyLook(MemoryLock):\n"
        "    def set(self): pass\n"
        f"guards.set(MemoryLock(1, on_fault={on_fault}))\n"
        "before = guards.verify()[0].ok\n"
        "mapping = mmap.mmap(-1, 64 << 20)\n"
        f"guards.set(OnlyLook(64 << 20, on_fault={on_fault}))\n"
        "assert before"
    )
    assert guard.ok, guard.detail
    assert "VmLck" in guard.detail


@needs_lock
def test_mlock_undone_behind_our_back_is_noticed() -> None:
    (guard,) = in_child("guards.set(MemoryLock(1))\nsyscalls.munlockall()")
    assert not guard.ok
    assert "VmLck 0B, expected at least" in guard.detail


def test_refused_mlock_is_not_excused_by_other_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(flags: int) -> None:
        raise OSError(12, "mlockall: Cannot allocate memory")

    monkeypatch.setattr(syscalls, "mlockall", refuse)
    guards = Guards(unsafe=False)
    guards.set(MemoryLock(4096, process=ProcSelf(fake_proc(tmp_path, {1: 0}))))
    assert not only(guards).ok
    assert only(guards).detail.startswith("mlockall: Cannot allocate memory")


@pytest.mark.parametrize(
    ("status", "ok", "found"),
    [
        ("VmLck:\t 100 kB\nVmSwap:\t 0 kB\n", True, "VmLck 100K"),
        ("VmLck:\t 99 kB\n", False, "VmLck 99K, expected at least 100K"),
        ("VmLck:\t 100 kB\nVmSwap:\t 8 kB\n", False, "8K of the server is itself in swap"),
    ],
)
def test_mlock_check_reads_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, ok: bool, found: str
) -> None:
    monkeypatch.setattr(syscalls, "mlockall", lambda flags: None)
    guards = Guards(unsafe=False)
    guards.set(MemoryLock(100 * 1024, process=ProcSelf(fake_proc(tmp_path, {1: 0}, status))))
    assert only(guards).ok is ok
    assert found in only(guards).detail


# oom_score


def test_oom_score_is_written_and_read_back(tmp_path: Path) -> None:
    guards = Guards(unsafe=False)
    guards.set(OomScore(process=ProcSelf(fake_proc(tmp_path, {1: 0}))))
    assert only(guards) == Finding("oom_score", True, False, "oom_score_adj -1000")
    ProcSelf(tmp_path).oom_score_path.write_text("0\n")
    assert not only(guards).ok


def test_refused_oom_score_is_reported_but_not_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse, raising=True)
    monkeypatch.setattr(Path, "read_text", lambda path: "0\n")
    guards = Guards(unsafe=False)
    guards.set(OomScore(process=ProcSelf(tmp_path)))
    guard = only(guards)
    assert not guard.ok
    assert not guard.required
    assert "Permission denied; oom_score_adj 0" in guard.detail
    guards.require()


# realtime


@pytest.mark.skipif(not has_capability(CAP_SYS_NICE), reason="needs CAP_SYS_NICE: run as root")
def test_realtime_covers_every_thread_and_is_inherited() -> None:
    (guard,) = in_child(
        "stop = threading.Event()\n"
        "early = threading.Thread(target=stop.wait, daemon=True); early.start()\n"
        "guards.set(Realtime())\n"
        "late = threading.Thread(target=stop.wait, daemon=True); late.start()\n"
        "assert os.sched_getparam(late.native_id).sched_priority == 1"
    )
    assert guard == Finding("realtime", True, True, "SCHED_FIFO on 3 threads")


@pytest.mark.skipif(not has_capability(CAP_SYS_NICE), reason="needs CAP_SYS_NICE: run as root")
def test_realtime_thread_that_falls_back_to_normal_is_noticed() -> None:
    (guard,) = in_child(
        "guards.set(Realtime())\nos.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))"
    )
    assert not guard.ok
    assert "1 of 1 threads are not SCHED_FIFO" in guard.detail


def test_refused_realtime_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tid: int, policy: int, parameter: os.sched_param) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    guards = Guards(unsafe=False)
    guards.set(Realtime([threading.get_native_id()]))
    guard = only(guards)
    assert not guard.ok
    assert guard.detail.startswith("sched_setscheduler(SCHED_FIFO): Operation not permitted")
    with pytest.raises(GuardError, match="CAP_SYS_NICE"):
        guards.require()


def test_chosen_thread_that_ended_breaks_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", lambda *arguments: None)
    guards = Guards(unsafe=False)
    guards.set(Realtime([2**22 + 1]))  # beyond the kernel's largest pid
    assert not only(guards).ok
    assert "has ended" in only(guards).detail


# heap


def test_heap_stays_grown_and_large_blocks_do_not_leave_it() -> None:
    (guard,) = in_child(
        "guards.set(Heap(8 << 20))\n"
        "from swapfs.host.procself import ProcSelf\n"
        "warm = ProcSelf().heap_bytes()\n"
        "assert warm >= 8 << 20, warm\n"
        "syscalls.touch_heap(64 << 20)\n"  # far above any mmap threshold
        "assert ProcSelf().heap_bytes() >= 64 << 20, 'went to mmap or was given back'",
        PYTHONMALLOC="malloc",
    )
    assert guard.ok, guard.detail
    assert "Python uses malloc" in guard.detail


def test_python_malloc_that_is_not_in_effect_is_noticed() -> None:
    (guard,) = in_child(
        "guards.set(Heap(1 << 20, python_malloc='malloc'))", PYTHONMALLOC="pymalloc"
    )
    assert not guard.ok
    assert "PYTHONMALLOC=malloc was asked for" in guard.detail


def test_shrunken_heap_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "mallopt", lambda parameter, value: None)
    monkeypatch.setattr(syscalls, "touch_heap", lambda size_bytes: None)
    proc = fake_proc(tmp_path, {1: 0})
    guards = Guards(unsafe=False)
    guards.set(Heap(4096, python_malloc="", process=ProcSelf(proc)))
    assert only(guards).ok
    (proc / "self" / "maps").write_text("1000-2000 rw-p 0 00:00 0 [heap]\n")
    assert not only(guards).ok
    assert "heap shrank to 4K" in only(guards).detail


# gc, probes, require


def test_gc_is_off_and_frozen() -> None:
    (guard,) = in_child("guards.set(NoCollector())\nassert gc.get_freeze_count() > 0")
    assert guard.ok
    assert "frozen" in guard.detail


def test_gc_enabled_again_is_noticed() -> None:
    (guard,) = in_child("guards.set(NoCollector())\ngc.enable()")
    assert not guard.ok


def loop_device(*, direct_io: bool = True, discard_bytes_max: int = 4096) -> LoopDevice:
    return LoopDevice(Path("/dev/loop0"), "/x/swap", False, direct_io, discard_bytes_max, 4096)


@pytest.mark.parametrize(
    ("kind", "wrong", "what"),
    [
        (DirectIo, loop_device(direct_io=False), "direct I/O"),
        (Discard, loop_device(discard_bytes_max=0), "discard"),
    ],
)
def test_the_loop_device_is_looked_at_each_time(
    kind: type[LoopDeviceGuard], wrong: LoopDevice, what: str
) -> None:
    found = iter([[], [loop_device()], [wrong]])
    guards = Guards(unsafe=False)
    guards.set(kind(lambda: next(found)))
    assert only(guards) == Finding(kind.name, True, True, "no loop device is attached")
    assert only(guards) == Finding(kind.name, True, True, f"/dev/loop0: {what} on")
    assert only(guards) == Finding(kind.name, False, True, f"/dev/loop0: {what} off")


def test_requests_under_way_are_set_and_read_back() -> None:
    at_most = [12]
    guards = Guards(unsafe=False)
    guards.set(MaxBackground(500, lambda requests: at_most.append(requests), lambda: at_most[-1]))
    assert only(guards) == Finding(
        "max_background", True, False, "500 requests under way at the most"
    )
    at_most.append(12)
    assert not only(guards).ok


def test_a_fuse_connection_that_cannot_be_controlled_is_reported() -> None:
    def refuse(*_: int) -> NoReturn:
        raise OperationError("fusectl max_background: Operation not permitted")

    guards = Guards(unsafe=False)
    guards.set(MaxBackground(500, refuse, refuse))
    assert "not permitted" in only(guards).detail
    guards.require()


class Probe(Guard):
    """One that is set elsewhere and only looked at; *found* is what it reads."""

    def __init__(
        self, name: str, found: tuple[bool, str] | OSError, *, required: bool = True
    ) -> None:
        self.name = name
        self.cure = f"mend {name}"
        self.required = required
        self._found = found

    def set(self) -> None:
        pass

    def check(self) -> tuple[bool, str]:
        if isinstance(self._found, OSError):
            raise self._found
        return self._found


def limit_requests(root: Path, **seconds: int) -> None:
    directory = root / "proc/sys/fs/fuse"
    directory.mkdir(parents=True, exist_ok=True)
    for name in RequestTimeout.settings:
        (directory / name).write_text(f"{seconds.get(name, 0)}\n")


@pytest.mark.parametrize("name", RequestTimeout.settings)
def test_a_limit_that_could_end_the_connection_is_refused(tmp_path: Path, name: str) -> None:
    limit_requests(tmp_path, **{name: 60})
    guards = Guards(unsafe=False)
    guards.set(RequestTimeout(tmp_path))
    with pytest.raises(GuardError, match=f"fs.fuse.{name} is 60 s: an answer later.*sysctl -w"):
        guards.require()
    limit_requests(tmp_path)
    assert not only(guards).ok, "it holds for this mount, whatever is set since"


def test_a_limit_that_comes_later_is_noticed(tmp_path: Path) -> None:
    limit_requests(tmp_path)
    guards = Guards(unsafe=False)
    guards.set(RequestTimeout(tmp_path))
    guards.require()
    limit_requests(tmp_path, max_request_timeout=15)
    assert not only(guards).ok
    assert "max_request_timeout is 15 s since: not for this mount" in only(guards).detail


def test_a_kernel_that_limits_nothing_has_no_such_settings(tmp_path: Path) -> None:
    guards = Guards(unsafe=False)
    guards.set(RequestTimeout(tmp_path))
    guards.require()
    assert only(guards).ok


def test_a_check_that_fails_breaks_its_guard_only() -> None:
    guards = Guards(unsafe=False)
    guards.set(Probe("first", (True, "on")))
    missing = FileNotFoundError(2, "No such file or directory", "/sys/block/loop9")
    guards.set(Probe("second", missing, required=False))
    first, second = guards.verify()
    assert first.ok
    assert not second.ok
    assert "loop9" in second.detail
    guards.require()


def test_a_guard_that_is_set_again_takes_the_place_of_the_first() -> None:
    guards = Guards(unsafe=False)
    guards.set(Probe("one", (False, "not yet")))
    guards.set(Probe("one", (True, "now")))
    assert only(guards) == Finding("one", True, True, "now")


def test_require_names_every_broken_guard_with_its_cure() -> None:
    guards = Guards(unsafe=False)
    guards.set(DirectIo(lambda: [loop_device(direct_io=False)]))
    guards.set(Probe("other", (False, "it is 0")))
    guards.set(Probe("wanted", (False, "no matter"), required=False))
    with pytest.raises(GuardError) as caught:
        guards.require()
    for part in ("2 guard(s)", "direct_io: /dev/loop0", DirectIo.cure, "it is 0 (mend other)"):
        assert part in str(caught.value)
    Guards(unsafe=True).require()


def test_guard_is_json_for_the_snapshot() -> None:
    guard = Finding("gc", True, True, "off")
    assert json.loads(json.dumps(guard.as_dict())) == {
        "name": "gc",
        "ok": True,
        "required": True,
        "detail": "off",
    }


# syscalls


def test_umount_of_what_is_not_mounted_names_call_and_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="umount2") as caught:
        syscalls.umount2(str(tmp_path))
    assert caught.value.filename == str(tmp_path)


def test_mount_failure_names_call_and_path(tmp_path: Path) -> None:
    target = str(tmp_path / "missing")
    with pytest.raises(OSError, match="mount") as caught:
        syscalls.mount("swapfs:test", target, "no-such-fs", syscalls.MS_NODEV, "")
    assert caught.value.filename == target
