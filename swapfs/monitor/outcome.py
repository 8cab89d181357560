"""How the watch over an instance ends."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """Why a monitor's work is done."""

    UNMOUNTED = "unmounted"
    ABORTED = "aborted"
    """The kernel has ended the connection below a loop device: the pages are out of reach."""
    NEVER_SERVED = "never served"
    HANDED_OVER = "handed over"
