"""The server: puts region, tiers, slot layer, session loop and namespace together and serves.

One process, forked by the monitor. Threads: the main one runs trio (pyfuse3's namespace, the
control socket, the state file); the session loop; the writeback thread; the direct writer; the
second try, which compacts; the workers; the metrics listener. All are started, and all their
memory is reserved, before the first request is taken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from swapfs import session
from swapfs.config.model import SWAP_INODE, Config, swap_backing
from swapfs.errors import OperationError
from swapfs.fs import Namespace
from swapfs.host import fusectl, loop, mounts
from swapfs.host.device_guards import DirectIo, Discard, MaxBackground
from swapfs.host.guards import Guards
from swapfs.host.process_guards import Heap, IoFlusher, MemoryLock, NoCollector, OomScore, Realtime
from swapfs.region.layout import Region
from swapfs.server import metrics
from swapfs.server.partial import PartialWrites
from swapfs.server.snapshot import SnapshotMaker
from swapfs.server.swap_file import SwapFile
from swapfs.server.workers import Workers, aligned_buffer
from swapfs.session import fuse_init, pyfuse3
from swapfs.tiers.base import LowerTier
from swapfs.units import PAGE_SIZE
from swapfs.vlayer import fetch, writeback
from swapfs.vlayer.fetch import Fetcher
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stalled import StalledWrites
from swapfs.vlayer.write_around import WriteAround
from swapfs.vlayer.writeback import Writeback
from swapfs.wire import control
from swapfs.wire.handover import RETIRE_SIGNAL, Handover

log = logging.getLogger(__name__)

THREAD_STACK_BYTES: Final = 512 * 1024
"""Locked in memory for each thread; lz4 takes 16 KiB of it."""
SWITCH_INTERVAL_S: Final = 1e-4
"""The most that another Python thread may hold up a request."""
WORKERS_WITH_FILE: Final = 4
DIRECT_BATCHES: Final = 4
SECOND_TRIES: Final = 2
REQUESTS_MAX: Final = 1024
"""Under way at a time: more than a loop device's 128, which may be two or three each."""
STATE_EVERY_S: Final = 1.0
STOP_WAIT_S: Final = 10.0
RETRY_S: Final = 5.0


class Server:
    """Serves one region on one FUSE connection.

    :param handover: where the monitor holds the mounted /dev/fuse descriptor and the rest
    :param recover: another server served this region and connection: rebuild and resume
    """

    def __init__(
        self,
        config: Config,
        region: Region,
        tier: LowerTier | None,
        handover: Handover,
        *,
        recover: bool = False,
    ) -> None:
        self._config = config
        self._region = region
        self._fuse = fusectl.FuseControl(handover.device)
        self._backing = swap_backing(config.mountpoint, handover.device)
        self._recover = recover
        self._retiring = False
        self._layer = VirtualSlotLayer(region, tier)
        if recover:
            self._layer.rebuild()
        self._layer.counters.add("server_starts")
        self._guards = Guards(config.unsafe)
        self._guards.set(IoFlusher())
        self._guards.set(Heap())
        threading.stack_size(THREAD_STACK_BYTES)
        request, reply = session.arm(region.session_init)
        pages_bytes = len(reply) + 2 * PAGE_SIZE
        count = WORKERS_WITH_FILE if tier else 1
        self._workers = Workers(count, pages_bytes, fetch.SCRATCH_BYTES)
        self._second = StalledWrites(
            self._layer, [aligned_buffer(len(request)) for _ in range(SECOND_TRIES)]
        )
        self._writeback: Writeback | None = None
        self._direct: WriteAround | None = None
        fetcher = None
        if tier is not None:
            fetcher = self._add_tier(region, tier)
        self._swap_file = SwapFile(
            self._layer,
            config.size_bytes,
            request,
            reply,
            self._workers,
            PartialWrites(self._layer, self._second.compactor.make_room, fetcher, self._direct),
            self._direct or self._second,
            fetcher=fetcher,
            stored=self._stored,
        )
        self._snapshots = SnapshotMaker(
            config, region, self._layer, self._guards, self._writeback, handover
        )
        namespace = Namespace(config.size_bytes, self._free_bytes, self._count_bug)
        pyfuse3.init(namespace, f"/dev/fd/{handover.fuse_fd}", set())
        self._metrics: metrics.MetricsServer | None = None
        self._loop_error: BaseException | None = None

    def _add_tier(self, region: Region, tier: LowerTier) -> Fetcher:
        config, limit = self._config, region.geometry.pool_bytes
        self._writeback = down = Writeback(
            self._layer,
            tier,
            aligned_buffer(writeback.BATCH_BYTES),
            aligned_buffer(writeback.SCRATCH_BYTES),
            high_bytes=limit * config.high_watermark_percent // 100,
            low_bytes=limit * config.low_watermark_percent // 100,
        )
        views = [aligned_buffer(writeback.BATCH_BYTES) for _ in range(DIRECT_BATCHES)]
        self._direct = WriteAround(self._layer, tier, down, views, second=self._second)
        pool = self._layer.pool
        return Fetcher(
            self._layer,
            tier,
            promote=(lambda: pool.used_bytes < down.high_bytes) if config.promote else None,
            newest_sequence=lambda: down.newest_sequence,
        )

    def _stored(self) -> None:
        if self._writeback is not None:
            self._writeback.kick_if_needed()
        self._second.kick_if_needed()

    def _free_bytes(self) -> int:
        return self._layer.table.state_counts()["empty"] * PAGE_SIZE

    def _count_bug(self) -> None:
        with self._layer.lock:
            self._layer.counters.add("handler_errors")

    # ---- running ----

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until unmounted; *on_ready* is called when requests are being taken.

        :raises GuardError: a guard does not hold, and the configuration insists
        :raises OperationError: a socket or port is taken
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            trio.run(self._main, on_ready)
        except BaseExceptionGroup as group:
            raise _first_cause(group) from None
        finally:
            self._finish_deferred()
            self._stop_threads()
        if self._loop_error is not None:
            raise self._loop_error

    async def _main(self, on_ready: Callable[[], None]) -> None:
        config = self._config
        async with trio.open_nursery() as nursery:
            handlers: dict[str, control.Handler] = {
                "status": self._on_status,
                "stop": self._on_stop,
                "demote": self._on_demote,
                "abort": self._on_abort,
            }
            path = control.socket_path(config.runtime_dir, config.name)
            listen = functools.partial(nursery.start, control.serve, path, handlers)
            await self._offer(nursery, "control", listen)
            if not self._recover:
                await self._offer(nursery, "metrics", self._serve_metrics)
            self._start_threads()
            self._set_guards()
            nursery.start_soon(self._publish_state)
            nursery.start_soon(self._retire_when_asked)
            nursery.start_soon(self._serve_names, nursery.cancel_scope)
            on_ready()
            if self._recover:  # resolving a name may take long; pages come first
                await self._offer(nursery, "metrics", self._serve_metrics)

    async def _serve_metrics(self) -> None:
        if self._config.metrics is not None:
            self._metrics = metrics.serve(self._config.metrics, self._snapshots.make)

    async def _offer(
        self, nursery: trio.Nursery, what: str, serve: Callable[[], Awaitable[object]]
    ) -> None:
        """Start *serve*; in a server that others wait for, go on without it if it fails.

        :raises OperationError: it failed in the first server, which has no pages yet
        """
        try:
            await serve()
        except OperationError as error:
            if not self._recover:
                raise
            log.error("%s; going on without, and trying again", error)
            self._snapshots.problems[what] = str(error)
            nursery.start_soon(self._keep_trying, what, serve)

    async def _keep_trying(self, what: str, serve: Callable[[], Awaitable[object]]) -> None:
        while what in self._snapshots.problems:
            await trio.sleep(RETRY_S)
            with contextlib.suppress(OperationError):
                await serve()
                del self._snapshots.problems[what]

    def _start_threads(self) -> None:
        self._workers.start()
        loops: list[tuple[str, Callable[[], None]]] = [("session", self._session_loop)]
        loops.append(("second try", self._second.run))
        if self._writeback is not None and self._direct is not None:
            loops.append(("writeback", self._writeback.run))
            loops.append(("direct", self._direct.run))
        for name, target in loops:
            threading.Thread(target=target, name=name, daemon=True).start()

    def _set_guards(self) -> None:
        """Set what must come after every thread and buffer exists, then insist on it (I8)."""
        guards = self._guards
        find_loop = functools.partial(loop.find, self._backing)
        fuse, what = self._fuse, "max_background"
        for guard in (
            MemoryLock(self._region.geometry.total_bytes),
            NoCollector(),
            OomScore(),
            Realtime(),
            DirectIo(find_loop),
            Discard(find_loop),
            MaxBackground(REQUESTS_MAX, lambda n: fuse.set(what, n), lambda: fuse.get(what)),
        ):
            guards.set(guard)
        if not self._recover:  # a later server only reports: to stand still would help nobody
            guards.require()

    def _session_loop(self) -> None:
        if self._recover:
            session.replay_init()
            try:
                session.resend()
            except OSError as error:
                log.warning("this kernel resends no requests: %s", error)
        swap_file = self._swap_file
        try:
            reader = self._layer.reader(self._config.size_bytes)
            session.run(
                *(SWAP_INODE, swap_file.read, swap_file.write, swap_file.fallocate),
                *(swap_file.on_failure, reader.capsule()),
            )
        except BaseException as error:  # its end is the end of the server: say why
            self._loop_error = error
            log.critical("the session loop died", exc_info=error)

    async def _serve_names(self, scope: trio.CancelScope) -> None:
        await pyfuse3.main()
        log.info("the session has ended")
        scope.cancel()

    async def _retire_when_asked(self) -> None:
        """Serve what was begun, then end the session without unmounting: another goes on."""
        with trio.open_signal_receiver(RETIRE_SIGNAL) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {RETIRE_SIGNAL})
            async for _ in signals:
                log.info("retiring")
                self._retiring = True
                await trio.to_thread.run_sync(session.stop)

    def _finish_deferred(self) -> None:
        """Wait until every request that was taken is answered.

        Not for ever if the kernel can send them again to the next server, or none will come.
        """
        deadline_s = time.monotonic() + STOP_WAIT_S
        opened = fuse_init.decode(self._region.session_init)
        for_ever = self._retiring and opened is not None and not opened.can_resend
        while session.counts()["in_flight"] and (for_ever or time.monotonic() < deadline_s):
            time.sleep(0.005)

    def _stop_threads(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._writeback is not None and self._direct is not None:
            self._writeback.stop()
            self._direct.stop()
        self._second.stop()
        self._workers.stop(STOP_WAIT_S)

    # ---- what others may ask ----

    async def _publish_state(self) -> None:
        """Keep the world-readable state file fresh, for ``swapfs status`` without root."""
        config = self._config
        while True:
            status = self._snapshots.make().as_dict()
            try:
                control.write_snapshot(config.runtime_dir, config.name, status)
            except OSError as error:
                log.warning("state file of %s: %s", config.name, error.strerror)
            await trio.sleep(STATE_EVERY_S)

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

    async def _on_stop(self, request: dict[str, object]) -> object:
        mountpoint = self._config.mountpoint
        device = loop.find_user(self._backing)
        if device is not None:
            raise OperationError(f"{device.device} is attached to it; run 'swapfs down' instead")
        # Not from this thread: unmounting asks this very thread to serve.
        await trio.to_thread.run_sync(mounts.umount, mountpoint)
        return {"stopped": True}

    async def _on_abort(self, request: dict[str, object]) -> object:
        """End the connection of a mount that is gone from here, and held by another namespace."""
        device = loop.find_user(self._backing)
        if device is not None or mounts.at(self._config.mountpoint) is not None:
            raise OperationError("it is mounted or in use; run 'swapfs down' instead")
        log.warning("another mount namespace holds the mount; ending the session")
        self._fuse.set("abort", 1)
        return {"aborted": True}


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in *group* that is not a group itself."""
    first = group.exceptions[0]
    return _first_cause(first) if isinstance(first, BaseExceptionGroup) else first
