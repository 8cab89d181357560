"""What a snapshot tells of each swap file: what it has, its loop device and its swap area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from swapfs.host import loop, swap
from swapfs.server.status import ExportStatus, SwapStatus
from swapfs.units import PAGE_SIZE

if TYPE_CHECKING:
    from swapfs.host.loop import Backing, LoopDevice
    from swapfs.host.swap import SwapEntry
    from swapfs.vlayer.layer import VirtualSlotLayer

Attachment: TypeAlias = "tuple[LoopDevice | None, SwapEntry | None]"
"""The loop device on a swap file and the swap area on that, as the kernel says."""


def attachments(backings: Sequence[Backing]) -> list[Attachment]:
    """Return that of each of *backings*.

    :raises OperationError: they cannot be seen
    """
    there = loop.devices()
    areas = {entry.path: entry for entry in swap.entries()}
    found: list[Attachment] = []
    for backing in backings:
        device = next((each for each in there if loop.stands_on(each, backing)), None)
        found.append((device, areas.get(str(device.device)) if device else None))
    return found


def export_statuses(
    layer: VirtualSlotLayer, attached: Sequence[Attachment]
) -> tuple[ExportStatus, ...]:
    """Return what is told of each export; the layer's lock is not held."""
    found = []
    for export, (device, area) in zip(layer.exports, attached, strict=True):
        with layer.lock:
            found.append(
                ExportStatus(
                    name=export.name,
                    size_bytes=export.slots * PAGE_SIZE,
                    priority=export.priority,
                    quota_bytes=export.quota_bytes,
                    tiers=tuple(level.name for level in layer.exports.levels((export,))),
                    slots=export.stored,
                    payload_bytes=export.payload_bytes,
                    physical_bytes=export.physical_bytes,
                    pool_bytes=export.bytes_in(0),
                    counters=export.figures.counters(),
                    loop=str(device.device) if device else None,
                    loop_sequence=device.sequence if device else None,
                    swap=_area(area),
                )
            )
    return tuple(found)


def all_areas(exports: Sequence[ExportStatus]) -> SwapStatus | None:
    """Return the swap areas of *exports* as one: what holds for the instance; None: swap is off."""
    areas = [export.swap for export in exports if export.swap is not None]
    if not areas:
        return None
    return SwapStatus(
        device=areas[0].device,
        size_bytes=sum(area.size_bytes or 0 for area in areas),
        used_bytes=sum(area.used_bytes or 0 for area in areas),
        priority=areas[0].priority,
    )


def _area(area: SwapEntry | None) -> SwapStatus | None:
    if area is None:
        return None
    return SwapStatus(
        device=area.path,
        size_bytes=area.size_bytes,
        used_bytes=area.used_bytes,
        priority=area.priority,
    )
