"""The guards that keep the server from waiting for the swap that it serves (I5, I8).

A guard is one object: its name, how to set it, how to read it back, whether it is required and
what to do when it does not hold. ``Guards.set`` sets it, ``Guards.verify`` reads all of them back
at any time; what the setting call returned is never taken as proof. A required guard that does
not hold is an error unless the operator said ``--unsafe``. The guards of this process are in
``process_guards``, those of its device and its connection in ``device_guards``.

Why these guards (measured in a 512 MiB VM under whole-system pressure): a server that
allocates while it serves wedges the machine within a second, even with ``mlockall`` and
PR_SET_IO_FLUSHER. What survived was all of them together: locked preallocated pool, locked
process, IO_FLUSHER, SCHED_FIFO (a real-time task may use part of the reserve below the min
watermark), a heap that is warm and never returned, and no garbage collector.

Order that works: io_flusher (before any thread exists), heap, region, mlock, gc, oom_score,
threads, realtime. Nothing of this but IO_FLUSHER and the scheduler survives a fork as it is:
locks are gone in the child, which sets them again.
"""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass
from typing import Any

from swapfs.errors import GuardError, OperationError


@dataclass(frozen=True, slots=True)
class Finding:
    """What the kernel said of one guard when it was last read back."""

    name: str
    ok: bool
    required: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as it appears in the status snapshot."""
        return asdict(self)


class Guard(abc.ABC):
    """One guard: what it is called, how it is set and read back, and the cure if it fails."""

    name: str
    cure: str
    required: bool = True
    check_is_proof: bool = True
    """The check alone tells whether it holds, whatever the setting call said."""

    @abc.abstractmethod
    def set(self) -> None:
        """Ask the kernel for it.

        :raises OSError: the kernel refused
        :raises OperationError: so did a tool, or a file of the kernel
        """

    @abc.abstractmethod
    def check(self) -> tuple[bool, str]:
        """Read it back: whether it holds, and one line of what was found.

        :raises OSError: it cannot be read back; so do ValueError, IndexError, OperationError
        """


class Guards:
    """The guards of this process: ``set`` each, then ``require()``; ``verify()`` ever after.

    :param unsafe: go on when a required guard does not hold
    """

    def __init__(self, unsafe: bool) -> None:
        self.unsafe = unsafe
        self._guards: dict[str, tuple[Guard, str]] = {}  # by name, with what refused it

    def set(self, guard: Guard) -> None:
        """Set *guard*, in the place of an earlier one of its name; a refusal is only noted."""
        refusal = ""
        try:
            guard.set()
        except OSError as error:
            refusal = error.strerror or str(error)
        except OperationError as error:
            refusal = str(error)
        self._guards[guard.name] = guard, refusal

    def verify(self) -> list[Finding]:
        """Read every guard back from the kernel and return what was found. Never raises."""
        return [_look(guard, refusal) for guard, refusal in self._guards.values()]

    def require(self) -> None:
        """Check that every required guard holds.

        :raises GuardError: names those that do not, what was found and the cure; not raised
            when ``unsafe`` was given
        """
        broken = [found for found in self.verify() if found.required and not found.ok]
        if not broken or self.unsafe:
            return
        lines = [f"{f.name}: {f.detail} ({self._guards[f.name][0].cure})" for f in broken]
        raise GuardError(
            f"{len(broken)} guard(s) against deadlock do not hold; "
            f"{'; '.join(lines)}; or accept the risk with --unsafe"
        )


def _look(guard: Guard, refusal: str) -> Finding:
    try:
        ok, detail = guard.check()
    except (OSError, ValueError, IndexError, OperationError) as error:
        ok, detail = False, f"cannot be read back: {error}"
    if refusal and not guard.check_is_proof:
        ok = False
    if refusal and not ok:
        detail = f"{refusal}; {detail}"
    return Finding(guard.name, ok, guard.required, detail)
