"""What a server does when it is asked on its control socket."""

from __future__ import annotations

import functools
import logging

import trio

from swapfs.config import values
from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.host import fusectl, loop, mounts
from swapfs.host.loop import Backing
from swapfs.server.snapshot import SnapshotMaker
from swapfs.server.threads import in_thread
from swapfs.units import PAGE_SIZE, format_size
from swapfs.vlayer.writeback import Writeback
from swapfs.wire import control

log = logging.getLogger(__name__)


class Commands:
    """The commands of one server; each raises OperationError with the reason if it cannot.

    :param writeback: None: there is no lower tier
    """

    def __init__(
        self,
        config: Config,
        snapshots: SnapshotMaker,
        writeback: Writeback | None,
        fuse: fusectl.FuseControl,
        backing: Backing,
    ) -> None:
        self._config = config
        self._backing = backing
        self._snapshots = snapshots
        self._writeback = writeback
        self._fuse = fuse

    def handlers(self) -> dict[str, control.Handler]:
        """Return them by name."""
        return {
            "status": self._on_status,
            "stop": self._on_stop,
            "demote": self._on_demote,
            "drain": self._on_drain,
            "abort": self._on_abort,
        }

    async def _on_status(self, request: dict[str, object]) -> object:
        return self._snapshots.make(fresh=True).as_dict()

    async def _on_demote(self, request: dict[str, object]) -> object:
        pages = request.get("pages", 0)
        if self._writeback is None:
            raise OperationError("there is no file tier to demote to; mount with --file")
        if not isinstance(pages, int) or pages < 0:
            raise OperationError("pages must be a number of pages")
        token, finished, moved = trio.lowlevel.current_trio_token(), trio.Event(), [0]

        def done(count: int) -> None:
            moved[0] = count
            token.run_sync_soon(finished.set)

        self._writeback.request(pages, done)
        await finished.wait()
        return {"demoted": moved[0]}

    async def _on_drain(self, request: dict[str, object]) -> object:
        """Begin to drain a tier, or end it: the status tells how far it is."""
        down, name = self._writeback, str(request.get("tier"))
        level = down.writer.stack.named(name) if down is not None else None
        if down is None or level is None:
            raise OperationError(f"there is no tier {values.one_line(name)}")
        if request.get("stop"):
            down.drains.stop(level)
        elif missing := down.drains.missing_pages(level):
            what = format_size(missing * PAGE_SIZE)
            raise OperationError(f"the other tiers have no room for {what} of what is in {name}")
        else:
            down.drains.start(level)
            down.wake()
        return {"tier": level.name, "phase": level.phase}

    async def _on_stop(self, request: dict[str, object]) -> object:
        mountpoint = self._config.mountpoint
        device = loop.find_user(self._backing)
        if device is not None:
            raise OperationError(f"{device.device} is attached to it; run 'swapfs down' instead")
        # Not from this thread: unmounting asks this very thread to serve.
        await in_thread(functools.partial(mounts.umount, mountpoint))
        return {"stopped": True}

    async def _on_abort(self, request: dict[str, object]) -> object:
        """End the connection of a mount that is gone from here, and held by another namespace."""
        device = loop.find_user(self._backing)
        if device is not None or mounts.at(self._config.mountpoint) is not None:
            raise OperationError("it is mounted or in use; run 'swapfs down' instead")
        log.warning("another mount namespace holds the mount; ending the session")
        self._fuse.set("abort", 1)
        return {"aborted": True}
