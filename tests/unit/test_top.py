"""`swapfs top`: what it shows, in 80 columns, and rates from one look to the next."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swapfs.command.main import main
from swapfs.command.status import Instance, State
from swapfs.command.top import View
from tests.unit.test_metrics import make_snapshot


def shown(view: View) -> str:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(view.render())
    return out.getvalue()


def instance(**counters: int) -> Instance:
    raw: dict[str, Any] = make_snapshot()
    raw["counters"] = {**raw["counters"], **counters}
    return Instance("swap-a", State.RUNNING, 0.1, raw)


def test_rates_are_the_difference_of_two_looks() -> None:
    view = View()
    view.look(instance(demoted_pages=1000), 10.0)
    assert "1000 pages" in shown(view)
    view.look(instance(demoted_pages=1500), 12.0)
    (line,) = [line for line in shown(view).splitlines() if line.startswith("demoted")]
    assert line.split()[1:] == ["1500", "pages", "250/s", "1000K/s"]


def test_it_fits_80_columns_and_says_what_is_wrong() -> None:
    found = instance()
    found.raw["degraded"] = ["guard mlock: not locked"]
    view = View()
    view.look(found, 1.0)
    text = shown(view)
    assert max(map(len, text.splitlines())) <= 80
    assert "degraded: guard mlock: not locked" in text
    assert "pool" in text


def test_once_prints_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"written_unix_s": time.time(), "status": make_snapshot()}
    (tmp_path / "swap-a.json").write_text(json.dumps(state))
    assert main(["top", "swap-a", "--once", "--runtime-dir", str(tmp_path)]) == 0
    assert "swap-a" in capsys.readouterr().out


def test_without_a_terminal_or_an_instance_it_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "none", "--runtime-dir", str(tmp_path), "--once"]) == 1
    assert "no instance none" in capsys.readouterr().err
    assert main(["top", "none", "--runtime-dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "terminal" in line
