"""A VM that may restart: what the host does when the guest goes off or begins anew."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.vm.host.qemu import Console
from deploy.vm.host.qmp import Power, Qmp

GUEST_OFF = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}}
GUEST_RESET = {"event": "RESET", "data": {"guest": True, "reason": "guest-reset"}}
OUR_RESET = {"event": "RESET", "data": {"guest": False, "reason": "host-qmp-system-reset"}}


class Qemu:
    """QEMU's end of the socket: what it was told, and events that it tells."""

    def __init__(self) -> None:
        ours, self._end = socket.socketpair()
        self.qmp = Qmp(ours)
        assert self.told() == ["qmp_capabilities"]

    def told(self) -> list[str]:
        """Return the commands since the last time."""
        self._end.setblocking(False)
        try:
            data = self._end.recv(65536)
        except BlockingIOError:
            return []
        return [json.loads(line)["execute"] for line in data.splitlines()]

    def tell(self, *messages: dict[str, Any]) -> None:
        self.send("".join(json.dumps(message) + "\r\n" for message in messages))

    def send(self, text: str) -> None:
        self._end.sendall(text.encode())

    def die(self) -> None:
        self._end.close()


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    made = Qemu()
    yield made
    made.die()
    made.qmp.socket.close()


def test_a_guest_that_goes_off_too_early_is_switched_on_again(qemu: Qemu) -> None:
    power = Power(qemu.qmp, finished=lambda: False, panicked=lambda: False)
    power.act([GUEST_OFF, {"event": "STOP"}])
    assert qemu.told() == ["system_reset"]
    power.act([OUR_RESET, {"event": "RESUME"}])
    assert qemu.told() == ["cont"]
    assert [(event.what, event.by_guest) for event in power.events] == [
        ("shutdown", True),
        ("reset", False),
    ]


def test_a_guest_whose_job_is_done_may_stay_off(qemu: Qemu) -> None:
    power = Power(qemu.qmp, finished=lambda: True, panicked=lambda: False)
    power.act([GUEST_OFF])
    assert qemu.told() == ["quit"]


def test_a_reboot_is_left_to_the_guest_unless_it_panicked(qemu: Qemu) -> None:
    Power(qemu.qmp, finished=lambda: False, panicked=lambda: False).act([GUEST_RESET])
    assert qemu.told() == []
    Power(qemu.qmp, finished=lambda: False, panicked=lambda: True).act([GUEST_RESET])
    assert qemu.told() == ["quit"]


def test_events_are_told_from_answers_and_may_come_in_pieces(qemu: Qemu) -> None:
    text = json.dumps(GUEST_RESET)
    qemu.tell({"QMP": {"version": {}}}, {"return": {}}, GUEST_OFF)
    qemu.send(text[:20])
    assert qemu.qmp.events() == [GUEST_OFF]
    qemu.send(text[20:] + "\r\n")
    assert qemu.qmp.events() == [GUEST_RESET]


def test_a_qemu_that_is_gone_has_no_more_events(qemu: Qemu) -> None:
    qemu.die()
    assert qemu.qmp.events() is None


def test_a_guest_that_says_nothing_any_more_hangs(qemu: Qemu) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"booting\r\n")
    console = Console(lambda _: None)
    assert not console.drain(read_end, math.inf, qemu.qmp, None, quiet_s=0.05)
    assert console.text == "booting\n"
    os.close(write_end)
    assert console.drain(read_end, math.inf, qemu.qmp, None, quiet_s=30)
    os.close(read_end)
