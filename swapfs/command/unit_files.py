"""The text of systemd units: one instance's service, what stands by it, and how systemd quotes.

    python -m swapfs.command.unit_files [--program FILE] [--systemd VERSION] DIRECTORY

writes the units of a package there: the instance ``swapfs``, and the template for all others. The
texts, with their reasons, are the files in ``units/``. Asks nothing of the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import string
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.config.options import BY_KEY
from swapfs.config.paths import CONFIG_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNIT_DIR: Final = Path("/etc/systemd/system")
VENDOR_DIRS: Final = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
ORDER_DROP_IN: Final = "50-swapfs.conf"
DROP_IN: Final = "50-config.conf"
STATE_DIR: Final = Path("/var/lib/swapfs")
PROGRAM: Final = Path("/usr/local/bin/swapfs")
SURVIVES_SINCE: Final = 255
"""The systemd that knows SurviveFinalKillSignal=; older ones complain of it."""

_DEFAULT_NAME: Final = str(BY_KEY["name"].default)
_DEFAULT_RUNTIME_DIR: Final = Path(BY_KEY["runtime-dir"].default)
_MARK: Final = re.compile("@([A-Z_]+)@")
_NAME_CHARS: Final = frozenset(string.ascii_letters + string.digits + ":_.")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:+,=-]+")
_SURVIVE: Final = """\
# The last sweep at shutdown must not take the server before swap is off.
SurviveFinalKillSignal=yes
"""


@dataclass(frozen=True, slots=True)
class Instance:
    """What the units of one instance are made from.

    :param name: the instance, or ``%i`` in a template
    :param config: its configuration, as an argument in a unit
    :param mountpoint: where it is mounted, if not where it usually is below *runtime_dir*
    :param paths: what must be mounted before it starts
    :param devices: block devices that must be there
    """

    name: str
    config: str
    program: Path = PROGRAM
    runtime_dir: Path = _DEFAULT_RUNTIME_DIR
    mountpoint: Path | None = None
    paths: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()

    @property
    def service(self) -> str:
        """The name of its unit."""
        return _of("swapfs", self.name)

    @property
    def sleep_service(self) -> str:
        """The name of the unit that has it down while the machine sleeps."""
        return _of("swapfs-sleep", self.name)

    @property
    def mount_drop_in(self) -> Path:
        """Where the drop-in goes for the unit that systemd makes of its mount."""
        if self.mountpoint is not None:
            return Path(f"{escape_path(self.mountpoint)}.mount.d", ORDER_DROP_IN)
        return Path(f"{escape_path(self.runtime_dir)}-.mount.d", ORDER_DROP_IN)


def files(instance: Instance, origin: str, systemd: int) -> dict[Path, str]:
    """Return the units of *instance*, by their place below the directory for units.

    :param origin: one line on who made them
    :param systemd: the version that they are for
    """
    values = {
        "NAME": instance.name,
        "ORIGIN": origin,
        "PROGRAM": quote(instance.program),
        "CONFIG": instance.config,
        "RUNTIME_DIR": _runtime_dir(instance.runtime_dir),
        "WAITS": "\n".join(waits(instance)),
        "UNIT": instance.service,
        "SLEEP_UNIT": instance.sleep_service,
        "SURVIVE": _SURVIVE if systemd >= SURVIVES_SINCE else "",
    }
    return {
        Path(instance.service.replace("%i", "")): _fill("service.in", values),
        Path(instance.sleep_service.replace("%i", "")): _fill("sleep.in", values),
        Path("swap.d", ORDER_DROP_IN): _fill("swap.conf", {}),
        instance.mount_drop_in: _fill("mount.conf", {}),
    }


def drop_ins(instance: Instance, origin: str) -> dict[Path, str]:
    """Return what makes packaged units those of *instance*, by place as :func:`files`."""
    return {
        Path(f"{instance.service}.d", DROP_IN): _service_drop_in(instance, origin),
        Path(f"{instance.sleep_service}.d", DROP_IN): (
            f"# {origin}\n[Service]\nExecStart=\nExecStart={_down(instance)}\n"
        ),
        instance.mount_drop_in: _fill("mount.conf", {}),
    }


def _down(instance: Instance) -> str:
    runtime_dir = _runtime_dir(instance.runtime_dir)
    return f"{quote(instance.program)} down {instance.name}{runtime_dir}"


def _service_drop_in(instance: Instance, origin: str) -> str:
    runtime_dir = _runtime_dir(instance.runtime_dir)
    program = quote(instance.program)
    up = f"{program} up --config {instance.config} --name {instance.name}"
    commands = {
        "ExecStart": [up],
        "ExecReload": [f"{program} upgrade {instance.name}{runtime_dir}", up],
        "ExecStop": [_down(instance)],
    }
    lines = [f"# {origin}", "[Unit]", *waits(instance), "[Service]"]
    for key, wanted in commands.items():
        lines += [f"{key}=", *(f"{key}={command}" for command in wanted)]
    return "\n".join(lines) + "\n"


def waits(instance: Instance) -> list[str]:
    """Return the lines that make the unit wait for what *instance* names.

    A device is only waited for: were it required, its loss would turn swap off.
    """
    lines = [f"RequiresMountsFor={quote(path)}" for path in _outermost_last(instance.paths)]
    for device in instance.devices:
        escaped = escape_path(device)
        lines.append(f"Wants={escaped}.device")
        # The second is what opens it, if it is encrypted: that must not close it under us.
        lines.append(f"After={escaped}.device blockdev@{escaped}.target")
    return lines


def escape_path(path: Path) -> str:
    """Return *path* as a unit is named after it, like ``systemd-escape --path``."""
    inner = os.fsencode(os.path.normpath(path).strip("/"))
    return "".join(_escape_byte(byte, first=not index) for index, byte in enumerate(inner)) or "-"


def quote(path: Path) -> str:
    """Return *path* as one word of a unit file's line."""
    text = str(path).replace("%", "%%")
    if _PLAIN.fullmatch(text.replace("%%", "")):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quote_argument(path: Path) -> str:
    """Return *path* as an argument of a command line in a unit file."""
    return quote(path).replace("$", "$$")


def packaged(program: Path, systemd: int) -> dict[Path, str]:
    """Return the units that a package has, for the example configuration and any other name."""
    origin = "swapfs install-unit writes what another configuration needs."
    made: dict[Path, str] = {}
    for name, config in ((_DEFAULT_NAME, f"{_DEFAULT_NAME}.toml"), ("%i", "%i.toml")):
        instance = Instance(
            name=name,
            config=str(CONFIG_DIR / config),
            program=program,
            paths=(CONFIG_DIR, STATE_DIR, program),
        )
        made |= files(instance, origin, systemd)
    return made


def write(made: Mapping[Path, str], directory: Path) -> list[Path]:
    """Write *made* below *directory*; return the paths whose content is new.

    :raises OSError: it cannot be written
    """
    changed = []
    for place, text in made.items():
        path = directory / place
        if path.exists() and path.read_text() == text:
            continue
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")  # systemd reads no such name
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)
        changed.append(path)
    return changed


def _of(base: str, name: str) -> str:
    return f"{base}.service" if name == _DEFAULT_NAME else f"{base}@{name}.service"


def _escape_byte(byte: int, *, first: bool) -> str:
    char = chr(byte)
    if char == "/":
        return "-"
    if char in _NAME_CHARS and not (first and char == "."):
        return char
    return f"\\x{byte:02x}"


def _fill(file: str, values: Mapping[str, str]) -> str:
    text = resources.files("swapfs.command").joinpath("units", file).read_text(encoding="utf-8")
    return _MARK.sub(lambda found: values[found[1]], text)


def _runtime_dir(path: Path) -> str:
    return "" if path == _DEFAULT_RUNTIME_DIR else f" --runtime-dir {quote_argument(path)}"


def _outermost_last(paths: Iterable[Path]) -> list[Path]:
    """Return *paths* without those that lie above another one, in order."""
    unique = dict.fromkeys(paths)
    return [path for path in unique if not any(path in other.parents for other in unique)]


def main() -> int:
    """Write the units of a package."""
    parser = argparse.ArgumentParser(prog="python -m swapfs.command.unit_files")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--systemd", type=int, default=0, help="the version that they are for")
    given = parser.parse_args()
    given.directory.mkdir(exist_ok=True)
    for path in write(packaged(given.program, given.systemd), given.directory):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
