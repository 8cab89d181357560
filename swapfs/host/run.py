"""Running the tools that change the kernel's side: one util-linux program at a time, no shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from swapfs.errors import OperationError


def run(*command: str | Path) -> str:
    """Run *command* to its end, however long that is; return its standard output.

    :raises OperationError: it cannot be run or failed, in one line
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
        said = "; ".join(done.stderr.split("\n")).strip("; ") or f"exit code {done.returncode}"
        raise OperationError(f"{' '.join(words)}: {said}")
    return done.stdout
