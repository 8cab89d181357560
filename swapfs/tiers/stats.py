"""What a tier tells of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TierStats:
    """What a tier holds, in bytes; ``map_bytes`` is the memory that keeping track of it takes."""

    name: str
    path: str
    size_bytes: int
    used_bytes: int
    bad_bytes: int
    map_bytes: int
    direct_io: bool
    encrypted: bool
    free_segments: int
    segments: int
    cautions: tuple[str, ...] = ()
    """What may go wrong because of where it is, each in one line."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dict."""
        return asdict(self)
