"""The status snapshot: what status, metrics and the state file show of one moment.

Goes over the control socket and into the state file as JSON; the keys are the fields. One
version reads the snapshots of others (``status``, ``upgrade``): keys that it does not know are
left out, and what it misses, or cannot read, is None or empty. Each figure says here what it
means, for metrics and columns alike. Imports nothing that serves, so that commands stay quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swapfs.server.part import Part, figure, hints, table, without_none
from swapfs.tiers.state import TierState


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus(Part):
    """The pool, in bytes."""

    limit_bytes: int | None = figure("Size of the pool; all of it is locked, used or not.")
    used_bytes: int | None = figure("Pool in use, with its waste.")
    payload_bytes: int | None = figure("Pool in use, payload only.")
    peak_bytes: int | None = figure("Largest pool use so far.")
    zspages_free: int | None = figure("Zspages that no size class owns.")
    max_bytes: int | None = figure("Largest size that the pool may be given while it runs.")
    target_bytes: int | None = figure("Size that the pool is being given; 0: none.")
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyStatus(Part):
    """How far ``swapfs verify`` is, in blobs, and what it has found; of this server only."""

    running: bool = False
    done: bool = False
    problem: str = ""
    total: int = 0
    checked: int = 0
    damaged: int = 0
    unreadable: int = 0
    lost: int = 0
    told: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLatency(Part):
    """Reads or writes of a tier by how long they took: a count for each bound, and one more."""

    bounds_s: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sum_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatus(Part):
    """One tier below the pool.

    ``detail`` says in words what is wrong, ``note`` why draining it does not get on; or "".

    ``cautions`` are what may go wrong because of where it is.
    """

    name: str = ""
    kind: str = ""
    priority: int | None = None
    phase: str = ""
    note: str = ""
    slots: int | None = figure("Slots whose blobs are in a tier.")
    path: str = ""
    size_bytes: int | None = figure("Size of a tier.")
    used_bytes: int | None = figure("Tier in use, with its waste.")
    bad_bytes: int | None = figure("Tier given up as bad.")
    map_bytes: int | None = None
    direct_io: bool | None = None
    encrypted: bool | None = None
    free_segments: int | None = None
    segments: int | None = None
    payload_bytes: int | None = figure("Tier in use, payload only.")
    healthy: bool = True
    state: TierState = TierState.UNKNOWN
    detail: str = ""
    cautions: tuple[str, ...] = ()
    budget_hour_bytes: int | None = figure("Bytes that may be written in an hour; 0: any.")
    budget_day_bytes: int | None = figure("Bytes that may be written in a day; 0: any.")
    used_hour_bytes: int | None = figure("Bytes written in this hour.")
    used_day_bytes: int | None = figure("Bytes written in this day.")
    counters: Mapping[str, int] = table()
    reading: TierLatency | None = None
    writing: TierLatency | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardStatus(Part):
    """One guard, as it was last read back."""

    name: str = ""
    ok: bool = False
    required: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapStatus(Part):
    """A swap area, as /proc/swaps has it; of several together, sizes are sums."""

    device: str = ""
    size_bytes: int | None = figure("Size in /proc/swaps; absent when off.")
    used_bytes: int | None = figure("Used in /proc/swaps; absent when off.")
    priority: int | None = figure("Priority in /proc/swaps; absent when off.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStatus(Part):
    """One swap file; ``tiers`` are those below the pool that it may use now."""

    name: str = ""
    size_bytes: int | None = figure("Virtual size of an export.")
    priority: int | None = figure("Swap priority that an export is given.")
    quota_bytes: int | None = figure("Bytes that an export may take; 0: any.")
    tiers: tuple[str, ...] = ()
    slots: int | None = figure("Slots of an export that hold anything.")
    payload_bytes: int | None = figure("Payload of an export, compressed, in pool and tiers.")
    physical_bytes: int | None = figure(
        "What an export takes in pool and tiers, with its swap table; counts against its quota."
    )
    pool_bytes: int | None = figure("What of that is in the pool.")
    counters: Mapping[str, int] = table()
    loop: str | None = None
    loop_sequence: int | None = None
    swap: SwapStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStatus(Part):
    """What the kernel said of its FUSE."""

    fuse_minor: int | None = None
    resend: bool | None = figure(
        "1 if a new server can go on with the requests of a dead one; absent before the mount."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLatencyStatus(Part):
    """Whether CPUs are kept from sleeping for swap-ins; ``problem`` says why not, or ""."""

    mode: str = ""
    held: bool | None = figure("1 while CPUs are kept from sleeping.")
    holds: int | None = figure("Times that CPUs began to be kept from sleeping.")
    held_s: float | None = figure("Seconds for which CPUs were kept from sleeping.")
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySeries(Part):
    """Requests by how long they took: a count for each bound, and one for what took longer."""

    op: str = ""
    tier: str = ""
    counts: tuple[int, ...] = ()
    sum_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Part):
    """The histogram of requests."""

    bounds_s: tuple[float, ...] = ()
    series: tuple[LatencySeries, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Part):
    """One instance at one moment.

    ``born``: see ``proc.births``; ``loop_sequence`` is that of the attachment of ``loop``, the
    device on the first of the ``exports``.
    ``config`` and ``handover`` are for ``upgrade``: what ``model.load`` and ``Handover`` read.
    ``degraded`` are the reasons why it is not as it should be, ``limits`` what it cannot do here.
    ``held``: its monitor has given up restarting the server, and wrote this.
    """

    name: str | None = None
    version: str = ""
    algorithm: str | None = None
    pid: int | None = None
    server_pid: int | None = None
    born: Mapping[str, str] = table()
    mountpoint: str | None = None
    size_bytes: int | None = figure("Virtual size that the kernel sees.")
    overcommit: float | None = figure("Virtual size allowed per byte of room.")
    room_bytes: int | None = figure("Bytes that can be held whatever they are.")
    started_unix_s: float | None = figure("Unix time at which the server started.")
    slots: Mapping[str, int] = table()
    orig_bytes: int | None = figure("Pages held: occupied slots times the page size.")
    compr_bytes: int | None = figure("Payload of them, compressed, in pool and tiers.")
    pool: PoolStatus = PoolStatus()
    metadata_bytes: int | None = figure("Swap table clusters in use.")
    fixed_bytes: int | None = figure("Header, directory, allocators, map of the file.")
    metadata_bytes_per_slot: float | None = None
    clusters: int | None = figure("Swap table clusters of 512 slots in use.")
    tiers: tuple[TierStatus, ...] = ()
    counters: Mapping[str, int] = table()
    latency: Latency = Latency()
    cpu_latency: CpuLatencyStatus | None = None
    requests_in_flight: int | None = figure("Requests being served now.")
    log_dropped: int | None = figure("Records that the log did not take in time.")
    guards: tuple[GuardStatus, ...] = ()
    exports: tuple[ExportStatus, ...] = ()
    loop: str | None = None
    loop_sequence: int | None = None
    swap: SwapStatus | None = None
    config: Mapping[str, Any] = table()
    handover: Mapping[str, Any] = table()
    kernel: KernelStatus | None = None
    verify: VerifyStatus = VerifyStatus()
    limits: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    held: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; ``held`` is a key only while it is so."""
        answer = Part.as_dict(self)
        if not self.held:
            del answer["held"]
        return answer

    @property
    def memory_bytes(self) -> int | None:
        """Memory used: pool, swap table and fixed parts."""
        if self.pool.used_bytes is None:
            return None
        return self.pool.used_bytes + (self.metadata_bytes or 0) + (self.fixed_bytes or 0)

    @property
    def file_bytes(self) -> int:
        """Space taken in the tiers below the pool, with its waste."""
        return sum(tier.used_bytes or 0 for tier in self.tiers)

    @property
    def ratio(self) -> float | None:
        """DATA divided by COMPR."""
        both = self.orig_bytes and self.compr_bytes
        return (self.orig_bytes or 0) / (self.compr_bytes or 1) if both else None


def value_at(status: object, path: str) -> Any:
    """Return the figure at *path* (``pool.used_bytes``, ``slots.raw``); None if it is unknown."""
    value = status
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def meaning(path: str, part: type[Part] = Status) -> str:
    """Return what the figure at *path* of *part* means, as a sentence."""
    head, _, rest = path.partition(".")
    if rest:
        return meaning(rest, without_none(hints(part)[head]))
    found = getattr(part, head, None)
    if isinstance(found, property):
        return (found.__doc__ or "").strip()
    (each,) = (each for each in dataclasses.fields(part) if each.name == head)
    return str(each.metadata["meaning"])
