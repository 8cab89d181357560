"""Recompression: lz4 to zstd and back, while anybody reads and writes."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from swapfs.core._core import Decoder, Reader, Recoder, is_intact, sign
from swapfs.testing.blobs import aligned
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.tiers.base import Staging
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.blob_writer import BATCH_BYTES
from swapfs.vlayer.codec import compress
from swapfs.vlayer.entry import (
    CODEC_BITS,
    CODEC_KEPT,
    HEAT_MASK,
    MOVING,
    Codec,
    blob_codec,
    blob_length,
    encode_pool,
    pool_place,
)
from swapfs.vlayer.layer import SlotDamaged
from swapfs.vlayer.mover import Mover
from swapfs.vlayer.recompress import WALK_EVERY_S
from tests.unit import events

SLOTS = 2 * CLUSTER_SLOTS
HEAP = [page("heap", seed) for seed in range(80)]
TEXT = [page("text", seed) for seed in range(80)]
RAW = [page("random", seed) for seed in range(80)]


def codec_of(harness: Harness, slot: int) -> int:
    return blob_codec(harness.layer.table.get(slot)) & CODEC_BITS


def harness_of(*pages: bytes) -> Harness:
    harness = Harness(SLOTS, 2 * MiB)
    assert harness.store(0, *pages) == len(pages)
    return harness


def test_cold_pages_become_smaller_and_read_the_same() -> None:
    harness = harness_of(*HEAP, *TEXT)
    before = harness.layer.pool.payload_bytes
    assert harness.recompressor.walk() == 0, "a new page is warm"
    assert harness.recompressor.walk() == len(HEAP) + len(TEXT)
    harness.check()
    assert {codec_of(harness, slot) for slot in range(160)} == {Codec.ZSTD}
    assert harness.layer.table.state_counts()["recompressed"] == 160
    saved = before - harness.layer.pool.payload_bytes
    assert saved == harness.counter("recompress_saved_bytes") > before // 4
    assert harness.counter("recompressed_pages") == 160
    assert harness.load(0, 160) == b"".join([*HEAP, *TEXT])
    assert harness.recompress() == 0, "they are what they should be"


def test_the_session_loop_reads_zstd_without_python() -> None:
    harness = harness_of(*HEAP)
    harness.recompress()
    reader: Reader = harness.layer.reader(SLOTS * PAGE_SIZE)
    out = bytearray(len(HEAP) * PAGE_SIZE)
    assert reader.read(0, len(out), out) == len(out)
    assert out == b"".join(HEAP)


def test_what_does_not_get_smaller_is_tried_once() -> None:
    harness = harness_of(*RAW)
    assert harness.recompress() == 0
    assert harness.counter("recompress_refused_pages") == len(RAW)
    assert blob_codec(harness.layer.table.get(3)) == Codec.RAW | CODEC_KEPT
    assert harness.layer.table.state_counts()["raw"] == len(RAW)
    harness.recompress()
    assert harness.counter("recompress_refused_pages") == len(RAW)
    assert harness.load(0, len(RAW)) == b"".join(RAW)
    harness.check()


def test_pages_that_are_read_again_and_again_return_to_lz4() -> None:
    harness = harness_of(*HEAP)
    harness.recompress()
    for _ in range(3):
        harness.load(0, 10)
    harness.load(10, 10)
    assert harness.recompressor.walk() == 10
    assert [codec_of(harness, slot) for slot in (0, 9, 10)] == [Codec.LZ4, Codec.LZ4, Codec.ZSTD]
    assert harness.counter("recompress_returned_pages") == 10
    assert harness.load(0, len(HEAP)) == b"".join(HEAP)
    harness.check()
    assert harness.recompress() >= 10, "and they become cold again"


def test_nothing_is_recompressed_below_the_watermark() -> None:
    harness = harness_of(*HEAP)
    harness.recompressor.start_bytes = MiB
    assert harness.recompress() == 0
    harness.recompressor.start_bytes = 0
    assert harness.recompress() == len(HEAP)


# ---- what happens while the blobs are away ----


def _rewrite_alike(harness: Harness) -> bytes:
    """Twice, so that the same place holds another page of the same length, and cold again."""
    word = harness.layer.table.get(5)
    harness.store(5, RAW[0])
    harness.store(5, HEAP[5])
    harness.layer.table.mark(5, HEAT_MASK, on=False)
    assert harness.layer.table.get(5) == word & ~MOVING
    blob = harness.layer.blob(word)
    blob[:], other = _other_blob(word, bytes(blob))
    return other


def _other_blob(word: int, blob: bytes) -> tuple[bytes, bytes]:
    """Return a blob that passes for *blob*, of *word*, and its page, which is another."""
    for at, bits in itertools.product(range(30, len(blob)), range(1, 256)):
        out = bytearray(PAGE_SIZE)
        changed = blob[:at] + bytes([blob[at] ^ bits]) + blob[at + 1 :]
        if not is_intact(word, changed):
            continue
        if Decoder().unpack(changed, Codec.LZ4, out, 0) and out != HEAP[5]:
            return changed, bytes(out)
    raise AssertionError


def _rewrite_raw(harness: Harness) -> bytes:
    return events.rewrite(harness, RAW[40])


def _read(harness: Harness) -> bytes:
    return harness.load(5)


def _squeeze(harness: Harness) -> bytes:
    assert harness.stalled.compactor.squeeze(1000)
    return HEAP[5]


def _crash(harness: Harness) -> bytes:
    harness.layer.rebuild()
    return HEAP[5]


@pytest.mark.parametrize(
    "meanwhile",
    [
        *(events.rewrite, _rewrite_raw, _rewrite_alike, events.discard),
        *(_read, _squeeze, _crash),
    ],
    ids=lambda meanwhile: meanwhile.__name__.lstrip("_"),
)
def test_a_slot_that_changes_meanwhile_keeps_what_it_has(
    meanwhile: Callable[[Harness], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = harness_of(*HEAP[:10])
    harness.recompressor.walk()
    expected: list[bytes] = []

    class Interrupted:
        """Lets others come while the blobs are turned."""

        def __init__(self, recoder: Recoder) -> None:
            self._recoder = recoder
            self.collect = recoder.collect

        def recode(self, *args: object) -> None:
            self._recoder.recode(*args)  # type: ignore[arg-type]

            if not expected:
                expected.append(meanwhile(harness))

    recompressor = harness.recompressor
    monkeypatch.setattr(recompressor, "recoder", Interrupted(recompressor.recoder))
    harness.recompressor.walk()
    assert expected
    harness.check()
    assert harness.load(5) == expected[0]
    assert codec_of(harness, 5) in (Codec.RAW, Codec.LZ4)
    others = [slot for slot in range(10) if slot != 5]
    assert all(harness.load(slot) == HEAP[slot] for slot in others)


@pytest.mark.parametrize("first", ["recompressor", "mover"])
def test_two_movers_never_take_one_slot_for_their_own(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOVING proves that a word has not changed only to the one mover that has the slot.

    The slot is rewritten into the same place, and looks the same; then the other copies it too.
    """
    harness = Harness(SLOTS, 2 * MiB, MemoryTier(8))
    harness.store(0, *HEAP[:10])
    harness.recompressor.walk()
    table, layer, expected = harness.layer.table, harness.layer, []
    mover = Mover(layer, harness.down.writer, Staging(aligned(BATCH_BYTES)))
    assert mover.begin(harness.stack)

    def copy() -> None:
        word = table.get(5)
        with layer.lock:
            mover.copy(5, word, blob_codec(word), layer.blob(word))

    def meanwhile(*args: object) -> None:
        recode(*args)  # type: ignore[arg-type]
        if first == "recompressor":
            expected.append(_rewrite_alike(harness))
            copy()
        else:
            mover.finish("demote")

    recode = harness.recompressor.recoder.recode
    between = SimpleNamespace(collect=harness.recompressor.recoder.collect, recode=meanwhile)
    monkeypatch.setattr(harness.recompressor, "recoder", between)
    if first == "mover":
        copy()
        expected.append(_rewrite_alike(harness))
    harness.recompressor.walk()
    assert harness.load(5) == expected[0]
    if first == "recompressor":
        mover.finish("demote")
    assert harness.load(5) == expected[0]
    assert not table.get(5) & MOVING
    monkeypatch.undo()
    table.mark(5, HEAT_MASK, on=False)
    harness.recompressor.walk()
    assert harness.load(5) == expected[0]
    assert codec_of(harness, 5) == Codec.ZSTD, "it is in nobody's hands any more"
    harness.check()


def _fail(*_: object) -> None:
    raise MemoryError


def test_a_failure_leaves_every_slot_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = harness_of(*HEAP)
    harness.recompressor.walk()
    failing = SimpleNamespace(collect=harness.recompressor.recoder.collect, recode=_fail)
    monkeypatch.setattr(harness.recompressor, "recoder", failing)
    with pytest.raises(MemoryError):
        harness.recompressor.walk()
    monkeypatch.undo()
    harness.check()
    assert harness.load(0, len(HEAP)) == b"".join(HEAP)
    assert harness.recompress() == len(HEAP)


def test_a_damaged_blob_is_lost_and_not_made_good() -> None:
    harness = harness_of(*HEAP[:4])
    word = harness.layer.table.get(2)
    harness.region.arena[pool_place(word) : pool_place(word) + 40] = b"\xff" * 40
    harness.recompress()
    with pytest.raises(SlotDamaged, match="lost"):
        harness.load(2)
    assert harness.counter("lost_pages") == 1
    assert harness.load(3) == HEAP[3]
    harness.check()


def test_a_full_pool_stays_as_it_is_or_gets_room() -> None:
    harness = Harness(SLOTS, 8 * 64 * 1024)
    slot = 0
    while harness.store(slot, RAW[slot % 80] if slot % 2 else HEAP[slot % 80]):
        slot += 1
    harness.recompress()
    harness.check()
    for at in range(slot):
        assert harness.load(at) == (RAW[at % 80] if at % 2 else HEAP[at % 80])


def test_a_new_server_reads_what_the_old_one_recompressed() -> None:
    harness = harness_of(*HEAP, *RAW[:20])
    harness.recompress()
    after = Harness(SLOTS, 2 * MiB, region=harness.region)
    after.check()
    assert after.load(0, 100) == b"".join([*HEAP, *RAW[:20]])
    assert after.layer.table.state_counts() == harness.layer.table.state_counts()


# ---- on the way down ----


def test_what_goes_down_goes_in_zstd() -> None:
    pages = [*HEAP, *TEXT[:40], *RAW[:10]]
    written = {}
    for recompress in (False, True):
        harness = Harness(SLOTS, 2 * MiB, MemoryTier(4), recompress=recompress)
        harness.store(0, *pages)
        assert harness.down.demote(len(pages)) == len(pages)
        harness.write_direct(200, *TEXT[:8])
        harness.check()
        assert harness.load(0, len(pages)) == b"".join(pages)
        assert harness.load(200, 8) == b"".join(TEXT[:8])
        written[recompress] = harness.counter("demoted_payload_bytes")
        assert harness.counter("recompressed_down_pages") == (128 if recompress else 0)
        if recompress:
            assert {codec_of(harness, slot) for slot in (0, 100, 200)} == {Codec.ZSTD}
    assert written[True] < written[False] * 0.9


def test_a_damaged_blob_does_not_go_down() -> None:
    harness = Harness(SLOTS, 2 * MiB, MemoryTier(4), recompress=True)
    harness.store(0, *HEAP[:10])
    word = harness.layer.table.get(4)
    harness.region.arena[pool_place(word) : pool_place(word) + 40] = b"\xff" * 40
    assert harness.down.demote(10) == 9
    harness.check()
    assert harness.load(5) == HEAP[5]
    with pytest.raises(SlotDamaged, match="lost"):
        harness.load(4)


def test_a_page_that_comes_back_is_zstd_and_becomes_lz4_when_it_is_read_often() -> None:
    harness = Harness(SLOTS, 2 * MiB, MemoryTier(4), recompress=True, promote=True)
    harness.store(0, *HEAP[:10])
    harness.down.demote(10)
    for _ in range(5):
        assert harness.load(0) == HEAP[0]
    assert codec_of(harness, 0) == Codec.ZSTD
    harness.recompressor.walk()
    assert codec_of(harness, 0) == Codec.LZ4
    assert harness.load(0) == HEAP[0]


# ---- when ----


def test_a_walk_is_due_when_there_is_something_new_or_after_a_while() -> None:
    harness = harness_of(*HEAP)
    recompressor = harness.recompressor
    assert recompressor.is_due()
    recompressor.walk()
    assert not recompressor.is_due()
    harness.store(100, *TEXT[:8])
    assert not recompressor.is_due()
    harness.store(108, *TEXT[8:20])
    assert recompressor.is_due(), "an eighth is new"
    recompressor.walk()
    harness.now_s += WALK_EVERY_S
    assert recompressor.is_due()
    harness.layer.discard_run(0, SLOTS)
    assert not recompressor.is_due()


# ---- the C function ----


def test_recode_says_what_became_of_each_blob() -> None:
    recoder = Recoder(3, True)
    view = memoryview(bytearray(4 * PAGE_SIZE))
    blobs = [compress(memoryview(data)) for data in (HEAP[0], RAW[0], HEAP[1])]
    starts, drafts = array("I", [0, PAGE_SIZE, 2 * PAGE_SIZE]), array("Q")
    for start, (blob, codec) in zip(starts, blobs, strict=True):
        view[start : start + len(blob)] = blob
        drafts.append(sign(encode_pool(0, len(blob), codec), blob))
    drafts[2] = encode_pool(0, blob_length(drafts[2]) - 1, Codec.LZ4)  # cut short
    recoder.recode(view, starts, drafts, 3, True, 0)
    assert blob_codec(drafts[0]) == Codec.ZSTD
    assert blob_length(drafts[0]) < len(blobs[0][0])
    assert blob_codec(drafts[1]) == Codec.RAW | CODEC_KEPT
    assert drafts[2] == 3, "lost"
    recoder.recode(view, starts, drafts, 1, False, 4000)
    out = bytearray(PAGE_SIZE)
    assert blob_codec(drafts[0]) == Codec.LZ4
    assert Decoder().unpack(view[: blob_length(drafts[0])], Codec.LZ4, out, 0)
    assert out == HEAP[0]


@pytest.mark.parametrize(
    ("start", "count", "longest"),
    [
        (4 * PAGE_SIZE - 99, 1, 0),
        (4 * PAGE_SIZE - 4000, 1, 4001),
        (0, 2, 0),
        (0, -1, 0),
        (0, 1, -1),
    ],
)
def test_recode_stays_inside_its_buffers(start: int, count: int, longest: int) -> None:
    view = memoryview(bytearray(4 * PAGE_SIZE))
    drafts = array("Q", [encode_pool(0, 100, Codec.LZ4)])
    with pytest.raises(ValueError, match="not inside"):
        Recoder(1, False).recode(view, array("I", [start]), drafts, count, True, longest)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root")
def test_a_thread_that_may_not_rise_again_does_not_sink() -> None:
    """It would hold the layer's lock below everybody else."""
    look = (
        "import os; from array import array; from swapfs.core._core import Recoder;"
        "was, recoder = os.sched_getscheduler(0), Recoder(3, True);"
        "recoder.recode(bytearray(4096), array('I', [0]), array('Q', [0]), 0, True, 0);"
        "assert os.sched_getscheduler(0) == was != os.SCHED_IDLE"
    )
    drop = ("setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice")
    for prefix in ((), drop):
        subprocess.run([*prefix, sys.executable, "-c", look], check=True, timeout=60)


@pytest.mark.parametrize("level", [1, 3, 9, 19])
def test_every_level_makes_pages_that_can_be_read(level: int) -> None:
    recoder = Recoder(level, False)
    for source in (HEAP[0], TEXT[0], page("numbers", 1)):
        blob, codec = compress(memoryview(source))
        view = memoryview(bytearray(PAGE_SIZE))
        view[: len(blob)] = blob
        drafts = array("Q", [sign(encode_pool(0, len(blob), codec), blob)])
        out = bytearray(PAGE_SIZE)
        recoder.recode(view, array("I", [0]), drafts, 1, True, 0)
        made = view[: blob_length(drafts[0])]
        assert Decoder().unpack(made, blob_codec(drafts[0]), out, 0)
        assert out == source
        assert not Decoder().unpack(made[:-1], blob_codec(drafts[0]), out, 0)
