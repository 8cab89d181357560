"""No failure may leave a reference cycle: gc is off in the server, and its memory is locked.

Each kind of failure is made many times with gc off; then a collection must find nothing, and
there must be no more objects than before. An exception that is kept where its own traceback can
reach it is such a cycle, and holds every frame between (8 KB for a failed read, once).
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY, EIO, ENOSPC
from functools import partial
from pathlib import Path

import pytest
import trio

from swapfs import fs
from swapfs.errors import OperationError, TierError, TierIOError
from swapfs.host.fusectl import FuseControl
from swapfs.server import metrics
from swapfs.server.status import Status
from swapfs.server.threads import in_thread
from swapfs.server.workers import Buffers, Workers
from swapfs.session import pyfuse3
from swapfs.testing.engine import free_port
from swapfs.testing.faulty import FaultyTier
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.testing.wrapper import TierWrapper
from swapfs.tiers.engine import Engine, Place
from swapfs.tiers.sectors import SectorStore
from swapfs.units import MiB, PSector
from swapfs.vlayer.deferred import Answerable
from swapfs.vlayer.disks import make_disks
from swapfs.vlayer.layer import SlotDamaged
from swapfs.wire import control_server
from tests.unit.driven_file import PAGE, File

TIMES = 1000
PUNCH = 3
Still = Callable[[], bool]
ALWAYS = 1 << 30


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Have nothing logged: pytest keeps log records, and with them the errors they tell of."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def assert_nothing_stays(fail: Callable[[], object], times: int = TIMES) -> None:
    """Call *fail* again and again with gc off; nothing may be left behind by it."""
    for _ in range(20):  # what is made once: caches, free lists
        fail()
    with _nothing_stays(times):
        for _ in range(times):
            fail()


async def assert_nothing_stays_of(fail: Callable[[], Awaitable[None]], times: int) -> None:
    """Do the same with one that is awaited."""
    for _ in range(20):
        await fail()
    with _nothing_stays(times):
        for _ in range(times):
            await fail()


@contextmanager
def _nothing_stays(times: int) -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        yield
        left = _objects_beyond(before, times // 10)
        unreachable = gc.collect()
    finally:
        gc.enable()
    assert unreachable == 0, f"{unreachable} objects in cycles after {times} failures"
    assert left < times // 10, f"{left} objects more after {times} failures"


def _objects_beyond(before: int, few: int) -> int:
    """Return how many more there are than *before*, when other threads have done their part."""
    deadline_s = time.monotonic() + 10
    while (left := len(gc.get_objects()) - before) >= few and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return left


def _demoted(tier: SectorStore, pages: int = 8) -> Harness:
    harness = Harness(1024, 4 * MiB, tier)
    harness.store(0, *(page("heap", number) for number in range(pages)))
    assert harness.down.demote(pages) == pages
    return harness


def _load(harness: Harness, slot: int, count: int = 1) -> None:
    with suppress(TierError, SlotDamaged):
        harness.load(slot, count)


@pytest.mark.parametrize("fault", ["read_error", "short_read", "flipped_read"])
@pytest.mark.parametrize("count", [1, 8])
def test_failed_reads_of_the_file_tier(fault: str, count: int) -> None:
    harness = _demoted(FaultyTier(MemoryTier(8), fault, 1, ALWAYS))
    assert_nothing_stays(lambda: _load(harness, 0, count))
    assert harness.counter("failed_read_io") + harness.counter("failed_read_checksum") > TIMES


def test_a_blob_that_is_no_page() -> None:
    harness = Harness(1024, 4 * MiB, MemoryTier(8))
    harness.store(0, page("heap", 0))
    blob = harness.layer.blob(harness.layer.table.get(0))
    blob[:] = b"\xff" * len(blob)
    assert_nothing_stays(lambda: _load(harness, 0))  # in memory
    harness.down.demote(1)
    assert_nothing_stays(lambda: _load(harness, 0))


class FailsWhileFollowed(TierWrapper):
    """A tier whose reads fail as soon as another thread waits for the same bytes."""

    harness: Harness | None = None

    def read(self, sector: PSector, sectors: int, scratch: memoryview) -> memoryview:
        harness = self.harness
        assert harness is not None
        follower = threading.Thread(target=_load, args=(harness, 0), daemon=True)
        follower.start()
        self.follower = follower
        deadline_s = time.monotonic() + 30
        while not harness.fetcher.followers:
            assert time.monotonic() < deadline_s, "nobody follows"
            time.sleep(0)
        raise TierIOError("made to fail")


def test_followers_of_a_failed_read() -> None:
    tier = FailsWhileFollowed(MemoryTier(8))
    tier.harness = harness = _demoted(tier)

    def fail() -> None:
        _load(harness, 0)
        tier.follower.join(30)

    assert_nothing_stays(fail, TIMES // 4)
    assert harness.counter("failed_read_io") >= 2 * TIMES // 4


@pytest.mark.parametrize("fault", ["write_error", "full"])
def test_failed_demotions(fault: str) -> None:
    harness = Harness(1024, 4 * MiB, FaultyTier(MemoryTier(8), fault, 1, ALWAYS))
    harness.store(0, *(page("heap", number) for number in range(8)))

    def fail() -> None:
        harness.now_s += 100  # past the pause after a failure
        assert harness.down.demote(8) == 0

    # each failed write makes its sectors bad, for good
    assert_nothing_stays(fail, 50 if fault == "write_error" else TIMES)


@pytest.mark.parametrize("fault", ["write_error", "full"])
def test_failed_direct_writes(fault: str) -> None:
    harness = Harness(1024, 4 * MiB, FaultyTier(MemoryTier(8), fault, 1, ALWAYS))
    slot = 0
    while harness.store(slot, page("random", slot)):
        slot += 1

    def fail() -> None:
        harness.now_s += 100
        assert harness.write_direct(slot, page("random", slot)) < 0

    assert_nothing_stays(fail, 50 if fault == "write_error" else TIMES)


def test_writes_that_nobody_has_room_for() -> None:
    harness = Harness(1024, 2 * 65536)
    slot = 0
    while harness.store(slot, page("random", slot)):
        slot += 1

    def fail() -> None:
        assert harness.write(slot, page("random", slot)) == -ENOSPC

    assert_nothing_stays(fail)


def test_bugs_in_a_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = MemoryTier(8)
    harness = _demoted(tier)

    def buggy(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    for name in ("read", "write"):
        monkeypatch.setattr(tier, name, buggy)

    def fail() -> None:
        harness.now_s += 100
        with suppress(ZeroDivisionError):
            harness.load(0, 8)
        harness.write_direct(9, page("heap", 9))

    assert_nothing_stays(fail, 50)


def test_jobs_of_a_worker_that_fail() -> None:
    def start_thread(name: str, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    layer = Harness(8, MiB).layer
    workers = Workers(make_disks(layer, array("Q", [0]), 1), 1, 4096, 4096)
    workers.start(start_thread)
    ended = threading.Semaphore(0)

    def job(buffers: Buffers) -> None:
        ended.release()
        raise ZeroDivisionError("planted")

    def fail() -> None:
        workers.submit(job)
        assert ended.acquire(timeout=30)

    assert_nothing_stays(fail)
    workers.stop(30)


# ---- the swap file ----


def _full_file(tier: SectorStore | None) -> File:
    file = File(tier=tier, pool_bytes=2 * 65536, slots=64)
    slot = 0
    while file.harness.store(slot, page("random", slot)):
        slot += 1
    return file


def test_requests_that_the_file_tier_fails() -> None:
    file = File(tier=FaultyTier(MemoryTier(8), "read_error", 1, ALWAYS))
    file.write(0, page("heap", 0))
    assert file.harness.down.demote(1) == 1

    def fail() -> None:
        assert file.read(0, PAGE) == -EIO
        assert file.write(5, b"part") == -EIO
        assert file.fallocate(PUNCH, 5, 5) == -EIO
        file.tickets.clear()

    assert_nothing_stays(fail, TIMES // 4)


def test_requests_that_find_a_damaged_page() -> None:
    file = File()
    file.write(0, page("heap", 0))
    blob = file.harness.layer.blob(file.harness.layer.table.get(0))
    blob[:] = b"\xff" * len(blob)

    def fail() -> None:
        assert file.read(0, PAGE) == -EIO
        assert file.write(5, b"part") == -EIO
        assert file.fallocate(PUNCH, 5, 5) == -EIO

    assert_nothing_stays(fail)


@pytest.mark.parametrize("below", [False, True])
def test_requests_that_find_no_room(below: bool) -> None:
    file = _full_file(FaultyTier(MemoryTier(8), "full", 1, ALWAYS) if below else None)

    def fail() -> None:
        assert file.write(40 * PAGE, page("random", 40)) == -ENOSPC
        assert file.write(41 * PAGE + 100, page("random", 41)[:3900]) == -ENOSPC
        file.tickets.clear()

    assert_nothing_stays(fail, TIMES // 4)


def test_parts_whose_page_has_changed() -> None:
    """Answered EAGAIN within, and made again."""
    file = _full_file(MemoryTier(8))
    direct = file.harness.direct
    submit_if = direct.submit_if

    def changed_before(ticket: Answerable, slot: int, page: memoryview, still: Still) -> bool:
        direct.submit_if = submit_if  # type: ignore[method-assign]
        file.harness.store(slot, b"full" * 1024)
        return submit_if(ticket, slot, page, still)

    def fail() -> None:
        direct.submit_if = changed_before  # type: ignore[method-assign]
        file.harness.layer.discard_run(40, 1)
        assert file.write(40 * PAGE + 100, page("random", 40)[:3900]) == 3900
        assert direct.submit_if == submit_if
        file.tickets.clear()

    assert_nothing_stays(fail, TIMES // 4)


# ---- those who ask ----


async def _fail(_: dict[str, object]) -> object:
    raise TierError("made to fail")


async def _bug(_: dict[str, object]) -> object:
    raise ZeroDivisionError("planted")


def _talk(make: Callable[[], socket.socket], said: bytes, *, listen: bool = True) -> None:
    with make() as peer, suppress(OSError):
        if said:
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
        while listen and peer.recv(1 << 16):
            pass


@pytest.mark.parametrize(
    ("said", "listen"),
    [
        (b'{"command":"fail"}\n', True),
        (b'{"command":"bug"}\n', True),
        (b'{"command":"nobody"}\n', True),
        (b"no JSON\n", True),
        (b"no newline", True),
        (b"x" * (control_server.REQUEST_BYTES_MAX + 9000), True),
        (b'{"command":"fail"}\n' * 50, False),  # leaves in mid answer
        (b"", True),  # says nothing, and is cut off
    ],
)
async def test_peers_of_the_control_socket(said: bytes, listen: bool, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    handlers = {"fail": _fail, "bug": _bug}
    timeout_s = 0.01 if not said else 10.0

    def connect() -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
        return peer

    def measure() -> None:
        assert_nothing_stays(lambda: _talk(connect, said, listen=listen), TIMES // 10)

    async with trio.open_nursery() as nursery:
        serve = partial(control_server.serve, allowed_uid=os.geteuid(), peer_timeout_s=timeout_s)
        nursery.start_soon(serve, control_server.listen(path), handlers)
        await trio.to_thread.run_sync(measure)
        nursery.cancel_scope.cancel()


async def test_peers_that_take_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "sock"

    async def talkative(_: dict[str, object]) -> object:
        return {"text": "x" * (1 << 20)}

    def leave_it() -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(b'{"command":"talk"}\n')
            assert peer.recv(1, socket.MSG_PEEK)  # it has begun to answer
            ended = select.poll()
            ended.register(peer, select.POLLHUP)
            assert ended.poll(30_000), "the server waits for ever"

    async with trio.open_nursery() as nursery:
        serve = partial(
            control_server.serve,
            *(control_server.listen(path), {"talk": talkative}),
            allowed_uid=os.geteuid(),
            peer_timeout_s=0.01,
        )
        nursery.start_soon(serve)
        await trio.to_thread.run_sync(assert_nothing_stays, leave_it, TIMES // 10)
        nursery.cancel_scope.cancel()


def _directory_is_missing(path: Path) -> Path:
    return path / "nowhere" / "sock"


def _file_is_in_its_place(path: Path) -> Path:
    (path / "sock").write_text("mine")
    return path / "sock"


def _other_server_listens(path: Path) -> Path:
    other.append(control_server.listen(path / "sock"))
    return path / "sock"


other: list[control_server.Listener] = []


@pytest.mark.parametrize(
    "prevent", [_directory_is_missing, _file_is_in_its_place, _other_server_listens]
)
async def test_a_control_socket_that_cannot_be_made(
    prevent: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A server tries again every few seconds, for as long as that is so."""
    path = prevent(tmp_path)
    failures = 0
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            nursery.start_soon(control_server.serve, control_server.listen(path), {})

        async def fail() -> None:
            nonlocal failures
            try:
                await serve()
            except OperationError:
                failures += 1

        await assert_nothing_stays_of(fail, TIMES // 4)
    assert failures > TIMES // 4
    while other:
        other.pop().stream.close()


async def test_calls_that_fail_in_a_thread() -> None:
    def unmount() -> None:
        raise OperationError("busy") from OSError(EBUSY, "made to fail")

    async def fail() -> None:
        with suppress(OperationError):
            await in_thread(unmount)

    await assert_nothing_stays_of(fail, TIMES // 4)


def test_a_connection_that_nothing_can_be_set_for() -> None:
    """Whether or not the test may open fusectl."""

    def fail() -> None:
        fuse = FuseControl(os.makedev(0, 1 << 19))
        with suppress(OperationError):
            fuse.set("abort", 1)
        with suppress(OperationError):
            fuse.get("waiting")

    assert_nothing_stays(fail)


@pytest.mark.parametrize(
    "said", [b"GET /metrics HTTP/1.0", b"GET /nothing HTTP/1.0", b"POST / HTTP/1.0", b"\0\1\2"]
)
def test_peers_of_the_metrics_address(said: bytes) -> None:
    def bug() -> Status:
        raise ZeroDivisionError("planted")

    server = metrics.serve(("127.0.0.1", 0), bug)

    def connect() -> socket.socket:
        return socket.create_connection(server.address)

    assert_nothing_stays(lambda: _talk(connect, said + b"\r\n\r\n"), TIMES // 4)
    server.close()


async def test_requests_of_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> int:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(pyfuse3, "StatvfsData", bug)
    names = fs.Namespace([("swap", 1 << 20)], lambda: None)

    async def fail() -> None:
        for call in (names.lookup(1, b"nobody"), names.statfs(None), names.unlink(1, b"swap")):
            with suppress(pyfuse3.FUSEError):
                await call

    def run() -> None:
        with suppress(StopIteration):
            fail().send(None)

    assert_nothing_stays(run)


@pytest.fixture
def frozen() -> Iterator[None]:
    """Have the heap frozen as a server's is: what a collection looks at is what came since."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _nobody() -> tuple[str, int]:
    return "127.0.0.1", free_port()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Place(socket=Path("/nowhere/engine.sock")),
        lambda: Place(nodes=(_nobody(),)),
        lambda: Place(nodes=(_nobody(),), tls=True),
        lambda: Place(nodes=(_nobody(), _nobody()), cluster=True),
        lambda: Place(nodes=(_nobody(),), password_file=Path("/nowhere/password")),
    ],
    ids=["socket", "tcp", "tls", "cluster", "password"],
)
def test_engines_that_are_not_there(make: Callable[[], Place]) -> None:
    engine = Engine(make())

    def fail() -> None:
        with suppress(TierIOError):
            engine.ask("read", ["key"], lambda pipe, _: pipe.get("key"))
        with suppress(OperationError):
            engine.check("")

    assert_nothing_stays(fail, TIMES // 10)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("answer", [b"", b"$5\r\nabc", b"-OOM no room\r\n", b"?\r\n"])
def test_engines_that_break_off_or_lie(answer: bytes, tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "engine"))
    listening.listen()

    def answer_each() -> None:
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.recv(4096)
                peer.sendall(answer)

    thread = threading.Thread(target=answer_each, daemon=True)
    thread.start()
    engine = Engine(Place(socket=tmp_path / "engine"))

    def fail() -> None:
        with suppress(TierIOError):
            engine.ask("read", ["key"], lambda pipe, _: pipe.get("key"))

    assert_nothing_stays(fail, TIMES // 10)
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
