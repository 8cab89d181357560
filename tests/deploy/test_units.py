"""The units: what they promise, how they are made, and that systemd finds no circle in them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from swapfs.command import install_unit, main, unit_files
from swapfs.config.backing import FileTierConfig
from swapfs.config.far import FarConfig
from swapfs.config.model import Config
from swapfs.config.tiers import TierConfig
from swapfs.errors import ConfigError, OperationError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("swapfs.service", "swapfs@.service")
NO_UPPER_PATH = "a-b/c d/ü.x"
TMP_MOUNT = """\
[Unit]
DefaultDependencies=no
Conflicts=umount.target
Before=local-fs.target umount.target
After=swap.target
[Mount]
What=tmpfs
Where={where}
Type=tmpfs
"""
SWAP_FILE = "[Unit]\nBefore=swap.target\n[Swap]\nWhat=/other\n"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt install systemd"
)


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found.setdefault(key, []).append(value)
    return found


def shipped(name: str = "swapfs.service") -> dict[str, list[str]]:
    return settings((DEPLOY / name).read_text())


def make_config(tmp_path: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "mountpoint": tmp_path / "run/swapfs/mnt",
        "runtime_dir": tmp_path / "run",
        "size_bytes": 1 << 24,
        "pool_bytes": 1 << 24,
    }
    return Config(**(values | changes))


# what is in deploy/


def test_units_in_deploy_are_those_that_are_made() -> None:
    """Made by: python -m swapfs.command.unit_files deploy"""
    for place, text in unit_files.packaged(unit_files.PROGRAM, 0).items():
        assert (DEPLOY / place).read_text() == text, place


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("Type", "forking"),
        # With a main process a stop that was refused waits for its end, for an hour.
        ("GuessMainPID", "no"),
        (
            "ExecStart",
            "/usr/local/bin/swapfs up --config /etc/swapfs/swapfs.toml --name swapfs",
        ),
        ("ExecStop", "/usr/local/bin/swapfs down swapfs"),
        ("SendSIGKILL", "no"),
        ("KillMode", "process"),
        ("Restart", "no"),
        ("OOMScoreAdjust", "-1000"),
        ("LimitMEMLOCK", "infinity"),
        ("MemorySwapMax", "0"),
        ("IgnoreOnIsolate", "yes"),
    ],
)
def test_unit_never_risks_the_pages(key: str, expected: str) -> None:
    assert shipped()[key] == [expected]


def test_reload_upgrades_and_then_has_swap_on() -> None:
    found = shipped()
    assert found["ExecReload"] == ["/usr/local/bin/swapfs upgrade swapfs", *found["ExecStart"]]


def test_template_is_the_unit_for_another_name() -> None:
    plain, template = (
        (DEPLOY / name).read_text().replace("/swapfs.toml", "/%i.toml") for name in UNITS
    )
    for before, after in (
        ("instance swapfs", "instance %i"),
        ("(swapfs)", "(%i)"),
        ("--name swapfs", "--name %i"),
        (" down swapfs", " down %i"),
        (" upgrade swapfs", " upgrade %i"),
        ("swapfs-sleep.service", "swapfs-sleep@%i.service"),
    ):
        assert before in plain
        plain = plain.replace(before, after)
    assert template == plain


@pytest.mark.parametrize("name", UNITS)
def test_unit_has_the_capabilities_that_the_guards_need(name: str) -> None:
    (capabilities,) = shipped(name)["CapabilityBoundingSet"]
    guards = {"CAP_SYS_ADMIN", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE", "CAP_SYS_NICE"}
    assert guards | {"CAP_SYS_PTRACE"} == set(capabilities.split())


@pytest.mark.parametrize("name", UNITS)
def test_unit_stays_in_the_mount_namespace_of_the_machine(name: str) -> None:
    own_namespace = re.compile(r"Protect|Private|Read(Only|Write)|Inaccessible|Bind|Temporary|Root")
    assert [key for key in shipped(name) if own_namespace.match(key)] == []


@pytest.mark.parametrize("name", UNITS)
def test_unit_sets_no_limit_that_kills_or_throttles(name: str) -> None:
    limits = {"MemoryMax", "MemoryHigh", "WatchdogSec", "RuntimeMaxSec"}
    assert not limits & set(shipped(name))


@pytest.mark.parametrize("name", UNITS)
def test_missing_configuration_is_not_skipped_in_silence(name: str) -> None:
    assert [key for key in shipped(name) if key.startswith(("Condition", "ExecCondition"))] == []


@pytest.mark.parametrize("name", UNITS)
def test_losing_a_device_or_a_target_does_not_stop_swap(name: str) -> None:
    assert not {"BindsTo", "PartOf", "Requires", "Requisite"} & set(shipped(name))


def test_swap_units_and_our_mounts_are_ordered_around_the_slice_of_all_instances() -> None:
    for place in ("swap.d", "run-swapfs-.mount.d"):
        assert settings((DEPLOY / place / "50-swapfs.conf").read_text()) == {
            "Before": ["swapfs.slice"]
        }
    assert all(shipped(name)["Slice"] == ["swapfs.slice"] for name in UNITS)


def test_sleep_is_refused_where_swap_cannot_go_and_has_it_back_afterwards() -> None:
    found = shipped("swapfs-sleep@.service")
    assert found["RequiredBy"] == ["sleep.target"]
    assert found["Before"] == ["sleep.target"]
    assert found["StopWhenUnneeded"] == ["yes"]
    assert found["ExecStart"] == ["/usr/local/bin/swapfs down %i"]
    assert found["ExecStop"] == ["systemctl start --no-block swapfs@%i.service"]


# for systemd that knows more


def test_survival_of_the_last_sweep_is_asked_of_a_systemd_that_knows_it() -> None:
    texts = [
        unit_files.packaged(Path("/usr/bin/swapfs"), version)[Path("swapfs.service")]
        for version in (255, 254)
    ]
    new, old = map(settings, texts)
    assert new["SurviveFinalKillSignal"] == ["yes"]
    in_unit = texts[0].partition("\n[Unit]\n")[2].partition("\n[Service]\n")[0]
    assert "\nSurviveFinalKillSignal=yes\n" in in_unit, "systemd knows it in [Unit] alone"
    assert "SurviveFinalKillSignal" not in old
    assert new["ExecStop"] == ["/usr/bin/swapfs down swapfs"]


# escaping

PATHS = [
    "/",
    "/dev/disk/by-id/nvme-eui.0025_38b1-part2",
    "/srv/with space/a-b",
    "/.hidden/x",
    "/a//b/./c/",
    "/ü/\\back%slash",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_escaped_as_systemd_does(path: str) -> None:
    program = shutil.which("systemd-escape")
    if program is None:
        pytest.skip("no systemd-escape: apt install systemd")
    command = (program, "--path", "--", path)
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert unit_files.escape_path(Path(path)) == expected


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/srv/plain-1.x", "/srv/plain-1.x"),
        ("/srv/a b", '"/srv/a b"'),
        ("/srv/50%", "/srv/50%%"),
        ('/srv/"x"\\', '"/srv/\\"x\\"\\\\"'),
        ("/srv/$x", '"/srv/$x"'),
    ],
)
def test_words_are_quoted(path: str, word: str) -> None:
    assert unit_files.quote(Path(path)) == word
    assert unit_files.quote_argument(Path(path)) == word.replace("$", "$$")


# no circle


def boot(tmp_path: Path, units: dict[str, str], wanted: dict[str, str]) -> str:
    """Return what systemd says of a boot with *units*, *wanted* by these targets."""
    folder = tmp_path / "units"
    for place, text in units.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for unit, target in wanted.items():
        wants = folder / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"../{unit}")
    command = ("systemd-analyze", "verify", "--man=no", "multi-user.target", *wanted)
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.stdout + done.stderr


TMPFS = {"tmp.mount": TMP_MOUNT.format(where="/tmp"), "x.mount": TMP_MOUNT.format(where="/x")}
SWAPS = {"other.swap": SWAP_FILE, "dev-loop0.swap": SWAP_FILE.replace("/other", "/dev/loop0")}
AT_BOOT = {
    "tmp.mount": "local-fs.target",
    "x.mount": "local-fs.target",
    "other.swap": "swap.target",
    "dev-loop0.swap": "swap.target",
}


def of_ours(said: str) -> list[str]:
    bad = re.compile(r"swapfs|cycle|local-fs|swap\.target|other\.swap|loop0")
    return [line for line in said.splitlines() if bad.search(line)]


@needs_systemd
@pytest.mark.parametrize("enabled", ["swapfs.service", "swapfs@a-b.service"])
def test_no_circle_with_tmpfs_mounts_and_other_swap(tmp_path: Path, enabled: str) -> None:
    made = unit_files.packaged(Path("/bin/true"), 0)
    units = {str(place): text for place, text in made.items()}
    if "@" in enabled:
        units[enabled] = units["swapfs@.service"]
    said = boot(tmp_path, units | TMPFS | SWAPS, AT_BOOT | {enabled: "swap.target"})
    assert of_ours(said) == []


@needs_systemd
def test_a_circle_would_be_seen(tmp_path: Path) -> None:
    made = unit_files.packaged(Path("/bin/true"), 0)
    units = {str(place): text for place, text in made.items()}
    units["swapfs.service"] += "[Unit]\nAfter=local-fs.target\n"
    said = boot(tmp_path, units | TMPFS | SWAPS, AT_BOOT | {"swapfs.service": "swap.target"})
    assert "ordering cycle" in said


# install-unit


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.argv", ["/nowhere/swapfs"])  # then it is the one of this virtualenv
    found = Path(sysconfig.get_path("scripts"), "swapfs")
    if not found.exists():
        pytest.skip("swapfs is not installed here")
    return found


@pytest.fixture
def no_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_unit, "VENDOR_DIRS", ())


def install(config: Config, tmp_path: Path) -> dict[str, dict[str, list[str]]]:
    """Install the unit of *config*; return the settings of what was written, by place."""
    directory = tmp_path / "etc"
    install_unit.install(config, tmp_path / "the config.toml", directory)
    return {
        str(path.relative_to(directory)): settings(path.read_text())
        for path in directory.rglob("*")
        if path.is_file()
    }


def mounts_for(unit: dict[str, list[str]]) -> set[str]:
    return set(unit.get("RequiresMountsFor", ()))


@pytest.mark.usefixtures("no_vendor")
def test_a_file_is_waited_for_with_spaces_and_all(tmp_path: Path, program: Path) -> None:
    folder = tmp_path / "its own disk"
    folder.mkdir()
    file = FileTierConfig(folder / "tier", 1 << 24)
    made = install(make_config(tmp_path, file=file), tmp_path)
    unit = made["swapfs.service"]
    assert {f'"{folder}"', f'"{tmp_path}/the config.toml"', f"{tmp_path}/run"} <= mounts_for(unit)
    assert str(program) in mounts_for(unit)
    assert unit["ExecStart"] == [
        f'{program} up --config "{tmp_path}/the config.toml" --name swapfs'
    ]
    assert unit["ExecStop"] == [f"{program} down swapfs --runtime-dir {tmp_path}/run"]
    assert all("local-fs" not in value for values in unit.values() for value in values)
    assert f"{unit_files.escape_path(tmp_path / 'run')}-.mount.d/50-swapfs.conf" in made


@pytest.mark.usefixtures("no_vendor", "program")
def test_a_link_is_waited_for_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    file = FileTierConfig(tmp_path / "link/tier", 1 << 24)
    unit = install(make_config(tmp_path, file=file), tmp_path)["swapfs.service"]
    assert {f"{tmp_path}/link", f"{tmp_path}/disk"} <= mounts_for(unit)


@pytest.mark.usefixtures("no_vendor", "program")
def test_a_device_is_waited_for_and_not_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Path("/dev/disk/by-id/virtio-a b-part1")
    status_of = Path.stat

    def status(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == device:
            return os.stat_result((stat.S_IFBLK, *(0,) * 9))
        return status_of(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", status)
    config = make_config(tmp_path, name="a-b", file=FileTierConfig(device, 1 << 24))
    made = install(config, tmp_path)
    unit, escaped = made["swapfs@a-b.service"], r"dev-disk-by\x2did-virtio\x2da\x20b\x2dpart1"
    assert f"{escaped}.device" in unit["Wants"]
    assert f"{escaped}.device blockdev@{escaped}.target" in unit["After"]
    assert not {"Requires", "BindsTo"} & set(unit)
    assert not [path for path in mounts_for(unit) if path.startswith('"/dev')]
    assert unit["Also"] == ["swapfs-sleep@a-b.service"]
    assert made["swapfs-sleep@a-b.service"]["ExecCondition"] == [
        "systemctl is-active --quiet swapfs@a-b.service"
    ]


@pytest.mark.usefixtures("program")
def test_a_link_to_a_device_is_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").symlink_to("/dev/null")
    monkeypatch.setattr(stat, "S_ISBLK", stat.S_ISCHR)
    config = make_config(tmp_path, file=FileTierConfig(tmp_path / "disk", 1 << 24))
    instance = install_unit.instance_of(config, Path("/etc/x.toml"))
    assert instance.devices == (Path("/dev/null"),)


@pytest.mark.usefixtures("program")
def test_it_waits_for_the_places_of_all_tiers_and_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    (tmp_path / "disk").symlink_to("/dev/null")
    monkeypatch.setattr(stat, "S_ISBLK", stat.S_ISCHR)
    config = make_config(
        tmp_path,
        file=FileTierConfig(places[0] / "tier", 1 << 24),
        tiers=(
            TierConfig(name="two", file=FileTierConfig(places[1] / "tier", 1 << 24)),
            TierConfig(name="disk", file=FileTierConfig(tmp_path / "disk", 1 << 24)),
            TierConfig(
                name="far", file=FileTierConfig(Path("127.0.0.1:1"), 1 << 24), far=FarConfig()
            ),
        ),
        log_dir=tmp_path / "log",
    )
    instance = install_unit.instance_of(config, Path("/etc/x.toml"))
    assert {*places, tmp_path / "log"} <= set(instance.paths)
    assert instance.devices == (Path("/dev/null"),)
    assert not [path for path in instance.paths if "127.0.0.1" in str(path)]


@pytest.mark.usefixtures("program")
def test_beside_a_packaged_unit_only_a_drop_in_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = tmp_path / "vendor"
    unit_files.write(unit_files.packaged(Path("/bin/true"), 0), _made(vendor))
    monkeypatch.setattr(install_unit, "VENDOR_DIRS", (vendor,))
    made = install(make_config(tmp_path, name="b", mountpoint=tmp_path / "run/b/mnt"), tmp_path)
    assert "swapfs@b.service" not in made
    drop_in = made["swapfs@b.service.d/50-config.conf"]
    assert [value != "" for value in drop_in["ExecStart"]] == [False, True]
    assert f"{tmp_path}/run" in mounts_for(drop_in)
    assert made["swapfs-sleep@b.service.d/50-config.conf"]["ExecStart"][0] == ""


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@needs_systemd
@pytest.mark.usefixtures("no_vendor", "program")
def test_what_systemd_would_break_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backing file on a tmpfs mount: that comes after swap."""
    units = _made(tmp_path / "machine")
    name = f"{unit_files.escape_path(tmp_path)}.mount"
    (units / name).write_text(TMP_MOUNT.format(where=tmp_path))
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{units}:")
    config = make_config(tmp_path, file=FileTierConfig(tmp_path / "tier", 1 << 24))
    with pytest.raises(OperationError, match=r"swapfs\.service: .*ordering cycle"):
        install(config, tmp_path)
    assert not (tmp_path / "etc").exists()


CYCLE_FROM_A_STRANGER = """\
local-fs.target: Found ordering cycle on tmp.mount/start
local-fs.target: Found dependency on swap.target/start
local-fs.target: Found dependency on swapfs.service/start
local-fs.target: Found dependency on local-fs.target/start
local-fs.target: Job tmp.mount/start deleted to break ordering cycle \
starting with local-fs.target/start
"""
CYCLE_FROM_OURS = """\
swapfs.service: Found ordering cycle on local-fs.target/start
swapfs.service: Found dependency on tmp.mount/start
swapfs.service: Found dependency on swap.target/start
swapfs.service: Found dependency on swapfs.service/start
swapfs.service: Job local-fs.target/start deleted to break ordering cycle \
starting with swapfs.service/start
"""
CYCLE_OF_OTHERS = CYCLE_FROM_A_STRANGER.replace("swapfs", "other")
OF_OTHERS = "other.service: Command /usr/bin/nothing is not executable\n"
OF_OURS = "swapfs.service:3: Unknown key name 'Afer' in section 'Unit', ignoring.\n"


@pytest.mark.parametrize("cycle", [CYCLE_FROM_A_STRANGER, CYCLE_FROM_OURS])
def test_a_cycle_with_our_unit_is_told_whole(cycle: str) -> None:
    """systemd tells of it from any unit, in the order of a hash that is another at each start."""
    told = install_unit.complaints_of_ours(OF_OTHERS + cycle + OF_OTHERS + OF_OURS)
    assert told == (cycle + OF_OURS).splitlines()


def test_what_is_wrong_with_other_units_is_not_told() -> None:
    assert install_unit.complaints_of_ours(OF_OTHERS + CYCLE_OF_OTHERS + OF_OTHERS) == []


def test_a_path_that_no_unit_can_name_is_refused(tmp_path: Path, program: Path) -> None:
    assert program
    with pytest.raises(ConfigError, match="cannot be named"):
        install_unit.instance_of(make_config(tmp_path), tmp_path / "new\nline.toml")


@pytest.mark.usefixtures("no_vendor", "program")
def test_install_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'size = "16M"\npool = "16M"\nruntime-dir = "{tmp_path}"\n')
    directory = _made(tmp_path / "etc")
    argv = ["install-unit", "c", "--config", str(file), "--directory", str(directory)]
    assert main.main(argv) == 0
    assert "systemctl enable --now swapfs@c.service" in capsys.readouterr().out
    assert main.main(argv) == 0
    assert "already" in capsys.readouterr().out
    assert all(not path.stat().st_mode & 0o022 for path in directory.rglob("*"))
