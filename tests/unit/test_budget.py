"""A write budget as it is written, and what a budget means for the room."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapfs.config.budget import NO_BUDGET, WriteBudget, parse_budget, show_budget
from swapfs.config.model import load
from swapfs.errors import ConfigError
from swapfs.units import GiB, MiB


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2G/hour", WriteBudget(2 * GiB, 0)),
        ("50G/day", WriteBudget(0, 50 * GiB)),
        ("50G/day, 2G/hour", WriteBudget(2 * GiB, 50 * GiB)),
        ("none", NO_BUDGET),
    ],
)
def test_a_budget_is_read_and_shown(text: str, budget: WriteBudget) -> None:
    assert parse_budget("here", text) == budget
    assert parse_budget("here", show_budget(budget, int)) == budget
    assert bool(budget) == (text != "none")


@pytest.mark.parametrize("text", ["", "2G", "2G/week", "2G/day, 3G/day", "x/day", "1M/day", 5])
def test_what_is_no_budget_has_one_line(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as caught:
        parse_budget("here", text)
    assert str(caught.value).isprintable()


def test_a_tier_that_a_budget_may_refuse_is_no_room(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'mountpoint = "{tmp_path}"\nsize = "8M"\npool = "4M"\n'
        + "".join(
            f'[[tier]]\npath = "{tmp_path}/{name}"\nsize = "8M"\n{more}\n'
            for name, more in (
                ("a", 'budget = "1G/day"'),
                ("b", 'budget = "1G/day"\nbudget-exceed = true'),
                ("c", ""),
            )
        )
    )
    assert load({}, config).tier_bytes == (0, 8 * MiB, 8 * MiB)
