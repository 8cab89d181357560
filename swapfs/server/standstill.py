"""Swap that stands still for want of memory: seen, and ended by the kernel's OOM killer.

What it is about (6.12; a full pool of 64 MiB, no file, under pressure of a 448 MiB machine). The
kernel cannot be told that swap is full. It takes each refused write for bad luck, and

- writes again, other pages and the same, for as long as one watched (minutes): as reclaim frees a
  little now and then, it never comes to call its OOM killer;
- or comes to a halt. The worker of the loop device that brings a write here needs a piece of
  memory for its request (fuse_io_alloc). It may not start I/O for it (PF_MEMALLOC_NOIO), nor call
  the OOM killer (no __GFP_FS), and tries again for ever. Everybody who could call it has writes
  queued behind that worker and waits for them in the block layer, kswapd and kthreadd too.

The server waits for its next request meanwhile: it is the only one who can still do something.
Told apart from a slow disk, a busy server, a group at its own limit, or a machine that merely has
much to do: memory is short, and look after look in a row either writes were refused with no other
swap area to take them and no disk that is waited for, or the device has handed requests down, and
none has reached us and none is in our hands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from swapfs import session
from swapfs.errors import OperationError
from swapfs.host.guards import Guards
from swapfs.host.loop import LoopDevice
from swapfs.host.oom_killer import HandedDown, Memory, OomKiller, Swaps
from swapfs.host.proc import ROOT
from swapfs.server.threads import VitalThreads
from swapfs.vlayer.layer import VirtualSlotLayer

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
LOOKS: Final = 10
"""Alike in a row: the kernel's own worker takes microseconds. Looks and not a clock, which goes on
while the machine is suspended."""
_FIND_EVERY: Final = 5


class Look(NamedTuple):
    """What is seen at one moment, in requests.

    :param handed_down: by the block device, and not got back
    :param taken: by the session, ever
    :param in_hand: taken, and not answered
    :param refused: writes that no tier had room for, or no quota, ever
    :param elsewhere: whether another swap area has room
    :param memory_short: whether next to no memory is available
    :param hangs: whether a tier below takes too long; it may have room when it answers
    """

    handed_down: int
    taken: int
    in_hand: int
    refused: int
    elsewhere: bool
    memory_short: bool
    hangs: bool = False


class Rule:
    """Tells from one look after the other whether swap stands still."""

    def __init__(self, looks: int = LOOKS) -> None:
        self._looks = looks
        self._in_a_row = 0
        self._last: Look | None = None

    def stands_still(self, look: Look) -> bool:
        """Whether it has for so many looks, this one included; then it is counted anew."""
        last, self._last = self._last, look
        bad = last is not None and look.memory_short and (_full(last, look) or _stuck(last, look))
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row < self._looks:
            return False
        self._in_a_row = 0
        return True


def _full(last: Look, look: Look) -> bool:
    return look.refused > last.refused and not look.elsewhere and not look.hangs


def _stuck(last: Look, look: Look) -> bool:
    return look.handed_down > 0 and not look.in_hand and look.taken == last.taken


class Sight:
    """Takes the looks, at the loop device, at memory, and at what this process counts.

    :param find: returns the devices on our files
    :param count: returns what was taken, is in hand and was refused
    :param hangs: whether a tier below does
    """

    def __init__(
        self,
        find: Callable[[], Sequence[LoopDevice]],
        count: Callable[[], tuple[int, int, int]],
        root: Path = ROOT,
        *,
        hangs: Callable[[], bool] = lambda: False,
    ) -> None:
        self._find = find
        self._count = count
        self._hangs = hangs
        self._memory = Memory(root)
        self._swaps = Swaps(root)
        self._root = root
        self._handed_down: list[HandedDown] = []
        self._looks = 0

    def look(self) -> Look:
        """Return what is seen now.

        :raises OSError: the device is gone; the next look finds another
        :raises OperationError: /sys cannot be read
        """
        waiting = self._waiting()
        short = self._memory.is_short()
        ours = [each.device for each in self._handed_down]
        elsewhere = short and self._swaps.have_room(but=ours)
        return Look(waiting, *self._count(), elsewhere, short, self._hangs())

    def _waiting(self) -> int:
        waiting = sum(each.count() for each in self._handed_down)
        if not waiting and self._looks % _FIND_EVERY == 0:
            self._find_devices()
        self._looks += 1
        return waiting

    def _find_devices(self) -> None:
        """See which they are now: they are attached after we serve, and may be others later."""
        found, known = [each.device for each in self._find()], self._handed_down
        if found == [each.device for each in known]:
            return
        self._handed_down = []
        for each in known:
            each.close()
        self._handed_down = [HandedDown(device, self._root) for device in found]


class Calls(Protocol):
    """Who ends a process."""

    def call(self) -> None:
        """End one; OSError if that cannot be."""


class Standstill:
    """Looks every second, and calls *killer* when swap stands still.

    :param look: returns what is seen now; OSError if nothing can be
    :param called: told of every call, to count it
    :param serves: whether requests are taken here still: one that retires takes none
    """

    def __init__(
        self,
        look: Callable[[], Look],
        killer: Calls,
        called: Callable[[], None],
        serves: Callable[[], bool],
    ) -> None:
        self._look = look
        self._killer = killer
        self._called = called
        self._serves = serves
        self._rule = Rule()

    def run(self) -> None:
        """Look as long as requests are taken here; the body of a thread."""
        while self._serves():
            try:
                self.look_once()
            except Exception:  # nobody's page depends on it
                log.exception("cannot see whether swap stands still")
            time.sleep(LOOK_EVERY_S)

    def look_once(self) -> None:
        """Look, and act on it."""
        seen = self._look()
        if not self._rule.stands_still(seen):
            return
        self._called()
        log.critical(
            "no memory, and swap stands still: %d writes refused for want of room until now, %d "
            "requests held by the kernel; calling its OOM killer",
            seen.refused,
            seen.handed_down,
        )
        try:
            self._killer.call()
        except OSError as error:
            log.critical("the OOM killer cannot be called: %s", error.strerror or error)


def below_hangs(layer: VirtualSlotLayer) -> bool:
    """Whether a tier below the pool takes too long for a write."""
    now_s = time.monotonic()
    return any(level.health.is_stuck(now_s) for level in layer.stack)


def watch(
    guards: Guards,
    find: Callable[[], Sequence[LoopDevice]],
    layer: VirtualSlotLayer,
    threads: VitalThreads,
) -> None:
    """Have a thread watch this server's session and the devices that *find* returns.

    That the OOM killer can be called is one of *guards*. Without a view of memory it does nothing.

    :param threads: starts it, and tells when requests are no longer taken
    """
    killer, counters = OomKiller(), layer.counters
    guards.set(killer)

    def count() -> tuple[int, int, int]:
        counts, refused = session.counts(), counters.get("failed_write_no_room")
        if all(export.is_full() for export in layer.exports):  # else another takes pages
            refused += counters.get("failed_write_over_quota")
        return counts["data"], counts["in_flight"], refused

    def called() -> None:
        with layer.lock:
            counters.add("oom_calls")

    try:
        sight = Sight(find, count, hangs=lambda: below_hangs(layer))
    except OperationError as error:
        log.warning("whether swap stands still is not watched: %s", error)
        return
    standstill = Standstill(sight.look, killer, called, lambda: not threads.are_stopping)
    threads.start("standstill", standstill.run)
