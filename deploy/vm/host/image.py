"""The root image: a minimal Debian of the host's release, without anything of ours but hooks.

swapfs itself and the kernel's modules are disks of their own (app.py, kernel.py), so this image
is rebuilt only when the package list or the recipe changes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.vm.host.cache import digest, remove_tree
from deploy.vm.host.ext4 import make_ext4
from deploy.vm.host.mirror import host_release, proxy_options, source_line
from deploy.vm.host.proc import VmError, need, run, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploy.vm.host.cache import Cache

RECIPE = "1"  # goes into the key: bump it when the code below makes something else
SIZE_MIB = 8192  # sparse; room for tier files and swapfiles in the throw-away overlay

PACKAGES = (
    "curl,dmsetup,e2fsprogs,fio,fuse3,iproute2,kmod,less,liblz4-1,libzstd1,mount,procps,psmisc,python3,"
    "strace,stress-ng,util-linux,zstd"
)

_HOSTS = "127.0.0.1 localhost swapfs-vm\n"

_SYSTEMD_RECIPE = "1"
_SYSTEMD_PACKAGES = ("dbus", "systemd", "systemd-sysv", "udev")
_SYSTEMD_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "getty@tty1.service"),
    "serial-getty@ttyS0.service",  # the console is the job's
)
"""What takes time at boot or while a job measures, and is not what the tests are about."""
_MACHINE_ID = "5eaf5eaf5eaf5eaf5eaf5eaf5eaf5eaf\n"  # without one each boot would be the first


@dataclass(frozen=True, slots=True)
class RootImage:
    """The root image and the Python in it."""

    entry: Path

    @property
    def image(self) -> Path:
        """An ext4 image; boot it with a throw-away overlay."""
        return self.entry / "root.img"

    @property
    def python_version(self) -> str:
        """The guest's Python as `3.minor`."""
        return (self.entry / "python-version").read_text().strip()


def make_root(
    cache: Cache, extra: Sequence[str] = (), *, systemd: bool = False, release: str = ""
) -> RootImage:
    """Return the root image for `release`, the host's by default; makes it (a minute) if absent.

    With `extra` packages, or with `systemd` (and udev, dbus) to be PID 1, it is an image of its
    own; the plain one stays as it is.
    """
    release = release or host_release()
    packages = ",".join([PACKAGES, *(_SYSTEMD_PACKAGES if systemd else ()), *extra])

    def build(into: Path) -> None:
        need("mmdebstrap", "mke2fs")
        if os.geteuid() != 0:
            raise VmError("making the root image needs root (mmdebstrap); run this once with sudo")
        say(f"making the {release} root tree (mmdebstrap) ...")
        tree = into / "tree"
        run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}"]
            + [f"--dpkgopt=path-exclude={path}/*" for path in UNWANTED]
            + ['--aptopt=Apt::Install-Recommends "false"', *proxy_options()]
            + [release, str(tree), source_line(release)],
            f"making the {release} root tree",
            cache.logs / "root.log",
        )
        (into / "python-version").write_text(add_hooks(tree) + "\n")
        if systemd:
            add_systemd_hooks(tree)
        say("making root.img ...")
        make_ext4(tree, into / "root.img", size_mib=SIZE_MIB)
        remove_tree(tree)

    parts = [RECIPE, release, packages, str(SIZE_MIB), *UNWANTED]
    if systemd:
        parts += [_SYSTEMD_RECIPE, *_SYSTEMD_MASKED]
    kind = "root-systemd" if systemd else "root-extra" if extra else "root"
    kind += "" if release == host_release() else f"-{release}"
    return RootImage(cache.entry(kind, digest(*parts), build))


UNWANTED = ("/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/locale")


def add_hooks(tree: Path) -> str:
    """Add what binds the swapfs disk into the system; return the tree's Python version."""
    python = os.readlink(tree / "usr/bin/python3").rsplit("/", 1)[-1].removeprefix("python")
    for folder in ("opt/swapfs", "usr/lib/modules", "var/lib/swapfs", "job"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "usr/local/bin/swapfs").symlink_to("/opt/swapfs/bin/swapfs")
    (tree / "usr/sbin/swapfs-init").symlink_to("/opt/swapfs/guest/swapfs-init")
    packages = tree / f"usr/local/lib/python{python}/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "swapfs.pth").write_text("/opt/swapfs/site\n")
    (tree / "etc/hostname").write_text("swapfs-vm\n")
    (tree / "etc/hosts").write_text(_HOSTS)
    (tree / "etc/fstab").write_text("")
    return python


def add_systemd_hooks(tree: Path) -> None:
    """Make systemd boot to our job and nothing else; its journal outlives a reboot."""
    units = tree / "etc/systemd/system"
    for name in _SYSTEMD_MASKED:
        (units / name).symlink_to("/dev/null")
    job = units / "swapfs-job.service"
    job.symlink_to(f"/opt/swapfs/guest/{job.name}")  # the initrd has mounted it by then
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / job.name).symlink_to(f"../{job.name}")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (tree / "etc/machine-id").write_text(_MACHINE_ID)
    (tree / "var/log/journal").mkdir(exist_ok=True)
    for folder in ("etc", "var"):
        (tree / folder / ".updated").touch()  # no ldconfig, hwdb and the like at boot
