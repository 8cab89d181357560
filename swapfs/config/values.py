"""Single values as the user writes them, in TOML or on the command line: each kind's parser.

A parser takes where the value was given and the value, and returns it checked or raises a
:class:`ConfigError` of one line. Pure: asks nothing of the machine (checks.py does that).
"""

from __future__ import annotations

import ipaddress
import os
import re
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from swapfs import units
from swapfs.errors import ConfigError
from swapfs.region.layout import POOL_BYTES_MAX
from swapfs.units import PAGE_SIZE, GiB, KiB, MiB, TiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SIZE_BYTES_MIN: Final = 1 * MiB
SIZE_BYTES_MAX: Final = 1 * TiB
LOG_BYTES_MIN: Final = 64 * KiB
LOG_BYTES_MAX: Final = 1 * GiB
PRIORITY_MAX: Final = 32767
"""Highest priority that swapon -p takes (include/linux/swap.h SWAP_FLAG_PRIO_MASK)."""
POOL_BYTES_MIN: Final = 4 * MiB
POOL_GRAIN_BYTES: Final = 64 * KiB

# The first character is no dot and no dash: the name is part of paths and of command lines.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,31}")
_FILE_ENDINGS: Final = (".sock", ".json", ".tmp", ".lock", ".log")
"""Of the files beside the directory NAME: that of ``a.json`` would be in the way of ``a``."""


def parse_name(where: str, value: object) -> str:
    """Return *value* if it can name an instance."""
    text = parse_text(where, value)
    if not _NAME.fullmatch(text):
        raise ConfigError(
            where, f"{text!r} is no name (1 to 32 of A-Z a-z 0-9 . _ -, not . or - first)"
        )
    stem, dot, ending = text.rpartition(".")
    if dot + ending in _FILE_ENDINGS:
        raise ConfigError(
            where, f"{text!r} is no name: .{ending} is the ending of a file of instance {stem}"
        )
    return text


def parse_text(where: str, value: object) -> str:
    """Return the text *value*."""
    if not isinstance(value, str):
        raise ConfigError(where, f"{one_line(str(value))} is not text (put it in quotes)")
    return value


def parse_flag(where: str, value: object) -> bool:
    """Return the truth value *value*."""
    if not isinstance(value, bool):
        raise ConfigError(where, f"{one_line(str(value))} is neither true nor false")
    return value


def parse_percent(where: str, value: object) -> int:
    """Return a whole number of percent, 1 to 100."""
    return int(_number(where, value, 1, 100, whole=True))


def parse_zstd_level(where: str, value: object) -> int:
    """Return a level of zstd, 1 to 19: those above take memory out of proportion."""
    return int(_number(where, value, 1, 19, whole=True))


def parse_prefetch(where: str, value: object) -> int:
    """Return a number of pages, 0 to 64, as many as one disk read takes at most."""
    return int(_number(where, value, 0, 64, whole=True))


def parse_priority(where: str, value: object) -> int:
    """Return a swapon priority, 0 to 32767."""
    return int(_number(where, value, 0, PRIORITY_MAX, whole=True))


def parse_ratio(where: str, value: object) -> float:
    """Return a ratio of at least 1."""
    return _number(where, value, 1, 1_000_000, whole=False)


def parse_path(where: str, value: object) -> Path:
    """Return an absolute path; nothing is looked up."""
    text = parse_text(where, value)
    if not text or not text.isprintable():
        raise ConfigError(where, f"{text!r} is not a usable path")
    return Path(os.path.abspath(text))


def parse_size(where: str, value: object) -> int:
    """Return the bytes that *value* (bytes, or text with a unit) means."""
    if isinstance(value, int) and not isinstance(value, bool):
        size_bytes = value
    else:
        try:
            size_bytes = units.parse_size(parse_text(where, value))
        except ValueError as error:
            raise ConfigError(where, one_line(str(error))) from error
        except OverflowError as error:
            raise ConfigError(where, "the size is beyond all bounds") from error
    if size_bytes < 0:
        raise ConfigError(where, f"{size_bytes} is negative")
    return size_bytes


def parse_paged_size(where: str, value: object, least_bytes: int) -> int:
    """Return a whole number of pages in bytes, *least_bytes* or more."""
    size_bytes = parse_size(where, value)
    if size_bytes % PAGE_SIZE:
        below = size_bytes // PAGE_SIZE * PAGE_SIZE
        problem = f"{size_bytes} is not a multiple of {PAGE_SIZE} (nearest below: {below})"
        raise ConfigError(where, problem)
    if size_bytes < least_bytes:
        problem = f"{exact_size(size_bytes)} is too small (least: {format_size(least_bytes)})"
        raise ConfigError(where, problem)
    return size_bytes


def parse_reserve(where: str, value: object) -> int | None:
    """Return the bytes of a reserve of free memory, whole KiB; 0 for ``off``, None for ``auto``."""
    if value in ("auto", "off"):
        return None if value == "auto" else 0
    try:
        return parse_size(where, value) // KiB * KiB
    except ConfigError as error:
        raise ConfigError(where, f"{error.problem}, auto or off") from error


def parse_virtual_size(where: str, value: object) -> int:
    """Return the bytes of a swap file."""
    size_bytes = parse_paged_size(where, value, SIZE_BYTES_MIN)
    if size_bytes > SIZE_BYTES_MAX:
        problem = f"{exact_size(size_bytes)} is too large (most: {format_size(SIZE_BYTES_MAX)})"
        raise ConfigError(where, problem)
    return size_bytes


def parse_pool_size(where: str, value: object) -> int:
    """Return the bytes of a pool, whole zspages."""
    pool_bytes = parse_size(where, value) // POOL_GRAIN_BYTES * POOL_GRAIN_BYTES
    if pool_bytes < POOL_BYTES_MIN:
        least = format_size(POOL_BYTES_MIN)
        raise ConfigError(where, f"{format_size(pool_bytes)} is too small (least: {least})")
    if pool_bytes > POOL_BYTES_MAX:
        most = format_size(POOL_BYTES_MAX)
        raise ConfigError(where, f"{format_size(pool_bytes)} is too large (most: {most})")
    return pool_bytes


def parse_log_size(where: str, value: object) -> int:
    """Return the bytes of a ring of events, a power of two; 0 for ``off``."""
    if value == "off":
        return 0
    try:
        size_bytes = parse_size(where, value)
    except ConfigError as error:
        raise ConfigError(where, f"{error.problem}, or off") from error
    if not LOG_BYTES_MIN <= size_bytes <= LOG_BYTES_MAX:
        least, most = format_size(LOG_BYTES_MIN), format_size(LOG_BYTES_MAX)
        raise ConfigError(where, f"{format_size(size_bytes)} is not from {least} to {most}, or off")
    return 1 << size_bytes.bit_length() - 1


def parse_address(where: str, value: object) -> tuple[str, int] | None:
    """Return host and port of an IP address, or None for ``off``."""
    text = parse_text(where, value)
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if bracketed != (address.version == 6):
            raise ValueError
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError
    except ValueError:
        problem = f"{text!r} is no address (write 127.0.0.1:9809, [::1]:9809 or off)"
        raise ConfigError(where, problem) from None
    return str(address), int(port)


def one_of(*choices: str) -> Callable[[str, object], str]:
    """Return the parser of an option that has only these values."""

    def parse(where: str, value: object) -> str:
        if value not in choices:
            raise ConfigError(where, f"{one_line(str(value))} is none of {', '.join(choices)}")
        return str(value)

    return parse


def exact_size(size_bytes: int) -> str:
    """Return *size_bytes* in the largest unit that divides it: ``1536M``, never ``1.5G``."""
    for suffix, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{suffix}"
    return str(size_bytes)


def format_reserve(size_bytes: int | None, show: Callable[[int], T]) -> T | str:
    """Return what :func:`parse_reserve` reads; *show* writes a size."""
    if size_bytes is None:
        return "auto"
    return show(size_bytes) if size_bytes else "off"


def format_address(address: tuple[str, int] | None) -> str:
    """Return what :func:`parse_address` reads."""
    if address is None:
        return "off"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def one_line(text: str) -> str:
    """Return *text* fit for one line of a terminal."""
    return text if text.isprintable() else repr(text)


def _number(where: str, value: object, low: float, high: float, whole: bool) -> float:
    kind = "whole number" if whole else "number"
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = float(value)
        if not low <= number <= high or not isfinite(number) or (whole and number % 1):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        problem = f"{value!r} is not a {kind} from {low:.0f} to {high:.0f}"
        raise ConfigError(where, problem) from None
    return number
