"""Messages, errors and child processes, the same way in every step of the recipe."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TELLING_LINES = 3


class VmError(Exception):
    """A step failed; the message is one line that says what, where and what to do."""


def say(text: str) -> None:
    """Print one progress line to stderr, so that stdout holds only the guest's console."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def need(*programs: str) -> None:
    """Raise VmError naming every one of `programs` that is not on PATH (or in sbin)."""
    missing = [name for name in programs if find(name) is None]
    if missing:
        raise VmError(
            f"missing on this machine: {', '.join(missing)}; "
            "install the packages listed in deploy/vm/packages.txt"
        )


def find(program: str) -> str | None:
    """Return the path of `program`; also looks where a plain user's PATH does not."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def dies_with_us(command: Sequence[str]) -> list[str]:
    """Wrap `command` so that the kernel kills it when this process dies, however it dies."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


def run(command: Sequence[str], what: str, log: Path | None = None) -> str:
    """Run `command` to its end and return its stdout; raise VmError naming `what` if it fails.

    With `log`, everything it prints goes to that file, and the result is empty.
    """
    program = find(command[0])
    if program is None:
        need(command[0])
    argv = dies_with_us([program or command[0], *command[1:]])
    if log is None:
        done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        output = done.stderr or done.stdout
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            done = subprocess.run(
                argv, stdout=sink, stderr=sink, check=False, stdin=subprocess.DEVNULL
            )
        output = log.read_bytes()
    if done.returncode != 0:
        tail = _telling_lines(output.decode(errors="replace"))
        where = f"; full output: {log}" if log else ""
        raise VmError(f"{what} failed: {command[0]} exited with {done.returncode}: {tail}{where}")
    return "" if log else done.stdout.decode(errors="replace")


def _telling_lines(output: str) -> str:
    """Return what of `output` says why it failed: its error lines, else its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror: |\bfatal|^E: ", line, re.IGNORECASE)]
    distinct = list(dict.fromkeys(errors or lines))
    return " | ".join(distinct[-_TELLING_LINES:])
