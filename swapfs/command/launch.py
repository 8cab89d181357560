"""Starting the daemon from a command: in the background, or to stay with it.

The daemon gets its configuration on stdin and reports on a pipe, in one line, when it serves
or why it cannot; lines before that one are notes on what it waits for.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys

from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.wire import control
from swapfs.wire.handover import Handover
from swapfs.wire.startup import NOTE, READY, failure


def launch(config: Config) -> int:
    """Start the daemon in the background; return its pid once the mount serves.

    :raises SwapfsError: it could not start, for the reason given; nothing is left behind
    """
    return _start(config, background=True).pid


def run_foreground(config: Config) -> None:
    """Start the daemon and stay until it ends; SIGINT and SIGTERM are its to handle.

    :raises SwapfsError: it could not start, or ended badly
    """
    early: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: early.append(number))
    process = _start(config, background=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    for missed in early:  # came while it started; Ctrl-C reached it too, and twice is fine
        process.send_signal(missed)
    status = process.wait()
    if status != 0:
        raise OperationError(f"the daemon ended with status {status}")


def take_over(config: Config, handover: Handover) -> int:
    """Start a daemon of this version in the place of a running one; return its pid.

    :raises SwapfsError: it cannot; the running one goes on as before
    """
    return _start(config, background=True, handover=handover).pid


def _start(
    config: Config, *, background: bool, handover: Handover | None = None
) -> subprocess.Popen[bytes]:
    control.make_runtime_dir(config.runtime_dir)
    log_path = config.runtime_dir / f"{config.name}.log"
    read_end, write_end = os.pipe()
    with log_path.open("ab") if background else open(os.devnull, "ab") as log_file:
        os.fchmod(log_file.fileno(), 0o600) if background else None
        process = subprocess.Popen(
            [sys.executable, "-m", "swapfs.monitor", str(write_end)],
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
        stdin.write(pickle.dumps((config, handover)))
    try:
        answer = _read_answer(read_end)
    except BaseException:
        if handover is None:  # it ends when it finds nobody to tell; an upgrade goes on
            process.wait()
        raise
    if answer == READY:
        return process
    if handover is None:  # else it may live on, and hold the pages
        process.wait()
    raise failure(answer) or OperationError(f"the daemon died while it started; see {log_path}")


def _read_answer(fd: int) -> str:
    """Return the line on *fd* that says how it went, or ""; print the notes before it."""
    with os.fdopen(fd) as lines:
        for line in lines:
            kind, _, text = line.strip().partition(": ")
            if kind != NOTE:
                return line.strip()
            print(f"swapfs: {text}", file=sys.stderr, flush=True)
    return ""
