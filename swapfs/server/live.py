"""What the page at ``/`` shows, once a second: a small JSON, the same size whatever is stored.

The map has at most CELLS_MAX cells, each of so many clusters; of a cluster only what is counted
anyway is read (slots in use, slots below the pool, when it was touched), and no word.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from swapfs.core._core import AGE_TICK_SHIFT
from swapfs.server.status import Status
from swapfs.units import CLUSTER_SLOTS
from swapfs.vlayer.layer import VirtualSlotLayer

CELLS_MAX: Final = 2048
AGE_MAX: Final = 15
_SHARES: Final = 100
PAGE: Final = Path(__file__).with_name("page.html").read_bytes()
"""Read here, which is in the monitor: a later server reads no file (I9)."""


class LiveView:
    """The slots of *layer* as a map, and the figures beside it."""

    def __init__(self, layer: VirtualSlotLayer) -> None:
        self._layer = layer
        geometry = layer.region.geometry
        self._clusters = geometry.clusters
        self._step = -(-geometry.clusters // CELLS_MAX)

    def cells(self) -> bytes:
        """Return three bytes a cell: percent in use, percent of that below, age class (15: old).

        Read without the lock: a cell may be a moment behind another.
        """
        table, touched = self._layer.table, self._layer.region.log_touched
        occupied, below = table.occupied, table.below
        now = time.monotonic_ns() >> AGE_TICK_SHIFT & 0xFFFFFFFF
        cells = bytearray()
        for first in range(0, self._clusters, self._step):
            last = min(first + self._step, self._clusters)
            used = sum(occupied[first:last])
            share = -(-used * _SHARES // ((last - first) * CLUSTER_SLOTS))
            down = sum(below[first:last]) * _SHARES // used if used else 0
            cells += bytes((share, min(down, _SHARES), _age(touched[first:last], now)))
        return bytes(cells)

    def as_json(self, status: Status) -> bytes:
        """Return the JSON of this moment."""
        known = status.as_dict()
        shown: dict[str, Any] = {
            key: known[key]
            for key in (
                *("name", "version", "size_bytes", "slots", "orig_bytes", "compr_bytes"),
                *("pool", "counters", "latency", "requests_in_flight", "degraded", "swap"),
            )
        }
        shown["tiers"] = [
            {
                key: tier[key]
                for key in ("name", "kind", "state", "slots", "used_bytes", "size_bytes")
            }
            for tier in known["tiers"]
        ]
        shown["time_s"] = time.monotonic()
        shown["policy"] = known["config"].get("policy", "")
        shown["map"] = {
            "clusters": self._clusters,
            "clusters_per_cell": self._step,
            "cells": base64.b64encode(self.cells()).decode(),
        }
        return json.dumps(shown, separators=(",", ":")).encode()


def _age(touched: Sequence[int], now: int) -> int:
    newest = max(touched, default=0)
    return min(AGE_MAX, ((now - newest) & 0xFFFFFFFF).bit_length()) if newest else AGE_MAX
