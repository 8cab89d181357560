"""The session loop from Python, and pyfuse3 as it must be loaded: after the loop.

Import pyfuse3 from here, never directly: the compiled loop takes two libfuse functions over
from it (see ``interpose.c``), which works only if the dynamic linker meets the loop first.
"""

from __future__ import annotations

import os
import sys

if "pyfuse3" in sys.modules:
    raise ImportError("swapfs.session must be imported before pyfuse3")

_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL | os.RTLD_NOW)
try:
    from swapfs.session import _session
finally:
    sys.setdlopenflags(_flags)

import pyfuse3  # noqa: E402

Request = _session.Request
Ticket = _session.Ticket
arm = _session.arm
awake = _session.awake
counts = _session.counts
keep_awake = _session.keep_awake
latency = _session.latency
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
    "pyfuse3",
    "replay_init",
    "resend",
    "run",
    "stop",
]
