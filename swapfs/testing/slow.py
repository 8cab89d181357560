"""A tier whose reads and writes wait until the test lets them go; no test needs to sleep."""

from __future__ import annotations

import threading

from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.blob import Batch
from swapfs.tiers.sectors import Extent, SectorStore
from swapfs.units import PSector

_LIMIT_S = 30.0


class Gate:
    """Stops whoever passes, while it is shut."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shut = False
        self.arrived = 0

    def shut(self) -> None:
        """Stop everybody from now on."""
        with self._changed:
            self._shut = True
            self.arrived = 0

    def open(self) -> None:
        """Let everybody through."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()

    def wait_for_arrival(self, count: int = 1) -> None:
        """Return when *count* callers stand before the gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.arrived >= count, _LIMIT_S), "nobody came"

    def pass_through(self) -> None:
        """Wait until the gate is open."""
        with self._changed:
            if not self._shut:
                return
            self.arrived += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._shut, _LIMIT_S), "never let go"


class SlowTier(TierWrapper):
    """Stops at ``read_gate`` after the medium was read, at ``write_gate`` before it is written."""

    def __init__(self, inner: SectorStore) -> None:
        super().__init__(inner)
        self.read_gate = Gate()
        self.write_gate = Gate()

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:  # noqa: D102
        view = super().read(sector, sectors, scratch)
        self.read_gate.pass_through()
        return view

    def write(self, extent: Extent, batch: Batch) -> None:  # noqa: D102
        self.write_gate.pass_through()
        super().write(extent, batch)
