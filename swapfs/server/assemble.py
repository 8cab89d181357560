"""The parts of a server, made and connected: everything that serving needs, and not yet running.

All memory that serving needs is reserved here, before a request is taken (I5). A server that
follows another is waited for: it makes what a page needs and nothing else, and looks at no file
that could be in the swap that stands still (I9). So its memory is locked as it is touched; the
rest is done by `Guards` when it serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swapfs import policy, session
from swapfs.config.model import Config
from swapfs.core._core import Recoder
from swapfs.fs import Namespace
from swapfs.host.guards import Guards
from swapfs.host.process_guards import Heap, IoFlusher, MemoryLock, Realtime
from swapfs.region.layout import Region
from swapfs.server.partial import PartialWrites
from swapfs.server.swap_file import SwapFile
from swapfs.server.workers import Workers, aligned_buffer
from swapfs.session import pyfuse3
from swapfs.units import PAGE_SIZE
from swapfs.vlayer import fetch, recompress, writeback
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.fetch import Fetcher
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.recode_staged import StagedRecoder
from swapfs.vlayer.recompress import Recompressor
from swapfs.vlayer.stack import Stack
from swapfs.vlayer.stalled import StalledWrites
from swapfs.vlayer.write_around import WriteAround
from swapfs.vlayer.writeback import Writeback

THREAD_STACK_BYTES: Final = 512 * 1024
"""Locked in memory for each thread; lz4 takes 16 KiB of it."""
WORKERS_WITH_FILE: Final = 4
DIRECT_BATCHES: Final = 4
STALLED_WRITES: Final = 2
WRITING_THREADS: Final = 2
"""That of the mover, and the direct one."""


@dataclass(frozen=True, slots=True)
class Lower:
    """What moves pages to and from the tiers below."""

    writeback: Writeback
    direct: WriteAround
    fetcher: Fetcher


@dataclass(frozen=True, slots=True)
class Parts:
    """A server that is put together. *lower* is None without a tier below."""

    guards: Guards
    layer: VirtualSlotLayer
    workers: Workers
    stalled: StalledWrites
    lower: Lower | None
    recompressor: Recompressor | None
    swap_file: SwapFile


def assemble(config: Config, region: Region, stack: Stack, fuse_fd: int, *, recover: bool) -> Parts:
    """Return the parts of a server of *region* on the FUSE connection *fuse_fd*.

    :param recover: another server served both: rebuild what can be derived, and resume
    """
    guards = _prepare_process(config, region, recover=recover)
    stack.prepare()
    layer = VirtualSlotLayer(region, stack)
    if recover:
        layer.rebuild()
    layer.counters.add("server_starts")
    request, reply = session.arm(region.session_init)
    workers = Workers(
        WORKERS_WITH_FILE if stack else 1, len(reply) + 2 * PAGE_SIZE, fetch.SCRATCH_BYTES
    )
    stalled = StalledWrites(layer, [aligned_buffer(len(request)) for _ in range(STALLED_WRITES)])
    lower = _lower(config, region, layer, stalled) if stack else None
    fetcher, direct = (lower.fetcher, lower.direct) if lower else (None, None)
    swap_file = SwapFile(
        layer,
        config.size_bytes,
        request,
        reply,
        workers,
        PartialWrites(layer, stalled.compactor.make_room, fetcher, direct),
        direct or stalled,
        fetcher=fetcher,
        stored=_stored(stalled, lower),
        place=lower.writeback.chooser.place if lower else None,
    )
    pyfuse3.init(_namespace(config, layer), f"/dev/fd/{fuse_fd}", set())
    recompressor = _recompressor(config, region, layer, stalled, lower)
    if not recover:
        guards.set(Heap())  # last, so that what is free then is free for serving
    return Parts(guards, layer, workers, stalled, lower, recompressor, swap_file)


def _prepare_process(config: Config, region: Region, *, recover: bool) -> Guards:
    """Set what threads inherit, and what must hold before a page of memory is used.

    To populate all that is locked takes some 0.2 s for each GiB of the pool, and needs memory
    while nothing can be swapped out: a later server does that when it serves.
    """
    guards = Guards(config.unsafe)
    guards.set(IoFlusher())
    guards.set(MemoryLock(region.geometry.total_bytes, on_fault=recover))
    guards.set(Realtime([threading.get_native_id()]))
    threading.stack_size(THREAD_STACK_BYTES)
    return guards


def _lower(
    config: Config,
    region: Region,
    layer: VirtualSlotLayer,
    stalled: StalledWrites,
) -> Lower:
    limit, pool = region.geometry.pool_bytes, layer.pool
    chooser = Chooser(layer, policy.find(config.policy), raw_first=config.raw_first)
    down = Writeback(
        layer,
        aligned_buffer(writeback.BATCH_BYTES),
        aligned_buffer(writeback.SCRATCH_BYTES),
        high_bytes=limit * config.high_watermark_percent // 100,
        low_bytes=limit * config.low_watermark_percent // 100,
        chooser=chooser,
    )
    views = [aligned_buffer(writeback.BATCH_BYTES) for _ in range(DIRECT_BATCHES)]

    def promote(slot: int, refaulted: bool) -> bool:
        room = pool.used_bytes < down.high_bytes
        wanted = config.promote
        return room and chooser.brings_back(slot, refaulted=refaulted, otherwise=wanted)

    fetcher = Fetcher(
        layer,
        promote=promote,
        newest_sequence=lambda: down.newest_sequence,
    )
    return Lower(down, WriteAround(layer, down, views, stalled=stalled), fetcher)


def _recompressor(
    config: Config,
    region: Region,
    layer: VirtualSlotLayer,
    stalled: StalledWrites,
    lower: Lower | None,
) -> Recompressor | None:
    """Return what puts cold pages into zstd, and have those that go down go so; None: nothing."""
    if not config.recompress:
        return None
    level = config.recompress_level
    if lower is not None:
        recoders = [Recoder(level, 0, False) for _ in range(WRITING_THREADS)]
        lower.writeback.writer.recoder = StagedRecoder(recoders)
    return Recompressor(
        layer,
        Recoder(level, 0, True),
        aligned_buffer(recompress.VIEW_BYTES),
        stalled.compactor,
        start_bytes=region.geometry.pool_bytes * config.recompress_watermark_percent // 100,
    )


def _stored(stalled: StalledWrites, lower: Lower | None) -> Callable[[], None]:
    """Return what looks at the pool after each write."""
    if lower is None:
        return stalled.kick_if_needed
    down = lower.writeback

    def kick() -> None:
        down.kick_if_needed()
        stalled.kick_if_needed()

    return kick


def _namespace(config: Config, layer: VirtualSlotLayer) -> Namespace:
    def count_bug() -> None:
        with layer.lock:
            layer.counters.add("handler_errors")

    return Namespace(config.size_bytes, count_bug)
