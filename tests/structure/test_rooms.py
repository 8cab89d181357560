"""Who may import whom across swapfs, deploy and tests, and what each may want from outside."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.structure.sources import (
    OURS,
    ROOT,
    imports_of,
    is_ours,
    module_of,
    name_of,
    python_files,
    tree_of,
)

FILES = python_files(*OURS)
GUEST = ("deploy.vm.guest", "swapfs")

# The longest key that a module's name begins with holds for it. What runs in the VM (guest, jobs)
# never imports what runs on the host, and the other way round.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "swapfs": ("swapfs",),
    "deploy": (),
    "deploy.bare": ("deploy.vm.host",),
    "deploy.deb": ("deploy.vm.host",),
    "deploy.setup": ("deploy.setup",),
    "deploy.vm.__main__": ("deploy.vm.host",),
    "deploy.vm.host": ("deploy.vm.host",),
    "deploy.vm.guest": GUEST,
    "deploy.vm.jobs": ("deploy.vm.jobs", *GUEST),
    "tests": (),
    "tests.structure": ("tests.structure", "tests.mutants"),
    "tests.unit": ("tests.unit", "swapfs"),
    "tests.property": ("tests.property", "swapfs"),
    "tests.mutants": ("tests.mutants",),
    "tests.fuse": ("tests.fuse", "swapfs"),
    "tests.docs": ("swapfs",),
    "tests.deploy": ("deploy.deb", "deploy.vm.host", "swapfs"),
    "tests.deploy.test_hog": GUEST,
    "tests.vm": ("tests.vm", "deploy.vm.host"),
    "tests.vm.picture": ("tests.vm", "tests.fuse.browser", "deploy.vm.host"),
    "tests.systemd": ("tests.systemd", "tests.vm.running", "deploy.deb", "deploy.vm.host"),
    "tests.systemd.jobs": ("tests.systemd.jobs", *GUEST),
    "tests.vm.test_swap": ("tests.vm", "swapfs.policy"),
    "tests.vm.test_lab": ("tests.lab", "swapfs.lab"),
    "tests.vm.jobs": ("tests.vm.jobs", *GUEST),
    "tests.bench": ("tests.bench", "deploy.vm.host", "swapfs"),
    "tests.lab": ("tests.lab", "tests.bench", "deploy.vm.host", "swapfs"),
    "tests.lab.jobs": ("tests.lab.jobs", "tests.bench.jobs", *GUEST),
    "tests.bench.jobs": ("tests.bench.jobs", "tests.bench.names", *GUEST),
}
NEVER: dict[str, tuple[str, ...]] = {
    "tests.bench": ("tests.bench.tests",),
    "tests.vm": ("tests.vm.jobs",),
    "tests.lab": ("tests.lab.jobs", "tests.lab.tests"),
    "tests.systemd": ("tests.systemd.jobs",),
}
STANDARD_LIBRARY_ONLY = (
    *("deploy", "tests.vm.jobs", "tests.systemd.jobs", "tests.bench.jobs", "tests.lab.jobs"),
)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def rule_for(module: str) -> str:
    return max((key for key in MAY_IMPORT if within(module, key)), key=len)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_stay_within_what_a_room_may_know(path: Path) -> None:
    rule = rule_for(module_of(path))
    for imported in filter(is_ours, imports_of(path)):
        allowed = any(within(imported, package) for package in MAY_IMPORT[rule])
        never = any(within(imported, package) for package in NEVER.get(rule, ()))
        assert allowed, f"{rule} imports {imported}"
        assert not never, f"{rule} imports {imported}"


def test_a_wrong_import_would_be_noticed() -> None:
    assert rule_for("deploy.vm.host.app") == "deploy.vm.host"
    assert rule_for("tests.bench.jobs.swap") == "tests.bench.jobs"
    assert rule_for("deploy.vm") == "deploy"
    assert within("swapfs.tiers", "swapfs")
    assert not within("swapfsx", "swapfs")
    assert "swapfs.units" in imports_of(ROOT / "swapfs/vlayer/swap_table.py")


def test_rules_name_only_what_exists() -> None:
    there = {module_of(path) for path in FILES}
    named = {
        *MAY_IMPORT,
        *(name for names in (*MAY_IMPORT.values(), *NEVER.values()) for name in names),
    }
    assert named <= there


MAY_WANT_THE_LAB = ("swapfs.lab.replay", "swapfs.command.top")
"""They say so in one line where it is not there."""


def distributions(*, lab: bool) -> set[str]:
    """Return the import names of what pyproject.toml says that swapfs depends on, or a tier may.

    :param lab: with what only the lab needs, which is not there in every installation
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["valkey"], *(extras["lab"] if lab else ())]
    return {re.split(r"[^\w-]", item)[0].replace("-", "_") for item in wanted}


@pytest.mark.parametrize("path", python_files("swapfs"), ids=name_of)
def test_swapfs_imports_only_what_it_depends_on(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports_of(path, types_too=False)}
    lab = module_of(path) in MAY_WANT_THE_LAB
    assert outside - sys.stdlib_module_names - distributions(lab=lab) <= {"swapfs"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_drives_the_vm_needs_nothing_installed(path: Path) -> None:
    module = module_of(path)
    if any(within(module, package) for package in STANDARD_LIBRARY_ONLY):
        outside = {name.split(".")[0] for name in imports_of(path) if not is_ours(name)}
        if within(module, "deploy.debian") or within(module, "deploy.setup"):  # build with it
            outside -= {"setuptools"}
        assert outside <= sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_bends_the_search_path(path: Path) -> None:
    """Modules are found from the root of the checkout, and nowhere else."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path", f"line {node.lineno}"
    assert "mypy_path" not in (ROOT / "pyproject.toml").read_text()
