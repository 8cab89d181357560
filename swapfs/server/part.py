"""What a snapshot is made of: dataclasses that are JSON objects, of this version and others."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, ClassVar, Self


def figure(meaning: str = "", default: object = None) -> Any:
    """Return the field of a figure, which says what it means."""
    return field(default=default, metadata={"meaning": meaning})


def table() -> Any:
    """Return the field of a table of values by name."""
    return field(default_factory=dict)


class Part:
    """A dataclass that is a JSON object; every field has a default."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; tables are shared, not copied."""
        return {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Return what *given* says, as far as this version understands it; raises nothing."""
        understood = {}
        for name, hint in hints(cls).items():
            if name in given:
                try:
                    understood[name] = _read(hint, given[name])
                except (TypeError, ValueError):
                    continue  # of a version that means something else by it
        return cls(**understood)


def hints(part: Any) -> dict[str, Any]:
    """Return the types of the fields of *part*, by name."""
    hints = typing.get_type_hints(part)
    return {each.name: hints[each.name] for each in dataclasses.fields(part)}


def _arms(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def without_none(hint: Any) -> Any:
    """Return what *hint* is beside None."""
    (arm,) = (arm for arm in _arms(hint) if arm is not types.NoneType)
    return arm


def _read(hint: Any, value: Any) -> Any:
    """Return *value*, from JSON, as *hint* wants it.

    :raises TypeError: it is something else
    :raises ValueError: it is none of an enumeration's words
    """
    if value is None:
        if types.NoneType in _arms(hint):
            return None
        raise TypeError
    hint = without_none(hint)
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], each) for each in value)
    if kind is Mapping and isinstance(value, dict):
        return value if arguments[1] is Any else _only(arguments[1], value)
    if issubclass(kind, Part) and isinstance(value, dict):
        return kind.from_dict(value)
    if issubclass(kind, StrEnum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:  # so that true is no number
        return value
    raise TypeError


def _only(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if type(value) is kind}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.as_dict()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
