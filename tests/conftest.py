"""What every test run shares."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_SLOW_MACHINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW_MACHINE)
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(  # that it fails is all that is asked
    "mutants",
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=_SLOW_MACHINE,
)
_PROFILE = "ci" if os.environ.get("CI") else "dev"
settings.load_profile(os.environ.get("SWAPFS_TEST_PROFILE", _PROFILE))


@pytest.fixture(autouse=True)
def _nothing_stays_frozen() -> Iterator[None]:
    """Have garbage collected that a server's code froze: each region holds memory and a file."""
    yield
    gc.unfreeze()
