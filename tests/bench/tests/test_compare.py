"""Two benchmark runs: a regression is found, noise and a slower machine are not taken for one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import compare, names
from tests.bench.record import Better, Failure, Recorder, Results, save

Samples = tuple[float, ...]
TEST = "read"


def run(
    ours: Samples, other: Samples = (), *, part: str = names.INTERFERENCE,
    subject: str = names.FLOOR, better: Better = "lower", unit: str = "us",
) -> Results:  # fmt: skip
    found = Results(made={"kind": "quick", "rounds": 3}, host={"kernel": "6.12"})
    for value in ours:
        Recorder(found, part).add(TEST, names.SWAPFS, names.P50, value, unit, better=better)
    for value in other:
        Recorder(found, part).add(TEST, subject, names.P50, value, unit, better=better)
    return found


def regressions(old: Results, new: Results) -> list[str]:
    return [c.figure.subject for c in compare.changes(old, new) if c.regression]


@pytest.mark.parametrize(
    ("old", "new", "better", "found"),
    [
        ((10, 11, 12), (13, 14, 15), "lower", True),
        ((10, 11, 12), (13, 14, 15), "higher", False),
        ((13, 14, 15), (10, 11, 12), "lower", False),
        ((13, 14, 15), (10, 11, 12), "higher", True),
        ((10, 11, 18), (13, 14, 15), "lower", False),  # one old round was slower than all new ones
        ((10, 11, 12), (11.5, 14, 15), "lower", False),
        ((10, 10, 10), (10.9, 10.9, 10.9), "lower", False),  # beyond the spread, within 10 %
        ((10,), (12,), "lower", True),
        ((0, 0, 0), (1, 1, 1), "lower", True),
        ((0, 0, 0), (0, 0, 0), "lower", False),
        ((10, 10, 10), (20, 20, 20), "none", False),
        ((20, 20, 20), (10, 10, 10), "none", False),
    ],
)
def test_a_regression_is_beyond_the_threshold_and_the_spread(
    old: Samples, new: Samples, better: Better, found: bool
) -> None:
    assert regressions(run(old, better=better), run(new, better=better)) == (
        [names.SWAPFS] if found else []
    )


def test_a_slower_machine_is_not_a_slower_swapfs() -> None:
    old = run((10, 11, 12), (5, 5.5, 6), part=names.BLOCK)
    new = run((20, 22, 24), (10, 11, 12), part=names.BLOCK)
    assert regressions(old, new) == []
    moved = [c for c in compare.changes(old, new) if c.counts]
    assert [(c.figure.subject, c.word) for c in moved] == [(names.FLOOR, "not swapfs")]
    assert "ratio to" not in compare.page(old, new)


def test_a_faster_machine_does_not_hide_a_regression() -> None:
    old = run((10, 11, 12), (5, 5.5, 6), part=names.BLOCK)
    new = run((10, 11, 12), (2.5, 2.7, 3), part=names.BLOCK)
    assert regressions(old, new) == [names.SWAPFS]
    assert f"ratio to {names.FLOOR}" in compare.page(old, new)


def test_values_are_compared_where_there_is_no_yardstick() -> None:
    old, new = run((10, 11, 12), part=names.BLOCK), run((20, 22, 24), part=names.BLOCK)
    assert regressions(old, new) == [names.SWAPFS]
    assert "value, us" in compare.page(old, new)


def test_others_do_not_regress() -> None:
    old, new = run((), (10, 11), subject="nbdkit"), run((), (30, 31), subject="nbdkit")
    assert regressions(old, new) == []
    assert "not swapfs" in compare.page(old, new)


def test_changes_are_sorted_by_size() -> None:
    old, new = run((10, 10)), run((15, 15))
    for found, value in ((old, 10.0), (new, 4.0)):
        Recorder(found, "scale").add(TEST, names.SWAPFS, names.P50, value, "us")
    text = compare.page(old, new)
    assert text.index("-60%") < text.index("+50%")
    assert text.index("better") < text.index("WORSE")


def test_what_one_run_lacks_is_said() -> None:
    old, new = run((10, 11), (5, 6)), run((10, 11))
    label = f"{names.INTERFERENCE}: {TEST}, {names.FLOOR}, {names.P50}"
    assert compare.missing(old, new) == [f"only in the old run: {label}"]
    assert compare.missing(new, old) == [f"only in the new run: {label}"]
    assert f"only in the old run: {label}\n" in compare.page(old, new)


def test_a_changed_unit_is_said_and_not_compared() -> None:
    old, new = run((10, 11)), run((30, 31), unit="ms")
    assert regressions(old, new) == []
    assert [line.partition(":")[0] for line in compare.missing(old, new)] == [
        "unit or direction changed"
    ]


def test_differences_between_the_runs_are_warned_of() -> None:
    old, new = run((10,)), run((10,))
    assert compare.warnings(old, new) == []
    new.host = {"kernel": "7.2", "versions": {"fio": "3.39"}}
    new.made["rounds"] = 7
    new.failed.append(Failure("swap", "no VM"))
    assert compare.warnings(old, new) == [
        "kernel differs: 6.12, now 7.2",
        "rounds differs: 3, now 7",
        "fio differs: None, now 3.39",
        "part swap failed in the new run",
    ]


def test_the_chance_of_a_false_alarm_is_said() -> None:
    assert "one noisy figure in 20" in compare.page(run((1, 1, 1)), run((2, 2, 2)))
    assert "chance" not in compare.page(run((1,) * 5), run((2,) * 5))
    assert "chance" not in compare.page(run((1, 1, 1)), run((1, 1, 1)))


@pytest.mark.parametrize(("new", "code"), [((20.0, 21.0), 1), ((10.0, 11.0), 0)])
def test_the_exit_code_says_whether_something_regressed(
    new: Samples, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run((10, 11)), tmp_path / "old")
    save(run(new), tmp_path / "new")
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "old"), str(tmp_path / "new")])
    assert compare.main() == code


def test_a_file_of_another_kind_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_text('{"schema": 99, "figures": []}')
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "old"), str(tmp_path / "new")])
    assert compare.main() == 2
    said = capsys.readouterr()
    assert said.err == f"bench-compare: {tmp_path / 'old'}: schema 99, this program reads 1\n"
    assert said.out == ""
