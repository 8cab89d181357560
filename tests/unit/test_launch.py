"""How a command starts the daemon and hears how it went, with a stand-in for the monitor."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from swapfs.command import launch
from swapfs.config.model import Config
from swapfs.errors import (
    ConfigError,
    GuardError,
    OperationError,
    RegionError,
    SwapfsError,
    UsageError,
)
from swapfs.host import interpreter, limits
from swapfs.wire import startup

MIB = 1 << 20
READ_CONFIG = "import os, pickle, sys, time; config = pickle.loads(sys.stdin.buffer.read())[0]\n"
ANSWER = "os.write(int(sys.argv[1]), b{!r}); os.close(int(sys.argv[1]))\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        name="unit",
        mountpoint=tmp_path / "mnt",
        size_bytes=64 * MIB,
        pool_bytes=96 * MIB,
        runtime_dir=tmp_path / "run",
    )


@pytest.fixture
def monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is started in the monitor's place; the test writes it."""
    program, python = tmp_path / "monitor.py", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$4"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return program


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("size", "too small"), UsageError),
        (UsageError("x"), UsageError),
        (GuardError("x"), GuardError),
        (OperationError("x"), OperationError),
        (RegionError("x"), OperationError),
    ],
)
def test_an_error_keeps_its_kind_and_text(
    config: Config, monitor: Path, error: SwapfsError, kind: type[SwapfsError]
) -> None:
    line = startup.describe(error) + "\n"
    monitor.write_text(READ_CONFIG + ANSWER.format(line))
    with pytest.raises(SwapfsError) as caught:
        launch.launch(config)
    assert type(caught.value) is kind
    assert str(caught.value) == str(error)


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # launch leaves it running
def test_the_daemon_gets_the_configuration(config: Config, monitor: Path) -> None:
    seen = config.runtime_dir / "seen"
    monitor.write_text(
        READ_CONFIG
        + "told = config.name + os.environ['PYTHONMALLOC'] + os.getcwd()\n"
        + f"open({str(seen)!r}, 'w').write(told)\n"
        + ANSWER.format(startup.READY + "\n")
    )
    pid = launch.launch(config)
    os.waitpid(pid, 0)
    assert seen.read_text() == "unitmalloc/"
    log = config.runtime_dir / "unit.log"
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_log_is_where_the_configuration_says(
    config: Config, monitor: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    monitor.write_text(READ_CONFIG + "print('last words', file=sys.stderr); os._exit(3)\n")
    with pytest.raises(OperationError, match=rf"\(last words\); see {kept}/unit\.log"):
        launch.launch(replace(config, log_dir=kept))
    assert "last words" in (kept / "unit.log").read_text()
    assert not (config.runtime_dir / "unit.log").exists()


def test_a_daemon_that_dies_without_a_word(config: Config, monitor: Path) -> None:
    monitor.write_text(READ_CONFIG + "print('last words', file=sys.stderr); os._exit(3)\n")
    for _ in range(2):
        with pytest.raises(OperationError, match=r"started \(last words\); see .*unit\.log"):
            launch.launch(config)
    monitor.write_text(READ_CONFIG + "os._exit(3)\n")
    with pytest.raises(OperationError, match=r"died while it started \(exit code 3\)"):
        launch.launch(config)


def test_a_daemon_that_cannot_import_says_what(config: Config, monitor: Path) -> None:
    monitor.write_text("import swapfs.none_such\n")
    with pytest.raises(OperationError, match=r"\(ModuleNotFoundError: No module named 'swapfs"):
        launch.launch(config)


def test_a_daemon_that_is_killed_says_by_what(config: Config, monitor: Path) -> None:
    monitor.write_text(READ_CONFIG + "os.kill(os.getpid(), 9)\n")
    with pytest.raises(OperationError, match=r"\(killed by SIGKILL: out of memory, probably"):
        launch.launch(config)


def test_a_limit_that_is_too_low_is_named_before_anything_is_started(
    config: Config, monitor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "problems", lambda needs: ["memory.max of cgroup /x is 1M"])
    with pytest.raises(OperationError, match=r"^memory\.max of cgroup /x is 1M$"):
        launch.launch(config)
    assert not (config.runtime_dir / "unit.log").exists()


def test_a_directory_named_like_us_is_not_run_for_us(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the working directory of a daemon, which is /; here it is another."""
    for name in ("swapfs", "trap"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    program = "import sys, swapfs.errors; assert 'trap' not in sys.modules"
    python = [sys.executable, "-P", "-c", program]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":.:{tmp_path / 'none'}")
    monkeypatch.setenv("PYTHONINSPECT", "1")
    environment = interpreter.environment(PYTHONMALLOC="malloc")
    assert interpreter.command("m", "a") == [sys.executable, "-P", "-m", "m", "a"]
    assert environment["PYTHONPATH"] == str(tmp_path / "none")
    assert environment["PYTHONMALLOC"] == "malloc"
    assert "PYTHONINSPECT" not in environment
    assert subprocess.run(python, env=environment, check=False).returncode == 0
    # what a child of it starts in the same way is as safe
    python.remove("-P")
    assert subprocess.run(python, env=environment, check=False).returncode == 0


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
def test_what_the_daemon_waits_for_is_told(
    config: Config, monitor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor.write_text(READ_CONFIG + ANSWER.format("note: waiting: a disk\nready\n"))
    os.waitpid(launch.launch(config), 0)
    assert capsys.readouterr().err == "swapfs: waiting: a disk\n"


def test_the_foreground_ends_with_the_daemon(
    config: Config, monitor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ready = READ_CONFIG + ANSWER.format(startup.READY + "\n")
    monitor.write_text(ready)
    launch.run_foreground(config)
    monitor.write_text(ready + "sys.exit(4)\n")
    with pytest.raises(OperationError, match="status 4"):
        launch.run_foreground(config)


FOREGROUND = """
    import os, pickle, signal, sys
    from pathlib import Path
    from swapfs.command import launch
    sys.executable = sys.argv[1]
    launch.run_foreground(pickle.loads(Path(sys.argv[2]).read_bytes()))
"""


def run_in_foreground(config: Config, tmp_path: Path, python: str) -> subprocess.Popen[bytes]:
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    program = tmp_path / "foreground.py"
    program.write_text(textwrap.dedent(FOREGROUND))
    return subprocess.Popen(
        [str(Path(sys.prefix) / "bin/python"), program, python, tmp_path / "config"]
    )


def test_a_stop_while_the_daemon_starts_is_not_lost(
    config: Config, monitor: Path, tmp_path: Path
) -> None:
    """The daemon asks for it before it answers; then it must get the signal."""
    monitor.write_text(
        READ_CONFIG
        + "import signal\n"
        + "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
        + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(0.2)\n"
        + ANSWER.format(startup.READY + "\n")
        + "time.sleep(3); os._exit(9)\n"
    )
    process = run_in_foreground(config, tmp_path, sys.executable)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
