"""The swap file without FUSE: every alignment, every tier, against a bytearray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from errno import EFBIG, EINVAL, EIO, ENOSPC, EOPNOTSUPP

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapfs.server import swap_file
from swapfs.server.swap_file import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from swapfs.testing.faulty import FaultyTier
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.units import MiB
from tests.unit.driven_file import PAGE, REQUEST_BYTES, SLOTS, File

SIZE = SLOTS * PAGE
SEGMENTS = 8
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


MakeFile = Callable[..., File]


@pytest.fixture
def make_file() -> MakeFile:
    return File


@pytest.fixture
def file(make_file: MakeFile) -> File:
    return make_file(tier=MemoryTier(SEGMENTS))


# ---- everything, against a bytearray ----

offsets = st.one_of(
    st.integers(0, SIZE - 1),
    st.sampled_from([n * PAGE + d for n in (0, 1, 7, 23) for d in (0, 1, 511, 512, 4095)]),
    st.integers(0, SLOTS - 1).map(lambda slot: slot * PAGE),
)
lengths = st.one_of(
    st.sampled_from([1, 511, 512, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 512]),
    st.integers(1, REQUEST_BYTES),
    st.integers(1, 16).map(lambda pages: pages * PAGE),
)
operations = st.one_of(
    st.tuples(st.just("write"), offsets, lengths, st.integers(0, 5)),
    st.tuples(st.just("read"), offsets, lengths, st.just(0)),
    st.tuples(
        st.just("discard"),
        offsets,
        st.integers(1, SIZE),
        st.sampled_from(sorted(swap_file.DISCARDS)),
    ),
    st.tuples(st.just("demote"), st.just(0), st.integers(1, SLOTS), st.just(0)),
)


def content(kind: int, length: int) -> bytes:
    """Return bytes to write: incompressible, compressible, zeros or one word again and again."""
    source = page("random", kind) if kind < 2 else page("heap", kind) if kind < 4 else b"abcdefgh"
    if kind == 5:
        return bytes(length)
    return (source * (length // len(source) + 1))[:length]


def play(file: File, script: list[tuple[str, int, int, int]]) -> None:
    """Do what *script* says to *file* and to a bytearray."""
    model = bytearray(file.size)
    for what, offset, length, extra in script:
        end = min(offset + length, file.size)
        if what == "write":
            data = content(extra, length)
            assert file.write(offset, data) == end - offset
            model[offset:end] = data[: end - offset]
        elif what == "read":
            assert file.read(offset, length) == model[offset:end]
        elif what == "discard":
            assert file.fallocate(extra, offset, length) == 0
            model[offset:end] = bytes(end - offset)
        elif file.harness.tier is not None:
            file.harness.down.demote(length)
    for slot in range(0, file.size // PAGE, 8):
        assert file.read(slot * PAGE, 8 * PAGE) == model[slot * PAGE : (slot + 8) * PAGE]
    file.harness.check()
    assert file.counter("handler_errors") == 0


@pytest.mark.parametrize("kind", ["memory", "file", "promote", "tiny pool"])
def test_any_sequence_is_a_bytearray(make_file: MakeFile, kind: str) -> None:
    kinds: dict[str, Callable[[], dict[str, object]]] = {
        "memory": dict,
        "file": lambda: {"tier": MemoryTier(SEGMENTS)},
        "promote": lambda: {"tier": MemoryTier(SEGMENTS), "promote": True},
        # one zspage for the table, one for all pages: the rest is written directly
        "tiny pool": lambda: {"tier": MemoryTier(SEGMENTS), "pool_bytes": 2 * 65536},
    }
    options = kinds[kind]

    @settings(max_examples=100)
    @given(st.lists(operations, max_size=12))
    def run(script: list[tuple[str, int, int, int]]) -> None:
        file = make_file(**options())
        try:
            play(file, script)
        finally:
            os.close(file.harness.region.fd)

    run()


@pytest.mark.parametrize("where", ["pool", "file"])
@pytest.mark.parametrize("start", [0, 1, 511, 512, PAGE - 1])
@pytest.mark.parametrize("length", [1, 512, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_alignment_matrix(file: File, where: str, start: int, length: int) -> None:
    """Every request over a known background: its bytes change, and no other."""
    background = b"".join(page("heap", number) for number in range(8))
    for what in ("read", "write", "discard"):
        file.write(0, background)
        if where == "file":
            assert file.harness.down.demote(8) > 0
        model = bytearray(background)
        offset = 2 * PAGE + start
        if what == "read":
            assert file.read(offset, length) == model[offset : offset + length]
        elif what == "write":
            data = content(0, length)
            assert file.write(offset, data) == length
            model[offset : offset + length] = data
        else:
            assert file.fallocate(PUNCH, offset, length) == 0
            model[offset : offset + length] = bytes(length)
        assert file.read(0, 8 * PAGE) == model, what
    file.harness.check()


# ---- the end of the file ----


def test_reads_end_at_the_end(file: File) -> None:
    assert file.read(SIZE - 100, PAGE) == bytes(100)
    assert file.read(SIZE, PAGE) == b""
    assert file.read(SIZE + 1, 1) == b""
    assert file.read(1 << 62, 1) == b""


def test_writes_end_at_the_end(file: File) -> None:
    assert file.write(SIZE, b"x") == -EFBIG
    assert file.write(1 << 62, b"x") == -EFBIG
    assert file.write(SIZE - PAGE, b"y" * 2 * PAGE) == PAGE
    assert file.write(SIZE - 10, b"z" * 20) == 10
    assert file.read(SIZE - 20, 20) == b"y" * 10 + b"z" * 10


# ---- discards ----


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 8, 16, 17, 18, 32, 64, 1 << 31])
def test_modes(file: File, mode: int) -> None:
    file.write(0, page("heap", 1))
    fine = {PUNCH, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE}
    if mode in fine:
        assert file.fallocate(mode, 0, PAGE) == 0
        assert file.read(0, PAGE) == bytes(PAGE)
    else:
        assert file.fallocate(mode, 0, PAGE) == -EOPNOTSUPP
        assert file.read(0, PAGE) == page("heap", 1)


def test_discards_are_clamped_and_counted(file: File) -> None:
    file.write(0, b"x" * 3 * PAGE)
    assert file.fallocate(PUNCH, SIZE, 1) == -EINVAL
    assert file.fallocate(PUNCH, PAGE, 1 << 62) == 0
    assert file.counter("discarded_pages") == 2
    assert file.counter("discard_requests") == 1
    assert file.read(0, 2 * PAGE) == b"x" * PAGE + bytes(PAGE)


def test_a_long_discard_leaves_the_loop(make_file: MakeFile) -> None:
    file = make_file(slots=swap_file.INLINE_DISCARD_SLOTS + 2, pool_bytes=4 * MiB)
    file.write(0, b"x" * PAGE)
    assert file.call("fallocate", PUNCH, 0, file.size - PAGE) is None
    assert file.workers.run() == 1
    assert file.tickets[0].answers == [0]
    assert file.read(0, PAGE) == bytes(PAGE)


def test_a_partial_discard_of_an_empty_slot_stores_nothing(file: File) -> None:
    assert file.fallocate(PUNCH, 10, 3 * PAGE) == 0
    assert file.harness.layer.table.state_counts()["empty"] == SLOTS
    assert file.counter("partial_requests") == 0


# ---- deferring ----


def test_what_is_in_memory_is_answered_at_once(file: File) -> None:
    file.write(0, page("heap", 1))
    file.write(PAGE, b"same" * 1024)
    file.read(0, 3 * PAGE)
    file.read(100, PAGE)
    file.write(100, b"part")
    file.fallocate(PUNCH, 0, SIZE)
    assert file.tickets == []


def test_a_slot_in_the_file_is_deferred(file: File) -> None:
    data = b"".join(page("heap", number) for number in range(4))
    file.write(0, data)
    assert file.harness.down.demote(4) == 4
    assert file.read(0, 4 * PAGE) == data
    assert file.read(PAGE + 7, 100) == data[PAGE + 7 : PAGE + 107]
    assert file.write(10, b"part") == 4
    assert file.fallocate(PUNCH, 5, 3) == 0
    assert len(file.tickets) == 3, "slot 0 came back to memory with the partial write"
    assert all(len(ticket.answers) == 1 for ticket in file.tickets)


def test_pages_before_a_slot_in_the_file_are_loaded_once(file: File) -> None:
    """The tags are looked at first, so no page is loaded in vain before the worker loads all."""
    data = b"".join(page("heap", number) for number in range(4))
    file.write(0, data)
    file.harness.write_direct(3, page("heap", 3))
    untouched = b"\xee" * 4 * PAGE
    out = bytearray(untouched)
    assert file.harness.layer.reader(file.size).read(0, 4 * PAGE, out) == -1
    assert out == untouched
    file.reply[: 4 * PAGE] = untouched
    assert file.call("read", 0, 4 * PAGE) is None
    assert file.reply[: 4 * PAGE] == untouched
    assert file.counter("read_pool_pages") == 0
    assert file.finish() == data
    assert file.counter("read_pool_pages") == 3
    assert file.counter("read_file_pages") == 1


# ---- what the latency of a deferred request is the latency of ----


def _slowest(file: File) -> list[str]:
    return [ticket.slowest for ticket in file.tickets]


def test_what_waited_for_the_file_says_so(make_file: MakeFile) -> None:
    file = make_file(tier=MemoryTier(SEGMENTS), pool_bytes=2 * 65536)
    slot = 0
    while file.harness.store(slot, page("random", slot)):
        slot += 1
    assert file.write(slot * PAGE, page("random", slot)) == PAGE
    assert file.read(slot * PAGE, PAGE) == page("random", slot)
    assert file.write(slot * PAGE + 5, b"part") == 4
    assert file.fallocate(PUNCH, slot * PAGE + 7, 5) == 0
    assert _slowest(file) == ["file"] * 4


def test_a_long_discard_waits_for_memory_only(make_file: MakeFile) -> None:
    slots = swap_file.INLINE_DISCARD_SLOTS + 2
    file = make_file(slots=slots, pool_bytes=4 * MiB, tier=MemoryTier(SEGMENTS))
    assert file.harness.write_direct(0, page("heap", 0)) == PAGE
    assert file.fallocate(PUNCH, 0, file.size) == 0
    assert _slowest(file) == ["memory"]


def test_a_stalled_write_waits_for_memory_only(make_file: MakeFile) -> None:
    file = make_file(
        pool_bytes=16 * 65536, slots=2048, tier=FaultyTier(MemoryTier(SEGMENTS), "full", 1, 1 << 30)
    )
    slot = _in_small_classes(file, pages=60)
    while not file.tickets:
        assert file.write(slot * PAGE, page("random", slot)) == PAGE
        slot += 1
    assert file.write(slot * PAGE + 5, page("random", 1)[:3900]) == 3900
    assert set(_slowest(file)) == {"memory"}


def test_a_deferred_read_that_needs_no_disk_any_more_waits_for_memory_only(file: File) -> None:
    file.write(0, page("heap", 0))
    assert file.harness.down.demote(1) == 1
    assert file.call("read", 0, PAGE) is None
    file.harness.store(0, page("heap", 1))
    assert file.finish() == page("heap", 1)
    assert _slowest(file) == ["memory"]


def test_writeback_hears_of_every_write(file: File) -> None:
    file.write(0, b"x" * PAGE)
    file.write(10, b"x")
    assert file.stored == 2


# ---- no room ----


def test_no_room_and_no_file(make_file: MakeFile) -> None:
    file = make_file(pool_bytes=2 * 65536)
    wrote = 0
    while file.write(wrote * PAGE, page("random", wrote)) == PAGE:
        wrote += 1
    assert 10 < wrote < SLOTS
    assert file.write(wrote * PAGE, page("random", 99)) == -ENOSPC
    assert file.write(wrote * PAGE + 5, page("random", 99)[:100]) in (100, -ENOSPC)
    assert file.counter("failed_write_no_room") >= 2
    for slot in range(wrote):
        assert file.read(slot * PAGE, PAGE) == page("random", slot)
    assert file.fallocate(PUNCH, 0, 4 * PAGE) == 0
    assert file.write(wrote * PAGE, page("random", 99)) == PAGE


def _in_small_classes(file: File, pages: int) -> int:
    """Fill the pool and keep so few pages of it that no zspage is free; return the next slot."""
    wrote = 0
    while file.harness.store(wrote, page("text", wrote)):
        wrote += 1
    for slot in range(wrote):
        if slot % (wrote // pages):
            file.harness.layer.discard_run(slot, 1)
    return wrote


def test_a_fragmented_pool_is_compacted_for_the_write_that_needs_it(make_file: MakeFile) -> None:
    file = make_file(pool_bytes=16 * 65536, slots=2048)
    next_slot = _in_small_classes(file, pages=60)
    data = b"".join(page("random", number) for number in range(16))
    wrote = 0
    while file.counter("pool_full") < 3:
        assert file.write((next_slot + wrote) * PAGE, data) == len(data)
        wrote += 16
    assert file.counter("compacted_pages") > 0
    assert file.counter("failed_write_no_room") == 0
    for slot in range(next_slot, next_slot + wrote, 16):
        assert file.read(slot * PAGE, len(data)) == data
    file.harness.check()


def test_a_partial_write_waits_for_compaction_too(make_file: MakeFile) -> None:
    file = make_file(pool_bytes=16 * 65536, slots=2048)
    slot = _in_small_classes(file, pages=60)
    while file.harness.store(slot, page("random", slot)):
        slot += 1
    data = page("random", 1)[:3900]
    assert file.write(slot * PAGE + 100, data) == len(data)
    assert file.read(slot * PAGE, PAGE) == bytes(100) + data + bytes(96)
    assert file.counter("compacted_pages") > 0
    file.harness.check()


def test_no_room_in_the_pool_goes_straight_down(make_file: MakeFile) -> None:
    file = make_file(pool_bytes=2 * 65536, tier=MemoryTier(SEGMENTS))
    pages = [page("random", number) for number in range(SLOTS)]
    for slot in range(0, SLOTS, 8):
        data = b"".join(pages[slot : slot + 8])
        assert file.write(slot * PAGE, data) == len(data)
    assert file.counter("write_direct_pages") > 0
    assert file.counter("pool_full") > 0
    for slot, wanted in enumerate(pages):
        assert file.read(slot * PAGE, PAGE) == wanted
    file.harness.check()


# ---- failures ----


def test_a_failed_read_is_short_and_then_eio(make_file: MakeFile) -> None:
    file = make_file(tier=FaultyTier(MemoryTier(SEGMENTS), "read_error", 1, 1 << 30))
    good, bad = page("heap", 1), page("heap", 2)
    file.write(PAGE, bad)
    assert file.harness.down.demote(1) == 1
    file.write(0, good)
    assert file.read(0, 2 * PAGE) == good, "short: the kernel asks again from the bad slot"
    assert file.read(PAGE, PAGE) == -EIO
    assert file.read(PAGE + 5, 5) == -EIO
    assert file.write(PAGE + 5, b"x") == -EIO
    assert file.fallocate(PUNCH, PAGE + 5, 5) == -EIO
    assert file.read(0, PAGE) == good
    assert file.counter("failed_read_io") > 0
    assert file.write(PAGE, good) == PAGE
    assert file.read(PAGE, PAGE) == good


def test_a_damaged_page_in_memory_is_eio(file: File, caplog: pytest.LogCaptureFixture) -> None:
    file.write(0, page("heap", 1))
    file.write(PAGE, page("heap", 2))
    word = file.harness.layer.table.get(0)
    blob = file.harness.layer.blob(word)
    blob[:] = b"\xff" * len(blob)
    assert file.read(0, PAGE) == -EIO
    assert file.write(5, b"x") == -EIO
    assert file.read(PAGE, PAGE) == page("heap", 2)
    assert file.counter("failed_read_checksum") == 2
    assert file.counter("handler_errors") == 0
    assert "slot 0" in caplog.text


@pytest.mark.parametrize("with_file", [False, True])
def test_a_damaged_page_in_mid_run_ends_the_answer(make_file: MakeFile, with_file: bool) -> None:
    file = make_file(tier=MemoryTier(SEGMENTS) if with_file else None)
    pages = [page("heap", number) for number in range(4)]
    file.write(0, b"".join(pages))
    blob = file.harness.layer.blob(file.harness.layer.table.get(2))
    blob[:] = b"\xff" * len(blob)
    assert file.read(0, 4 * PAGE) == pages[0] + pages[1], "the kernel asks again from slot 2"
    assert file.read(100, 4 * PAGE - 100) == (pages[0] + pages[1])[100:]
    assert file.read(2 * PAGE, 2 * PAGE) == -EIO
    assert file.read(3 * PAGE, PAGE) == pages[3]
    assert file.counter("handler_errors") == 0


def test_a_read_that_is_deferred_is_counted_once(make_file: MakeFile) -> None:
    file = make_file(tier=MemoryTier(SEGMENTS))
    file.write(2 * PAGE, page("heap", 1))
    assert file.harness.down.demote(1) == 1
    file.write(0, page("heap", 2))
    assert len(bytes(file.read(0, 4 * PAGE))) == 4 * PAGE
    counts = {kind: file.counter(f"read_{kind}_pages") for kind in ("pool", "empty", "file")}
    assert counts == {"pool": 1, "empty": 2, "file": 1}


@pytest.mark.parametrize("handler", ["read", "write", "fallocate"])
def test_a_bug_is_eio_logged_and_counted(
    file: File,
    handler: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def planted(*_: object, **__: object) -> int:
        raise ZeroDivisionError("planted")

    for name in ("load_run", "store_run", "discard_run"):
        monkeypatch.setattr(file.harness.layer, name, planted)
    call: dict[str, Callable[[], object]] = {
        "read": lambda: file.read(0, PAGE),
        "write": lambda: file.write(0, b"x" * PAGE),
        "fallocate": lambda: file.fallocate(PUNCH, 0, PAGE),
    }
    with caplog.at_level(logging.ERROR):
        assert call[handler]() == -EIO
    assert "ZeroDivisionError: planted" in caplog.text
    assert file.counter("handler_errors") == 1
