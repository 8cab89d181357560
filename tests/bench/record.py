"""What a run of the benchmarks found, and the JSON file that holds it.

A part gets a `Plan` (how long to measure) and a `Recorder` (where to put what it measured). Nothing
here knows how anything is measured, judged or shown.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

SCHEMA: Final = 1
Better = Literal["lower", "higher", "none"]
"""Which way a metric improves; "none" is a fact and not a result (a size, a count)."""


class NotResultsError(Exception):
    """A file is not what `save` writes. The message is one line for whoever named the file."""


@dataclass(frozen=True)
class Plan:
    """How much to measure, and where."""

    full: bool
    rounds: int
    """How often each subject is measured, in turns with the others."""
    seconds: float
    """Length of one measurement that has a length (fio)."""
    work: Path
    """A temporary directory; whoever made the plan removes it."""
    project: Path
    """The checkout."""
    native: bool = False
    """Whether part "swap" swaps on this very machine and not in a VM."""


@dataclass(frozen=True)
class Figure:
    """Every sample of one metric of one subject in one test, in the order of the rounds."""

    part: str
    test: str
    subject: str
    metric: str
    unit: str
    better: Better
    samples: list[float]
    note: str = ""


@dataclass(frozen=True)
class Skip:
    """A subject that could not be measured on this machine, and why, in one line."""

    part: str
    subject: str
    why: str


@dataclass(frozen=True)
class Failure:
    """A part that raised, and what it said, in one line."""

    part: str
    why: str


@dataclass
class Results:
    """One run of the benchmarks."""

    made: dict[str, Any] = field(default_factory=dict)
    """When, how long, from which commit, with which plan."""
    host: dict[str, Any] = field(default_factory=dict)
    """The machine and the versions of what was measured."""
    figures: list[Figure] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def find(self, part: str, test: str, subject: str, metric: str) -> Figure | None:
        """Return that figure, or None if nobody measured it."""
        for figure in self.figures:
            if (figure.part, figure.test, figure.subject, figure.metric) == (
                part,
                test,
                subject,
                metric,
            ):
                return figure
        return None

    def parts(self) -> list[str]:
        """Return the parts that left a figure, a skip or a failure, in that order."""
        everything: list[Figure | Skip | Failure] = [*self.figures, *self.skipped, *self.failed]
        return list(dict.fromkeys(entry.part for entry in everything))


class Recorder:
    """Where one part puts what it finds."""

    def __init__(self, results: Results, part: str) -> None:
        self._results = results
        self._part = part

    def add(
        self,
        test: str,
        subject: str,
        metric: str,
        value: float,
        unit: str,
        *,
        better: Better = "lower",
        note: str = "",
    ) -> None:
        """Append one sample.

        Within one test and metric the n-th sample of every subject belongs to round n: ratios are
        taken between samples of one round. Measure in turns (for each round: for each subject).
        """
        if not math.isfinite(value):
            raise ValueError(f"{test}, {subject}, {metric}: {value} is not a measurement")
        figure = self._results.find(self._part, test, subject, metric)
        if figure is None:
            figure = Figure(self._part, test, subject, metric, unit, better, [], note)
            self._results.figures.append(figure)
        if (figure.unit, figure.better) != (unit, better):
            raise ValueError(f"{test}, {subject}, {metric}: samples differ in unit or direction")
        figure.samples.append(float(value))

    def skip(self, subject: str, why: str) -> None:
        """Say, once, that *subject* cannot be measured here."""
        entry = Skip(self._part, subject, " ".join(why.split()))
        if entry not in self._results.skipped:
            self._results.skipped.append(entry)
            self.say(f"{subject} skipped: {entry.why}")

    def say(self, line: str) -> None:
        """Show progress on standard error."""
        print(f"{self._part}: {line}", file=sys.stderr, flush=True)


def save(results: Results, file: Path) -> None:
    """Write *results* as JSON that diffs well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"schema": SCHEMA, **asdict(results)}, indent=1) + "\n")


def load(file: Path) -> Results:
    """Read what `save` wrote. Raises NotResultsError with one line for the user."""
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise NotResultsError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise NotResultsError(f"{file}: not a JSON file") from error
    if not isinstance(content, dict) or "schema" not in content or "figures" not in content:
        raise NotResultsError(f"{file}: not a file of benchmark results")
    if content["schema"] != SCHEMA:
        raise NotResultsError(f"{file}: schema {content['schema']}, this program reads {SCHEMA}")
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise NotResultsError(f"{file}: a broken file of benchmark results ({error!r})") from error


def _from_json(content: dict[str, Any]) -> Results:
    figures = [Figure(**entry) for entry in content["figures"]]
    for figure in figures:
        if figure.better not in get_args(Better) or not figure.samples:
            raise ValueError(f"{figure.test}, {figure.subject}, {figure.metric}")
        if not all(isinstance(sample, int | float) for sample in figure.samples):
            raise TypeError(f"{figure.test}, {figure.subject}, {figure.metric}")
    return Results(
        made=dict(content["made"]),
        host=dict(content["host"]),
        figures=figures,
        skipped=[Skip(**entry) for entry in content["skipped"]],
        failed=[Failure(**entry) for entry in content["failed"]],
    )
