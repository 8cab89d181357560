"""The backing file on file systems that do not keep what they promised."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.host import filesystems
from tests.fuse.instance import Instance, Start, check, run, wait_until

MIB = 1 << 20
IMAGE = "200M"


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A small btrfs of its own."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs mkfs.btrfs: install btrfs-progs")
    image, place = tmp_path / "image", tmp_path / "btrfs"
    place.mkdir()
    check("truncate", "-s", IMAGE, image)
    check("mkfs.btrfs", "-q", "-f", image)
    mounted = run("mount", "-o", "loop,compress=lzo", image, place)
    if mounted.returncode != 0:
        pytest.skip(f"needs btrfs in the kernel: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        check("umount", place)


@pytest.fixture
def instance(btrfs: Path, make_instance: Start) -> Instance:
    """One whose backing file is on btrfs; not mounted yet. It ends before the file system does."""
    made = make_instance()
    made.backing = btrfs / "tier"
    return made


def fill_up(place: Path) -> None:
    """Leave no room in the file system at *place*."""
    with (place / "other").open("wb") as other:
        try:
            while other.write(os.urandom(MIB)):
                other.flush()
        except OSError:
            pass
    os.sync()


def rewrite(instance: Instance) -> int:
    """Write all of the swap file with what does not compress, anywhere; return fio's exit code."""
    return run(
        *("fio", "--name=w", f"--filename={instance.swap}", "--rw=randwrite", "--bs=32k"),
        *("--size=30M", "--runtime=20", "--direct=1", "--ioengine=libaio", "--iodepth=8"),
        *("--randrepeat=0", "--refill_buffers", "--buffer_compress_percentage=0", "--minimal"),
        timeout_s=120,
    ).returncode


def mount(instance: Instance) -> str:
    """Mount it; return what the command said beside its result."""
    words = ("--size", "32M", "--pool", "8M", "--file", f"{instance.backing}:64M")
    done = run(*instance.mount_command(*words))
    assert done.returncode == 0, done.stderr
    instance.note_pids()
    return done.stderr


def test_a_full_btrfs_refuses_no_write(instance: Instance, btrfs: Path) -> None:
    assert mount(instance) == ""
    fill_up(btrfs)
    for _ in range(3):
        assert rewrite(instance) == 0
    status = instance.status()
    assert status["counters"]["bad_sectors"] == 0
    assert status["degraded"] == [] or all("guard" in why for why in status["degraded"])
    instance.down()


def test_a_file_of_an_earlier_instance_is_made_anew(instance: Instance, btrfs: Path) -> None:
    instance.backing.touch()
    with instance.backing.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * MIB)
        assert not filesystems.overwrites(file.fileno())
    assert mount(instance) == ""
    with instance.backing.open("rb") as file:
        assert filesystems.overwrites(file.fileno())
    instance.down()


@pytest.mark.timeout(400)  # much has to be written until no space is left
def test_where_it_cannot_be_had_it_is_said_and_heals(
    instance: Instance, btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on zfs or bcachefs: a file that cannot be written in place."""
    instance.backing.touch()
    hold = "import swapfs.host.filesystems as f; f.make_overwrite = lambda fd: False\n"
    hook = btrfs.parent / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(hold)
    monkeypatch.setenv("PYTHONPATH", str(hook))
    said = mount(instance)
    caution = f"{instance.backing} is on btrfs, which writes each block to a new place"
    assert caution in said
    assert any(caution in limit for limit in instance.status()["limits"])
    assert caution in instance.cli("status").stdout
    assert caution in instance.log()
    fill_up(btrfs)
    wait_until(lambda: rewrite(instance) != 0, "a write that finds no space", 240)
    wait_until(lambda: "No space left on device" in instance.log(), "a word of it in the log")
    assert instance.status()["counters"]["bad_sectors"] == 0
    (btrfs / "other").unlink()
    os.sync()
    wait_until(lambda: instance.demote(100) > 0, "the next try", 30)
    assert [tier["state"] for tier in instance.status()["tiers"]] == ["ok"]
    assert instance.status()["counters"]["bad_sectors"] == 0
    instance.down()
