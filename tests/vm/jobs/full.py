"""Memory only, and more written than fits: refused and counted, and nothing stored is lost."""

from __future__ import annotations

import sys
from typing import Final

from guest import lab

UP: Final = ("--size", "320M", "--pool", "32M", "--overcommit", "20")
FIRST_MIB: Final = 48
SECOND_MIB: Final = 224
LIMIT_MIB: Final = 24
STEP_PAGES: Final = 1024
SLOTS_BOUND_S: Final = 60


def fill_until_refused(hog: lab.Hog, group: lab.Cgroup) -> str:
    """Fill until a write has been refused or the hog is dead; return which."""
    while True:
        try:
            answer = hog.do(f"fill {STEP_PAGES}")
        except lab.LabError as error:
            return f"the limit killed the hog ({group.oom_kills()} kills): {error}"
        if (refused := lab.status()["counters"]["failed_write_no_room"]) > 0:
            return f"{refused} pages refused after {answer['pages']} pages"
        if answer["pages"] * lab.PAGE_BYTES >= SECOND_MIB * lab.MIB:
            return "everything fitted"


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
        how = fill_until_refused(second, second_group)
        found = lab.status()
        counters, pool = found["counters"], found["pool"]
        report.check(
            "full pool refuses writes",
            counters["failed_write_no_room"] > 0,
            f"{how}; pool {pool['used_bytes']} of {pool['limit_bytes']} bytes",
        )
        report.check(
            "kill limited to the cgroup",
            first_group.oom_kills() == 0 and first.process.poll() is None,
            f"{second_group.oom_kills()} killed in the full cgroup",
        )
        first_group.unlimited()  # reading back must not need room for new writes
        first.verify(report, "verify what was stored before")
        if second.process.poll() is None:
            second_group.unlimited()
            second.verify(report, "verify what was stored meanwhile")
            second.quit()
        low = lab.occupied(found) // 2
        returned = lab.wait_for(
            "slots to return", lambda: lab.occupied(lab.status()) < low, SLOTS_BOUND_S
        )
        report.check("slots return", returned, f"{lab.occupied(lab.status())} of {low * 2} left")
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
