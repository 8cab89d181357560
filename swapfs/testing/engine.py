"""An engine for tests: a redis-server or valkey-server of their own, in a folder."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import valkey

from swapfs.tiers.engine import Place

WAIT_S: Final = 20.0


def program() -> str | None:
    """Return the engine that is installed."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


def free_port() -> int:
    """Return a port of the loopback device that nobody uses now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class TestEngine:
    """One node, on a unix socket in *folder*; its data is there too if it is told to keep it."""

    __test__ = False

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "engine.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(exist_ok=True)
        self.start()

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(socket=self.socket)

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers."""
        command = [
            *(str(program()), "--port", "0", "--unixsocket", str(self.socket)),
            *("--dir", str(self.folder), "--save", "", "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", "--loglevel", "warning", *self._options, *options),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT_S
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it does."""
        try:
            return bool(self.client().ping())
        except valkey.AuthenticationError:
            return True
        except valkey.exceptions.ValkeyError:
            return False

    def client(self, **options: Any) -> Any:
        """Return a client of it."""
        return valkey.Valkey(unix_socket_path=str(self.socket), **options)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it hang for the time of the block: it takes connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Let it die."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
