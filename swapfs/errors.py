"""Every exception that swapfs raises on purpose.

``fs.py`` alone turns them into errno values; the command line alone turns them into exit
codes. The base classes are never raised themselves.
"""

from __future__ import annotations


class SwapfsError(Exception):
    """Anything that swapfs raises on purpose."""


class UsageError(SwapfsError):
    """The user's input is wrong: one line (what, where, what to do), exit code 2."""


class ConfigError(UsageError):
    """A configuration value is wrong.

    :param where: the option or ``file: key`` that holds the value
    :param problem: what is wrong with it and what to write instead
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class OperationError(SwapfsError):
    """Something outside refused (a mount, a loop device, swapon): one line, exit code 1."""


class AddressAbsent(OperationError):
    """This machine has no such address, as before its network is up; it may come."""


class Refused(OperationError):
    """A server was asked for something, and said no: to ask again is of no use."""


class GuardError(OperationError):
    """A guard against deadlock could not be set or did not hold (I8)."""


class TierError(SwapfsError):
    """A tier could not do what was asked."""


class TierFull(TierError):
    """The tier has no room for the blob; nothing was stored."""


class OverQuota(SwapfsError):
    """A page would take its export above its quota; nothing was stored."""


class TierIOError(TierError):
    """The medium failed: read or write error, short transfer, or no answer in time."""


class TierNoSpace(TierIOError):
    """What the tier is on has no room, or sets a limit: the write failed, and nothing is broken."""


class BlobCorrupt(TierError):
    """A blob's bytes do not match their checksum or their slot (I4); never retried."""


class RegionError(SwapfsError):
    """The shared region is not one that this version can use."""
