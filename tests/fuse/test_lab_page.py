"""Every command of docs/lab.md is run as it stands there, beside a running instance.

What names the reader's machine is put in its place: the instance, a cgroup, the time to record.
"""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from swapfs.policy import BUILT_IN
from tests.fuse.instance import Instance, Start, wait_until
from tests.fuse.load import Load, fill

pytestmark = pytest.mark.timeout(300)
DOC = Path(__file__).parents[2] / "docs/lab.md"
_COMMAND = re.compile(r"^    (swapfs .+)$", re.MULTILINE)
_CODE = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)


def commands() -> list[str]:
    """Return those of all sections but the last, which is for a VM (tests/vm/test_tutorial.py)."""
    sections = DOC.read_text().split("\n## ")
    assert sections[-1].startswith("From `make vm`")
    return _COMMAND.findall("\n## ".join(sections[:-1]))


def policy_of_the_page() -> str:
    """Return the class that the page shows, as a module."""
    (code,) = [block for block in _CODE.findall(DOC.read_text()) if "class Mine" in block]
    return "\n".join(line[4:] for line in code.splitlines()) + "\n"


def _cgroup(path: Path) -> Path:
    path.mkdir()
    (path / "memory.current").write_text("1000000000\n")
    (path / "memory.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    (path / "memory.reclaim").touch()
    return path


def _here(command: str, instance: Instance, folder: Path) -> list[str]:
    """Return *command* for this machine."""
    words = command.split()[1:]
    words = ["3" if word == "60" else word for word in words]
    if command.startswith("swapfs reclaim"):
        words[words.index("--cgroup") + 1] = str(folder / "cgroup")
        words += ["--seconds", "0"]
    if command.startswith("swapfs trace record"):
        words += ["--name", instance.name, "--runtime-dir", str(instance.runtime_dir)]
    if command.startswith("swapfs top"):
        words += [instance.name, "--runtime-dir", str(instance.runtime_dir)]
    if command.startswith("swapfs check-config"):
        words[words.index("--mountpoint") + 1] = str(folder)
        words += ["--unsafe"]
    return [*instance.command, *words]


def _press_q(command: list[str]) -> int:
    """Run *command* in a terminal until it shows something, press q, and return its status."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command[0], command)
    shown_at = select.poll()
    shown_at.register(fd, select.POLLIN)
    deadline_s = time.monotonic() + 30
    pressed = False
    while time.monotonic() < deadline_s:
        if shown_at.poll(100):
            try:
                shown = os.read(fd, 65536)
            except OSError:  # it has ended
                break
            if not pressed and b"pool" in shown:
                os.write(fd, b"q")
                pressed = True
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_command_of_the_page_works(tmp_path: Path, start: Start) -> None:
    instance = start("64M", "16M", "128M")
    fill(instance, 4096, 12288)
    (tmp_path / "mine.py").write_text(policy_of_the_page())
    _cgroup(tmp_path / "cgroup")
    load = Load(instance, 4096)
    ran = set()
    for command in commands():
        here = _here(command, instance, tmp_path)
        if command == "swapfs top":
            assert _press_q(here) == 0
        else:
            process = subprocess.Popen(
                here, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            if command.startswith("swapfs trace record"):
                wait_until((tmp_path / "build.trace").exists, "the recorder to begin")
                load.run(40, seed=1)
            said, complained = process.communicate(timeout=120)
            if "--plot" in command and importlib.util.find_spec("matplotlib") is None:
                assert "a plot needs matplotlib" in complained
                continue
            assert process.returncode == 0, (command, said, complained)
        ran.add(" ".join(command.split()[1:3]))
    assert {"trace record", "trace info", "trace convert", "top --once"} <= ran
    assert (tmp_path / "build.csv").stat().st_size > 1000


def test_the_page_names_every_policy() -> None:
    text = DOC.read_text()
    assert [name for name in BUILT_IN if f"| `{name}` |" not in text] == []
