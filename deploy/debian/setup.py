"""Builds what pyproject.toml describes, with the setuptools of Debian 12 too.

That one (66) refuses [[tool.setuptools.ext-modules]]. ``deploy.deb`` puts this file on top of the
build tree and pyproject.toml beside its debian/, where setuptools does not look.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
PYPROJECT = tomllib.loads((HERE / "debian" / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TOOL = PYPROJECT["tool"]["setuptools"]


def version() -> str:
    """Return the version, which stands in swapfs/__init__.py."""
    for node in ast.parse((HERE / "swapfs" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit("swapfs/__init__.py has no __version__")


setup(
    name=PROJECT["name"],
    version=version(),
    description=PROJECT["description"],
    python_requires=PROJECT["requires-python"],
    install_requires=PROJECT["dependencies"],
    packages=TOOL["packages"],
    package_data=TOOL["package-data"],
    ext_modules=[
        Extension(**{key.replace("-", "_"): value for key, value in row.items()})
        for row in TOOL["ext-modules"]
    ],
)
