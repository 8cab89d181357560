"""Asking the nodes of an engine, each by itself: what one does not answer costs its keys only.

A node that hangs would hold everybody who asks it for as long as is waited for an answer. So it is
asked once: until it answers a look (``probe``), what it has fails at once. Where a node has
replicas they are asked then, which is right whatever they lag behind: a key has one value ever, or
none; and what is stored counts as stored when a replica has it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from valkey import exceptions
from valkey.cluster import ValkeyCluster

ERRORS: Final = (
    exceptions.ValkeyError,
    exceptions.ValkeyClusterException,
    exceptions.ChildDeadlockedError,
    OSError,
)
"""What the client raises when the engine is not as it should be; not all of it is a ValkeyError."""
_ELSEWHERE: Final = (exceptions.MovedError, exceptions.AskError, exceptions.TryAgainError)
"""Answers that say that another node has the key now."""
REPLICA_MS: Final = 1000
"""How long to wait until a replica has what was stored."""


class NotAskedError(exceptions.TimeoutError):
    """The node has not answered somebody else."""


Fill = Callable[[Any, int], None]
"""(pipeline, which of the keys): adds the command for it."""


class Nodes:
    """The nodes of one engine, for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent: dict[str, Any] = {}  # name -> node; "" and None of an engine that is one

    def ask(
        self, client: Any, keys: Sequence[str], fill: Fill, *, stores: bool = False
    ) -> list[Any]:
        """Return an answer for each of *keys*; an exception is one too.

        Each command may be given twice, as a connection that is kept is dead when the engine was
        started anew.

        :param stores: each command stores a value; else it may be given to a replica too
        """
        answers: list[Any] = [None] * len(keys)
        for name, (nodes, numbers) in self._by_node(client, keys, answers).items():
            got = self._ask_node(client, name, nodes, numbers, fill, stores=stores)
            for number, answer in zip(numbers, got, strict=True):
                answers[number] = answer
        moved = [n for n, answer in enumerate(answers) if isinstance(answer, _ELSEWHERE)]
        if moved:  # which the client knows how to follow
            for number, answer in zip(moved, _execute(client, moved, fill), strict=True):
                answers[number] = answer
        return [_bare(answer) for answer in answers]

    def _by_node(
        self, client: Any, keys: Sequence[str], answers: list[Any]
    ) -> dict[str, tuple[list[Any], list[int]]]:
        """Return by name the node and its replicas, and the numbers of the keys that it has."""
        if not isinstance(client, ValkeyCluster):
            return {"": ([None], list(range(len(keys))))}
        found: dict[str, tuple[list[Any], list[int]]] = {}
        slot_of: Any = client.keyslot
        for number, key in enumerate(keys):
            nodes: Any = client.nodes_manager.slots_cache.get(slot_of(key))
            if not nodes:
                answers[number] = exceptions.SlotNotCoveredError(f"no node has the slot of {key}")
            else:
                found.setdefault(nodes[0].name, (nodes, []))[1].append(number)
        return found

    def _ask_node(
        self,
        client: Any,
        name: str,
        nodes: list[Any],
        numbers: list[int],
        fill: Fill,
        *,
        stores: bool,
    ) -> list[Any]:
        failure: Exception = NotAskedError(f"{name or 'it'} does not answer")
        if name not in self._silent:
            try:
                return self._ask_primary(client, nodes, numbers, fill, stores=stores)
            except ERRORS as error:
                failure = exceptions.ConnectionError(str(error))
                if isinstance(error, exceptions.TimeoutError):  # others do not take long
                    with self._lock:
                        self._silent[name] = nodes[0]
        for replica in () if stores else nodes[1:]:
            with suppress(*ERRORS):
                found = _execute(_connection(client, replica), numbers, fill, readonly=True)
                # What it has not got yet is not lost.
                return [failure if answer is None else answer for answer in found]
        return [failure] * len(numbers)

    def _ask_primary(
        self, client: Any, nodes: list[Any], numbers: list[int], fill: Fill, *, stores: bool
    ) -> list[Any]:
        connection, replicas = _connection(client, nodes[0]), stores and len(nodes) > 1
        try:
            return _execute(connection, numbers, fill, replicas=replicas)
        except exceptions.TimeoutError:
            raise
        except (exceptions.ConnectionError, OSError):
            return _execute(connection, numbers, fill, replicas=replicas)

    def probe(self, client: Any) -> bool:
        """Look whether those that did not answer do now, and which nodes there are.

        False: there are none such.
        """
        with self._lock:
            silent = list(self._silent.items())
        if not silent:
            return False
        refresh(client)
        for name, node in silent:
            with suppress(*ERRORS):
                _connection(client, node).ping()
                with self._lock:
                    self._silent.pop(name, None)
        return True


def refresh(client: Any) -> None:
    """Have *client* look which nodes a cluster has; as before if none answers."""
    if isinstance(client, ValkeyCluster):
        manager: Any = client.nodes_manager
        with suppress(*ERRORS):
            manager.initialize()


def _connection(client: Any, node: Any) -> Any:
    return client if node is None else client.get_valkey_connection(node)


def _execute(
    connection: Any,
    numbers: Iterable[int],
    fill: Fill,
    *,
    readonly: bool = False,
    replicas: bool = False,
) -> list[Any]:
    """Return the answers of one node; errors among them.

    :raises Exception: one of ERRORS: there is none
    """
    pipe = connection.pipeline(transaction=False)
    if readonly:
        pipe.execute_command("READONLY")
    for number in numbers:
        fill(pipe, number)
    if replicas:
        pipe.execute_command("WAIT", 1, REPLICA_MS)
    answers: list[Any] = pipe.execute(raise_on_error=False)
    if replicas and not (isinstance(have := answers.pop(), int) and have):
        answers = [a if isinstance(a, Exception) else _NO_REPLICA for a in answers]
    return answers[readonly:]


_NO_REPLICA: Final = exceptions.ResponseError("no replica has it in time")


def _bare(answer: Any) -> Any:
    if isinstance(answer, Exception):
        answer.__traceback__ = None  # a frame of it has the list: a cycle
    return answer
