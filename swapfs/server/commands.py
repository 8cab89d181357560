"""What a server does when it is asked on its control socket."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import trio

from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.host import fusectl, loop, mounts
from swapfs.host.loop import Backing
from swapfs.server.pool_size import PoolSize
from swapfs.server.snapshot import SnapshotMaker
from swapfs.server.threads import in_thread
from swapfs.server.tiering import Tiering
from swapfs.server.verify import Verifying
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level
from swapfs.vlayer.writeback import Writeback
from swapfs.wire import control_server

log = logging.getLogger(__name__)


class Commands:
    """The commands of one server; each raises OperationError with the reason if it cannot.

    :param writeback: moves pages down
    :param tiering: changes the stack
    :param pool_size: changes that of the pool
    :param layer: what is verified
    """

    def __init__(
        self,
        config: Config,
        snapshots: SnapshotMaker,
        writeback: Writeback,
        tiering: Tiering,
        pool_size: PoolSize,
        layer: VirtualSlotLayer,
        fuse: fusectl.FuseControl,
        backings: Sequence[Backing],
    ) -> None:
        self._config = config
        self._backings = backings
        self._snapshots = snapshots
        self._writeback = writeback
        self._tiering = tiering
        self._pool_size = pool_size
        self._verifying = snapshots.verifying = Verifying(layer)
        self._fuse = fuse

    def handlers(self) -> dict[str, control_server.Handler]:
        """Return them by name."""
        return {
            "status": self._on_status,
            "stop": self._on_stop,
            "demote": self._on_demote,
            "drain": self._on_drain,
            "add": self._on_add,
            "remove": self._on_remove,
            "set": self._on_set,
            "resize": self._on_resize,
            "verify": self._on_verify,
            "abort": self._on_abort,
        }

    async def _on_status(self, request: dict[str, object]) -> object:
        return self._snapshots.make(fresh=True).as_dict()

    async def _on_demote(self, request: dict[str, object]) -> object:
        pages = request.get("pages", 0)
        if not self._writeback.writer.stack:
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
        name, stop = str(request.get("tier")), bool(request.get("stop"))
        return await self._change(lambda: self._tiering.drain(name, stop=stop))

    async def _on_remove(self, request: dict[str, object]) -> object:
        """Begin to drain a tier that then leaves: it is gone when the status has it no more."""
        name, force = str(request.get("tier")), bool(request.get("force"))
        return await self._change(lambda: self._tiering.remove(name, force=force))

    async def _on_add(self, request: dict[str, object]) -> object:
        table = _table(request)
        return await self._change(lambda: self._tiering.add(table))

    async def _on_set(self, request: dict[str, object]) -> object:
        name, table = str(request.get("tier")), _table(request)
        return await self._change(lambda: self._tiering.set(name, table))

    async def _on_resize(self, request: dict[str, object]) -> object:
        """Begin to make the pool another size, or end that: the status tells how far it is."""
        size_bytes, force = request.get("pool_bytes"), bool(request.get("force"))
        if request.get("stop"):
            self._pool_size.stop()
            return {}
        if not isinstance(size_bytes, int):
            raise OperationError("pool_bytes must be a number of bytes")
        return {"pool_bytes": self._pool_size.start(size_bytes, force=force)}

    async def _on_verify(self, request: dict[str, object]) -> object:
        """Begin to check what a tier, or all, have; or end that: the status tells how far it is."""
        tier = request.get("tier")
        if request.get("stop"):
            self._verifying.stop()
        else:
            self._verifying.start(None if tier is None else str(tier))
        return {}

    async def _change(self, change: Callable[[], Level]) -> object:
        level = await in_thread(change)  # which may look at a disk
        return {"tier": level.name, "phase": level.phase}

    async def _on_stop(self, request: dict[str, object]) -> object:
        mountpoint = self._config.mountpoint
        device = self._user()
        if device is not None:
            raise OperationError(f"{device.device} is attached to it; run 'swapfs down' instead")
        # Not from this thread: unmounting asks this very thread to serve.
        await in_thread(functools.partial(mounts.umount, mountpoint))
        return {"stopped": True}

    def _user(self) -> loop.LoopDevice | None:
        """Return a loop device that stands on one of the files, or may."""
        return next(filter(None, map(loop.find_user, self._backings)), None)

    async def _on_abort(self, request: dict[str, object]) -> object:
        """End the connection of a mount that is gone from here, and held by another namespace."""
        device = self._user()
        if device is not None or mounts.at(self._config.mountpoint) is not None:
            raise OperationError("it is mounted or in use; run 'swapfs down' instead")
        log.warning("another mount namespace holds the mount; ending the session")
        self._fuse.set("abort", 1)
        return {"aborted": True}


def _table(request: dict[str, object]) -> dict[str, object]:
    table = request.get("table")
    if not isinstance(table, dict):
        raise OperationError("there is no table of keys and values")
    return table
