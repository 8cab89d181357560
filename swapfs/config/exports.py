"""The swap files of one instance as the user writes them: ``[[export]]`` tables.

The first is the file ``swap``, of the options ``size`` and ``priority``; a table of that name says
what else holds for it, every other one is a further file. Creates and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swapfs.config import option, values
from swapfs.config.option import Option, Section, as_size
from swapfs.config.paths import SWAP_FILE_NAME
from swapfs.errors import ConfigError
from swapfs.region.export_rows import EXPORTS_MAX
from swapfs.units import CLUSTER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """One swap file.

    :param quota_bytes: the most that its pages may take in pool and tiers; 0: any
    :param tiers: names of the tiers below the pool that they may use; None: every one
    """

    name: str
    size_bytes: int
    priority: int
    quota_bytes: int = 0
    tiers: tuple[str, ...] | None = None

    @property
    def span_bytes(self) -> int:
        """Bytes of the space of all slots that it takes: whole clusters."""
        return -(-self.size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES


def _parse_quota(where: str, value: object) -> int:
    if value == "none":
        return 0
    try:
        return values.parse_paged_size(where, value, CLUSTER_BYTES)
    except ConfigError as error:
        raise ConfigError(where, f"{error.problem}, or none") from error


def _parse_tiers(where: str, value: object) -> tuple[str, ...] | None:
    if value == "all":
        return None
    if not isinstance(value, list):
        raise ConfigError(where, 'is neither a list of names of tiers, as ["fast"], nor "all"')
    return tuple(values.parse_name(where, name) for name in value)


EXPORT_OPTIONS: Final = (
    Option(
        key="name",
        field="name",
        section=Section.ROOM,
        parse=values.parse_name,
        default_text="required",
        takes="letters, digits, - and _",
        help="The file's name",
        example="batch",
        text=f"The name of the file in the mount, and in status and metrics. "
        f"`{SWAP_FILE_NAME}` is the file of `size`: its table gives that file a quota or tiers.",
    ),
    Option(
        key="size",
        field="size_bytes",
        section=Section.ROOM,
        parse=values.parse_virtual_size,
        show=as_size,
        default_text="required, but for `swap`",
        takes="bytes",
        help="Size that the kernel sees",
        example="1G",
        text="The size of the file: what the kernel sees, as `size`. Refused for `swap`, whose "
        "size the option `size` is.",
    ),
    Option(
        key="priority",
        field="priority",
        section=Section.ROOM,
        parse=values.parse_priority,
        show=lambda priority, _: priority,
        default_text="that of the option `priority`",
        takes="number",
        help="Its swap priority",
        text="The priority that `swapon` gives it: the kernel fills the highest first. It goes on "
        "to the next when this one is full as it sees it, not when its quota is reached. Refused "
        "for `swap`, as its size.",
    ),
    Option(
        key="quota",
        field="quota_bytes",
        section=Section.ROOM,
        parse=_parse_quota,
        show=lambda quota, show_size: show_size(quota) if quota else "none",
        default=0,
        default_text="none",
        takes="bytes, none",
        help="Most that its pages may take",
        example="256M",
        text="The most bytes that its pages may take, in the pool and in all tiers together, with "
        "the pages of the swap table that name them. A page that would take it above is refused "
        "(ENOSPC), as when there is no room at all. At least 2M.",
    ),
    Option(
        key="tiers",
        field="tiers",
        section=Section.ROOM,
        parse=_parse_tiers,
        show=lambda tiers, _: "all" if tiers is None else list(tiers),
        default=None,
        default_text="all",
        takes="list of names, all",
        help="Tiers that its pages may use",
        text="The tiers below the pool that its pages may go to, by name (`file` is that of the "
        "option `file`); `[]` is none: they stay in memory. `all` has those too that are added "
        "later.",
    ),
)
"""What may be in an ``[[export]]`` table."""


def read_exports(
    where: str, tables: object, main: ExportConfig, tiers: Collection[str], root: Path
) -> tuple[ExportConfig, ...]:
    """Return the swap files that *tables* describe, *main* first.

    :param where: what holds the tables, as a mistake in them names it
    :param tiers: the names of those that there are
    :raises ConfigError: the first mistake
    """
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ConfigError(where, "is no list of tables: write [[export]] above the keys of each")
    found = {main.name: main}
    named: set[str] = set()
    for number, table in enumerate(tables, 1):
        export = _read_export(f"{where} {number}", table, main, tiers, root)
        if export.name in named:
            raise ConfigError(
                f"{where} {number}: name", f"another export is called {export.name} too"
            )
        named.add(export.name)
        found[export.name] = export
    if len(found) > EXPORTS_MAX:
        raise ConfigError(where, f"{len(found)} exports are too many (most: {EXPORTS_MAX})")
    return tuple(found.values())


def _read_export(
    where: str,
    table: Mapping[str, object],
    main: ExportConfig,
    tiers: Collection[str],
    root: Path,
) -> ExportConfig:
    option.check_keys(EXPORT_OPTIONS, table, where)
    given: option.Given = {key: (f"{where}: {key}", value) for key, value in table.items()}
    settled = option.settle(EXPORT_OPTIONS, given, root)
    name = settled["name"]
    if name is None:
        raise ConfigError(where, "name is missing: what is the file called?")
    for key in ("size", "priority"):
        if name == main.name and key in table:
            raise ConfigError(f"{where}: {key}", f"that of {name} is the option {key}")
    size_bytes = main.size_bytes if name == main.name else settled["size"]
    if size_bytes is None:
        raise ConfigError(where, f"size is missing: how large is {name}?")
    for tier in settled["tiers"] or ():
        if tier not in tiers:
            known = ", ".join(sorted(tiers)) or "none"
            raise ConfigError(f"{where}: tiers", f"there is no tier {tier} (there is: {known})")
    return ExportConfig(
        name=name,
        size_bytes=size_bytes,
        priority=main.priority if settled["priority"] is None else settled["priority"],
        quota_bytes=settled["quota"],
        tiers=settled["tiers"],
    )


def show_exports(
    exports: Sequence[ExportConfig], show_size: option.ShowSize
) -> list[dict[str, Any]]:
    """Return the tables that ``read_exports`` reads back; none if the first is alone and plain."""
    tables = [option.shown(EXPORT_OPTIONS, export, show_size) for export in exports]
    for key in ("size", "priority"):
        del tables[0][key]
    plain = not exports[0].quota_bytes and exports[0].tiers is None
    return tables[1:] if plain else tables


def names_of(exports: Iterable[ExportConfig]) -> str:
    """Return their names, for a sentence."""
    *most, last = [export.name for export in exports]
    return f"{', '.join(most)} and {last}" if most else last
