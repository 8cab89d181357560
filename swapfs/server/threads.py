"""Threads of a server: those that it cannot do without, and those that trio lends for one call.

When a vital one dies, the server ends. A process that lives and serves nothing is the worst that
can happen: its monitor sees nothing to do, and whoever needs a page waits for ever. A dead one is
replaced within milliseconds.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio

T = TypeVar("T")


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

    @property
    def are_stopping(self) -> bool:
        """Whether they may end: requests are no longer taken here."""
        return self._stopping

    def stopping(self) -> None:
        """Say that from now on they may end."""
        self._stopping = True


_takes: Final = inspect.signature(trio.to_thread.run_sync).parameters
_ABANDON: Final = "abandon_on_cancel" if "abandon_on_cancel" in _takes else "cancellable"
"""What trio calls it; before 0.23 (Debian 12) it was the second."""


async def in_thread(call: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
    """Return what *call* returns in a thread of trio's, while this one serves others.

    What it raises is handed over in a list that is emptied at once. trio itself keeps it in
    frames that its traceback reaches, a cycle of 53 objects, and gc is off.

    :param abandon_on_cancel: when cancelled, let the thread go on unheard
    :raises Exception: what *call* raises
    """
    returned: list[T] = []
    raised: list[Exception] = []

    def attempt() -> None:
        try:
            returned.append(call())
        except Exception as error:  # noqa: BLE001 (raised again below)
            raised.append(error)

    how: dict[str, Any] = {_ABANDON: abandon_on_cancel}
    await trio.to_thread.run_sync(attempt, **how)
    if raised:
        raise raised.pop()
    return returned.pop()
