"""What happens to a slot while its blob is in somebody's hands; each returns what it holds then."""

from __future__ import annotations

from typing import Final

from swapfs.testing.harness import Harness
from swapfs.testing.pages import page
from swapfs.units import PAGE_SIZE

SLOT: Final = 5
OTHER: Final = page("text", 40)


def rewrite(harness: Harness, data: bytes = OTHER) -> bytes:
    """Write another page."""
    harness.store(SLOT, data)
    return data


def discard(harness: Harness) -> bytes:
    """Empty it."""
    harness.layer.discard_run(SLOT, 1)
    return bytes(PAGE_SIZE)
