"""Compiles the extensions of a copy of the tree, as pyproject.toml describes them."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, Final

_SUFFIX: Final[str] = sysconfig.get_config_var("EXT_SUFFIX")
_INCLUDE: Final = sysconfig.get_path("include")


def build_extensions(tree: Path, *, only: Path) -> None:
    """Compile those extensions of *tree* that are made from the file *only*.

    :raises subprocess.CalledProcessError: the compiler refused
    """
    described = tomllib.loads((tree / "pyproject.toml").read_text())
    for module in described["tool"]["setuptools"]["ext-modules"]:
        parts = {tree / name for name in (*module["sources"], *module.get("depends", ()))}
        if only in parts:
            _build(tree, module)


def _build(tree: Path, module: dict[str, Any]) -> None:
    target = tree / (module["name"].replace(".", "/") + _SUFFIX)
    includes = [_INCLUDE, *module.get("include-dirs", ())]
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-DNDEBUG"]
    command += module.get("extra-compile-args", ())
    command += [f"-I{include}" for include in includes]
    command += [*module["sources"], "-o", f"{target}.new"]
    command += [f"-l{library}" for library in module.get("libraries", ())]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    os.replace(f"{target}.new", target)
