"""Manual pages and completion are made from the command line and the table of options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swapfs.command import manual
from swapfs.command.main import cli
from swapfs.config.options import OPTIONS

MACROS = {"TH", "SH", "SS", "PP", "TP", "IP", "RS", "RE", "EX", "EE", "B"}
ESCAPES = re.compile(r"\\(?:e|-|&|f[BIR]|\((?:ti|ha|ga|bu))")
PAGES = {8: manual.command_page(cli), 5: manual.options_page()}


@pytest.mark.parametrize("section", PAGES)
def test_nothing_in_a_page_is_taken_for_roff_by_accident(section: int) -> None:
    for line in PAGES[section].splitlines():
        if line.startswith((".", "'")):
            assert line.split()[0].removeprefix(".") in MACROS
        assert "\\" not in ESCAPES.sub("", line)


@pytest.mark.parametrize(
    ("markdown", "roff"),
    [
        ("`a-b` and **c** [d](e.md)", r"\fBa\-b\fR and \fBc\fR d"),
        (".hidden\nand 'quoted'", r"\&.hidden and 'quoted'"),
        ("'quoted' a\\b ~", r"\&'quoted' a\eb \(ti"),
    ],
)
def test_markdown_becomes_roff(markdown: str, roff: str) -> None:
    assert manual.text(markdown) == roff


def test_every_command_and_every_option_is_in_the_pages() -> None:
    for name in cli.commands:
        assert f".SS swapfs {manual.escaped(name)}" in PAGES[8]
    assert ".SS swapfs tier drain TIER [NAME]" in PAGES[8]
    for option in OPTIONS:
        assert rf"\fB\-\-{manual.escaped(option.key)}" in PAGES[8]
        assert rf"\fB{manual.escaped(option.key)}\fR = " in PAGES[5]


def test_the_module_writes_what_a_package_installs(tmp_path: Path) -> None:
    assert manual.main([str(tmp_path)]) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"swapfs.8", "swapfs.toml.5", "swapfs", "_swapfs", "swapfs.fish"}
    subprocess.run(("bash", "-n", tmp_path / "swapfs"), check=True)
    assert (tmp_path / "_swapfs").read_text().startswith("#compdef swapfs")


def completed(*words: str) -> list[str]:
    """Return what bash would be offered for the last of *words*."""
    done = subprocess.run(
        (sys.executable, "-m", "swapfs"),
        env={
            **os.environ,
            manual.COMPLETE: "bash_complete",
            "COMP_WORDS": " ".join(["swapfs", *words]),
            "COMP_CWORD": str(len(words)),
        },
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout.split()


def test_words_names_and_paths_are_completed(tmp_path: Path) -> None:
    (tmp_path / "one.json").touch()
    (tmp_path / "two.json").touch()
    assert completed("do") == ["plain,doctor", "plain,down"]
    assert completed("up", "--file-direct-io", "o") == ["plain,on", "plain,off"]
    assert completed("status", "--runtime-dir", str(tmp_path), "o") == ["plain,one"]
    assert completed("down", "--runtime-dir", str(tmp_path), "t") == ["plain,two"]
    assert completed("up", "--file", "/va") == ["file,/va"]
    assert completed("up", "--config", "/et") == ["file,/et"]
