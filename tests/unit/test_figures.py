"""swapfs stat and swapfs metrics: the snapshot in the formats of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swapfs.command import main, stale
from swapfs.wire import state_file

SNAPSHOT: dict[str, Any] = {
    "name": "one",
    "orig_bytes": 40960,
    "metadata_bytes": 4096,
    "fixed_bytes": 8192,
    "slots": {"same": 3, "raw": 2},
    "pool": {
        "limit_bytes": 16777216,
        "used_bytes": 131072,
        "payload_bytes": 10000,
        "peak_bytes": 262144,
    },
    "tiers": [{"name": "file", "used_bytes": 1048576}],
    "counters": {
        "compacted_pages": 5,
        "write_raw_pages": 7,
        "failed_read_io": 1,
        "failed_read_checksum": 2,
        "failed_write_no_room": 3,
        "failed_write_io": 4,
        "partial_requests": 6,
        "discarded_pages": 8,
        "file_read_bytes": 40960,
        "file_written_bytes": 81920,
    },
}
MM = "   40960    10000   143360 16777216   262144        3        5        2        7"
IO = "       3        7        6        8"
BD = "     256       10       20"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory with the instances one and two, which live."""
    monkeypatch.setattr(stale, "daemon_lives", lambda runtime_dir, name: name != "dead")
    for name in ("one", "two"):
        state_file.write(tmp_path, name, {**SNAPSHOT, "name": name})
    return tmp_path


def swapfs(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_lines_are_those_of_zram(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stat = ("stat", "one", "--runtime-dir", run_dir)
    assert swapfs(capsys, *stat, "--mm-stat") == f"{MM}\n"
    assert swapfs(capsys, *stat, "--io-stat") == f"{IO}\n"
    assert swapfs(capsys, *stat, "--bd-stat") == f"{BD}\n"
    assert swapfs(capsys, *stat) == f"mm_stat {MM}\nio_stat {IO}\nbd_stat {BD}\n"


def test_an_instance_that_is_not_there_is_an_error(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("stat", "metrics"):
        assert main.main([command, "none", "--runtime-dir", str(run_dir)]) == 1
        assert "no instance none in" in capsys.readouterr().err


def test_metrics_are_printed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = swapfs(capsys, "metrics", "--runtime-dir", run_dir)
    assert 'swapfs_pool_used_bytes{name="one"} 131072.0' in out
    assert 'swapfs_pool_used_bytes{name="two"} 131072.0' in out
    assert out.count("# HELP swapfs_pool_used_bytes") == 1
    assert 'name="one"' not in swapfs(capsys, "metrics", "two", "--runtime-dir", run_dir)


def test_textfiles_are_written_and_taken_away_with_the_instance(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "textfile"
    to.mkdir()
    state_file.write(run_dir, "dead", {**SNAPSHOT, "name": "dead"})
    (to / "swapfs-dead.prom").write_text("of when it lived")
    assert swapfs(capsys, "metrics", "--textfile", to, "--runtime-dir", run_dir) == ""
    assert sorted(path.name for path in to.iterdir()) == ["swapfs-one.prom", "swapfs-two.prom"]
    assert 'swapfs_pool_used_bytes{name="one"} 131072.0' in (to / "swapfs-one.prom").read_text()
