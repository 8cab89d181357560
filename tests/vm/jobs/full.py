"""Memory only, and more written than fits: refused and counted, and nothing stored is lost."""

from __future__ import annotations

import sys
from typing import Final

from deploy.vm.guest import lab

UP: Final = ("--size", "320M", "--pool", "32M", "--overcommit", "20")
FIRST_MIB: Final = 72
SECOND_MIB: Final = 224
LIMIT_MIB: Final = 48
"""Less, and the kernel runs out of pages that are not being written while swap is slow."""
REFUSED_BOUND_S: Final = 300
SLOTS_BOUND_S: Final = 60


def refused() -> int:
    """Return how many writes have been refused for lack of room."""
    found = lab.snapshot()
    return found["counters"]["failed_write_no_room"] if found else 0


def answer_or_death(hog: lab.Hog, group: lab.Cgroup) -> str:
    """Wait for *hog* to finish or to be killed by its cgroup's limit; return which."""
    try:
        answer = hog.answer()
    except lab.LabError as error:
        return f"{error}, {group.oom_kills()} killed by its cgroup's limit"
    return f"finished {answer['pages']} pages in {answer['seconds']:.0f} s"


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        first_group = lab.Cgroup("first", LIMIT_MIB)
        first = lab.Hog(FIRST_MIB, first_group, seed=1)
        first.do("fill")
        second_group = lab.Cgroup("second", LIMIT_MIB)
        second = lab.Hog(SECOND_MIB, second_group, seed=2)
        second.send("fill")
        lab.wait_for("a refused write", lambda: refused() > 0, REFUSED_BOUND_S)
        # The kernel would retry for ever: memory, not room, is what lets the hog go on.
        second_group.unlimited()
        how = answer_or_death(second, second_group)
        found = lab.status()
        pool = found["pool"]
        report.check(
            "full pool refuses writes",
            refused() > 0,
            f"{refused()} refused; second hog: {how}; "
            f"pool {pool['used_bytes']} of {pool['limit_bytes']} bytes",
        )
        report.check(
            "kill limited to the cgroup",
            first_group.oom_kills() == 0 and first.process.poll() is None,
            f"{second_group.oom_kills()} killed in the full cgroup",
        )
        first_group.unlimited()  # reading back must not need room for new writes
        first.verify(report, "verify what was stored before")
        if second.process.poll() is None:
            second.verify(report, "verify what was stored meanwhile")
            second.quit()
        before = lab.occupied(found)
        low = before * 3 // 4  # the first hog keeps its own

        def returned() -> bool:
            return lab.occupied(lab.snapshot() or found) < low

        lab.wait_for("slots to return", returned, SLOTS_BOUND_S)
        left = lab.occupied(lab.status())
        report.check("slots return", left < low, f"{left} of {before} left")
        third = lab.Hog(FIRST_MIB, lab.Cgroup("third", LIMIT_MIB), seed=3)
        third.do("fill")
        third.verify(report, "room again, verified")
        counters = lab.status()["counters"]
        report.check(
            "no other failures",
            not counters["handler_errors"] and not counters["failed_read_io"],
            f"{ {k: v for k, v in counters.items() if v} }",
        )
        third.quit()
        first.quit()
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
