"""Threads of which one runs at a time, and a random number says which: races that repeat.

Each actor is a thread that stands still wherever it could be overtaken: before it takes a lock,
after it lets one go, when it waits, and where the test says so. The scheduler then lets another
one go on. ``installed`` puts locks, queues, events and a clock of this kind under the modules of
the slot layer. Time only passes when nobody can go on without it, so a wait times out only if
what it waits for really does not come.
"""

from __future__ import annotations

import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any, Final, Generic, TypeVar
from unittest import mock

T = TypeVar("T")

_JOIN_S: Final = 30.0


class Standstill(AssertionError):
    """Nobody can go on."""


class _Ended(BaseException):
    """Ends an actor whose run is over; no ``except Exception`` stops it."""


class _Actor:
    def __init__(self, name: str) -> None:
        self.name = name
        self.go = threading.Semaphore(0)
        self.ready: Callable[[], bool] | None = None
        self.deadline_s: float | None = None
        self.timed_out = False
        self.ended = False
        self.error: BaseException | None = None
        self.thread: threading.Thread


class Scheduler:
    """Runs actors one at a time, in an order that *seed* determines.

    :param share: of the places where an actor could be overtaken, how many it stops at
    """

    def __init__(self, seed: int, share: float = 0.3) -> None:
        self.now_s = 1000.0
        self.steps = 0
        self._random = random.Random(seed)
        self._share = share
        self._actors: list[_Actor] = []
        self._current: _Actor | None = None
        self._back = threading.Semaphore(0)
        self._over = False

    def clock_s(self) -> float:
        """Return the time that the actors see."""
        return self.now_s

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        """Add an actor; it starts when ``run`` picks it."""
        actor = _Actor(name)
        actor.thread = threading.Thread(target=self._live, args=(actor, run), daemon=True)
        self._actors.append(actor)
        actor.thread.start()

    def _live(self, actor: _Actor, run: Callable[[], None]) -> None:
        actor.go.acquire()
        try:
            if not self._over:
                run()
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - run() raises it
            actor.error = error
        actor.ended = True
        self._back.release()

    def run(self, until: Callable[[], bool]) -> None:
        """Let the actors go on until *until* holds.

        :raises Standstill: it does not, and nobody can go on
        """
        while not until():
            actor = self._pick()
            self.steps += 1
            self._current = actor
            actor.go.release()
            self._back.acquire()
            self._current = None
            if actor.error is not None:
                raise actor.error

    def _pick(self) -> _Actor:
        alive = [actor for actor in self._actors if not actor.ended]
        able = [actor for actor in alive if actor.ready is None or actor.ready()]
        if able:
            return self._random.choice(able)
        timed = [(a.deadline_s, n) for n, a in enumerate(alive) if a.deadline_s is not None]
        if not timed:
            raise Standstill(", ".join(actor.name for actor in alive) + " wait for one another")
        deadline_s, number = min(timed)
        self.now_s = max(self.now_s, deadline_s)
        alive[number].timed_out = True
        return alive[number]

    def stop(self) -> None:
        """End every actor where it stands; for the end of a run, good or bad."""
        self._over = True
        for actor in self._actors:
            if not actor.ended:
                self._current = actor
                actor.go.release()
                self._back.acquire()
            actor.thread.join(_JOIN_S)
        self._current = None

    # ---- what actors call ----

    def pause(self) -> None:
        """Let another actor go on, perhaps."""
        if self._current is not None and self._random.random() < self._share:
            self.wait()

    def wait(self, ready: Callable[[], bool] | None = None, timeout_s: float | None = None) -> bool:
        """Stand still until *ready* holds; False: time is up, and it does not."""
        actor = self._current
        if actor is None:
            assert ready is None or ready(), "outside of a run nobody would change that"
            return True
        if self._over:
            raise _Ended
        if timeout_s == 0 and ready is not None:
            self.pause()
            return ready()
        actor.ready, actor.timed_out = ready, False
        actor.deadline_s = None if timeout_s is None else self.now_s + timeout_s
        self._back.release()
        actor.go.acquire()
        if self._over:
            raise _Ended
        actor.ready = actor.deadline_s = None
        return not actor.timed_out or ready is None or ready()

    def sleep(self, _: float) -> None:
        """Let another actor go on."""
        self.wait()

    # ---- under the modules ----

    @contextmanager
    def installed(self, *modules: ModuleType) -> Iterator[None]:
        """Give *modules* primitives of this scheduler, for objects that they make meanwhile."""
        names = {
            "threading": SimpleNamespace(
                Lock=lambda: Lock(self),
                Event=lambda: Event(self),
                Condition=lambda: Condition(self),
                get_ident=lambda: id(self._current),
            ),
            "queue": SimpleNamespace(SimpleQueue=lambda: SimpleQueue(self), Empty=queue.Empty),
            "time": SimpleNamespace(monotonic=self.clock_s, sleep=self.sleep),
        }
        patches: list[Any] = [
            mock.patch.object(module, name, fake)
            for module in modules
            for name, fake in names.items()
            if hasattr(module, name)
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


class Lock:
    """``threading.Lock``, and what the layer's lock has beyond it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def acquire(self) -> None:
        """Take it."""
        self._scheduler.pause()
        if self._held:
            self._scheduler.wait(lambda: not self._held)
        self._held = True

    def release(self) -> None:
        """Let it go."""
        self._held = False
        self._scheduler.pause()

    def locked(self) -> bool:
        """Whether anyone holds it."""
        return self._held

    def contended(self) -> bool:
        """Whether the holder should let it go soon; now and then."""
        return self._scheduler.steps % 7 == 0

    def resched(self) -> None:
        """Let it go, and take it again."""
        self.release()
        self.acquire()

    def relax(self) -> None:
        """Let those go on who wait for it; it is not held."""
        self._scheduler.wait()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Event:
    """``threading.Event``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False

    def set(self) -> None:
        """Wake who waits."""
        self._set = True
        self._scheduler.pause()

    def clear(self) -> None:
        """Have later ones wait."""
        self._set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set."""
        return self._scheduler.wait(self.is_set, timeout)


class Condition(Lock):
    """``threading.Condition``."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._notified = 0

    def notify_all(self) -> None:
        """Wake who waits."""
        self._notified += 1

    def wait(self, timeout: float | None = None) -> bool:
        """Let the lock go until notified."""
        before = self._notified
        self._held = False
        told = self._scheduler.wait(lambda: self._notified != before, timeout)
        self.acquire()
        return told

    def wait_for(self, holds: Callable[[], bool], timeout: float | None = None) -> bool:
        """Let the lock go until *holds*."""
        self._held = False
        self._scheduler.wait(holds, timeout)
        self.acquire()
        return holds()


class SimpleQueue(Generic[T]):
    """``queue.SimpleQueue``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[T] = deque()

    def put(self, item: T) -> None:
        """Append *item*."""
        self._items.append(item)
        self._scheduler.pause()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the first item.

        :raises queue.Empty: there is none in time
        """
        self._scheduler.pause()
        if not self._scheduler.wait(lambda: bool(self._items), timeout if block else 0):
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> T:
        """Take the first item.

        :raises queue.Empty: there is none
        """
        return self.get(block=False)

    def empty(self) -> bool:
        """Whether there is none."""
        return not self._items
