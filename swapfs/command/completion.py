"""What a shell completes: names of instances and configurations, paths, words of a choice.

The scripts that shells read (``manual`` writes them) ask ``swapfs`` itself, through click.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from swapfs.config.option import Option
from swapfs.config.options import BY_KEY
from swapfs.config.paths import CONFIG_DIR

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_METAVARS: Final = {"FILE": "file", "DIR": "dir", "MNT": "dir"}


def instances(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Return the names of the instances that have left a status, and begin so."""
    given = context.params.get("runtime_dir") or BY_KEY["runtime-dir"].default
    return _stems(Path(given), ".json", begun)


def configurations(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Return the names of the configurations that begin so."""
    return _stems(CONFIG_DIR, ".toml", begun)


def value_of(option: Option) -> Complete | None:
    """Return what completes a value of *option*, if anything can."""
    kind = "file" if option.metavar.startswith("PATH") else _METAVARS.get(option.metavar)

    def complete(
        context: click.Context, parameter: click.Parameter, begun: str
    ) -> list[CompletionItem]:
        if kind is not None:
            return [CompletionItem(begun, type=kind)]
        return [CompletionItem(word) for word in option.choices if word.startswith(begun)]

    return complete if kind is not None or option.choices else None


def files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Leave it to the shell, which knows files."""
    return [CompletionItem(begun, type="file")]


def _stems(directory: Path, ending: str, begun: str) -> list[CompletionItem]:
    try:
        names = sorted(path.name.removesuffix(ending) for path in directory.glob(f"*{ending}"))
    except OSError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(begun)]
