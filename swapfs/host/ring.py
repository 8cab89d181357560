"""A queue of bytes in memory that two processes share: neither ever waits for the other.

One process puts, another takes. What was put is seen whole or not at all, also if the first one
is killed in between: the bytes come first, then the count that makes them seen (as I3 has it).
Knows nothing of what the bytes are. Imports nothing that its reader would have to carry.
"""

from __future__ import annotations

from typing import Final

HEADER_BYTES: Final = 32
_PUT, _TAKEN, _REFUSED, _TOLD = range(4)
"""Words of the header: bytes put and taken since it exists; what found no room, and was told."""


class Ring:
    """The queue in *view*, which is zeroed shared memory when its first user comes.

    :param view: HEADER_BYTES, then as many bytes as it is to hold
    """

    def __init__(self, view: memoryview) -> None:
        self._words = view[:HEADER_BYTES].cast("Q")
        self._data = view[HEADER_BYTES:]

    @property
    def refused(self) -> int:
        """How often ``put`` found no room."""
        return self._words[_REFUSED]

    def put(self, data: bytes) -> bool:
        """Add *data*, all of it or, if there is no room, nothing. One caller at a time."""
        words, capacity = self._words, len(self._data)
        put = words[_PUT]
        if len(data) > capacity - (put - words[_TAKEN]):
            words[_REFUSED] += 1
            return False
        at = put % capacity
        before_end = min(len(data), capacity - at)
        self._data[at : at + before_end] = data[:before_end]
        self._data[: len(data) - before_end] = data[before_end:]
        words[_PUT] = put + len(data)
        return True

    def peek(self) -> bytes:
        """Return what was put and not taken yet; at its end, the part after the seam is next."""
        taken, capacity = self._words[_TAKEN], len(self._data)
        at = taken % capacity
        return bytes(self._data[at : min(capacity, at + self._words[_PUT] - taken)])

    def take(self, size: int) -> None:
        """Give back the room of the first *size* bytes of what ``peek`` returned."""
        self._words[_TAKEN] += size

    def take_refused(self) -> int:
        """Return how often ``put`` found no room since the last time."""
        refused = self._words[_REFUSED]
        news = refused - self._words[_TOLD]
        self._words[_TOLD] = refused
        return news
