"""Parts of pages against what else is acknowledged while they are under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from swapfs.core._core import is_intact
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.testing.slow import SlowTier
from swapfs.vlayer.entry import FLAGS, Backing, backing, is_raw
from tests.unit.driven_file import PAGE, File

SLOTS = 64
POOL_BYTES = 2 * 65536
"""One zspage for the table, one for pages: it is full with 16 of them."""
SLOT = 40
OFFSET = SLOT * PAGE
PART = b"P" * 512
AT = 1024


@pytest.fixture
def tier() -> Iterator[SlowTier]:
    slow = SlowTier(MemoryTier(8))
    yield slow
    slow.write_gate.open()
    slow.read_gate.open()


def _fill(file: File) -> None:
    slot = 0
    while file.harness.store(slot, page("random", slot)):
        slot += 1
    assert slot < SLOT


def _same(file: File) -> bytes:
    data = b"same" * 1024
    assert file.harness.store(SLOT, data)
    return data


def _raw(file: File) -> bytes:
    data = page("random", 99)
    assert file.harness.store(SLOT, data)
    return data


def _below(file: File) -> bytes:
    data = page("random", 98)
    assert file.harness.write_direct(SLOT, data) == PAGE
    assert file.harness.backing(SLOT) == Backing.BELOW
    return data


def _empty(file: File) -> bytes:
    file.harness.layer.discard_run(SLOT, 1)
    return bytes(PAGE)


KINDS = [_empty, _same, _raw, _below]


def _patched(data: bytes, part: bytes = PART, at: int = AT) -> bytes:
    return data[:at] + part + data[at + len(part) :]


class Deferred:
    """A part that was deferred, and is served in a thread of its own."""

    def __init__(self, file: File, part: bytes = PART, at: int = AT) -> None:
        self._file = file
        file.request[: len(part)] = part
        assert file.call("write", OFFSET + at, len(part)) is None
        self.answer: int | bytes | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.answer = self._file.finish()

    def end(self) -> int | bytes | None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "it never ends"
        return self.answer


def _full(file: File) -> bytes:
    """A full write that needs no place in the full pool, acknowledged at once."""
    data = b"full" * 1024
    file.request[:PAGE] = data
    assert file.call("write", OFFSET, PAGE) == PAGE
    return data


def _discard(file: File) -> bytes:
    assert file.call("fallocate", 3, OFFSET, PAGE) == 0
    return bytes(PAGE)


def _full_and_again(file: File) -> bytes:
    """Two full writes: the second finds the place that the slot had before the first.

    Where that was a raw page the second has the same check too: the words are the same.
    """
    word = file.harness.layer.table.get(SLOT)
    file.harness.layer.discard_run(0, 2)
    first, second = page("random", 71), page("random", 72)
    if backing(word) is Backing.POOL and is_raw(word):
        second = _of_the_same_check(word, bytearray(second))
    for data in (first, second):
        file.request[:PAGE] = data
        assert file.call("write", OFFSET, PAGE) == PAGE
    return second


def _of_the_same_check(word: int, data: bytearray) -> bytes:
    """Return *data* with another end, so that *word* takes it for its page."""
    for number in range(1 << 22):  # the check has 17 bits
        data[-4:] = number.to_bytes(4, "little")
        if is_intact(word, data):
            return bytes(data)
    raise AssertionError("no such page")


@pytest.mark.parametrize("meanwhile", [_full, _discard, _full_and_again])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_undoes_nothing_that_was_acknowledged_meanwhile(
    tier: SlowTier, kind: Callable[[File], bytes], meanwhile: Callable[[File], bytes]
) -> None:
    """Its page must go to the file, and waits for the disk while the slot changes."""
    file = File(tier=tier, pool_bytes=POOL_BYTES, slots=SLOTS)
    kind(file)
    _fill(file)
    tier.write_gate.shut()
    part = Deferred(file)
    tier.write_gate.wait_for_arrival()
    word = file.harness.layer.table.get(SLOT)
    now = meanwhile(file)
    if kind is _raw and meanwhile is _full_and_again:
        again = file.harness.layer.table.get(SLOT)
        assert not (again ^ word) & ~FLAGS, "the same place for other bytes"
    tier.write_gate.open()
    assert part.end() == len(PART)
    assert file.read(OFFSET, PAGE) == _patched(now)
    file.harness.check()


@pytest.mark.parametrize("kind", KINDS)
def test_two_parts_of_a_page_are_both_there(tier: SlowTier, kind: Callable[[File], bytes]) -> None:
    file = File(tier=tier, pool_bytes=POOL_BYTES, slots=SLOTS)
    old = kind(file)
    _fill(file)
    tier.write_gate.shut()
    first = Deferred(file)
    tier.write_gate.wait_for_arrival()
    file.harness.layer.discard_run(0, 4)  # now there is room
    file.request[:512] = b"S" * 512
    second = file.call("write", OFFSET + 2048, 512)
    tier.write_gate.open()
    assert first.end() == len(PART)
    if second is None:
        assert file.finish() == 512
    assert file.read(OFFSET, PAGE) == _patched(_patched(old), b"S" * 512, 2048)
    file.harness.check()


@pytest.mark.parametrize("meanwhile", [_full, _discard])
def test_a_page_that_changes_while_it_is_read_for_a_part(
    tier: SlowTier, meanwhile: Callable[[File], bytes]
) -> None:
    file = File(tier=tier, pool_bytes=POOL_BYTES, slots=SLOTS)
    _below(file)
    tier.read_gate.shut()
    part = Deferred(file)
    tier.read_gate.wait_for_arrival()
    _fill(file)
    now = meanwhile(file)
    tier.read_gate.open()
    assert part.end() == len(PART)
    assert file.read(OFFSET, PAGE) == _patched(now)
    file.harness.check()


def test_a_page_that_changes_while_room_is_made_for_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = File(pool_bytes=16 * 65536, slots=2048)
    assert file.harness.store(SLOT, b"old." * 1024)
    wrote = 100
    while file.harness.store(wrote, page("text", wrote)):
        wrote += 1
    for slot in range(100, wrote, 2):  # in small classes, so that no zspage is free
        file.harness.layer.discard_run(slot, 1)
    while file.harness.store(wrote, page("random", wrote)):
        wrote += 1
    data, full = page("random", 1)[:3900], b"full" * 1024
    make_room = file.harness.stalled.compactor.make_room

    def hooked(pages: int, *, look: bool = True) -> bool:
        assert file.harness.store(SLOT, full)
        return make_room(pages, look=look)

    monkeypatch.setattr(file.harness.stalled.compactor, "make_room", hooked)
    assert file.write(OFFSET + 100, data) == len(data)
    assert file.read(OFFSET, PAGE) == full[:100] + data + full[4000:]
    file.harness.check()
