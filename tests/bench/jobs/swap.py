"""Swap-out, sequential and random swap-in on each backend in turns, all in one boot.

A helper in a cgroup fills memory beyond the cgroup's limit. Then the rest is reclaimed, the limit
is lifted, so that nothing is swapped out meanwhile; three quarters are read in order, and then the
others at random. In the end every byte is compared.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.guest import lab
from tests.bench import names
from tests.bench.jobs import backends, counters, memcg, site
from tests.bench.jobs.samples import Samples
from tests.bench.jobs.toucher import Toucher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.bench.jobs.backends import Backend

PUSHED_PERCENT: Final = 95
"""So much of the helper's memory must be swapped out before the swap-in."""
PROVEN_PERCENT: Final = 85
"""So much of what was swapped must show in counters: some 3 % of the pages are zero or one word,
which the kernel or zram need not move."""


def mib_per_s(pages: int, seconds: float) -> float:
    """Return the throughput of *pages* pages in *seconds*."""
    return pages * lab.PAGE_BYTES / lab.MIB / seconds


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
    """One backend measured once.

    :param awake: whether CPUs are kept from sleeping meanwhile
    """

    def __init__(
        self,
        report: lab.Report,
        samples: Samples,
        backend: Backend,
        where: site.Site,
        number: int,
        *,
        awake: bool,
    ) -> None:
        self._report = report
        self._samples = samples
        self._backend = backend
        self._site = where
        self._awake = awake
        self._number = number
        self._name = f"{backend.subject}, round {number}" + (", awake" if awake else "")
        self._device = ""
        self._tasks: dict[str, Any] = {}

    def run(self, params: Mapping[str, Any]) -> None:
        """Switch the swap on, do the whole turn, and switch it off under the pages."""
        pages = int(params["data_mib"]) * lab.MIB // lab.PAGE_BYTES
        limit_mib = int(params["limit_mib"])
        name = f"bench-{self._name.replace(' ', '-')}"
        with memcg.group(name, limit_mib) as group, Toucher(pages, self._number, group) as toucher:
            with self._backend.on(self._site, int(params["size_mib"])) as self._device:
                with site.power(self._awake):
                    self._swap(toucher, group)
                self._push_out(toucher, group, "again")
                start_s = time.monotonic()
            self._add(names.SWAPOFF, names.TIME, time.monotonic() - start_s, "s")
            self._verify(toucher, "after swapoff")
            kills = group.oom_kills()
        self._report.check(f"{self._name}: no kill", kills == 0, f"{kills} OOM kills")
        self._report.figures.setdefault("tasks", []).append(
            {"subject": self._backend.subject, "tests": self._tasks}
        )

    def _swap(self, toucher: Toucher, group: memcg.Group) -> None:
        """Swap all of it out and in again."""
        self._fill(toucher, group.limit_mib * lab.MIB // lab.PAGE_BYTES * 3 // 4)
        self._push_out(toucher, group, "once")
        self._touch_in_order(toucher)
        self._touch_at_random(toucher)
        self._verify(toucher, "read back")

    def _push_out(self, toucher: Toucher, group: memcg.Group, when: str) -> None:
        """Swap out what is still in memory, and lift the limit so that nothing more is."""
        group.limit(group.limit_mib)
        left = group.reclaim()
        group.unlimited()
        swapped = toucher.swapped_pages()
        self._report.check(
            f"{self._name}: all swapped out {when}",
            swapped * 100 >= toucher.pages * PUSHED_PERCENT,
            f"{swapped} of {toucher.pages} pages, {left} bytes left in memory",
        )

    def _verify(self, toucher: Toucher, when: str) -> None:
        wrong = toucher.do("verify")["wrong"]
        self._report.check(
            f"{self._name}: every page {when}", wrong == 0, f"{toucher.pages} pages, {wrong} wrong"
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
        """Add what everybody used of the CPUs for each page, and the share of the daemon."""
        per_page = 1e6 / pages
        self._add(test, names.CPU_PER_PAGE, span.busy_s * per_page, "us")
        if self._backend.subject in (names.SWAPFS, names.SWAPFS_DISK):
            for kind in ("user", "system"):
                metric = f"{names.CPU_PER_PAGE}, the daemon's, {kind}"
                self._add(test, metric, span.daemon(kind) * per_page, "us")
        self._tasks[test] = _breakdown(span, answer, pages)

    def _add(self, test: str, metric: str, value: float, unit: str, better: str = "lower") -> None:
        if self._site.native:
            test = names.natively(test, awake=self._awake)
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
    params = json.loads(lab.PARAMS.read_text())
    with report:
        report.figures["samples"] = samples.rows
        where = site.here(params)
        chosen, skipped = backends.choose(where, params["subjects"], int(params["size_mib"]))
        report.figures["skipped"] = skipped
        rounds = range(1, int(params["rounds"]) + 1)
        turns = itertools.product(rounds, params.get("awake", [False]), chosen)
        for number, awake, backend in turns:
            turn = Turn(report, samples, backend, where, number, awake=awake)
            try:
                turn.run(params)
            except (lab.LabError, OSError) as error:  # go on: the others tell more
                report.check(f"{backend.subject}, round {number}", False, str(error))
        report.check("nothing left", not where.leftovers(), f"{where.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
