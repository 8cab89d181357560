"""Threads that a server cannot do without: when one dies, the server ends.

A process that lives and serves nothing is the worst that can happen: its monitor sees nothing to
do, and whoever needs a page waits for ever. A dead one is replaced within milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class VitalThreads:
    """Starts threads and has *on_death* called, in the thread, if one ends unasked.

    :param on_death: gets the thread's name and what it died of; is not expected to return
    """

    def __init__(self, on_death: Callable[[str, BaseException], None]) -> None:
        self._on_death = on_death
        self._stopping = False

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """Start and return a thread that does *run*.

        :raises RuntimeError: no thread can be made
        """

        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # noqa: BLE001 (whatever it was, it is dead)
                self._on_death(name, error)
            else:
                if not self._stopping:
                    self._on_death(name, RuntimeError("it has returned"))

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def stopping(self) -> None:
        """Say that from now on they may end."""
        self._stopping = True
