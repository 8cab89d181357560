"""Running the tools that change the kernel's side: one util-linux program at a time, no shell."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from swapfs.errors import OperationError


class ToolError(OperationError):
    """A tool ran and failed.

    :param status: its exit code; or the signal that ended it, as a negative number
    :param said: what it printed on standard error, in one line
    """

    def __init__(self, words: list[str], status: int, said: str) -> None:
        how = said or f"exit code {status}"
        if status < 0:
            how = f"ended by {signal.Signals(-status).name}"
        super().__init__(f"{' '.join(words)}: {how}")
        self.status = status
        self.said = said


def run(*command: str | Path) -> str:
    """Run *command* to its end, however long that is; return its standard output.

    :raises ToolError: it failed
    :raises OperationError: it cannot be run
    """
    words = [str(word) for word in command]
    # su without "-" leaves the sbin directories out of PATH.
    path = os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), "/usr/sbin", "/sbin"])
    environment = {**os.environ, "LC_ALL": "C", "PATH": path}
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except OSError as error:
        raise OperationError(f"{words[0]}: cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = "; ".join(done.stderr.split("\n")).strip("; ")
        raise ToolError(words, done.returncode, said)
    return done.stdout
