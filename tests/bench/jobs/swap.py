"""Swap-out, sequential and random swap-in on each backend in turns, all in one boot.

A helper in a cgroup fills memory beyond the cgroup's limit. Then the rest is reclaimed, the limit
is lifted, so that nothing is swapped out meanwhile; three quarters are read in order, and then the
others at random. In the end every byte is compared.
"""

from __future__ import annotations

import errno
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.guest import lab
from tests.bench import names
from tests.bench.jobs import backends, counters
from tests.bench.jobs.samples import PARAMS, SWAPFS_DISK, Samples
from tests.bench.jobs.toucher import Toucher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.bench.jobs.backends import Backend

LEFT_MIB: Final = 2
"""So much of the helper's memory may be unswapped before the swap-in."""
RECLAIM_TRIES: Final = 20
PROVEN_PERCENT: Final = 85
"""So much of what was swapped must show in counters: some 3 % of the pages are zero or one word,
which the kernel or zram need not move."""


def mib_per_s(pages: int, seconds: float) -> float:
    """Return the throughput of *pages* pages in *seconds*."""
    return pages * lab.PAGE_BYTES / lab.MIB / seconds


def reclaim(group: lab.Cgroup) -> int:
    """Swap out what is left of the group's memory; return the bytes that would not go."""
    for _ in range(RECLAIM_TRIES):
        stat = dict(line.split() for line in (group.path / "memory.stat").read_text().splitlines())
        left = int(stat["anon"]) + int(stat["swapcached"])
        if left < LEFT_MIB * lab.MIB:
            break
        try:
            (group.path / "memory.reclaim").write_text(str(left))
        except OSError as error:
            if error.errno != errno.EAGAIN:  # less than asked for was reclaimed
                raise
    return left


def prove(
    report: lab.Report, name: str, backend: Backend, pages: int, span: counters.Span, way: str
) -> None:
    """Check by counters that *pages* went *way* ("in", "out"), through the device or zswap."""
    sectors = span.traffic.read if way == "in" else span.traffic.written
    zswap = span.vmstat[f"zswp{way}"]
    moved = sectors // lab.PAGE_BYTES + zswap
    report.check(
        f"{name}: counters",
        moved >= pages * PROVEN_PERCENT // 100 and (zswap > 0) == backend.in_memory,
        f"{pages} pages {way}; device {span.traffic}, zswap {zswap} pages, "
        f"pswp{way} {span.vmstat[f'pswp{way}']}",
    )


class Turn:
    """One backend measured once, with its swap on."""

    def __init__(
        self, report: lab.Report, samples: Samples, backend: Backend, device: str, name: str
    ) -> None:
        self._report = report
        self._samples = samples
        self._backend = backend
        self._device = device
        self._name = name
        self._tasks: dict[str, Any] = {}

    def run(self, params: Mapping[str, Any], seed: int) -> None:
        """Do the whole turn."""
        pages = int(params["data_mib"]) * lab.MIB // lab.PAGE_BYTES
        group = lab.Cgroup(self._name.replace(" ", "-"), int(params["limit_mib"]))
        with Toucher(pages, seed, group) as toucher:
            self._fill(toucher, int(params["limit_mib"]) * lab.MIB // lab.PAGE_BYTES * 3 // 4)
            left = reclaim(group)
            group.unlimited()
            swapped = toucher.swapped_pages()
            self._report.check(
                f"{self._name}: all swapped out",
                swapped >= pages - LEFT_MIB * lab.MIB // lab.PAGE_BYTES,
                f"{swapped} of {pages} pages, {left} bytes left in memory",
            )
            self._touch_in_order(toucher)
            self._touch_at_random(toucher)
            wrong = toucher.do("verify")["wrong"]
            self._report.check(
                f"{self._name}: every page", wrong == 0, f"{pages} pages, {wrong} wrong"
            )
        kills = group.oom_kills()
        self._report.check(f"{self._name}: no kill", kills == 0, f"{kills} OOM kills")
        self._report.figures.setdefault("tasks", []).append(
            {"subject": self._backend.subject, "tests": self._tasks}
        )

    def _fill(self, toucher: Toucher, free: int) -> None:
        """Write all pages; the first *free* of them fit into the limit and are not timed."""
        toucher.do(f"fill 0 {free}")
        with counters.Span(self._device) as span:
            answer = toucher.do(f"fill {free} {toucher.pages - free}")
        pages = toucher.swapped_pages()
        speed = mib_per_s(pages, answer["seconds"])
        self._add(names.SWAP_OUT, names.THROUGHPUT, speed, "MiB/s", "higher")
        self._account(names.SWAP_OUT, span, answer, pages)
        prove(self._report, f"{self._name}, out", self._backend, pages, span, "out")

    def _touch_in_order(self, toucher: Toucher) -> None:
        test = names.SEQUENTIAL_SWAP_IN
        with counters.Span(self._device) as span:
            answer = toucher.do("touch")
        pages = answer["pages"]
        self._add(test, names.THROUGHPUT, mib_per_s(pages, answer["seconds"]), "MiB/s", "higher")
        self._add(test, names.MAJOR_FAULTS, answer["major"], "", "none")
        self._account(test, span, answer, pages)
        prove(self._report, f"{self._name}, in order", self._backend, pages, span, "in")

    def _touch_at_random(self, toucher: Toucher) -> None:
        test = names.RANDOM_SWAP_IN
        with counters.Span(self._device) as span:
            answer = toucher.do("random")
        pages = answer["pages"]
        if not answer["samples"]:
            raise lab.LabError("no touch at random made a major fault")
        self._add(test, names.P50, answer["p50_us"], "us")
        self._add(test, names.P99, answer["p99_us"], "us")
        self._add(test, names.MAJOR_FAULTS, answer["samples"], "", "none")
        self._account(test, span, answer, pages)
        prove(self._report, f"{self._name}, at random", self._backend, pages, span, "in")

    def _account(
        self, test: str, span: counters.Span, answer: Mapping[str, Any], pages: int
    ) -> None:
        """Add what everybody used of the CPUs for each MiB, and the share of the daemon."""
        per_mib = 1000 / (pages * lab.PAGE_BYTES / lab.MIB)
        self._add(test, names.CPU, span.busy_s * per_mib, "ms/MiB")
        if self._backend.subject in (names.SWAPFS, SWAPFS_DISK):
            for kind in ("user", "system"):
                metric = f"{names.CPU} of the daemon, {kind}"
                self._add(test, metric, span.daemon(kind) * per_mib, "ms/MiB")
        self._tasks[test] = _breakdown(span, answer, pages)

    def _add(self, test: str, metric: str, value: float, unit: str, better: str = "lower") -> None:
        self._samples.add(test, self._backend.subject, metric, value, unit, better)


def _breakdown(span: counters.Span, answer: Mapping[str, Any], pages: int) -> dict[str, Any]:
    """Return where the CPU time of a span went, as the kernel's accounts have it."""
    return {
        "pages": pages,
        "seconds": span.seconds,
        "busy_s": span.busy_s,
        "helper": {key: answer[key] for key in ("seconds", "user", "system", "major", "minor")},
        "tasks": span.tasks,
    }


def main() -> int:
    """Run the job and return its exit status."""
    report, samples = lab.Report(), Samples()
    params = json.loads(PARAMS.read_text())
    with report:
        report.figures["samples"] = samples.rows
        chosen, skipped = backends.choose(params["subjects"], int(params["size_mib"]))
        report.figures["skipped"] = skipped
        for number in range(int(params["rounds"])):
            for backend in chosen:
                name = f"{backend.subject}, round {number + 1}"
                try:
                    with backend.on(int(params["size_mib"])) as device:
                        Turn(report, samples, backend, device, name).run(params, number + 1)
                except (lab.LabError, OSError) as error:  # go on: the others tell more
                    report.check(name, False, str(error))
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
