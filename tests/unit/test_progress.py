"""How long those who wait do so."""

from __future__ import annotations

import queue
import threading

from swapfs.vlayer.progress import Progress

WAIT_S = 0.02


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_nothing_under_way_is_not_waited_for() -> None:
    progress = Progress(Clock(), 1e9)
    mark = progress.mark()
    assert progress.quiet_since(mark)
    assert progress.wait(mark)
    progress.begin()
    progress.cancel()
    assert progress.quiet_since(mark), "an attempt that took nothing leaves it quiet"
    progress.begin()
    assert not progress.quiet_since(mark)
    progress.end()
    assert not progress.quiet_since(mark), "it may have held what was looked for"
    assert progress.wait(mark), "something has ended already"


def test_what_is_under_way_is_waited_for_until_one_ends() -> None:
    progress = Progress(Clock(), 30.0)
    progress.begin()
    progress.begin()
    mark = progress.mark()
    ended = threading.Thread(target=progress.end)
    ended.start()
    assert progress.wait(mark), "one has, the other goes on"
    ended.join()
    progress.wait_s = WAIT_S
    assert not progress.wait(progress.mark()), "and does not end"


def test_time_counts_from_the_last_end() -> None:
    clock = Clock()
    progress = Progress(clock, 5.0)
    progress.begin()
    clock.now_s += 7
    progress.wait_s = 5.0
    assert not progress.wait(progress.mark()), "at once: it has been stuck for longer"
    progress.step()
    progress.wait_s = WAIT_S
    assert not progress.wait(progress.mark())
    assert progress.wait(progress.mark()._replace(ended=0)), "it has got on since"


def test_who_holds_others_up_waits_in_vain_once() -> None:
    clock = Clock()
    progress, things = Progress(clock, WAIT_S), queue.SimpleQueue[int]()
    progress.begin()
    assert progress.take(things) is None
    progress.wait_s = 1e9
    assert progress.take(things) is None, "would hang here if it waited"
    things.put(1)
    assert progress.take(things) == 1, "what is there is taken"


def test_a_slow_disk_that_lives_is_not_waited_for_until_it_is_fast() -> None:
    clock = Clock()
    progress, things = Progress(clock, WAIT_S), queue.SimpleQueue[int]()
    for _ in range(3):
        progress.begin()
        progress.take(things)
        clock.now_s += 6
        progress.end()
    progress.begin()
    progress.wait_s = 1e9
    clock.now_s -= 1e9  # it would be stuck by the clock alone
    assert progress.take(things) is None
    clock.now_s += 1e9
    progress.wait_s = 5.0
    progress.end()
    progress.begin()
    threading.Thread(target=things.put, args=(7,)).start()
    progress.wait_s = 30.0
    assert progress.take(things) == 7, "the last one ended in time"
