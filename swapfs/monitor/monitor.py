"""The monitor: the small process that holds what must outlive a server, and watches it.

It holds the region, locked in memory, and the mounted /dev/fuse descriptor. It forks the
server, and forks another one when that one dies; requests that were under way are sent again
by the kernel (6.9 and later), so processes see a pause and no error. Fork, not exec: the new
server's code is loaded already and touches nothing that could have been swapped out.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from swapfs.config.model import Config, check_room, mount_source, swap_backing
from swapfs.errors import OperationError, SwapfsError
from swapfs.host import fusectl, instance_lock, loop, mounts, proc, syscalls, systemd
from swapfs.host.guards import Guards
from swapfs.host.process_guards import IoFlusher, MemoryLock, OomScore
from swapfs.monitor.shutdown import TakeDown
from swapfs.region.counters import Counters
from swapfs.region.layout import Region
from swapfs.server.server import Server
from swapfs.tiers.file import FileTier
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.vlayer.capacity import geometry_for, guaranteed_bytes
from swapfs.wire.control import read_snapshot, snapshot_path, write_snapshot
from swapfs.wire.handover import RETIRE_SIGNAL, Handover, Predecessor, Successor, exclusively
from swapfs.wire.startup import READY, announce, describe, note

log = logging.getLogger(__name__)

RAPID_LIFE_S: Final = 0.2
"""A server that served for less time than this, or never, died rapidly."""
RAPID_DEATHS_MAX: Final = 10
"""After so many in a row the monitor restarts no more, and holds the data."""
RESTART_PAUSE_MAX_S: Final = 5.0
FORK_RETRY_S: Final = 1.0


@dataclass(slots=True)
class Held:
    """What the monitor holds for the servers to come."""

    region: Region
    tier: FileTier | None
    fuse_fd: int
    lock_fd: int
    device: int | None = None  # st_dev of the mount

    def handover(self) -> Handover:
        """Return where another monitor finds it."""
        tier_fd = self.tier.fd if self.tier else None
        return Handover(
            os.getpid(), self.region.fd, self.fuse_fd, self.lock_fd, tier_fd, self.device
        )


class Outcome(Enum):
    """How a watch ended."""

    UNMOUNTED = "unmounted"
    NEVER_SERVED = "never served"
    HANDED_OVER = "handed over"


def main() -> int:
    """Be the monitor: read what to do from stdin, report on the descriptor argv[1]."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s swapfs[%(process)d] %(levelname)s %(message)s"
    )
    config: Config
    handover: Handover | None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored ones are inherited, and never come
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # Ctrl-\ must not end what swap stands on
    config, handover = pickle.loads(sys.stdin.buffer.read())  # from our own parent
    answer_fd = int(sys.argv[1])
    try:
        monitor = _Monitor(config, answer_fd)
        return monitor.run() if handover is None else monitor.take_over(handover)
    except SwapfsError as error:
        announce(answer_fd, describe(error))
    except KeyboardInterrupt:  # before it is blocked; Ctrl-C reaches a foreground daemon too
        announce(answer_fd, "operation: interrupted")
    except Exception as error:
        log.exception("the monitor failed")
        announce(answer_fd, f"operation: {type(error).__name__}: {error}")
    return 1


class _Monitor:
    def __init__(self, config: Config, answer_fd: int) -> None:
        self._config = config
        self._answer_fd = answer_fd
        self._guards = Guards(config.unsafe)
        self._successor: Successor | None = None
        self._ever_served = False
        self._lock_path = config.runtime_dir / f"{config.name}.lock"
        self._take_down = TakeDown(config.name, config.runtime_dir)
        # Shared with the servers: monotonic seconds at which the present one began to serve.
        self._ready_at = ctypes.c_double.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self._signals = {
            signal.SIGCHLD,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            RETIRE_SIGNAL,
        }

    def run(self) -> int:
        """Make what is held, serve until unmounted, and take it all down again."""
        config = self._config
        geometry = geometry_for(config.size_bytes, config.pool_bytes)
        check_room(config, guaranteed_bytes(geometry, config.file_bytes))
        lock_fd = self._lock()
        self._set_guards()
        region = Region.create(geometry)
        region.blob_key[:] = os.urandom(len(region.blob_key))
        self._lock_memory(region)
        # From here on a signal must not leave a new file or a mount behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        made = config.file is not None and not config.file.path.exists()
        outcome = Outcome.NEVER_SERVED
        try:
            tier = self._open_tier(region)
            fuse_fd = self._mount()
            mounted = mounts.at(config.mountpoint)
            device = mounted.device if mounted else None
            outcome = self._watch_mounted(Held(region, tier, fuse_fd, lock_fd, device))
        finally:
            if made and outcome is Outcome.NEVER_SERVED and config.file is not None:
                config.file.path.unlink(missing_ok=True)
        return 0 if outcome is not Outcome.NEVER_SERVED else 1

    def take_over(self, handover: Handover) -> int:
        """Take what another monitor holds, retire it, and go on in its place.

        :raises SwapfsError: that is not possible; the other one goes on
        """
        with exclusively(self._lock_path):
            held = self._take(handover)
        self._ever_served = True
        outcome = self._watch_mounted(held)
        return 0 if outcome is not Outcome.NEVER_SERVED else 1

    def _take(self, handover: Handover) -> Held:
        predecessor = Predecessor(handover)
        taken = predecessor.descriptors()
        self._set_guards()
        region = Region.attach(taken.region_fd)
        region.populate()
        self._lock_memory(region)
        tier = self._open_tier(region, taken.tier_fd)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        systemd.announce_main_process(os.getpid())  # before the one that it knows ends
        predecessor.retire(lambda text: note(self._answer_fd, text))
        return Held(region, tier, taken.fuse_fd, taken.lock_fd, taken.device)

    def _watch_mounted(self, held: Held) -> Outcome:
        """Watch, and unmount at the end; never under a server that may still be there."""
        outcome = None
        try:
            outcome = self._watch(held)
        finally:
            gone = outcome in (Outcome.UNMOUNTED, Outcome.NEVER_SERVED)
            if gone or (outcome is None and not self._ever_served):
                self._unmount()
                snapshot_path(self._config.runtime_dir, self._config.name).unlink(missing_ok=True)
        return outcome

    def _set_guards(self) -> None:
        self._guards.set(IoFlusher())
        self._guards.set(OomScore())

    def _lock_memory(self, region: Region) -> None:
        self._guards.set(MemoryLock(region.geometry.total_bytes))
        self._guards.require()

    def _open_tier(self, region: Region, fd: int | None = None) -> FileTier | None:
        file = self._config.file
        if file is None:
            return None
        seal = _cipher(bytes(region.blob_key)) if file.encryption else ChecksumSeal()
        return FileTier(file.path, file.size_bytes, file.direct_io, seal=seal, fd=fd)

    def _lock(self) -> int:
        fd = instance_lock.acquire(self._lock_path)
        if fd is None:
            raise OperationError(
                f"{self._config.name} is already up; take it down, or choose another --name"
            )
        return fd

    def _mount(self) -> int:
        mountpoint = self._config.mountpoint
        try:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount(
                mount_source(self._config.name), str(mountpoint), "fuse.swapfs", flags, options
            )
        except OSError as error:
            what = error.filename or mountpoint  # /dev/fuse, or where it was to go
            raise OperationError(f"cannot mount {what}: {error.strerror}") from error
        return fd

    def _unmount(self) -> None:
        if mounts.at(self._config.mountpoint) is None:
            return
        try:
            syscalls.umount2(str(self._config.mountpoint), syscalls.MNT_DETACH)
        except OSError as error:
            log.error("umount %s: %s", self._config.mountpoint, error.strerror)

    # ---- watching ----

    def _watch(self, held: Held) -> Outcome:
        """Fork servers until the connection is closed, or another monitor has it."""
        rapid, first = 0, True
        while True:
            self._ready_at.value = 0.0
            pid = self._fork(held, first=first)
            status = self._wait(pid)
            ready_at_s = self._ready_at.value
            self._ever_served = self._ever_served or ready_at_s > 0
            first = first and not ready_at_s
            if self._successor is not None:
                if self._successor.lives():
                    log.info("handed over to another monitor")
                    return Outcome.HANDED_OVER
                log.error("the monitor that was to go on has died; this one goes on")
                self._successor = None
                continue
            if os.waitstatus_to_exitcode(status) == 0 and fusectl.is_closed(held.fuse_fd):
                return Outcome.UNMOUNTED
            if not self._ever_served:
                return Outcome.NEVER_SERVED
            served_s = time.monotonic() - ready_at_s if ready_at_s else 0.0
            how = _how_it_died(status)
            log.error("server %d died (%s) after serving %.1f s", pid, how, served_s)
            rapid = rapid + 1 if served_s < RAPID_LIFE_S else 0
            if rapid >= RAPID_DEATHS_MAX:
                end = self._hold(held)
                if end is not None:
                    return end
                rapid = 0
            elif rapid > 1:
                time.sleep(min(RESTART_PAUSE_MAX_S, 0.05 * 2**rapid))

    def _fork(self, held: Held, *, first: bool) -> int:
        pid = self._fork_process()
        if pid:
            return pid
        status = 1
        try:
            self._serve(held, first=first)
            status = 0
        except SwapfsError as error:
            log.error("%s", error)
            self._tell_failure(error)
        except BaseException as error:
            log.exception("the server failed")
            self._tell_failure(OperationError(f"{type(error).__name__}: {error}"))
        finally:
            logging.shutdown()
            os._exit(status)

    def _tell_failure(self, error: SwapfsError) -> None:
        """Tell an `up` why there is no server, or an `upgrade` that there is none yet."""
        if self._ever_served:
            error = OperationError(
                f"handed over, but the new server fails: {error}; monitor {os.getppid()} holds "
                f"the pages and goes on trying, see 'swapfs status {self._config.name}'"
            )
        announce(self._answer_fd, describe(error))

    def _fork_process(self) -> int:
        """Fork; once there are pages to lose, for as long as it takes to have the memory for it."""
        while True:
            try:
                return os.fork()
            except OSError as error:
                if not self._ever_served:
                    raise OperationError(f"cannot start a server: {error.strerror}") from error
                log.critical("cannot start a server: %s; trying again", error.strerror)
            time.sleep(FORK_RETRY_S)

    def _serve(self, held: Held, *, first: bool) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the monitor's to handle
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals - {RETIRE_SIGNAL})
        handover = replace(held.handover(), pid=os.getppid())
        recover = self._ever_served
        server = Server(self._config, held.region, held.tier, handover, recover=recover)
        server.run(lambda: self._on_ready(first=first))

    def _on_ready(self, *, first: bool) -> None:
        if first and not announce(self._answer_fd, READY) and not self._ever_served:
            # It was interrupted, and has said so: what it started must not be there after all.
            raise OperationError("the command that started this has ended")
        self._ready_at.value = time.monotonic()

    def _wait(self, pid: int) -> int:
        """Return the server's wait status; stop requests are handled meanwhile."""
        while True:
            received = signal.sigwaitinfo(self._signals)
            self._take_down.reap()
            if received.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._take_down.start()
            if received.si_signo == RETIRE_SIGNAL:
                self._successor = Successor(received.si_pid)
                os.kill(pid, RETIRE_SIGNAL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status

    def _hold(self, held: Held) -> Outcome | None:
        """Keep the data and wait: restarting has no sense, but an operator may have.

        Returns how the watch ends, or None to try another server.
        """
        reason = (
            f"the server died {RAPID_DEATHS_MAX} times in a row and is not started again; its "
            f"pages are safe in memory, but processes that need one wait; mend the cause (see "
            f"the log), then 'kill -HUP {os.getpid()}' or 'swapfs upgrade {self._config.name}'"
        )
        log.critical("%s", reason)
        self._publish_held(held, reason)
        while True:
            number = signal.sigwait(self._signals)
            self._take_down.reap()
            if number == signal.SIGHUP:
                return None
            if number == RETIRE_SIGNAL:
                return Outcome.HANDED_OVER
            if number in (signal.SIGTERM, signal.SIGINT):
                needed_by = self._needed_by(held)
                if needed_by is None:
                    return Outcome.UNMOUNTED
                log.critical("asked to stop, but %s needs a server first", needed_by)

    def _needed_by(self, held: Held) -> str | None:
        """Return what would lose its pages if the mount went now, or None."""
        try:
            user = loop.find_user(swap_backing(self._config.mountpoint, held.device))
        except OperationError as error:
            return f"a loop device that may be there ({error})"
        return str(user.device) if user else None

    def _publish_held(self, held: Held, reason: str) -> None:
        """Put into the state file what no server is there to tell."""
        config = self._config
        written = read_snapshot(config.runtime_dir, config.name)
        status: dict[str, Any] = written[1] if written else {}
        known: list[str] = [] if status.get("held") else status.get("degraded", [])
        status |= {
            "held": True,
            "mountpoint": str(config.mountpoint),
            "pid": os.getpid(),
            "server_pid": None,
            "born": proc.births(os.getpid()),
            "handover": held.handover().as_dict(),
            "degraded": [reason, *known],
            "counters": Counters(held.region.counter_words).snapshot(),
        }
        try:
            write_snapshot(config.runtime_dir, config.name, status)
        except OSError as error:
            log.error("state file of %s: %s", config.name, error.strerror)


def _cipher(key: bytes) -> Seal:
    # Not imported above: 14 MiB of locked memory that is only here for instances that encrypt. A
    # server has it from us, by fork; it reads no library from a disk while it serves.
    from swapfs.tiers.aead import AeadSeal

    return AeadSeal(key)


def _how_it_died(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        named = {known.value: known.name for known in signal.Signals}
        return named.get(number, f"signal {number}")
    return f"exit status {os.WEXITSTATUS(status)}"
