"""The verification that a server makes when it is asked, one at a time, in a thread of its own."""

from __future__ import annotations

import logging
import threading

from swapfs.errors import OperationError
from swapfs.server.status import VerifyStatus
from swapfs.server.workers import aligned_buffer
from swapfs.vlayer import fetch
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.verify import POOL, Findings, Verify

log = logging.getLogger(__name__)

POOL_NAME = "pool"


class Verifying:
    """Begins and ends it, and tells of the last one."""

    def __init__(self, layer: VirtualSlotLayer) -> None:
        self._layer = layer
        self._findings = Findings()
        self._running = self._stopped = False
        self._done = False
        self._problem = ""

    def start(self, name: str | None) -> None:
        """Begin to check tier *name* (``pool`` too), or all.

        :raises OperationError: there is no such tier, or one is being checked
        """
        if self._running:
            raise OperationError("another verify is under way; wait until it is done")
        number = None
        if name is not None:
            level = self._layer.stack.named(name)
            if level is None and name != POOL_NAME:
                raise OperationError(f"there is no tier {name[:32]}")
            number = POOL if level is None else level.number
        work = Verify(self._layer, number, aligned_buffer(fetch.SCRATCH_BYTES))
        self._findings, self._problem = work.findings, ""
        self._running, self._stopped, self._done = True, False, False
        threading.Thread(target=self._run, args=(work,), name="verify", daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._stopped = True

    def _run(self, work: Verify) -> None:
        try:
            self._done = work.run(lambda: not self._stopped)
        except Exception as error:  # no page depends on it
            log.exception("verify failed")
            self._problem = f"{type(error).__name__}, see the log"
        finally:
            self._running = False

    def status(self) -> VerifyStatus:
        """Return how far it is."""
        found = self._findings
        return VerifyStatus(
            running=self._running,
            done=self._done,
            problem=self._problem,
            total=found.total,
            checked=found.checked,
            damaged=found.damaged,
            unreadable=found.unreadable,
            lost=found.lost,
            told=tuple(found.told),
        )
