"""What one row of the table of metrics is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from swapfs.server.status import Status

Sample = tuple[tuple[str, ...], float]
"""Label values, in the order of ``Metric.labels``, and the value."""
Read = Callable[[Status], Iterable[Sample]]
Series = tuple[tuple[str, ...], tuple[float, ...], tuple[int, ...], float]
"""Label values of a histogram, bounds in seconds, counts for each and one more, and the sum."""
ReadSeries = Callable[[Status], Iterable[Series]]

INSTANCE_LABEL: Final = "name"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table; ``read`` yields its samples from a snapshot."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    read: Read
    labels: tuple[str, ...] = ()
    series: ReadSeries | None = None
