"""Builds swapfs with setuptools, if the machine has what its C sources need; says what it lacks.

``pip``, ``pipx`` and ``uv`` build through this (pyproject.toml). A compiler that misses a header
says so in a hundred lines, and not which package has it.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

from deploy.setup.build_needs import check

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def prepare_metadata_for_build_wheel(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does; it is what comes first, before any dependency is built."""
    check()
    return str(build_meta.prepare_metadata_for_build_wheel(*args, **kwargs))


def prepare_metadata_for_build_editable(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does."""
    check()
    return str(build_meta.prepare_metadata_for_build_editable(*args, **kwargs))


def build_wheel(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does."""
    check()
    return str(build_meta.build_wheel(*args, **kwargs))


def build_editable(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does."""
    check()
    return str(build_meta.build_editable(*args, **kwargs))
