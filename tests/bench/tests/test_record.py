"""What a benchmark run keeps: samples in rounds, ratios of rounds, and a file that comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import names
from tests.bench.ratios import Spread, per_round, ratio, spread
from tests.bench.record import Failure, Figure, NotResultsError, Recorder, Results, Skip, load, save


def figure(*samples: float, unit: str = "us") -> Figure:
    return Figure("block", "read", "swapfs", "p50", unit, "lower", list(samples))


def results() -> Results:
    found = Results(made={"commit": "0123"}, host={"kernel": "6.12"})
    recorder = Recorder(found, "block")
    for value in (26.0, 27.5):
        recorder.add("read", "swapfs", "p50", value, "us", note="in memory")
        recorder.add("read", "zram", "p50", value / 4, "us")
    recorder.add("read", "zram", "throughput", 900, "MiB/s", better="higher")
    recorder.skip("nbdkit", "no /dev/nbd0")
    found.failed.append(Failure("swap", "no VM"))
    return found


def test_samples_of_one_figure_are_kept_in_order() -> None:
    found = results().find("block", "read", "swapfs", "p50")
    assert found == Figure(
        "block", "read", "swapfs", "p50", "us", "lower", [26.0, 27.5], "in memory"
    )
    assert results().parts() == ["block", "swap"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_measurement_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not a measurement"):
        Recorder(Results(), "block").add("read", "swapfs", "p50", value, "us")


def test_samples_of_one_figure_have_one_unit() -> None:
    recorder = Recorder(Results(), "block")
    recorder.add("read", "swapfs", "p50", 1.0, "us")
    with pytest.raises(ValueError, match="unit"):
        recorder.add("read", "swapfs", "p50", 1.0, "ms")


def test_a_skip_is_kept_once_and_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = Results()
    for _round in range(3):
        Recorder(found, "block").skip("nbdkit", "no\n  /dev/nbd0")
    assert found.skipped == [Skip("block", "nbdkit", "no /dev/nbd0")]
    assert capsys.readouterr().err == "block: nbdkit skipped: no /dev/nbd0\n"


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(results(), tmp_path / "new" / "run.json")
    assert load(tmp_path / "new" / "run.json") == results()


def _changed(change: dict[str, Any], tmp_path: Path) -> Path:
    save(results(), tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text()) | change
    (tmp_path / "run.json").write_text(json.dumps(content))
    return tmp_path / "run.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2, this program reads 1"),
        ({"figures": [{"part": "block"}]}, "broken"),
        ({"figures": 7}, "broken"),
        ({"host": None}, "broken"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(NotResultsError, match=said) as refused:
        load(_changed(change, tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("samples", [[], ["26"]])
def test_a_figure_without_numbers_is_refused(samples: list[Any], tmp_path: Path) -> None:
    file = _changed({}, tmp_path)
    content = json.loads(file.read_text())
    content["figures"][0]["samples"] = samples
    file.write_text(json.dumps(content))
    with pytest.raises(NotResultsError, match="broken"):
        load(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not a JSON"), ("[]", "not a file of"), ('{"schema": 1}', "not a file")],
)
def test_a_file_that_is_not_ours_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(text)
    with pytest.raises(NotResultsError, match=said):
        load(tmp_path / "other")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotResultsError, match="No such file"):
        load(tmp_path / "none")


def test_spread_is_the_median_between_the_extremes() -> None:
    assert spread([9.0, 1.0, 4.0]) == Spread(1.0, 4.0, 9.0, 3)
    assert spread([1.0, 2.0]).median == 1.5


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was ten times slower in the second round: for both, so it does not count.
    slow_once, base = figure(20.0, 220.0, 26.0), figure(10.0, 100.0, 10.0)
    assert per_round(slow_once, base) == [2.0, 2.2, 2.6]
    assert ratio(slow_once, base) == Spread(2.0, 2.2, 2.6, 3)


def test_a_ratio_to_zero_or_to_a_missing_round_is_left_out() -> None:
    assert per_round(figure(1.0, 6.0, 5.0), figure(0.0, 2.0)) == [3.0]
    assert ratio(figure(1.0), figure(0.0)) is None


def test_a_ratio_of_different_units_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="us against ms"):
        per_round(figure(1.0), figure(1.0, unit="ms"))


@pytest.mark.parametrize(
    ("name", "point"),
    [
        (names.at_bytes("virtual size", 64 << 20), ("virtual size", float(64 << 20), True)),
        (names.at_bytes("virtual size", 3 << 39), ("virtual size", float(3 << 39), True)),
        (names.at_count("used slots", 16_000_000), ("used slots", 16e6, False)),
        (names.random_read(4), None),
        ("a = 4 apples", None),
    ],
)
def test_points_of_a_curve_are_read_from_their_names(
    name: str, point: tuple[str, float, bool] | None
) -> None:
    assert names.read_point(name) == point


def test_sizes_are_named_in_words() -> None:
    assert names.at_bytes("size", 1 << 40) == "size = 1 TiB"
    assert names.at_bytes("size", 3 << 39) == "size = 1.5 TiB"
    assert names.random_read(32, 16) == "32 KiB random read, QD16"
