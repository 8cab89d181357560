"""Every tier that is of ``swapfs.testing.media``, and every check of ``conformance``."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapfs.testing.conformance import CHECKS, Check
from swapfs.testing.media import TIERS, WRAPPERS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("tier", [*TIERS, *WRAPPERS])
def test_every_tier_keeps_the_contract(tier: str, check: Check, tmp_path: Path) -> None:
    check((TIERS | WRAPPERS)[tier](tmp_path))
