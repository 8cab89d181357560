"""swapfs doctor: what it says of machines that are not as they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from swapfs.command import doctor, main, stale
from swapfs.command.doctor import Severity, examine
from swapfs.wire import state_file

MACHINE = {
    "dev/fuse": "",
    "dev/loop-control": "",
    "proc/sys/kernel/osrelease": "6.12.57+deb13-amd64\n",
    "proc/sys/vm/page-cluster": "0\n",
    "proc/sys/vm/swappiness": "120\n",
    "proc/sys/fs/fuse/default_request_timeout": "0\n",
    "proc/sys/fs/fuse/max_request_timeout": "0\n",
    "proc/swaps": "Filename Type Size Used Priority\n/swapfile file 100 0 -2\n",
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
    "proc/1/comm": "systemd\n",
    "sys/module/zswap/parameters/enabled": "N\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nothing is amiss."""
    monkeypatch.setattr(doctor, "TOOLS", ())
    monkeypatch.setattr(stale, "daemon_lives", lambda runtime_dir, name: name != "dead")
    for path, content in MACHINE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    (tmp_path / "sys/block").mkdir()
    return tmp_path


def amiss(root: Path) -> list[doctor.Finding]:
    return [found for found in examine(root / "run", root) if found.severity is not Severity.OK]


def test_nothing_is_said_against_a_machine_as_it_should_be(root: Path) -> None:
    assert amiss(root) == []
    assert len(examine(root / "run", root)) >= 10


@pytest.mark.parametrize(
    ("path", "content", "severity", "says", "command"),
    [
        ("proc/sys/kernel/osrelease", "6.1.0-42-amd64", "warning", "6.9 or later", ""),
        ("proc/sys/kernel/osrelease", "5.4.0", "severe", "5.6 or later", ""),
        ("dev/fuse", None, "severe", "/dev/fuse is not there", "modprobe fuse"),
        ("dev/loop-control", None, "severe", "/dev/loop-control", "modprobe loop"),
        ("sys/module/zswap/parameters/enabled", "Y", "warning", "twice", "echo N > /sys/module"),
        ("proc/sys/vm/page-cluster", "3", "hint", "8 pages", "sysctl -w vm.page-cluster=0"),
        ("proc/sys/vm/swappiness", "60", "hint", "suits a disk", "sysctl -w vm.swappiness"),
        ("proc/sys/vm/swappiness", "1", "warning", "files are dropped", "sysctl -w vm.swapp"),
        (
            *("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never", "hint"),
            *("always", "echo madvise > /sys"),
        ),
        (
            *("proc/sys/fs/fuse/default_request_timeout", "60", "severe"),
            *("every page is lost", "sysctl -w fs.fuse.default_request_timeout=0"),
        ),
        ("proc/1/comm", "systemd-oomd", "hint", "systemd-oomd runs", "systemctl stop"),
        ("proc/swaps", "Filename\n/dev/zram partition 1 0 5\n", "", "", ""),
        ("proc/swaps", "Filename\n", "hint", "none: swapoff", "swapon -p 1"),
    ],
)
def test_what_is_amiss_is_said_with_its_cure(
    root: Path, path: str, content: str | None, severity: str, says: str, command: str
) -> None:
    if content is None:
        (root / path).unlink()
    else:
        (root / path).write_text(content)
    found = amiss(root)
    if not severity:
        assert found == []
        return
    (one,) = found
    assert one.severity == severity
    assert says in f"{one.found} {one.better}"
    assert command in one.command


def test_what_a_kernel_does_not_have_is_not_amiss(root: Path) -> None:
    shutil.rmtree(root / "sys/module")
    shutil.rmtree(root / "proc/sys/fs")
    assert amiss(root) == []


def test_what_cannot_be_seen_is_not_taken_for_absent(root: Path) -> None:
    shutil.rmtree(root / "sys")
    found = {one.what: one for one in amiss(root)}
    assert {"zswap", "huge pages"} <= set(found)
    assert all(one.found.startswith("cannot be seen: ") for one in found.values())


def test_instances_are_looked_at(root: Path) -> None:
    run_dir = root / "run"
    run_dir.mkdir()
    well: dict[str, Any] = {"name": "well", "degraded": []}
    state_file.write(run_dir, "well", well)
    state_file.write(run_dir, "ill", {**well, "degraded": ["file tier: a disk"]})
    state_file.write(run_dir, "dead", well)
    found = {one.what: (one.severity, one.found) for one in amiss(root)}
    assert found == {
        "instance ill": ("warning", "file tier: a disk"),
        "instance dead": ("severe", "dead"),
    }


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        ("proc/sys/vm/page-cluster", "3", 0),
        ("sys/module/zswap/parameters/enabled", "Y", 3),
        ("proc/sys/kernel/osrelease", "4.19.0", 4),
    ],
)
def test_exit_code_is_that_of_the_gravest(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str,
    content: str,
    code: int,
) -> None:
    (root / path).write_text(content)
    monkeypatch.setattr(doctor, "examine", lambda run_dir: examine(run_dir, root))
    words = ["doctor", "--runtime-dir", str(root / "run")]
    assert main.main(words) == code
    (one,) = amiss(root)
    shown = capsys.readouterr().out
    assert f"{one.severity:8} {one.what}: {one.found}" in shown
    assert main.main([*words, "--json"]) == code
    listed = json.loads(capsys.readouterr().out)
    assert {"what": one.what, "severity": one.severity, "found": one.found} in [
        {key: each[key] for key in ("what", "severity", "found")} for each in listed
    ]
