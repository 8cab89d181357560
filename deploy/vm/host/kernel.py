"""Debian kernels by short name: fetched from the archive, unpacked, never installed."""

from __future__ import annotations

import lzma
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.vm.host.cache import digest
from deploy.vm.host.ext4 import make_ext4
from deploy.vm.host.mirror import PrivateApt
from deploy.vm.host.proc import VmError, need, run, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.vm.host.cache import Cache

_RECIPE = "1"  # goes into the key: bump it when the code below makes something else

KERNELS = {
    "6.1": ("bookworm", r"6\.1\.0-\d+"),
    "6.12": ("trixie", r"6\.12\.\d+\+deb13(?:\.\d+)?"),
    "7.2": ("sid", r"7\.2(?:\.\d+)?\+deb14(?:\.\d+)?"),
}
"""Short name -> Debian suite, and pattern of the version inside the package names."""

_KINDS = ("image", "base", "binary", "modules")  # newer kernels spread over all of them

_BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "crc32c", "ext4")
"""What the initrd loads to mount the root (ext4 asks for crc32c by a name depmod can't see)."""


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A fetched kernel: what QEMU boots, the guest's module disk, and the initrd's modules."""

    entry: Path

    @property
    def vmlinuz(self) -> Path:
        """The kernel itself."""
        return self.entry / "vmlinuz"

    @property
    def modules_image(self) -> Path:
        """An ext4 image to be mounted at /lib/modules."""
        return self.entry / "modules.img"

    @property
    def boot_modules(self) -> Path:
        """A folder of plain .ko files and `order`, the names in the order to load them."""
        return self.entry / "boot-modules"


def fetch_kernel(name: str, cache: Cache) -> KernelFiles:
    """Return the kernel called `name` in KERNELS from the cache, fetching it if absent."""
    if name not in KERNELS:
        raise VmError(f"no kernel called {name!r}; known are {', '.join(KERNELS)}")
    suite, pattern = KERNELS[name]

    def build(into: Path) -> None:
        need("apt-get", "apt-cache", "dpkg", "depmod", "mke2fs")
        say(f"fetching kernel {name} from {suite} ...")
        apt = PrivateApt(into / "apt", suite, cache.logs / f"kernel-{name}.log")
        apt.update()
        packages = _packages(apt, name, pattern)
        say(f"unpacking {' '.join(packages)} ...")
        tree = into / "tree"
        for deb in apt.download(packages, into / "debs"):
            run(["dpkg", "-x", str(deb), str(tree)], f"unpacking {deb.name}")
        _arrange(tree, into)
        for scrap in ("apt", "debs", "tree"):
            shutil.rmtree(into / scrap)

    key = digest(_RECIPE, suite, pattern, *_BOOT_MODULES)
    return KernelFiles(cache.entry(f"kernel-{name}", key, build))


def _packages(apt: PrivateApt, name: str, pattern: str) -> list[str]:
    found: dict[str, list[str]] = {}
    for package in apt.names("linux-"):
        if match := re.fullmatch(rf"linux-({'|'.join(_KINDS)})-({pattern})-amd64", package):
            found.setdefault(match[2], []).append(package)
    complete = [version for version in found if f"linux-image-{version}-amd64" in found[version]]
    if not complete:
        raise VmError(
            f"the archive's {apt.suite} has no kernel {name} any more; "
            "adjust KERNELS in deploy/vm/kernel.py"
        )
    newest = max(complete, key=lambda version: [int(n) for n in re.findall(r"\d+", version)])
    return sorted(found[newest])


def _arrange(tree: Path, into: Path) -> None:
    modules = next((p for p in tree.glob("usr/lib/modules") if p.is_dir()), tree / "lib/modules")
    releases = [p.name for p in modules.iterdir()]
    images = list(tree.glob("boot/vmlinu[xz]-*")) + list(modules.glob("*/vmlinuz"))
    if len(releases) != 1 or not images:
        raise VmError(f"unexpected layout of the kernel packages: {releases}, {images}")
    shutil.copyfile(images[0], into / "vmlinuz")
    # depmod of any release then finds the modules, wherever the packages put them
    base = into / "tree" / "base"
    (base / "usr/lib").mkdir(parents=True)
    modules.rename(base / "usr/lib/modules")
    (base / "lib").symlink_to("usr/lib")
    modules = base / "usr/lib/modules"
    run(["depmod", "-b", str(base), releases[0]], "indexing the kernel modules")
    _collect_boot_modules(modules / releases[0], into / "boot-modules")
    make_ext4(modules, into / "modules.img")


def _collect_boot_modules(modules: Path, into: Path) -> None:
    into.mkdir()
    order: list[str] = []
    for path in _load_order(modules):
        name = path.name.split(".ko")[0] + ".ko"
        (into / name).write_bytes(_plain(path))
        order.append(name)
    (into / "order").write_text("\n".join(order) + "\n")


def _load_order(modules: Path) -> Iterator[Path]:
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[path] = dependencies.split()
        by_name[path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")] = path
    builtin = (modules / "modules.builtin").read_text()
    builtin_names = {p.rsplit("/", 1)[-1][:-3].replace("-", "_") for p in builtin.split()}
    done: set[str] = set()
    for wanted in _BOOT_MODULES:
        if wanted not in by_name:
            if wanted not in builtin_names and not wanted.startswith("crc32c"):
                raise VmError(f"the kernel in {modules.name} has no module {wanted}")
            continue
        # modules.dep lists what must be loaded first last
        for path in [*reversed(needs[by_name[wanted]]), by_name[wanted]]:
            if path not in done:
                done.add(path)
                yield modules / path


def _plain(module: Path) -> bytes:
    """Return the module's bytes uncompressed: busybox's insmod takes nothing else for sure."""
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        plain = module.with_suffix("")
        run(["zstd", "-q", "-d", "-o", str(plain), str(module)], f"decompressing {module.name}")
        data = plain.read_bytes()
        plain.unlink()
        return data
    return module.read_bytes()
