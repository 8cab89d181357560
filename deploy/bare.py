"""Run commands in a fresh clone inside a bare Debian of any release.

The tree is minbase with git and make, and a chroot is all that surrounds it: the kernel, /dev and
/sys are this machine's, while processes and mounts are its own and end with it. It finds the
archive and PyPI as this machine does. What the clone keeps in its VM cache stays for the next run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deploy.vm.host.app import CHECKOUT
from deploy.vm.host.cache import Cache, digest, remove_tree
from deploy.vm.host.job import work_dir
from deploy.vm.host.mirror import proxy_options, source_line
from deploy.vm.host.proc import VmError, dies_with_us, need, run, say

_RECIPE = "1"  # goes into the key: bump it when the code below makes something else
_PACKAGES = "ca-certificates,git,make"
_CLONE = "root/swapfs"
_VM_CACHE = "var/cache/swapfs"

# As they are on this machine; what is not there is not copied. No credentials are among them.
_COPIED = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/usr/local/share/ca-certificates")
_PASSED = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE")

# Arguments: the tree, the folder for the VM cache, and the commands.
_ENTER = f"""
set -e
tree=$1 cache=$2
shift 2
mount --rbind "$tree" "$tree"  # its root is a mount: unshare(1) wants one
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"
mount --bind "$cache" "$tree/{_VM_CACHE}"
chroot "$tree" update-ca-certificates >/dev/null 2>&1
for command in "$@"; do
    echo "bare: $command" >&2
    chroot "$tree" sh -c "cd /{_CLONE} && $command" </dev/null
done
"""


def make_tree(release: str, cache: Cache) -> Path:
    """Return the packed tree of `release`; made anew each month, as the archive moves on."""

    def build(into: Path) -> None:
        say(f"making a bare {release} (mmdebstrap) ...")
        run(
            [
                *("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={_PACKAGES}"),
                *('--aptopt=Apt::Install-Recommends "false"', *proxy_options()),
                *(release, str(into / "tree.tar"), source_line(release)),
            ],
            f"making a bare {release}",
            cache.logs / f"bare-{release}.log",
        )

    key = digest(_RECIPE, release, _PACKAGES, time.strftime("%Y-%m"))
    return cache.entry(f"bare-{release}", key, build) / "tree.tar"


def furnish(tree: Path, release: str) -> None:
    """Give `tree` what it needs to reach the archive and PyPI, and the clone."""
    for name in _COPIED:
        source, target = Path(name), tree / name.removeprefix("/")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_file():
            target.unlink(missing_ok=True)  # resolv.conf may be a link out of the tree
            shutil.copyfile(source, target)
    pip = Path.home() / ".config/pip/pip.conf"
    if pip.is_file():
        (tree / "root/.config/pip").mkdir(parents=True)
        shutil.copyfile(pip, tree / "root/.config/pip/pip.conf")
    apt = run(["apt-config", "dump", "Acquire"], "reading apt's configuration")
    (tree / "etc/apt/apt.conf.d/00machine").write_text(apt)
    # The keyring by the name that it has here may be missing there; its own apt knows it anyway.
    uri, suite, component = source_line(release).split()[-3:]
    (tree / "etc/apt/sources.list").write_text(f"deb {uri} {suite} {component}\n")
    clone(tree)
    (tree / _VM_CACHE).mkdir(parents=True)


def clone(tree: Path) -> None:
    """Clone what is committed in this checkout into `tree`."""
    git = ["git", "-c", "safe.directory=*", "-C", str(CHECKOUT)]  # root may look at a user's
    if run([*git, "status", "--porcelain"], "asking git for changes"):
        say("the checkout has changes that are not committed: the clone is without them")
    bundle = tree / "root/swapfs.bundle"
    run([*git, "bundle", "create", str(bundle), "HEAD"], "packing the checkout")
    run(["git", "clone", "-q", str(bundle), str(tree / _CLONE)], "cloning")
    bundle.unlink()


def run_in(tree: Path, commands: list[str], vm_cache: Path) -> int:
    """Run shell `commands` in the clone one after another; return the first bad status, or 0."""
    vm_cache.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name in _PASSED if (value := os.environ.get(name))}
    environment |= {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "CI": "true",  # a test that cannot run is a failure
        "SWAPFS_CACHE": f"/{_VM_CACHE}",
    }
    inside = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    inside += ["sh", "-c", _ENTER, "sh", str(tree), str(vm_cache), *commands]
    return subprocess.run(dies_with_us(inside), env=environment, check=False).returncode


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.bare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("release", help="Debian's code name, such as trixie")
    parser.add_argument("commands", nargs="*", default=["make test", "make demo"])
    args = parser.parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise VmError("a chroot needs root; run this with sudo")
        need("git", "mmdebstrap", "tar", "unshare")
        cache = Cache()
        with cache.locked():
            packed = make_tree(args.release, cache)
        with work_dir() as work:
            tree = work / "tree"
            tree.mkdir()
            run(["tar", "-C", str(tree), "-xf", str(packed)], f"unpacking {packed}")
            furnish(tree, args.release)
            try:
                return run_in(tree, args.commands, cache.root.parent / f"bare-{args.release}")
            finally:
                remove_tree(tree)
    except (VmError, OSError) as error:
        print(f"bare: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
