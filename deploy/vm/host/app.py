"""The swapfs disk: the built wheel, what it depends on, and the guest's scripts.

The guest's Python reads it through a .pth file (image.py), so nothing is installed by the guest
and a change in swapfs costs one wheel and one small image.
"""

from __future__ import annotations

import configparser
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.vm.host.cache import digest, digest_files
from deploy.vm.host.ext4 import make_ext4
from deploy.vm.host.mirror import host_release
from deploy.vm.host.proc import VmError, run, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deploy.vm.host.cache import Cache

CHECKOUT = Path(__file__).resolve().parents[3]

EXTRAS = ("valkey",)
"""What the guest has beyond what swapfs always needs, for a tier in far memory."""
_RECIPE = "3"  # goes into the key: bump it when the code below makes something else
OURS = ("deploy/__init__.py", "deploy/vm/__init__.py", "deploy/vm/guest", "deploy/vm/jobs")
"""What the guest has of this package, under the same names as here."""
_SKIP = ("__pycache__", ".egg-info", ".mypy_cache", ".ruff_cache")
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


def make_app(project: Path, guest_python: str, cache: Cache) -> Path:
    """Return the ext4 image with the swapfs of the checkout `project`; makes it if stale.

    `guest_python` is the guest's `3.minor`; VmError if the host's Python builds for another.
    """
    python, version = _build_python(project)
    if not version.startswith(guest_python + "."):
        raise VmError(
            f"{python} is Python {version}, but the guest (Debian {host_release()}) has "
            f"{guest_python}; make {project}/.venv with python{guest_python}"
        )
    wheels = _dependency_wheels(project, python, version, cache)

    def build(into: Path) -> None:
        say(f"building the wheel of {project} ...")
        built = _project_wheel(project, python, wheels, into / "work", cache)
        tree = into / "tree"
        pip_install = ["install", "--no-index", "--find-links", str(wheels)]
        with_extras = f"{built}[{','.join(EXTRAS)}]"
        run(
            [python, *_PIP, *pip_install, "--target", str(tree / "site"), with_extras],
            f"installing {built.name}",
            cache.logs / "app-install.log",
        )
        _write_scripts(tree / "site", tree / "bin")
        _add_ours(tree)
        say("making app.img ...")
        make_ext4(tree, into / "app.img")
        shutil.rmtree(tree)
        shutil.rmtree(into / "work")

    guest = digest_files(_our_files(), CHECKOUT)
    sources = digest_files(_project_files(project), project)
    return cache.entry("app", digest(_RECIPE, wheels.name, guest, sources), build) / "app.img"


def make_guest_only(cache: Cache) -> Path:
    """Return an image like that of `make_app`, but without swapfs, which the job must bring."""

    def build(into: Path) -> None:
        _add_ours(into / "tree")
        make_ext4(into / "tree", into / "app.img")
        shutil.rmtree(into / "tree")

    key = digest(_RECIPE, digest_files(_our_files(), CHECKOUT))
    return cache.entry("guest", key, build) / "app.img"


def _add_ours(tree: Path) -> None:
    copy_files(_our_files(), CHECKOUT, tree / "site")
    (tree / "guest").symlink_to("site/deploy/vm/guest")  # where the root image looks for init


def _build_python(project: Path) -> tuple[str, str]:
    """Return the Python to build with, and its version; the checkout's own comes first."""
    code = "import platform, pip; print(platform.python_version())"
    for python in (str(project / ".venv/bin/python"), sys.executable):
        if Path(python).exists():
            try:
                return python, run([python, "-c", code], "asking for the version").strip()
            except VmError:
                continue
    raise VmError(f"no Python with pip: neither {project}/.venv/bin/python nor {sys.executable}")


def _dependency_wheels(project: Path, python: str, version: str, cache: Cache) -> Path:
    path = project / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text())
        project_table = content["project"]
        runtime = [str(item) for item in project_table.get("dependencies", [])]
        extras = project_table.get("optional-dependencies", {})
        runtime += [str(item) for extra in EXTRAS for item in extras.get(extra, [])]
        wanted = runtime + [str(item) for item in content["build-system"]["requires"]]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise VmError(f"cannot read the dependencies in {path}: {error!r}") from error

    def build(into: Path) -> None:
        say(f"building {len(wanted)} dependency wheels (pyfuse3 is compiled) ...")
        command = [python, *_PIP, "wheel", "--wheel-dir", str(into), *wanted]
        run(command, "building the dependency wheels", cache.logs / "wheels.log")

    return cache.entry("wheels", digest(version, host_release(), *wanted), build)


def _project_wheel(project: Path, python: str, wheels: Path, work: Path, cache: Cache) -> Path:
    """Build in a copy, so that no build/ or egg-info shows up in the checkout."""
    copy = work / "project"
    copy_files(_project_files(project), project, copy)
    run(
        [
            *(python, *_PIP, "wheel", "--no-index", "--find-links", str(wheels), "--no-deps"),
            *("--wheel-dir", str(work / "dist"), str(copy)),
        ],
        f"building the wheel of {project}",
        cache.logs / "app-wheel.log",
    )
    return next((work / "dist").glob("*.whl"))


def _our_files() -> list[Path]:
    return [file for name in OURS for file in source_files(CHECKOUT / name)]


def _project_files(project: Path) -> list[Path]:
    names = ("pyproject.toml", "README.md", "MANIFEST.in", "setup.py")
    top = [project / name for name in names]
    top += sorted([*project.glob("LICENSE*"), *project.glob("deploy/setup/*.py")])
    return [file for file in top if file.is_file()] + list(source_files(project / "swapfs"))


def source_files(path: Path) -> Iterator[Path]:
    """Yield every file in the folder `path`, or that file, but for what a build leaves."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix not in (".pyc", ".so", ".o"):
            inside = file.relative_to(path).parts
            if not any(part.endswith(_SKIP) for part in inside):
                yield file


def copy_files(files: Iterable[Path], base: Path, into: Path) -> None:
    """Copy `files` to the same places below `into` that they have below `base`."""
    for file in files:
        target = into / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def _write_scripts(site: Path, folder: Path) -> None:
    """Write the console scripts anew: pip's name the host's Python, which the guest lacks."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    folder.mkdir()
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(site.glob("swapfs-*.dist-info/entry_points.txt"))
    for name, place in parser["console_scripts"].items():
        module, _, function = place.partition(":")
        script = folder / name
        script.write_text(
            f"#!/usr/bin/python3\nimport sys\n\nfrom {module} import {function}\n\n"
            f"sys.exit({function}())\n"
        )
        script.chmod(0o755)
