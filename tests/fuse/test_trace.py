"""`swapfs trace record` follows a running instance, over a server's death."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from swapfs.command.trace import summary
from tests.fuse.instance import Instance, Start, is_alive, wait_until
from tests.fuse.load import Load, fill

pytestmark = pytest.mark.timeout(120)


def _record(instance: Instance, out: Path) -> subprocess.Popen[str]:
    command = [*instance.command, "trace", "record", str(out), "--name", instance.name]
    process = subprocess.Popen(
        [*command, "--runtime-dir", str(instance.runtime_dir)], stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: out.exists() or process.poll() is not None, "the recorder to begin")
    return process


def test_a_trace_has_what_was_done_and_goes_on_with_the_next_server(
    tmp_path: Path, start: Start
) -> None:
    instance = start("64M", "16M", "128M")
    process = _record(instance, tmp_path / "trace")
    fill(instance, 4096, 12288)
    load = Load(instance, 4096)
    load.run(40, seed=1)
    server = instance.status()["server_pid"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), "the server to die")
    load.run(40, seed=2)
    counters = instance.status()["counters"]
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    found = summary(tmp_path / "trace")
    assert found["finished"]
    assert f"{found['dropped']} dropped" in said
    events = found["events"]
    if not found["dropped"]:
        assert events["demote"] >= counters["demoted_pages"] > 0
        stored = sum(value for name, value in counters.items() if name.startswith("write_"))
        assert abs(events["store"] - stored) <= 200, "but for what was under way at the death"


def test_it_does_not_record_what_is_not_there(tmp_path: Path, start: Start) -> None:
    instance = start("8M", "16M", None, "--access-log", "off")
    process = _record(instance, tmp_path / "trace")
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert not (tmp_path / "trace").exists()
