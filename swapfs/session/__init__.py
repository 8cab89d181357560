"""The session loop from Python, and pyfuse3 as it must be loaded: after the loop.

Import pyfuse3 from here, never directly: the compiled loop takes two libfuse functions over
from it (see ``interpose.c``), which works only if the dynamic linker meets the loop first.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

if "pyfuse3" in sys.modules:
    raise ImportError("swapfs.session must be imported before pyfuse3")

_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL | os.RTLD_NOW)
try:
    from swapfs.session import _session
finally:
    sys.setdlopenflags(_flags)


class _NoMetadata(ModuleType):
    """Stands in for importlib.metadata, which pyfuse3 asks for its own version and nothing else.

    The real one imports `email` and `zipfile`: 1.5 MiB, locked in monitor and server.
    """

    PackageNotFoundError = LookupError

    @staticmethod
    def version(name: str) -> str:
        raise LookupError(name)


_metadata = "importlib.metadata"
_is_stand_in = _metadata not in sys.modules
if _is_stand_in:
    sys.modules[_metadata] = _NoMetadata(_metadata)
try:
    import pyfuse3
finally:
    if _is_stand_in:
        del sys.modules[_metadata]

Request = _session.Request
Ticket = _session.Ticket
arm = _session.arm
awake = _session.awake
counts = _session.counts
keep_awake = _session.keep_awake
latency = _session.latency
overtake = _session.overtake
replay_init = _session.replay_init
resend = _session.resend
run = _session.run
stop = _session.stop

__all__ = [
    "Request",
    "Ticket",
    "arm",
    "awake",
    "counts",
    "keep_awake",
    "latency",
    "overtake",
    "pyfuse3",
    "replay_init",
    "resend",
    "run",
    "stop",
]
