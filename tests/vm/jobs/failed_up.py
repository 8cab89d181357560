"""An `up` that fails, at each of its steps, leaves nothing behind and says why in one line."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL: Final = ("--size", "64M", "--pool", "80M")
TOOLS: Final = Path("/tmp/tools")
BUSY: Final = Path("/tmp/busy")
FOREIGN: Final = Path("/root/foreign")
"""On a disk: what is on a tmpfs is refused for that."""


@contextmanager
def broken_tool(name: str, first: str = "") -> Iterator[None]:
    """Put a *name* that fails, after doing *first*, before the real one in PATH."""
    TOOLS.mkdir(exist_ok=True)
    tool = TOOLS / name
    tool.write_text(f'#!/bin/sh\n{first}\necho "{name}: broken for the test" >&2\nexit 1\n')
    tool.chmod(0o755)
    old = os.environ["PATH"]
    os.environ["PATH"] = f"{TOOLS}:{old}"
    try:
        yield
    finally:
        os.environ["PATH"] = old
        tool.unlink()


def must_fail(report: lab.Report, what: str, code: int, reason: str, *arguments: str) -> None:
    """Run `up`, which must exit with *code*, name *reason* in one line, and leave nothing."""
    before = lab.leftovers()
    done = lab.run("swapfs", "up", *SMALL, *arguments)
    said = done.stderr.strip()
    left = [line for line in lab.leftovers() if line not in before]
    ok = done.returncode == code and reason in said and "\n" not in said and not left
    report.check(what, ok, f"exit {done.returncode}, said {said!r}, left {left}")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        for tool in ("losetup", "mkswap", "swapon"):
            # lab itself asks losetup for what is left, so that one fails only when attaching
            first = 'case "$*" in *--show*) ;; *) exec /usr/sbin/losetup "$@";; esac'
            with broken_tool(tool, first if tool == "losetup" else ""):
                must_fail(report, f"{tool} fails", 1, "broken for the test")
        with broken_tool("swapon", '/usr/sbin/swapon "$@"'):
            must_fail(report, "swapon fails after doing it", 1, "broken for the test")
        with socket.create_server(("127.0.0.1", 9809)):
            must_fail(report, "metrics port taken", 1, "9809", "--metrics", "127.0.0.1:9809")
        BUSY.mkdir()
        lab.must("mount", "-t", "tmpfs", "busy", str(BUSY))
        must_fail(report, "mount point busy", 2, str(BUSY), "--mountpoint", str(BUSY))
        must_fail(report, "no room", 2, "room", "--size", "1G")
        must_fail(report, "file too small", 2, "small", "--file", "/tmp/x:4096")
        FOREIGN.write_bytes(b"precious" * 1_000_000)
        must_fail(report, "foreign file", 2, f"{FOREIGN} holds data", "--file", f"{FOREIGN}:4M")
        kept = FOREIGN.read_bytes() == b"precious" * 1_000_000
        report.check("foreign file untouched", kept, "8 MB compared")
        lab.up(*SMALL)
        must_fail(report, "second of the same name", 1, "swapfs down")
        found = lab.status()
        report.check("first unharmed", bool(found["swap"]), f"swap: {found['swap']}")
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
