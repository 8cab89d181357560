"""The options of an instance on the command line: the table of options, for click.

They have no defaults here: only what is given counts, and the table knows the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from swapfs.command import completion
from swapfs.config import model
from swapfs.config.option import Form, Option
from swapfs.config.options import BY_KEY, OPTIONS
from swapfs.errors import OperationError

Command = Callable[..., Any]

CONFIG_FILE: Final = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="TOML file with the same keys, and FILE.d/*.toml.",
    shell_complete=completion.files,
)
NAME_ARGUMENT: Final = click.argument(
    "name", default=BY_KEY["name"].default, shell_complete=completion.instances
)
ANY_NAME: Final = click.argument("name", required=False, shell_complete=completion.instances)
RUNTIME_DIR: Final = click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, resolve_path=True),  # as the kernel shows it
    default=str(BY_KEY["runtime-dir"].default),
    show_default=True,
)
"""For commands that only need to find an instance."""


class FloatRange(click.FloatRange):
    """A number in a range. Python's "nan" is none, and click lets it pass: it is not beyond."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number that *value* is."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def require_root(command: str) -> None:
    """Let only root go on.

    :raises OperationError: it is somebody else
    """
    if os.geteuid() != 0:
        raise OperationError(f"{command} needs root: run it with sudo")


def instance_options(command: Command) -> Command:
    """Give *command*, by the name of its function, what describes an instance.

    What it is called with goes to :func:`load`.
    """
    for option in reversed(OPTIONS):
        command = _parameter(option, command.__name__)(command)
    return CONFIG_FILE(command)


def load(given: Mapping[str, Any]) -> model.Config:
    """Return the configuration that the parameters of :func:`instance_options` make.

    :raises ConfigError: as ``model.load``
    """
    return model.load(*_places(given))


def origins(given: Mapping[str, Any]) -> dict[str, str]:
    """Return by key where :func:`load` has it from, if it is not a default.

    :raises ConfigError: as ``model.gather``
    """
    return model.origins(model.gather(*_places(given)))


def _places(given: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    file = given["config_file"]
    by_key = {key: given[key.replace("-", "_")] for key in BY_KEY}
    return by_key, Path(file) if file is not None else None


def _parameter(option: Option, command: str) -> Callable[[Command], Command]:
    name = f"--{option.key}"
    if command in option.argument_of:
        return click.argument(
            option.key, metavar=option.metavar, shell_complete=completion.value_of(option)
        )
    match option.form:
        case Form.VALUE:
            complete = completion.value_of(option)
            return click.option(
                name, metavar=option.metavar, help=_help(option), shell_complete=complete
            )
        case Form.SWITCH:
            return click.option(f"{name}/--no-{option.key}", default=None, help=_help(option))
        case Form.FLAG:
            return click.option(name, is_flag=True, default=None, help=f"{option.help}.")


def _help(option: Option) -> str:
    default = option.shown_default()
    if option.form is Form.SWITCH:
        default = "on" if option.default else "off"
    return f"{option.help} ({default})." if default else f"{option.help}."
