"""What there is to know of one option, and how a list of options is read.

The rows are in ``options.py``. A list of rows is enough for everything here, so a TOML table of
its own (one ``[[tier]]``) needs another list and nothing else. Knows no command line library.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from swapfs.config import values
from swapfs.errors import ConfigError

Given = dict[str, tuple[str, object]]
"""By key: where a value was given, as a mistake in it names the place, and the value."""
Parse = Callable[[str, object], Any]
"""(where, value as the user wrote it) -> value; looks at nothing else, raises ConfigError."""
ShowSize = Callable[[int], object]
"""Bytes -> how a size is written: as a number in JSON, as text such as 64M in TOML."""
Show = Callable[[Any, ShowSize], object]
"""(value, how to write a size) -> what ``parse`` reads back; None to leave the option out."""

REQUIRED: Final = object()
"""The default of an option that has none."""
SWITCH_TAKES: Final = "true, false"


class Section(Enum):
    """The chapters of the reference, in their order."""

    ROOM = "How much"
    PLACEMENT = "Where pages go"
    MONITORING = "What is shown"
    INSTANCE = "Names and places"


class Form(Enum):
    """How an option is given on the command line."""

    VALUE = "--key VALUE"
    SWITCH = "--key, and --no-key to overrule a file"
    FLAG = "--key"


@dataclass(slots=True)
class Draft:
    """Options that are being read: what a check may ask of the others and of the machine.

    :param root: holds the proc of the machine
    :param where: by key, where the options were given that were given
    """

    root: Path
    where: Mapping[str, str]
    values: dict[str, Any] = field(default_factory=dict)


Fit = Callable[[str, Any, Draft], Any]
"""(where, value, draft) -> the value as it will hold here; raises ConfigError if it does not fit.

Called after everything was parsed, in the order of the rows, for defaults too: rows above have
been fitted, rows below only parsed.
"""


def keep(where: str, value: object, draft: Draft) -> object:
    """Take *value* as it is; the fit of an option that depends on nothing else."""
    return value


def plain(value: object, show_size: ShowSize) -> object:
    """Show a value that TOML and JSON have a type for."""
    return value


def as_size(value: int, show_size: ShowSize) -> object:
    """Show a number of bytes."""
    return show_size(value)


def as_text(value: object, show_size: ShowSize) -> object:
    """Show a path."""
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: a key of the TOML file and an option of the command line.

    :param field: of ``Config``; with a dot it is a part of another option's value
    :param takes: what may be written, in a few words, for tables
    :param metavar: of the command line; FILE, DIR, MNT and what begins with PATH are paths
    :param help: one line for the command line, without default and without a period at the end
    :param text: Markdown; the first paragraph is complete by itself and stands beside the key in
        the example file and on the manual page, the rest in the reference only
    :param default_text: the default where it has no value of its own to be shown
    :param choices: all words that may be written, if there are no other values
    :param example: what the example file shows, if not the default
    :param in_example: whether that line is in force, and not commented out
    :param argument_of: commands that take it as an argument and not as an option
    """

    key: str
    field: str
    section: Section
    parse: Parse
    takes: str
    help: str
    text: str
    metavar: str = ""
    default: Any = None
    default_text: str = ""
    fit: Fit = keep
    show: Show = plain
    form: Form = Form.VALUE
    choices: tuple[str, ...] = ()
    example: object = None
    in_example: bool = False
    argument_of: frozenset[str] = frozenset()

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs of its description, Markdown, as they were wrapped."""
        first, *more = inspect.cleandoc(self.text).split("\n\n")
        return [f"{first}\n{self._default_sentence()}", *more]

    def shown_default(self) -> str:
        """Return the default as one writes it, or what there is instead of one; "" if required."""
        if self.required or self.default_text:
            return self.default_text
        shown = self.show(self.default, values.exact_size)
        return shown if isinstance(shown, str) else json.dumps(shown)

    def value_in(self, config: object) -> Any:
        """Return its value in *config*; None if what it is a part of is not there."""
        value = config
        for name in self.field.split("."):
            value = getattr(value, name, None)
        return value

    def _default_sentence(self) -> str:
        return "Required." if self.required else f"Default: {self._quoted_default()}."

    def _quoted_default(self) -> str:
        return self.default_text or f"`{self.shown_default()}`"


def check_keys(options: Sequence[Option], keys: Iterable[str], where: object) -> None:
    """Refuse a key that no row of *options* has.

    :param where: the file that has the keys
    :raises ConfigError: with a guess at what was meant
    """
    known = [option.key for option in options]
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key.replace("_", "-").lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: {values.one_line(key)}", f"unknown key ({hint})")


def settle(options: Sequence[Option], given: Given, root: Path) -> dict[str, Any]:
    """Return by key the values of all *options*: given, or the default, and fitted.

    :raises ConfigError: the first that is missing, wrong, or does not fit this machine
    """
    draft = Draft(root, {key: where for key, (where, _) in given.items()})
    for option in options:
        if option.key in given:
            draft.values[option.key] = option.parse(*given[option.key])
        elif option.required:
            raise _missing(option)
        else:
            draft.values[option.key] = option.default
    for option in options:
        where = draft.where.get(option.key, option.key)
        draft.values[option.key] = option.fit(where, draft.values[option.key], draft)
    return draft.values


def fields(options: Sequence[Option], settled: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settled* by field, for the constructor of what the *options* describe."""
    return {row.field: settled[row.key] for row in options if "." not in row.field}


def shown(options: Sequence[Option], config: object, show_size: ShowSize) -> dict[str, object]:
    """Return by key what ``settle`` would read *config* back from."""
    answer = {}
    for option in options:
        value = option.show(option.value_in(config), show_size)
        if value is not None:
            answer[option.key] = value
    return answer


def _missing(option: Option) -> ConfigError:
    key, example = option.key, option.example
    return ConfigError(
        key, f"missing: give --{key} {example}, or {key} = {json.dumps(example)} in --config"
    )
