"""An experiment: which workloads, under which policies, on which set-ups; a TOML file.

kernel = "6.12"            # of the VM
memory_mib = 1024
disks_mib = [512]          # /dev/disk/by-id/virtio-data0, ...
minutes = 10               # at most, under KVM; an emulated VM has six times as long
policies = ["second-chance", "sieve"]
replayed = ["second-chance", "sieve", "lru"]   # each trace again; all built-in ones by default

[params]                   # what workloads take, see tests/lab/jobs/workloads.py
hog_mib = 64

[setups]                   # name -> a configuration of swapfs
disk = "size = '192M'\\npool = '8M'\\nfile = '/dev/disk/by-id/virtio-data0:320M'"

[[workload]]
name = "sqlite"
limit_mib = 24             # of memory
params = { sqlite_mib = 48 }
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from swapfs.policy import BUILT_IN

WORKLOADS: Final = (
    *("build", "usemem-sequential", "usemem-random", "skewed", "memhog"),
    *("redis-uniform", "redis-skewed", "sqlite", "sort"),
)
"""Those of tests/lab/jobs/workloads.py, which runs in the VM only."""
_KEYS: Final = {
    *("kernel", "memory_mib", "disks_mib", "minutes", "policies", "replayed"),
    *("params", "setups", "workload"),
}


class ExperimentError(Exception):
    """A file is no experiment; the message says where and why, in one line."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload with *limit_mib* of memory."""

    name: str
    limit_mib: int
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One workload under one policy on one set-up."""

    workload: Workload
    policy: str
    setup: str

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.workload.name}.{self.setup}.{self.policy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What a file says."""

    workloads: Sequence[Workload]
    policies: Sequence[str]
    setups: Mapping[str, str]
    replayed: Sequence[str] = tuple(BUILT_IN)
    params: Mapping[str, Any] = field(default_factory=dict)
    kernel: str = "6.12"
    memory_mib: int = 1024
    disks_mib: Sequence[int] = (512,)
    minutes: float = 10

    def runs(self) -> Iterator[Run]:
        """Yield every run, in order."""
        for workload in self.workloads:
            for setup in self.setups:
                for policy in self.policies:
                    yield Run(workload, policy, setup)

    def only(
        self, workloads: Sequence[str], policies: Sequence[str] = (), kernel: str = ""
    ) -> Experiment:
        """Return it with these workloads, live policies and kernel; none named: its own.

        :raises ExperimentError: it has no such workload
        """
        mine = [each.name for each in self.workloads]
        if unknown := [name for name in workloads if name not in mine]:
            raise ExperimentError(f"no workload {unknown[0]!r} in it: {', '.join(mine)}")
        chosen = [each for each in self.workloads if not workloads or each.name in workloads]
        return replace(
            self,
            workloads=chosen,
            policies=tuple(policies) or self.policies,
            kernel=kernel or self.kernel,
        )


def read(path: Path) -> Experiment:
    """Return the experiment of a file.

    :raises ExperimentError: it is none
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"{path}: {error}") from error
    if unknown := sorted(content.keys() - _KEYS):
        raise ExperimentError(f"{path}: unknown key {unknown[0]!r}")
    try:
        workloads = [Workload(**each) for each in content.pop("workload")]
        made = Experiment(workloads=workloads, **content)
    except (KeyError, TypeError) as error:
        raise ExperimentError(
            f"{path}: workload, policies and setups are needed ({error})"
        ) from None
    _check(made, path)
    return made


def _check(made: Experiment, path: Path) -> None:
    for workload in made.workloads:
        if workload.name not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise ExperimentError(f"{path}: no workload {workload.name!r}: {known}")
        if type(workload.limit_mib) is not int or workload.limit_mib < 1:
            raise ExperimentError(f"{path}: limit_mib of {workload.name} is a number of MiB")
    for name in (*made.policies, *made.replayed):
        if name not in BUILT_IN:
            raise ExperimentError(f"{path}: no policy {name!r}: {', '.join(BUILT_IN)}")
    for name, text in made.setups.items():
        try:
            tomllib.loads(text)
        except ValueError as error:
            raise ExperimentError(f"{path}: set-up {name!r}: {error}") from error
    if not (made.workloads and made.policies and made.setups):
        raise ExperimentError(f"{path}: it has nothing to run")
