"""Where status gets its values from, and how it shows them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from swapfs.command import columns, status
from swapfs.command.stale import GhostSwap
from swapfs.command.status import Instance, State
from swapfs.errors import OperationError
from swapfs.host import proc
from swapfs.wire import control, state_file

NO_PROCESS = 1 << 30  # beyond every pid_max
MIB = 1 << 20


def snapshot(**changes: Any) -> dict[str, Any]:
    """Return a server's snapshot with values that cannot be mistaken for each other."""
    return {
        "name": "one",
        "version": "0.1.0",
        "pid": os.getpid(),
        "mountpoint": "/run/a b/mnt",
        "algorithm": "lz4",
        "size_bytes": 1024 * MIB,
        "degraded": [],
        "slots": {"empty": 1, "same": 2, "compressed": 3, "raw": 4, "file": 5},
        "orig_bytes": 30 * MIB,
        "compr_bytes": 10 * MIB,
        "pool": {"limit_bytes": 256 * MIB, "used_bytes": 11 * MIB, "peak_bytes": 12 * MIB},
        "metadata_bytes": 2 * MIB,
        "fixed_bytes": 3 * MIB,
        "metadata_bytes_per_slot": 9.26,
        "tiers": [
            {
                "name": "file",
                "path": "/back",
                "size_bytes": 64 * MIB,
                "used_bytes": 5 * MIB,
                "state": "ok",
                "detail": "",
            }
        ],
        "guards": [
            {"name": "mlock", "ok": True, "required": True, "detail": ""},
            {"name": "fifo", "ok": False, "required": True, "detail": "no permission"},
        ],
        "swap": {
            "device": "/dev/loop7",
            "size_bytes": 1024 * MIB,
            "used_bytes": 40 * MIB,
            "priority": 100,
        },
        "loop": "/dev/loop7",
        **changes,
    }


def instance(state: str = "running", age_s: float = 0.0, **changes: Any) -> Instance:
    return Instance("one", State(state), age_s, snapshot(**changes))


def write(run: Path, name: str, age_s: float = 0.0, **changes: Any) -> None:
    status = snapshot(name=name, **changes)
    pids = {pid for key in ("pid", "server_pid") if isinstance(pid := status.get(key), int)}
    status = {"born": proc.births(*pids), **status}
    written = {"written_unix_s": time.time() - age_s, "status": status}
    state_file.path(run, name).write_text(json.dumps(written))


def test_nothing_there(tmp_path: Path) -> None:
    assert status.collect(tmp_path) == []
    assert status.collect(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("pid", "age_s", "state"),
    [
        (os.getpid(), 0.0, "running"),
        (os.getpid(), 60.0, "silent"),
        (NO_PROCESS, 0.0, "dead"),
        (1 << 70, 0.0, "dead"),
        (None, 0.0, "dead"),
    ],
)
def test_state_of_a_snapshot(tmp_path: Path, pid: object, age_s: float, state: str) -> None:
    write(tmp_path, "one", age_s, pid=pid)
    (found,) = status.collect(tmp_path)
    assert found.state == state
    assert abs(found.age_s - age_s) < 5
    assert found.status.orig_bytes == 30 * MIB


@pytest.mark.parametrize(
    ("server_pid", "age_s", "state"),
    [
        (os.getpid(), 0.0, "running"),
        (os.getpid(), 60.0, "silent"),
        (NO_PROCESS, 0.0, "dead"),
        (None, 0.0, "dead"),
    ],
)
def test_a_server_without_its_monitor_is_alive_and_its_swap_no_ghost(
    tmp_path: Path, server_pid: int | None, age_s: float, state: str
) -> None:
    write(tmp_path, "one", age_s, pid=NO_PROCESS, server_pid=server_pid, degraded=["alone"])
    (found,) = status.collect(tmp_path)
    assert found.state == state
    assert "DEGRADED  alone" in status.format_details([found])


@pytest.mark.parametrize("server_pid", [NO_PROCESS, None])
def test_a_monitor_between_two_servers_is_alive(tmp_path: Path, server_pid: int | None) -> None:
    write(tmp_path, "one", pid=os.getpid(), server_pid=server_pid)
    assert status.collect(tmp_path)[0].state == "running"


@pytest.mark.parametrize(("pid", "state"), [(os.getpid(), "held"), (NO_PROCESS, "dead")])
def test_a_monitor_that_gave_up_stays_held_however_long_ago(
    tmp_path: Path, pid: int, state: str
) -> None:
    write(tmp_path, "one", 3600.0, pid=pid, held=True, degraded=["the server died"])
    (found,) = status.collect(tmp_path)
    assert found.state == state
    shown = status.format_details([found])
    assert ("HELD (process" in shown) == (state == "held")
    assert "DEGRADED  the server died" in shown


def test_the_control_socket_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "one", pid=NO_PROCESS)
    write(tmp_path, "two")

    def request(sock: Path, command: str, timeout_s: float) -> dict[str, Any]:
        if sock.stem == "two":
            raise OperationError("not for you")
        return snapshot(orig_bytes=7)

    monkeypatch.setattr(control, "request", request)
    one, two = status.collect(tmp_path)
    assert (one.state, one.status.orig_bytes) == ("running", 7)
    assert (two.state, two.name) == ("running", "two")
    assert [found.name for found in status.collect(tmp_path, ["two", "three"])] == ["two"]


def test_an_unreadable_snapshot_is_shown_as_dead(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text("{")
    found = status.collect(tmp_path)
    assert found[0].state == "dead"
    assert "one" in columns.format_table(found)
    assert "no snapshot to read" in status.format_details(found)


def test_table() -> None:
    heading, row = columns.format_table([instance()]).splitlines()
    assert heading.split() == list(columns.COLUMNS)
    assert row.split() == [
        *("one", "lz4", "1G", "30M", "10M", "16M", "256M"),  # 16M: 11 used, 2 + 3 metadata
        *("2", "4", "5M", "3.00", "100", "/run/a", "b/mnt"),
    ]
    assert heading.index("SIZE") + len("SIZE") == row.index("1G") + len("1G"), "right-aligned"


def test_table_for_scripts() -> None:
    text = columns.format_table(
        [instance()], ["NAME", "DATA", "MOUNTPOINT", "SWAP-USED"], in_bytes=True, raw=True
    )
    assert text == f"NAME DATA MOUNTPOINT SWAP-USED\none {30 * MIB} /run/a\\x20b/mnt {40 * MIB}"
    assert columns.format_table([instance()], ["PRIO"], headings=False) == "100"
    assert columns.format_table([], ["PRIO"], headings=False) == ""


def test_every_column_copes_with_missing_values() -> None:
    bare = Instance("one", State.DEAD, 0.0, {})
    row = columns.format_table([bare], columns.column_names(), raw=True, headings=False)
    cells = dict(zip(columns.column_names(), row.split(" "), strict=True))
    assert cells.pop("NAME") == "one"
    assert cells.pop("STATE") == "dead"
    assert cells.pop("FILE-USED") == "0B"
    assert set(cells.values()) == {"-"}
    odd = Instance("one", State.DEAD, 0.0, {"swap": None, "guards": None, "tiers": "none"})
    assert status.format_details([odd])


def test_nothing_compressed_has_no_ratio() -> None:
    row = columns.format_table(
        [instance(orig_bytes=4096, compr_bytes=0)], ["RATIO"], headings=False
    )
    assert row == "-"


def test_details() -> None:
    ghost = GhostSwap(Path("/dev/loop3"), "/x", "its backing file /x is deleted")
    lines = status.format_details([instance(degraded=["pool is full"])], [ghost]).splitlines()
    assert lines == [
        f"one: running (process {os.getpid()}), swap on /dev/loop7, 40M of 1G used",
        "slots     empty 1  same 2  compressed 3  raw 4  file 5",
        "metadata  2M (9.3 bytes per occupied slot), 3M fixed",
        "tier      file /back: 5M of 64M, ok",
        "guards    mlock",
        "NOT HELD  fifo: no permission",
        "DEGRADED  pool is full",
        f"ghost /dev/loop3: its backing file /x is deleted; {status.GHOST_CURE}",
    ]


@pytest.mark.parametrize("starts", [1, 4])
def test_details_say_what_was_restarted_and_what_cannot_be(starts: int) -> None:
    shown = status.format_details(
        [instance(counters={"server_starts": starts}, limits=["this kernel cannot"])]
    )
    assert ("the server was started 4 times" in shown) == (starts == 4)
    assert "limit     this kernel cannot" in shown


def test_details_say_what_is_wrong_with_the_server() -> None:
    assert "dead (process" in status.format_details([instance(state="dead")])
    silent = status.format_details([instance(state="silent", age_s=33.3)])
    assert "silent" in silent
    assert "for 33 s" in silent


def test_a_failing_tier_is_described_in_words() -> None:
    tier = {"name": "file", "path": "/back", "state": "failing", "detail": "writes fail (EIO)"}
    assert "tier      file /back: 0B of 0B, writes fail (EIO)" in status.format_details(
        [instance(tiers=[tier])]
    )
    assert "/back: 0B of 0B, unknown" in status.format_details(
        [instance(tiers=[{**tier, "state": "sulking", "detail": ""}])]
    )


def test_json_keeps_what_only_another_version_understands() -> None:
    shown = instance(state="held", age_s=1.5, policy={"name": "sieve"}).as_dict()
    assert shown["policy"] == {"name": "sieve"}
    assert (shown["name"], shown["state"], shown["age_s"]) == ("one", "held", 1.5)
    assert json.loads(json.dumps(shown)) == shown


def test_columns_in_the_docs_are_those_of_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "operating.md"
    assert columns.reference() in page.read_text(), (
        "paste swapfs.command.columns.reference() into docs/operating.md"
    )
