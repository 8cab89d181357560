"""The command line: exit codes, and one line on standard error for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from swapfs import __version__
from swapfs.command import lifecycle, main, stale
from swapfs.config.options import OPTIONS
from swapfs.errors import GuardError, OperationError
from swapfs.host import limits, proc
from swapfs.wire import control, state_file

if TYPE_CHECKING:
    from swapfs.config.model import Config


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(stale, "ghost_swaps", lambda known: [])


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """Run *argv*, which must end with *code* and one line, and return that line."""
    assert main.main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("swapfs: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


SIZES = ("--size", "64M", "--pool", "16M")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "Missing command"),
        (["bogus"], "bogus"),
        (["up", "--bogus"], "--bogus"),
        (["mount"], "MNT"),
        (["mount", "/nowhere", *SIZES], "mountpoint: /nowhere: No such file"),
        (["mount", "/etc/passwd", *SIZES], "not a directory"),
        (["mount", "/proc", *SIZES], "mountpoint: /proc is busy"),
        (["up"], "size: missing"),
        (["up", "--size", "64M"], "pool: missing"),
        (["up", "--size", "x", "--pool", "16M"], "--size: 'x' is not a size"),
        (["up", "--size", "a\nb", "--pool", "16M"], "is not a size"),
        (["up", "--size", "1048577", "--pool", "16M"], "multiple of 4096"),
        (["up", "--size", "2T", "--pool", "16M"], "too large"),
        (["up", "--size", "64M", "--pool", "1T"], "this machine's memory"),
        (["up", *SIZES, "--file", "/nowhere/x:1G"], "there is no directory /nowhere"),
        (["up", *SIZES, "--metrics", "x"], "--metrics: 'x' is no address"),
        (["up", *SIZES, "--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["up", *SIZES, "--name", "a/b"], "is no name"),
        (["check-config", *SIZES, "--priority", "many"], "--priority: 'many'"),
        (["down", "../x"], "NAME: '../x' is no name"),
        (["status", "../x"], "NAME: '../x' is no name"),
        (["status", "-o", "NAME,COLOUR"], "--output: no column 'COLOUR'"),
        (["demote"], "--pages"),
        (["demote", "--pages", "0"], "--pages"),
        (["demote", "--pages", "1", "../x"], "is no name"),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    assert says in fails(capsys, 2, *argv)


def test_mistakes_in_the_config_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "swapfs.toml"
    file.write_text("sizes = 1")
    line = fails(capsys, 2, "check-config", "--config", str(file))
    assert line == f"swapfs: {file}: sizes: unknown key (did you mean size?)\n"


@pytest.mark.parametrize(
    "argv", [["up", *SIZES], ["mount", "/mnt"], ["down"], ["demote", "--pages", "1"]]
)
def test_root_is_asked_for_before_anything_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert fails(capsys, 1, *argv) == f"swapfs: {argv[0]} needs root: run it with sudo\n"


def test_up_gets_its_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Config] = []

    def up(config: Config) -> list[Path]:
        seen.append(config)
        return [Path("/dev/loop7")]

    monkeypatch.setattr(lifecycle, "up", up)
    argv = ["up", *SIZES, "--name", "a", "--mountpoint", str(tmp_path), "--file"]
    argv += [f"{tmp_path}/f:4M", "--file-direct-io", "off", "--metrics", "127.0.0.1:9809"]
    argv += ["--overcommit", "2.5", "--high-watermark", "50", "--low-watermark", "40"]
    argv += ["--promote", "--priority", "5", "--unsafe", "--runtime-dir", str(tmp_path / "r")]
    assert main.main(argv) == 0
    assert capsys.readouterr().out == "a: 64M of swap on /dev/loop7, priority 5\n"
    (config,) = seen
    assert (config.name, config.mountpoint, config.size_bytes) == ("a", tmp_path, 64 << 20)
    assert config.file is not None
    assert (config.file.size_bytes, config.file.direct_io) == (4 << 20, "off")
    assert (config.metrics, config.overcommit) == (("127.0.0.1", 9809), 2.5)
    assert (config.high_watermark_percent, config.low_watermark_percent) == (50, 40)
    assert (config.promote, config.priority, config.unsafe) == (True, 5, True)
    assert config.runtime_dir == tmp_path / "r"


@pytest.mark.parametrize("foreground", [True, False])
def test_mount(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    foreground: bool,
) -> None:
    def mount(config: Config, in_foreground: bool) -> int | None:
        assert config.mountpoint == tmp_path
        assert in_foreground == foreground
        return None if foreground else 77

    monkeypatch.setattr(lifecycle, "mount", mount)
    flags = ["--foreground"] if foreground else []
    assert main.main(["mount", str(tmp_path), *SIZES, *flags]) == 0
    out = capsys.readouterr().out
    assert out == ("" if foreground else f"{tmp_path}/swap: served by process 77\n")


@pytest.mark.parametrize("kind", [OperationError, GuardError])
def test_failed_operation_is_one_line_and_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def up(config: Config) -> list[Path]:
        error = kind("losetup: no\ndevice")
        error.add_note("and undoing it stopped at unmount: busy")
        raise error

    monkeypatch.setattr(lifecycle, "up", up)
    line = fails(capsys, 1, "up", *SIZES)
    assert line == "swapfs: losetup: no device; and undoing it stopped at unmount: busy\n"


def test_interrupt_is_one_line_and_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(config: Config) -> list[Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr(lifecycle, "up", up)
    assert main.main(["up", *SIZES]) == 1
    assert capsys.readouterr().err.strip() == "swapfs: interrupted"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def up(config: Config) -> list[Path]:
        raise ZeroDivisionError

    monkeypatch.setattr(lifecycle, "up", up)
    with pytest.raises(ZeroDivisionError):
        main.main(["up", *SIZES])


@pytest.mark.parametrize("done", [[], ["swapoff /dev/loop7", "unmounted /mnt"]])
def test_down_says_what_it_did(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    done: list[str],
) -> None:
    def down(name: str, runtime_dir: Path, *, force: bool) -> list[str]:
        assert (name, runtime_dir, force) == ("a", tmp_path, bool(done))
        return done

    monkeypatch.setattr(lifecycle, "down", down)
    words = ["down", "a", "--runtime-dir", str(tmp_path), *(["--force"] if done else [])]
    assert main.main(words) == 0
    says = "swapoff /dev/loop7, unmounted /mnt" if done else "nothing to take down"
    assert capsys.readouterr().out == f"a: {says}\n"


def test_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = ["--runtime-dir", str(tmp_path)]
    assert "no instance one" in fails(capsys, 1, "status", "one", *run)
    born = proc.births(os.getpid())
    written = {"written_unix_s": 0, "status": {"born": born, "size_bytes": 4096}}

    state_file.path(tmp_path, "one").write_text(json.dumps(written))

    assert main.main(["status", "--json", *run]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ghosts"] == []
    assert [(one["name"], one["state"]) for one in shown["instances"]] == [("one", "silent")]

    assert main.main(["status", *run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NAME")
    assert lines[2] == ""
    assert lines[3].startswith("one: silent")

    assert main.main(["status", "-n", "-b", "--raw", "-o", "name,size", "one", *run]) == 0
    assert capsys.readouterr().out == "one 4096\n"


def test_status_without_instances(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.main(["status", "--runtime-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("NAME")
    assert main.main(["status", "-n", "--runtime-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_check_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check-config", *SIZES, "--overcommit", "5"]) == 0
    shown = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert 'size = "64M"' in shown
    assert main.main(["check-config", "--json", *SIZES, "--overcommit", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 64 << 20


def test_check_config_looks_at_the_file_and_the_limits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "photos"
    foreign.write_bytes(b"precious" * 1_000_000)
    words = ["check-config", *SIZES, "--overcommit", "5", "--unsafe"]
    assert "holds data that is not swapfs's" in fails(capsys, 2, *words, "--file", f"{foreign}:4M")
    monkeypatch.setattr(limits, "problems", lambda needs: ["pids.max of cgroup /x is 5"])
    assert main.main(words) == 0
    assert "pids.max of cgroup /x is 5" in capsys.readouterr().err
    words.remove("--unsafe")
    assert "pids.max of cgroup /x is 5" in fails(capsys, 1, *words)


def test_check_config_refuses_what_mount_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check-config", *SIZES]) == 2
    assert "--overcommit" in capsys.readouterr().err


def test_demote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = ["--runtime-dir", str(tmp_path)]
    assert "no server listens there" in fails(capsys, 1, "demote", "--pages", "9", *run)

    def request(sock: Path, command: str, timeout_s: float, pages: int) -> dict[str, object]:
        assert (sock, command, pages) == (tmp_path / "a.sock", "demote", 9)
        return {"demoted": 7}

    monkeypatch.setattr(control, "request", request)
    assert main.main(["demote", "a", "--pages", "9", *run]) == 0
    assert capsys.readouterr().out == "a: demoted 7 pages\n"


@pytest.mark.parametrize("command", ["up", "mount", "check-config"])
def test_every_option_of_the_table_is_one_of_the_command(command: str) -> None:
    described = main.cli.commands[command]
    parameters = {parameter.name: parameter for parameter in described.params}
    nothing_given = described.make_context(command, ["/mnt"] if command == "mount" else []).params
    for option in OPTIONS:
        found = parameters[option.key.replace("-", "_")]
        if command in option.argument_of:
            assert isinstance(found, click.Argument)
            continue
        assert isinstance(found, click.Option)
        assert found.opts == [f"--{option.key}"]
        assert found.help is not None
        assert found.help.startswith(option.help)
        assert nothing_given[str(found.name)] is None, "the table alone knows defaults"


@pytest.mark.parametrize("command", [[], ["mount"], ["up"], ["down"], ["status"], ["demote"]])
def test_help_documents_the_exit_codes(command: list[str]) -> None:
    result = CliRunner().invoke(main.cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "Exit codes: 0 done; 1 an operation failed; 2 wrong usage" in result.output


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "swapfs"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"swapfs, version {__version__}\n"
    done = subprocess.run([*command, "bogus"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def _run_module(*words: object, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swapfs", *map(str, words)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **how)


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = _run_module("status", "--runtime-dir", tmp_path, stdout=write_end)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_closed_standard_descriptors_are_not_taken_by_files(tmp_path: Path) -> None:
    done = _run_module(
        *("status", "--runtime-dir", tmp_path), preexec_fn=lambda: os.closerange(0, 2)
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _run_module("down", "--runtime-dir", tmp_path / "file")
    assert done.returncode in (1, 2)
    assert str(tmp_path / "file") in done.stderr
    assert len(done.stderr.splitlines()) == 1
