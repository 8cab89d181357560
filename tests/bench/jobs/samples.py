"""What a job measured, for the host's recorder."""

from __future__ import annotations

from typing import Any


class Samples:
    """A list that becomes JSON; the order is that of the rounds."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self, test: str, subject: str, metric: str, value: float, unit: str, better: str = "lower"
    ) -> None:
        """Append one sample, with the arguments of `Recorder.add`."""
        self.rows.append(
            {
                "test": test,
                "subject": subject,
                "metric": metric,
                "value": value,
                "unit": unit,
                "better": better,
            }
        )
