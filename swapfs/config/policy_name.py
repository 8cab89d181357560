"""The value of ``policy``: a name, or where a class of the user's own is.

A module is turned into the path of its file at once: the daemon runs in another directory. That
there is a policy is checked by who uses it (``swapfs.policy.find``).
"""

from __future__ import annotations

import importlib.machinery
import os

from swapfs.config import values
from swapfs.errors import ConfigError


def parse_policy(where: str, value: object) -> str:
    """Return the name, or ``PATH:CLASS`` with an absolute path.

    :raises ConfigError: there is no such module
    """
    text = values.parse_text(where, value)
    source, colon, class_name = text.rpartition(":")
    if not colon:
        return text
    if not class_name.isidentifier():
        raise ConfigError(where, f"{text!r}: write MODULE:CLASS or PATH.py:CLASS")
    if source.endswith(".py"):
        path = os.path.abspath(source)
        if not os.path.isfile(path):
            raise ConfigError(where, f"there is no file {path}")
    else:
        path = _file_of(where, source)
    return f"{path}:{class_name}"


def _file_of(where: str, module: str) -> str:
    name, _, rest = module.partition(".")
    finder = importlib.machinery.PathFinder
    found = finder.find_spec(name, [os.getcwd()]) or finder.find_spec(name)
    while found is not None and rest:
        name, _, rest = rest.partition(".")
        places = found.submodule_search_locations
        found = finder.find_spec(name, places) if places else None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise ConfigError(where, f"there is no module {module} here: {os.getcwd()}")
    return os.path.abspath(found.origin)
