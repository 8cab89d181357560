"""Run one QEMU: its command line, its console, and its end."""

from __future__ import annotations

import codecs
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploy.vm.host.proc import VmError, dies_with_us, need
from deploy.vm.host.qmp import Power, PowerEvent, Qmp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PROGRAM = "qemu-system-x86_64"
_CMDLINE = (
    "console=ttyS0 loglevel=5 panic=1 log_buf_len=4M sysrq_always_enabled zswap.enabled=0 "
    "mitigations=off audit=0 apparmor=0"
)
# On a busy host the kernel finds TCG's TSC unstable, though it is not, and patches its own code for
# that while it runs, which TCG before 8.1 at times gets wrong (`job.spoiled_by_emulator`).
_TCG_CMDLINE = "tsc=nowatchdog"
_PANIC = "Kernel panic - not syncing"
_DUMP_S = 5.0
_DUMP_KEYS = "9wml"  # all messages to the console; blocked tasks; memory; CPUs' back traces


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw image as a virtio disk; the guest finds it by `serial`.

    A shared disk is open to many VMs at once: read-only, or (`overlay`) with its writes
    going to a file that QEMU throws away.
    """

    serial: str
    path: Path
    read_only: bool = False
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot; `accel` is kvm or tcg, `work` holds overlays and QEMU's own messages.

    `restarts` lets the guest reboot, and switches it on again when it goes off (`run_captured`).
    """

    kernel: Path
    initrd: Path
    work: Path
    accel: str
    disks: list[Disk] = field(default_factory=list)
    memory_mib: int = 1024
    cpus: int = 2
    cmdline: str = ""
    restarts: bool = False

    def command(self) -> list[str]:
        """Return QEMU's command line, without its console."""
        tcg = self.accel == "tcg"
        line = [
            _PROGRAM, "-nodefaults", "-no-user-config", "-display", "none",
            "-action", "shutdown=pause,reboot=reset" if self.restarts else "reboot=shutdown",
            "-machine", "q35", "-accel", "tcg,thread=multi" if tcg else self.accel,
            "-cpu", "max" if tcg else "host", "-smp", str(self.cpus), "-m", str(self.memory_mib),
            "-kernel", str(self.kernel), "-initrd", str(self.initrd),
            "-append", f"{_CMDLINE} {_TCG_CMDLINE if tcg else ''} {self.cmdline}".strip(),
        ]  # fmt: skip
        for number, disk in enumerate(self.disks):
            # cache=unsafe: nothing outlives the VM, so nothing need reach the host's disk
            options = f"if=none,id=d{number},format=raw,cache=unsafe,discard=unmap"
            options += ",readonly=on" if disk.read_only else ""
            options += ",snapshot=on" if disk.overlay else ""
            file = str(disk.path).replace(",", ",,")
            line += ["-drive", f"{options},file={file}"]
            line += ["-device", f"virtio-blk-pci,drive=d{number},serial={disk.serial}"]
        return line

    def environment(self) -> dict[str, str]:
        """Return the environment QEMU runs in: overlays go to `work`, not to a tmpfs."""
        return {**os.environ, "TMPDIR": str(self.work)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: whether we had to kill it, and all it printed."""

    timed_out: bool
    console: str
    wall_s: float
    power: tuple[PowerEvent, ...] = ()


class Console:
    """Collects the guest's output as text and hands each piece on as it comes."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._sink = sink
        self.pieces: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take more output, of which the last character may be there in part."""
        text = self._decode(data).replace("\r\n", "\n").replace("\r", "")
        if text:
            self.pieces.append(text)
            self._sink(text)

    @property
    def text(self) -> str:
        """All that the guest has printed."""
        return "".join(self.pieces)

    def drain(
        self, stream: int, until: float, qmp: Qmp, power: Power | None, quiet_s: float = math.inf
    ) -> bool:
        """Copy the stream until it ends: True.

        False at the monotonic time `until`, or when nothing has come for `quiet_s`. Meanwhile
        QEMU's events go to `power`.
        """
        quiet_until = time.monotonic() + quiet_s
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            selector.register(qmp.socket, selectors.EVENT_READ)
            while (left := min(until, quiet_until) - time.monotonic()) > 0:
                # Console first: what the guest printed before it went off belongs before that.
                for key, _ in sorted(selector.select(left), key=lambda pair: pair[0].fd != stream):
                    if key.fd == stream:
                        data = os.read(stream, 65536)
                        if not data:
                            return True
                        self.feed(data)
                        quiet_until = time.monotonic() + quiet_s
                        continue
                    events = qmp.events()
                    if events is None:
                        selector.unregister(qmp.socket)
                    elif power:
                        power.act(events)
        return False


def run_captured(
    machine: Machine,
    timeout_s: float,
    sink: Callable[[str], None],
    *,
    dump: bool = True,
    finished: Callable[[], bool] = lambda: True,
    quiet_s: float = math.inf,
) -> Outcome:
    """Boot `machine` and wait until it powers off, at most `timeout_s` seconds.

    A guest that prints nothing for `quiet_s` is taken to hang as well.
    One that `restarts` is switched on again until it powers off when `finished()`. `sink` gets
    the console as it comes. A VM that is still running then is made to print its
    blocked tasks (with `dump`) and is killed. Raises VmError if QEMU itself fails.
    """
    need(_PROGRAM, "setpriv")
    ours, theirs = socket.socketpair()
    console = Console(sink)
    errors = machine.work / "qemu.stderr"
    command = [
        *machine.command(),
        "-chardev", "stdio,id=con0,signal=off", "-serial", "chardev:con0",
        "-chardev", f"socket,id=qmp0,fd={theirs.fileno()}", "-mon", "chardev=qmp0,mode=control",
    ]  # fmt: skip
    started = time.monotonic()
    with ours, errors.open("wb") as messages:
        process = subprocess.Popen(
            dies_with_us(command),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages,
            pass_fds=[theirs.fileno()], env=machine.environment(), start_new_session=True,
        )  # fmt: skip
        theirs.close()
        assert process.stdin is not None
        assert process.stdout is not None
        qmp = Qmp(ours)
        power = None
        if machine.restarts:
            power = Power(qmp, finished, lambda: _PANIC in console.text)
        try:
            output = process.stdout.fileno()
            ended = console.drain(output, started + timeout_s, qmp, power, quiet_s)
            if not ended and dump:
                after_s = time.monotonic() - started
                console.feed(f"\nvm: hung after {after_s:.0f} s; asking sysrq\n".encode())
                _send_sysrq(qmp, process.stdin.fileno())
                console.drain(output, time.monotonic() + _DUMP_S, qmp, None)
            if ended:
                process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
    wall_s = time.monotonic() - started
    if ended and process.returncode != 0:
        said = errors.read_text(errors="replace").strip().replace("\n", " | ")
        raise VmError(f"QEMU exited with {process.returncode}: {said[-400:]}")
    return Outcome(not ended, console.text, wall_s, tuple(power.events) if power else ())


def _send_sysrq(qmp: Qmp, serial_input: int) -> None:
    """Send the sysrq keys over the serial line: a break each, then the key."""
    try:
        for key in _DUMP_KEYS:
            qmp.execute("chardev-send-break", id="con0")
            time.sleep(0.2)  # the break must be in before the key is
            os.write(serial_input, key.encode())
            time.sleep(0.2)
    except OSError as error:
        print(f"vm: could not ask the guest for its blocked tasks: {error}", file=sys.stderr)


def run_interactive(machine: Machine) -> int:
    """Boot `machine` with its console on our terminal; return QEMU's exit status."""
    need(_PROGRAM, "setpriv")
    command = [
        *machine.command(),
        "-chardev", "stdio,id=con0,mux=on,signal=off", "-serial", "chardev:con0",
        "-mon", "chardev=con0",
    ]  # fmt: skip
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c belongs to the guest
    try:
        return subprocess.run(
            dies_with_us(command), env=machine.environment(), check=False
        ).returncode
    finally:
        signal.signal(signal.SIGINT, previous)
