"""Real programs with less memory than they want, on each backend in turns: build, Redis, sort.

Each program's result is checked: the build's binary runs and is the same every time, Redis gives
every value back, the sorted file has the hash that the host computed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.guest import lab
from tests.bench import names
from tests.bench.jobs import backends, counters, memcg, redis, site
from tests.bench.jobs.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.jobs.backends import Backend

WORK: Final = Path(os.environ.get("SWAPFS_JOB", "/var/tmp")) / "programs"
LINES: Final = lab.JOB / "lines"
START_BOUND_S: Final = 120
_ENTER: Final = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"'
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


class Program:
    """One real job in three steps, of which only `run` is timed; LabError if one goes wrong."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def before(self) -> None:
        """Make everything as it was before the first turn."""

    def run(self, group: lab.Cgroup) -> None:
        """Do the job in *group*."""
        raise NotImplementedError

    def check(self) -> None:
        """See whether its result is right."""


def inside(group: lab.Cgroup, *command: str, where: Path = WORK) -> None:
    """Run *command* in *group* to its end; LabError with its last words if it fails."""
    done = subprocess.run(
        ["sh", "-c", _ENTER, "sh", str(group.path), *command],
        cwd=where, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise lab.LabError(f"{command[0]}: exit status {done.returncode}: {said}")


def sha256(file: Path) -> str:
    """Return the hash of a file's contents."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Build(Program):
    """Lua, built from a fresh copy of its source; the binary must run and never differ."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._source, self._folder = WORK / "source", WORK / "build"
        self._binaries: set[str] = set()
        self._source.mkdir()
        (tar,) = lab.JOB.glob("*.orig.tar.*")
        lab.must("tar", "--strip-components=1", "-C", str(self._source), "-xf", str(tar))

    def before(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._source, self._folder)

    def run(self, group: lab.Cgroup) -> None:
        inside(group, "make", f"-j{self.params['build_jobs']}", "linux", where=self._folder)

    def check(self) -> None:
        binary = self._folder / "src/lua"
        said = lab.must(str(binary), "-e", "print(6 * 7)").strip()
        self._binaries.add(sha256(binary))
        if said != "42" or len(self._binaries) != 1:
            raise lab.LabError(f"lua says {said!r}; {len(self._binaries)} different binaries")


class Redis(Program):
    """A Redis filled beyond the limit; values got at random, every one compared."""

    def asked(self, count: int) -> Sequence[int]:
        """Return which of *count* values to ask for, in that order."""
        return redis.in_no_order(count, int(self.params["redis_gets"]))

    def run(self, group: lab.Cgroup) -> None:
        address = WORK / "redis.sock"
        server = subprocess.Popen(
            ["sh", "-c", _ENTER, "sh", str(group.path), "redis-server", "--port", "0",
             "--unixsocket", str(address), "--save", "", "--appendonly", "no", "--dir", str(WORK)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if not lab.wait_for("Redis", address.exists, START_BOUND_S):
                raise lab.LabError("redis-server made no socket")
            values = int(self.params["redis_mib"]) * lab.MIB // lab.PAGE_BYTES
            self._wrong = redis.exercise(address, values, self.asked(values))
        finally:
            server.kill()
            server.wait()
            address.unlink(missing_ok=True)

    def check(self) -> None:
        if self._wrong:
            raise lab.LabError(f"Redis gave {self._wrong} wrong values")


class Sort(Program):
    """A file sorted in one buffer that is larger than the limit."""

    def before(self) -> None:
        (WORK / "sorted").unlink(missing_ok=True)

    def run(self, group: lab.Cgroup) -> None:
        size = f"--buffer-size={self.params['sort_buffer_mib']}M"
        command = ["env", "LC_ALL=C", "sort", "--parallel=1", size, "-o", "sorted", str(LINES)]
        inside(group, *command)

    def check(self) -> None:
        if sha256(WORK / "sorted") != self.params["sorted_sha256"]:
            raise lab.LabError("the sorted file is not what the host computed")


class Sqlite(Program):
    """A database in memory and an array, asked in no order (`sqlite.py`, which checks itself)."""

    def run(self, group: lab.Cgroup) -> None:
        script = Path(__file__).with_name("sqlite.py")
        inside(group, sys.executable, "-S", str(script), str(self.params["sqlite_mib"]))


PROGRAMS: Final[dict[str, type[Program]]] = {
    names.BUILD: Build, names.REDIS: Redis, names.SORT: Sort, names.SQLITE: Sqlite,
}  # fmt: skip


class Turn:
    """One program on one backend, once.

    :param test: the name of the program
    :param awake: whether CPUs are kept from sleeping meanwhile
    """

    def __init__(
        self, report: lab.Report, samples: Samples, where: site.Site, test: str, *, awake: bool
    ) -> None:
        self._report = report
        self._samples = samples
        self._site = where
        self._test = names.natively(test, awake=awake) if where.native else test
        self._awake = awake

    def run(self, program: Program, backend: Backend, size_mib: int, limit_mib: int) -> None:
        """Switch the swap on, run the program, check its result and note what it took."""
        name = f"{self._test} on {backend.subject}"
        program.before()
        with (
            memcg.group(f"bench-{name.replace(' ', '-')}", limit_mib) as group,
            backend.on(self._site, size_mib) as device,
        ):
            os.sync()  # or what `before` wrote is written back, and stays cached, while it is timed
            _DROP_CACHES.write_text("1")
            with site.power(self._awake), counters.Span(device) as span:
                program.run(group)
            program.check()
            self._note(name, group, span)
        for metric, value, unit in (
            (names.TIME, span.seconds, "s"),
            (names.CPU, span.busy_s, "s"),
            (names.MAJOR_FAULTS, span.vmstat["pgmajfault"], ""),
        ):
            self._samples.add(self._test, backend.subject, metric, value, unit)

    def _note(self, name: str, group: memcg.Group, span: counters.Span) -> None:
        swapped = span.vmstat["pswpout"] + span.vmstat["zswpout"]
        kills = group.oom_kills()
        self._report.check(
            name,
            swapped > 0 and kills == 0,
            f"{span.seconds:.1f} s, CPU {span.busy_s:.1f} s, {swapped} pages swapped out, peak "
            f"{group.bytes_of('peak') / lab.MIB:.0f} MiB, device {span.traffic}, {kills} kills",
        )


def main() -> int:
    """Run the job and return its exit status."""
    report, samples = lab.Report(), Samples()
    params = json.loads(lab.PARAMS.read_text())
    size_mib, rounds = int(params["size_mib"]), range(int(params["rounds"]))
    with report:
        report.figures["samples"] = samples.rows
        WORK.mkdir(parents=True)
        where = site.here(params)
        chosen, skipped = backends.choose(where, params["subjects"], size_mib)
        report.figures["skipped"] = skipped
        for test, limit_mib in params["programs"].items():
            program = PROGRAMS[test](params)
            turns = itertools.product(rounds, params.get("awake", [False]), chosen)
            for _, awake, backend in turns:
                try:
                    turn = Turn(report, samples, where, test, awake=awake)
                    turn.run(program, backend, size_mib, int(limit_mib))
                except (lab.LabError, OSError) as error:  # go on: the others tell more
                    report.check(f"{test} on {backend.subject}", False, str(error))
        report.check("nothing left", not where.leftovers(), f"{where.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
