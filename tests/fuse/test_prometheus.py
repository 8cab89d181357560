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
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from swapfs.testing.pages import mixed_pages
from swapfs.wire import control
from tests.fuse.instance import Instance, Start, check, wait_until
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

SWAP_AND_MEMORY: Final = """
import os
from pathlib import Path
from swapfs.host import swap
from swapfs.server import standstill
class NoKiller(standstill.OomKiller):
    def set(self):
        pass
    def check(self):
        return True, "planted"
    def call(self):
        pass
standstill.OomKiller = NoKiller
standstill.Rule.stands_still = lambda self, look: os.path.exists({flag!r})
from swapfs.host.process_guards import IoFlusher, OomScore
for guard in (IoFlusher, OomScore):
    guard.check = lambda self: (True, "planted")
entries = swap.entries
swap.entries = lambda root=None: entries(Path({root!r}))
"""
"""A /proc/swaps of the test's own; memory that is short while a file is there, and nobody killed;
and guards that hold, which may not be set on every machine that tests."""
STOPPED_S: Final = 0.03
RUNS_S: Final = 0.0005

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


def read(instance: Instance, pages: int) -> None:
    fd = instance.open()
    try:
        for first in range(0, pages, 32):
            os.pread(fd, 32 * PAGE, first * PAGE)
    finally:
        os.close(fd)


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


def test_alerts_of_the_swap_area_and_of_an_end(make_instance: Start, tmp_path: Path) -> None:
    """Swap is never on here: what the kernel says of it in /proc/swaps is said in its place."""
    port, short, watched = free_port(), tmp_path / "short", make_instance()
    (tmp_path / "proc").mkdir()
    swaps, device = tmp_path / "proc/swaps", Path()
    plant(watched, SWAP_AND_MEMORY.format(flag=str(short), root=str(tmp_path)))

    def swap_is(percent: int | None) -> None:
        head = "Filename Type Size Used Priority\n"
        size_kib = (32 << 10) - 4
        area = "" if percent is None else f" partition {size_kib} {size_kib * percent // 100} 100\n"
        new = swaps.with_name("new")
        new.write_text(head + (area and f"{device}{area}"))
        new.rename(swaps)

    def start() -> Path:
        words = ("--size", "32M", "--pool", "48M", "--metrics", f"127.0.0.1:{port}")
        watched.mount(*words)
        return watched.attach_loop()

    def end() -> None:
        status = watched.status()
        for process in (status["pid"], status["server_pid"]):
            os.kill(process, signal.SIGKILL)

    def start_again() -> None:
        nonlocal device
        watched.detach_loops()
        assert watched.cli("down").returncode == 0
        device = start()
        swap_is(10)

    swaps.write_text("Filename Type Size Used Priority\n")
    device = start()
    swap_is(10)
    control.wanted_path(watched.runtime_dir, watched.name).touch()
    write(watched, mixed_pages(3, 64))
    with watching(tmp_path, port) as prometheus:
        comes_and_goes(prometheus, "SwapfsSwapNearlyFull", lambda: swap_is(95), lambda: swap_is(10))
        comes_and_goes(prometheus, "SwapfsDegraded", lambda: swap_is(None), lambda: swap_is(10))
        comes_and_goes(prometheus, "SwapfsOomCalled", short.touch, short.unlink)
        comes_and_goes(prometheus, "SwapfsGone", end, start_again)
    watched.detach_loops()


def test_alerts_of_a_pool_that_is_too_small(start: Start, tmp_path: Path) -> None:
    port, pages = free_port(), 8192
    config = tmp_path / "tiers.toml"
    tier = f'path = "{tmp_path}/second"\nsize = "16M"\npriority = 200\nbudget = "16M/hour"\n'
    config.write_text(f'[[tier]]\nname = "second"\n{tier}')
    watched = start(
        *("32M", "16M", "48M", "--metrics", f"127.0.0.1:{port}", "--config", config),
        *("--high-watermark", "100", "--low-watermark", "99"),
    )
    noise = [os.urandom(PAGE) for _ in range(pages)]
    of_much = {"SwapfsPoolFull", "SwapfsTierBudgetSpent"}

    def overwhelm() -> None:
        for _ in range(4):
            write(watched, noise)

    def thrash() -> None:
        assert watched.demote(2048) > 1024
        read(watched, pages)

    with watching(tmp_path, port) as prometheus:
        assert not of_much & prometheus.firing()
        overwhelm()
        wait_until(lambda: of_much <= prometheus.firing(), f"{of_much} to fire", FIRES_S)
        where = (watched.name, "--runtime-dir", watched.runtime_dir)
        check(*watched.command, "tier", "set", "second", "budget=none", *where)
        wait_until(lambda: not of_much & prometheus.firing(), f"{of_much} to end", FIRES_S)
        comes_and_goes(prometheus, "SwapfsRefaulting", thrash)


class Starved:
    """Keeps the processor from a server that is asked all the time, as a busy machine does."""

    def __init__(self, instance: Instance, pages: int) -> None:
        self._instance = instance
        self._pages = pages
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=body) for body in (self._stop_and_go, self._ask)]

    def _stop_and_go(self) -> None:
        server = self._instance.status()["server_pid"]
        while not self._ended.wait(RUNS_S):
            os.kill(server, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(server, signal.SIGCONT)

    def _ask(self) -> None:
        while not self._ended.is_set():
            read(self._instance, self._pages)

    def begin(self) -> None:
        """Have it run for half a millisecond now and then."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let it run."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_alert_of_a_server_that_gets_no_processor(start: Start, tmp_path: Path) -> None:
    port, pages = free_port(), 2048
    watched = start("16M", "24M", None, "--metrics", f"127.0.0.1:{port}")
    write(watched, mixed_pages(4, pages))
    starved = Starved(watched, pages)
    with watching(tmp_path, port) as prometheus:
        try:
            comes_and_goes(prometheus, "SwapfsSlowReads", starved.begin, starved.end)
        finally:
            starved.end()
