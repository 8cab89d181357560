"""The Debian package: what its build tree is made of, and what its scripts do."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy import deb
from swapfs import __version__

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "deploy" / "debian"
SCRIPTS = ("swapfs.postinst", "swapfs.prerm", "swapfs.postrm", "initramfs-hook")
HEADING = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_the_version_stands_in_one_place(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    deb.make_tree(ROOT, tmp_path)
    first = (tmp_path / "debian" / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"swapfs ({__version__}+deb1")


def test_the_release_is_part_of_the_version() -> None:
    """An upgrade of the release must find a newer package: that for Debian 12 does not fit 13."""
    made = deb.version(ROOT)
    newer = re.sub(r"\d+$", lambda found: str(int(found[0]) + 1), made)
    compare = ("dpkg", "--compare-versions", made, "lt", newer)
    assert subprocess.run(compare, check=False).returncode == 0


def test_the_build_tree_has_what_the_package_is_made_of(tmp_path: Path) -> None:
    deb.make_tree(ROOT, tmp_path)
    for name in ("setup.py", "debian/pyproject.toml", "debian/rules", "swapfs/core/store.c"):
        assert (tmp_path / name).is_file()
    # setuptools of Debian 12 refuses what is in it
    assert not (tmp_path / "pyproject.toml").exists()
    assert not list(tmp_path.rglob("*.so"))
    for line in (DEBIAN / "swapfs.docs").read_text().split():
        assert (tmp_path / line).is_file()


def test_make_deb_installs_what_the_package_is_built_with() -> None:
    control = (DEBIAN / "control").read_text()
    block = control.partition("Build-Depends:\n")[2].partition("\nStandards")[0]
    wanted = {line.strip(" ,").split(" ")[0] for line in block.splitlines()}
    listed = set(re.findall(r"(?m)^[a-z][\w-]+", (DEBIAN / "packages.txt").read_text()))
    assert {name.replace("debhelper-compat", "debhelper") for name in wanted} <= listed


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name: str) -> None:
    subprocess.run(("sh", "-n", DEBIAN / name), check=True)


# ---- the hook of initramfs-tools


def resumed_from(tmp_path: Path, chosen: str | None, areas: dict[str, int]) -> str | None:
    """Return what the hook makes of the device that initramfs-tools have *chosen*.

    :param areas: sizes of swap areas, by device; a device has the UUID of its own name
    """
    conf = tmp_path / "made" / "conf" / "conf.d"
    conf.mkdir(parents=True)
    if chosen is not None:
        (conf / "zz-resume-auto").write_text(f"RESUME={chosen}\n")
    swaps = tmp_path / "swaps"
    lines = [f"{device} partition {size} 0 -2\n" for device, size in areas.items()]
    swaps.write_text(HEADING + "".join(lines))
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, body in (("blkid", 'basename "$5"'), ("dmsetup", "exit 1")):
        (programs / program).write_text(f"#!/bin/sh\n{body}\n")
        (programs / program).chmod(0o755)
    inside = f"mount --bind {swaps} /proc/swaps && exec sh {DEBIAN}/initramfs-hook"
    # Root needs no user namespace, and can make none in a chroot (create_user_ns()).
    as_root = () if os.geteuid() == 0 else ("--map-root-user",)
    subprocess.run(
        ("unshare", *as_root, "--mount", "sh", "-c", inside),
        env={
            "DESTDIR": str(tmp_path / "made"),
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        },
        check=True,
    )
    made = conf / "zz-resume-auto"
    return made.read_text().strip().removeprefix("RESUME=") if made.exists() else None


@pytest.mark.parametrize(
    ("chosen", "areas", "resume"),
    [
        (None, {}, None),  # RESUME= was set by somebody
        ("UUID=1", {"/dev/loop0": 9, "/dev/vda2": 5}, "UUID=1"),
        ("/dev/loop0", {"/dev/loop0": 9}, "none"),
        ("/dev/loop0", {"/dev/loop0": 9, "/dev/zram0": 8}, "none"),
        ("/dev/loop0", {"/dev/vda2": 5, "/dev/vda3": 7, "/dev/loop0": 9}, "UUID=vda3"),
    ],
)
def test_no_boot_waits_for_a_swap_area_of_ours(
    tmp_path: Path, chosen: str | None, areas: dict[str, int], resume: str | None
) -> None:
    assert resumed_from(tmp_path, chosen, areas) == resume
