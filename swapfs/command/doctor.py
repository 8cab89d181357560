"""``swapfs doctor``: what is not as it should be for swapfs on this machine, and what to do.

Looks only, needs no root, changes nothing. Each look is a function that takes the root of /proc
and /sys and returns what it found, or None where there is nothing to say. The order is that of
the report; the gravest finding is the exit code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import click

from swapfs.command import stale
from swapfs.command import status as status_of
from swapfs.command.options import RUNTIME_DIR
from swapfs.command.status import State
from swapfs.errors import OperationError
from swapfs.host import limits, swap
from swapfs.host.proc import ROOT, read_text

TOOLS: Final = ("losetup", "mkswap", "swapon", "swapoff", "umount")
RESEND_SINCE: Final = (6, 9)
IO_FLUSHER_SINCE: Final = (5, 6)
SWAPPINESS_LEAST: Final = 60
_ALWAYS_THERE: Final = {"proc": "self", "sys": "kernel"}
_LOOP: Final = re.compile(r"/dev/loop\d+")


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    HINT = "hint"
    """It works, and could be better."""
    WARNING = "warning"
    """It works until something else goes wrong."""
    SEVERE = "severe"
    """It does not work, or pages are lost."""


EXIT_CODES: Final = {Severity.OK: 0, Severity.HINT: 0, Severity.WARNING: 3, Severity.SEVERE: 4}
EPILOG: Final = (
    "Exit codes: 0 nothing, or hints only; 1 it could not look; 2 wrong usage; 3 a warning; "
    "4 something severe."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what is, what would be better, and the command that makes it so."""

    what: str
    severity: Severity
    found: str
    better: str = ""
    command: str = ""


Look = Callable[[Path], Finding | None]


def kernel(root: Path) -> Finding | None:
    """Look at the kernel's version."""
    release = read_text(root / "proc/sys/kernel/osrelease").strip()
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version < IO_FLUSHER_SINCE:
        better = "5.6 or later: without PR_SET_IO_FLUSHER the server may wait for its own swap"
        return Finding("kernel", Severity.SEVERE, release, better)
    if version < RESEND_SINCE:
        better = "6.9 or later: this one does not send again what a server that died had begun"
        return Finding("kernel", Severity.WARNING, release, better)
    return Finding("kernel", Severity.OK, release)


def devices(root: Path) -> Finding | None:
    """Look for what mounts and attaches."""
    for node, module in (("dev/fuse", "fuse"), ("dev/loop-control", "loop")):
        if not (root / node).exists():
            return Finding(
                "devices", Severity.SEVERE, f"/{node} is not there", "", f"modprobe {module}"
            )
    return Finding("devices", Severity.OK, "/dev/fuse and /dev/loop-control are there")


def tools(root: Path) -> Finding | None:
    """Look for the programs that are run."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        found = f"{', '.join(missing)} not found"
        return Finding("tools", Severity.SEVERE, found, "", "apt-get install mount util-linux")
    return Finding("tools", Severity.OK, "all there")


def zswap(root: Path) -> Finding | None:
    """Look whether the kernel compresses pages before they come to us."""
    path = "sys/module/zswap/parameters/enabled"
    if _value(root, path) == "Y":
        return Finding(
            "zswap",
            Severity.WARNING,
            "on: pages are compressed twice, and swapfs does not see the recent ones",
            "off",
            f"echo N > /{path}",
        )
    return Finding("zswap", Severity.OK, "off")


def page_cluster(root: Path) -> Finding | None:
    """Look how many pages the kernel reads at a time."""
    value = _number(root, "proc/sys/vm/page-cluster")
    if value:
        return Finding(
            "vm.page-cluster",
            Severity.HINT,
            f"{value}: {1 << value} pages are read for one that is needed, as suits a disk",
            "0 while most pages are in memory; try both",
            "sysctl -w vm.page-cluster=0",
        )
    return _plain("vm.page-cluster", value)


def swappiness(root: Path) -> Finding | None:
    """Look how ready the kernel is to swap."""
    value = _number(root, "proc/sys/vm/swappiness")
    if value is None or value > SWAPPINESS_LEAST:
        return _plain("vm.swappiness", value)
    if value < SWAPPINESS_LEAST:
        severity, found = Severity.WARNING, f"{value}: files are dropped long before pages go out"
    else:
        severity, found = Severity.HINT, f"{value}, as suits a disk"
    better = "100 to 150 while most pages stay in memory"
    return Finding("vm.swappiness", severity, found, better, "sysctl -w vm.swappiness=120")


def huge_pages(root: Path) -> Finding | None:
    """Look at transparent huge pages, which must be split to be swapped."""
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    value = _value(root, path)
    chosen = re.search(r"\[(\w+)\]", value or "")
    if chosen and chosen[1] == "always":
        return Finding(
            "huge pages",
            Severity.HINT,
            "always: programs hold more than they use, and all of it is swapped",
            "madvise",
            f"echo madvise > /{path}",
        )
    return Finding("huge pages", Severity.OK, chosen[1]) if chosen else None


def request_timeout(root: Path) -> Finding | None:
    """Look whether the kernel ends a FUSE connection that is slow (6.15 on)."""
    for name in ("default_request_timeout", "max_request_timeout"):
        value = _number(root, f"proc/sys/fs/fuse/{name}")
        if value:
            return Finding(
                f"fs.fuse.{name}",
                Severity.SEVERE,
                f"{value} s: a disk that hangs as long ends the mount, and every page is lost",
                "0",
                f"sysctl -w fs.fuse.{name}=0",
            )
    return None


def killers(root: Path) -> Finding | None:
    """Look for programs that kill when swap looks full, as it does during swapoff."""
    rules = {
        "systemd-oomd": "SwapUsedLimit=100% in /etc/systemd/oomd.conf, or ManagedOOMSwap=auto",
        "earlyoom": "",
        "nohang": "",
    }
    for comm in sorted((root / "proc").glob("[0-9]*/comm")):
        try:
            name = comm.read_text().strip()
        except OSError:
            continue  # it has ended
        if name in rules:
            return Finding(
                "out-of-memory daemons",
                Severity.HINT,
                f"{name} runs, and may kill while swapoff makes swap look full",
                rules[name],
                f"systemctl stop {name}   # before swapfs down",
            )
    return Finding("out-of-memory daemons", Severity.OK, "none")


def caller_limits(root: Path) -> Finding | None:
    """Look at the limits of who would start it from here."""
    too_low = limits.problems(limits.Needs(0, 0), root)
    slowed = limits.slowed(root)
    if too_low:
        return Finding("limits", Severity.WARNING, "; ".join(too_low), "for the shell or unit")
    if slowed:
        return Finding("limits", Severity.WARNING, slowed, "no CPUQuota= for its unit")
    return Finding("limits", Severity.OK, "none that matters")


def other_swap(root: Path) -> Finding | None:
    """Look where pages go that find no room."""
    others = [area for area in swap.entries(root) if not _LOOP.fullmatch(area.path)]
    if others:
        return Finding("other swap", Severity.OK, ", ".join(area.path for area in others))
    return Finding(
        "other swap",
        Severity.HINT,
        "none: swapoff of swapfs needs memory for all that is in it",
        "a swap file with a lower priority",
        "swapon -p 1 /swapfile",
    )


LOOKS: Final[tuple[Look, ...]] = (
    *(kernel, devices, tools, request_timeout, caller_limits),
    *(zswap, page_cluster, swappiness, huge_pages, killers, other_swap),
)


def examine(runtime_dir: Path, root: Path = ROOT) -> list[Finding]:
    """Return what there is to say of this machine and of each instance on it."""
    findings = []
    for look in LOOKS:
        try:
            found = look(root)
        except (OperationError, OSError, ValueError) as error:
            # What cannot be seen is not absent.
            what = look.__name__.replace("_", " ")
            found = Finding(what, Severity.WARNING, f"cannot be seen: {error}")
        if found:
            findings.append(found)
    return [*findings, *_instances(runtime_dir, root)]


def _instances(runtime_dir: Path, root: Path) -> Iterator[Finding]:
    for instance in status_of.collect(runtime_dir):
        what, status = f"instance {instance.name}", instance.status
        show = f"swapfs status {instance.name}"
        if instance.state is not State.RUNNING:
            yield Finding(what, Severity.SEVERE, str(instance.state), "", show)
        elif status.degraded:
            yield Finding(what, Severity.WARNING, "; ".join(status.degraded), "", show)
        else:
            yield Finding(what, Severity.OK, "; ".join(["running", *status.limits]))
    try:
        for ghost in stale.ghost_swaps(stale.all_remembered(runtime_dir), root):
            found = f"{ghost.device} is swap but {ghost.reason}"
            yield Finding("ghost", Severity.SEVERE, found, "", f"swapoff {ghost.device}")
    except OperationError as error:
        yield Finding("ghosts", Severity.WARNING, f"cannot be seen: {error}")


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@RUNTIME_DIR
def doctor(as_json: bool, runtime_dir: Path) -> int:
    """Look at this machine, and say what would be better for swapfs; needs no root."""
    findings = examine(runtime_dir)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo("\n".join(_lines(finding)))
    return max(EXIT_CODES[finding.severity] for finding in findings)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.severity:8} {finding.what}: {finding.found}"
    if finding.better:
        yield f"{'':8}   better: {finding.better}"
    if finding.command:
        yield f"{'':8}   {finding.command}"


def _plain(what: str, value: int | None) -> Finding | None:
    return None if value is None else Finding(what, Severity.OK, str(value))


def _value(root: Path, path: str) -> str | None:
    """Return what the file *path* says; None: this kernel has none.

    :raises OperationError: the file system that it would be on cannot be seen, or it cannot be read
    """
    top = path.split("/")[0]
    try:
        return read_text(root / path).strip()
    except OperationError as error:
        visible = (root / top / _ALWAYS_THERE[top]).is_dir()
        if isinstance(error.__cause__, FileNotFoundError) and visible:
            return None
        raise


def _number(root: Path, path: str) -> int | None:
    value = _value(root, path)
    return None if value is None else int(value)
