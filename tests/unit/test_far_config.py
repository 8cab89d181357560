"""``[[tier]]`` of the kind valkey: what is understood, and what is refused in one line."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from swapfs.config import model
from swapfs.errors import ConfigError
from swapfs.host.engine_memory import is_kept_out_of_swap, peer_of

SOCKET = 'kind = "valkey"\npath = "/run/valkey.sock"\nsize = "1G"\n'
NODE = 'kind = "valkey"\nnodes = "127.0.0.1:6379"\nsize = "1G"\nnetwork = true\n'


def load(tmp_path: Path, text: str) -> model.Config:
    config = tmp_path / "config.toml"
    config.write_text(f"[[tier]]\n{text}")
    options = {"mountpoint": str(tmp_path), "size": "64M", "pool": "128M", "unsafe": True}
    return model.load(options, config)


@pytest.mark.parametrize(
    "text",
    [
        SOCKET,
        SOCKET + 'name = "far"\npriority = 7\nencryption = false\npassword-file = "/etc/pw"\n',
        NODE,
        NODE.replace("127.0.0.1", "far.example")
        + 'tls = true\nca-file = "/etc/ca"\nuser = "swap"\n',
        NODE.replace("6379", "6379, [::1]:6380") + "cluster = true\n",
    ],
)
def test_it_is_read_back_as_it_was_written(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    (tier,) = config.all_tiers
    assert tier.far is not None
    assert tier.certain_bytes == 0, "a node may lose it"
    tables = json.loads(model.describe(config, as_json=True))["tier"]
    again = model.load({**json.loads(model.describe(config, as_json=True)), "tier": tables})
    assert again.all_tiers == config.all_tiers


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SOCKET + 'nodes = "a:1"\n', "give path, a unix socket"),
        ('kind = "valkey"\nsize = "1G"\n', "give path, a unix socket"),
        (SOCKET.replace('size = "1G"\n', ""), "size is missing"),
        (SOCKET.replace("1G", "64K"), "too small"),
        (SOCKET + "tls = true\n", "are for nodes"),
        (SOCKET + 'direct-io = "on"\n', "has none"),
        (NODE.replace("network = true\n", ""), "network = true"),
        (NODE.replace("6379", "6379,b:1"), "cluster = true"),
        (NODE.replace("127.0.0.1:6379", "no port"), "HOST:PORT"),
        (NODE.replace("6379", "70000"), "HOST:PORT"),
        (NODE.replace("127.0.0.1", "::1"), "HOST:PORT"),
        (NODE.replace("127.0.0.1", "[far.example]"), "HOST:PORT"),
        (NODE.replace("127.0.0.1", "redis://far.example"), "HOST:PORT"),
        ('path = "/tmp/x"\nsize = "4M"\ntls = true\n', 'only a tier with kind = "valkey"'),
        (SOCKET.replace("valkey", "memcached"), "kind"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("node", ["swap:hidden@far.example:6379", "redis://:hidden@h:1"])
def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path, node: str) -> None:
    """Addresses are in the log, in status and in metrics."""
    with pytest.raises(ConfigError, match="password-file") as caught:
        load(tmp_path, NODE.replace("127.0.0.1:6379", node))
    assert "hidden" not in str(caught.value)


# ---- the engine's own memory ----


def test_who_listens_at_a_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        assert peer_of(tmp_path / "sock", 5) == os.getpid()
    with pytest.raises(OSError, match="refused"):
        peer_of(tmp_path / "sock", 5)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({}, False), ({"a/b": "max"}, False), ({"a/b": "0"}, True), ({"a": "0", "a/b": "max"}, True)],
)
def test_a_group_may_keep_it_out_of_swap(
    tmp_path: Path, limits: dict[str, str], kept: bool
) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("1:name=x:/\n0::/a/b\n")
    for name in ("a", "a/b"):
        group = tmp_path / "sys/fs/cgroup" / name
        group.mkdir(parents=True, exist_ok=True)
        if name in limits:
            (group / "memory.swap.max").write_text(limits[name] + "\n")
    assert is_kept_out_of_swap(7, tmp_path) == kept
    assert not is_kept_out_of_swap(8, tmp_path)
