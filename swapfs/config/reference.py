"""The table of options as pages: the reference in the docs, and the example file.

    python -m swapfs.config.reference --write

puts both where they belong in a checkout; without ``--write`` it says what differs. Other pages
(a manual page, a shell's completion) can be made in the same way: walk ``OPTIONS``.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from swapfs.config.option import Option, Section
from swapfs.config.options import OPTIONS

CHECKOUT: Final = Path(__file__).parents[2]
REFERENCE: Final = CHECKOUT / "docs" / "configuration.md"
EXAMPLE: Final = CHECKOUT / "deploy" / "swapfs.toml.example"
BEGIN: Final = "<!-- made from swapfs/config/options.py: begin -->"
END: Final = "<!-- end -->"
PAGE_COLUMNS: Final = 110
FILE_COLUMNS: Final = 96

EXAMPLE_HEAD: Final = """\
# /etc/swapfs/swapfs.toml: one instance of swapfs. Check it with
#     swapfs check-config --config /etc/swapfs/swapfs.toml
#
# Sizes are bytes, or text with K, M, G, T (powers of 1024; KiB, MiB, GiB, TiB are the same).
# The command line wins over swapfs.toml.d/*.toml beside this file, these over this file, and this
# file over the defaults. A line that is commented out shows the default. An unknown key is an
# error.
#
# With these values nothing that the kernel writes is ever refused, however badly it compresses.
"""

_WORD: Final = re.compile(r"`(?!true|false)([a-z-]+)`")
_LINK: Final = re.compile(r"\[([^]]+)\]\([^)]+\)")


def reference(options: Sequence[Option] = OPTIONS) -> str:
    """Return the reference of *options* as Markdown: a table, and a section for each."""
    lines = ["| Key | What it takes | Default |", "|---|---|---|"]
    lines += [
        f"| [`{option.key}`](#{option.key}) | {option.takes} | "
        f"{'required' if option.required else option.shown_default()} |"
        for option in options
    ]
    blocks = ["\n".join(lines)]
    for section in Section:
        chosen = [option for option in options if option.section is section]
        blocks += [f"## {section.value}"] if chosen else []
        for option in chosen:
            blocks.append("\n".join([f"### `{option.key}`", wrap(option.paragraphs[0])]))
            blocks += [wrap(paragraph) for paragraph in option.paragraphs[1:]]
    return "\n\n".join(blocks) + "\n"


def example(options: Sequence[Option] = OPTIONS) -> str:
    """Return an example file: each key with its first paragraph, defaults commented out."""
    return "\n".join([EXAMPLE_HEAD, *(_example_lines(option) for option in options)])


def wrap(paragraph: str, columns: int = PAGE_COLUMNS) -> str:
    """Return a Markdown *paragraph* filled to *columns*; tables and lists stay as they are."""
    if paragraph.startswith(("|", "- ")):
        return paragraph
    return textwrap.fill(paragraph, columns, break_long_words=False, break_on_hyphens=False)


def plain(paragraph: str) -> str:
    """Return *paragraph* without Markdown's marks; a word that stands as code gets quotes."""
    text = _WORD.sub(r'"\1"', _LINK.sub(r"\1", paragraph))
    return text.replace("`", "").replace("**", "")


def with_reference(page: str) -> str:
    """Return *page* with the reference between its marks.

    :raises ValueError: the marks are not there
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the page has no marks to put the reference between")
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def _example_lines(option: Option) -> str:
    comment = textwrap.fill(
        plain(option.paragraphs[0]),
        FILE_COLUMNS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_on_hyphens=False,
    )
    value = option.example
    if value is None:
        value = option.show(option.default, str)
    mark = "" if option.in_example else "# "
    return f"{comment}\n{mark}{option.key} = {json.dumps(value)}\n"


def _pages() -> Iterator[tuple[Path, Callable[[str], str]]]:
    yield REFERENCE, with_reference
    yield EXAMPLE, lambda old: example()


def main(words: Sequence[str]) -> int:
    """Write the pages, or say which are not what the table makes; return the exit code."""
    differ = 0
    for path, make in _pages():
        old = path.read_text()
        new = make(old)
        if new == old:
            continue
        if "--write" in words:
            path.write_text(new)
        differ += 1
        print(f"{path.relative_to(CHECKOUT)}: {'written' if '--write' in words else 'differs'}")
    return 1 if differ and "--write" not in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
