"""CPUs kept from sleeping while pages are swapped in: the device, and what is shown of it.

``session/awake.c`` says what it is for and does it. Here the device is opened, so that a server
opens its own: the kernel takes back what a descriptor holds when it is closed, and one that the
monitor had for all servers would outlive a killed one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from swapfs import session
from swapfs.server.status import CpuLatencyStatus

log = logging.getLogger(__name__)

DEVICE: Final = Path("/dev/cpu_dma_latency")
LINGER_S: Final = 0.01
"""How long CPUs stay awake after the last swap-in. A process that waits for one page after another
asks every 20 to 100 us; 10 ms also span what it does in between."""


class CpuLatency:
    """Keeps CPUs awake as *mode* says, once it is started; a server without it is only slower."""

    def __init__(self, mode: str, device: Path = DEVICE) -> None:
        self._mode = mode
        self._device = device
        self._problem = ""

    def start(self) -> None:
        """Open the device and give it to the session; one line in the log if that fails."""
        if self._mode == "off":
            return
        try:
            fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            self._problem = f"{self._device}: {error.strerror}"
            log.warning("swap-ins wait for CPUs that sleep: %s", self._problem)
            return
        session.keep_awake(fd, LINGER_S, self._mode == "always")

    def status(self) -> CpuLatencyStatus:
        """Return what is held now, and has been."""
        found = session.awake()
        problem = self._problem
        if not problem and found["error"]:
            problem = f"{self._device}: {os.strerror(found['error'])}"
        return CpuLatencyStatus(
            mode=self._mode,
            held=found["held"],
            holds=found["holds"],
            held_s=found["held_s"],
            problem=problem,
        )
