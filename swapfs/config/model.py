"""What the user asked for: command line and TOML file, checked against this machine.

The command line and the files have the same keys; the command line wins, then the files (of
several the last, ``layers.py``), then the defaults of the table (``options.py``). Every mistake is
a :class:`ConfigError` of one line. Knows nothing of how the values are used; creates and changes
nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swapfs.config import layers, option, values
from swapfs.config.exports import ExportConfig, read_exports, show_exports
from swapfs.config.options import BY_KEY, DEFAULTS, OPTIONS
from swapfs.config.paths import SWAP_FILE_NAME
from swapfs.config.tiers import TierConfig, read_tiers, show_tiers
from swapfs.errors import ConfigError
from swapfs.host import proc
from swapfs.units import PAGE_SIZE, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swapfs.config.backing import FileTierConfig

TIER: Final = "tier"
"""The key of the tables that describe tiers."""
EXPORT: Final = "export"
"""The key of those that describe swap files."""
TABLES: Final = (TIER, EXPORT)
COMMAND_LINE: Final = "command line"
DEFAULT: Final = "default"
ORIGIN_COLUMN: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One instance, all values checked; sizes in bytes. Each field is one of ``OPTIONS``, but for
    ``tiers``, the ``[[tier]]`` tables, and ``described``, what ``[[export]]`` tables make of the
    swap files: empty if there is none.

    ``min_free_bytes`` is 0 for "off" and None for "auto", which ``up`` resolves (reserve.py).
    """

    name: str = DEFAULTS["name"]
    mountpoint: Path
    size_bytes: int
    pool_bytes: int
    pool_max_bytes: int = DEFAULTS["pool-max"]
    overcommit: float = DEFAULTS["overcommit"]
    file: FileTierConfig | None = DEFAULTS["file"]
    tiers: tuple[TierConfig, ...] = ()
    described: tuple[ExportConfig, ...] = ()
    metrics: tuple[str, int] | None = DEFAULTS["metrics"]
    log_bytes: int = DEFAULTS["access-log"]
    high_watermark_percent: int = DEFAULTS["high-watermark"]
    low_watermark_percent: int = DEFAULTS["low-watermark"]
    promote: bool = DEFAULTS["promote"]
    prefetch_pages: int = DEFAULTS["prefetch"]
    latency: str = DEFAULTS["latency"]
    raw_first: bool = DEFAULTS["raw-first"]
    recompress: bool = DEFAULTS["recompress"]
    recompress_level: int = DEFAULTS["recompress-level"]
    recompress_watermark_percent: int = DEFAULTS["recompress-watermark"]
    policy: str = DEFAULTS["policy"]
    priority: int = DEFAULTS["priority"]
    min_free_bytes: int | None = DEFAULTS["min-free"]
    unsafe: bool = DEFAULTS["unsafe"]
    runtime_dir: Path = DEFAULTS["runtime-dir"]
    log_dir: Path | None = DEFAULTS["log-dir"]

    @property
    def log_path(self) -> Path:
        """The log, unless it goes to standard error."""
        return (self.log_dir or self.runtime_dir) / f"{self.name}.log"

    @property
    def swap_file(self) -> Path:
        """The first file that the kernel swaps on, through a loop device."""
        return self.mountpoint / SWAP_FILE_NAME

    @property
    def exports(self) -> tuple[ExportConfig, ...]:
        """The swap files, in the order of their inodes and of their slots."""
        return self.described or (_main_export(self.size_bytes, self.priority),)

    @property
    def export_names(self) -> list[str]:
        """Their names."""
        return [export.name for export in self.exports]

    @property
    def virtual_bytes(self) -> int:
        """The sizes of all swap files."""
        return sum(export.size_bytes for export in self.exports)

    @property
    def span_bytes(self) -> int:
        """The size of the space of slots in which all of them lie."""
        *first, last = self.exports
        return sum(export.span_bytes for export in first) + last.size_bytes

    @property
    def arena_bytes(self) -> int:
        """The most that the pool may ever have."""
        return max(self.pool_bytes, self.pool_max_bytes)

    @property
    def all_tiers(self) -> tuple[TierConfig, ...]:
        """The tiers below the pool; that of ``file`` is called so, and is the first."""
        first = () if self.file is None else (TierConfig(name="file", file=self.file),)
        return (*first, *self.tiers)

    @property
    def tier_bytes(self) -> tuple[int, ...]:
        """Sizes of the tiers below the pool, as far as they are certain to take a page."""
        return tuple(tier.certain_bytes for tier in self.all_tiers)


def load(
    cli_values: Mapping[str, object], config_file: Path | None = None, root: Path = proc.ROOT
) -> Config:
    """Return the configuration that *cli_values* over *config_file* make.

    :param cli_values: by key of the table; None means not given
    :param config_file: read with its drop-ins, see ``layers``
    :param root: holds the proc that is asked for memory and mounts
    :raises ConfigError: the first value that is wrong, or does not fit this machine
    """
    given = gather(cli_values, config_file)
    try:
        settled = option.settle(OPTIONS, given, root)
    except ConfigError as error:
        if config_file is not None and not config_file.exists():
            error.add_note(f"{config_file}: No such file or directory")
        raise
    tiers: tuple[TierConfig, ...] = ()
    if TIER in given:
        tiers = read_tiers(*given[TIER], settled["file"], root, unsafe=settled["unsafe"])
    config = Config(**option.fields(OPTIONS, settled), tiers=tiers)
    if EXPORT not in given:
        return config
    names = [tier.name for tier in config.all_tiers]
    (main,) = config.exports
    return replace(config, described=read_exports(*given[EXPORT], main, names, root))


def _main_export(size_bytes: int, priority: int) -> ExportConfig:
    return ExportConfig(name=SWAP_FILE_NAME, size_bytes=size_bytes, priority=priority)


def gather(cli_values: Mapping[str, object], config_file: Path | None = None) -> option.Given:
    """Return by key what is given, and where: the last place that has the key.

    The tables of tiers are one value, those of exports another: those of a later file take the
    place of all of an earlier.

    :raises ConfigError: a file cannot be read, or there is no such key
    """
    given: option.Given = {}
    for layer in layers.read(config_file) if config_file is not None else ():
        option.check_keys(OPTIONS, layer.keys.keys() - set(TABLES), layer.path)
        given |= {key: (f"{layer.path}: {key}", value) for key, value in layer.keys.items()}
    for key, value in cli_values.items():
        if key in TABLES:  # of a running instance, whose configuration is read again
            given[key] = (key, value)
        elif key not in BY_KEY:
            raise ConfigError(key, "unknown option")
        elif value is not None:
            given[key] = (key if BY_KEY[key].argument_of else f"--{key}", value)
    return given


def origins(given: option.Given) -> dict[str, str]:
    """Return by key where *given* has it from: a file, or the command line."""
    return {
        key: where.removesuffix(f": {key}") if where.endswith(f": {key}") else COMMAND_LINE
        for key, (where, _) in given.items()
    }


def check_room(config: Config, room_bytes: int) -> None:
    """Check that every page the kernel may write has a place (I6).

    :param room_bytes: uncompressed bytes that pool and file together can always hold
    :raises ConfigError: the size is larger than the overcommit ratio times the room
    """
    # The ratio as the user wrote it: 3.3 and not the binary number just below it.
    allowed_bytes = int(Fraction(str(config.overcommit)) * room_bytes)
    if config.virtual_bytes <= allowed_bytes:
        return
    cures = ["enlarge --file" if config.file else "add --file PATH:SIZE"]
    allowed_bytes -= allowed_bytes % PAGE_SIZE
    if allowed_bytes >= values.SIZE_BYTES_MIN and not config.described:
        cures.append(f"lower --size to {values.exact_size(allowed_bytes)}")
    if room_bytes > 0:
        cures.append(risk(config.virtual_bytes, room_bytes))
    times = "" if config.overcommit == 1 else f"{config.overcommit:g} times "
    raise ConfigError(
        "size",
        f"{values.exact_size(config.virtual_bytes)} is more than {times}the guaranteed room of "
        f"{format_size(room_bytes)} for incompressible pages: {', or '.join(cures)}",
    )


def risk(size_bytes: int, room_bytes: int) -> str:
    """Say which overcommit ratio would allow *size_bytes*."""
    tenths = ceil(Fraction(size_bytes * 10, room_bytes))
    return f"take the risk of refused writes with --overcommit {tenths // 10}.{tenths % 10}"


def describe(
    config: Config, as_json: bool = False, origins: Mapping[str, str] | None = None
) -> str:
    """Return *config* as TOML that :func:`load` reads back, or as JSON with bytes as numbers.

    :param origins: by key where a value is from, to be shown too: in a comment, or as "origins"
    """
    show_size = int if as_json else values.exact_size
    by_key = option.shown(OPTIONS, config, show_size)
    shown = {
        TIER: show_tiers(config.tiers, show_size),
        EXPORT: show_exports(config.exports, show_size),
    }
    if as_json:
        whole: dict[str, object] = {**by_key, **{key: shown[key] for key in TABLES if shown[key]}}
        if origins is not None:
            whole = {**whole, "origins": {key: origins.get(key, DEFAULT) for key in whole}}
        return json.dumps(whole, indent=2)
    blocks = [_toml(by_key, origins)]
    for key, table in [(each, table) for each in TABLES for table in shown[each]]:
        comment = f"  # {origins.get(key, DEFAULT)}" if origins is not None else ""
        blocks.append(f"[[{key}]]{comment}\n{_toml(table)}")
    return "\n\n".join(blocks)


def _toml(by_key: Mapping[str, object], origins: Mapping[str, str] | None = None) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    lines = {key: f"{key} = {json.dumps(by_key[key], ensure_ascii=False)}" for key in by_key}
    if origins is not None:
        width = min(max(map(len, lines.values())), ORIGIN_COLUMN)
        lines = {
            key: f"{line:{width}}  # {values.one_line(origins.get(key, DEFAULT))}"
            for key, line in lines.items()
        }
    return "\n".join(lines.values())
