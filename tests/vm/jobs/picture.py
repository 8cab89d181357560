"""What the page at / of the metrics address asks for, recorded while a program swaps."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any, Final

from deploy.vm.guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
METRICS: Final = "127.0.0.1:9809"
DATA_MIB: Final = 224
LIMIT_MIB: Final = 48
CHURN_S: Final = 45
SAMPLES: Final = 30


def record(samples: int) -> list[dict[str, Any]]:
    """Return so many answers, a second apart."""
    found = []
    for _ in range(samples):
        with urllib.request.urlopen(f"http://{METRICS}/live.json", timeout=30) as answer:
            found.append(json.load(answer))
        time.sleep(1)
    return found


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up("--size", "384M", "--pool", "80M", "--file", f"{DISK}:448M", "--metrics", METRICS)
        hog = lab.Hog(DATA_MIB, lab.Cgroup("hog", LIMIT_MIB))
        hog.do("fill")
        hog.send(f"churn {CHURN_S}")
        samples = record(SAMPLES)
        report.check("every page is right", *lab.judge(hog.answer()))
        (lab.OUT / "live.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in samples))
        bad = [one["degraded"] for one in samples if one["degraded"] or not one["swap"]]
        report.check("the instance is healthy and has swap on", not bad, f"{bad}")
        hog.quit()
        lab.down()
        left = lab.leftovers()
        report.check("nothing is left", not left, f"{left}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
