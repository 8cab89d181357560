"""Making the status snapshot of a server (``status.py``).

Costs the same whatever is stored: only counters are read, never the table.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import trio

from swapfs import __version__, session
from swapfs.config.model import Config, describe
from swapfs.config.paths import swap_backings
from swapfs.errors import OperationError
from swapfs.host import journal, proc
from swapfs.host.guards import Guards
from swapfs.region.layout import Region
from swapfs.server.cpu_latency import CpuLatency
from swapfs.server.export_status import (
    Attachment,
    all_areas,
    attachments,
    export_statuses,
)
from swapfs.server.status import (
    ExportStatus,
    GuardStatus,
    KernelStatus,
    Latency,
    LatencySeries,
    PoolStatus,
    Status,
    TierLatency,
    TierStatus,
    VerifyStatus,
)
from swapfs.server.verify import Verifying
from swapfs.session import fuse_init
from swapfs.units import PAGE_SIZE
from swapfs.vlayer.capacity import guaranteed_bytes
from swapfs.vlayer.codec import ALGORITHM
from swapfs.vlayer.durations import BOUNDS_S, Durations
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level, Stack
from swapfs.wire import control, state_file
from swapfs.wire.handover import Handover

log = logging.getLogger(__name__)

STATE_EVERY_S: Final = 1.0
GUARDS_EVERY_S: Final = 5.0
"""The age that guards in metrics and state file may have; status reads them back at once."""


class Resizing(Protocol):
    """What tells of a pool that is made another size."""

    @property
    def target_bytes(self) -> int:
        """The size that it is to have; 0: that which it has."""

    @property
    def problem(self) -> str:
        """Why the last change came to nothing."""


class SnapshotMaker:
    """Makes snapshots of one server; any thread may call it.

    :param handover: of the monitor, whose end is the end of the instance
    :param cpu_latency: keeps CPUs awake

    ``problems`` are those of the server itself, by what has them: reasons why it is degraded.
    """

    def __init__(
        self,
        config: Config,
        region: Region,
        layer: VirtualSlotLayer,
        guards: Guards,
        handover: Handover,
        cpu_latency: CpuLatency,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._layer = layer
        self._region = region
        self._fixed_bytes = _fixed_bytes(region, layer.stack)
        self._guards = guards
        self._monitor_pid = handover.pid
        self._handover = handover.as_dict()
        self._cpu_latency = cpu_latency
        self._described = json.loads(describe(config, as_json=True))
        self._clock_s = clock_s
        self._started_s = clock_s()
        self._guards_read: tuple[GuardStatus, ...] = ()
        self._guards_read_s = -GUARDS_EVERY_S
        self._backings = swap_backings(config.mountpoint, handover.device, config.export_names)
        self._wanted_path = control.wanted_path(config.runtime_dir, config.name)
        self.problems: dict[str, str] = {}
        self.pool_size: Resizing | None = None
        self.verifying: Verifying | None = None
        self._room_bytes = guaranteed_bytes(region.now, *config.tier_bytes)
        self._loop_errors = 0

    def describe(self, config: Config, handover: Handover | None) -> None:
        """Show another configuration from now on, and where its monitor has what it holds."""
        self._described = json.loads(describe(config, as_json=True))
        self._room_bytes = guaranteed_bytes(self._region.now, *config.tier_bytes)
        self._fixed_bytes = _fixed_bytes(self._region, self._layer.stack)
        if handover is not None:
            self._handover = handover.as_dict()

    def make(self, *, fresh: bool = False) -> Status:
        """Return the snapshot of this moment.

        :param fresh: read every guard back now, not only every GUARDS_EVERY_S
        """
        config = self._config
        opened = fuse_init.decode(self._region.session_init)
        guards = self._verified(fresh)
        stored, exports = self._stored(), export_statuses(self._layer, self._attachments())
        area = all_areas(exports)
        return Status(
            name=config.name,
            version=__version__,
            algorithm=ALGORITHM,
            pid=self._monitor_pid,
            server_pid=os.getpid(),
            born=self._born,
            mountpoint=str(config.mountpoint),
            size_bytes=config.virtual_bytes,
            overcommit=config.overcommit,
            room_bytes=self._room_bytes,
            started_unix_s=self._started_s,
            fixed_bytes=self._fixed_bytes,
            **stored,
            latency=_latency(),
            cpu_latency=self._cpu_latency.status(),
            requests_in_flight=session.counts()["in_flight"],
            log_dropped=journal.dropped(),
            guards=guards,
            exports=exports,
            loop=exports[0].loop,
            loop_sequence=exports[0].loop_sequence,
            swap=area,
            config=self._described,
            handover=self._handover,
            kernel=KernelStatus(**opened.as_dict()) if opened else None,
            verify=self.verifying.status() if self.verifying else VerifyStatus(),
            limits=self._limits(opened),
            degraded=self._degraded(guards, stored["tiers"], exports),
        )

    @functools.cached_property
    def _born(self) -> dict[str, str]:
        return proc.births(self._monitor_pid, os.getpid())

    def _verified(self, fresh: bool) -> tuple[GuardStatus, ...]:
        """Return the guards as last read back: that is a third of what a snapshot costs."""
        now_s = time.monotonic()
        if fresh or now_s - self._guards_read_s >= GUARDS_EVERY_S:
            self._guards_read_s = now_s
            self._guards_read = tuple(
                GuardStatus(**guard.as_dict()) for guard in self._guards.verify()
            )
        return self._guards_read

    def _stored(self) -> dict[str, Any]:
        """Return the fields that the layer knows; the only part that takes its lock."""
        layer = self._layer
        with layer.lock:
            self._keep_loop_errors()
            slots = layer.table.state_counts()
            pool = layer.pool.stats()
            counters = layer.counters.snapshot()
            clusters, table_bytes = layer.table.live_clusters, layer.table.table_bytes
            tier_slots = [layer.table.slots_in(level.number) for level in layer.stack]
            payload_bytes = [level.payload_bytes for level in layer.stack]
        occupied = sum(slots.values()) - slots["empty"]
        return {
            "slots": slots,
            "orig_bytes": occupied * PAGE_SIZE,
            "compr_bytes": pool.payload_bytes + sum(payload_bytes),
            "pool": PoolStatus(
                limit_bytes=pool.limit_bytes,
                used_bytes=pool.used_bytes,
                payload_bytes=pool.payload_bytes,
                peak_bytes=pool.peak_bytes,
                zspages_free=pool.zspages_free,
                max_bytes=self._region.geometry.pool_bytes,
                target_bytes=self.pool_size.target_bytes if self.pool_size else 0,
                note=self.pool_size.problem if self.pool_size else "",
            ),
            "metadata_bytes": table_bytes,
            "metadata_bytes_per_slot": round(table_bytes / occupied, 2) if occupied else 0.0,
            "clusters": clusters,
            "tiers": tuple(map(_tier, layer.stack, tier_slots, payload_bytes)),
            "counters": counters,
        }

    def _keep_loop_errors(self) -> None:
        """Add what the session loop has counted since the last time to the region's counter.

        The loop counts in this process and starts at 0 in the next one. Only what is in the
        region is ever shown, so the counter never falls. The layer's lock is held.
        """
        errors = session.counts()["handler_errors"]
        self._layer.counters.add("handler_errors", errors - self._loop_errors)
        self._loop_errors = errors

    def _attachments(self) -> list[Attachment]:
        """Return the loop devices on the swap files and the swap areas on them."""
        try:
            found = attachments(self._backings)
        except OperationError as error:  # somebody unmounted sysfs: pages go on
            self.problems["loop"] = f"whether swap is on cannot be seen: {error}"
            return [(None, None)] * len(self._backings)
        self.problems.pop("loop", None)
        return found

    def _limits(self, opened: fuse_init.KernelSession | None) -> tuple[str, ...]:
        """Say what it cannot do here, and what may go wrong because of where it is."""
        limits: tuple[str, ...]
        limits = (fuse_init.CANNOT_RESEND,) if opened and not opened.can_resend else ()
        if problem := self._cpu_latency.status().problem:
            limits = (*limits, f"swap-ins wait for CPUs that sleep: {problem}")
        cautions = (level.tier.stats().cautions for level in self._layer.stack)
        return (*limits, *itertools.chain.from_iterable(cautions))

    def _degraded(
        self,
        guards: Iterable[GuardStatus],
        tiers: Iterable[TierStatus],
        exports: Iterable[ExportStatus],
    ) -> tuple[str, ...]:
        """Say what is not as it should be; nothing means nothing."""
        reasons = [
            f"guard {guard.name}: {guard.detail}"
            for guard in guards
            if guard.required and not guard.ok
        ]
        reasons += [f"{tier.name} tier: {tier.detail}" for tier in tiers if not tier.healthy]
        off = [export.name for export in exports if export.swap is None]
        if off and self._wanted_path.exists():
            some = f" on {', '.join(off)}" if len(self._backings) > 1 else ""
            reasons.append(f"swap{some} was turned off from outside: 'swapfs up' turns it on again")
        if os.getpid() != self._monitor_pid and os.getppid() != self._monitor_pid:
            reasons.append("the monitor is gone: nobody restarts this server when it dies")
        return (*reasons, *self.problems.values())


def _tier(level: Level, slots: int, payload_bytes: int) -> TierStatus:
    now_s = time.monotonic()
    state = level.state(now_s)
    (hour_bytes, used_hour_bytes), (day_bytes, used_day_bytes) = level.budget.figures(
        now_s
    ).values()
    return TierStatus(
        **level.tier.stats().as_dict() | {"name": level.name},
        kind=level.tier.kind,
        priority=level.priority,
        phase=level.phase,
        note=level.note,
        slots=slots,
        payload_bytes=payload_bytes,
        healthy=state.healthy,
        state=state,
        detail=level.problem(now_s),
        budget_hour_bytes=hour_bytes,
        budget_day_bytes=day_bytes,
        used_hour_bytes=used_hour_bytes,
        used_day_bytes=used_day_bytes,
        counters=level.figures.counters(),
        reading=_durations(level.reading),
        writing=_durations(level.writing),
    )


def _durations(taken: Durations) -> TierLatency:
    return TierLatency(bounds_s=BOUNDS_S, counts=tuple(taken.counts), sum_s=taken.sum_s)


def _latency() -> Latency:
    found = session.latency()
    series = (LatencySeries(**{**one, "counts": tuple(one["counts"])}) for one in found["series"])
    return Latency(bounds_s=tuple(found["bounds_s"]), series=tuple(series))


def _fixed_bytes(region: Region, stack: Stack) -> int:
    """Return what an empty instance costs: tables, and the lists derived from them."""
    lists = 15 * region.geometry.zspages + 13 * region.geometry.clusters
    return region.fixed_bytes + lists + sum(level.tier.stats().map_bytes for level in stack)


async def publish_state(config: Config, snapshots: SnapshotMaker) -> None:
    """Keep the world-readable state file fresh, for ``swapfs status`` without root."""
    while True:
        try:
            state_file.write(config.runtime_dir, config.name, snapshots.make().as_dict())
        except OSError as error:
            log.warning("state file of %s: %s", config.name, error.strerror)
        except Exception:  # what nobody's page depends on must not end the server
            log.exception("no status to write")
        await trio.sleep(STATE_EVERY_S)
