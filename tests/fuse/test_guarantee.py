"""A file as large as the guaranteed room, in memory alone, filled over what was there before."""

from __future__ import annotations

import os
import random
import threading

from swapfs.testing.pages import page
from swapfs.units import KiB
from tests.fuse.instance import Start

PAGE = 4096
POOL_KIB = 8 * 1024
SIZE_KIB = POOL_KIB - 64 - 64 - 4  # one zspage of tables, the spare one, a page
SLOTS = SIZE_KIB * KiB // PAGE
WRITERS = 4


def _rewrite(fd: int, writer: int, model: dict[int, bytes], errors: list[OSError]) -> None:
    """Rewrite every slot of one writer, again and again, with less and less that compresses."""
    rng = random.Random(writer)
    slots = list(range(writer, SLOTS, WRITERS))
    try:
        for share in (0.2, 0.6, 0.9, 1.0):
            rng.shuffle(slots)
            for slot in slots:
                kind = "random" if rng.random() < share else rng.choice(("text", "heap"))
                model[slot] = page(kind, rng.randrange(1 << 20))
                os.pwrite(fd, model[slot], slot * PAGE)
    except OSError as error:
        errors.append(error)


def test_every_write_within_the_guarantee_succeeds(start: Start) -> None:
    instance = start(f"{SIZE_KIB}K", f"{POOL_KIB}K", None)
    fd = instance.open()
    model: dict[int, bytes] = {}
    errors: list[OSError] = []
    writers = [
        threading.Thread(target=_rewrite, args=(fd, number, model, errors))
        for number in range(WRITERS)
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert not errors
    assert len(model) == SLOTS
    for slot, data in model.items():
        assert os.pread(fd, PAGE, slot * PAGE) == data
    counters = instance.counters()
    assert counters["pool_full"] > 0
    assert counters["compacted_pages"] > 0
    assert counters["failed_write_no_room"] == 0
    assert counters["handler_errors"] == 0
    os.close(fd)
