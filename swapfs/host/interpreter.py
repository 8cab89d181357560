"""Starting Python programs of ours so that they run the code that we run, whatever lies about.

``python -m`` looks in the working directory first, and a daemon's is ``/``: a directory there
named like a package of ours would be taken for it. The environment may name more such places,
and have the interpreter keep memory, trace or print while swap waits.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_KEPT: Final = frozenset(
    {
        "PYTHONHOME",
        "PYTHONPLATLIBDIR",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        "PYTHONUTF8",
        "PYTHONNOUSERSITE",
        "PYTHONFAULTHANDLER",
        "PYTHONMALLOC",
    }
)
"""Variables of the interpreter that change nothing of what runs, or where it comes from."""


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs *module* with *arguments* in another process."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return our environment for such a process: as it is, but for what misleads the interpreter.

    :param more: variables to set
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") or name in _KEPT
    }
    # An entry that is empty or not absolute means another place in another working directory.
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [place for place in places if os.path.isabs(place)]
    if absolute:
        kept["PYTHONPATH"] = os.pathsep.join(absolute)
    return {**kept, "PYTHONSAFEPATH": "1", **more}
