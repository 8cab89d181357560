"""The page of an experiment: Markdown, and a picture for each trace if matplotlib is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swapfs.policy import DEFAULT
from swapfs.units import format_size
from tests.lab.findings import better, runs_with

_EMULATED = (
    "The VM was emulated (TCG): how many pages went where is a kernel's doing all the same; "
    "seconds are the emulator's and say nothing of a machine."
)


def page(found: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page.

    :param pictures: path of the picture of a trace, by "workload setup"
    """
    return "\n".join([*_head(found), *_traces(found, pictures), *_beside(found), *_tail(found)])


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    made, host, wanted = found["made"], found["host"], found["experiment"]
    yield f"# {len(found['replayed'])} workloads of a kernel that swaps, live and replayed"
    yield ""
    commit = made["commit"][:12] + (" with changes" if made["dirty"] else "")
    yield (
        f"Made by `make lab` from commit {commit} on {made['date']}: Linux {wanted['kernel']} in a "
        f"VM with {wanted['memory_mib']} MiB, on {host['cpu']} ({host['cpus']} CPUs), Linux "
        f"{host['kernel']}."
    )
    if found["accel"] == "tcg":
        yield _EMULATED
    yield ""
    yield (
        "*live*: counted while the kernel swapped under that policy. *replayed*: the trace of the "
        f"run under `{wanted['policies'][0]}`, played again by `swapfs replay` on the same set-up. "
        "A *miss* is a page that a tier below the pool had to serve; a *refault* one that followed "
        "within a pool full of demotions. (Belady): the fewest misses with as many pages in memory "
        "as the policy that held most."
    )
    yield ""
    names = better(found["replayed"])
    if names:
        yield f"**5 % fewer refaults than `{DEFAULT}` on every trace: {', '.join(names)}.**"
    else:
        yield f"No policy has 5 % fewer refaults than `{DEFAULT}`, the default, on every trace."
    yield ""


def _traces(found: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    for each in found["replayed"]:
        name = f"{each['workload']} {each['setup']}"
        yield f"## {each['workload']}, set-up {each['setup']}"
        yield ""
        yield (
            f"{each['events']} events, {each['dropped']} dropped; pool "
            f"{format_size(each['pool_bytes'])}."
        )
        yield ""
        live = {
            run["policy"]: run
            for run in found["live"]
            if (run["workload"], run["setup"]) == (each["workload"], each["setup"])
        }
        yield from _table(each, live)
        yield ""
        if name in pictures:
            yield f"![Misses of {name}]({pictures[name]})"
            yield ""


def _table(each: Mapping[str, Any], live: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "| policy | live s | live misses | live refaults | live demoted "
        "| misses | refaults | demoted | to disk |"
    )
    yield "|---|" + "---:|" * 8
    for run in runs_with(each, each["pool_bytes"]):
        mine = live.get(run["policy"])
        cells = ["-"] * 4
        if mine is not None:
            cells = [str(mine[key]) for key in ("seconds", "misses", "refaults", "demoted")]
        cells += [str(run[key]) for key in ("misses", "refaults", "demoted")]
        cells.append(format_size(run["written_bytes"]))
        yield f"| `{run['policy']}` | " + " | ".join(cells) + " |"
    for floor in each["floors"]:
        if floor["pool_bytes"] == each["pool_bytes"]:
            yield f"| (Belady) | - | - | - | - | {floor['misses']} | - | - | - |"


def _beside(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Each live run beside its own replay"
    yield ""
    yield "The mean of pool and pages below is over the samples of each second of the run."
    yield ""
    yield "| run | what | live | replayed | |"
    yield "|---|---|---:|---:|---:|"
    for run in found["live"]:
        for what, pair in run["beside"].items():
            if not pair["live"]:
                continue
            percent = 100 * (pair["played"] - pair["live"]) / pair["live"]
            name = f"{run['workload']} {run['setup']} `{run['policy']}`"
            figures = f"{pair['live']:.0f} | {pair['played']:.0f} | {percent:+.1f} %"
            yield f"| {name} | {what} | {figures} |"
    yield ""


def _tail(found: Mapping[str, Any]) -> Iterator[str]:
    problems: Sequence[str] = found["problems"]
    if problems:
        yield "## What went wrong"
        yield ""
        for line in problems:
            yield f"- {line}"
        yield ""


def draw(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw each trace into *folder*; return names of files, by "workload setup".

    :raises ImportError: matplotlib is not there
    """
    from matplotlib.figure import Figure

    made = {}
    for each in found["replayed"]:
        name = f"{each['workload']} {each['setup']}"
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        bars, lines = figure.subplots(1, 2)
        _draw_bars(bars, each, found["live"])
        _draw_pools(lines, each)
        figure.suptitle(name)
        made[name] = f"{each['workload']}-{each['setup']}.png"
        figure.savefig(folder / made[name], dpi=90)
    return made


def _draw_bars(axes: Any, each: Mapping[str, Any], live: Sequence[Mapping[str, Any]]) -> None:
    runs = runs_with(each, each["pool_bytes"])
    names = [run["policy"] for run in runs]
    axes.barh(names, [run["misses"] for run in runs], color="#4477aa", label="replayed")
    mine = [
        run
        for run in live
        if (run["workload"], run["setup"]) == (each["workload"], each["setup"])
        and run["policy"] in names
    ]
    points = [run["misses"] for run in mine], [run["policy"] for run in mine]
    axes.plot(*points, "D", color="#cc3311", label="live")
    for floor in each["floors"]:
        if floor["pool_bytes"] == each["pool_bytes"]:
            axes.axvline(floor["misses"], color="black", linestyle="--", label="Belady")
    axes.invert_yaxis()
    axes.set_xlabel("misses")
    axes.legend()


def _draw_pools(axes: Any, each: Mapping[str, Any]) -> None:
    pools = sorted({run["pool_bytes"] for run in each["runs"]})
    for number, name in enumerate(dict.fromkeys(run["policy"] for run in each["runs"])):
        runs = [run for pool in pools for run in runs_with(each, pool)]
        misses = [run["misses"] for run in runs if run["policy"] == name]
        axes.plot(pools, misses, marker="os^Dvx+*<>"[number % 10], label=name, linewidth=1)
    floors = {floor["pool_bytes"]: floor["misses"] for floor in each["floors"]}
    axes.plot(pools, [floors[pool] for pool in pools], "k--", label="Belady")
    axes.set_xscale("log", base=2)
    axes.set_xticks(pools, [format_size(pool) for pool in pools])
    axes.set_xlabel("pool")
    axes.set_ylabel("misses")
    axes.legend(fontsize="x-small", ncols=2)
