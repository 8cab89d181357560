"""The page and the pictures of a benchmark run, and how targets are judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import names, plots, report, tables
from tests.bench.ratios import spread
from tests.bench.record import Better, Failure, Recorder, Results
from tests.bench.targets import TARGETS, Place, Target, Verdict, judge


def results() -> Results:
    """Return a run with every kind of thing in it, made up."""
    found = Results(
        made={"kind": "quick", "commit": "0123abcd", "dirty": True, "rounds": 3, "seconds": 61.0},
        host={"cpu": "Some CPU", "kernel": "6.12.0-made-up", "versions": {"fio": "3.33"}},
    )
    block, swap = Recorder(found, names.BLOCK), Recorder(found, names.SWAP)
    scale = Recorder(found, names.SCALE)
    for step in range(3):
        for subject, value in ((names.SWAPFS_POOL, 26.0), (names.ZRAM_LZ4, 3.1), (names.FLOOR, 22)):
            block.add(names.random_read(4), subject, names.P50, value + step, "us")
            block.add(names.random_read(4), subject, names.P99, 3 * value + step, "us")
        for subject, value in ((names.SWAPFS, 411.0), (names.ZRAM, 733.0)):
            swap.add(names.SWAP_OUT, subject, names.THROUGHPUT, value - step, "MiB/s",
                     better="higher", note="one thread")  # fmt: skip
        for size, value in ((64 << 20, 40.7), (1 << 40, 55.5)):
            scale.add(names.at_bytes("virtual size", size), names.SWAPFS, "start time",
                      value + step, "ms")  # fmt: skip
    scale.add("facts", names.SWAPFS, "slots", 16384, "", better="none")
    block.skip("nbdkit zstd", "nbd-client is not installed")
    found.failed.append(Failure(names.DEMOTION, "RuntimeError: dd: exit code 1"))
    return found


def verdict(limit: float, *samples: float, at_most: bool = True) -> Verdict:
    found = Results()
    for value in samples:
        Recorder(found, "swap").add("swap-out", "swapfs", "p50", value, "us")
        Recorder(found, "swap").add("swap-out", "zram", "p50", 10.0, "us")
    over = Place("swap", "swap-out", "zram", "p50")
    target = Target("t", Place("swap", "swap-out", "swapfs", "p50"), over, limit, at_most)
    return judge(found, (target,))[0]


@pytest.mark.parametrize(
    ("limit", "at_most", "word"),
    [(1.15, True, "met"), (1.1, True, "met"), (1.09, True, "missed"),
     (1.0, False, "met"), (1.1, False, "met"), (1.2, False, "missed")],
)  # fmt: skip
def test_a_target_is_judged_by_the_median_of_ratios(limit: float, at_most: bool, word: str) -> None:
    found = verdict(limit, 30.0, 11.0, 9.0, at_most=at_most)
    assert found.found is not None
    assert (found.found.low, found.found.median, found.found.high) == (0.9, 1.1, 3.0)
    assert found.word == word


def test_a_target_without_a_base_is_judged_by_the_figure() -> None:
    found = Results()
    Recorder(found, "memory").add("m", "swapfs", "metadata", 17.0, "B")
    target = Target("t", Place("memory", "m", "swapfs", "metadata"), None, 16)
    assert judge(found, (target,))[0].word == "missed"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (0, ""),
        (1, "no p50 of swapfs pool"),
        (4, "no p50 of swapfs"),
        (5, "part memory did not run"),
    ],
)
def test_a_target_that_was_not_measured_says_why(target: int, why: str) -> None:
    found = judge(results(), (TARGETS[target],))[0]
    assert (found.word == "not measured") == bool(why)
    assert found.why == why


def test_a_target_whose_part_failed_or_whose_subject_was_skipped_says_so() -> None:
    found = Results(failed=[Failure(names.MEMORY, "no corpus")])
    Recorder(found, names.BLOCK).skip(names.FLOOR, "no cc")
    Recorder(found, names.BLOCK).add(names.random_read(4), names.SWAPFS_POOL, names.P50, 1.0, "us")
    Recorder(found, names.SWAP).skip("every subject", "no QEMU")
    words = {v.target.figure.part: v.why for v in reversed(judge(found))}
    assert words[names.SWAP] == "part swap skipped"
    assert words[names.MEMORY] == "part memory failed"
    assert words[names.BLOCK] == "C no-op FUSE skipped"


def test_targets_are_those_of_the_parts() -> None:
    assert len({target.title for target in TARGETS}) == len(TARGETS) >= 9
    for target in TARGETS:
        assert target.figure.part in names.PARTS
        assert target.over is None or target.over.metric == target.figure.metric


def test_the_page_has_every_figure_every_skip_and_every_failure() -> None:
    found = results()
    text = report.page(found, {names.BLOCK: [("block: latency", "quick/block-latency.png")]})
    for figure in found.figures:
        cell = tables.samples(spread(figure.samples))
        point = names.read_point(figure.test)
        row = figure.test.removeprefix(f"{point[0]} = ") if point else figure.subject
        lines = [line for line in text.splitlines() if f"| {row} " in line and f" {cell} |" in line]
        assert lines, figure
    for why in [skip.why for skip in found.skipped] + [part.why for part in found.failed]:
        assert f" {why} " in text
    for fact in (
        "0123abcd with uncommitted changes",
        "6.12.0-made-up",
        "Some CPU",
        "fio 3.33",
        "![block: latency](quick/block-latency.png)",
        "All figures of this part: one thread.",
        "- swap: one thread",
    ):
        assert fact in text


def test_a_note_is_said_once_with_whom_it_is_about() -> None:
    found = Results()
    recorder = Recorder(found, names.BLOCK)
    recorder.add("read", names.SWAPFS_FILE, names.P50, 80.0, "us", note="from the disk")
    recorder.add("read", names.SWAPFS_FILE, names.P99, 90.0, "us", note="from the disk")
    recorder.add("read", names.SWAPFS_POOL, names.P50, 26.0, "us")
    text = report.page(found, {})
    assert text.count("from the disk") == 1
    assert "- swapfs file (p50), swapfs file (p99): from the disk\n" in text


def test_the_page_begins_with_targets_and_zram() -> None:
    text = report.page(results(), {})
    places = [text.index(f"## {title}") for title in ("Targets", "Beside zram", "Not measured")]
    assert places == sorted(places)
    assert max(places) < text.index("## block")
    assert "| 4 KiB random read p50 / C no-op FUSE server " in text


@pytest.mark.parametrize(
    ("better", "ours", "word"),
    [
        ("lower", 5, "better"),
        ("lower", 20, "worse"),
        ("higher", 5, "worse"),
        ("higher", 20, "better"),
    ],
)
def test_beside_zram_better_and_worse_follow_the_metric(
    better: Better, ours: float, word: str
) -> None:
    found = Results()
    recorder = Recorder(found, names.SWAP)
    recorder.add("t", names.SWAPFS, names.TIME, ours, "s", better=better)
    recorder.add("t", names.ZRAM, names.TIME, 10.0, "s", better=better)
    assert report.zram_table(found).splitlines()[2].split("|")[-2].strip() == word


def test_beside_zram_a_difference_within_the_rounds_is_level() -> None:
    found = Results()
    for ours, other in ((9.0, 10.0), (12.0, 10.0), (13.0, 10.0)):
        Recorder(found, "swap").add("t", names.SWAPFS, names.TIME, ours, "s")
        Recorder(found, "swap").add("t", names.ZRAM, names.TIME, other, "s")
    assert "| 1.20 [0.90..1.30] |     level |" in report.zram_table(found)


def test_ratios_of_swapfs_to_the_others_are_on_the_page() -> None:
    text = report.page(results(), {})
    assert "| p50 (lower is better), ratio to |" in text
    row = next(
        line for line in text.splitlines() if line.startswith("| swapfs pool") and "[" in line
    )
    assert row.split("|")[3].strip() == "1.17 [1.17..1.18]"


def test_where_all_are_swapfs_ratios_are_to_the_first() -> None:
    found = Results()
    for subject, value in ((names.IDLE, 10.0), (names.SCRAPING, 15.0)):
        Recorder(found, names.INTERFERENCE).add("read", subject, names.P99, value, "us")
    assert "| swapfs, scraped                 |         1.50 |" in report.page(found, {})


def test_the_summary_ends_with_the_targets() -> None:
    text = report.summary(results())
    assert text.index("nbd-client is not installed") < text.index("Targets") < text.index("missed")
    assert text.count("| virtual size = 1 TiB: start time, ms") == 1


def test_a_run_without_anything_is_shown_as_such() -> None:
    text = report.page(Results(), {})
    assert "Nothing was skipped, and no part failed." in text
    assert text.count("not measured") == len(TARGETS)


@pytest.mark.parametrize(("load", "warned"), [(0.9, False), (1.1, True)])
def test_a_busy_machine_is_warned_of(load: float, warned: bool) -> None:
    found = results()
    found.made["load_before"], found.host["cpus"] = load, 2
    for text in (report.page(found, {}), report.summary(found)):
        assert ("Warning: something else was running" in text) == warned


def test_a_test_with_many_metrics_has_them_below_each_other() -> None:
    found = Results()
    for number in range(5):
        Recorder(found, names.MEMORY).add("m", names.SWAPFS, f"metric {number}", number, "B")
    text = report.page(found, {})
    assert "|             | swapfs |\n" in text
    assert "| metric 4, B |      4 |\n" in text


def test_tables_are_aligned_and_fold_where_they_are_wide() -> None:
    table = tables.markdown(["", "a|b"], [["one", "1"], ["three", "22"]])
    assert table == "|       | a\\|b |\n| ----- | ---: |\n| one   |    1 |\n| three |   22 |\n"
    subjects = [f"subject number {i}" for i in range(20)]
    rows = [["row", *map(str, range(20))], ["first only", "7", *[""] * 19]]
    folded = tables.folded(["", *subjects], rows)
    assert folded.count("first only") == 1
    assert max(map(len, folded.splitlines())) <= tables.WIDTH_MAX
    assert all(folded.count(f" {subject} |") == 1 for subject in subjects)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (0.001234, "0.00123"), (9.997, "10.0"), (999.7, "1000"),
     (0.5, "0.500"), (3.14159, "3.14"), (26.07, "26.1"),
     (411.4, "411"), (123456.7, "123457"), (-2.5, "-2.50")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert tables.number(value) == text


@pytest.mark.skipif(bool(plots.why_not()), reason=plots.why_not())
def test_pictures_are_written_as_png_in_place_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / "gone.png").write_bytes(b"")
    pictures = plots.draw(results(), tmp_path)
    assert {picture.file.name for picture in pictures} == {
        "block-latency.png",
        "swap-throughput.png",
        "scale-by-virtual-size.png",
    }
    assert {picture.file for picture in pictures} == set(tmp_path.iterdir())
    for picture in pictures:
        assert picture.file.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_machine_without_matplotlib_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert plots.why_not() == "matplotlib is not installed"
