"""Debian's Prometheus scrapes a loaded instance: every query has an answer, alerts come and go."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from swapfs.testing.pages import mixed_pages
from tests.fuse.instance import Instance, Start, wait_until
from tests.fuse.planted import plant

ROOT: Final = Path(__file__).parents[2]
ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD: Final = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
PAGE: Final = 4096
PAGES: Final = (128 << 20) // PAGE
"""Of the instance that alerts are about."""
WINDOW: Final = "15s"
"""In the place of the minutes and hours of the rules, which are scraped every second here."""
FIRES_S: Final = 60
VARIABLES: Final = {"$instance": ".*", "$name": ".*", "$__rate_interval": WINDOW}
NEEDS_SWAP: Final = ("swapfs_swap_size_bytes", "swapfs_swap_used_bytes")
"""Said only of a swap area that is on, which none ever is on this machine."""

FAULTS: Final = """
import errno, os
from swapfs import fs
write = os.pwritev
def pwritev(*arguments):
    if os.path.exists({flag!r}):
        raise OSError(errno.EIO, "planted")
    return write(*arguments)
os.pwritev = pwritev
def bug():
    raise RuntimeError("planted")
fs.pyfuse3.StatvfsData = bug
"""
"""A disk that fails while a file is there, and a bug."""

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("prometheus") is None and "CI" not in os.environ,
        reason="needs prometheus: apt-get install prometheus",
    ),
]


class Prometheus:
    """One that scrapes *target* every second, by the shipped rules with shorter times."""

    def __init__(self, directory: Path, target: str) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        rules = re.sub(r"(?m)^( +)for: \d+[mh]$", r"\1for: 1s", ALERTS.read_text())
        (directory / "rules.yml").write_text(re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", rules))
        (directory / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{directory}/rules.yml]\n"
            "scrape_configs:\n"
            f"  - {{job_name: swapfs, static_configs: [{{targets: ['{target}']}}]}}\n"
        )
        with (directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                (
                    "prometheus",
                    f"--config.file={directory}/prometheus.yml",
                    f"--storage.tsdb.path={directory}/tsdb",
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ),
                stdout=log,
                stderr=log,
            )

    def _ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the samples that *expression* has now."""
        found: list[Any] = self._ask("query", query=expression)["result"]
        return found

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now; that of a check has it behind a colon."""
        with contextlib.suppress(OSError):
            alerts = self._ask("alerts")["alerts"]
            labels = [each["labels"] for each in alerts if each["state"] == "firing"]
            return {":".join([each["alertname"], *_check(each)]) for each in labels}
        return set()

    def has_data(self) -> bool:
        """Whether it has seen the instance often enough for a rate."""
        with contextlib.suppress(OSError):
            return bool(self.query(f"rate(swapfs_writes_total[{WINDOW}])"))
        return False

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def _check(labels: dict[str, str]) -> list[str]:
    return [labels["check"]] if "check" in labels else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def watching(directory: Path, port: int) -> Iterator[Prometheus]:
    made = Prometheus(directory, f"127.0.0.1:{port}")
    try:
        wait_until(made.has_data, "the first scrapes", FIRES_S)
        yield made
    finally:
        made.close()


def write(instance: Instance, pages: list[bytes], first: int = 0) -> None:
    fd = instance.open()
    try:
        # At a page's begin in memory, as swap is, or the kernel cuts requests within pages.
        with mmap.mmap(-1, len(pages) * PAGE) as aligned:
            aligned[:] = b"".join(pages)
            os.pwrite(fd, aligned, first * PAGE)
    finally:
        os.close(fd)


def expressions() -> list[str]:
    """Return what the dashboard asks, with its variables filled in."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append(expression)
    return found


def test_every_query_of_the_dashboard_has_data(start: Start, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "tiers.toml"
    config.write_text(f'[[tier]]\npath = "{tmp_path}/second"\nsize = "16M"\nbudget = "100M/day"\n')
    loaded = start("32M", "24M", "16M", "--metrics", f"127.0.0.1:{port}", "--config", config)
    with watching(tmp_path, port) as prometheus:
        write(loaded, mixed_pages(5, 4096))
        loaded.demote(1024)
        fd = loaded.open()
        os.pread(fd, 4 << 20, 0)
        os.close(fd)
        asked = [each for each in expressions() if not each.startswith(NEEDS_SWAP)]
        assert len(asked) > 40
        silent: list[str] = []

        def all_answer() -> bool:
            silent[:] = [each for each in asked if not prometheus.query(each)]
            return not silent

        with contextlib.suppress(AssertionError):
            wait_until(all_answer, "data", FIRES_S)
        assert silent == []


def comes_and_goes(prometheus: Prometheus, alert: str, cause: Any, cure: Any = None) -> None:
    """Check that *alert* is not there, fires after *cause*, and ends by itself or by *cure*."""
    assert alert not in prometheus.firing()
    cause()
    wait_until(lambda: alert in prometheus.firing(), f"{alert} to fire", FIRES_S)
    if cure is not None:
        cure()
    wait_until(lambda: alert not in prometheus.firing(), f"{alert} to end", FIRES_S)


def test_alerts_of_a_disk_and_of_a_bug(make_instance: Start, tmp_path: Path) -> None:
    port, broken = free_port(), tmp_path / "broken"
    watched = make_instance()
    plant(watched, FAULTS.format(flag=str(broken)))
    words = ("--size", "32M", "--pool", "48M", "--file", f"{watched.backing}:32M")
    watched.mount(*words, "--metrics", f"127.0.0.1:{port}")
    write(watched, [os.urandom(PAGE) for _ in range(4096)])
    of_the_disk = {"SwapfsDemotionFailing", "SwapfsBadSectors", "SwapfsGuardBroken:tier_file"}

    def meet_the_bug() -> None:
        with contextlib.suppress(OSError):
            os.statvfs(watched.mountpoint)

    with watching(tmp_path, port) as prometheus:
        comes_and_goes(prometheus, "SwapfsHandlerErrors", meet_the_bug)
        assert not of_the_disk & prometheus.firing()
        broken.touch()
        watched.demote(64)
        wait_until(lambda: of_the_disk <= prometheus.firing(), "the broken disk", FIRES_S)
        broken.unlink()

        def mended() -> bool:
            watched.demote(64)
            return not of_the_disk & prometheus.firing()

        wait_until(mended, "the disk that works again", 2 * FIRES_S)


def test_alerts_fire_for_what_they_are_about_and_end(start: Start, tmp_path: Path) -> None:
    port = free_port()
    watched = start(
        *("128M", "16M", "80M"),
        *("--overcommit", "4", "--metrics", f"127.0.0.1:{port}", "--high-watermark", "100"),
        *("--low-watermark", "99"),
    )
    noise = [os.urandom(PAGE) for _ in range(PAGES)]

    def refuse() -> None:
        with contextlib.suppress(OSError):
            for first in range(0, PAGES, 256):
                write(watched, noise[first : first + 256], first)

    def empty() -> None:
        write(watched, [bytes(PAGE)] * PAGES)

    def lose() -> None:
        write(watched, noise[:1024])
        assert watched.demote(1024) > 0
        with watched.backing.open("r+b") as file:
            file.write(os.urandom(80 << 20))
        fd = watched.open()
        for slot in range(1024):
            with contextlib.suppress(OSError):
                os.pread(fd, PAGE, slot * PAGE)
        os.close(fd)

    def kill() -> None:
        os.kill(watched.status()["server_pid"], signal.SIGKILL)
        wait_until(lambda: watched.cli("status").returncode == 0, "another server")
        watched.note_pids()

    with watching(tmp_path, port) as prometheus:
        comes_and_goes(prometheus, "SwapfsWritesRefused", refuse)
        wait_until(
            lambda: {"SwapfsRoomRunningOut", "SwapfsTierNearlyFull"} <= prometheus.firing(),
            "it to be full",
            FIRES_S,
        )
        empty()
        wait_until(
            lambda: not {"SwapfsRoomRunningOut", "SwapfsTierNearlyFull"} & prometheus.firing(),
            "room again",
            FIRES_S,
        )
        comes_and_goes(prometheus, "SwapfsPagesLost", lose, empty)
        comes_and_goes(prometheus, "SwapfsServerRestarted", kill)
