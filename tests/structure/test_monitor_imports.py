"""What the monitor has loaded when it begins to hold pages: locked, and copied by each server.

A module that is new here costs twice its size in locked memory. So it is listed, or deferred
(`swapfs/host/deferred.py`) if nobody ever uses it there.
"""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
before = set(sys.modules)
import swapfs.monitor.__main__
from swapfs.host import deferred
names = {name.split(".")[0] for name in set(sys.modules) - set(deferred.deferred()) - before}
print(*sorted(names))
"""
NEVER = {
    "asyncio", "bz2", "click", "csv", "cryptography", "difflib", "email", "hashlib", "hmac", "html",
    "http", "idna", "lzma", "prometheus_client", "shutil", "ssl", "tempfile", "tomllib", "urllib3",
    "wsgiref", "xml", "zipfile",
}  # fmt: skip
"""What swapfs or its libraries name, and a monitor of an instance with no tier and no metrics must
not load."""
TOP_LEVEL_MAX = 90
"""Packages and modules in all, those of the interpreter left aside. There were 82."""


def loaded() -> set[str]:
    done = subprocess.check_output([sys.executable, "-c", LOADED], text=True)
    return set(done.split())


def test_the_monitor_loads_only_what_it_needs() -> None:
    found = loaded()
    assert {"swapfs", "trio", "pyfuse3"} <= found
    assert not found & NEVER
    assert len(found) <= TOP_LEVEL_MAX, sorted(found)
