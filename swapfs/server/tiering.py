"""Tiers that come, go and change while the instance runs: what a server does when it is asked.

Each step leaves something that the next server understands, as this one may be killed at any
time. A tier is added by the monitor's taking its descriptor and writing its row: from then on every
server has it. One that is to leave says so in its row and is drained; empty, its row says GONE,
and only then is it closed, by the monitor first and by the server last. An upgrade is kept out
of the moments between (``handover.exclusively``).
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from swapfs.config import values
from swapfs.config.current import current
from swapfs.config.far import FarConfig
from swapfs.config.model import Config
from swapfs.config.tiers import TierConfig, read_change, read_tiers
from swapfs.errors import ConfigError, OperationError
from swapfs.host import proc
from swapfs.host.proc import meminfo_bytes
from swapfs.region.layout import Region
from swapfs.region.stack_rows import GONE, RowFigures, read_rows
from swapfs.server.open_tier import open_tier, tier_on
from swapfs.server.threads import in_thread
from swapfs.tiers.file import FileTier
from swapfs.units import TIERS_MAX, MiB, format_size
from swapfs.vlayer.capacity import guaranteed_bytes, require_room
from swapfs.vlayer.layer import VirtualSlotLayer
from swapfs.vlayer.stack import Level, Phase
from swapfs.vlayer.writeback import Writeback
from swapfs.wire.handover import Handover, exclusively
from swapfs.wire.link import Link, NoAnswer

log = logging.getLogger(__name__)

LET_GO_EVERY_S: Final = 0.25
CLIENT_BYTES: Final = 64 * MiB
"""What must be available for the client of far memory: it takes some 10 MiB here, and in the
monitor."""


class Tiering:
    """Changes the stack of one server. Its methods block, and are called one at a time.

    :param grow: called before the first tier is used
    :param changed: told of the configuration and the hand-over that hold from then on
    """

    def __init__(
        self,
        config: Config,
        region: Region,
        layer: VirtualSlotLayer,
        writeback: Writeback,
        link: Link,
        lock_path: Path,
        *,
        grow: Callable[[], None],
        changed: Callable[[Config, Handover | None], None],
    ) -> None:
        self.config = current(config, region)
        self._region = region
        self._layer = layer
        self._writeback = writeback
        self._link = link
        self._lock_path = lock_path
        self._grow = grow
        self._changed = changed
        self._one = threading.Lock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other changes and upgrades out for the time of the block.

        :raises OperationError: an upgrade is under way
        """
        with self._one, exclusively(self._lock_path):
            yield

    def named(self, name: str) -> Level:
        """Return the level that is called *name*.

        :raises OperationError: there is none
        """
        level = self._layer.stack.named(name)
        if level is None:
            raise OperationError(f"there is no tier {values.one_line(name)}")
        return level

    # ---- add ----

    def add(self, table: Mapping[str, Any]) -> Level:
        """Add the tier that *table*, of the keys of ``[[tier]]``, describes.

        :raises SwapfsError: it cannot be; nothing has changed, but for a file that was made
        """
        with self.alone():
            stack = self._layer.stack
            number = stack.free_number()
            if number is None:
                raise OperationError(f"there are {TIERS_MAX - 1} tiers; remove one first")
            tier = self._describe(table, number)
            made = tier.far is None and not tier.file.path.exists()
            medium = open_tier(self.config, tier, self._region)
            known = medium.known if isinstance(medium, FileTier) else None
            # All that may fail comes before the monitor has it: then every server does.
            level = Level(number, tier.name, tier_on(medium), tier.priority)
            try:
                level.tier.prepare()
                self._grow()
                handover = self._link.ask("add", medium.fd, number=number, tier=tier, known=known)
            except BaseException as error:
                medium.close()
                if isinstance(error, NoAnswer):  # it may have it yet: then it lets it go again
                    self._link.tell("forget", number=number)
                elif made:
                    tier.file.path.unlink(missing_ok=True)
                raise
            gc.freeze()  # a client that was loaded is not looked at again (tiers/engine.py)
            with self._layer.lock:
                stack.add(level)
            self.tell(handover, tier)
            log.warning("tier %s (%s) was added", tier.name, tier.file.path)
            self._writeback.wake()
            return level

    def _describe(self, table: Mapping[str, Any], number: int) -> TierConfig:
        have = self.config.all_tiers
        table = {"name": f"{table.get('kind', 'file')}{number}", **table}
        (tier,) = read_tiers("tier add", [table], None, proc.ROOT, unsafe=self.config.unsafe)
        for other in have:
            if other.name == tier.name:
                raise ConfigError("tier add: name", f"another tier is called {tier.name} too")
            if other.file.path == tier.file.path:
                raise ConfigError("tier add: path", f"another tier uses {tier.file.path} too")
        if tier.far is not None:
            _require_far(tier.far)
        return tier

    # ---- drain and remove ----

    def drain(self, name: str, *, stop: bool = False) -> Level:
        """Begin to move all that is in tier *name* to the others, or end that.

        :raises OperationError: they have no room for it
        """
        with self._one:
            level = self.named(name)
            if stop:
                self._writeback.drains.stop(level)
            else:
                self._require_room(level)
                if level.phase is Phase.ACTIVE:
                    self._writeback.drains.start(level)
            self._writeback.wake()
            return level

    def remove(self, name: str, *, force: bool = False) -> Level:
        """Begin to drain tier *name*, which is let go when it is empty.

        :param force: though what is left does not hold the whole size for certain
        :raises SwapfsError: the others have no room for what is in it, or for the size
        """
        with self._one:
            level = self.named(name)
            self._require_room(level)
            if not force:
                certain = self._certain()
                del certain[name]
                self.require_size(certain)
            self._writeback.drains.start(level, Phase.LEAVING)
            self._writeback.wake()
            return level

    def _require_room(self, level: Level) -> None:
        missing = self._writeback.drains.missing_bytes(level)
        if missing:
            what = format_size(missing)
            raise OperationError(
                f"the other tiers have no room for {what} of what is in {level.name}"
            )

    def require_size(
        self, tier_bytes: Mapping[str, int] | None = None, pool_bytes: int | None = None
    ) -> None:
        """Refuse what would leave less room than the size, for certain (I6).

        :param tier_bytes: what is certain of the tiers then, by name; None: as they are
        :param pool_bytes: of the pool then; None: as it is
        :raises OperationError: it would
        """
        tier_bytes = self._certain() if tier_bytes is None else tier_bytes
        geometry = replace(self._region.now, pool_bytes=pool_bytes or self._region.pool_bytes)
        try:
            require_room(self.config, geometry, tier_bytes)
        except ConfigError as error:
            if self.config.described:
                raise OperationError(f"{error}; --force takes that risk too") from error
            room_bytes = guaranteed_bytes(geometry, *tier_bytes.values())
            raise OperationError(
                f"{format_size(room_bytes)} would be certain, and the size is "
                f"{format_size(self.config.virtual_bytes)}: add a tier first, or take the risk of "
                "refused writes with --force"
            ) from error

    def _certain(self) -> dict[str, int]:
        return {tier.name: tier.certain_bytes for tier in self.config.all_tiers}

    def leaving(self) -> list[Level]:
        """Return the levels that may be let go now: they leave, and nobody has anything there."""
        with self._layer.lock:
            return list(filter(self._may_go, self._layer.stack))

    def _may_go(self, level: Level) -> bool:
        """Whether *level* may be let go; the layer's lock is held."""
        there = self._layer.table.slots_in(level.number)
        return level.phase is Phase.LEAVING and not level.in_use and not there

    def let_go(self, level: Level) -> bool:
        """Let *level* go, if it still may be; whether it could.

        :raises OperationError: an upgrade is under way, or the monitor does not answer
        """
        with self.alone():
            with self._layer.lock:
                if not self._may_go(level):
                    return False
                self._layer.stack.remove(level)
                self._layer.exports.forget_tier(level.number)
            try:
                self.tell(self._link.ask("forget", number=level.number))
            finally:
                if not any(other.tier.kind == level.tier.kind for other in self._layer.stack):
                    level.tier.leave()  # else what is left may be another's
                level.tier.close()
            log.warning("tier %s is empty and was let go", level.name)
            return True

    def forget_gone(self) -> bool:
        """Have the monitor let go of tiers that a server before this one had left."""
        for row in read_rows(self._region.stack):
            if row.state == GONE:
                with self._layer.lock:
                    self._layer.exports.forget_tier(row.number)
                self.tell(self._link.ask("forget", number=row.number))
        return True

    # ---- set ----

    def set(self, name: str, table: Mapping[str, Any]) -> Level:
        """Change priority and budget of tier *name*, as far as *table* says.

        :raises SwapfsError: a value is wrong, or what is certain would not do for the size
        """
        with self._one:
            level = self.named(name)
            (before,) = (tier for tier in self.config.all_tiers if tier.name == name)
            after = read_change("tier set", before, table, proc.ROOT)
            if after.certain_bytes < before.certain_bytes:
                self.require_size(self._certain() | {name: after.certain_bytes})
            figures = RowFigures.of(self._region.stack, level.number)
            with self._layer.lock:
                figures.set("budget_hour_bytes", after.budget.hour_bytes)
                figures.set("budget_day_bytes", after.budget.day_bytes)
                figures.set("budget_exceeds", int(after.budget_exceed))
                self._layer.stack.set_priority(level, after.priority)
            self.tell()
            self._writeback.wake()
            return level

    def tell(self, handover: Handover | None = None, *added: TierConfig) -> None:
        """Have shown what holds now, and be handed over."""
        self.config = current(self.config, self._region, *added)
        if handover is not None:
            assert handover.pid == os.getppid()
        self._changed(self.config, handover)


def _require_far(far: FarConfig) -> None:
    """Refuse far memory that could keep a monitor waiting: nobody would start a server then (I9).

    :raises SwapfsError: a node has a name, or there is no memory to load its client
    """
    for host, _ in far.nodes:
        if not _is_address(host):
            raise ConfigError(
                "tier add: nodes", f"{host} is a name; while swap is on it must be an address"
            )
    available = meminfo_bytes("MemAvailable")["MemAvailable"]
    if available < CLIENT_BYTES:
        raise OperationError(
            f"tier add: to load its client {format_size(CLIENT_BYTES)} must be available, and "
            f"{format_size(available)} are"
        )


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


async def tend(tiering: Tiering, trim: Callable[[], bool]) -> None:
    """Let tiers go that are to leave and are empty, for ever; first what another server began."""
    begun = False
    while True:
        try:
            if not begun:
                await in_thread(tiering.forget_gone)
                await in_thread(trim)
            begun = True
            for level in tiering.leaving():
                await in_thread(functools.partial(tiering.let_go, level))
        except OperationError as error:
            log.warning("a tier that is empty is not let go yet: %s", error)
        except Exception:  # no page depends on it
            log.exception("a tier that is empty is not let go")
        await trio.sleep(LET_GO_EVERY_S)
