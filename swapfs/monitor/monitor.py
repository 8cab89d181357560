"""The monitor: the small process that holds what must outlive a server, and watches it.

It holds the region, locked in memory, and the mounted /dev/fuse descriptor. It forks the
server, and forks another one when that one dies; requests that were under way are sent again
by the kernel (6.9 and later), so processes see a pause and no error. Fork, not exec: the new
server's code is loaded already and touches nothing that could have been swapped out.

From a server's death to the next one's first answer swap stands still. Whatever the monitor
looks at then must be in locked memory: no file, however small, and no log (I9).
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import time
from typing import Final

from swapfs import policy
from swapfs.config.model import Config
from swapfs.errors import SwapfsError
from swapfs.host import fusectl, journal, limits, systemd
from swapfs.host.guards import Guards
from swapfs.host.process_guards import Heap, IoFlusher, MemoryLock, NoCollector, OomScore
from swapfs.monitor import aborted, holdings
from swapfs.monitor.held import HeldState
from swapfs.monitor.holdings import Holdings
from swapfs.monitor.outcome import Outcome
from swapfs.monitor.restart_policy import RestartPolicy
from swapfs.monitor.servers import Servers
from swapfs.monitor.shutdown import Shutdown
from swapfs.region.export_rows import write_exports
from swapfs.region.layout import Region
from swapfs.vlayer.capacity import geometry_for, require_room
from swapfs.wire import state_file
from swapfs.wire.handover import RETIRE_SIGNAL, Handover, Predecessor, Successor, exclusively
from swapfs.wire.link import LOOK_SIGNAL
from swapfs.wire.startup import announce, describe, note, prepare

log = logging.getLogger(__name__)

SIGNALS: Final = frozenset(
    {
        *(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
        *(RETIRE_SIGNAL, LOOK_SIGNAL),
    }
)
LOG_WAIT_S: Final = 2.0
"""How long a monitor waits at its end for the last lines of the log to be written."""


def main() -> int:
    """Be the monitor: read what to do from stdin, report on the descriptor argv[1].

    argv[2], if there is one, is the path of the log that standard error is.
    """
    answer_fd = int(sys.argv[1])
    prepare(answer_fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored ones are inherited, and never come
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # Ctrl-\ must not end what swap stands on
    journal.start(*sys.argv[2:3])
    outcome = None
    try:
        outcome = _run(answer_fd)
    except SwapfsError as error:
        announce(answer_fd, describe(error))
    except KeyboardInterrupt:  # before it is blocked; Ctrl-C reaches a foreground daemon too
        announce(answer_fd, "operation: interrupted")
    except Exception as error:
        log.exception("the monitor failed")
        announce(answer_fd, f"operation: {type(error).__name__}: {error}")
    if outcome is not Outcome.HANDED_OVER:  # its pages need nobody any more, or never did
        journal.finish(LOG_WAIT_S)
    return 0 if outcome in (Outcome.UNMOUNTED, Outcome.HANDED_OVER) else 1


def _run(answer_fd: int) -> Outcome:
    config: Config
    handover: Handover | None
    config, handover = pickle.loads(sys.stdin.buffer.read())  # from our own parent
    monitor = Monitor(config, answer_fd)
    return monitor.run() if handover is None else monitor.take_over(handover)


class Monitor:
    """Makes or takes over what is held, and watches the servers of one instance.

    :param answer_fd: where the command that started this waits for word
    :param servers: what forks them, if not this
    """

    def __init__(self, config: Config, answer_fd: int, servers: Servers | None = None) -> None:
        self._config = config
        self._answer_fd = answer_fd
        self._guards = Guards(config.unsafe)
        self._shutdown = Shutdown(config.name, config.runtime_dir)
        self._policy = RestartPolicy()
        self._servers = servers or Servers(config, answer_fd, SIGNALS)

    def run(self) -> Outcome:
        """Make what is held, serve until unmounted, and take it all down again.

        :raises SwapfsError: that is not possible; nothing is left behind
        """
        config = self._config
        geometry = geometry_for(config.span_bytes, config.arena_bytes, config.log_bytes)
        at_first = geometry_for(config.span_bytes, config.pool_bytes, config.log_bytes)
        require_room(config, at_first)
        policy.find(config.policy)  # loaded here, for every server to come (I9)
        lock_fd = holdings.lock_instance(config)
        self._set_guards()
        region = Region.create(geometry, at_first.pool_bytes)
        region.blob_key[:] = os.urandom(len(region.blob_key))
        write_exports(region.exports, holdings.export_rows(config))
        self._lock_memory(region)
        # From here on a signal must not leave a new file or a mount behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        paths = [tier.file.path for tier in config.all_tiers if tier.far is None]
        made = [path for path in paths if not path.exists()]
        outcome = Outcome.NEVER_SERVED
        try:
            tiers = holdings.open_tiers(config, region)
            for _, file in tiers:
                for caution in file.stats().cautions:
                    note(self._answer_fd, caution)
            fuse_fd, device = holdings.mount(config)
            outcome = self._watch_mounted(Holdings(config, region, tiers, fuse_fd, lock_fd, device))
        finally:
            for path in made if outcome is Outcome.NEVER_SERVED else ():
                path.unlink(missing_ok=True)
        return outcome

    def take_over(self, handover: Handover) -> Outcome:
        """Take what another monitor holds, retire it, and go on in its place.

        :raises SwapfsError: that is not possible; the other one goes on
        """
        with exclusively(holdings.lock_path(self._config)):
            held = self._take(handover)
        self._servers.ever_served = True
        return self._watch_mounted(held)

    def _take(self, handover: Handover) -> Holdings:
        policy.find(self._config.policy)
        predecessor = Predecessor(handover)
        taken = predecessor.descriptors()
        self._set_guards()
        region = Region.attach(taken.region_fd)
        holdings.require_same_exports(self._config, region)
        region.populate()
        self._lock_memory(region)
        tiers = holdings.open_tiers(self._config, region, taken.tier_fds)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        systemd.announce_main_process(os.getpid())  # before the one that it knows ends
        predecessor.retire(lambda text: note(self._answer_fd, text))
        return Holdings(self._config, region, tiers, taken.fuse_fd, taken.lock_fd, taken.device)

    def _watch_mounted(self, held: Holdings) -> Outcome:
        """Watch, and unmount at the end; never under a server that may still be there."""
        outcome = None
        try:
            outcome = self.watch(held)
            if outcome is Outcome.UNMOUNTED:
                outcome = self._how_it_closed(held)
        finally:
            gone = outcome in (Outcome.UNMOUNTED, Outcome.NEVER_SERVED)
            if gone or (outcome is None and not self._servers.ever_served):
                holdings.unmount(self._config)
                state_file.path(self._config.runtime_dir, self._config.name).unlink(missing_ok=True)
        return outcome

    def _how_it_closed(self, held: Holdings) -> Outcome:
        """Tell an unmount from an abort, of which `down` has yet to take away what it leaves."""
        user = holdings.needed_by(self._config, held)
        if user is None:
            return Outcome.UNMOUNTED
        aborted.report(self._config, held, user)
        return Outcome.ABORTED

    def _set_guards(self) -> None:
        self._guards.set(IoFlusher())
        self._guards.set(OomScore())
        self._guards.set(Heap(prewarm_bytes=0))  # for its servers, which begin with this heap

    def _lock_memory(self, region: Region) -> None:
        self._guards.set(MemoryLock(region.geometry.total_bytes))
        self._guards.require()
        self._guards.set(NoCollector())  # a server need not look through what was here before it

    # ---- watching ----

    def watch(self, held: Holdings) -> Outcome:
        """Fork servers until the connection is closed, or another monitor has it."""
        death = ""
        while True:
            held.link.drop()
            pid = self._servers.start(held)
            if death:
                log.error("%s", death)  # after the fork: whoever needs a page waits for that
            status, successor = self._wait(pid, held)
            served_s = self._servers.ended()
            death = f"server {pid} died ({_how_it_died(status)}) after serving {served_s:.1f} s"
            if successor is not None:
                if successor.is_proven():
                    log.info("handed over to another monitor")
                    return Outcome.HANDED_OVER
                death = "the monitor that was to go on has died; this one goes on"
                continue
            if os.waitstatus_to_exitcode(status) == 0 and fusectl.is_closed(held.fuse_fd):
                return Outcome.UNMOUNTED
            if not self._servers.ever_served:
                if os.WIFSIGNALED(status):  # else it has said why itself
                    how = limits.explain_death(os.waitstatus_to_exitcode(status))
                    announce(self._answer_fd, f"operation: the server was {how}")
                return Outcome.NEVER_SERVED
            pause_s = self._policy.died(served_s)
            if pause_s is not None:
                time.sleep(pause_s)
                continue
            log.error("%s", death)
            death = ""
            end = HeldState(self._config, held, SIGNALS, self._shutdown).wait()
            if end is not None:
                return end
            self._policy.begin_again()

    def _wait(self, pid: int, held: Holdings) -> tuple[int, Successor | None]:
        """Return the wait status of server *pid*, and who it has made way for.

        Requests to stop are handled meanwhile.
        """
        successor = None
        while True:
            received = signal.sigwaitinfo(SIGNALS)
            self._shutdown.reap()
            held.link.serve(pid, held.serve)
            if received.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._shutdown.start()
            if received.si_signo == RETIRE_SIGNAL:
                successor = self._heard(received.si_pid, successor, pid, held)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status, successor
            journal.tend()

    def _heard(
        self, sender: int, known: Successor | None, server: int, held: Holdings
    ) -> Successor | None:
        """Return who goes on, after *sender* has asked this monitor to retire.

        The first time that one who may asks, *server* is asked to; a successor asks every second.
        """
        if known is not None and known.pid == sender:
            return known
        asking = Successor(sender, held.lock_fd)
        if not asking.is_proven():
            return known
        if known is None:
            os.kill(server, RETIRE_SIGNAL)
        return asking


def _how_it_died(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        named = {known.value: known.name for known in signal.Signals}
        return named.get(number, f"signal {number}")
    return f"exit status {os.WEXITSTATUS(status)}"
