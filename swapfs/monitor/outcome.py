"""How the watch over an instance ends."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """Why a monitor's work is done."""

    UNMOUNTED = "unmounted"
    NEVER_SERVED = "never served"
    HANDED_OVER = "handed over"
