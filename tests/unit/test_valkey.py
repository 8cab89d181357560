"""Far memory: blobs in an engine that may die, forget, evict, refuse, or be somebody else's."""

from __future__ import annotations

import contextlib
import gc
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from valkey import exceptions
from valkey.client import Pipeline

from swapfs.errors import BlobCorrupt, OperationError, TierFull, TierIOError
from swapfs.testing.engine import WAIT_S, TestEngine, free_port, program
from swapfs.testing.harness import Harness
from swapfs.testing.pages import page
from swapfs.tiers.aead import KEY_BYTES, AeadSeal
from swapfs.tiers.base import Wanted
from swapfs.tiers.engine import Place
from swapfs.tiers.valkey import ValkeyTier
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, MiB
from swapfs.vlayer.entry import Backing

pytestmark = pytest.mark.skipif(program() is None, reason="install redis-server or valkey-server")

SLOTS = 2 * CLUSTER_SLOTS
PAGES = [page(("heap", "text", "random")[seed % 3], seed) for seed in range(90)]
PREFIX = "swapfs:test:1:"


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """Have the heap frozen as a server's is: the client's leftovers are collected at each error."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., TestEngine]]:
    made = []

    def make(*options: str) -> TestEngine:
        made.append(TestEngine(tmp_path / "engine", *options))
        return made[-1]

    yield make
    for engine in made:
        engine.kill()


@pytest.fixture
def engine(make_engine: Callable[..., TestEngine]) -> TestEngine:
    return make_engine()


_opened: list[ValkeyTier] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Have no tier's thread go on after its test: it would look for its engine for ever."""
    yield
    while _opened:
        _opened.pop().close()


def new_tier(place: Place, size_bytes: int = 8 * MiB) -> ValkeyTier:
    _opened.append(ValkeyTier(place, size_bytes, PREFIX, AeadSeal(bytes(KEY_BYTES))))
    return _opened[-1]


def tier_of(place: Place, size_bytes: int = 8 * MiB) -> ValkeyTier:
    tier = new_tier(place, size_bytes)
    tier.look()
    return tier


def harness_of(tier: ValkeyTier) -> Harness:
    harness = Harness(SLOTS, 2 * MiB, tier)
    assert harness.store(0, *PAGES) == len(PAGES)
    assert harness.down.demote(60) == 60
    return harness


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def below(harness: Harness) -> list[int]:
    return [slot for slot in range(90) if harness.backing(slot) is Backing.BELOW]


def test_pages_come_back_and_nobody_can_read_them_there(engine: TestEngine) -> None:
    tier = tier_of(engine.place)
    harness = harness_of(tier)
    client = engine.client()
    keys = client.keys("*")
    assert len(keys) == 60
    assert all(key.decode().startswith(PREFIX) for key in keys)
    assert {client.ttl(key) for key in keys} == {-1}, "nothing ends by itself"
    values = b"".join(client.mget(keys))
    assert b"brown" not in values
    harness.check()
    assert harness.load(0, 90) == b"".join(PAGES)
    used = tier.stats().used_bytes
    harness.layer.discard_run(0, 30)
    tier.delete_released()
    assert len(client.keys("*")) == 60 - 30
    assert tier.stats().used_bytes < used
    harness.layer.discard_run(0, SLOTS)
    tier.delete_released()
    assert (client.dbsize(), tier.stats().used_bytes) == (0, 0)


def test_what_the_engine_takes_is_counted(engine: TestEngine) -> None:
    client = engine.client()
    before = client.info("memory")["used_memory"]
    tier = tier_of(engine.place, 64 * MiB)
    harness = Harness(16 * CLUSTER_SLOTS, 32 * MiB, tier)
    for slot in range(0, 6000, 90):
        harness.store(slot, *PAGES)
    assert harness.down.demote(6000) == 6000
    taken = client.info("memory")["used_memory"] - before
    assert taken * 0.8 < tier.stats().used_bytes
    assert tier.stats().used_bytes > taken - 2 * MiB, "buffers of the connection"


def test_its_size_is_not_exceeded(engine: TestEngine) -> None:
    tier = tier_of(engine.place, 200_000)
    harness = Harness(SLOTS, 2 * MiB, tier)
    harness.store(0, *PAGES)
    moved = harness.down.demote(90)
    assert 20 < moved < 90
    assert tier.stats().used_bytes <= 200_000
    with pytest.raises(TierFull):
        tier.reserve(1)
    assert not tier.has_room()
    assert harness.load(0, 90) == b"".join(PAGES)


def test_an_engine_that_may_evict_is_refused(engine: TestEngine) -> None:
    engine.client().config_set("maxmemory-policy", "allkeys-lru")
    tier = new_tier(engine.place)
    with pytest.raises(OperationError, match="maxmemory-policy noeviction \\(it is allkeys-lru"):
        tier.check()
    with pytest.raises(TierFull):
        tier.reserve(1)


def test_a_policy_that_changes_later_stops_writes_and_nothing_else(engine: TestEngine) -> None:
    tier = tier_of(engine.place)
    harness = harness_of(tier)
    engine.client().config_set("maxmemory-policy", "volatile-lru")
    tier.look()
    assert "may evict" in tier.stats().cautions[0]
    assert harness.down.demote(10) == 0
    assert harness.load(0, 90) == b"".join(PAGES)
    engine.client().config_set("maxmemory-policy", "noeviction")
    tier.look()
    assert not tier.stats().cautions
    assert harness.down.demote(10) == 10


def test_a_death_costs_its_slots_until_it_is_back(
    make_engine: Callable[..., TestEngine],
) -> None:
    engine = make_engine("--appendonly", "yes", "--appendfsync", "always")
    tier = tier_of(engine.place)
    harness = harness_of(tier)
    there = below(harness)
    engine.kill()
    for slot in range(90):
        if slot in there:
            with pytest.raises(TierIOError):
                harness.load(slot)
        else:
            assert harness.load(slot) == PAGES[slot]
    assert harness.down.demote(10) == 0
    harness.store(there[0], PAGES[1])
    harness.layer.discard_run(there[1], 1)
    with pytest.raises(TierIOError):
        tier.delete_released()
    engine.start()
    tier.delete_released()
    assert engine.client().dbsize() == 58, "also what was tried in vain"
    expected = [PAGES[1] if s == there[0] else PAGES[s] for s in range(90)]
    expected[there[1]] = bytes(PAGE_SIZE)
    assert harness.load(0, 90) == b"".join(expected)
    harness.now_s += 60
    assert harness.down.demote(10) == 10
    harness.check()


def test_an_engine_that_comes_back_empty_has_lost_its_slots(engine: TestEngine) -> None:
    harness = harness_of(tier_of(engine.place))
    there = below(harness)
    engine.kill()
    engine.start()
    for slot in range(90):
        if slot in there:
            with pytest.raises(BlobCorrupt, match="has lost it"):
                harness.load(slot)
        else:
            assert harness.load(slot) == PAGES[slot]
    harness.store(there[0], PAGES[2])
    assert harness.load(there[0]) == PAGES[2]


def test_an_engine_without_memory_takes_nothing_and_is_not_broken(engine: TestEngine) -> None:
    tier = tier_of(engine.place)
    harness = Harness(SLOTS, 2 * MiB, tier)
    harness.store(0, *PAGES)
    engine.client().config_set("maxmemory", 1)
    assert harness.down.demote(60) == 0
    assert harness.health.problem(harness.now_s)
    assert harness.load(0, 90) == b"".join(PAGES)
    engine.client().config_set("maxmemory", "0")
    tier.delete_released()
    assert (engine.client().dbsize(), tier.stats().used_bytes) == (0, 0)
    harness.now_s += 60
    assert harness.down.demote(60) == 60
    harness.check()


@pytest.mark.parametrize("how", ["flipped", "cut short", "of another slot", "empty"])
def test_a_value_that_is_not_the_blob_is_an_error(engine: TestEngine, how: str) -> None:
    harness = harness_of(tier_of(engine.place))
    client, slot = engine.client(), below(harness)[0]
    (key,) = client.keys(f"{PREFIX}{slot:x}.*")
    value = client.get(key)
    (other,) = client.keys(f"{PREFIX}{below(harness)[1]:x}.*")
    changed = {
        "flipped": value[:60] + bytes([value[60] ^ 4]) + value[61:],
        "cut short": value[:-1],
        "of another slot": client.get(other),
        "empty": b"",
    }
    client.set(key, changed[how])
    with pytest.raises(BlobCorrupt):
        harness.load(slot)
    assert harness.counter("failed_read_checksum") == 1


def test_a_new_server_finds_what_the_old_one_stored(engine: TestEngine) -> None:
    tier = tier_of(engine.place)
    harness = harness_of(tier)
    used = tier.stats().used_bytes
    after = new_tier(engine.place)
    with pytest.raises(TierFull):
        after.reserve(1)
    second = Harness(SLOTS, 2 * MiB, after, region=harness.region)
    assert after.has_room(), "it takes pages at once"
    second.check()
    assert after.stats().used_bytes == used
    assert second.down.demote(20) == 20
    assert second.load(0, 90) == b"".join(PAGES)


def test_references_that_would_come_twice_are_not_given(engine: TestEngine) -> None:
    harness = harness_of(tier_of(engine.place))
    again = tier_of(engine.place)
    second = Harness(SLOTS, 2 * MiB, again, region=harness.region)
    second.layer.counters.add("server_starts", 1022)
    third = Harness(SLOTS, 2 * MiB, again, region=second.region)
    assert third.down.demote(5) == 0
    assert third.load(0, 90) == b"".join(PAGES)


def test_what_earlier_instances_left_is_deleted_and_nothing_else(engine: TestEngine) -> None:
    client = engine.client()
    for number in range(2500):
        client.set(f"swapfs:test:0:{number}", b"old")
    client.set("swapfs:test2:0:1", b"another instance's")
    client.set("cart:7", b"somebody's")
    tier_of(engine.place).check("swapfs:test:")
    assert set(client.keys("*")) == {b"swapfs:test2:0:1", b"cart:7"}


# ---- who may come in ----


def test_passwords_come_from_a_file(make_engine: Callable[..., TestEngine], tmp_path: Path) -> None:
    engine = make_engine("--requirepass", "secret")
    secret = tmp_path / "password"
    place = Place(socket=engine.socket, password_file=secret)
    tier = new_tier(place)
    with pytest.raises(OperationError, match="password: No such file"):
        tier.check()
    secret.write_text("wrong\n")
    with pytest.raises(OperationError, match=r"(?i)invalid.*password") as caught:
        tier.check()
    assert "\n" not in str(caught.value)
    with pytest.raises(OperationError, match=r"(?i)authentication required"):
        new_tier(engine.place).check()
    secret.write_text("secret\n")
    tier.check()
    harness = harness_of(tier_of(place))
    assert harness.load(0, 90) == b"".join(PAGES)


def _certificate(folder: Path) -> None:
    folder.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", folder / "key", "-out", folder / "cert"),
        ],
        check=True,
        capture_output=True,
    )


def test_tls_with_a_certificate_that_is_checked(
    make_engine: Callable[..., TestEngine], tmp_path: Path
) -> None:
    _certificate(tmp_path / "ours")
    _certificate(tmp_path / "others")
    port, cert = free_port(), tmp_path / "ours"
    make_engine(
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(cert / "cert"), "--tls-key-file", str(cert / "key")),
        *("--tls-ca-cert-file", str(cert / "cert")),
    )
    nodes = (("localhost", port),)
    others = Place(nodes=nodes, tls=True, ca_file=tmp_path / "others" / "cert")
    with pytest.raises(OperationError, match="CERTIFICATE_VERIFY_FAILED"):
        new_tier(others).check()
    with pytest.raises(OperationError):
        new_tier(Place(nodes=nodes)).check()
    place = Place(nodes=nodes, tls=True, ca_file=cert / "cert")
    new_tier(place).check()
    harness = harness_of(tier_of(place))
    assert harness.load(0, 90) == b"".join(PAGES)


def test_nobody_there(tmp_path: Path) -> None:
    tier = new_tier(Place(socket=tmp_path / "none"))
    with pytest.raises(OperationError, match="none"):
        tier.check()
    with pytest.raises(TierIOError):
        tier.look()
    with pytest.raises(TierFull):
        tier.reserve(1)


def test_what_the_client_says_of_a_cluster_is_an_error_of_the_tier(engine: TestEngine) -> None:
    """Some of it is no ValkeyError: a bug for whoever does not expect it (I4, I6)."""
    port = engine.client().config_get("port")["port"]
    for place in (
        Place(nodes=(("127.0.0.1", free_port()),), cluster=True),
        Place(nodes=(("127.0.0.1", int(port) or free_port()),), cluster=True),
    ):
        tier = new_tier(place)
        with pytest.raises(OperationError, match="127"):
            tier.check()
        with pytest.raises(TierIOError, match="127"):
            tier.look()
        wanted = Wanted(3, 0, 0)
        tier.load([wanted], memoryview(bytearray(8)))
        assert wanted.failure is not None
        assert wanted.failure.kind is TierIOError


@pytest.mark.parametrize("error", [exceptions.SlotNotCoveredError, exceptions.ConnectionError])
def test_a_cluster_that_falls_apart_fails_each_request_of_its_own(
    engine: TestEngine, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = harness_of(tier_of(engine.place))
    slot = below(harness)[0]

    def fail(*_: object, **__: object) -> None:
        raise error("slot 7 is not covered by the cluster")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "execute", fail)
        with pytest.raises(TierIOError, match="not covered"):
            harness.load(slot)
        assert harness.down.demote(10) == 0
        assert harness.counter("failed_demotions") == 1
    assert harness.load(0, 90) == b"".join(PAGES)


def test_its_thread_looks_and_deletes(engine: TestEngine) -> None:
    tier = new_tier(engine.place)
    harness = Harness(SLOTS, 2 * MiB, tier)
    harness.store(0, *PAGES)

    def moved() -> bool:
        harness.now_s += 10
        return harness.down.demote(60) > 0

    wait_until(moved, "the thread to look")
    harness.layer.discard_run(0, SLOTS)
    wait_until(lambda: not engine.client().dbsize(), "the thread to delete")


# ---- a cluster ----


@contextlib.contextmanager
def cluster_of(tmp_path: Path, count: int, replicas: int = 0) -> Iterator[list[TestEngine]]:
    cli = shutil.which("valkey-cli") or shutil.which("redis-cli")
    if cli is None:
        pytest.skip("install redis-tools or valkey-tools")
    ports = [free_port() for _ in range(count)]
    nodes = [
        TestEngine(
            *(tmp_path / str(port), "--port", str(port), "--cluster-enabled", "yes"),
            *("--cluster-require-full-coverage", "no", "--cluster-node-timeout", "2000"),
            *("--cluster-port", str(free_port()), "--repl-diskless-sync-delay", "0"),
        )
        for port in ports
    ]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    try:
        command = [cli, "--cluster", "create", *addresses, "--cluster-yes"]
        command += ["--cluster-replicas", str(replicas)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        wait_until(lambda: all(map(_is_whole, nodes)), "the cluster")
        if replicas:
            wait_until(lambda: all(map(_is_linked, nodes)), "the replicas")
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[TestEngine]]:
    with cluster_of(tmp_path, 3) as nodes:
        yield nodes


def _is_linked(node: TestEngine) -> bool:
    """Whether it is, and knows who has which replica."""
    client = node.client()
    ranges = client.execute_command("CLUSTER SLOTS")
    knows = len(ranges) == 3 and all(len(each) > 3 for each in ranges)
    return bool(knows and client.info("replication").get("master_link_status", "up") == "up")


def _is_whole(node: TestEngine) -> bool:
    return bool(node.client().execute_command("CLUSTER INFO")["cluster_state"] == "ok")


def test_a_node_of_a_cluster_costs_its_slots(cluster: list[TestEngine]) -> None:
    ports = [int(node.folder.name) for node in cluster]
    place = Place(nodes=tuple(("127.0.0.1", port) for port in ports), cluster=True)
    new_tier(place).check("swapfs:test:")
    harness = harness_of(tier_of(place))
    sizes = [node.client().dbsize() for node in cluster]
    assert sum(sizes) == 60
    assert all(sizes), "each has some"
    assert harness.load(0, 90) == b"".join(PAGES)
    there = {int(key.decode().removeprefix(PREFIX).split(".")[0], 16) for key in _keys(cluster[0])}
    cluster[0].kill()
    failed = set()
    for slot in range(90):
        try:
            assert harness.load(slot) == PAGES[slot]
        except TierIOError:
            failed.add(slot)
    assert failed == there
    cluster[1].client().config_set("maxmemory-policy", "allkeys-random")
    with pytest.raises((OperationError, TierIOError), match=r"may evict|cannot|127"):
        new_tier(place).check()


def _keys(node: TestEngine) -> list[bytes]:
    keys: list[bytes] = node.client().keys("*")
    return keys


# ---- a node that hangs ----


def test_an_engine_that_hangs_is_asked_once_until_it_answers_again(
    make_engine: Callable[..., TestEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each read would hold a worker, which disks need too, for seconds."""
    engine = make_engine()
    harness = harness_of(tier_of(engine.place))
    slot, *others = below(harness)
    asked = 0
    read: Callable[..., object] = Pipeline.execute

    def count(self: Pipeline, raise_on_error: bool = True) -> object:
        nonlocal asked
        asked += 1
        return read(self, raise_on_error)

    with engine.stopped(), monkeypatch.context() as patch:
        patch.setattr(Pipeline, "execute", count)
        for number in (slot, *others):
            with pytest.raises(TierIOError, match=r"(?i)timeout|does not answer"):
                harness.load(number)
        assert asked == 1
        kept = next(number for number in range(90) if number not in (slot, *others))
        assert harness.load(kept) == PAGES[kept]
    wait_until(lambda: _reads(harness, slot) == PAGES[slot], "its pages")
    assert harness.load(0, 90) == b"".join(PAGES)
    assert harness.counter("lost_pages") == harness.counter("failed_read_checksum") == 0


def _reads(harness: Harness, slot: int) -> bytes | None:
    try:
        return harness.load(slot)
    except TierIOError:
        return None


def test_what_a_node_costs_is_not_what_is_read_with_it(cluster: list[TestEngine]) -> None:
    """A read of several pages ends where the first is missing, not before."""
    ports = [int(node.folder.name) for node in cluster]
    place = Place(nodes=tuple(("127.0.0.1", port) for port in ports), cluster=True)
    harness = harness_of(tier_of(place))
    there = {int(key.decode().removeprefix(PREFIX).split(".")[0], 16) for key in _keys(cluster[0])}
    cluster[0].kill()
    first = 0
    while first < 90:
        if first in there:
            assert _reads(harness, first) is None
            first += 1
            continue
        got = len(harness.load(first, 90 - first)) // PAGE_SIZE
        assert got
        assert not there & set(range(first, first + got))
        first += got


# ---- replicas ----


@pytest.mark.timeout(120)
def test_with_replicas_the_death_of_a_node_costs_nothing(tmp_path: Path) -> None:
    """While nobody has taken its place yet, and after; what is stored is on two nodes."""
    with cluster_of(tmp_path, 6, replicas=1) as nodes:
        ports = [int(node.folder.name) for node in nodes]
        place = Place(nodes=tuple(("127.0.0.1", port) for port in ports), cluster=True)
        ValkeyTier(place, MiB, PREFIX, AeadSeal(bytes(KEY_BYTES))).check("swapfs:test:")
        tier = tier_of(place)
        harness = harness_of(tier)
        assert sum(node.client().dbsize() for node in nodes) == 2 * 60
        victim = next(node for node in nodes if _role(node) == "master" and node.client().dbsize())
        victim.kill()
        assert harness.load(0, 90) == b"".join(PAGES), "from its replica"
        others = [node for node in nodes if node is not victim]
        wait_until(lambda: sum(_role(node) == "master" for node in others) == 3, "a new primary")
        assert harness.load(0, 90) == b"".join(PAGES)

        def moved() -> bool:
            harness.now_s += 100
            return harness.down.demote(20) > 0

        wait_until(moved, "writes to go on")
        assert harness.load(0, 90) == b"".join(PAGES)
        for counter in ("lost_pages", "failed_read_io", "failed_read_checksum"):
            assert harness.counter(counter) == 0
        harness.check()


def test_what_no_replica_has_is_not_stored(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 6, replicas=1) as nodes:
        place = Place(nodes=(("127.0.0.1", int(nodes[0].folder.name)),), cluster=True)
        tier = tier_of(place)
        harness = Harness(SLOTS, 2 * MiB, tier)
        assert harness.store(0, *PAGES) == len(PAGES)
        replicas = [node for node in nodes if _role(node) == "slave"]
        with contextlib.ExitStack() as stack:
            for node in replicas:
                stack.enter_context(node.stopped())
            assert harness.down.demote(60) == 0
            assert not below(harness)
        harness.now_s += 100
        wait_until(lambda: harness.down.demote(60) > 0, "the replicas to go on")
        assert harness.load(0, 90) == b"".join(PAGES)


def _role(node: TestEngine) -> str:
    return str(node.client().info("replication")["role"])
