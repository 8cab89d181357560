"""What every test run shares."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

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
