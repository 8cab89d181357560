"""The initrd: busybox, the few modules that reach the root disk, and one script."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.vm.host.cache import digest
from deploy.vm.host.proc import VmError, find, need, say

if TYPE_CHECKING:
    from deploy.vm.host.cache import Cache
    from deploy.vm.host.kernel import KernelFiles

_SCRIPT = Path(__file__).parents[1] / "guest/initrd-init"


def make_initrd(name: str, kernel: KernelFiles, cache: Cache) -> Path:
    """Return the initrd for `kernel`, whose short name is `name`; makes it if absent."""
    need("busybox", "cpio")
    busybox = Path(find("busybox") or "busybox")

    def build(into: Path) -> None:
        say(f"making the initrd for {name} ...")
        if b"/ld-linux" in busybox.read_bytes():
            raise VmError(f"{busybox} is not static; install the package busybox-static")
        tree = into / "tree"
        for folder in ("bin", "dev", "proc", "sys", "root"):
            (tree / folder).mkdir(parents=True)
        shutil.copy(busybox, tree / "bin/busybox")
        shutil.copytree(kernel.boot_modules, tree / "modules")
        shutil.copyfile(_SCRIPT, tree / "init")
        (tree / "init").chmod(0o755)
        names = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
        packed = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=tree, input=names.encode(), capture_output=True, check=False,
        )  # fmt: skip
        if packed.returncode != 0:
            raise VmError(f"packing the initrd failed: {packed.stderr.decode(errors='replace')}")
        (into / "initrd.img").write_bytes(packed.stdout)
        shutil.rmtree(tree)

    status = busybox.stat()
    key = digest(
        kernel.entry.name, _SCRIPT.read_bytes(), f"{busybox} {status.st_size} {status.st_mtime_ns}"
    )
    return cache.entry(f"initrd-{name}", key, build) / "initrd.img"
