"""The ``swapfs`` command: reads the command line, calls, prints.

Options of an instance have no defaults here: model.py knows them, and checks the values. Each
failure is one line on standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swapfs import __version__
from swapfs.command import stale
from swapfs.command import status as status_of
from swapfs.config import model, values
from swapfs.errors import ConfigError, OperationError, SwapfsError, UsageError
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = Callable[..., Any]

EXIT_CODES: Final = "Exit codes: 0 done; 1 an operation failed; 2 wrong usage or configuration."
DEMOTE_TIMEOUT_S: Final = 600.0

_CONFIG_OPTIONS: Final = [
    click.option("--config", "config_file", metavar="FILE", help="TOML file with the same keys."),
    click.option("--name", metavar="NAME", help="Name of the instance (swapfs)."),
    click.option("--size", metavar="SIZE", help="Size that the kernel sees: 1G, 512MiB."),
    click.option("--pool", metavar="SIZE", help="Memory for compressed pages, taken at start."),
    click.option("--overcommit", metavar="RATIO", help="Most size per guaranteed room (1.0)."),
    click.option("--file", metavar="PATH[:SIZE]", help="Backing file or block device."),
    click.option("--file-direct-io", metavar="auto|on|off", help="O_DIRECT on it (auto)."),
    click.option(
        "--file-encryption/--no-file-encryption", default=None, help="Encrypt what goes there (on)."
    ),
    click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics, or off (off)."),
    click.option("--high-watermark", metavar="PERCENT", help="Pool use that starts demotion (90)."),
    click.option("--low-watermark", metavar="PERCENT", help="Pool use that ends demotion (80)."),
    click.option("--promote/--no-promote", default=None, help="Reads bring pages back to memory."),
    click.option("--priority", metavar="N", help="Swap priority (100)."),
    click.option("--min-free", metavar="SIZE", help="vm.min_free_kbytes, auto or off (auto)."),
    click.option("--unsafe", is_flag=True, default=None, help="Go on though a guard failed."),
    click.option("--runtime-dir", metavar="DIR", help="Sockets and locks (/run/swapfs)."),
]
_MOUNTPOINT_OPTION = click.option(
    "--mountpoint", metavar="MNT", help="Existing directory (RUNTIME-DIR/NAME/mnt, made)."
)
_NAME_ARGUMENT = click.argument("name", default="swapfs")
_RUNTIME_DIR_OPTION = click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, resolve_path=True),  # as the kernel shows it
    default="/run/swapfs",
    show_default=True,
)


def _config_options(command: Command) -> Command:
    """Give *command* the options that describe an instance, for :func:`_load`."""
    for option in reversed(_CONFIG_OPTIONS):
        command = option(command)
    return command


def _load(options: dict[str, Any]) -> model.Config:
    file = options["config_file"]
    given = {key: options.get(key.replace("-", "_")) for key in model.KEYS}
    return model.load(given, Path(file) if file is not None else None)


@click.group(
    epilog=EXIT_CODES,
    no_args_is_help=False,  # help on standard error is more than the one line of a mistake
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="swapfs")
def cli() -> None:
    """Swap on compressed memory and a backing file, in userspace."""


@cli.command(epilog=EXIT_CODES)
@click.argument("mountpoint", metavar="MNT")
@click.option("--foreground", is_flag=True, help="Serve until unmounted instead of returning.")
@_config_options
def mount(foreground: bool, **options: Any) -> None:
    """Mount the swap file on MNT; make swap of it yourself; `up` does both."""
    _require_root("mount")
    from swapfs.command import lifecycle

    settings = _load(options)
    _let_interrupt()
    pid = lifecycle.mount(settings, foreground)
    if pid is not None:
        click.echo(f"{settings.swap_file}: served by process {pid}")


@cli.command(epilog=EXIT_CODES)
@_MOUNTPOINT_OPTION
@_config_options
def up(**options: Any) -> None:
    """Mount, attach a loop device, mkswap and swapon; all of it or nothing."""
    _require_root("up")
    from swapfs.command import lifecycle

    settings = _load(options)
    _let_interrupt()
    device = lifecycle.up(settings)
    size = values.exact_size(settings.size_bytes)
    click.echo(f"{settings.name}: {size} of swap on {device}, priority {settings.priority}")


@cli.command(epilog=EXIT_CODES)
@_NAME_ARGUMENT
@_RUNTIME_DIR_OPTION
def down(name: str, runtime_dir: Path) -> None:
    """Swapoff, detach and unmount instance NAME (swapfs); again is fine."""
    _require_root("down")
    from swapfs.command import lifecycle

    done = lifecycle.down(values.parse_name("NAME", name), runtime_dir)
    click.echo(f"{name}: {', '.join(done) or 'nothing to take down'}")


@cli.command(epilog=EXIT_CODES)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("-b", "--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@click.option("-n", "--noheadings", is_flag=True, help="Only the table, without headings.")
@click.option("-o", "--output", metavar="LIST", help="Only the table, with these columns.")
@click.option("--raw", is_flag=True, help="Only the table, one blank between columns.")
@_RUNTIME_DIR_OPTION
def status(
    name: str | None,
    as_json: bool,
    in_bytes: bool,
    noheadings: bool,
    output: str | None,
    raw: bool,
    runtime_dir: Path,
) -> None:
    """Show instance NAME, or all; needs no root."""
    columns = _columns(output)
    names = None if name is None else [values.parse_name("NAME", name)]
    statuses = status_of.collect(runtime_dir, names)
    ghosts = stale.ghost_swaps(stale.all_remembered(runtime_dir))
    if name is not None and not statuses:
        raise OperationError(f"no instance {name} in {runtime_dir}")
    if as_json:
        shown = {"instances": statuses, "ghosts": [_ghost_json(ghost) for ghost in ghosts]}
        click.echo(json.dumps(shown, indent=2))
        return
    click.echo(
        status_of.format_table(
            statuses, columns, in_bytes=in_bytes, headings=not noheadings, raw=raw
        ),
        nl=bool(statuses) or not noheadings,
    )
    if (statuses or ghosts) and not (noheadings or raw or output):
        click.echo("\n" + status_of.format_details(statuses, ghosts))


@cli.command("check-config", epilog=EXIT_CODES)
@_MOUNTPOINT_OPTION
@click.option("--json", "as_json", is_flag=True, help="JSON with sizes in bytes.")
@_config_options
def check_config(as_json: bool, **options: Any) -> None:
    """Check options and file against this machine and print what holds; changes nothing."""
    from swapfs.vlayer.capacity import geometry_for, guaranteed_bytes

    settings = _load(options)
    geometry = geometry_for(settings.size_bytes, settings.pool_bytes)
    model.check_room(settings, guaranteed_bytes(geometry, settings.file_bytes))
    click.echo(model.describe(settings, as_json))


@cli.command(epilog=EXIT_CODES)
@_NAME_ARGUMENT
@click.option("--pages", type=click.IntRange(min=1), required=True, help="Most pages to move.")
@_RUNTIME_DIR_OPTION
def demote(name: str, pages: int, runtime_dir: Path) -> None:
    """Move up to --pages pages of instance NAME (swapfs) from memory to the backing file."""
    _require_root("demote")
    sock = control.socket_path(runtime_dir, values.parse_name("NAME", name))
    result = control.request(sock, "demote", DEMOTE_TIMEOUT_S, pages=pages)
    click.echo(f"{name}: demoted {result.get('demoted', 0)} pages")


@cli.command(epilog=EXIT_CODES)
@_NAME_ARGUMENT
@_RUNTIME_DIR_OPTION
def upgrade(name: str, runtime_dir: Path) -> None:
    """Replace the daemon of instance NAME (swapfs) by this version; swap stays on."""
    _require_root("upgrade")
    from swapfs.command import lifecycle

    before, now = lifecycle.upgrade(values.parse_name("NAME", name), runtime_dir)
    click.echo(f"{name}: version {before} has handed over to {now}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (sys.argv if None) and return the exit code."""
    _set_up_process()
    try:
        code = cli.main(argv, prog_name="swapfs", standalone_mode=False)
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except click.Abort:
        _complain("interrupted")
        return 1
    except SwapfsError as error:
        _complain("; ".join([str(error), *getattr(error, "__notes__", [])]))
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # of `swapfs status | head`: it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    return code if isinstance(code, int) else 0


def _set_up_process() -> None:
    """Undo what a caller may have left us with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, no child of ours has a status
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # was closed; the next file would have become our standard output
    os.close(fd)


def _complain(problem: str) -> None:
    """Print *problem* to standard error, as one line whatever it quotes."""
    click.echo(f"swapfs: {' '.join(problem.split())}", err=True)


def _let_interrupt() -> None:
    """Let SIGTERM interrupt as Ctrl-C does: what is done so far must be undone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _require_root(command: str) -> None:
    if os.geteuid() != 0:
        raise OperationError(f"{command} needs root: run it with sudo")


def _columns(output: str | None) -> Sequence[str]:
    if output is None:
        return status_of.COLUMNS
    columns = [column.strip().upper() for column in output.split(",")]
    known = status_of.column_names()
    for column in columns:
        if column not in known:
            raise ConfigError("--output", f"no column {column!r} (known: {', '.join(known)})")
    return columns


def _ghost_json(ghost: stale.GhostSwap) -> dict[str, str]:
    return {
        "device": str(ghost.device),
        "backing_file": ghost.backing_file,
        "reason": ghost.reason,
    }
