"""Modules that others import and a daemon never uses: present by name, and read only when touched.

Monitor and server lock everything they have in memory, and the server has a copy of the monitor's.
trio imports `ssl` and with it OpenSSL, and a dozen modules more that only its own extras use: 5 MiB
of libraries and 6 of heap, twice. `defer` puts a module of the same name in their place, which
becomes the real one at the first look at an attribute.

That reads a file, so whatever a server needs after it has begun must not be deferred (I9):
tests/structure/test_monitor_imports.py lists what is loaded, tests/fuse/test_memory.py looks that
none of it comes while a server serves, dies and is replaced.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, Final

UNUSED: Final = (
    "bz2",
    "difflib",
    "hashlib",
    "hmac",
    "html",
    "idna",
    "locale",
    "lzma",
    "shutil",
    "ssl",
    "tempfile",
    "tomllib",
    "unicodedata",
)
"""What trio, ctypes and our own configuration import for what no monitor or server does."""


class Deferred(ModuleType):
    """A module that is not read yet."""

    def __getattr__(self, name: str) -> Any:
        """Become the real module, and return its attribute *name*."""
        if name.startswith("__"):  # the import system looks whether a module has them
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(names: tuple[str, ...] = UNUSED) -> None:
    """Put off reading those of *names* that are not there yet; before anybody imports them.

    A module that this Python does not have is left alone.
    """
    for name in names:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        module.__class__ = Deferred
        sys.modules[name] = module


def deferred() -> list[str]:
    """Return the names of the modules that are still unread."""
    return sorted(name for name, module in sys.modules.items() if type(module) is Deferred)
