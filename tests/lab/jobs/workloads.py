"""What swaps in the lab: the workloads by which work on the kernel's swap is judged.

The real programs are those of the benchmarks. A hog stands for the synthetic ones: vm-scalability's
usemem (in order, at random, hot spots) and memhog. Each checks what it reads back.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab
from tests.bench.jobs import programs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SEED: Final = 7
_SKEW: Final = 1.1
"""Of Pareto's distribution: the first tenth of the keys gets four fifths of the requests."""
_HOT_SHARE: Final = 40


class _OfHog(programs.Program):
    """A process with `hog_mib` of memory, in which `work` is done."""

    def run(self, group: lab.Cgroup) -> None:
        hog = lab.Hog(int(self.params["hog_mib"]), group)
        try:
            self.work(hog)
        finally:
            hog.quit()

    def work(self, hog: lab.Hog) -> None:
        """Use the memory."""
        raise NotImplementedError


def _verify(hog: lab.Hog, command: str) -> None:
    ok, found = lab.judge(hog.do(command))
    if not ok:
        raise lab.LabError(f"{command}: {found}")


class Sequential(_OfHog):
    """Written once, and read in order, twice: the worst that a list of recency can meet."""

    def work(self, hog: lab.Hog) -> None:
        hog.do("fill")
        _verify(hog, "verify")
        _verify(hog, "verify")


class Uniform(_OfHog):
    """Written once, a tenth written again, and all read in a random order."""

    def work(self, hog: lab.Hog) -> None:
        hog.do("fill")
        hog.do("rewrite 10")
        _verify(hog, "verify random")


class Skewed(_OfHog):
    """Short runs at random places, read and a third of them written; few places get most."""

    def work(self, hog: lab.Hog) -> None:
        hog.do("fill")
        _verify(hog, f"visit {self.params['visits']}")


class Memhog(_OfHog):
    """Memory that is only ever written, again and again: nothing comes back."""

    def work(self, hog: lab.Hog) -> None:
        hog.do("fill")
        hog.do("rewrite 100")


class SkewedRedis(programs.Redis):
    """A Redis of whose keys few are asked for by most."""

    def asked(self, count: int) -> Sequence[int]:
        rng = random.Random(_SEED)
        span = max(1, count // _HOT_SHARE)
        places = list(range(count))
        rng.shuffle(places)  # the hot ones lie anywhere in memory
        return [
            places[min(count - 1, int(span * (rng.paretovariate(_SKEW) - 1)))]
            for _ in range(int(self.params["redis_gets"]))
        ]


WORKLOADS: Final[Mapping[str, type[programs.Program]]] = {
    "build": programs.Build,
    "usemem-sequential": Sequential,
    "usemem-random": Uniform,
    "skewed": Skewed,
    "memhog": Memhog,
    "redis-uniform": programs.Redis,
    "redis-skewed": SkewedRedis,
    "sqlite": programs.Sqlite,
    "sort": programs.Sort,
}
