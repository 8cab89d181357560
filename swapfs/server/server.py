"""The server: runs the parts that ``assemble`` has put together, until unmounted or retired.

One process, forked by the monitor. Threads: the main one runs trio (pyfuse3's namespace, the
control socket, the state file); the session loop; the writeback thread; the direct writer; the
stalled writes, for which room is made; recompression; the workers; the metrics listener.

The first server takes requests when all of that is there. A later one is waited for: it serves
pages first, and sees to names, sockets, guards and the rest afterwards (I9).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from swapfs import session
from swapfs.config.model import Config
from swapfs.config.paths import SWAP_INODE, swap_backings
from swapfs.errors import AddressAbsent, OperationError
from swapfs.host import fusectl, loop
from swapfs.host.device_guards import DirectIo, Discard, MaxBackground, RequestTimeout
from swapfs.host.process_guards import Heap, MemoryLock, NoCollector, OomScore, Realtime
from swapfs.region.layout import Region
from swapfs.server import standstill
from swapfs.server.assemble import assemble
from swapfs.server.commands import Commands
from swapfs.server.cpu_latency import CpuLatency
from swapfs.server.pool_size import PoolSize
from swapfs.server.snapshot import SnapshotMaker, publish_state
from swapfs.server.threads import VitalThreads, in_thread
from swapfs.server.tiering import Tiering, tend
from swapfs.session import fuse_init, pyfuse3
from swapfs.vlayer.stack import Stack
from swapfs.wire import control
from swapfs.wire.control_server import listen, serve
from swapfs.wire.handover import RETIRE_SIGNAL, Handover, lock_path
from swapfs.wire.link import Link

if TYPE_CHECKING:
    from swapfs.server.http_server import HttpServer

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S: Final = 1e-4
"""The most that another Python thread may hold up a request."""
REQUESTS_MAX: Final = 1024
"""Under way at a time: more than a loop device's 128, which may be two or three each."""
STOP_WAIT_S: Final = 10.0
RETRY_S: Final = 5.0


def preload(config: Config) -> None:
    """Import what only some servers need.

    For the monitor: a server reads no module from a disk (I9), and one without metrics does without
    prometheus_client and `http`, 2 MiB that would be locked in both.
    """
    if config.metrics is not None:
        import swapfs.server.metrics  # noqa: F401


class Server:
    """Serves one region on one FUSE connection.

    :param handover: where the monitor holds the mounted /dev/fuse descriptor and the rest
    :param recover: another server served this region and connection: rebuild and resume
    """

    def __init__(
        self,
        config: Config,
        region: Region,
        stack: Stack,
        handover: Handover,
        link: Link,
        *,
        recover: bool = False,
    ) -> None:
        self._config = config
        self._region = region
        self._recover = recover
        self._retiring = False
        self._fuse = fusectl.FuseControl(handover.device)
        self._backings = swap_backings(config.mountpoint, handover.device, config.export_names)
        self._parts = parts = assemble(config, region, stack, handover.fuse_fd, recover=recover)
        self._guards = parts.guards
        down = parts.lower.writeback
        self._cpu_latency = CpuLatency(config.latency)
        self._snapshots = SnapshotMaker(
            config, region, parts.layer, parts.guards, handover, self._cpu_latency
        )
        self._metrics: HttpServer | None = None
        self._threads = VitalThreads(self._on_thread_death)
        self._tiering = Tiering(
            *(config, region, parts.layer, down, link, lock_path(config.runtime_dir, config.name)),
            grow=lambda: parts.grow(self._threads.start),
            changed=self._snapshots.describe,
        )
        self._pool_size = PoolSize(
            *(region, parts.layer, link, self._tiering),
            make_room=parts.make_room,
            fit=functools.partial(parts.fit_to_pool, config),
        )
        self._snapshots.describe(self._tiering.config, None)
        self._snapshots.pool_size = self._pool_size
        self._commands = Commands(
            *(config, self._snapshots, down, self._tiering, self._pool_size, parts.layer),
            *(self._fuse, self._backings),
        )
        self._serving = threading.Event()
        self._on_failure: Callable[[BaseException], None] = lambda error: None

    # ---- running ----

    def run(
        self,
        on_serving: Callable[[], None],
        on_ready: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Serve until unmounted or retired.

        :param on_serving: called when pages are served
        :param on_ready: called when all the rest is there too; first, in a first server, and
            then it may raise to stop it
        :param on_failure: called, from any thread, just before the process ends by itself
        :raises GuardError: a guard does not hold, and the configuration insists
        :raises OperationError: a socket or port is taken
        """
        self._on_failure = on_failure
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            if self._recover:
                self._start_threads()
                on_serving()
                trio.run(self._serve_rest, on_ready)
            else:
                trio.run(self._serve_all, on_serving, on_ready)
        except BaseExceptionGroup as group:
            raise _first_cause(group) from None
        finally:
            self._threads.stopping()
            self._finish_deferred()
            self._stop_threads()

    async def _serve_all(
        self, on_serving: Callable[[], None], on_ready: Callable[[], None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            await self._offer(nursery, "control", functools.partial(self._serve_control, nursery))
            await self._offer(nursery, "metrics", self._serve_metrics)
            self._start_threads()
            self._cpu_latency.start()
            self._set_guards()
            self._guards.require()
            self._start_tasks(nursery)
            nursery.start_soon(publish_state, self._config, self._snapshots)
            on_ready()
            on_serving()

    async def _serve_rest(self, on_ready: Callable[[], None]) -> None:
        async with trio.open_nursery() as nursery:
            self._start_tasks(nursery)
            self._cpu_latency.start()
            await self._offer(nursery, "control", functools.partial(self._serve_control, nursery))
            self._guards.set(Heap())
            self._guards.set(MemoryLock(self._region.geometry.total_bytes))
            self._set_guards()  # only reported: to stand still would help nobody
            nursery.start_soon(publish_state, self._config, self._snapshots)
            on_ready()
            await self._offer(nursery, "metrics", self._serve_metrics)

    def _start_tasks(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._serve_names, nursery.cancel_scope)
        nursery.start_soon(self._retire_when_asked)
        nursery.start_soon(tend, self._tiering, self._pool_size.trim)

    async def _serve_control(self, nursery: trio.Nursery) -> None:
        listener = listen(control.socket_path(self._config.runtime_dir, self._config.name))
        nursery.start_soon(serve, listener, self._commands.handlers())

    async def _serve_metrics(self) -> None:
        if self._config.metrics is None:
            return
        from swapfs.server import live, metrics  # there already: see preload()

        view = live.LiveView(self._parts.layer).as_json
        serve = functools.partial(metrics.serve, self._config.metrics, self._snapshots.make, view)
        if not self._recover:
            self._metrics = serve()
            return
        # A name is looked up, which may take long, and this thread has names to serve as well.
        self._metrics = await in_thread(serve, abandon_on_cancel=True)

    async def _offer(
        self, nursery: trio.Nursery, what: str, serve: Callable[[], Awaitable[object]]
    ) -> None:
        """Start *serve*; in a server that others wait for, go on without it if it fails.

        So does the first one where an address may still come: at boot, swap is there before it.

        :raises OperationError: it failed in the first server, which has no pages yet
        """
        try:
            await serve()
        except OperationError as error:
            if not self._recover and not isinstance(error, AddressAbsent):
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

    def _set_guards(self) -> None:
        """Set what must come after every thread and buffer exists (I8)."""
        find_loops = functools.partial(loop.find_all, self._backings)
        fuse, what = self._fuse, "max_background"
        standstill.watch(self._guards, find_loops, self._parts.layer, self._threads)
        for guard in (
            NoCollector(),
            OomScore(),
            Realtime(),
            DirectIo(find_loops),
            Discard(find_loops),
            RequestTimeout(),
            MaxBackground(REQUESTS_MAX, lambda n: fuse.set(what, n), lambda: fuse.get(what)),
        ):
            self._guards.set(guard)

    # ---- threads ----

    def _start_threads(self) -> None:
        """Start the threads, and wait until pages are served."""
        parts, start = self._parts, self._threads.start
        parts.workers.start(start)
        start("stalled writes", parts.stalled.run)
        start("writeback", parts.lower.writeback.run)
        start("direct", parts.lower.direct.run)
        if parts.recompressor is not None:
            start("recompress", parts.recompressor.run)
        start("session", self._session_loop)
        self._serving.wait()

    def _session_loop(self) -> None:
        swap_file, layer = self._parts.swap_file, self._parts.layer
        reader, files = layer.reader(self._config.span_bytes), layer.exports.files()
        if self._recover:
            session.replay_init()
            try:
                session.resend()
            except OSError as error:
                log.warning("this kernel resends no requests: %s", error)
        self._serving.set()
        session.run(
            *(SWAP_INODE, files, swap_file.read, swap_file.write, swap_file.fallocate),
            *(swap_file.on_failure, reader.capsule(), self._parts.below),
        )
        self._threads.stopping()

    def _on_thread_death(self, name: str, error: BaseException) -> None:
        """End the process: what is left of it would keep the monitor from starting another."""
        log.critical("the %s thread has died, and the server with it", name, exc_info=error)
        self._on_failure(error)
        if not self._can_resend():
            self._finish_deferred()
        os._exit(1)

    def _can_resend(self) -> bool:
        """Whether requests under way come again, to the next server."""
        opened = fuse_init.decode(self._region.session_init)
        return opened is None or opened.can_resend

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
                await in_thread(session.stop)

    def _finish_deferred(self) -> None:
        """Wait until every request that was taken is answered.

        Not for ever if the kernel can send them again to the next server, or none will come.
        """
        deadline_s = time.monotonic() + STOP_WAIT_S
        for_ever = self._retiring and not self._can_resend()
        while session.counts()["in_flight"] and (for_ever or time.monotonic() < deadline_s):
            time.sleep(0.005)

    def _stop_threads(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        self._parts.lower.writeback.stop()
        self._parts.lower.direct.stop()
        if self._parts.recompressor is not None:
            self._parts.recompressor.stop()
        self._parts.stalled.stop()
        self._parts.workers.stop(STOP_WAIT_S)


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in *group* that is not a group itself."""
    first = group.exceptions[0]
    return _first_cause(first) if isinstance(first, BaseExceptionGroup) else first
