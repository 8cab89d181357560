"""What is moved from tier to tier in the background: tiers that are drained, and the waterfall.

A tier that is nearly full *presses*: what is cold in it sinks to tiers of a lower priority, until
it is at its low watermark, so that what comes down next finds the fast tier and not the slow one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from swapfs.vlayer.drain import Drain
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.mover import Mover
from swapfs.vlayer.stack import Level, Phase

HIGH_PERCENT: Final = 90
"""A tier that is fuller presses."""
LOW_PERCENT: Final = 80
"""Until it is no fuller than this."""


class Drains:
    """What is moved from tier to tier in the thread that owns *mover* and *scratch*.

    Others may call what begins and ends it; the steps are the thread's.
    """

    def __init__(
        self,
        layer: VirtualSlotLayer,
        mover: Mover,
        scratch: memoryview,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layer = layer
        self._mover = mover
        self._scratch = scratch
        self._clock_s = clock_s
        self._under_way: dict[int, Drain] = {}  # by number of the tier
        self._hands: dict[int, int] = {}  # the cluster where sinking goes on, likewise

    def missing_bytes(self, level: Level) -> int:
        """Return how much of what *level* holds the other tiers might have no room for.

        Each page counts for those only that its export may use.
        """
        room = {
            other.number: max(0, other.tier.free_bytes())
            for other in self._layer.stack
            if other is not level and other.phase is Phase.ACTIVE
        }
        exports = self._layer.exports
        used_bytes = level.tier.stats().used_bytes
        if len(exports) == 1:
            (export,) = exports
            return exports.shortfall({export.index: used_bytes}, room)
        with self._layer.lock:
            needs = {export.index: export.bytes_in(level.number) for export in exports}
        return exports.shortfall(needs, room)

    def start(self, level: Level, phase: Phase = Phase.DRAINING) -> None:
        """Have all that is in *level* moved to others, and nothing new go there.

        :param phase: or LEAVING, if it is to be let go then
        """
        level.note = ""
        self._layer.stack.set_phase(level, phase)

    def stop(self, level: Level) -> None:
        """Use *level* as before; what was moved stays where it is."""
        level.note = ""
        self._layer.stack.set_phase(level, Phase.ACTIVE)

    # ---- the thread ----

    def step(self, go_on: Callable[[], bool]) -> bool:
        """Move one load out of each tier that is drained or presses; whether there is more to do.

        There is not where nothing more can be moved now.
        """
        more = False
        for number, drain in list(self._under_way.items()):
            if self._layer.stack.get(number) is not drain.source:  # it has left
                del self._under_way[number]
        for level in self._layer.stack:
            cause = self._cause(level)
            begun = self._under_way.get(level.number)
            if begun is not None and begun.cause != cause:
                self._end(level, begun)
            if cause and self._layer.table.slots_in(level.number) and go_on():
                more = self._step(level, cause) or more
        return more

    def _cause(self, level: Level) -> str:
        """Return why something is to be moved out of *level*; "": nothing is."""
        if level.phase is not Phase.ACTIVE:
            return "drain"
        fill = level.tier.fill_percent()
        if level.presses or fill > HIGH_PERCENT or level.health.full:
            level.presses = fill > LOW_PERCENT
        now_s = self._clock_s()
        takes = any(other.may_take(now_s) for other in self._layer.stack.below(level))
        return "sink" if level.presses and takes else ""

    def _step(self, level: Level, cause: str) -> bool:
        drain = self._under_way.get(level.number)
        if drain is None:
            drain = self.drain(level.number) if cause == "drain" else self._waterfall(level)
            self._under_way[level.number] = drain
        if drain.step():
            level.note = ""
            return True
        level.note = drain.progress.problem if cause == "drain" else ""
        self._end(level, drain)  # again at the next look
        return False

    def _end(self, level: Level, drain: Drain) -> None:
        del self._under_way[level.number]
        if drain.cause == "sink":
            self._hands[level.number] = drain.cluster

    def _waterfall(self, level: Level) -> Drain:
        below = self._layer.stack.below
        first = self._hands.get(level.number, 0)
        return Drain(
            *(self._layer, self._mover, self._scratch, level, lambda: below(level)),
            cause="sink",
            first=first,
            cold=True,
        )

    def drain(self, number: int) -> Drain:
        """Return what moves all that is in tier *number* to others; nothing new goes there."""
        level = self._layer.stack[number]
        if level.phase is Phase.ACTIVE:
            self._layer.stack.set_phase(level, Phase.DRAINING)
        return self._make(level, lambda: tuple(self._layer.stack))

    def sink(self, number: int, pages: int) -> Drain:
        """Return what moves *pages* pages of tier *number* to tiers that come after it."""
        level = self._layer.stack[number]
        return self._make(level, lambda: self._layer.stack.below(level), "sink", pages)

    def _make(
        self,
        level: Level,
        targets: Callable[[], Sequence[Level]],
        cause: str = "drain",
        pages: int | None = None,
    ) -> Drain:
        return Drain(
            *(self._layer, self._mover, self._scratch, level, targets), cause=cause, pages=pages
        )
