"""The tiers below the pool as the user writes them: ``[[tier]]`` tables, and ``file`` for one.

Creates and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from swapfs.config import option, values
from swapfs.config.backing import DIRECT_IO, FileTierConfig, fit_place
from swapfs.config.budget import NO_BUDGET, WriteBudget, parse_budget, show_budget
from swapfs.config.far import FAR, FAR_OPTIONS, FarConfig, read_far, refuse_far_keys
from swapfs.config.option import SWITCH_TAKES, Form, Option, Section, as_size
from swapfs.errors import ConfigError
from swapfs.units import TIERS_MAX

KINDS: Final = ("file", FAR)
BELOW_MAX: Final = TIERS_MAX - 1
"""The pool is a tier too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """One tier; ``priority``: pages go to the highest that has room, to equal ones by turns.

    ``budget_exceed``: what finds no other room may go beyond the ``budget``.
    """

    name: str
    kind: str = "file"
    priority: int = 0
    budget: WriteBudget = NO_BUDGET
    budget_exceed: bool = False
    file: FileTierConfig
    """Its place; of far memory its socket, or how its nodes are shown."""
    far: FarConfig | None = None

    @property
    def path(self) -> Path | None:
        """The path that was given."""
        return None if self.far is not None and self.far.nodes else self.file.path

    @property
    def direct_io(self) -> str | None:
        """How the file is opened; None: there is none."""
        return None if self.far is not None else self.file.direct_io

    @property
    def certain_bytes(self) -> int:
        """Its size, as far as it counts as room; what a budget may refuse is not certain (I6).

        Nor what a node may lose.
        """
        if self.far is not None:
            return 0
        return 0 if self.budget and not self.budget_exceed else self.file.size_bytes


TIER_OPTIONS: Final = (
    Option(
        key="kind",
        field="kind",
        section=Section.ROOM,
        parse=values.one_of(*KINDS),
        default="file",
        choices=KINDS,
        takes=", ".join(KINDS),
        help="What it is kept on",
        text="What the tier is kept on. `file` is a file or any block device, `valkey` the memory "
        "of a Valkey or Redis engine (the extra `swapfs[valkey]`), one node or a cluster.",
    ),
    Option(
        key="name",
        field="name",
        section=Section.ROOM,
        parse=values.parse_name,
        default_text="its kind and number",
        takes="letters, digits, - and _",
        help="Its name in status and metrics",
        text="What it is called in status, metrics and commands.",
    ),
    Option(
        key="path",
        field="path",
        section=Section.ROOM,
        parse=values.parse_path,
        show=lambda path, _: None if path is None else str(path),
        default_text="required, but for `nodes`",
        takes="path",
        help="File or block device",
        example="/var/lib/swapfs/second.tier",
        text="The file or block device, as for `file`; of the kind `valkey` the unix socket of the "
        "engine.",
    ),
    Option(
        key="size",
        field="file.size_bytes",
        section=Section.ROOM,
        parse=lambda where, value: values.parse_paged_size(where, value, 0),
        show=as_size,
        default_text="that of the file or device",
        takes="bytes",
        help="How much of it to use",
        text="How much of it to use, as for `file`; of an engine's memory, keys and all.",
    ),
    Option(
        key="priority",
        field="priority",
        section=Section.ROOM,
        parse=values.parse_priority,
        default=0,
        takes="number",
        help="The highest is filled first",
        text="Pages go to the tier with the highest priority that has room, and are striped among "
        "those of the same priority.",
    ),
    Option(
        key="budget",
        field="budget",
        section=Section.ROOM,
        parse=parse_budget,
        show=show_budget,
        default=NO_BUDGET,
        takes="SIZE/hour, SIZE/day, none",
        help="Most that is written to it",
        text="The most that is written to it in an hour and in a day. Then demotion to it stops "
        "until the next begins.",
    ),
    Option(
        key="budget-exceed",
        field="budget_exceed",
        section=Section.ROOM,
        parse=values.parse_flag,
        form=Form.SWITCH,
        default=False,
        takes=SWITCH_TAKES,
        help="Go beyond it rather than refuse",
        text="Whether a page that finds no other room may go beyond the budget. If not, a tier "
        "with a budget counts as no room for `overcommit`.",
    ),
    Option(
        key="direct-io",
        field="direct_io",
        section=Section.ROOM,
        parse=values.one_of(*DIRECT_IO),
        default="auto",
        choices=DIRECT_IO,
        takes="auto, on, off",
        help="O_DIRECT on it",
        text="As `file-direct-io`.",
    ),
    Option(
        key="encryption",
        field="file.encryption",
        section=Section.ROOM,
        parse=values.parse_flag,
        form=Form.SWITCH,
        default=True,
        takes=SWITCH_TAKES,
        help="Encrypt what goes there",
        text="As `file-encryption`.",
    ),
    *FAR_OPTIONS,
)
"""What may be in a ``[[tier]]`` table."""


def read_tiers(
    where: str, tables: object, file: FileTierConfig | None, root: Path, *, unsafe: bool
) -> tuple[TierConfig, ...]:
    """Return the tiers that *tables* describe, each fitted to this machine.

    :param where: what holds the tables, as a mistake in them names it
    :param file: the tier of the option ``file``, which they stand beside
    :raises ConfigError: the first mistake
    """
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ConfigError(where, "is no list of tables: write [[tier]] above the keys of each")
    tiers: list[TierConfig] = []
    names, paths = ({"file"}, {file.path}) if file else (set(), set())
    for number, table in enumerate(tables, 1):
        tier = _read_tier(f"{where} {number}", number, table, root, unsafe=unsafe)
        if tier.name in names:
            raise ConfigError(f"{where} {number}: name", f"another tier is called {tier.name} too")
        if tier.file.path in paths:
            raise ConfigError(f"{where} {number}: path", f"another tier uses {tier.file.path} too")
        names.add(tier.name)
        paths.add(tier.file.path)
        tiers.append(tier)
    if len(names) > BELOW_MAX:
        raise ConfigError(where, f"{len(names)} tiers are too many (most: {BELOW_MAX})")
    return tuple(tiers)


def _read_tier(
    where: str, number: int, table: Mapping[str, object], root: Path, *, unsafe: bool
) -> TierConfig:
    option.check_keys(TIER_OPTIONS, table, where)
    kind = values.one_of(*KINDS)(f"{where}: kind", table.get("kind", "file"))
    if "path" not in table and kind != FAR:
        raise ConfigError(where, "path is missing: which file or block device is it?")
    given: option.Given = {key: (f"{where}: {key}", value) for key, value in table.items()}
    settled = option.settle(TIER_OPTIONS, given, root)
    far = None
    if kind == FAR:
        file, far = read_far(where, table, settled)
    else:
        refuse_far_keys(where, table)
        file = fit_place(
            *(f"{where}: path", settled["path"], settled["size"], settled["direct-io"]),
            encryption=settled["encryption"],
            unsafe=unsafe,
        )
    name = settled["name"] or f"{kind}{number}"
    return TierConfig(
        name=name,
        kind=kind,
        priority=settled["priority"],
        budget=settled["budget"],
        budget_exceed=settled["budget-exceed"],
        file=file,
        far=far,
    )


CHANGEABLE: Final = ("priority", "budget", "budget-exceed")
"""Keys that may be changed while a tier is used."""


def read_change(
    where: str, tier: TierConfig, table: Mapping[str, object], root: Path
) -> TierConfig:
    """Return *tier* as *table*, of the keys CHANGEABLE, has it changed.

    :raises ConfigError: the first mistake
    """
    rows = [row for row in TIER_OPTIONS if row.key in CHANGEABLE]
    option.check_keys(rows, table, where)
    given: option.Given = {key: (f"{where}: {key}", value) for key, value in table.items()}
    settled = option.settle(rows, given, root)
    changed = {row.field: settled[row.key] for row in rows if row.key in table}
    return replace(tier, **changed)


def show_tiers(tiers: tuple[TierConfig, ...], show_size: option.ShowSize) -> list[dict[str, Any]]:
    """Return the tables that ``read_tiers`` reads back."""
    return [option.shown(TIER_OPTIONS, tier, show_size) for tier in tiers]
