"""Far memory as the user writes it: the keys of a ``[[tier]]`` of the kind ``valkey``.

Creates and changes nothing, and asks no engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swapfs.config import values
from swapfs.config.backing import FileTierConfig
from swapfs.config.option import SWITCH_TAKES, Form, Option, Section, ShowSize
from swapfs.errors import ConfigError
from swapfs.units import format_size

FAR: Final = "valkey"
FAR_BYTES_MIN: Final = 1 << 20
_NODE: Final = re.compile(
    r"(?:(?P<name>[\w.-]+)|\[(?P<ipv6>[0-9a-f:.]*:[0-9a-f:.]*(?:%[\w.-]+)?)\])"
    r":(?P<port>[0-9]{1,5})",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FarConfig:
    """An engine, and how to get in; ``nodes``: (host, port), none for a unix socket."""

    nodes: tuple[tuple[str, int], ...] = ()
    cluster: bool = False
    tls: bool = False
    ca_file: Path | None = None
    user: str = ""
    password_file: Path | None = None
    network: bool = False


def parse_nodes(where: str, value: object) -> tuple[tuple[str, int], ...]:
    """Return the addresses in ``HOST:PORT,HOST:PORT...``; a host may be a name.

    :raises ConfigError: one is none
    """
    nodes = []
    for text in values.parse_text(where, value).split(","):
        if "@" in text:  # not quoted: who reads a log need not know it
            raise ConfigError(
                where, "is HOST:PORT; a user and a password go into user and password-file"
            )
        found = _NODE.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"]) <= 65535:
            raise ConfigError(where, f"{text.strip()!r} is no address: write HOST:PORT")
        nodes.append((found["name"] or found["ipv6"], int(found["port"])))
    return tuple(nodes)


def _show_nodes(nodes: tuple[tuple[str, int], ...] | None, show_size: ShowSize) -> object:
    return ",".join(map(values.format_address, nodes)) if nodes else None


def _show_path(path: Path | None, show_size: ShowSize) -> object:
    return None if path is None else str(path)


def _show_if_given(value: object, show_size: ShowSize) -> object:
    return value or None


def _switch(key: str, help_text: str, text: str) -> Option:
    return Option(
        key=key,
        field=f"far.{key}",
        section=Section.ROOM,
        parse=values.parse_flag,
        show=_show_if_given,
        form=Form.SWITCH,
        default=False,
        takes=SWITCH_TAKES,
        help=help_text,
        text=text,
    )


def _file(key: str, help_text: str, text: str) -> Option:
    return Option(
        key=key,
        field=f"far.{key.replace('-', '_')}",
        section=Section.ROOM,
        parse=values.parse_path,
        show=_show_path,
        takes="path",
        default_text="none",
        help=help_text,
        text=text,
    )


FAR_OPTIONS: Final = (
    Option(
        key="nodes",
        field="far.nodes",
        section=Section.ROOM,
        parse=parse_nodes,
        show=_show_nodes,
        default=(),
        default_text="none",
        takes="HOST:PORT,...",
        help="Addresses of the engine",
        text="Of the kind `valkey`, instead of `path`: where the engine is, over TCP. One, "
        "or some of a cluster. Needs `network`.",
    ),
    _switch("cluster", "The nodes are a cluster", "Whether the nodes are those of a cluster."),
    _switch(
        "tls", "TLS to the nodes", "Whether the nodes are spoken to by TLS; their name is checked."
    ),
    _file(
        "ca-file",
        "Who vouches for them",
        "Certificates that vouch for the nodes, if not the system's.",
    ),
    Option(
        key="user",
        field="far.user",
        section=Section.ROOM,
        parse=values.parse_text,
        show=_show_if_given,
        default="",
        default_text="none",
        takes="text",
        help="User name",
        text="The user that the password is of, where the engine has several.",
    ),
    _file(
        "password-file",
        "Password of the engine",
        "A file with the password, read at each connection.",
    ),
    _switch(
        "network",
        "Use it over a network",
        "Whether the engine may be reached over TCP. To swap over a network can need memory to "
        "free memory, and nobody has proven that it gets it: leave `min-free` large, and keep the "
        "engine itself out of swap.",
    ),
)
"""What may be in such a table beside the keys of every tier."""


def read_far(
    where: str, table: Mapping[str, object], settled: Mapping[str, Any]
) -> tuple[FileTierConfig, FarConfig]:
    """Return the place and the engine that *table*, *settled*, describes.

    :raises ConfigError: the first mistake
    """
    far = FarConfig(**{row.field.partition(".")[2]: settled[row.key] for row in FAR_OPTIONS})
    path, size_bytes = settled["path"], settled["size"]
    if (path is None) == (not far.nodes):
        raise ConfigError(where, "give path, a unix socket of the engine, or nodes, and not both")
    if size_bytes is None:
        raise ConfigError(where, "size is missing: how much memory of the engine may be used?")
    if size_bytes < FAR_BYTES_MIN:
        has, least = format_size(size_bytes), format_size(FAR_BYTES_MIN)
        raise ConfigError(f"{where}: size", f"{has} is too small (least: {least})")
    if "direct-io" in table:
        raise ConfigError(f"{where}: direct-io", "a tier in memory has none")
    if not far.nodes and (far.cluster or far.tls or far.ca_file):
        raise ConfigError(where, "cluster, tls and ca-file are for nodes, not for a unix socket")
    if far.nodes and not far.network:
        raise ConfigError(
            f"{where}: nodes",
            "to swap over a network can need memory to free memory, and the engine must not be "
            "swapped out: say network = true if you have seen to both, or use a unix socket",
        )
    if len(far.nodes) > 1 and not far.cluster:
        raise ConfigError(f"{where}: nodes", "several nodes are a cluster: say cluster = true")
    shown = ",".join(map(values.format_address, far.nodes))
    place = path if path is not None else Path(shown)
    return FileTierConfig(place, size_bytes, encryption=settled["encryption"]), far


def refuse_far_keys(where: str, table: Mapping[str, object]) -> None:
    """Refuse keys that only far memory has.

    :raises ConfigError: *table* has one
    """
    for row in FAR_OPTIONS:
        if row.key in table:
            raise ConfigError(f"{where}: {row.key}", f'only a tier with kind = "{FAR}" has it')
