"""Commands that wait for a server: as long as one may come, and not a moment longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swapfs.command import waiting
from swapfs.errors import OperationError
from swapfs.host import instance_lock


def never(seconds: float) -> None:
    pytest.fail("it waits for what will not come")


def fails(times: int, cause: Exception) -> Callable[[], str]:
    left = [cause] * times

    def call() -> str:
        if left:
            raise OperationError("no answer") from left.pop()
        return "answer"

    return call


def test_an_instance_that_is_not_up_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", never)
    with pytest.raises(OperationError, match="no server listens there"):
        waiting.tiers(tmp_path / "nobody.sock")
    with pytest.raises(OperationError, match="no server listens there"):
        waiting.ask(tmp_path / "nobody.sock", "verify")


def test_a_server_that_has_died_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert instance_lock.acquire(tmp_path / "one.lock") is not None  # the monitor has it
    call = fails(3, ConnectionRefusedError())
    assert waiting.patiently(tmp_path / "one.sock", call) == "answer"
    assert len(waited) == 3


def test_a_socket_that_is_not_ours_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", never)
    assert instance_lock.acquire(tmp_path / "one.lock") is not None
    with pytest.raises(OperationError, match="no answer"):
        waiting.patiently(tmp_path / "one.sock", fails(1, PermissionError()))
