"""Bytes written are the bytes read, whatever the offset, the length and the tier."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from swapfs.testing.pages import mixed_pages
from tests.fuse.instance import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_INSERT_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    Instance,
    Start,
    check,
    errno_of,
    fallocate,
    punch,
)

PAGE = 4096
SIZE = 64 << 20
GiB = 1 << 30
DISCARDS = (
    FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
    FALLOC_ZERO_RANGE,
    FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
)


@pytest.fixture(scope="module")
def instance(start_module: Start) -> Instance:
    return start_module("64M", "16M", "128M")


@pytest.fixture
def fd(instance: Instance) -> Iterator[int]:
    fd = instance.open()
    punch(fd, 0, SIZE)
    yield fd
    os.close(fd)


def filled(fd: int, pages: int, seed: int = 1) -> bytearray:
    """Write *pages* pages at the start; return a model of them."""
    model = bytearray(b"".join(mixed_pages(seed, pages)))
    assert os.pwrite(fd, model, 0) == len(model)
    return model


def test_never_written_parts_read_as_zeros(fd: int) -> None:
    os.pwrite(fd, b"x" * PAGE, 8 * PAGE)
    assert os.pread(fd, 24 * PAGE, 0) == bytes(8 * PAGE) + b"x" * PAGE + bytes(15 * PAGE)
    assert os.pread(fd, 1 << 20, SIZE // 2) == bytes(1 << 20)


@pytest.mark.parametrize("demote", [False, True], ids=["memory", "file"])
def test_any_offset_and_length(instance: Instance, fd: int, demote: bool) -> None:
    """Edges around pages, sectors and requests, against a bytearray."""
    rng = random.Random(7)
    model = filled(fd, 320)
    edges = [0, 1, 511, 512, 513, PAGE - 1, PAGE, PAGE + 1, 8 * PAGE, 9 * PAGE + 512]
    for round_number in range(60):
        offset = rng.choice(edges) + rng.randrange(200) * rng.choice([1, 512, PAGE])
        length = rng.choice([1, 3, 512, 1024, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 512, 40 * PAGE])
        data = rng.choice([rng.randbytes(length), bytes(length), b"\x5a" * length])
        if demote and round_number % 5 == 0:
            assert instance.demote(100) > 0
        assert os.pwrite(fd, data, offset) == length
        model[offset : offset + length] = data
        start = max(0, offset - rng.choice([0, 1, 512, PAGE]))
        span = length + rng.choice([0, 1, 512, 2 * PAGE])
        assert os.pread(fd, span, start) == model[start : start + span], (offset, length)
    assert os.pread(fd, len(model), 0) == model
    assert (instance.status()["slots"]["file"] > 0) == demote


def test_requests_larger_than_one_fuse_request(fd: int) -> None:
    data = b"".join(mixed_pages(3, 1000)) + b"tail"
    assert os.pwrite(fd, data, 100) == len(data)
    assert os.pread(fd, len(data), 100) == data


@pytest.mark.parametrize("mode", DISCARDS)
def test_whole_pages_are_freed(instance: Instance, fd: int, mode: int) -> None:
    model = filled(fd, 64)
    empty = instance.status()["slots"]["empty"]
    fallocate(fd, mode, 16 * PAGE, 32 * PAGE)
    model[16 * PAGE : 48 * PAGE] = bytes(32 * PAGE)
    assert os.pread(fd, len(model), 0) == model
    assert instance.status()["slots"]["empty"] == empty + 32


@pytest.mark.parametrize("demote", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("mode", DISCARDS)
@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, 1),
        (100, 200),
        (512, 512),
        (0, PAGE - 1),
        (PAGE - 512, 1024),
        (512, PAGE),
        (1, 3 * PAGE - 2),
        (PAGE - 1, PAGE + 2),
        (512, 6 * PAGE),
    ],
)
def test_partial_discards_zero_their_range_and_no_more(
    instance: Instance, fd: int, mode: int, start: int, length: int, demote: bool
) -> None:
    model = filled(fd, 8)
    if demote:
        instance.demote(8)
    empty = instance.status()["slots"]["empty"]
    whole = max(0, (start + length) // PAGE - -(-start // PAGE))
    fallocate(fd, mode, start, length)
    model[start : start + length] = bytes(length)
    assert os.pread(fd, len(model), 0) == model
    assert instance.status()["slots"]["empty"] == empty + whole, "only whole slots are freed"


def test_a_partial_discard_of_nothing_stores_nothing(instance: Instance, fd: int) -> None:
    empty = instance.status()["slots"]["empty"]
    punch(fd, 100, 2 * PAGE)
    assert instance.status()["slots"]["empty"] == empty


def test_discards_beyond_the_end_are_clamped(fd: int) -> None:
    os.pwrite(fd, b"x" * 2 * PAGE, SIZE - 2 * PAGE)
    punch(fd, SIZE - PAGE, 10 * PAGE)
    assert os.pread(fd, 4 * PAGE, SIZE - 2 * PAGE) == b"x" * PAGE + bytes(PAGE)
    assert errno_of(punch, fd, SIZE, PAGE) == "EINVAL"


@pytest.mark.parametrize(
    "mode", [0, FALLOC_KEEP_SIZE, FALLOC_COLLAPSE_RANGE, FALLOC_INSERT_RANGE, 0x40, 0x80]
)
def test_other_modes_are_not_supported(fd: int, mode: int) -> None:
    """The kernel refuses some of them itself: a hole without KEEP_SIZE never reaches a server."""
    model = filled(fd, 4)
    assert errno_of(fallocate, fd, mode, PAGE, PAGE) == "ENOTSUP"
    assert os.pread(fd, len(model), 0) == model


def test_a_punch_of_a_huge_file_costs_what_it_holds(start: Start) -> None:
    instance = start("1T", "32M", None, "--overcommit", 100000)
    fd = instance.open()
    try:
        for offset in range(0, 1 << 40, 64 * GiB):
            os.pwrite(fd, b"x" * PAGE, offset + GiB)
        began_s = time.monotonic()
        punch(fd, 0, 256 * GiB)
        took_s = time.monotonic() - began_s
        assert instance.status()["slots"]["compressed"] + instance.status()["slots"]["same"] == 12
        began_all_s = time.monotonic()
        punch(fd, 0, 1 << 40)
        took_s = max(took_s, time.monotonic() - began_all_s)
        assert took_s < 1.0
        assert instance.status()["clusters"] == 0
    finally:
        os.close(fd)


# ---- through a loop device, as mkswap, blkid and dd do ----


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_mkswap_and_blkid(start: Start, sector_bytes: int) -> None:
    instance = start("64M", "96M")
    loop = instance.attach_loop(sector_bytes)
    check("mkswap", "-L", "swapfs", loop)
    assert 'TYPE="swap"' in check("blkid", "-p", loop)
    assert 'LABEL="swapfs"' in check("blkid", "-p", loop)
    assert instance.status()["counters"]["handler_errors"] == 0


def test_512_byte_sectors(start: Start) -> None:
    instance = start("64M", "16M", "128M")
    loop = instance.attach_loop(512)
    model = bytearray(b"".join(mixed_pages(5, 64)))
    source = instance.directory / "source"
    source.write_bytes(model)
    check("dd", f"if={source}", f"of={loop}", "bs=512", "oflag=direct", "conv=notrunc")
    patch = instance.directory / "patch"
    patch.write_bytes(os.urandom(512 * 7))
    check("dd", f"if={patch}", f"of={loop}", "bs=512", "seek=13", "oflag=direct", "conv=notrunc")
    model[13 * 512 : 20 * 512] = patch.read_bytes()
    check("blkdiscard", "--offset", 512 * 33, "--length", 512 * 10, loop)
    model[33 * 512 : 43 * 512] = bytes(512 * 10)
    copy = instance.directory / "copy"
    for block in (512, 1536, 65536):
        check("dd", f"if={loop}", f"of={copy}", f"bs={block}", "iflag=direct,count_bytes",
              f"count={len(model)}")  # fmt: skip
        assert copy.read_bytes()[: len(model)] == model, block
    assert instance.counters()["partial_requests"] > 0


def test_loop_offers_discard_and_zeroing(start: Start) -> None:
    instance = start("64M", "96M")
    loop = instance.attach_loop()
    check("dd", "if=/dev/urandom", f"of={loop}", "bs=1M", "count=16", "oflag=direct")
    assert instance.status()["slots"]["raw"] == 4096
    check("blkdiscard", "--offset", 0, "--length", 8 << 20, loop)
    assert instance.status()["slots"]["raw"] == 2048
    check("blkdiscard", "--zeroout", "--offset", 8 << 20, "--length", 8 << 20, loop)
    slots = instance.status()["slots"]
    assert (slots["raw"], slots["empty"]) == (0, SIZE // PAGE)
    assert not any(instance.swap.read_bytes()[: 16 << 20])
