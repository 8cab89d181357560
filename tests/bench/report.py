"""One run as one Markdown page: what was reached, how swapfs stands beside zram, then everything.

Every figure, every skip and every failure of a run is on the page. It judges nothing: targets.py
does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tests.bench import names, tables
from tests.bench.ratios import ratio, spread
from tests.bench.record import Figure, Results
from tests.bench.targets import TARGETS, judge

_HEADLINES: Final = (names.P50, names.P99, names.THROUGHPUT, names.TIME, names.RAM_PER_PAGE)
"""Metrics that the first table has, where both swapfs and zram were measured."""
_PARTS: Final = {
    names.BLOCK: "Block devices on this machine, no swap",
    names.SWAP: "A kernel that swaps, in the virtual machine",
    names.MEMORY: "Memory held for what is stored",
    names.DEMOTION: "Demotion: from the pool to the file",
    names.INTERFERENCE: "Reads while something else goes on",
    names.SCALE: "From small to large",
}
_METRICS_ACROSS: Final = 4
"""A test with more metrics has them below each other, and the subjects across."""
Plots = Mapping[str, Sequence[tuple[str, str]]]
"""By part: titles, and paths relative to the page."""


def page(results: Results, plots: Plots) -> str:
    """Return the whole page."""
    parts = [*(p for p in names.PARTS if p in results.parts()), *_others(results)]
    sections = [
        _head(results),
        "## Targets\n\n" + targets_table(results),
        "## Beside zram\n\n" + zram_table(results),
        "## Not measured\n\n" + absent_table(results),
        *(_part(results, part, plots.get(part, ())) for part in parts),
    ]
    return "\n".join(sections)


def summary(results: Results) -> str:
    """Return what a terminal shows at the end of a run: medians, gaps and targets."""
    judged = Results(figures=[figure for figure in results.figures if figure.better != "none"])
    glances = [f"{_title(p)}: medians\n\n{glance_table(judged, p)}" for p in judged.parts()]
    gaps = "Not measured\n\n" + absent_table(results)
    targets = "Targets\n\n" + targets_table(results)
    return "\n".join([*glances, gaps, targets, *_warnings(results)])


def _warnings(results: Results) -> list[str]:
    load, cpus = results.made.get("load_before", 0), results.host.get("cpus", 1)
    if load <= cpus / 2:
        return []
    return [
        f"Warning: something else was running (load average {load} before the start, {cpus}"
        " processors). Latencies, p99 above all, are not those of this machine.\n"
    ]


def targets_table(results: Results) -> str:
    """Return the targets and how they stand."""
    rows = []
    for verdict in judge(results):
        shown = tables.ratios if verdict.target.over else tables.samples
        found = shown(verdict.found) if verdict.found else verdict.why
        rows.append([verdict.target.title, verdict.target.wanted, found, verdict.word])
    parts = _unique(target.figure.part for target in TARGETS)
    noted = [f"{p}: {note}" for p in parts if (note := _common_note(_figures(results, p)))]
    notes = "\n" + "".join(f"- {note}\n" for note in noted) if noted else ""
    return tables.markdown(["target", "wanted", "found", ""], rows) + notes


def zram_table(results: Results) -> str:
    """Return swapfs beside zram wherever both were measured."""
    rows = []
    order = {part: i for i, part in enumerate((names.SWAP, names.MEMORY, names.BLOCK))}
    for other in sorted(results.figures, key=lambda figure: order.get(figure.part, len(order))):
        if other.subject not in (names.ZRAM, names.ZRAM_LZ4) or other.metric not in _HEADLINES:
            continue
        for subject in (names.SWAPFS, names.SWAPFS_POOL):
            ours = results.find(other.part, other.test, subject, other.metric)
            if ours is not None:
                rows.append(_beside(ours, other))
    if not rows:
        return "No test has both.\n"
    note = "Level: 1.00 is within what the rounds gave.\n"
    header = ["", "swapfs", "zram", "swapfs / zram", "swapfs is"]
    return tables.markdown(header, rows) + "\n" + note


def _beside(ours: Figure, other: Figure) -> list[str]:
    label = tables.labelled(f"{ours.part}: {ours.test}, {ours.metric}", ours.unit)
    cells = [label, *(tables.number(spread(figure.samples).median) for figure in (ours, other))]
    found = ratio(ours, other)
    if found is None:
        return [*cells, "", ""]
    if found.holds(1.0):
        word = "level"
    else:
        word = "better" if (found.median < 1) == (ours.better == "lower") else "worse"
    return [*cells, tables.ratios(found), word]


def absent_table(results: Results) -> str:
    """Return what was skipped and which parts failed, with the reasons."""
    rows = [[failure.part, "the whole part failed", failure.why] for failure in results.failed]
    rows += [[skip.part, skip.subject, skip.why] for skip in results.skipped]
    if not rows:
        return "Nothing was skipped, and no part failed.\n"
    return tables.markdown(["part", "what", "why"], rows, words=3)


def glance_table(results: Results, part: str) -> str:
    """Return the medians of *part*: a row for each test and metric, a column for each subject."""
    figures = _figures(results, part)
    subjects = subjects_of(figures)
    rows: dict[str, dict[str, str]] = {}
    for figure in figures:
        label = tables.labelled(f"{figure.test}: {figure.metric}", figure.unit)
        rows.setdefault(label, {})[figure.subject] = tables.number(spread(figure.samples).median)
    cells = [
        [label, *(row.get(subject, "") for subject in subjects)] for label, row in rows.items()
    ]
    return tables.folded(["", *subjects], cells)


def _head(results: Results) -> str:
    made, host = results.made, results.host
    changed = " with uncommitted changes" if made.get("dirty") else ""
    versions = ", ".join(f"{name} {what}" for name, what in host.get("versions", {}).items())
    virtual = " (a virtual machine)" if host.get("virtual") else ""
    lines = [
        f"# Benchmarks: {made.get('kind', '')} run",
        "",
        "Written by `python -m tests.bench`; how to read it is in"
        " [performance.md](../performance.md).",
        "",
        f"- Made: {made.get('date', '')}, {made.get('rounds', '')} rounds,"
        f" {made.get('seconds', 0):.0f} s in all",
        f"- Commit: {made.get('commit', '')}{changed}",
        f"- Host: {host.get('cpus', '')} x {host.get('cpu', '')}, {host.get('memory_mib', '')} MiB"
        f"{virtual}, frequency governor {host.get('governor', '')}",
        f"- Kernel: {host.get('kernel', '')}; {host.get('system', '')}",
        f"- Load average before and after: {made.get('load_before', '')},"
        f" {made.get('load_after', '')}",
        f"- Versions: {versions}",
        "",
        *_warnings(results),
    ]
    return "\n".join(lines)


def _part(results: Results, part: str, plots: Sequence[tuple[str, str]]) -> str:
    figures = _figures(results, part)
    about = results.made.get("parts", {}).get(part, {})
    blocks = [f"## {_title(part)}\n"]
    if about:
        blocks.append(f"{about['seconds']:.0f} s; load average at the start {about['load']}.\n")
    if not figures:
        blocks.append("No figures; see [what was not measured](#not-measured).\n")
        return "\n".join(blocks)
    if note := _common_note(figures):
        blocks.append(f"All figures of this part: {note}.\n")
    blocks += [f"![{title}]({path})\n" for title, path in plots]
    tests = _unique(figure.test for figure in figures)
    plain = [test for test in tests if names.read_point(test) is None]
    if len(plain) > 1:
        kept = Results(figures=[figure for figure in figures if figure.test in plain])
        blocks.append("Medians:\n\n" + glance_table(kept, part))
    blocks += [_test([f for f in figures if f.test == test], note) for test in plain]
    points = [(point[0], figure) for figure in figures if (point := names.read_point(figure.test))]
    for axis in _unique(axis for axis, _ in points):
        blocks.append(_curve(axis, [f for name, f in points if name == axis], note))
    return "\n".join(blocks)


def _test(figures: Sequence[Figure], said: str) -> str:
    metrics = {figure.metric: tables.labelled(figure.metric, figure.unit) for figure in figures}
    subjects = subjects_of(figures)
    cells = {(f.subject, f.metric): tables.samples(spread(f.samples)) for f in figures}
    if len(metrics) > _METRICS_ACROSS:
        header = ["", *subjects]
        rows = [[metrics[m], *(cells.get((s, m), "") for s in subjects)] for m in metrics]
    else:
        header = ["", *metrics.values()]
        rows = [[s, *(cells.get((s, m), "") for m in metrics)] for s in subjects]
    text = f"### {figures[0].test}\n\n" + tables.folded(header, rows)
    blocks = [text, *(_ratios([f for f in figures if f.metric == metric]) for metric in metrics)]
    return "\n".join([block for block in blocks if block] + _notes(figures, said))


def _ratios(figures: Sequence[Figure]) -> str:
    """Return the ratios of swapfs subjects to the others, or to the first if all are swapfs."""
    if figures[0].better == "none" or len(figures) < 2:
        return ""
    by_subject = {figure.subject: figure for figure in figures}
    ours = [figure for figure in figures if is_swapfs(figure.subject)]
    others = [by_subject[name] for name in subjects_of(figures) if not is_swapfs(name)]
    if not others:
        others, ours = ours[:1], ours[1:]
    rows = [[figure.subject, *(_ratio_cell(figure, other) for other in others)] for figure in ours]
    if not rows:
        return ""
    first = f"{figures[0].metric} ({figures[0].better} is better), ratio to"
    return tables.folded([first, *(figure.subject for figure in others)], rows)


def _ratio_cell(figure: Figure, other: Figure) -> str:
    found = ratio(figure, other)
    return tables.ratios(found) if found else ""


def _curve(axis: str, figures: Sequence[Figure], said: str) -> str:
    tests = _unique(figure.test for figure in figures)
    blocks = [f"### By {axis}\n"]
    for metric in _unique(figure.metric for figure in figures):
        drawn = [figure for figure in figures if figure.metric == metric]
        subjects = subjects_of(drawn)
        cells = {(f.test, f.subject): tables.samples(spread(f.samples)) for f in drawn}
        rows = [
            [test.removeprefix(f"{axis} = "), *(cells.get((test, name), "") for name in subjects)]
            for test in tests
            if any((test, name) in cells for name in subjects)
        ]
        header = [tables.labelled(metric, drawn[0].unit), *subjects]
        blocks.append(tables.markdown(header, rows))
    return "\n".join(blocks + _notes(figures, said))


def _notes(figures: Sequence[Figure], said: str) -> list[str]:
    """Return one paragraph with every note of *figures* but *said*, each once."""
    about: dict[str, list[str]] = {}
    for figure in figures:
        if figure.note and figure.note != said:
            about.setdefault(figure.note, []).append(f"{figure.subject} ({figure.metric})")
    lines = [
        f"- {note}\n" if len(whose) == len(figures) else f"- {', '.join(_unique(whose))}: {note}\n"
        for note, whose in about.items()
    ]
    return ["".join(lines)] if lines else []


def _common_note(figures: Sequence[Figure]) -> str:
    """Return the note that all *figures* have; empty if they differ."""
    notes = {figure.note for figure in figures}
    return notes.pop() if len(notes) == 1 else ""


def is_swapfs(subject: str) -> bool:
    """Return whether *subject* is swapfs in some form, and not something to compare with."""
    return subject == names.SWAPFS or subject.startswith((names.SWAPFS + " ", names.SWAPFS + ","))


def subjects_of(figures: Iterable[Figure]) -> list[str]:
    """Return the subjects in the order to show: swapfs, zram, others as measured, the floor."""
    found = _unique(figure.subject for figure in figures)
    return sorted(found, key=_place)


def _place(subject: str) -> int:
    if is_swapfs(subject):
        return 0
    return {names.ZRAM: 1, names.ZRAM_LZ4: 1, names.FLOOR: 3}.get(subject, 2)


def _title(part: str) -> str:
    return f"{part}: {_PARTS[part]}" if part in _PARTS else part


def _figures(results: Results, part: str) -> list[Figure]:
    return [figure for figure in results.figures if figure.part == part]


def _others(results: Results) -> list[str]:
    return [part for part in _unique(f.part for f in results.figures) if part not in names.PARTS]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
