"""What comes again and again is counted, and not repeated."""

from __future__ import annotations

import logging
import tracemalloc

from swapfs.host.repeats import PASS_MAX, PERIOD_S, Repeats


def record(line: int, text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("x", logging.ERROR, "/file.py", line, text, args, None)


def test_the_first_pass_and_the_rest_are_counted_and_told() -> None:
    now_s = [0.0]
    repeats = Repeats(lambda: now_s[0])
    passed = [repeats.may_pass(record(1, "sector %d", number)) for number in range(500)]
    assert passed == [True] * PASS_MAX + [False] * (500 - PASS_MAX)
    assert repeats.may_pass(record(2, "another")), "it has nothing to do with that"
    assert list(repeats.over()) == []
    now_s[0] += PERIOD_S
    (line,) = repeats.over()
    assert line == f"swapfs: {500 - PASS_MAX} more like this one: sector 499\n"
    assert list(repeats.over()) == []
    assert repeats.may_pass(record(1, "sector %d", 1))


def test_what_is_held_does_not_grow() -> None:
    repeats = Repeats(lambda: 0.0)
    tracemalloc.start()
    for number in range(10_000):
        repeats.may_pass(record(number % 5, "x" * 10_000))
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 5 * 10_000, "not even one record of each place"
