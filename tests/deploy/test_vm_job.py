"""What goes into the VM: a job's folder, and what every job finds there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.vm.host import app, job

GUEST_MODULES = ["deploy.vm.guest.lab", "deploy.vm.guest.hog", "deploy.vm.jobs.demo"]


def test_a_job_keeps_the_places_of_its_sources(tmp_path: Path) -> None:
    made = job.make_job(tmp_path / "job", "tests.vm.jobs.swap", ["tests/vm/jobs"], {"kills": 3})
    assert made == tmp_path / "job"
    assert os.access(made / "run", os.X_OK)
    assert "python3 -m tests.vm.jobs.swap" in (made / "run").read_text()
    assert json.loads((made / "params.json").read_text()) == {"kills": 3}
    assert (made / "tests/vm/jobs/churn.py").is_file()
    assert not list(made.rglob("__pycache__"))


def test_a_job_of_ours_needs_no_sources(tmp_path: Path) -> None:
    made = job.make_job(tmp_path / "job", "deploy.vm.jobs.demo")
    assert sorted(path.name for path in made.iterdir()) == ["params.json", "run"]


@pytest.mark.parametrize("module", GUEST_MODULES)
def test_what_the_guest_gets_is_all_that_its_modules_need(tmp_path: Path, module: str) -> None:
    files = [file for name in app.OURS for file in app.source_files(app.CHECKOUT / name)]
    files += app.source_files(app.CHECKOUT / "swapfs")
    app.copy_files(files, app.CHECKOUT, tmp_path)
    code = f"import {module} as it; print(it.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path))
