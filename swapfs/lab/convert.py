"""Traces in the formats of others: libCacheSim's oracleGeneral, and CSV."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.lab.trace import GAP, Trace
from swapfs.region.access_log import SLOT_MASK, EventKind, decode
from swapfs.units import PAGE_SIZE

_RECORD: Final = struct.Struct("<IQIq")
"""time in s, object, bytes, number of the next request of the object or -1: oracleGeneral in
libCacheSim/traceReader/customizedReader/oracle/oracleGeneralBin.h."""
_NS: Final = 1_000_000_000
_REQUESTS: Final = (EventKind.STORE, EventKind.LOAD)
_LIFE_SHIFT: Final = 40


def to_oracle_general(trace: Trace, out: Path) -> int:
    """Write the stores and loads of *trace* as requests; return how many.

    A discard ends the life of an object: what is stored there next is another one. Read
    backwards, so that each request's next one is known; memory grows with the slots, not with
    the events.

    :raises OSError: the file cannot be written
    """
    total = sum(_is_request(word) for words in trace.chunks() for word in words[::2])
    following: dict[int, int] = {}
    lives: dict[int, int] = {}
    number = total
    with out.open("wb") as file:
        file.truncate(total * _RECORD.size)
        for words in trace.chunks(backwards=True):
            records: list[bytes] = []
            for index in range(len(words) - 2, -2, -2):
                word = words[index]
                slot = word & SLOT_MASK
                if word >> 40 & 15 == EventKind.DISCARD:
                    lives[slot] = lives.get(slot, 0) + 1
                    following.pop(slot, None)
                elif _is_request(word):
                    after = following.get(slot, -1)
                    time_s = max(0, words[index + 1] - trace.meta.monotonic_ns) // _NS
                    thing = lives.get(slot, 0) << _LIFE_SHIFT | slot
                    records.append(_RECORD.pack(time_s, thing, PAGE_SIZE, after))
                    following[slot] = number
                    number -= 1
            file.seek(number * _RECORD.size)
            file.write(b"".join(reversed(records)))
    return total


def _is_request(word: int) -> bool:
    return word >> 40 & 15 in _REQUESTS


def to_csv(trace: Trace, out: Path) -> int:
    """Write every event of *trace* as a line; return how many.

    :raises OSError: the file cannot be written
    """
    sizes = trace.meta.class_sizes
    lines = 0
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("time_ns", "kind", "slot", "object_bytes", "age_class", "tier", "was"))
        for words in trace.chunks():
            for index in range(0, len(words), 2):
                lines += 1
                word, time_ns = words[index], words[index + 1]
                if word >> 40 & 15 == GAP:
                    writer.writerow((time_ns, "gap", word & SLOT_MASK, "", "", "", ""))
                    continue
                event = decode(word, time_ns)
                size = sizes[event.size_class] if event.size_class < len(sizes) else 0
                kind = event.kind.name.lower()
                writer.writerow((time_ns, kind, event.slot, size, event.age, event.tier, event.was))
    return lines


FORMATS: Final[dict[str, Callable[[Trace, Path], int]]] = {
    "oracleGeneral": to_oracle_general,
    "csv": to_csv,
}


def convert(trace: Trace, to: str, out: Path) -> int:
    """Write *trace* to *out* in format *to*; return the lines or requests written.

    Written beside it and renamed, so that a failure leaves what was there. What is no regular file
    (a pipe, /dev/stdout) is written to.

    :raises OperationError: the file cannot be written, or is the trace itself
    """
    try:
        if out.exists() and out.samefile(trace.path):
            raise OperationError(f"{out}: it is the trace itself")
        if out.exists() and not out.is_file():
            return FORMATS[to](trace, out)
        target = out.resolve()  # of a link, what it leads to
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            count = FORMATS[to](trace, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OperationError(f"{out}: {error.strerror or error}") from error
    return count
