"""The monitor: the small process that holds what must outlive a server, and watches it.

It holds the region, locked in memory, and the mounted /dev/fuse descriptor. It forks the
server, and forks another one when that one dies; requests that were under way are sent again
by the kernel (6.9 and later), so processes see a pause and no error. Fork, not exec: the new
server's code is loaded already and touches nothing that could have been swapped out.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Final

from swapfs import kernel, syscalls
from swapfs.config import Config, check_room, mount_source
from swapfs.control import snapshot_path
from swapfs.daemon import READY, describe
from swapfs.errors import OperationError, SwapfsError
from swapfs.guards import Guards
from swapfs.region import Region
from swapfs.room import geometry_of, guaranteed_bytes
from swapfs.server import Server
from swapfs.tiers.file import FileTier

log = logging.getLogger(__name__)

RAPID_LIFE_S: Final = 0.2
"""A server that served for less time than this, or never, died rapidly."""
RAPID_DEATHS_MAX: Final = 10
"""After so many in a row the monitor restarts no more, and holds the data."""
RESTART_PAUSE_MAX_S: Final = 5.0


@dataclass(slots=True)
class Held:
    """What the monitor holds for the servers to come."""

    region: Region
    tier: FileTier | None
    fuse_fd: int


def main() -> int:
    """Be the monitor: read the configuration from stdin, report on the descriptor argv[1]."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s swapfs[%(process)d] %(levelname)s %(message)s"
    )
    config: Config = pickle.loads(sys.stdin.buffer.read())  # from our own parent
    answer_fd = int(sys.argv[1])
    try:
        return _Monitor(config, answer_fd).run()
    except SwapfsError as error:
        announce(answer_fd, describe(error))
    except Exception as error:
        log.exception("the monitor failed")
        announce(answer_fd, f"operation: {type(error).__name__}: {error}")
    return 1


def announce(fd: int, message: str) -> None:
    """Tell the command that started the daemon how it went, once, in one line."""
    try:
        os.write(fd, message.replace("\n", "; ").encode() + b"\n")
        os.close(fd)
    except OSError:
        log.info("nobody waits for: %s", message)


class _Monitor:
    def __init__(self, config: Config, answer_fd: int) -> None:
        self._config = config
        self._answer_fd = answer_fd
        # Shared with the servers: monotonic seconds at which the present one began to serve.
        self._ready_at = ctypes.c_double.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self._signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

    def run(self) -> int:
        """Make what is held, serve until unmounted, and take it all down again."""
        config = self._config
        check_room(config, guaranteed_bytes(config))
        lock_fd = self._lock()
        guards = Guards(config.unsafe)
        guards.set_io_flusher()
        guards.set_oom_score()
        region = Region.create(geometry_of(config))
        guards.set_mlock(region.geometry.total_bytes)
        guards.require()
        made = config.file is not None and not config.file.path.exists()
        tier = None
        if config.file is not None:
            tier = FileTier(config.file.path, config.file.size_bytes, config.file.direct_io)
        served = False
        try:
            held = Held(region, tier, self._mount())
            try:
                served = self._watch(held)
            finally:
                self._unmount()
        finally:
            if made and not served and config.file is not None:
                config.file.path.unlink(missing_ok=True)
            snapshot_path(config.runtime_dir, config.name).unlink(missing_ok=True)
            os.close(lock_fd)
        return 0 if served else 1

    def _lock(self) -> int:
        path = self._config.runtime_dir / f"{self._config.name}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperationError(
                f"{self._config.name} is already up; take it down, or choose another --name"
            ) from None
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
            raise OperationError(f"cannot mount on {mountpoint}: {error.strerror}") from error
        return fd

    def _unmount(self) -> None:
        if kernel.mount_at(self._config.mountpoint) is None:
            return
        try:
            syscalls.umount2(str(self._config.mountpoint), syscalls.MNT_DETACH)
        except OSError as error:
            log.error("umount %s: %s", self._config.mountpoint, error.strerror)

    # ---- watching ----

    def _watch(self, held: Held) -> bool:
        """Fork servers until one ends in good order; False if none ever served."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        rapid, ever_served = 0, False
        while True:
            self._ready_at.value = 0.0
            pid = self._fork(held, recover=ever_served)
            status = self._wait(pid)
            ready_at_s = self._ready_at.value
            if os.waitstatus_to_exitcode(status) == 0:
                return True
            ever_served = ever_served or ready_at_s > 0
            if not ever_served:
                return False
            served_s = time.monotonic() - ready_at_s if ready_at_s else 0.0
            log.error(
                "server %d died (%s) after serving %.1f s; its pages are safe",
                pid,
                _how_it_died(status),
                served_s,
            )
            rapid = rapid + 1 if served_s < RAPID_LIFE_S else 0
            if rapid >= RAPID_DEATHS_MAX:
                self._hold()
                rapid = 0
            elif rapid > 1:
                time.sleep(min(RESTART_PAUSE_MAX_S, 0.05 * 2**rapid))

    def _fork(self, held: Held, *, recover: bool) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._serve(held, recover=recover)
            status = 0
        except SwapfsError as error:
            log.error("%s", error)
            announce(self._answer_fd, describe(error))
        except BaseException as error:
            log.exception("the server failed")
            announce(self._answer_fd, f"operation: {type(error).__name__}: {error}")
        finally:
            logging.shutdown()
            os._exit(status)

    def _serve(self, held: Held, *, recover: bool) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the monitor's to handle
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        server = Server(
            self._config, held.region, held.tier, held.fuse_fd, os.getppid(), recover=recover
        )
        server.run(lambda: self._on_ready(first=not recover))

    def _on_ready(self, *, first: bool) -> None:
        self._ready_at.value = time.monotonic()
        if first:
            announce(self._answer_fd, READY)

    def _wait(self, pid: int) -> int:
        """Return the server's wait status; stop requests are handled meanwhile."""
        while True:
            number = signal.sigwait(self._signals)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._take_down()
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status

    def _take_down(self) -> None:
        """Stop as a service does: swapoff first. If it fails, go on serving (I7)."""
        name, runtime_dir = self._config.name, self._config.runtime_dir
        log.warning("asked to stop: taking %s down, swapoff first", name)
        subprocess.Popen(
            [sys.executable, "-m", "swapfs", "down", name, "--runtime-dir", str(runtime_dir)],
            stdin=subprocess.DEVNULL,
        )

    def _hold(self) -> None:
        """Keep the data and wait: restarting has no sense, but an operator may have."""
        log.critical(
            "the server died %d times in a row; %s stays down with its pages in memory; "
            "mend the cause and send SIGHUP to %d to try again",
            RAPID_DEATHS_MAX,
            self._config.name,
            os.getpid(),
        )
        while signal.sigwait(self._signals) != signal.SIGHUP:
            pass


def _how_it_died(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    sys.exit(main())
