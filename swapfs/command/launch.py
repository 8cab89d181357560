"""Starting the daemon from a command: in the background, or to stay with it.

The daemon gets its configuration on stdin and reports on a pipe, in one line, when it serves
or why it cannot; lines before that one are notes on what it waits for.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

from swapfs.config.model import Config
from swapfs.errors import OperationError
from swapfs.host import interpreter, limits
from swapfs.vlayer.capacity import geometry_for
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
    meet_limits(config, new=handover is None)
    log_path = config.log_path
    logged_bytes = log_path.stat().st_size if log_path.exists() else 0
    log_to = [str(log_path)] if background else []
    read_end, write_end = os.pipe()
    with log_path.open("ab") if background else open(os.devnull, "ab") as log_file:
        os.fchmod(log_file.fileno(), 0o600) if background else None
        process = subprocess.Popen(
            interpreter.command("swapfs.monitor", str(write_end), *log_to),
            stdin=subprocess.PIPE,
            stdout=log_file if background else None,
            stderr=log_file if background else None,
            pass_fds=(write_end,),
            start_new_session=background,
            cwd="/",
            # pymalloc maps and unmaps arenas while serving; malloc's heap can be kept (I5)
            env=interpreter.environment(PYTHONMALLOC="malloc"),
        )
    os.close(write_end)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # it died: told below
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
    raise failure(answer) or OperationError(
        f"the daemon died while it started ({_last_words(process, log_path, logged_bytes)}); "
        f"see {log_path}"
    )


def meet_limits(config: Config, *, new: bool = True) -> None:
    """Raise the limits that this process was given to what the daemon needs.

    :param new: it makes a region; else that has its memory already
    :raises OperationError: some may not be raised, and the configuration insists
    """
    geometry = geometry_for(config.span_bytes, config.arena_bytes, config.log_bytes)
    largest_bytes = max(
        (tier.file.size_bytes for tier in config.all_tiers if tier.far is None), default=0
    )
    needs = limits.Needs(geometry.total_bytes, largest_bytes)
    limits.lift(needs)
    slowed = limits.slowed()
    problems = limits.problems(needs) if new else []
    if problems and not config.unsafe:
        raise OperationError("; ".join(problems))
    for line in [*problems, *([slowed] if slowed else [])]:
        print(f"swapfs: {line}", file=sys.stderr, flush=True)


def _last_words(process: subprocess.Popen[bytes], log_path: Path, logged_bytes: int) -> str:
    """Return why the daemon ended that said nothing: its signal, or the last line of its log."""
    status = process.poll()
    if status is not None and status < 0:
        return limits.explain_death(status)
    try:
        with log_path.open("rb") as log_file:
            log_file.seek(logged_bytes)
            lines = log_file.read().decode(errors="replace").split("\n")
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"exit code {status}"


def _read_answer(fd: int) -> str:
    """Return the line on *fd* that says how it went, or ""; print the notes before it."""
    with os.fdopen(fd) as lines:
        for line in lines:
            kind, _, text = line.strip().partition(": ")
            if kind != NOTE:
                return line.strip()
            print(f"swapfs: {text}", file=sys.stderr, flush=True)
    return ""
