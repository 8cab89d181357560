"""An engine in the memory of the process, whose N-th call fails when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from valkey import exceptions

from swapfs.errors import TierIOError
from swapfs.tiers.aead import KEY_BYTES, AeadSeal
from swapfs.tiers.engine import Engine, Place
from swapfs.tiers.nodes import Fill
from swapfs.tiers.valkey import ValkeyTier

READ_FAULTS: Final = ("read_error", "one_read_error", "missing_read", "flipped_read")
WRITE_FAULTS: Final = (
    *("write_error", "half_written", "one_write_error", "no_memory"),
    *("lost_write", "flipped_write"),
)
FAULTS: Final = (*READ_FAULTS, *WRITE_FAULTS, "delete_error")
_PLACE: Final = Place(socket=Path("/in/memory"))


class _Pipe:
    """Does what is put into it at once."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self._values = values
        self.answer: Any = None

    def set(self, key: str, value: bytes) -> None:
        self._values[key] = value
        self.answer = True

    def get(self, key: str) -> None:
        self.answer = self._values.get(key)

    def unlink(self, key: str) -> None:
        self.answer = int(self._values.pop(key, None) is not None)


class FaultyEngine(Engine):
    """Fails calls *first* to *last* (from 1) of the kind that *fault*, of FAULTS, is about.

    An ``error`` has no answer and nothing is done, ``half_written`` has none and half is; ``one``
    key of several has an error for an answer; ``no_memory`` refuses all. ``missing`` finds nothing,
    ``lost`` and ``flipped`` say that all is well. ``damaged_slots``: those that writes lied about.
    """

    def __init__(self, fault: str, first: int, last: int = 0) -> None:
        super().__init__(_PLACE)
        assert fault in FAULTS
        self.values: dict[str, bytes] = {}
        self.failures = 0
        self.damaged_slots: set[int] = set()
        self._kind = next(kind for kind in ("read", "write", "delete") if _is_of(fault, kind))
        self._fault = fault
        self._first = first
        self._last = last or first
        self._calls = 0
        self._lock = threading.Lock()

    def heal(self) -> None:
        """Let every later call through."""
        self._last = 0

    def why_unfit(self) -> str:  # noqa: D102
        return ""

    def probe(self, *, renew: bool = False) -> None:  # noqa: D102
        pass

    def ask(  # noqa: D102
        self, what: str, keys: Sequence[str], fill: Fill, *, stores: bool = False
    ) -> list[Any]:
        with self._lock:
            fault = self._hit(what)
            if fault.endswith(("read_error", "write_error", "delete_error")) and "one" not in fault:
                raise TierIOError("made to fail: no answer")
            answers = [self._do(keys, fill, number, fault) for number in range(len(keys))]
            if fault == "half_written":
                raise TierIOError("made to fail: half of it is there")
            return answers

    def _hit(self, what: str) -> str:
        if what != self._kind:
            return ""
        self._calls += 1
        if not self._first <= self._calls <= self._last:
            return ""
        self.failures += 1
        return self._fault

    def _do(self, keys: Sequence[str], fill: Fill, number: int, fault: str) -> Any:
        middle, key = len(keys) // 2, keys[number]
        if fault.startswith("one") and number == middle:
            return exceptions.ResponseError("made to fail: this one")
        if fault == "no_memory":
            return exceptions.OutOfMemoryError("made to fail: no memory")
        if fault == "missing_read" or (fault == "half_written" and number >= middle):
            return None
        if fault in ("lost_write", "flipped_write"):
            self.damaged_slots.add(int(key.rpartition(":")[2].partition(".")[0], 16))
        if fault == "lost_write":
            return True
        pipe = _Pipe(self.values)
        fill(pipe, number)
        if fault == "flipped_write":
            self.values[key] = _flipped(self.values[key])
        return _flipped(pipe.answer) if fault == "flipped_read" and pipe.answer else pipe.answer


def _is_of(fault: str, kind: str) -> bool:
    return kind in fault or (kind == "write" and fault in WRITE_FAULTS)


def _flipped(value: bytes) -> bytes:
    return value[:40] + bytes([value[40] ^ 2]) + value[41:]


class FaultyFar(ValkeyTier):
    """Far memory of *size_bytes* in a ``FaultyEngine``."""

    def __init__(self, size_bytes: int, fault: str, first: int, last: int = 0) -> None:
        self.engine = FaultyEngine(fault, first, last)
        seal = AeadSeal(bytes(range(KEY_BYTES)))
        super().__init__(_PLACE, size_bytes, "swapfs:test:", seal, self.engine)
        self.look()

    @property
    def failures(self) -> int:
        """How many calls have failed."""
        return self.engine.failures

    @property
    def damaged_slots(self) -> set[int]:
        """See ``FaultyEngine``."""
        return self.engine.damaged_slots

    def heal(self) -> None:
        """Let every later call through."""
        self.engine.heal()
