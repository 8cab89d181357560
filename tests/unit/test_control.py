"""The control socket: answers, refusals, and peers that mean no good."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapfs.errors import OperationError, TierError
from swapfs.host import proc
from swapfs.wire import control, control_server, state_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

UID = os.geteuid()


async def handle_status(args: dict[str, object]) -> object:
    assert "command" not in args
    return {"args": args}


async def handle_refusal(args: dict[str, object]) -> object:
    raise TierError("no tier\nbelow")


async def handle_bug(args: dict[str, object]) -> object:
    raise ZeroDivisionError


async def handle_unspeakable(args: dict[str, object]) -> object:
    return {"set": {1, 2}}


HANDLERS: dict[str, Callable[[dict[str, object]], Awaitable[object]]] = {
    "status": handle_status,
    "refuse": handle_refusal,
    "bug": handle_bug,
    "unspeakable": handle_unspeakable,
}


async def start(nursery: trio.Nursery, path: Path, **options: float) -> None:
    uid = int(options.get("allowed_uid", UID))
    timeout_s = options.get("peer_timeout_s", 10.0)
    serve = partial(control_server.serve, allowed_uid=uid, peer_timeout_s=timeout_s)
    nursery.start_soon(serve, control_server.listen(path), HANDLERS)


async def ask(path: Path, command: str, **args: object) -> dict[str, object]:
    return await trio.to_thread.run_sync(lambda: control.request(path, command, 10.0, **args))


async def send(path: Path, raw: bytes) -> list[dict[str, object]]:
    """Send *raw* and the end, return the answers until the server closes."""
    received = b""
    async with await trio.open_unix_socket(str(path)) as stream:
        # A server that cuts us off before it has read everything resets the connection.
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(raw)
            await stream.send_eof()
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in stream:
                received += chunk
    return [json.loads(line) for line in received.splitlines()]


async def test_request_and_answer(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    assert await ask(path, "status", pages=5) == {"args": {"pages": 5}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    answers = await send(path, b'{"command":"status"}\n' * 3)
    assert answers == [{"ok": True, "result": {"args": {}}}] * 3


async def test_a_refusal_is_one_line_and_the_connection_goes_on(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    with pytest.raises(OperationError, match=r"^refuse: no tier below$"):
        await ask(path, "refuse")
    answers = await send(path, b'{"command":"refuse"}\n{"command":"status"}\n')
    assert [answer["ok"] for answer in answers] == [False, True]


@pytest.mark.parametrize("command", ["bug", "unspeakable"])
async def test_a_handlers_bug_is_logged_and_answered(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(OperationError, match=f"{command} failed: .*see the log"),
    ):
        await ask(path, command)
    assert f"control command {command} failed" in caplog.text
    assert await ask(path, "status")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\n", "not JSON"),
        (b"hello\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 20000 + b"\n", "not JSON"),
        (b"[]\n", "not a JSON object"),
        (b"{}\n", "names no command"),
        (b'{"command": 1}\n', "names no command"),
        (b'{"command": "halt"}\n', "unknown command 'halt' (known: bug, refuse, status"),
        (b'{"command": "status"}', "without a newline"),
        (b" " * (control_server.REQUEST_BYTES_MAX + 1), "longer than 65536 bytes"),
        (b" " * (control_server.REQUEST_BYTES_MAX + 1) + b"\n", "longer than 65536 bytes"),
    ],
)
async def test_garbage_gets_an_answer_and_is_cut_off(
    nursery: trio.Nursery, tmp_path: Path, raw: bytes, says: str
) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    (answer,) = await send(path, raw + (b'{"command":"status"}\n' if raw[-1:] == b"\n" else b""))
    assert answer["ok"] is False
    assert says in str(answer["error"])
    assert await ask(path, "status") == {"args": {}}


async def test_the_longest_line_is_served(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    line = b'{"command":"status"}'
    (answer,) = await send(path, line.ljust(control_server.REQUEST_BYTES_MAX) + b"\n")
    assert answer["ok"] is True


async def test_other_users_are_refused(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path, allowed_uid=UID + 1)
    with pytest.raises(OperationError, match=f"user {UID} may not use the control socket"):
        await ask(path, "status")


async def test_a_silent_peer_is_dropped(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b'{"comm')
        assert await stream.receive_some() == b""
    assert trio.current_time() >= 10


async def test_connections_are_bounded(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "CONNECTIONS_MAX", 2)
    path = tmp_path / "one.sock"
    await start(nursery, path)
    idle = [await trio.open_unix_socket(str(path)) for _ in range(2)]
    with pytest.raises(OperationError, match="too many connections"):
        await ask(path, "status")
    for stream in idle:
        await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert await ask(path, "status")


async def test_a_peer_that_leaves_early_harms_nobody(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    await start(nursery, path)
    for raw in (b"", b'{"command":"status"}\n' * 1000, b"x" * 70000):
        stream = await trio.open_unix_socket(str(path))
        with trio.move_on_after(0.01):  # the server may stop reading at a full buffer
            await stream.send_all(raw)
        await stream.aclose()
    assert await ask(path, "status")


async def test_socket_goes_with_the_server_and_stale_ones_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with trio.open_nursery() as nursery:
        await start(nursery, path)
        assert await ask(path, "status")
        with pytest.raises(OperationError, match="another server listens"):
            control_server.listen(path)
        assert await ask(path, "status")
        nursery.cancel_scope.cancel()
    assert not path.exists()


def test_a_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    path.write_text("mine")
    with pytest.raises(OperationError, match="no socket is in its place"):
        control_server.listen(path)
    assert path.read_text() == "mine"


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="status: no server listens there"):
        control.request(tmp_path / "one.sock", "status", 1.0)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "closed the connection"),
        (b"[1]\n", "not an answer"),
        (b"x\n", "not JSON"),
        (b'{"ok":false}\n', "refused without a reason"),
    ],
)
async def test_bad_answers(nursery: trio.Nursery, tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(raw)

        nursery.start_soon(trio.to_thread.run_sync, answer)
        with pytest.raises(OperationError, match=says):
            await ask(path, "status")


def test_no_answer_in_time(tmp_path: Path) -> None:
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(OperationError, match="no answer to status within"):
            control.request(path, "status", 0.01)


PIECES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"\n", b'{"command":"status"}\n', b'{"command":', b"[[{", b'"\\ud800"\n']),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(PIECES, max_size=8))
def test_any_bytes_leave_the_server_unharmed(tmp_path: Path, pieces: list[bytes]) -> None:
    path = tmp_path / "one.sock"

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await start(nursery, path)
            answers = await send(path, b"".join(pieces))
            assert all(isinstance(answer["ok"], bool) for answer in answers)
            assert [answer["ok"] for answer in answers].count(False) <= 1
            assert await ask(path, "status") == {"args": {}}
            nursery.cancel_scope.cancel()

    trio.run(run)


def test_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_file.read(tmp_path, "one") is None
    path = state_file.path(tmp_path, "one")
    for content in ("", "[]", "{}", '{"written_unix_s": 1, "status": []}', "\xff"):
        path.write_text(content)
        assert state_file.read(tmp_path, "one") is None
    monkeypatch.setattr(time, "time", lambda: 101.5)
    path.write_text('{"written_unix_s": 1.5, "status": {"pid": 7}}')
    assert state_file.read(tmp_path, "one") == (100.0, {"pid": 7})


def test_a_clock_that_is_set_makes_a_snapshot_neither_old_nor_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_file.write(tmp_path, "one", {"pid": 7})
    for clock_s in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda clock_s=clock_s: clock_s)
        read = state_file.read(tmp_path, "one")
        assert read is not None
        assert 0 <= read[0] < 60
    monkeypatch.setattr(proc, "boot", lambda: "another one")
    read = state_file.read(tmp_path, "one")
    assert read is not None
    assert read[0] > 1e11, "of another boot: only that clock is common to both"
