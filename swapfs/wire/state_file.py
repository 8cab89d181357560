"""NAME.json: the last status of an instance, for those who may not use its control socket.

The server leaves it every second, and what ends leaves the last. It is only ever a hint.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from swapfs.host import proc

if TYPE_CHECKING:
    from pathlib import Path


def path(runtime_dir: Path, name: str) -> Path:
    """Return where the status of instance *name* is left."""
    return runtime_dir / f"{name}.json"


def read(runtime_dir: Path, name: str) -> tuple[float, dict[str, Any]] | None:
    """Return how old *name*'s last snapshot is, in seconds, and the snapshot.

    By the clock that nobody sets, if it is of this boot. None if there is none or it is not a
    snapshot: the file is only ever a hint.
    """
    try:
        content = json.loads(path(runtime_dir, name).read_bytes())
        status, boot = content["status"], content.get("boot")
        if boot is not None and boot == proc.boot():
            age_s = time.monotonic() - float(content["written_monotonic_s"])
        else:
            age_s = time.time() - float(content["written_unix_s"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (max(0.0, age_s), status) if isinstance(status, dict) else None


def write(runtime_dir: Path, name: str, status: dict[str, Any]) -> None:
    """Replace the status snapshot of instance *name*; everybody may read it.

    :raises OSError: it cannot be written; the one before is still there
    """
    target = path(runtime_dir, name)
    scratch = target.with_suffix(".tmp")
    written = {
        "written_unix_s": time.time(),
        "written_monotonic_s": time.monotonic(),
        "boot": proc.boot(),
    }
    scratch.write_text(json.dumps({**written, "status": status}))
    scratch.chmod(0o644)
    scratch.rename(target)
