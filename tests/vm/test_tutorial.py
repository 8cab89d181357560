"""The tutorial of docs/lab.md works: every command of it, from `make vm` to the plot."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parents[2]
SECTION: Final = "## From `make vm` to a policy of one's own"
TIMEOUT_S: Final = 3600
BOOT_BOUND_S: Final = 600
_INDENT: Final = 4

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(2 * TIMEOUT_S)]


def blocks() -> list[str]:
    """Return what is to be typed, a piece for each block of the page."""
    text = (CHECKOUT / "docs/lab.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    found = re.findall(r"(?:^    .*\n|^\n(?=\n|    ))+", text, re.MULTILINE)
    lines = (block.strip("\n").splitlines() for block in found)
    return ["\n".join(line[_INDENT:] for line in block) + "\n" for block in lines if block]


def type_exit(command: list[str]) -> int:
    """Run *command* in a terminal, leave the shell that it gives, and return its status."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(CHECKOUT)
        os.execvp(command[0], command)
    shown_at = select.poll()
    shown_at.register(fd, select.POLLIN)
    end_s, said = time.monotonic() + BOOT_BOUND_S, b""
    while time.monotonic() < end_s:
        if shown_at.poll(1000):
            try:
                said += os.read(fd, 65536)
            except OSError:  # it has ended
                break
            if b"swapfs down" in said and b"# " in said.rpartition(b"swapfs down")[2]:
                os.write(fd, b"exit\n")
                said = b""
    else:
        os.kill(pid, 9)
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_command_of_the_tutorial_works(kernel: str, tmp_path: Path) -> None:
    typed = blocks()
    assert typed[0] == "make vm\n"
    assert type_exit(["make", "vm"]) == 0
    (tmp_path / ".venv").symlink_to(CHECKOUT / ".venv")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for block in typed[1:]:
        script = block
        if "--plot" in block and importlib.util.find_spec("matplotlib") is None:
            script = "\n".join(line for line in block.splitlines() if "--plot" not in line)
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        print(done.stdout)
        assert done.returncode == 0, (script, done.stdout[-2000:], done.stderr[-2000:])
    for run in ("lab-first", "lab-own"):
        (found,) = json.loads((tmp_path / run / "out/status.json").read_text())["instances"]
        assert found["counters"]["demoted_pages"] > 0
        assert found["counters"]["policy_failures"] == 0
    assert "exclusive" in done.stdout or found["config"]["policy"] == "/job/exclusive.py:Exclusive"
