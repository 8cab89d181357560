"""Pictures of a run: bars for tests, lines for what was measured over a range of sizes.

Colours are of the set by Okabe and Ito, which people with any colour vision can tell apart:
swapfs is vermilion, zram blue, the floor dark grey, all others light grey. Bars carry their names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench import names
from tests.bench.ratios import Spread, spread
from tests.bench.record import Figure, Results
from tests.bench.report import is_swapfs, subjects_of
from tests.bench.tables import labelled, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_SWAPFS: Final = "#D55E00"
_ZRAM: Final = "#0072B2"
_FLOOR: Final = "#6E6E6E"
_OTHER: Final = "#B5B5B5"
_LINES: Final = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_MARKERS: Final = ("s", "^", "v", "D", "P", "X")
_LOG_FROM: Final = 20.0
"""Values further apart than this get a logarithmic axis."""
_DECADES_FROM: Final = 100.0
"""And from here on a logarithmic axis has its numbers at powers of ten only."""
_COLUMNS: Final = 3
_DPI: Final = 110
_INCH_WIDE: Final = 4.6
_LEGEND: Final = "bars and points: median of the rounds; thin lines and bands: lowest to highest"
_LATENCIES: Final = (names.P50, names.P99)


@dataclass(frozen=True)
class Picture:
    """One file that was written."""

    part: str
    title: str
    file: Path


def why_not() -> str:
    """Return why no picture can be drawn here; empty if they can."""
    return "" if importlib.util.find_spec("matplotlib") else "matplotlib is not installed"


def draw(results: Results, directory: Path) -> list[Picture]:
    """Write every picture of *results* into *directory* as PNG, in place of older ones."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.png"):
        old.unlink()
    pictures = []
    for part in results.parts():
        figures = [f for f in results.figures if f.part == part and f.better != "none"]
        plain = [f for f in figures if names.read_point(f.test) is None]
        curves = [f for f in figures if names.read_point(f.test) is not None]
        for kind, panels in _panels(plain).items():
            pictures.append(_bars(part, f"{part}: {kind}", panels, directory))
        for axis in _unique(_axis(figure) for figure in curves):
            chosen = [f for f in curves if _axis(f) == axis]
            pictures.append(_curves(part, axis, chosen, directory))
    return pictures


def _panels(figures: Sequence[Figure]) -> dict[str, list[list[Figure]]]:
    """Return what to draw as bars: by picture, the figures that share a panel.

    Percentiles share one. What only one subject has is no comparison and is left to the table.
    """
    panels: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in figures:
        kind, metric = "others", figure.metric
        if figure.metric in _LATENCIES:
            kind, metric = "latency", ""
        elif figure.metric == names.THROUGHPUT:
            kind = names.THROUGHPUT
        panels.setdefault((kind, figure.test, metric), []).append(figure)
    pictures: dict[str, list[list[Figure]]] = {}
    for (kind, _, _), shared in panels.items():
        if len({figure.subject for figure in shared}) > 1:
            pictures.setdefault(kind, []).append(shared)
    return pictures


def _bars(part: str, title: str, panels: Sequence[Sequence[Figure]], directory: Path) -> Picture:
    most = max(len({figure.subject for figure in panel}) for panel in panels)
    sheet = _Sheet(title, len(panels), height=1.4 + 0.32 * most)
    for axes, panel in zip(sheet.axes, panels, strict=True):
        _bar_axes(axes, panel)
    return sheet.save(part, directory)


def _bar_axes(axes: Axes, figures: Sequence[Figure]) -> None:
    """Draw one test: a bar to the median, a line over the range, a diamond for p99 if any."""
    main = figures[0].metric
    medians = {f.subject: spread(f.samples) for f in figures if f.metric == main}
    bars = {subject: medians[subject] for subject in subjects_of(figures) if subject in medians}
    tails = {f.subject: spread(f.samples) for f in figures if f.metric != main}
    everything = [*bars.values(), *tails.values()]
    positive = [found.low for found in everything if found.low > 0]
    high = max(found.high for found in everything)
    logarithmic = bool(positive) and high / min(positive) > _LOG_FROM
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 1.6, high * 4)
        _plain_numbers(axes.xaxis, high / min(positive))
    else:
        axes.set_xlim(0, (high or 1) * 1.25)
    for row, (subject, found) in enumerate(bars.items()):
        axes.barh(row, found.median, height=0.62, color=_colour(subject), zorder=2)
        _range(axes, row, found)
        end = found.high
        if subject in tails:
            tail = tails[subject]
            axes.plot(tail.median, row, "D", color="white", mec="black", ms=5, zorder=4)
            _range(axes, row, tail)
            end = max(end, tail.high)
        text = number(found.median)
        if subject in tails:
            text += f" / {number(tails[subject].median)}"
        axes.annotate(text, (end, row), (7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), list(bars))
    for label, subject in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if is_swapfs(subject) else "normal")
    axes.invert_yaxis()
    axes.set_title(figures[0].test, fontsize=10, loc="left")
    shown = f"{main} (bar), {names.P99} (diamond)" if tails else main
    scale = " (log scale)" if logarithmic else ""
    measured = labelled(shown, figures[0].unit) + scale
    axes.set_xlabel(f"{measured}\n{figures[0].better} is better")
    _plain_frame(axes, "x")


def _range(axes: Axes, row: float, found: Spread) -> None:
    if found.count > 1:
        axes.plot([found.low, found.high], [row, row], color="black", lw=1.1, zorder=3)


def _curves(part: str, axis: str, figures: Sequence[Figure], directory: Path) -> Picture:
    metrics = _unique(figure.metric for figure in figures)
    sheet = _Sheet(f"{part}: by {axis}", len(metrics), height=3.1)
    for axes, metric in zip(sheet.axes, metrics, strict=True):
        _curve_axes(axes, axis, [figure for figure in figures if figure.metric == metric])
    return sheet.save(part, directory)


def _curve_axes(axes: Axes, axis: str, figures: Sequence[Figure]) -> None:
    """Draw one metric over the sizes: a line through the medians, a band over the range."""
    subjects = subjects_of(figures)
    others = [subject for subject in subjects if not is_swapfs(subject)]
    ours = [subject for subject in subjects if is_swapfs(subject)]
    in_bytes = False
    for subject in subjects:
        points = []
        for figure in figures:
            point = names.read_point(figure.test)
            if figure.subject == subject and point is not None:
                points.append((point[1], spread(figure.samples)))
                in_bytes = point[2]
        points.sort(key=lambda point: point[0])
        xs, found = [x for x, _ in points], [y for _, y in points]
        if subject in ours:
            colour, marker, width = _SWAPFS, "o", 2.2
            style = ("-", "--", ":", "-.")[ours.index(subject) % 4]
        else:
            place = others.index(subject) % len(_LINES)
            colour, marker, width, style = _LINES[place], _MARKERS[place], 1.4, "-"
        axes.plot(
            xs, [y.median for y in found], style, color=colour, marker=marker, lw=width, ms=5,
            label=subject, zorder=3,
        )  # fmt: skip
        axes.fill_between(
            xs, [y.low for y in found], [y.high for y in found], color=colour, alpha=0.18, lw=0
        )
    values = [value for figure in figures for value in figure.samples]
    if min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, max(values) / min(values))
    else:
        axes.set_ylim(0, (max(values) or 1) * 1.2)
    _size_axis(axes, figures, in_bytes=in_bytes)
    axes.set_xlabel(f"{axis}\n{figures[0].better} is better")
    axes.set_ylabel(figures[0].unit or "count")
    axes.set_title(figures[0].metric, fontsize=10, loc="left")
    if len(subjects) > 1:
        axes.legend(fontsize=8, frameon=False)
    _plain_frame(axes, "both")


def _size_axis(axes: Axes, figures: Sequence[Figure], *, in_bytes: bool) -> None:
    """Put a tick at each size that was measured, in words."""
    points = {p[1]: f.test for f in figures if (p := names.read_point(f.test)) is not None}
    axes.set_xscale("log", base=2 if in_bytes else 10)
    axes.set_xticks(
        list(points),
        [test.rpartition(" = ")[2] if in_bytes else _count(x) for x, test in points.items()],
        rotation=30 if len(points) > 5 else 0,
    )
    axes.set_xticks([], minor=True)


def _plain_numbers(axis: Axis, range_: float) -> None:
    """Write 50 and not 5 x 10^1 at the ticks of a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    steps = (1, 2, 5) if range_ < _DECADES_FROM else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _count(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"


class _Sheet:
    """One picture of several axes, side by side in rows."""

    def __init__(self, title: str, count: int, *, height: float) -> None:
        from matplotlib.figure import Figure as Canvas

        columns = 2 if count == 4 else min(count, _COLUMNS)
        rows = -(-count // columns)
        self._title = title
        self._canvas = Canvas(
            figsize=(_INCH_WIDE * columns, height * rows + 0.5), layout="constrained", dpi=_DPI
        )
        grid = self._canvas.subplots(rows, columns, squeeze=False).ravel().tolist()
        self.axes: list[Axes] = grid[:count]
        for unused in grid[count:]:
            unused.remove()
        self._canvas.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        self._canvas.supxlabel(_LEGEND, fontsize=7.5, color="#555555", x=0.01, ha="left")

    def save(self, part: str, directory: Path) -> Picture:
        """Write the picture; its name is its title."""
        name = self._title.replace(":", "").replace("/", " ").lower()
        file = directory / ("-".join(name.split()) + ".png")
        # Without the version of matplotlib, so that the same figures make the same file.
        self._canvas.savefig(file, metadata={"Software": None}, facecolor="white")
        return Picture(part, self._title, file)


def _plain_frame(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    axes.grid(True, axis="x" if grid == "x" else "both", color="#E4E4E4", lw=0.7, zorder=0)
    axes.set_axisbelow(True)


def _colour(subject: str) -> str:
    if is_swapfs(subject):
        return _SWAPFS
    if subject in (names.ZRAM, names.ZRAM_LZ4):
        return _ZRAM
    return _FLOOR if subject == names.FLOOR else _OTHER


def _axis(figure: Figure) -> str:
    point = names.read_point(figure.test)
    return point[0] if point else ""


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
