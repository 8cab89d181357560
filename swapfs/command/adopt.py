"""What ``up`` finds running when systemd starts a unit of ours.

After a stop that was refused the unit is "failed", and its instance goes on in it: a start takes it
over. One that runs elsewhere, in a shell's session, is none of the unit's: taken for it, systemd
would see an empty unit, and take the instance down.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from swapfs.command.stale import daemon_lives, was_born
from swapfs.command.turn_on import devices_by_name
from swapfs.errors import OperationError
from swapfs.host import proc, swap, systemd
from swapfs.wire import state_file

if TYPE_CHECKING:
    from pathlib import Path

    from swapfs.config.model import Config


def running(config: Config, root: Path = proc.ROOT) -> list[Path]:
    """Return the swap areas of *config*'s instance if it runs in the unit that this process is of.

    None if it does not run, or one is off, or systemd has not started us.

    :raises OperationError: it runs, and not in this unit
    """
    unit = systemd.unit_of(os.getpid(), root)
    if unit is None or not daemon_lives(config.runtime_dir, config.name):
        return []
    if all(systemd.unit_of(pid, root) != unit for pid in _processes(config)):
        raise OperationError(
            f"{config.name} runs already, and not in {unit}: run 'swapfs down {config.name}' "
            f"first, then start {unit} again"
        )
    devices = devices_by_name(config)
    areas = [devices[export.name] for export in config.exports if export.name in devices]
    on = [device for device in areas if swap.find(device) is not None]
    return on if len(on) == len(config.exports) else []


def _processes(config: Config) -> list[int]:
    """Return the processes of the instance, monitor and server, that live."""
    written = state_file.read(config.runtime_dir, config.name)
    born = written[1].get("born") if written else None
    if not isinstance(born, dict):
        return []
    return [int(pid) for pid, tick in born.items() if was_born(pid, tick)]
