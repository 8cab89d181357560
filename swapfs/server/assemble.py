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
from swapfs.server.workers import StartThread, Workers, aligned_buffer
from swapfs.session import pyfuse3
from swapfs.units import PAGE_SIZE
from swapfs.vlayer import fetch, recompress, writeback
from swapfs.vlayer.choice import Chooser
from swapfs.vlayer.disks import make_disks
from swapfs.vlayer.fetch import Fetcher
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.prefetch import Prefetcher
from swapfs.vlayer.recode_staged import StagedRecoder
from swapfs.vlayer.recompress import Recompressor
from swapfs.vlayer.stack import Stack
from swapfs.vlayer.stalled import StalledWrites
from swapfs.vlayer.write_around import WriteAround
from swapfs.vlayer.writeback import Writeback

THREAD_STACK_BYTES: Final = 512 * 1024
"""Locked in memory for each thread. Most use 12 KiB, but the lz4 package's ``compress`` has its
table for high compression (262 KiB) in its frame whether that is asked for or not, so a thread that
writes around was seen at 273 KiB; with 256 KiB servers died of SIGSEGV."""
WORKERS_WITH_FILE: Final = 4
DIRECT_BATCHES: Final = 4
DIRECT_BATCHES_WITHOUT: Final = 1
"""Without a tier below none is filled, but a tier may come."""
STALLED_WRITES: Final = 2
DEMOTED_AT_ONCE: Final = 2048
"""Pages, for a pool that is made smaller."""
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
    """A server that is put together."""

    guards: Guards
    layer: VirtualSlotLayer
    workers: Workers
    stalled: StalledWrites
    lower: Lower
    recompressor: Recompressor | None
    swap_file: SwapFile
    below: object
    """What the session may read disks by, without Python; None: reads may bring pages back."""

    def fit_to_pool(self, config: Config, pool_bytes: int) -> None:
        """Have watermarks and the like fit a pool of *pool_bytes*."""
        down = self.lower.writeback
        down.low_bytes = pool_bytes * config.low_watermark_percent // 100
        down.high_bytes = pool_bytes * config.high_watermark_percent // 100
        self.stalled.compactor.fit_to_pool()
        if self.recompressor is not None:
            share = config.recompress_watermark_percent
            self.recompressor.start_bytes = pool_bytes * share // 100

    def make_room(self, pages: int) -> bool:
        """Have about *pages* pages leave the pool, or moved together in it; False: none is."""
        down = self.lower.writeback
        moved = down.demote_if_it_gets_on(min(pages, DEMOTED_AT_ONCE))
        return moved > 0 or self.stalled.make_room(1)

    def grow(self, start_thread: StartThread) -> None:
        """Have what reads and writes below take, in a server that began without a tier there."""
        if self.workers.grow(WORKERS_WITH_FILE, start_thread):
            more = DIRECT_BATCHES - DIRECT_BATCHES_WITHOUT
            self.lower.direct.add_batches(
                [aligned_buffer(writeback.BATCH_BYTES) for _ in range(more)]
            )


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
    reply = session.arm(region.session_init)
    stalled = StalledWrites(layer, [aligned_buffer(len(reply)) for _ in range(STALLED_WRITES)])
    lower = _lower(config, region, layer, stalled)
    disks = make_disks(layer, lower.writeback.writer.newest, WORKERS_WITH_FILE)
    workers = Workers(
        *(disks, WORKERS_WITH_FILE if stack else 1, len(reply) + 2 * PAGE_SIZE),
        fetch.SCRATCH_BYTES,
    )
    swap_file = SwapFile(
        layer,
        config.span_bytes,
        reply,
        workers,
        PartialWrites(layer, stalled.compactor.make_room, lower.fetcher, lower.direct),
        lower.direct,
        fetcher=lower.fetcher,
        overtake=session.overtake,
        stored=_stored(stalled, lower),
        place=lower.writeback.chooser.place,
    )
    workers.read_late = swap_file.read_late
    pyfuse3.init(_namespace(config, layer), f"/dev/fd/{fuse_fd}", set())
    recompressor = _recompressor(config, region, layer, stalled, lower)
    if not recover:
        guards.set(Heap())  # last, so that what is free then is free for serving
    brings_up = config.promote or config.prefetch_pages
    stays_below = not brings_up and lower.writeback.chooser.leaves_below
    below = disks.capsule() if stays_below else None
    return Parts(guards, layer, workers, stalled, lower, recompressor, swap_file, below)


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
    limit, pool = region.pool_bytes, layer.pool
    chooser = Chooser(layer, policy.find(config.policy), raw_first=config.raw_first)
    down = Writeback(
        layer,
        aligned_buffer(writeback.BATCH_BYTES),
        aligned_buffer(writeback.SCRATCH_BYTES),
        high_bytes=limit * config.high_watermark_percent // 100,
        low_bytes=limit * config.low_watermark_percent // 100,
        chooser=chooser,
        compactor=stalled.compactor,
    )
    batches = DIRECT_BATCHES if layer.stack else DIRECT_BATCHES_WITHOUT
    views = [aligned_buffer(writeback.BATCH_BYTES) for _ in range(batches)]

    def has_room() -> bool:
        return pool.used_bytes < down.high_bytes

    def promote(slot: int, refaulted: bool) -> bool:
        wanted = config.promote
        return has_room() and chooser.brings_back(slot, refaulted=refaulted, otherwise=wanted)

    most, prefetcher = config.prefetch_pages, None
    if most:
        prefetcher = Prefetcher(layer, chooser.prefetch, most, has_room)

    fetcher = Fetcher(
        layer,
        promote=promote,
        newest_sequence=lambda: down.newest_sequence,
        prefetcher=prefetcher,
    )
    return Lower(down, WriteAround(layer, down, views, stalled=stalled), fetcher)


def _recompressor(
    config: Config,
    region: Region,
    layer: VirtualSlotLayer,
    stalled: StalledWrites,
    lower: Lower,
) -> Recompressor | None:
    """Return what puts cold pages into zstd, and have those that go down go so; None: nothing."""
    if not config.recompress:
        return None
    level = config.recompress_level
    recoders = [Recoder(level, False) for _ in range(WRITING_THREADS)]
    lower.writeback.writer.recoder = StagedRecoder(recoders)
    return Recompressor(
        layer,
        Recoder(level, True),
        aligned_buffer(recompress.VIEW_BYTES),
        stalled.compactor,
        start_bytes=region.pool_bytes * config.recompress_watermark_percent // 100,
    )


def _stored(stalled: StalledWrites, lower: Lower) -> Callable[[], None]:
    """Return what looks at the pool after each write."""
    down = lower.writeback

    def kick() -> None:
        down.kick_if_needed()
        stalled.kick_if_needed()

    return kick


def _namespace(config: Config, layer: VirtualSlotLayer) -> Namespace:
    def count_bug() -> None:
        with layer.lock:
            layer.counters.add("handler_errors")

    return Namespace([(e.name, e.size_bytes) for e in config.exports], count_bug)
