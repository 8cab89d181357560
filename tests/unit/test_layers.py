"""Several files configure one instance: which, in what order, and where a value is from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swapfs.command import main
from swapfs.config import model, paths
from swapfs.errors import ConfigError

SIZES = 'size = "4M"\npool = "16M"\n'


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of the instance in an /etc/swapfs of this test's own; it is not there yet."""
    for constant, name in (("CONFIG_DIR", "etc"), ("VENDOR_DIR", "lib")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(paths, constant, tmp_path / name)
    return tmp_path / "etc" / "a.toml"


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def vendor(etc: Path) -> Path:
    return paths.VENDOR_DIR / etc.name


def loaded(etc: Path) -> model.Config:
    return model.load({"runtime-dir": str(etc.parent)}, etc)


def test_drop_ins_overrule_by_name_whatever_directory_they_are_in(etc: Path) -> None:
    put(etc, SIZES + "priority = 1\npromote = true\n")
    put(etc.with_name("a.toml.d") / "10-x.toml", "priority = 2\nhigh-watermark = 85\n")
    put(vendor(etc).with_name("a.toml.d") / "20-x.toml", "priority = 3\n")
    put(etc.with_name("a.toml.d") / ".30-x.toml", "priority = 4\n")
    put(etc.with_name("a.toml.d") / "30-x.toml.dpkg-old", "priority = 5\n")
    found = loaded(etc)
    assert found.priority == 3
    assert (found.high_watermark_percent, found.promote) == (85, True)


def test_a_drop_in_in_etc_hides_that_of_the_same_name(etc: Path) -> None:
    put(etc, SIZES)
    put(vendor(etc).with_name("a.toml.d") / "20-x.toml", "priority = 3\n")
    put(vendor(etc).with_name("a.toml.d") / "30-x.toml", "high-watermark = 85\n")
    directory = etc.with_name("a.toml.d")
    put(directory / "20-x.toml", "promote = true\n")
    (directory / "30-x.toml").symlink_to("/dev/null")
    found = loaded(etc)
    assert (found.priority, found.promote, found.high_watermark_percent) == (100, True, 90)


def test_the_file_of_a_package_counts_only_where_the_administrator_has_none(etc: Path) -> None:
    put(vendor(etc), SIZES + "priority = 3\n")
    assert loaded(etc).priority == 3
    put(etc, SIZES)
    assert loaded(etc).priority == 100


def test_a_file_elsewhere_has_the_drop_ins_beside_it_and_no_others(
    etc: Path, tmp_path: Path
) -> None:
    put(vendor(etc).with_name("a.toml.d") / "20-x.toml", "priority = 3\n")
    file = put(tmp_path / "elsewhere" / "a.toml", SIZES)
    assert model.load({"runtime-dir": str(tmp_path)}, file).priority == 100
    put(file.with_name("a.toml.d") / "x.toml", "priority = 7\n")
    assert model.load({"runtime-dir": str(tmp_path)}, file).priority == 7


def test_tables_of_tiers_take_the_place_of_earlier_ones(etc: Path, tmp_path: Path) -> None:
    put(etc, SIZES + f'[[tier]]\npath = "{tmp_path}/one"\nsize = "4M"\n')
    put(
        etc.with_name("a.toml.d") / "x.toml",
        f'[[tier]]\npath = "{tmp_path}/two"\nsize = "8M"\n',
    )
    assert [tier.file.path.name for tier in loaded(etc).tiers] == ["two"]


def test_the_command_line_overrules_all(etc: Path) -> None:
    put(etc, SIZES)
    put(etc.with_name("a.toml.d") / "x.toml", "priority = 7\n")
    assert model.load({"runtime-dir": str(etc.parent), "priority": "9"}, etc).priority == 9


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prio = 7\n", ": prio: unknown key .did you mean priority.*"),
        ("priority = -1\n", ": priority: -1 is not a whole number"),
        ("priority\n", ": not TOML"),
        ('tier = "x"\n', ": tier: is no list of tables"),
    ],
)
def test_a_mistake_names_the_drop_in_and_the_key(etc: Path, text: str, problem: str) -> None:
    put(etc, SIZES)
    drop_in = put(etc.with_name("a.toml.d") / "x.toml", text)
    with pytest.raises(ConfigError, match=f"^{drop_in}{problem}"):
        loaded(etc)


def test_a_drop_in_that_cannot_be_read_is_not_passed_over(etc: Path) -> None:
    put(etc, SIZES)
    drop_in = etc.with_name("a.toml.d") / "x.toml"
    drop_in.parent.mkdir()
    drop_in.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"^{drop_in}: No such file"):
        loaded(etc)
    drop_in.unlink()
    drop_in.parent.rmdir()
    drop_in.parent.touch()
    with pytest.raises(ConfigError, match=r"a.toml.d: Not a directory"):
        loaded(etc)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("special", ["fifo", "zero"])
def test_a_drop_in_that_never_ends_is_refused(etc: Path, special: str) -> None:
    put(etc, SIZES)
    drop_in = etc.with_name("a.toml.d") / "x.toml"
    drop_in.parent.mkdir()
    if special == "fifo":
        os.mkfifo(drop_in)
    else:
        drop_in.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=f"^{drop_in}: is not a file"):
        loaded(etc)


def test_a_missing_file_fails_loudly(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=f"^{etc}: No such file"):
        loaded(etc)
    put(vendor(etc), "# priority = 3\n")
    assert main.main(["check-config", "--config", str(etc)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("swapfs: size: missing")
    assert said.count("\n") == 1
    assert said.endswith(f"{etc}: No such file or directory\n")


def test_check_config_shows_where_a_value_is_from(
    etc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(etc, SIZES)
    drop_in = put(etc.with_name("a.toml.d") / "x.toml", "priority = 7\n")
    words = ["check-config", "--config", str(etc), "--runtime-dir", str(etc.parent)]
    assert main.main(words) == 0
    shown = capsys.readouterr().out
    lines = {line.split(" = ")[0]: line.split("  # ")[1] for line in shown.splitlines()}
    assert lines["size"] == str(etc)
    assert lines["priority"] == str(drop_in)
    assert lines["runtime-dir"] == "command line"
    assert lines["overcommit"] == "default"
    assert main.main([*words, "--json"]) == 0
    origins = json.loads(capsys.readouterr().out)["origins"]
    assert origins == lines
    again = put(etc.with_name("again.toml"), shown)
    assert model.load({}, again) == model.load({"runtime-dir": str(etc.parent)}, etc)
