"""The manual pages: swapfs(8) from the command line, swapfs.toml(5) from the table of options.

    python -m swapfs.command.manual DIRECTORY

writes both there, in the macros of man(7), and what bash, zsh and fish read to complete a command
line. Descriptions are Markdown; as much of it as the table of options uses is understood: `code`,
**bold**, links, lists and tables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from swapfs import __version__
from swapfs.config.exports import EXPORT_OPTIONS
from swapfs.config.option import Form, Option, Section
from swapfs.config.options import OPTIONS
from swapfs.config.paths import CONFIG_DIR, VENDOR_DIR
from swapfs.config.tiers import TIER_OPTIONS

COMPLETE: Final = "_SWAPFS_COMPLETE"
"""By which click knows that a shell asks; made from the name of the program."""
SCRIPTS: Final = {"bash": "swapfs", "zsh": "_swapfs", "fish": "swapfs.fish"}
"""The names under which the shells look for them."""
_MARKED: Final = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^]]+)\]\([^)]+\)")

_FILES: Final = (
    (f"{CONFIG_DIR}/NAME.toml", "The configuration of an instance, see swapfs.toml(5)."),
    ("/run/swapfs/NAME.log", "What the daemon had to say; root only."),
    ("/run/swapfs/NAME.json", "The last status, for everyone."),
    ("/var/lib/swapfs", "A place for backing files."),
)
_EXIT: Final = (
    ("0", "Done."),
    ("1", "An operation failed."),
    ("2", "Wrong usage or configuration."),
    ("3, 4", "Of doctor: a warning; something severe."),
)
_LAYERS: Final = (
    f"A configuration is a TOML file, {CONFIG_DIR}/NAME.toml, and its drop-ins, NAME.toml.d/*.toml "
    "beside it, which are read after it in the order of their names. Of a key the last file "
    "counts; the command line overrules all. `swapfs check-config --config FILE` checks it, and "
    "prints of each value where it is from. A mistake is one line that names file and key.",
    f"Drop-ins of packages are in {VENDOR_DIR}/NAME.toml.d/. They are sorted in between; one of "
    f"the same name in {CONFIG_DIR}/NAME.toml.d/ is read instead, and a link to /dev/null there "
    f"takes it back. Where NAME.toml is missing {VENDOR_DIR}/NAME.toml stands in for it, if there "
    "is one.",
    "Sizes are bytes, or text with K, M, G, T, which are powers of 1024. Only `size` and `pool` "
    "must be given.",
)


def command_page(cli: click.Group) -> str:
    """Return swapfs(8)."""
    context = click.Context(cli, info_name="swapfs")
    lines = [
        *_head("swapfs", 8, "swap on compressed memory and a backing file, in userspace"),
        *(".SH SYNOPSIS", ".B swapfs", r"\fICOMMAND\fR [\fIOPTION\fR ...] [\fINAME\fR]"),
        *(".SH DESCRIPTION", text(cli.help or "")),
        text(
            "swapfs mounts one file, and the kernel swaps on it through a loop device. Pages are "
            "compressed into a pool of memory of a fixed size; cold ones move down to a file or "
            "disk. Without a NAME a command means the instance `swapfs`, or all."
        ),
        ".SH COMMANDS",
        *_commands(cli, context),
        ".SH OPTIONS OF AN INSTANCE",
        text("For `up`, `mount` and `check-config`; each is a key of swapfs.toml(5) too."),
        *(line for option in OPTIONS for line in _instance_option(option)),
        *(".SH EXIT STATUS", *_tagged(_EXIT)),
        *(".SH FILES", *_tagged(_FILES)),
        *_see("swapfs.toml(5), swapon(8), losetup(8), systemd.unit(5)"),
    ]
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """Return swapfs.toml(5)."""
    lines = [*_head("swapfs.toml", 5, "configuration of swapfs")]
    lines += [".SH DESCRIPTION"]
    for paragraph in _LAYERS:
        lines += [".PP", text(paragraph)]
    for section in Section:
        chosen = [option for option in OPTIONS if option.section is section]
        lines += [f".SH {escaped(section.value.upper())}"] if chosen else []
        lines += [line for option in chosen for line in _key(option)]
    lines += [".SH MORE TIERS", text("Each `[[tier]]` table is a tier below the pool.")]
    lines += [line for option in TIER_OPTIONS for line in _key(option)]
    lines += [".SH MORE SWAP FILES", text("Each `[[export]]` table is a file of the mount.")]
    lines += [line for option in EXPORT_OPTIONS for line in _key(option)]
    lines += [".SH EXAMPLE", ".EX", *(_example(option) for option in OPTIONS if option.in_example)]
    lines += [".EE", *_see("swapfs(8), tmpfiles.d(5)")]
    return "\n".join(lines) + "\n"


def escaped(plain: str) -> str:
    """Return *plain* so that roff prints it as it is."""
    shown = plain.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti")
    shown = shown.replace("^", r"\(ha").replace("`", r"\(ga")
    return rf"\&{shown}" if shown.startswith((".", "'")) else shown


def text(markdown: str) -> str:
    """Return a paragraph of *markdown* as roff, one line."""
    parts, end = [], 0
    one_line = " ".join(markdown.split())
    for found in _MARKED.finditer(one_line):
        parts.append(escaped(one_line[end : found.start()]))
        bold = found[1] or found[2]
        parts.append(rf"\fB{escaped(bold)}\fR" if bold else escaped(found[3]))
        end = found.end()
    made = "".join([*parts, escaped(one_line[end:])])
    return rf"\&{made}" if made.startswith((".", "'")) else made


def _head(name: str, section: int, what: str) -> Iterator[str]:
    yield f'.TH "{name.upper()}" "{section}" "" "swapfs {__version__}"'
    yield ".SH NAME"
    yield rf"{name} \- {escaped(what)}"


def _see(pages: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    yield escaped(pages)


def _tagged(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for tag, meaning in rows:
        yield from (".TP", rf"\fB{escaped(tag)}\fR", text(meaning))


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.commands[name]
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
            continue
        words = [word for word in command.collect_usage_pieces(inner) if word != "[OPTIONS]"]
        yield f".SS {escaped(' '.join([inner.command_path, *words]))}"
        yield text(command.help or "")
        yield from _options_of(command, inner)


def _options_of(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield what options *command* has beside those of an instance, which have their section."""
    common = {f"--{option.key}" for option in OPTIONS}
    of_instance = command.name in ("up", "mount", "check-config")
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is None or (of_instance and common & set(parameter.opts)):
            continue
        yield from (".TP", rf"\fB{escaped(record[0])}\fR", text(record[1]))


def _instance_option(option: Option) -> Iterator[str]:
    name = f"--{option.key}"
    if option.form is Form.SWITCH:
        name = f"{name}, --no-{option.key}"
    elif option.form is Form.VALUE:
        name = f"{name} {option.metavar}"
    default = option.shown_default()
    yield from (".TP", rf"\fB{escaped(name)}\fR")
    yield text(f"{option.help}{f' ({default})' if default else ''}.")


def _key(option: Option) -> Iterator[str]:
    yield from (".TP", rf"\fB{escaped(option.key)}\fR = \fI{escaped(option.takes)}\fR")
    first, *more = option.paragraphs
    yield text(first)
    if more:
        yield ".RS"
    for paragraph in more:
        yield from _block(paragraph)
    if more:
        yield ".RE"


def _block(paragraph: str) -> Iterator[str]:
    lines = paragraph.splitlines()
    if paragraph.startswith("|"):
        for row in lines[2:]:  # below the heading and its rule
            tag, *cells = (cell.strip() for cell in row.strip("|").split("|"))
            yield from (".TP", text(tag), text("; ".join(cell for cell in cells if cell)))
    elif paragraph.startswith("- "):
        for item in re.split(r"(?m)^- ", paragraph)[1:]:
            yield from (r".IP \(bu 2", text(item))
    else:
        yield from (".PP", text(paragraph))


def _example(option: Option) -> str:
    value = option.example if option.example is not None else option.shown_default()
    return escaped(f'{option.key} = "{value}"')


def script(cli: click.Command, shell: str) -> str:
    """Return what *shell* reads to complete the command line of *cli*."""
    made = get_completion_class(shell)
    assert made is not None
    return made(cli, {}, "swapfs", COMPLETE).source().strip() + "\n"


def main(argv: list[str]) -> int:
    """Write pages and scripts into the directory *argv* names."""
    from swapfs.command.main import cli

    Path(argv[0], "swapfs.8").write_text(command_page(cli))
    Path(argv[0], "swapfs.toml.5").write_text(options_page())
    for shell, name in SCRIPTS.items():
        Path(argv[0], name).write_text(script(cli, shell))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
