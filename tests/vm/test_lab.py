"""What a replay says is what the kernel saw: recorded in the VM, played over the same set-up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from swapfs.lab.beside import beside, far
from swapfs.lab.trace import Trace
from tests.lab import experiment, running

if TYPE_CHECKING:
    from collections.abc import Callable

WORKLOADS: Final = ("skewed", "usemem-random", "sort")
POLICY: Final = "second-chance"
QUICK: Final = Path(__file__).parents[1] / "lab/quick.toml"
TIMEOUT_S: Final = 3900
MISSES_MIN: Final = 2000
"""Fewer would prove nothing."""

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(TIMEOUT_S)]


def test_a_replay_comes_to_what_the_live_run_counted(
    kernel: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    wanted = experiment.read(QUICK).only(WORKLOADS, [POLICY], kernel)
    found = running.run(wanted, tmp_path)
    assert found.problems == []
    assert [each.run.workload.name for each in found.recorded] == list(WORKLOADS)
    pairs = {}
    for each in found.recorded:
        counters = each.status["counters"]
        assert counters["read_file_pages"] > MISSES_MIN
        pairs[each.run.name] = beside(Trace(each.trace), POLICY, counters, each.samples)
    record_property("summary", f"{pairs}")
    wrong = {name: far(each) for name, each in pairs.items() if far(each)}
    assert wrong == {}, pairs
