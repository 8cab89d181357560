"""One machine that is ended again and again, each time as it was in one snapshot of it.

An emulated machine takes minutes to boot and to be filled, and seconds to be put back.
"""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deploy.vm.host.job import Size, prepare, sparse_disks, work_dir
from deploy.vm.host.proc import VmError, dies_with_us, need, run, say
from deploy.vm.host.qemu import Console, Disk
from deploy.vm.host.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from deploy.vm.host.qemu import Machine

READY: Final = "swapfs-vm: ready"
"""What the job prints at the moment that is kept; then it does what is typed, one line."""
DONE: Final = "swapfs-vm: done"
"""What it prints after a line that ends no machine."""
_TAG: Final = "full"


@dataclass(frozen=True, slots=True)
class End:
    """What was typed, how long it took until the machine was off (or done), and what it said.

    :param cpu_s: what QEMU worked for it. Where that is as ever, and the time is not, the host had
        much else to do.
    """

    typed: str
    took_s: float
    cpu_s: float
    said: str


class Running:
    """A QEMU that runs *machine*; its console goes to *sink* too. Leave the block to kill it."""

    def __init__(self, machine: Machine, sink: Callable[[str], None]) -> None:
        need("qemu-system-x86_64", "setpriv")
        ours, theirs = socket.socketpair()
        self._errors = machine.work / "qemu.stderr"
        command = [
            *machine.command(),
            *("-chardev", "stdio,id=con0,signal=off", "-serial", "chardev:con0"),
            *("-chardev", f"socket,id=qmp0,fd={theirs.fileno()}"),
            *("-mon", "chardev=qmp0,mode=control"),
        ]
        with self._errors.open("wb") as messages:
            self._process = subprocess.Popen(
                dies_with_us(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                pass_fds=[theirs.fileno()],
                env=machine.environment(),
                start_new_session=True,
            )
        theirs.close()
        self._end, self._qmp, self._sink = ours, Qmp(ours), sink
        self._console = Console(sink)
        self._jobs = itertools.count()
        self._seen: list[dict[str, Any]] = []
        self._machine = machine
        self._nodes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._end.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def wait_for(self, what: str, found: Callable[[], bool], timeout_s: float) -> None:
        """Take what comes until *found*; VmError if it does not within *timeout_s*."""
        output = self._process.stdout
        assert output is not None
        end_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(self._end, selectors.EVENT_READ)
            while not found():
                left_s = end_s - time.monotonic()
                ready = selector.select(max(0, left_s))
                if left_s <= 0:
                    raise VmError(f"no {what} within {timeout_s:.0f} s")
                for key, _ in ready:
                    if key.fileobj is output:
                        data = os.read(output.fileno(), 65536)
                        if not data:
                            raise VmError(f"QEMU ended: {self._errors.read_text()[-400:]}")
                        self._console.feed(data)
                    else:
                        self._hear(self._qmp.messages() or ())

    def _hear(self, messages: Iterable[dict[str, Any]]) -> None:
        for message in messages:
            if "error" in message:
                raise VmError(f"QEMU: {message['error']}")
            self._seen.append(message)

    @property
    def console_text(self) -> str:
        """What the console had since the machine was last put back."""
        return self._console.text

    def said(self, text: str) -> bool:
        """Whether the console had *text* since it was last put back."""
        return text in self._console.text

    def _has_ended(self) -> bool:
        return self._event("SHUTDOWN") or self._event("RESET") or self.said(DONE)

    def _event(self, name: str, **data: Any) -> bool:
        return any(
            message.get("event") == name and data.items() <= message.get("data", {}).items()
            for message in self._seen
        )

    def _do(self, command: str, timeout_s: float) -> None:
        """Save or load the snapshot of all nodes, and of memory in the first."""
        name, nodes = f"job{next(self._jobs)}", self._nodes
        self._qmp.execute(
            command, **{"job-id": name, "tag": _TAG, "vmstate": nodes[0], "devices": nodes}
        )
        self.wait_for(
            command,
            lambda: self._event("JOB_STATUS_CHANGE", id=name, status="concluded"),
            timeout_s,
        )
        self._seen.clear()
        self._qmp.execute("query-jobs")
        self.wait_for(command, lambda: bool(self._listed()), timeout_s)
        (job,) = (job for job in self._listed() if job["id"] == name)
        if "error" in job:
            raise VmError(f"{command}: {job['error']}")
        self._qmp.execute("job-dismiss", id=name)

    def _listed(self) -> list[dict[str, Any]]:
        answers = (one.get("return") for one in self._seen)
        return [job for answer in answers if isinstance(answer, list) for job in answer]

    def keep(self, timeout_s: float) -> None:
        """Keep the machine as it is now: memory, and what is on the disks that it writes to.

        Only a qcow2 image can keep a state, so each of these disks gets one on top.
        """
        for number, disk in enumerate(self._machine.disks):
            if disk.read_only:
                continue
            self._nodes.append(f"kept{number}")
            self._qmp.execute(
                "blockdev-snapshot-sync",
                device=f"d{number}",
                format="qcow2",
                mode="absolute-paths",
                **{"snapshot-file": str(self._machine.work / f"{disk.serial}.qcow2")},
                **{"snapshot-node-name": self._nodes[-1]},
            )
        self._seen.clear()
        self._do("snapshot-save", timeout_s)

    def put_back(self, timeout_s: float) -> None:
        """Put the machine back to what was kept, and let it run."""
        if self._event("SHUTDOWN"):
            self._qmp.execute("system_reset")  # only then may one that is off run again
            self.wait_for("reset", lambda: self._event("RESET"), timeout_s)
        self._qmp.execute("stop")
        self._seen.clear()
        self._do("snapshot-load", timeout_s)
        self._seen.clear()
        self._console = Console(self._sink)
        self._qmp.execute("cont")

    def type(self, line: str, timeout_s: float) -> End:
        """Type *line* and wait until the machine is off, or says that it is done."""
        assert self._process.stdin is not None
        self._seen.clear()
        began_s, worked_s = time.monotonic(), self._worked_s()
        os.write(self._process.stdin.fileno(), f"{line}\n".encode())
        self.wait_for(f"end of {line}", self._has_ended, timeout_s)
        took_s, cpu_s = time.monotonic() - began_s, self._worked_s() - worked_s
        return End(line, took_s, cpu_s, self._console.text)

    def _worked_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_ends(
    job_dir: Path,
    lines: Sequence[str],
    *,
    timeout_s: float,
    end_timeout_s: float,
    memory_mib: int = 1024,
    disks_mib: Sequence[int] = (),
    cmdline: str = "",
    **images: Any,
) -> tuple[str, list[End]]:
    """Boot, run the job until it is READY, and do each of *lines* from there.

    :param timeout_s: for all before it is ready
    :param end_timeout_s: for each line
    :param images: as of `prepare`, but for systemd
    :raises VmError: it never was ready, or a line had no end in time
    """
    found = prepare(systemd=True, **images)
    with work_dir() as work:
        job = Disk("job", work / "job.tar", read_only=True)
        run(["tar", "-C", str(job_dir), "-cf", str(job.path), "."], f"packing {job_dir}")
        disks = [job, *sparse_disks(disks_mib, work)]
        machine = found.machine(work, disks, Size(memory_mib), cmdline)
        with _running(machine) as vm:
            vm.wait_for("ready machine", lambda: vm.said(f"{READY}\n"), timeout_s)
            before = vm.console_text
            vm.keep(end_timeout_s)
            ends = []
            for line in lines:
                ends.append(vm.type(line, end_timeout_s))
                say(f"{len(ends)} of {len(lines)}: {line} took {ends[-1].took_s:.1f} s")
                vm.put_back(end_timeout_s)
    return before, ends


@contextmanager
def _running(machine: Machine) -> Iterator[Running]:
    def sink(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    with Running(machine, sink) as vm:
        yield vm
