"""Where part "swap" swaps: what it has to say of itself, and how a job runs there.

Knows no place: those are `in_vm.py` and `native.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PlaceError(Exception):
    """A job did not get to its end, or did not hold; the message says what, in one line."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine has, and how much each swap in it holds."""

    size_mib: int
    """Of every swap; more than twice what is swapped, or the kernel frees slots early."""
    timeout_s: float
    disks_mib: tuple[int, ...] = ()
    """Of a VM, as is *memory_mib*."""
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much the helper swaps."""

    data_mib: int
    limit_mib: int
    """What zswap compresses counts against it, so that it must hold all the data compressed."""
    machine: Machine


@dataclass(frozen=True, slots=True)
class Programs:
    """What the real programs get.

    *limits_mib* by program: below what each wants, but enough for all of it compressed, as zswap's
    pool counts against the limit, and a program whose data does not fit is killed there.
    """

    limits_mib: Mapping[str, int]
    params: Mapping[str, Any]
    machine: Machine
    rounds_max: int
    packages: tuple[str, ...] = ()
    """Debian packages that a VM needs for them."""


Run = Callable[[Path, Machine, tuple[str, ...]], dict[str, Any]]
"""Runs a job folder to its end and returns its figures; PlaceError unless every step held."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place: *what* it is, the *note* for its figures, *params* that its jobs need."""

    what: str
    note: str
    folder: Path
    sizes: Sizes
    params: Mapping[str, Any]
    run: Run
    programs: Callable[[], Programs | str]
    """Makes ready for the programs; a string says why none can run here."""
