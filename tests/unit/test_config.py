"""Values from command line and file, each mistake as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapfs.config.backing import FileTierConfig
from swapfs.config.exports import ExportConfig
from swapfs.config.model import Config, check_room, describe, load
from swapfs.config.option import Option, Section, as_size, check_keys, fields, settle, shown
from swapfs.config.options import BY_KEY, DEFAULTS, OPTIONS
from swapfs.config.values import exact_size, parse_name, parse_size
from swapfs.errors import ConfigError
from swapfs.host import syscalls
from swapfs.units import GiB, MiB, TiB
from swapfs.vlayer.capacity import geometry_for, require_room
from swapfs.wire import control, state_file

CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 1 GiB of memory, where /busy and /own are mount points."""
    proc = tmp_path / "root/proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        1048576 kB\nMemFree:    5 kB\n")
    busy, own = tmp_path / "busy", tmp_path / "own"
    busy.mkdir()
    own.mkdir()
    (proc / "self/mountinfo").write_text(
        f"27 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"30 27 0:40 / {busy} rw shared:5 - tmpfs tmpfs rw\n"
        f"31 27 0:41 / {own} rw - fuse.swapfs swapfs:swapfs rw\n"
    )
    return tmp_path / "root"


BASE = {"size": "64M", "pool": "16M"}


def problem(cli: dict[str, object], root: Path, file: Path | None = None) -> str:
    """Return the one line that load says about *cli*."""
    with pytest.raises(ConfigError) as caught:
        load({**BASE, **cli}, file, root)
    line = str(caught.value)
    assert line.isprintable(), "a mistake is one line"
    return line


def test_defaults(root: Path) -> None:
    config = load(BASE, None, root)
    assert config == Config(
        mountpoint=Path("/run/swapfs/swapfs/mnt"),
        log_dir=Path("/run/swapfs"),
        size_bytes=64 * MiB,
        pool_bytes=16 * MiB,
    )


def test_command_line_wins_over_file_wins_over_default(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "swapfs.toml"
    file.write_text('size = "128M"\npool = 33554432\npriority = 7\npromote = true\n')
    config = load({"size": "64M", "pool": None}, file, root)
    assert (config.size_bytes, config.pool_bytes) == (64 * MiB, 32 * MiB)
    assert (config.priority, config.promote, config.overcommit) == (7, True, 1.0)
    assert load({"promote": False}, file, root).promote is False


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("size", "lots", "--size: 'lots' is not a size"),
        ("size", "9" * 400 + "G", "--size: "),
        ("size", "64M\n", None),
        ("size", "1048577", "--size: 1048577 is not a multiple of 4096 (nearest below: 1048576)"),
        ("size", "4K", "too small (least: 1M)"),
        ("size", "2T", "--size: 2T is too large (most: 1T)"),
        ("size", -4096, "negative"),
        ("size", True, "is not text"),
        ("pool", "2M", "--pool: 2M is too small (least: 4M)"),
        ("pool", "2G", "--pool: 2G is more than this machine's memory of 1G"),
        ("name", "a/b", "is no name"),
        ("name", "..", "is no name"),
        ("name", "-x", "is no name"),
        ("name", "x" * 33, "is no name"),
        ("name", "a.json", "'a.json' is no name: .json is the ending of a file of instance a"),
        ("overcommit", "0.5", "--overcommit: '0.5' is not a number from 1 to"),
        ("overcommit", "nan", "is not a number"),
        ("overcommit", [2], "is not a number"),
        ("metrics", "127.0.0.1", "--metrics: '127.0.0.1' is no address"),
        ("metrics", "127.0.0.1:70000", "is no address"),
        ("metrics", "::1:9809", "is no address"),
        ("metrics", "a\nb:1", "is no address"),
        ("metrics", 9809, "is not text"),
        ("high-watermark", "101", "whole number from 1 to 100"),
        ("low-watermark", "90", "--low-watermark: the low watermark (90) must be below"),
        ("high-watermark", 60, "--high-watermark: the low watermark (80) must be below"),
        ("min-free", "lots", "--min-free: 'lots' is not a size"),
        ("min-free", "512M", "--min-free: 512M is too much for this machine (most: 256M)"),
        ("min-free", True, "is not text"),
        ("priority", "-2", "whole number from 0 to 32767"),
        ("priority", "1.5", "whole number"),
        ("priority", True, "whole number"),
        ("promote", "yes", "neither true nor false"),
        ("file", "/nowhere/swap:1G", "--file: /nowhere/swap: there is no directory /nowhere"),
        ("file", "/var/tmp/swapfs-not-there", "write /var/tmp/swapfs-not-there:SIZE"),
        ("file", "/var/tmp/x:big", "'big' is not a size"),
        ("file", "/var/tmp/x:4097", "is not a multiple of 4096"),
        ("file", "/var/tmp/x:4K", "too small (least: 3M)"),
        ("file", "/dev/swapfs-not-there:8M", "--file: there is no device /dev/swapfs-not-there"),
        ("file", "/dev/disk/by-id/none:8M", "--file: there is no device /dev/disk/by-id/none"),
        ("file", "/dev/null:1M", "neither a file nor a block device"),
        ("file", "/var/tmp/swapfs-not-there:3T", "3T is too large (most: 2T; write"),
        (
            "file",
            "/var/tmp/swapfs-not-there:1024T",
            "(most: 2T; write /var/tmp/swapfs-not-there:2T)",
        ),
        ("file", "", "is not a usable path"),
        ("file-direct-io", "on", "there is no file"),
        ("log-dir", "/nowhere", "log-dir: /nowhere: No such file"),
        ("log-dir", "/etc/passwd", "log-dir: /etc/passwd is not a directory"),
        ("mountpoint", "/nowhere", "mountpoint: /nowhere: No such file"),
        ("mountpoint", "/etc/passwd", "mountpoint: /etc/passwd is not a directory"),
    ],
)
def test_each_mistake_is_one_line(root: Path, key: str, value: object, says: str | None) -> None:
    if says is None:
        assert load({**BASE, key: value}, None, root).size_bytes == 64 * MiB
    else:
        assert says in problem({key: value}, root)


def test_no_instance_is_named_like_a_file_of_another() -> None:
    run = Path("/run")
    made = {control.socket_path(run, "a").name, state_file.path(run, "a").name}
    documented = re.findall(r"^\| `NAME(\.\w+)` \|", CONFIGURATION.read_text(), re.MULTILINE)
    made |= {f"a{suffix}" for suffix in documented}
    assert {"a.sock", "a.json", "a.lock", "a.log", "a.tmp"} <= made
    for name in made:
        with pytest.raises(ConfigError, match=r"is no name: .* is the ending of a file of"):
            parse_name("NAME", name)
    for name in ("json", "a.jsonl", "log.1", "a-lock", "a.b"):
        assert parse_name("NAME", name) == name


@pytest.mark.parametrize("key", ["size", "pool"])
def test_missing_key(root: Path, key: str) -> None:
    assert f"{key}: missing: give --{key}" in problem({key: None}, root)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("poool = 1", "poool: unknown key (did you mean pool?)"),
        ("high_watermark = 1", "did you mean high-watermark?"),
        ("zzz = 1", "unknown key (known: size,"),
        ('"a\\nb" = 1', "unknown key"),
        ("size = ", "not TOML: "),
        ("[file]\npath = 'x'", "file: {'path': 'x'} is not text"),
        ("unsafe = 1", "unsafe: 1 is neither true nor false"),
    ],
)
def test_mistakes_in_the_file_name_file_and_key(
    root: Path, tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "swapfs.toml"
    file.write_text(content)
    line = problem({}, root, file)
    assert line.startswith(f"{file}: ")
    assert says in line


def test_a_byte_order_mark_is_no_mistake(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "windows.toml"
    file.write_bytes(b"\xef\xbb\xbfpriority = 7\r\n")
    assert load(BASE, file, root).priority == 7


def test_a_directory_too_deep_for_a_socket_is_refused(root: Path, tmp_path: Path) -> None:
    most = 107 - len("/swapfs.sock")
    fits = f"{tmp_path}/{'x' * 200}"[:most]
    fits = fits if fits[-1] != "/" else fits[:-1] + "x"
    load({**BASE, "runtime-dir": fits}, None, root)
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError):
        probe.bind(f"{fits}/swapfs.sock")
    line = problem({"runtime-dir": fits + "y"}, root)
    says = f"{fits}y is 1 bytes too long to have the socket of the instance in it"
    assert line == f"--runtime-dir: {says}"


def test_unreadable_files(root: Path, tmp_path: Path) -> None:
    assert "No such file" in problem({}, root, tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    assert "not TOML" in problem({}, root, tmp_path / "latin.toml")
    (tmp_path / "deep.toml").write_text("size = " + "[" * 100_000)
    assert "nested too deep" in problem({}, root, tmp_path / "deep.toml")


@pytest.mark.parametrize(
    ("magic", "says"),
    [
        (0x01021994, "on tmpfs: what is in memory frees none"),
        (0x858458F6, "on ramfs: what is in memory"),
        (0x6969, "on nfs: who serves it may need memory"),
        (0x65735546, "on fuse: who serves it"),
    ],
)
def test_a_file_where_a_page_may_need_memory_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, says: str
) -> None:
    monkeypatch.setattr(syscalls, "file_system_type", lambda fd: magic)
    (tmp_path / "old").write_bytes(bytes(MiB))
    for name in ("new", "old"):
        given: dict[str, object] = {"file": f"{tmp_path}/{name}:8M"}
        line = problem(given, root)
        assert f"{tmp_path}/{name} is {says}" in line
        assert line.endswith("(--unsafe goes on)")
        assert load({**BASE, **given, "unsafe": True}, None, root).file is not None


def test_a_link_that_up_would_refuse_is_refused_before(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "tier")
    assert "is a link to what is not there" in problem({"file": f"{tmp_path}/link:8M"}, root)
    (tmp_path / "tier").write_bytes(bytes(8 * MiB))
    line = problem({"file": f"{tmp_path}/link:8M"}, root)
    assert line.endswith(f"is a link to a file: name {tmp_path}/tier instead")


def test_busy_mount_point(root: Path, tmp_path: Path) -> None:
    assert "is busy: tmpfs (tmpfs) is mounted there" in problem(
        {"mountpoint": str(tmp_path / "busy")}, root
    )
    (tmp_path / "link").symlink_to(tmp_path / "busy")
    assert "is busy" in problem({"mountpoint": str(tmp_path / "link")}, root)


def test_our_own_mount_is_left_for_up_to_refuse(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert load({**BASE, "mountpoint": str(own)}, None, root).mountpoint == own
    assert "is busy" in problem({"mountpoint": str(own), "name": "other"}, root)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("auto", None), ("off", 0), ("0", 0), ("1500", 1024), ("8M", 8 << 20)]
)
def test_reserve(root: Path, text: str, size_bytes: int | None) -> None:
    config = load({**BASE, "min-free": text}, None, root)
    assert config.min_free_bytes == size_bytes
    assert load(json.loads(describe(config, as_json=True)), None, root) == config


def test_pool_is_rounded_down(root: Path) -> None:
    assert load({**BASE, "pool": "5000000"}, None, root).pool_bytes == 4980736


def test_an_existing_file_gives_its_size(root: Path, tmp_path: Path) -> None:
    backing = tmp_path / "back:ing"
    backing.touch()
    os.truncate(backing, 6 * MiB + 100)
    config = load({**BASE, "file": str(backing), "file-direct-io": "on"}, None, root)
    assert config.file == FileTierConfig(backing, 6 * MiB, "on")
    config = load({**BASE, "file": f"{backing}:4M"}, None, root)
    assert config.file == FileTierConfig(backing, 4 * MiB, "auto")


def test_space_that_a_file_has_already_is_not_asked_for_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"x" * 6 * MiB)
    full = SimpleNamespace(f_bavail=0, f_frsize=4096)
    monkeypatch.setattr("os.statvfs", lambda path: full)
    assert load({**BASE, "file": f"{backing}:4M"}, None, root).file is not None
    assert "has 0B free" in problem({"file": f"{backing}:8M"}, root)
    assert "its file system has 0B free" in problem({"file": f"{tmp_path}/new:2T"}, root)


def _block_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> Path:
    """Return what passes for a block device of *size_bytes*."""
    device = tmp_path / "device"
    device.touch()
    os.truncate(device, size_bytes)
    monkeypatch.setattr("stat.S_ISREG", lambda mode: False)
    monkeypatch.setattr("stat.S_ISBLK", lambda mode: True)
    return device


def test_a_block_device_must_have_the_size(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = _block_device(tmp_path, monkeypatch, 4 * MiB)
    config = load({**BASE, "file": str(device)}, None, root)
    assert config.file == FileTierConfig(device, 4 * MiB)
    assert "has only 4M, 8M asked for" in problem({"file": f"{device}:8M"}, root)


def test_a_block_device_may_be_larger_than_what_is_used_of_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = _block_device(tmp_path, monkeypatch, 3 * TiB)
    expected = f"--file: {device}: 3T is too large (most: 2T; write {device}:2T)"
    assert problem({"file": str(device)}, root) == expected
    config = load({**BASE, "file": f"{device}:2T"}, None, root)
    assert config.file == FileTierConfig(device, 2 * TiB)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("off", None),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:9809", ("127.0.0.1", 9809)),
        ("[::1]:9809", ("::1", 9809)),
    ],
)
def test_metrics_address(root: Path, text: str, address: tuple[str, int] | None) -> None:
    config = load({**BASE, "metrics": text}, None, root)
    assert config.metrics == address


def room_config(size_bytes: int, overcommit: float = 1.0) -> Config:
    return Config(
        mountpoint=Path("/mnt"), size_bytes=size_bytes, pool_bytes=4 * MiB, overcommit=overcommit
    )


def test_room_names_the_three_cures() -> None:
    with pytest.raises(ConfigError) as caught:
        check_room(room_config(GiB), 300 * MiB)
    line = str(caught.value)
    assert "1G is more than the guaranteed room of 300M" in line
    assert "add --file PATH:SIZE" in line
    assert "lower --size to 300M" in line
    assert "--overcommit 3.5" in line  # 3.413 rounded up


def test_no_room_at_all() -> None:
    with pytest.raises(ConfigError, match="room of 0B"):
        check_room(room_config(GiB), 0)


@given(st.integers(1, 1 << 28), st.integers(1, 1 << 40))
def test_the_named_ratio_suffices_and_the_next_lower_does_not(pages: int, room: int) -> None:
    size = pages * 4096
    try:
        check_room(room_config(size), room)
    except ConfigError as error:
        ratio = float(str(error).rpartition("--overcommit ")[2])
        check_room(room_config(size, ratio), room)
        lower = round(ratio - 0.1, 1)
        if lower >= 1:
            with pytest.raises(ConfigError):
                check_room(room_config(size, lower), room)
    else:
        assert size <= room


def test_described_config_reads_back(root: Path, tmp_path: Path) -> None:
    config = load(
        {
            "name": "a.b",
            "mountpoint": str(tmp_path),
            "size": "1028K",
            "pool": "5000000",
            "pool-max": "6M",
            "overcommit": "2.5",
            "file": f"{tmp_path}/b \"'é:4M",
            "file-direct-io": "off",
            "metrics": "[::1]:1",
            "high-watermark": "70",
            "low-watermark": "60",
            "promote": True,
            "priority": "5",
            "min-free": "20M",
            "unsafe": True,
            "runtime-dir": str(tmp_path / "run"),
            "log-dir": str(tmp_path),
        },
        None,
        root,
    )
    file = tmp_path / "again.toml"
    file.write_text(describe(config))
    assert load({}, file, root) == config
    assert set(json.loads(describe(config, as_json=True))) == set(BY_KEY)
    assert load(json.loads(describe(config, as_json=True)), None, root) == config


# whatever is in the file: a configuration, or one line

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["64M", "auto", "off", "/var/tmp/x:1M", "/tmp", "\x00", "[::1]:1", "1e400", "-1"]
    ),
    st.text(alphabet="/:.KMGT0123456789", max_size=400),
)
LEAVES = st.one_of(
    TEXTS, st.integers(), st.floats(), st.booleans(), st.datetimes(), st.dates(), st.times()
)
TOML_VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PER_KEY = st.dictionaries(st.sampled_from(sorted(BY_KEY)), TOML_VALUES, max_size=6)
FUZZ = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says_why(given: dict[str, object], root: Path, file: Path | None) -> None:
    try:
        config = load(given, file, root)
    except ConfigError as error:
        line = str(error)
    else:
        line = describe(config).replace("\n", " ")
        assert load(json.loads(describe(config, as_json=True)), None, root) == config
    assert line.isprintable()


@FUZZ
@given(changes=PER_KEY)
def test_any_values_load_or_are_one_line(root: Path, changes: dict[str, object]) -> None:
    loads_or_says_why({**BASE, **changes}, root, None)


@FUZZ
@given(content=st.binary(max_size=60) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_in_the_file_load_or_are_one_line(
    root: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "fuzz.toml"
    for start in (b"", b"promote = ", b"size = '", b"[file]\n"):
        file.write_bytes(start + content)
        loads_or_says_why(dict(BASE), root, file)


# the table of options


def test_every_field_of_a_config_is_an_option_and_every_option_a_field(tmp_path: Path) -> None:
    config = Config(
        mountpoint=tmp_path,
        size_bytes=MiB,
        pool_bytes=MiB,
        file=FileTierConfig(tmp_path, MiB),
        metrics=("127.0.0.1", 1),
        log_dir=tmp_path,
    )
    in_table = [option.field for option in OPTIONS]
    assert len(set(in_table)) == len(in_table)
    described = {name for name in in_table if "." not in name}
    assert described == {field.name for field in dataclasses.fields(Config)} - {
        "tiers",
        "described",
    }
    for option in OPTIONS:
        value = option.value_in(config)
        assert value is not None or option.key == "min-free", f"{option.key}: no {option.field}"


def test_a_file_tier_has_the_defaults_of_the_table(tmp_path: Path) -> None:
    tier = FileTierConfig(tmp_path, MiB)
    assert tier.direct_io == DEFAULTS["file-direct-io"]
    assert tier.encryption == DEFAULTS["file-encryption"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_a_default_reads_back(option: Option) -> None:
    written = None if option.required else option.show(option.default, exact_size)
    if written is not None and option.key not in ("mountpoint", "log-dir"):
        assert option.parse(option.key, written) == option.default


@dataclasses.dataclass
class Shelf:
    """What a table of its own would describe."""

    label: str
    size_bytes: int


SHELF = (
    Option(
        key="label",
        field="label",
        section=Section.ROOM,
        parse=lambda where, value: str(value),
        default="top",
        takes="text",
        help="",
        text="",
    ),
    Option(
        key="shelf-size",
        field="size_bytes",
        section=Section.ROOM,
        parse=parse_size,
        show=as_size,
        default=MiB,
        takes="bytes",
        help="",
        text="",
    ),
)


def test_another_list_of_rows_is_read_and_shown_in_the_same_way(tmp_path: Path) -> None:
    given: dict[str, tuple[str, object]] = {"shelf-size": ("t.toml: shelf: shelf-size", "2M")}
    shelf = Shelf(**fields(SHELF, settle(SHELF, given, tmp_path)))
    assert shelf == Shelf("top", 2 * MiB)
    assert shown(SHELF, shelf, exact_size) == {"label": "top", "shelf-size": "2M"}
    with pytest.raises(ConfigError, match="did you mean shelf-size"):
        check_keys(SHELF, ["shelf_size"], "t.toml")


# tables of tiers

TIERS = """
size = "64M"
pool = "16M"
file = "{folder}/a:4M"

[[tier]]
path = "{folder}/b"
size = "6M"
priority = 7

[[tier]]
kind = "file"
name = "slow"
path = "{folder}/c"
size = 8388608
encryption = false
direct-io = "off"
"""


def _tiers(tmp_path: Path, text: str = TIERS) -> Path:
    file = tmp_path / "tiers.toml"
    file.write_text(text.format(folder=tmp_path))
    return file


def test_tables_of_tiers_stand_beside_file_and_read_back(tmp_path: Path, root: Path) -> None:
    config = load({}, _tiers(tmp_path), root)
    assert [tier.name for tier in config.all_tiers] == ["file", "file1", "slow"]
    assert config.tier_bytes == (4 * MiB, 6 * MiB, 8 * MiB)
    assert [tier.priority for tier in config.all_tiers] == [0, 7, 0]
    assert config.tiers[1].file == FileTierConfig(tmp_path / "c", 8 * MiB, "off", False)
    again = tmp_path / "again.toml"
    again.write_text(describe(config))
    assert load({}, again, root) == config
    assert load(json.loads(describe(config, as_json=True)), None, root) == config


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"slow"', '"file1"', "tier 2: name: another tier is called file1 too"),
        ('"slow"', '"file"', "tier 2: name: another tier is called file too"),
        ('"slow"', '"a b"', "tier 2: name: "),
        ("/c", "/b", "tier 2: path: another tier uses "),
        ("/c", "/a", "tier 2: path: another tier uses "),
        ("/b", "/no/b", "tier 1: path: "),
        ('"6M"', '"6"', "tier 1: size: "),
        ('"6M"', '"64K"', "tier 1: path: "),
        ("priority = 7", 'priority = "x"', "tier 1: priority: "),
        ("priority = 7", "prioritty = 7", "prioritty: unknown key (did you mean priority?)"),
        ('path = "{folder}/b"\n', "", "tier 1: path is missing"),
        ('kind = "file"', 'kind = "tape"', "tier 2: kind: "),
        ("[[tier]]", "[tier]", "Cannot declare"),
    ],
)
def test_a_bad_table_has_one_line(
    tmp_path: Path, root: Path, old: str, new: str, expected: str
) -> None:
    assert old in TIERS
    with pytest.raises(ConfigError) as caught:
        load({}, _tiers(tmp_path, TIERS.replace(old, new)), root)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_tiers_are_no_more_than_a_word_can_name(tmp_path: Path, root: Path) -> None:
    def text(count: int) -> str:
        head = TIERS.split("[[tier]]")[0]
        return head + "".join(
            f'[[tier]]\npath = "{{folder}}/t{number}"\nsize = "4M"\n' for number in range(count)
        )

    assert len(load({}, _tiers(tmp_path, text(6)), root).all_tiers) == 7
    with pytest.raises(ConfigError, match="8 tiers are too many"):
        load({}, _tiers(tmp_path, text(7)), root)
    with pytest.raises(ConfigError, match="list of tables"):
        load({}, _tiers(tmp_path, "tier = 5\n" + text(0)), root)


# tables of exports

EXPORTS = """
size = "64M"
pool = "16M"
priority = 50
file = "{folder}/a:64M"

[[tier]]
name = "slow"
path = "{folder}/c"
size = "64M"

[[export]]
name = "swap"
quota = "40M"

[[export]]
name = "batch"
size = "6M"
tiers = ["slow"]
quota = "8M"

[[export]]
name = "rest"
size = 4096000
priority = 7
tiers = []
"""


def test_tables_of_exports_describe_the_swap_files_and_read_back(
    tmp_path: Path, root: Path
) -> None:
    config = load({"overcommit": 3}, _tiers(tmp_path, EXPORTS), root)
    main, batch, rest = config.exports
    assert main == ExportConfig(name="swap", size_bytes=64 * MiB, priority=50, quota_bytes=40 * MiB)
    assert (batch.priority, batch.tiers, batch.quota_bytes) == (50, ("slow",), 8 * MiB)
    assert (rest.priority, rest.tiers, rest.quota_bytes) == (7, (), 0)
    assert config.virtual_bytes == 70 * MiB + 4096000
    assert config.span_bytes == 70 * MiB + 4096000, "the last is not made whole clusters"
    again = tmp_path / "again.toml"
    again.write_text(describe(config))
    assert load({}, again, root) == config
    assert load(json.loads(describe(config, as_json=True)), None, root) == config


def test_without_a_table_there_is_one_file(tmp_path: Path, root: Path) -> None:
    config = load({}, _tiers(tmp_path), root)
    assert config.described == ()
    (only,) = config.exports
    assert only == ExportConfig(name="swap", size_bytes=64 * MiB, priority=config.priority)
    assert config.span_bytes == config.virtual_bytes == config.size_bytes
    assert "[[export]]" not in describe(config)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"batch"', '"rest"', "export 3: name: another export is called rest too"),
        ('"batch"', '"a/b"', "export 2: name: "),
        ('name = "batch"\n', "", "export 2: name is missing"),
        ('size = "6M"\n', "", "export 2: size is missing: how large is batch?"),
        ('size = "6M"', 'size = "6"', "export 2: size: "),
        ('quota = "40M"', 'size = "40M"', "export 1: size: that of swap is the option size"),
        ('quota = "40M"', "priority = 1", "export 1: priority: that of swap is the option"),
        ('quota = "8M"', 'quota = "1M"', "export 2: quota: 1M is too small (least: 2M), or none"),
        ('["slow"]', '["slwo"]', "export 2: tiers: there is no tier slwo (there is: file, slow)"),
        ('["slow"]', '"slow"', "export 2: tiers: is neither a list"),
        ('["slow"]', "[3]", "export 2: tiers: "),
        ("priority = 7", "priority = -1", "export 3: priority: "),
        ("quota =", "qouta =", "qouta: unknown key (did you mean quota?)"),
        ("[[export]]", "[export]", "Cannot declare"),
    ],
)
def test_a_bad_table_of_an_export_has_one_line(
    tmp_path: Path, root: Path, old: str, new: str, expected: str
) -> None:
    assert old in EXPORTS
    with pytest.raises(ConfigError) as caught:
        load({}, _tiers(tmp_path, EXPORTS.replace(old, new)), root)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_exports_are_no_more_than_there_are_rows(tmp_path: Path, root: Path) -> None:
    more = "".join(f'[[export]]\nname = "e{n}"\nsize = "1M"\n' for n in range(5))
    assert len(load({}, _tiers(tmp_path, EXPORTS + more), root).exports) == 8
    more += '[[export]]\nname = "e5"\nsize = "1M"\n'
    with pytest.raises(ConfigError, match="9 exports are too many"):
        load({}, _tiers(tmp_path, EXPORTS + more), root)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "the quota of swap holds 35.4M of incompressible pages, and its size is 64M"),
        ({'quota = "40M"': ""}, None),
        ({'quota = "40M"': "", '"6M"': '"70M"', 'quota = "8M"': ""}, "70M of batch is more than"),
        ({'quota = "40M"': "", "4096000": '"16M"'}, "16M of rest is more than the guaranteed"),
        ({'quota = "40M"': "", '"64M"\npool': '"128M"\npool'}, "is more than the guaranteed room"),
    ],
)
def test_each_page_of_each_file_has_a_place(
    tmp_path: Path, root: Path, changes: dict[str, str], expected: str | None
) -> None:
    text = EXPORTS
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    config = load({}, _tiers(tmp_path, text), root)
    geometry = geometry_for(config.span_bytes, config.pool_bytes)
    if expected is None:
        require_room(config, geometry)
        return
    with pytest.raises(ConfigError) as caught:
        require_room(config, geometry)
    assert expected in str(caught.value)
    assert "take the risk of refused writes with --overcommit" in str(caught.value)
    require_room(dataclasses.replace(config, overcommit=8.0), geometry)
