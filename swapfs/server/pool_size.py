"""Making the pool larger and smaller while the kernel swaps.

Memory comes first and counts last: what is added is populated and locked here, a piece at a time,
then in the monitor, which must have it when no server lives; then the region says so, then pages
go there. What is taken away is emptied first (``vlayer.shrink``); then the region says so, and then
the memory goes back to the system. So a server that dies at any moment leaves a pool of one size
or the other, and the next one gives back what is beyond its end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from swapfs.errors import OperationError
from swapfs.host.proc import meminfo_bytes
from swapfs.region.layout import ZSPAGE_BYTES, Region
from swapfs.server.tiering import Tiering
from swapfs.units import MiB, format_size
from swapfs.vlayer import shrink
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.shrink import Shrink
from swapfs.wire.link import Link

log = logging.getLogger(__name__)

STEP_BYTES: Final = 32 * MiB
"""Populated at a time: the monitor is busy with it for some 10 ms."""
LEFT_BYTES: Final = 64 * MiB
"""What must be available beside what is added."""
POOL_BYTES_MIN: Final = 64 * ZSPAGE_BYTES


class PoolSize:
    """Changes the size of the pool of one server, in a thread of its own.

    :param make_room: has pages leave the pool, so many; False: none does
    :param fit: told of each new size
    """

    def __init__(
        self,
        region: Region,
        layer: VirtualSlotLayer,
        link: Link,
        tiering: Tiering,
        *,
        make_room: Callable[[int], bool],
        fit: Callable[[int], None],
    ) -> None:
        self.target_bytes = 0
        self.problem = ""
        self._region = region
        self._layer = layer
        self._link = link
        self._tiering = tiering
        self._make_room = make_room
        self._fit = fit
        self._stop = False
        self._thread: threading.Thread | None = None

    @property
    def max_bytes(self) -> int:
        """The most that the pool may have."""
        return self._region.geometry.pool_bytes

    def start(self, size_bytes: int, *, force: bool = False) -> int:
        """Begin to make the pool *size_bytes*; return that as it will be.

        :param force: though less than the size of the swap file is certain then
        :raises OperationError: it cannot be so large or so small; nothing has begun
        """
        size_bytes = size_bytes // ZSPAGE_BYTES * ZSPAGE_BYTES
        if self.target_bytes:
            raise OperationError(f"it is being made {format_size(self.target_bytes)} just now")
        if not POOL_BYTES_MIN <= size_bytes <= self.max_bytes:
            raise OperationError(
                f"{format_size(size_bytes)} is not between {format_size(POOL_BYTES_MIN)} and "
                f"{format_size(self.max_bytes)}, which 'pool-max' was at the start"
            )
        more = size_bytes - self._region.pool_bytes
        if more > 0:
            available = meminfo_bytes("MemAvailable")["MemAvailable"]
            if more + LEFT_BYTES > available:
                raise OperationError(
                    f"{format_size(more)} more are needed, {format_size(available)} are available"
                )
        elif not force:
            self._tiering.require_size(pool_bytes=size_bytes)
        self.problem, self._stop, self.target_bytes = "", False, size_bytes
        self._thread = threading.Thread(target=self._run, name="resize", daemon=True)
        self._thread.start()
        return size_bytes

    def stop(self) -> None:
        """End what is under way; the pool is then as it was before."""
        self._stop = True

    def trim(self) -> bool:
        """Give back what a server that died had beyond the end of the pool; True: it is done."""
        if self._region.pool_bytes < self.max_bytes:
            with self._tiering.alone():
                self._give_back(self._region.pool_bytes)  # which nobody else changes now
        return True

    # ---- the thread ----

    def _run(self) -> None:
        target = self.target_bytes
        try:
            with self._tiering.alone():
                before = self._region.pool_bytes
                if target > before:
                    self._grow(before, target)
                else:
                    self._shrink(target)
                self._tiering.tell()
                log.warning("the pool has %s now", format_size(self._region.pool_bytes))
        except OperationError as error:
            self.problem = str(error)
        except Exception as error:  # pages go on where they are
            log.exception("the pool could not be made another size")
            self.problem = f"{type(error).__name__}, see the log"
        finally:
            self.target_bytes = 0

    def _grow(self, before: int, target: int) -> None:
        region = self._region
        try:
            for start in range(before, target, STEP_BYTES):
                if self._stop:
                    raise OperationError("it was stopped; the pool is as it was")
                end = min(start + STEP_BYTES, target)
                region.open_arena(start, end)
                self._link.ask("open pool", start=start, end=end)
        except OSError as error:
            self._give_back(before)
            raise OperationError(
                f"the system does not give the memory: {error.strerror}; the pool is as it was"
            ) from error
        except BaseException:
            self._give_back(before)
            raise
        region.pool_bytes = target
        shrink.grow(self._layer, target // ZSPAGE_BYTES)
        self._fit(target)

    def _shrink(self, target: int) -> None:
        work = Shrink(self._layer, target // ZSPAGE_BYTES, self._make_room)
        self._fit(target)
        done = False
        try:
            done = work.run(lambda: not self._stop)
        finally:
            if not done:
                self._fit(self._region.pool_bytes)
        if not done:
            raise OperationError(
                "it was stopped; the pool is as it was"
                if self._stop
                else "what is in the pool has no other room, or a tier does not answer; "
                "it is as it was"
            )
        self._region.pool_bytes = target
        self._give_back(target)

    def _give_back(self, end: int) -> None:
        self._region.close_arena(end)
        self._link.ask("close pool", start=end)
        self._region.give_back(end)
