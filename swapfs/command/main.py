"""The ``swapfs`` command: reads the command line, calls, prints.

Options of an instance come from the table (config/options.py). Each failure is one line on
standard error.
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
from swapfs.command import columns as columns_of
from swapfs.command import (
    doctor,
    figures,
    install_unit,
    reclaim,
    replay,
    resize,
    stale,
    tiers,
    top,
    trace,
    verify,
)
from swapfs.command import status as status_of
from swapfs.command.options import (
    ANY_NAME,
    NAME_ARGUMENT,
    RUNTIME_DIR,
    instance_options,
    load,
    origins,
    require_root,
)
from swapfs.config import model, values
from swapfs.errors import ConfigError, OperationError, SwapfsError, UsageError
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES: Final = "Exit codes: 0 done; 1 an operation failed; 2 wrong usage or configuration."
DEMOTE_TIMEOUT_S: Final = 600.0


@click.group(
    epilog=EXIT_CODES,
    no_args_is_help=False,  # help on standard error is more than the one line of a mistake
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="swapfs")
def cli() -> None:
    """Swap on compressed memory and a backing file, in userspace."""


@cli.command(epilog=EXIT_CODES)
@click.option("--foreground", is_flag=True, help="Serve until unmounted instead of returning.")
@instance_options
def mount(foreground: bool, **options: Any) -> None:
    """Mount the swap file on MNT; make swap of it yourself; `up` does both."""
    require_root("mount")
    from swapfs.command import lifecycle

    settings = load(options)
    _let_interrupt()
    pid = lifecycle.mount(settings, foreground)
    if pid is not None:
        for export in settings.exports:
            click.echo(f"{settings.mountpoint / export.name}: served by process {pid}")


@cli.command(epilog=EXIT_CODES)
@instance_options
def up(**options: Any) -> None:
    """Mount, attach a loop device, mkswap and swapon; all of it or nothing."""
    require_root("up")
    from swapfs.command import adopt, lifecycle

    settings = load(options)
    _let_interrupt()
    devices = adopt.running(settings) or lifecycle.up(settings)
    for export, device in zip(settings.exports, devices, strict=True):
        size = values.exact_size(export.size_bytes)
        name = f"{settings.name} {export.name}" if len(devices) > 1 else settings.name
        click.echo(f"{name}: {size} of swap on {device}, priority {export.priority}")


@cli.command(epilog=EXIT_CODES)
@NAME_ARGUMENT
@click.option("--force", is_flag=True, help="Even if memory may not hold what is swapped.")
@RUNTIME_DIR
def down(name: str, force: bool, runtime_dir: Path) -> None:
    """Swapoff, detach and unmount instance NAME (swapfs); again is fine."""
    require_root("down")
    from swapfs.command import lifecycle

    done = lifecycle.down(values.parse_name("NAME", name), runtime_dir, force=force)
    click.echo(f"{name}: {', '.join(done) or 'nothing to take down'}")


@cli.command(epilog=EXIT_CODES)
@ANY_NAME
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("-b", "--bytes", "in_bytes", is_flag=True, help="Sizes in bytes.")
@click.option("-n", "--noheadings", is_flag=True, help="Only the table, without headings.")
@click.option("-o", "--output", metavar="LIST", help="Only the table, with these columns.")
@click.option("--raw", is_flag=True, help="Only the table, one blank between columns.")
@RUNTIME_DIR
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
    instances = status_of.collect(runtime_dir, names)
    ghosts: list[stale.GhostSwap] = []
    try:
        ghosts = stale.ghost_swaps(stale.all_remembered(runtime_dir))
    except OperationError as error:  # the rest is worth showing
        _complain(f"whether there is a ghost cannot be seen: {error}")
    if name is not None and not instances:
        raise OperationError(f"no instance {name} in {runtime_dir}")
    if as_json:
        shown = {
            "instances": [instance.as_dict() for instance in instances],
            "ghosts": [_ghost_json(ghost) for ghost in ghosts],
        }
        click.echo(json.dumps(shown, indent=2))
        return
    click.echo(
        columns_of.format_table(
            instances, columns, in_bytes=in_bytes, headings=not noheadings, raw=raw
        ),
        nl=bool(instances) or not noheadings,
    )
    if (instances or ghosts) and not (noheadings or raw or output):
        click.echo("\n" + status_of.format_details(instances, ghosts))


@cli.command("check-config", epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="JSON with sizes in bytes.")
@instance_options
def check_config(as_json: bool, **options: Any) -> None:
    """Check options and files against this machine; print what holds, and where it is from."""
    from swapfs import policy
    from swapfs.command import launch
    from swapfs.tiers import backing_file
    from swapfs.vlayer.capacity import geometry_for, require_room

    settings = load(options)
    require_room(
        settings, geometry_for(settings.span_bytes, settings.pool_bytes, settings.log_bytes)
    )
    for tier in settings.all_tiers:
        if tier.far is None:
            backing_file.look(tier.file.path, tier.file.size_bytes)
    launch.meet_limits(settings)
    policy.find(settings.policy)
    click.echo(model.describe(settings, as_json, origins(options)))


@cli.command(epilog=EXIT_CODES)
@NAME_ARGUMENT
@click.option("--pages", type=click.IntRange(min=1), required=True, help="Most pages to move.")
@RUNTIME_DIR
def demote(name: str, pages: int, runtime_dir: Path) -> None:
    """Move up to --pages pages of instance NAME (swapfs) from memory to the backing file."""
    require_root("demote")
    sock = control.socket_path(runtime_dir, values.parse_name("NAME", name))
    result = control.request(sock, "demote", DEMOTE_TIMEOUT_S, pages=pages)
    click.echo(f"{name}: demoted {result.get('demoted', 0)} pages")


@cli.command(epilog=EXIT_CODES)
@NAME_ARGUMENT
@RUNTIME_DIR
def upgrade(name: str, runtime_dir: Path) -> None:
    """Replace the daemon of instance NAME (swapfs) by this version; swap stays on."""
    require_root("upgrade")
    from swapfs.command import lifecycle

    before, now = lifecycle.upgrade(values.parse_name("NAME", name), runtime_dir)
    click.echo(f"{name}: version {before} has handed over to {now}")


for each in (
    figures.stat,
    figures.metrics,
    doctor.doctor,
    tiers.tier,
    resize.resize,
    verify.verify,
    trace.trace,
    replay.replay,
    top.top,
    reclaim.reclaim,
    install_unit.command,
):
    each.epilog = each.epilog or EXIT_CODES
    cli.add_command(each)


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
    # Python has no stream for what was closed, and click before 8.1.4 writes to None.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _complain(problem: str) -> None:
    """Print *problem* to standard error, as one line whatever it quotes."""
    click.echo(f"swapfs: {' '.join(problem.split())}", err=True)


def _let_interrupt() -> None:
    """Let SIGTERM interrupt as Ctrl-C does: what is done so far must be undone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _columns(output: str | None) -> Sequence[str]:
    if output is None:
        return columns_of.COLUMNS
    columns = [column.strip().upper() for column in output.split(",")]
    known = columns_of.column_names()
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
