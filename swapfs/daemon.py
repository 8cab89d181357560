"""The daemon's processes: started by a command, watched by a monitor, served by a server.

The monitor holds what must outlive a server: the region, locked in memory, and the mounted
/dev/fuse descriptor. It forks the server, and forks another one when that one dies; requests
that were under way are sent again by the kernel (6.9 and later), so processes see a pause and
no error. Fork, not exec: the new server touches nothing that could have been swapped out.
"""

from __future__ import annotations

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
from swapfs.errors import GuardError, OperationError, SwapfsError, UsageError
from swapfs.guards import Guards
from swapfs.region import Region
from swapfs.room import geometry_of, guaranteed_bytes
from swapfs.tiers.file import FileTier

log = logging.getLogger(__name__)

READY: Final = "ready"
_KINDS: Final[dict[str, type[SwapfsError]]] = {
    "usage": UsageError,
    "guard": GuardError,
    "operation": OperationError,
}

RAPID_LIFE_S: Final = 10.0
"""A server that dies younger than this counts as a rapid death."""
RAPID_DEATHS_MAX: Final = 8
"""After so many in a row the monitor restarts no more, and holds the data."""
RESTART_PAUSE_MAX_S: Final = 5.0


# ---- in the command ----


def launch(config: Config) -> int:
    """Start the daemon in the background; return its pid once the mount serves.

    :raises SwapfsError: it could not start, for the reason given; nothing is left behind
    """
    return _start(config, background=True).pid


def run_foreground(config: Config) -> None:
    """Start the daemon and stay until it ends; SIGINT and SIGTERM are its to handle.

    :raises SwapfsError: it could not start, or ended badly
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the daemon is in the same process group
    process = _start(config, background=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    if status != 0:
        raise OperationError(f"the daemon ended with status {status}")


def _start(config: Config, *, background: bool) -> subprocess.Popen[bytes]:
    config.runtime_dir.mkdir(parents=True, exist_ok=True)
    log_path = config.runtime_dir / f"{config.name}.log"
    read_end, write_end = os.pipe()
    with log_path.open("ab") if background else open(os.devnull, "ab") as log_file:
        os.fchmod(log_file.fileno(), 0o600) if background else None
        process = subprocess.Popen(
            [sys.executable, "-m", "swapfs.daemon", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=log_file if background else None,
            stderr=log_file if background else None,
            pass_fds=(write_end,),
            start_new_session=background,
            cwd="/",
            # pymalloc maps and unmaps arenas while serving; malloc's heap can be kept (I5)
            env={**os.environ, "PYTHONMALLOC": "malloc"},
        )
    os.close(write_end)
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(pickle.dumps(config))
    with os.fdopen(read_end) as answers:
        answer = answers.readline().strip()
    if answer == READY:
        return process
    process.wait()
    kind, _, text = answer.partition(": ")
    if kind in _KINDS:
        raise _KINDS[kind](text)
    raise OperationError(f"the daemon died while it started; see {log_path}")


# ---- in the monitor ----


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
        announce(answer_fd, _describe(error))
    except Exception as error:
        log.exception("the monitor failed")
        announce(answer_fd, f"operation: {type(error).__name__}: {error}")
    return 1


def _describe(error: SwapfsError) -> str:
    kind = "operation"
    for name, error_type in _KINDS.items():
        if isinstance(error, error_type):
            kind = name
            break
    return f"{kind}: {error}"


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
        self._served = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the servers: one has served
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
        rapid, recover = 0, False
        while True:
            born_s = time.monotonic()
            pid = self._fork(held, recover=recover)
            status = self._wait(pid)
            if os.waitstatus_to_exitcode(status) == 0:
                return True
            if not self._served[0]:
                return False
            lived_s = time.monotonic() - born_s
            rapid = rapid + 1 if lived_s < RAPID_LIFE_S else 0
            log.error(
                "server %d died (%s) after %.1f s; its pages are safe",
                pid,
                _how_it_died(status),
                lived_s,
            )
            if rapid >= RAPID_DEATHS_MAX:
                self._hold()
                rapid = 0
            elif rapid > 1:
                time.sleep(min(RESTART_PAUSE_MAX_S, 0.05 * 2**rapid))
            recover = True

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
            announce(self._answer_fd, _describe(error))
        except BaseException as error:
            log.exception("the server failed")
            announce(self._answer_fd, f"operation: {type(error).__name__}: {error}")
        finally:
            logging.shutdown()
            os._exit(status)

    def _serve(self, held: Held, *, recover: bool) -> None:
        from swapfs.server import Server

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the monitor's to handle
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        server = Server(
            self._config, held.region, held.tier, held.fuse_fd, os.getppid(), recover=recover
        )
        server.run(self._on_ready)

    def _on_ready(self) -> None:
        if not self._served[0]:
            self._served[0] = 1
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
