"""What the machine is, and the versions of what is measured.

Only what bears on speed: no names, addresses or serial numbers, because results are published.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = ("pyfuse3", "trio", "lz4", "prometheus-client", "matplotlib")
_COMMANDS: Final = {
    "fio": ("fio", "--version"),
    "nbdkit": ("nbdkit", "--version"),
    "qemu": ("qemu-system-x86_64", "--version"),
    "cc": ("cc", "--version"),
    "losetup": ("losetup", "--version"),
}
UNKNOWN: Final = "unknown"
OWN_OUTPUT: Final = "docs/bench"
"""Results do not count as changes of the checkout that they were measured from."""


def describe() -> dict[str, Any]:
    """Return the machine, its kernel and the versions that matter, as a JSON object."""
    return {
        "cpu": _first(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")),
        "cpus": len(os.sched_getaffinity(0)),
        "governor": _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_mib": int(_first(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo"), "0")) // 1024,
        "virtual": " hypervisor" in _text(Path("/proc/cpuinfo")),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", UNKNOWN),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the version of everything that is measured or measures."""
    found = {"python": platform.python_version(), "libfuse": _libfuse(), "liblz4": _liblz4()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    for name, command in _COMMANDS.items():
        found[name] = _version_of(command)
    return found


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def commit(project: Path) -> dict[str, Any]:
    """Return the checkout's commit and whether files differ from it, results left aside."""
    head = _git(project, "rev-parse", "HEAD")
    changes = _git(project, "status", "--porcelain", "--", ".", f":(exclude){OWN_OUTPUT}")
    return {"commit": head or UNKNOWN, "dirty": bool(changes)}


def _git(project: Path, *words: str) -> str:
    # The checkout may belong to another user than root, whom git would refuse to serve.
    command = ["git", "-c", f"safe.directory={project}", "-C", str(project), *words]
    return _output(command) if shutil.which("git") else ""


def _version_of(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return "absent"
    found = re.search(r"\d+(?:\.\d+)+", _output(command))
    return found[0] if found else UNKNOWN


def _output(command: tuple[str, ...] | list[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.strip()


def _libfuse() -> str:
    name = ctypes.util.find_library("fuse3")
    if name is None:
        return "absent"
    version = ctypes.CDLL(name).fuse_pkgversion
    version.restype = ctypes.c_char_p
    return str(version().decode())


def _liblz4() -> str:
    name = ctypes.util.find_library("lz4")
    if name is None:
        return "absent"
    version = ctypes.CDLL(name).LZ4_versionString
    version.restype = ctypes.c_char_p
    return str(version().decode())


def _first(pattern: str, file: Path, otherwise: str = UNKNOWN) -> str:
    found = re.search(pattern, _text(file), re.MULTILINE)
    return found[1].strip() if found else otherwise


def _line(file: Path) -> str:
    return _text(file).strip() or UNKNOWN


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
