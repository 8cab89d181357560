"""The Debian archive this machine itself uses, found at run time, and private apt calls on it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.vm.host.proc import VmError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEYRING = "/usr/share/keyrings/debian-archive-keyring"
_SUITES = frozenset(
    ["bookworm", "trixie", "forky", "duke", "sid", "stable", "oldstable", "testing", "unstable"]
)
_SCHEMES = ("http://", "https://", "file:", "copy:", "mirror+")


def host_release() -> str:
    """Return this machine's Debian code name, such as `bookworm`; VmError if it has none."""
    info = platform.freedesktop_os_release()
    if info.get("ID") != "debian" or not info.get("VERSION_CODENAME"):
        raise VmError(
            f"the image takes the host's Debian release, but this is "
            f"{info.get('PRETTY_NAME', 'unknown')}; build on Debian 12 or later (or in a container)"
        )
    return info["VERSION_CODENAME"]


def source_line(suite: str) -> str:
    """Return the sources.list line for `main` of `suite` in this machine's Debian archive."""
    keyring = next(
        (_KEYRING + end for end in (".gpg", ".pgp") if Path(_KEYRING + end).exists()), ""
    )
    if not keyring:
        raise VmError(f"no {_KEYRING}.gpg; install the package debian-archive-keyring")
    return f"deb [signed-by={keyring}] {_debian_mirror()} {suite} main"


def _debian_mirror() -> str:
    """Return the base URI of the Debian archive in this machine's apt sources.

    Third-party sources are passed over: only `main` of a known Debian suite counts, and its
    origin must be Debian where apt knows it (it does not before the first `apt-get update`).
    """
    fields = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)"
    lines = run(["apt-get", "indextargets", "--format", fields], "reading the apt sources")
    for line in lines.splitlines():
        uri, release, component, origin = (line.split("\t") + [""] * 4)[:4]
        if component != "main" or release.strip("/") not in _SUITES:
            continue
        if origin in ("", "Debian") and uri.startswith(_SCHEMES):
            return uri
    raise VmError(
        "no Debian archive (component main) among the apt sources of this machine; "
        "add one below /etc/apt/sources.list.d"
    )


def proxy_options() -> list[str]:
    """Return the machine's apt proxy as options of mmdebstrap, whose apt does not read /etc/apt."""
    dump = run(["apt-config", "dump", "Acquire::http::Proxy"], "reading the apt proxy")
    return [f"--aptopt={line}" for line in dump.splitlines() if '::Proxy "' in line]


@dataclass(frozen=True, slots=True)
class PrivateApt:
    """An apt with its own state in `work`: shows other suites without touching the machine's.

    The machine's own configuration (proxies, credentials) still applies.
    """

    work: Path
    suite: str
    log: Path

    def update(self) -> None:
        """Fetch the package index of the suite."""
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        (self.work / "status").touch()
        (self.work / "sources.list").write_text(source_line(self.suite) + "\n")
        run(["apt-get", *self._options(), "update"], f"fetching the {self.suite} index", self.log)

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that start with `prefix`."""
        command = ["apt-cache", *self._options(), "pkgnames", prefix]
        return run(command, f"listing packages of {self.suite}").split()

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        """Download `packages` to the folder `into`; return the .deb files."""
        apt = ["apt-get", *self._options(), "download", *packages]
        into.mkdir(parents=True, exist_ok=True)
        inside = ["env", "-C", str(into), *apt]  # apt-get download writes to where it stands
        run(inside, f"downloading {' '.join(packages)}", self.log)
        return sorted(into.glob("*.deb"))

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": self.work / "state",
            "Dir::State::status": self.work / "status",
            "Dir::Cache": self.work / "cache",
            "Dir::Etc::SourceList": self.work / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",  # the sandbox user may not enter our cache
        }
        return [arg for name, value in settings.items() for arg in ("-o", f"{name}={value}")]
