"""``swapfs install-unit``: the systemd unit that waits for what one configuration names.

Where a package has brought a unit of that name, only what differs goes into a drop-in. What is
written has been checked by systemd itself, together with the units that the machine has.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

import swapfs
from swapfs.command import completion, unit_files
from swapfs.command.unit_files import VENDOR_DIRS, Instance
from swapfs.config import model, values
from swapfs.config.options import BY_KEY
from swapfs.config.paths import CONFIG_DIR, default_mountpoint
from swapfs.errors import ConfigError, OperationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swapfs.config.model import Config

ANALYZE: Final = "systemd-analyze"
ALL_AT_BOOT: Final = "sysinit.target"
"""Pulls in local-fs.target and swap.target; every service comes after it."""
_VERSION: Final = re.compile(r"systemd (\d+)")
_MORE_OF_CYCLE: Final = re.compile(r": Found dependency on |deleted to break ordering cycle")
"""What follows "Found ordering cycle" (src/core/transaction.c of systemd)."""


@click.command("install-unit")
@click.argument("name", required=False, shell_complete=completion.configurations)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Default: /etc/swapfs/NAME.toml.",
    shell_complete=completion.files,
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=unit_files.UNIT_DIR,
    show_default=True,
    help="Where units are.",
)
def command(name: str | None, config_file: str | None, directory: Path) -> None:
    """Write the systemd unit of instance NAME (swapfs), which waits for what its file names."""
    if name is not None:
        values.parse_name("NAME", name)
    default = CONFIG_DIR / f"{name or BY_KEY['name'].default}.toml"
    file = Path(config_file) if config_file else default
    service, changed = install(model.load({"name": name}, file), file, directory)
    for path in changed:
        click.echo(f"wrote {path}")
    if changed:
        click.echo(f"next: systemctl daemon-reload; systemctl enable --now {service}")
    else:
        click.echo(f"{service}: already as the configuration needs it")


def install(config: Config, config_file: Path, directory: Path) -> tuple[str, list[Path]]:
    """Write the units of *config* into *directory*; return the service, and what has changed.

    :param config_file: the file that *config* was read from
    :raises ConfigError: it cannot be a service
    :raises OperationError: systemd does not accept the unit, or it cannot be written
    """
    instance = instance_of(config, config_file)
    origin = f"Written by: swapfs install-unit {config.name} --config {config_file}"
    made = unit_files.files(instance, origin, _systemd_version())
    vendor = _vendor_dir(instance, directory)
    if vendor is not None:
        made = unit_files.drop_ins(instance, origin)
    check(made, instance, vendor)
    try:
        changed = unit_files.write(made, directory)
    except OSError as error:
        raise OperationError(f"{error.filename}: {error.strerror}") from error
    return instance.service, changed


def instance_of(config: Config, config_file: Path) -> Instance:
    """Return what the units of *config* are made from.

    :raises ConfigError: a path in it that no unit can name
    """
    program = _program()
    config_file = config_file.absolute()
    paths = [config_file, program, Path(sys.prefix), Path(swapfs.__file__).parent]
    usual = default_mountpoint(config.runtime_dir, config.name)
    paths += [config.runtime_dir]
    if config.mountpoint != usual:
        paths += [config.mountpoint.parent]
    if config.log_dir is not None:
        paths += [config.log_dir]
    devices: list[Path] = []
    for place in [tier.file.path for tier in config.all_tiers if tier.far is None]:
        if _is_block(place):
            devices.append(_in_dev(place))
        else:
            paths.append(place.parent)
    # systemd follows no symbolic link.
    paths += [path.resolve() for path in paths]
    for path in (*paths, *devices):
        if not str(path).isprintable():
            raise ConfigError("path", f"{str(path)!r} cannot be named in a unit")
    return Instance(
        name=config.name,
        config=unit_files.quote_argument(config_file),
        program=program,
        runtime_dir=config.runtime_dir,
        mountpoint=None if config.mountpoint == usual else config.mountpoint,
        paths=tuple(paths),
        devices=tuple(devices),
    )


def check(made: Mapping[Path, str], instance: Instance, vendor: Path | None) -> None:
    """Have systemd look at *made* as it would be at boot, beside the units of this machine.

    :param vendor: where the unit is that *made* is a drop-in of
    :raises OperationError: it complains of our unit; nothing was written
    """
    if shutil.which(ANALYZE) is None:
        return
    with tempfile.TemporaryDirectory(prefix="swapfs-unit-") as folder:
        unit_files.write(made, Path(folder))
        if vendor is not None:
            name = instance.service if (vendor / instance.service).exists() else _template(instance)
            shutil.copy(vendor / name, folder)
        wanted = Path(folder, "swap.target.wants")
        wanted.mkdir()
        (wanted / instance.service).symlink_to(f"../{instance.service}")
        command = (ANALYZE, "verify", "--man=no", ALL_AT_BOOT, instance.service)
        given = os.environ.get("SYSTEMD_UNIT_PATH", "")  # empty: the usual places
        environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:{given}", "LC_ALL": "C"}
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        ).stderr
    ours = [line.replace(f"{folder}/", "") for line in complaints_of_ours(said)]
    if ours:
        raise OperationError(f"systemd does not accept {instance.service}: {'; '.join(ours)}")


def complaints_of_ours(said: str) -> list[str]:
    """Return the lines of `systemd-analyze verify` that are about a unit of ours.

    It complains of the machine's own units too. A cycle is one report of several lines, which
    begins at any unit of it: not always the first names ours, and it is kept whole if one does.
    """
    reports: list[list[str]] = []
    for line in said.splitlines():
        if _MORE_OF_CYCLE.search(line) and reports:
            reports[-1].append(line)
        else:
            reports.append([line])
    return [line for report in reports if any("swapfs" in one for one in report) for line in report]


def _systemd_version() -> int:
    """Return the version of the systemd that is installed, 0 if there is none."""
    try:
        said = subprocess.run(
            ("systemctl", "--version"), capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return 0
    found = _VERSION.match(said)
    return int(found[1]) if found else 0


def _vendor_dir(instance: Instance, directory: Path) -> Path | None:
    names = (instance.service, _template(instance))
    return next(
        (
            vendor
            for vendor in VENDOR_DIRS
            if vendor != directory and any((vendor / name).exists() for name in names)
        ),
        None,
    )


def _template(instance: Instance) -> str:
    base, at, _ = instance.service.partition("@")
    return f"{base}@.service" if at else instance.service


def _program() -> Path:
    """Return the program that a unit can start: this one, by the name that it was called by.

    :raises OperationError: it is not installed
    """
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == "swapfs" else None
    program = Path(called or Path(sysconfig.get_path("scripts"), "swapfs")).absolute()
    if not os.access(program, os.X_OK):
        raise OperationError(f"{program} is not there: install swapfs, or call it by its path")
    return program


def _is_block(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def _in_dev(path: Path) -> Path:
    """Return the name of a block device that systemd has a unit for; links elsewhere have none."""
    return path if path.is_relative_to("/dev") else path.resolve()
