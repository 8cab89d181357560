"""A job under a real systemd without a VM: PID 1 of namespaces on a copy of the root image.

For what only systemd decides (states of units, their order); it boots in seconds. The kernel is
the host's, so nothing in there may swap, mount a FUSE file system, or touch a device.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.vm.host.cache import Cache
from deploy.vm.host.image import make_root
from deploy.vm.host.proc import VmError, dies_with_us, need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_NAMESPACES: Final = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net"),
    *("--cgroup", "--propagation", "private"),
)
_UNIT: Final = """\
[Unit]
Description=the job of this container
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/job
ExecStart=/job/run
ExecStopPost=systemctl poweroff --force --force
StandardOutput=file:/job/out/console.log
StandardError=file:/job/out/console.log
"""
_ENTER: Final = """\
set -e
work=$1 image=$2 job=$3
mount -t tmpfs -o size=256m tmpfs "$work"
cd "$work"
mkdir lower upper into root
mount -o loop,ro,noload "$image" lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=into root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
mkdir dev/shm
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$job" job
rm -f usr/local/bin/swapfs
cp -r job/root/. .
wants=etc/systemd/system/multi-user.target.wants
rm -f etc/systemd/system/swapfs-job.service $wants/swapfs-job.service
mv job/job.service etc/systemd/system
ln -s ../job.service $wants
mkdir host
pivot_root . host
umount -l host
export container=swapfs
exec /lib/systemd/systemd --log-target=console >>/job/out/systemd.log 2>&1 </dev/null
"""


def run_job(
    job_dir: Path,
    files: Mapping[str, Path],
    *,
    release: str,
    timeout_s: float,
    packages: Sequence[str] = (),
) -> Path:
    """Run *job_dir*/run under systemd as PID 1; return the folder with what it left in /job/out.

    :param files: what is put into the root beside it, by the path there
    :param packages: of Debian, that the root has beyond the usual ones
    :raises VmError: this machine cannot do it, or the job took longer than *timeout_s*
    """
    if os.geteuid() != 0:
        raise VmError("namespaces with systemd in them need root")
    need("unshare", "pivot_root")
    cache = Cache()
    with cache.locked():
        image = make_root(cache, packages, systemd=True, release=release).image
    (job_dir / "out").mkdir(exist_ok=True)
    (job_dir / "boot").write_text("1")
    (job_dir / "job.service").write_text(_UNIT)
    for place, path in files.items():
        target = job_dir / "root" / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(path.stat().st_mode & 0o777)
    group = _cgroup()
    try:
        with tempfile.TemporaryDirectory(prefix="swapfs-container-") as work:
            _boot(group, [work, str(image), str(job_dir.resolve())], timeout_s)
    finally:
        for folder in sorted(group.glob("**/"), reverse=True):
            folder.rmdir()
    return job_dir / "out"


def _boot(group: Path, arguments: list[str], timeout_s: float) -> None:
    joined = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
    command = ["sh", "-c", joined, str(group), *_NAMESPACES, "sh", "-c", _ENTER, "enter"]
    try:
        done = subprocess.run(
            dies_with_us([*command, *arguments]),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise VmError(f"the job in the container took longer than {timeout_s:.0f} s") from error
    if done.stderr:
        raise VmError(f"cannot start systemd in namespaces: {done.stderr.strip()}")


def _cgroup() -> Path:
    """Make a cgroup that is the container's root, where this machine has its cgroup v2."""
    for top in _CGROUPS:
        if (top / "cgroup.procs").exists() and (top / "cgroup.controllers").exists():
            made = top / f"swapfs-container-{os.getpid()}"
            made.mkdir()
            return made
    raise VmError("no cgroup v2 is mounted on /sys/fs/cgroup or /sys/fs/cgroup/unified")
