"""Experiments are read, refused where they are none, and told in one page."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest

from swapfs.lab.trace import Meta, TraceWriter
from swapfs.policy import BUILT_IN
from swapfs.region.access_log import Event, EventKind, encode
from swapfs.tiers.pool.size_classes import SIZES
from swapfs.units import MiB
from tests.lab import __main__ as command
from tests.lab import findings, running
from tests.lab.experiment import WORKLOADS, Experiment, ExperimentError, Workload, read
from tests.lab.page import page
from tests.lab.running import Found, Recorded

HERE = Path(__file__).parents[1]
GOOD = """
policies = ["second-chance"]
setups = { disk = "size = '64M'" }
[[workload]]
name = "sort"
limit_mib = 24
"""


@pytest.mark.parametrize("name", ["quick.toml", "full.toml"])
def test_those_of_the_lab_are_experiments_and_have_every_workload(name: str) -> None:
    found = read(HERE / name)
    assert [workload.name for workload in found.workloads] == list(WORKLOADS)
    assert found.replayed == tuple(BUILT_IN)
    job_text = (HERE / "jobs/workloads.py").read_text()
    assert all(f'"{name}": ' in job_text for name in WORKLOADS)


def test_every_run_is_one_workload_policy_and_set_up() -> None:
    found = read(HERE / "full.toml")
    runs = list(found.runs())
    assert len({run.name for run in runs}) == len(runs) == 9 * 3 * len(BUILT_IN)
    part = found.only(["sort"], ["lru"], "6.1")
    assert [run.name for run in part.runs()] == [
        "sort.disk.lru",
        "sort.promote.lru",
        "sort.two-tiers.lru",
    ]
    assert part.kernel == "6.1"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"sort"', '"chess"', "no workload 'chess'"),
        ("second-chance", "nonsense", "no policy 'nonsense'"),
        ("size = ", "size ! ", "set-up 'disk'"),
        ("limit_mib = 24", "limit_mib = 'x'", "limit_mib of sort"),
        ("limit_mib = 24", "limit = 24", "are needed"),
        ("policies", "polices", "unknown key 'polices'"),
        ('policies = ["second-chance"]', "policies = []", "nothing to run"),
        ("[[workload]]", "[[workload", "line"),
    ],
)
def test_what_is_none_is_one_line(before: str, after: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(GOOD)
    assert len(list(read(path).runs())) == 1
    path.write_text(GOOD.replace(before, after))
    with pytest.raises(ExperimentError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_workload_that_is_not_in_it_is_refused() -> None:
    with pytest.raises(ExperimentError, match="no workload 'chess'"):
        read(HERE / "quick.toml").only(["chess"])


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["missing.toml"], ["--policies", "x"], ["--only", "x"], ["a.toml", "--full"]):
        with pytest.raises(SystemExit) as caught:
            command.main([*words, "--out", str(tmp_path)])
        assert caught.value.code == 2
    assert "no policy 'x'" in capsys.readouterr().err


def test_a_job_has_what_its_workloads_read(tmp_path: Path) -> None:
    wanted = read(HERE / "quick.toml").only(["sort", "redis-skewed"])
    job = running.make_job(tmp_path / "job", wanted, 100)
    params = json.loads((job / "params.json").read_text())
    assert len(params["runs"]) == 2 * len(wanted.policies)
    assert 0 < (job / "lines").stat().st_size <= params["sort_mib"] << 20
    assert (job / "mix").stat().st_size > MiB
    assert (job / "tests/lab/jobs/record.py").exists()
    assert (job / "tests/bench/jobs/programs.py").exists()
    assert running.packages_for(wanted)
    assert not running.packages_for(read(HERE / "quick.toml").only(["sort"]))


def _trace(path: Path) -> Path:
    words = array("Q")
    for slot in range(1500):
        event = Event(EventKind.STORE, slot, 60, 0, 0, 0, 1000 * slot)
        words.extend(encode(event))
    for slot in range(1500):
        words.extend(encode(Event(EventKind.LOAD, slot, 60, 0, 0, 0, 10_000_000 + 1000 * slot)))
    config = {"policy": "lru"}
    meta = Meta(size_bytes=16 * MiB, pool_bytes=MiB, class_sizes=list(SIZES), config=config)
    with TraceWriter(path, meta) as writer:
        writer.write(memoryview(words), len(words) // 2)
    return path


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    wanted = Experiment(
        workloads=[Workload("sort", 24)],
        policies=["second-chance"],
        setups={"disk": ""},
        replayed=("second-chance", "lru"),
    )
    (run,) = wanted.runs()
    counters = dict.fromkeys(
        ("read_pool_pages", "write_direct_pages", "file_written_bytes", "prefetched_pages"), 0
    )
    counters |= {"read_file_pages": 1001, "refaulted_pages": 77, "demoted_pages": 1200}
    samples = [(5.0, MiB // 2, 700)]
    recorded = Recorded(run, _trace(tmp_path / "t"), 12.5, {"counters": counters}, samples)
    came = Found([recorded], ["the disk is blue"], "tcg")
    found = findings.gather(wanted, came, lambda line: None)
    found["made"] = {"commit": "c" * 40, "dirty": True, "date": "today"}
    found["host"] = {"cpu": "one", "cpus": 2, "kernel": "6"}
    json.dumps(found)
    text = page(found, {"sort disk": "sort-disk.png"})
    assert "| `second-chance` | 12.5 | 1001 | 77 | 1200 |" in text
    assert "| `lru` | - | - | - | - |" in text
    assert "| (Belady) |" in text
    assert "![Misses of sort disk](sort-disk.png)" in text
    assert "- the disk is blue" in text
    assert "emulated" in text
    assert "| sort disk `second-chance` | pages below | 700 |" in text


def test_a_policy_that_is_better_everywhere_is_named() -> None:
    def trace(refaults: dict[str, int]) -> dict[str, object]:
        runs = [{"policy": p, "refaults": n, "pool_bytes": 1} for p, n in refaults.items()]
        return {"pool_bytes": 1, "runs": runs}

    both = [
        trace({"second-chance": 100, "lru": 94, "sieve": 50}),
        trace({"second-chance": 100, "lru": 94, "sieve": 96}),
    ]
    assert findings.better(both) == ["lru"]
