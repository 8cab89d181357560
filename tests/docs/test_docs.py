"""The Markdown files: every key, command, option and guard is in them, and every link resolves."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import click
import pytest

from swapfs import host
from swapfs.command.main import cli
from swapfs.config import reference, values
from swapfs.config.option import Form, Option, Section, settle
from swapfs.config.options import BY_KEY, OPTIONS
from swapfs.errors import ConfigError
from swapfs.host.guards import Guard

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
CONFIGURATION = (DOCS / "configuration.md").read_text()
OPERATING = (DOCS / "operating.md").read_text()

CURE = "python -m swapfs.config.reference --write"
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^(?: {4}.*|```[\s\S]*?^```)$", re.MULTILINE)


def headings(text: str) -> list[str]:
    return HEADING.findall(CODE_BLOCK.sub("", text))


def anchor(heading: str) -> str:
    """Return what GitHub makes of *heading*: lower case, no punctuation, dashes for blanks."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(text: str) -> list[str]:
    return [link for link in LINK.findall(CODE_BLOCK.sub("", text)) if "://" not in link]


def options() -> list[str]:
    return sorted(
        {
            option
            for command in cli.commands.values()
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in [*parameter.opts, *parameter.secondary_opts]
            if option.removeprefix("--") not in BY_KEY
        }
    )


def resolves(page: Path, link: str) -> bool:
    path, _, fragment = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    return not fragment or fragment in map(anchor, headings(target.read_text()))


def test_reference_and_example_are_what_the_table_makes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert reference.main([]) == 0, capsys.readouterr().out + CURE


def test_a_page_that_differs_from_the_table_would_be_noticed() -> None:
    page = reference.REFERENCE.read_text()
    assert reference.with_reference(page) == page
    stale = page.replace("from 1M to 1T", "from 2M to 1T")
    assert stale != page
    assert reference.with_reference(stale) == page
    with pytest.raises(ValueError, match="no marks"):
        reference.with_reference(page.replace(reference.BEGIN, ""))


def test_the_option_in_the_contributors_page_works() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^    Option\($[\s\S]*?^    \),$", page, re.MULTILINE)
    names = {"Option": Option, "Section": Section, "values": values}
    (row,) = eval(f"({block})", names)
    assert "`latency`" in reference.reference((row,))
    assert '# latency = "adaptive"' in reference.example((row,))
    assert settle((row,), {"latency": ("--latency", "off")}, ROOT) == {"latency": "off"}
    with pytest.raises(ConfigError, match="--latency: 7 is none of adaptive, always, off"):
        settle((row,), {"latency": ("--latency", 7)}, ROOT)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_an_option_is_described_for_every_page_that_shows_it(option: Option) -> None:
    assert option.takes
    assert option.metavar or option.form is not Form.VALUE
    assert option.help
    assert not option.help.endswith(".")
    assert len(option.help) < 60
    first, *_ = option.paragraphs
    assert first.startswith(first[0].upper())
    assert not first.startswith(("|", "- "))
    assert "](" not in first, "a link means nothing in the example file"


@pytest.mark.parametrize("key", BY_KEY)
def test_every_key_has_its_section_and_its_row(key: str) -> None:
    sections = re.findall(r"`([^`]+)`", "\n".join(headings(CONFIGURATION)))
    assert key in sections
    assert re.search(rf"^\| \[`{key}`\]", CONFIGURATION, re.MULTILINE)


def test_nothing_is_described_twice() -> None:
    sections = headings(CONFIGURATION)
    assert sorted(set(sections)) == sorted(sections)
    rows = re.findall(r"^\| (\[`[a-z-]+`\])\(#", CONFIGURATION, re.MULTILINE)
    assert len(set(rows)) == len(rows) == len(BY_KEY)


@pytest.mark.parametrize("option", options())
def test_every_other_option_is_described(option: str) -> None:
    assert f"`{option}`" in CONFIGURATION or f"`{option} " in CONFIGURATION


@pytest.mark.parametrize("command", cli.commands)
def test_every_command_is_shown(command: str) -> None:
    shown = re.compile(rf"\bswapfs {command}\b")
    assert shown.search((ROOT / "README.md").read_text() + OPERATING)


GUARDS = {
    kind
    for found in pkgutil.iter_modules(host.__path__)
    for kind in vars(importlib.import_module(f"swapfs.host.{found.name}")).values()
    if isinstance(kind, type) and issubclass(kind, Guard) and hasattr(kind, "name")
}


def test_guards_are_found() -> None:
    assert len(GUARDS) == len({kind.name for kind in GUARDS}) == 11


@pytest.mark.parametrize("guard", sorted(kind.name for kind in GUARDS))
def test_every_guard_has_its_cure_and_its_meaning_as_a_metric(guard: str) -> None:
    row = re.compile(rf"^\| `{guard}` \|", re.MULTILINE)
    assert row.search(OPERATING)
    assert row.search((DOCS / "metrics.md").read_text())


@pytest.mark.parametrize("guard", sorted(kind.name for kind in GUARDS if not kind.required))
def test_every_guard_that_is_not_required_is_said_to_be_none(guard: str) -> None:
    (sentence,) = re.findall(r"[^.]* are shown but not required\.", OPERATING)
    assert f"`{guard}`" in sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [link for link in links(page.read_text()) if not resolves(page, link)] == []


def test_a_wrong_link_would_be_noticed() -> None:
    page = DOCS / "configuration.md"
    assert resolves(page, "configuration.md#pool")
    assert not resolves(page, "configuration.md#pools")
    assert not resolves(page, "nothing.md")
    assert len(PAGES) >= 6
    assert sum(len(links(page.read_text())) for page in PAGES) > 20
