"""When another server follows one that died: deaths in, decision out."""

from __future__ import annotations

from itertools import pairwise

import pytest

from swapfs.monitor.restart_policy import (
    PAUSE_MAX_S,
    RAPID_DEATHS_MAX,
    RAPID_LIFE_S,
    RestartPolicy,
)


@pytest.fixture
def policy() -> RestartPolicy:
    return RestartPolicy()


def test_a_server_that_served_is_followed_at_once_for_ever(policy: RestartPolicy) -> None:
    assert [policy.died(RAPID_LIFE_S) for _ in range(50)] == [0.0] * 50


def test_rapid_deaths_are_followed_after_growing_pauses_and_then_not_at_all(
    policy: RestartPolicy,
) -> None:
    pauses = [policy.died(0.0) for _ in range(RAPID_DEATHS_MAX)]
    assert pauses[0] == 0.0, "the first one may have been an accident"
    assert pauses[-1] is None
    tried = [pause for pause in pauses if pause is not None]
    assert all(earlier <= later <= PAUSE_MAX_S for earlier, later in pairwise(tried))
    assert len(tried) == RAPID_DEATHS_MAX - 1
    assert policy.died(0.0) is None, "still so"


def test_one_that_serves_long_enough_ends_the_row(policy: RestartPolicy) -> None:
    for _ in range(RAPID_DEATHS_MAX - 1):
        assert policy.died(RAPID_LIFE_S / 2) is not None
    assert policy.died(RAPID_LIFE_S) == 0.0
    assert policy.died(0.0) == 0.0


def test_when_the_cause_is_mended_all_begins_again(policy: RestartPolicy) -> None:
    while policy.died(0.0) is not None:
        pass
    policy.begin_again()
    assert policy.died(0.0) == 0.0
