"""Policies: what goes down next, and where pages go. One file each; found by name here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Final

from swapfs.errors import ConfigError
from swapfs.policy.base import Eyes, Facts, Policy
from swapfs.policy.leash import LINES_MAX, Leash, RunsOn

DEFAULT: Final = "second-chance"
BUILT_IN: Final = {
    "second-chance": "second_chance:SecondChance",
    "clock": "clock:Clock",
    "sieve": "sieve:Sieve",
    "lru": "lru:Lru",
    "s3-fifo": "s3fifo:S3Fifo",
    "2q": "twoq:TwoQ",
    "generations": "generations:Generations",
    "refault-distance": "refault_distance:RefaultDistance",
    "random": "random_choice:Random",
    "fifo": "fifo:Fifo",
}
"""Name -> module of this package, and class in it."""
_LINES_AT_START: Final = 100 * LINES_MAX
"""It may make what it needs then."""


class _NoEyes:
    def live_clusters(self) -> int:
        return 0

    def next_cluster(self) -> int | None:
        return None

    def cool(self, slot: int, count: int) -> list[int]:
        return []


def find(spec: str, where: str = "policy") -> type[Policy]:
    """Return the class that *spec* names: one of BUILT_IN, ``module:Class``, ``path.py:Class``.

    :raises ConfigError: there is none, it is no policy, or it cannot be made
    """
    if spec in BUILT_IN:
        module_name, _, class_name = BUILT_IN[spec].partition(":")
        module = importlib.import_module(f"{__name__}.{module_name}")
    else:
        source, _, class_name = spec.rpartition(":")
        if not source:
            raise ConfigError(where, f"no policy {spec!r}: {', '.join(BUILT_IN)}, or MODULE:CLASS")
        module = _load(source, where)
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, Policy):
        raise ConfigError(where, f"{spec}: {class_name} is no subclass of swapfs.policy.Policy")
    _try(found, spec, where)
    return found


def _load(source: str, where: str) -> ModuleType:
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        name = f"_swapfs_policy_{Path(source).stem}_{zlib.crc32(source.encode())}"
        if name in sys.modules:  # a later server reads no file (I9)
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(where, f"{source} cannot be loaded: {what}") from error
    return module


def _try(found: type[Policy], spec: str, where: str) -> None:
    """Make one, small, and ask it once: a mistake shall show before pages depend on it."""

    def once() -> None:
        next(iter(found(Facts(slots=1024, pool_pages=64), _NoEyes()).candidates(0)), None)

    try:
        Leash(_LINES_AT_START).run(once)
    except (Exception, SystemExit, RunsOn) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(where, f"{spec} cannot be used: {what}") from error


__all__ = ["BUILT_IN", "DEFAULT", "Eyes", "Facts", "Policy", "find"]
