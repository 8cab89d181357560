"""What swapfs and systemd must know of each other when one is a service of the other.

Without systemd everything here does nothing.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host.proc import ROOT

_UNIT: Final = re.compile(r"swapfs(@[^/]+)?\.service")
"""Units that are an instance's; a service that merely started one is not."""


def unit_of(pid: int, root: Path = ROOT) -> str | None:
    """Return the service of ours that the process *pid* runs in, or None."""
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        unit = path.rpartition("/")[2]
        if controllers in ("", "name=systemd") and _UNIT.fullmatch(unit):
            return unit
    return None


def refuse_other_unit(pid: int, root: Path = ROOT) -> None:
    """Refuse to replace the process *pid* from outside its service.

    The new process would belong to the caller's session and end with it; systemd would take the
    service for dead and stop it.

    :raises OperationError: *pid* runs in a service of ours and this process does not
    """
    unit = unit_of(pid, root)
    if unit is not None and unit != unit_of(os.getpid(), root):
        raise OperationError(f"it runs as {unit}: use 'systemctl reload {unit}'")


def announce_main_process(pid: int) -> None:
    """Tell systemd, if it started us, that *pid* is now the main process; see sd_notify(3).

    :raises OperationError: it is there and cannot be told
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    path = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(path)
            sender.sendall(f"MAINPID={pid}\n".encode())
    except OSError as error:
        raise OperationError(f"cannot tell systemd of process {pid}: {error.strerror}") from error
