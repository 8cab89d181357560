"""Where large things live: content-addressed, complete or absent, outside of the checkout.

An entry is a directory named `<kind>-<hash of everything it was made from>`. It is built under
a temporary name and renamed when complete, so a build that was killed leaves nothing that could
be mistaken for an entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.vm.host.proc import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_KEEP = 3
_PARTIAL = ".partial-"


def cache_dir() -> Path:
    """Return $SWAPFS_CACHE, else $XDG_CACHE_HOME/swapfs, else ~/.cache/swapfs, plus `vm`."""
    if own := os.environ.get("SWAPFS_CACHE"):
        return Path(own).absolute() / "vm"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "swapfs" / "vm"


def digest(*parts: str | bytes) -> str:
    """Return a short hash of `parts`; their borders count."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:16]


def digest_files(files: Iterable[Path], base: Path) -> str:
    """Return a hash of the names relative to `base`, the modes and the contents of `files`."""
    parts: list[str | bytes] = []
    for file in sorted(files):
        executable = bool(file.stat().st_mode & 0o100)
        parts += [str(file.relative_to(base)), str(executable), file.read_bytes()]
    return digest(*parts)


def remove_tree(path: Path) -> None:
    """Delete `path`; never crosses into a file system that something mounted below it."""
    subprocess.run(
        ["rm", "-rf", "--one-file-system", "--", str(path)], check=False, capture_output=True
    )


class Cache:
    """The cache directory; make entries only while holding `locked()`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_dir()
        self.logs = self.root / "logs"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache's lock, so that two builds don't make the same entry twice."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another build that holds {self.root / 'lock'}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def entry(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """Return the entry for `kind` and `key`, calling `build(empty directory)` if absent.

        Older entries of the same kind are deleted, but for the last few used.
        """
        final = self.root / f"{kind}-{key}"
        if not final.is_dir():
            for leftover in self.root.glob(f"*{_PARTIAL}*"):
                remove_tree(leftover)  # we hold the lock: whoever made it is dead
            partial = self.root / f"{kind}-{key}{_PARTIAL}{os.getpid()}"
            partial.mkdir()
            try:
                build(partial)
                partial.rename(final)
            finally:
                if partial.exists():
                    remove_tree(partial)
        os.utime(final)
        self._forget_old(kind)
        return final

    def _forget_old(self, kind: str) -> None:
        same = [p for p in self.root.glob(f"{kind}-*") if len(p.name) == len(kind) + 17]
        same.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        for old in same[_KEEP:]:
            remove_tree(old)
