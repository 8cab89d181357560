"""The kernel ended the connection and a loop device stands on it: an abort, and no unmount.

fusectl's abort does it, and a limit on the time that requests may take (Linux 6.15). No server can
ever serve these pages again. The mount and the state file stay, for `swapfs down` finds by them
what it has to turn off and detach; so nothing here unmounts or deletes.
"""

from __future__ import annotations

import logging
from typing import Any

from swapfs.config.model import Config
from swapfs.monitor.holdings import Holdings
from swapfs.wire import state_file

log = logging.getLogger(__name__)


def report(config: Config, held: Holdings, user: str) -> None:
    """Say it where it is looked for: in the log, and in the state file.

    :param user: what stands on the mount
    """
    reason = (
        f"the kernel has ended the connection below {user} (aborted, or an answer was later than "
        "fs.fuse.max_request_timeout): pages that are swapped there are lost, and whoever reads "
        f"one is killed; run 'swapfs down {config.name}'"
    )
    log.critical("%s", reason)
    written = state_file.read(config.runtime_dir, config.name)
    status: dict[str, Any] = written[1] if written else {}
    status |= {
        "mountpoint": str(config.mountpoint),
        "held": False,
        "server_pid": None,
        "handover": held.handover().as_dict(),
        "degraded": [reason],
    }
    try:
        state_file.write(config.runtime_dir, config.name, status)
    except OSError as error:
        log.error("state file of %s: %s", config.name, error.strerror)
