"""A Valkey or Redis engine, one node or a cluster: reaching it, and whether pages may go there.

What is asked of it has a time limit, and fails as a tier does; nothing here knows of blobs.
"""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import valkey
from valkey import exceptions
from valkey.backoff import NoBackoff
from valkey.cluster import ClusterNode, ValkeyCluster
from valkey.retry import Retry

from swapfs.errors import OperationError, TierIOError
from swapfs.tiers.nodes import ERRORS, Fill, Nodes, NotAskedError, refresh

CONNECT_S: Final = 1.0
ANSWER_S: Final = 3.0
_KEYS_AT_ONCE: Final = 1000
T = TypeVar("T")

KEY_BYTES: Final = 128
"""What an engine takes for a key beside its value: entry, key and object."""
_VALUE_BYTES: Final = 5
"""The head and the end of a string (sds.h)."""


def bytes_for(length: int) -> int:
    """Return the bytes that an engine takes for a value of *length* bytes and its key, at most.

    Both engines use jemalloc, whose sizes are four to a doubling.
    """
    size = length + _VALUE_BYTES
    step = 1 << max(4, (size - 1).bit_length() - 3)
    return KEY_BYTES + -(-size // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the engine is: a unix socket, or the nodes (host, port) of a cluster, or of one alone.

    :param tls: with a certificate that is checked, by *ca_file* or what the system trusts
    :param password_file: read at each connection, so that it may be changed
    """

    socket: Path | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    cluster: bool = False
    tls: bool = False
    ca_file: Path | None = None
    user: str = ""
    password_file: Path | None = None

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix:{self.socket}"
        kind = "cluster:" if self.cluster else "tls:" if self.tls else "tcp:"
        return kind + ",".join(f"{host}:{port}" for host, port in self.nodes)


class _Credentials(valkey.CredentialProvider):
    def __init__(self, place: Place) -> None:
        self._place = place

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        place = self._place
        assert place.password_file is not None
        try:
            password = place.password_file.read_text().strip()
        except OSError as error:
            raise exceptions.AuthenticationError(
                f"{place.password_file}: {error.strerror}"
            ) from None
        return (place.user, password) if place.user else (password,)


def _connect(place: Place) -> Any:
    """Return a client of *place*, which connects when it is used.

    :raises Exception: one of ``ERRORS``: a cluster does not answer
    """
    options: dict[str, Any] = {
        "socket_timeout": ANSWER_S,
        "socket_connect_timeout": CONNECT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    if place.password_file is not None:
        options["credential_provider"] = _Credentials(place)
    if place.socket is not None:
        return valkey.Valkey(unix_socket_path=str(place.socket), **options)
    if place.tls:
        options |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        if place.ca_file is not None:
            options["ssl_ca_certs"] = str(place.ca_file)
    if not place.cluster:
        host, port = place.nodes[0]
        return valkey.Valkey(host=host, port=port, **options)
    node: Any = ClusterNode
    nodes = [node(host, port) for host, port in place.nodes]
    del options["retry"]
    return ValkeyCluster(startup_nodes=nodes, cluster_error_retry_attempts=1, **options)


def _unfit(client: Any) -> str:
    """Return why pages must not go to the engine of *client*; "": they may.

    :raises Exception: one of ``ERRORS``: it does not answer
    """
    if isinstance(client, ValkeyCluster):
        nodes: Any = client.info("memory", target_nodes=ValkeyCluster.PRIMARIES)
    else:
        nodes = {"": client.info("memory")}
    for node, memory in nodes.items():
        policy = memory.get("maxmemory_policy")
        if policy != "noeviction":
            where = f"node {node}" if node else "the engine"
            return f"{where} may evict pages: set maxmemory-policy noeviction (it is {policy})"
    return ""


def collect() -> None:
    """Free what the client leaves behind when it cannot connect: cycles, and a server has gc off.

    An error that its frame keeps (``Connection._connect``), and all of a cluster's client: 84 to
    139 objects a try. A server's own objects are frozen when it serves, and not looked at again.
    """
    gc.collect()


class Engine:
    """The engine at *place*, for any number of threads; connects when it is used."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._client: Any = None
        self._nodes = Nodes()

    def load(self) -> None:
        """Have in memory what connecting takes: a server reads no file when it serves (I9)."""
        if self.place.tls:
            ssl.create_default_context()
        for host, port in self.place.nodes:
            with suppress(OSError):
                socket.getaddrinfo(host, port)

    def check(self, purge: str, spare: str = "") -> None:
        """Look whether it is there and fit, and delete keys that begin with *purge*, if any.

        With a connection of its own, which another process does not inherit.

        :param spare: keys that begin with it stay, unless it is ""
        :raises OperationError: it is not
        """
        problem = self._problem(purge, spare)
        collect()  # a cluster's client is a cycle itself
        if problem:
            raise OperationError(f"{self.place}: {problem}")

    def _problem(self, purge: str, spare: str) -> str:
        try:
            client = _connect(self.place)
            try:
                reason = _unfit(client)
                if not reason and purge:
                    _purge(client, purge, spare)
                return reason
            finally:
                client.close()
        except ERRORS as error:
            return str(error)

    def why_unfit(self) -> str:
        """Return why pages must not go there; "": they may.

        :raises TierIOError: it does not answer
        """
        reason = self._call("ask it", _unfit)
        collect()  # nodes that a cluster's client found dead while others answered
        return reason

    def ask(self, what: str, keys: Sequence[str], fill: Fill, *, stores: bool = False) -> list[Any]:
        """Return an answer for each of *keys*, as ``Nodes.ask`` does; errors among them.

        :raises TierIOError: there is none
        """
        answers = self._call(
            what, lambda client: self._nodes.ask(client, keys, fill, stores=stores)
        )
        failed = (each for each in answers if isinstance(each, Exception))
        if any(not isinstance(each, NotAskedError) for each in failed):
            collect()
        return answers

    def probe(self, *, renew: bool = False) -> None:
        """Look whether nodes that did not answer do now.

        :param renew: and which nodes a cluster has
        :raises TierIOError: none does
        """

        def look(client: Any) -> bool:
            if renew:
                refresh(client)
            return self._nodes.probe(client)

        if self._call("look", look):
            collect()

    def _call(self, what: str, use: Callable[[Any], T]) -> T:
        """Return what *use* makes of the client; its errors become ours."""
        try:
            if self._client is None:
                self._client = _connect(self.place)
            return use(self._client)
        except ERRORS as error:
            failed = f"{self.place}: cannot {what}: {error}"
        collect()
        raise TierIOError(failed)

    def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            self._client.close()


def _purge(client: Any, prefix: str, spare: str) -> None:
    keys = []
    for key in client.scan_iter(match=f"{prefix}*", count=_KEYS_AT_ONCE):
        if not spare or not key.startswith(spare.encode()):
            keys.append(key)
        if len(keys) == _KEYS_AT_ONCE:
            _unlink(client, keys)
            keys = []
    _unlink(client, keys)


def _unlink(client: Any, keys: list[bytes]) -> None:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.unlink(key)
    pipe.execute()
