"""The configuration of an instance as it is now: what was changed while it runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from swapfs.config.budget import WriteBudget
from swapfs.config.exports import ExportConfig
from swapfs.config.model import Config
from swapfs.config.tiers import TierConfig
from swapfs.region.layout import Region
from swapfs.region.stack_rows import GONE, read_rows


def current(config: Config, region: Region, *added: TierConfig) -> Config:
    """Return *config* as *region* has it, which knows what was changed since the start.

    :param added: tiers that *config* does not have
    """
    known = {tier.name: tier for tier in (*config.all_tiers, *added)}
    tiers = tuple(
        replace(
            known[row.name],
            priority=row.priority,
            budget=WriteBudget(row.budget_hour_bytes, row.budget_day_bytes),
            budget_exceed=row.budget_exceeds,
        )
        for row in read_rows(region.stack)
        if row.state != GONE and row.name in known
    )
    if region.pool_bytes != config.pool_bytes:
        most = region.geometry.pool_bytes
        config = replace(config, pool_bytes=region.pool_bytes, pool_max_bytes=most)
    if config.described:
        names = {tier.name for tier in tiers}
        config = replace(config, described=tuple(_of_tiers(e, names) for e in config.described))
    if tiers == config.all_tiers:
        return config
    return replace(config, file=None, tiers=tiers)


def _of_tiers(export: ExportConfig, names: Collection[str]) -> ExportConfig:
    """Return *export* without the tiers that are gone: another may get their name."""
    if export.tiers is None:
        return export
    return replace(export, tiers=tuple(name for name in export.tiers if name in names))
