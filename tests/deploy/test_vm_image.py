"""The root image of the VM: extra packages make another image and leave the plain one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deploy.vm.host import image
from deploy.vm.host.cache import Cache, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Make image.py run nothing; returns what it would have run."""
    ran: list[list[str]] = []

    def run(command: Sequence[str], *_: Any) -> str:
        ran.append(list(command))
        return ""

    def add_hooks(_: Path) -> str:
        return "3.11"

    def nothing(*_: Any, **__: Any) -> None:
        pass

    fakes: dict[str, Callable[..., Any]] = {"run": run, "add_hooks": add_hooks}
    for name in ("add_systemd_hooks", "need", "make_ext4", "remove_tree", "say"):
        fakes[name] = nothing
    for name, fake in fakes.items():
        monkeypatch.setattr(image, name, fake)
    monkeypatch.setattr(image, "proxy_options", list)
    monkeypatch.setattr(image, "host_release", lambda: "bookworm")
    monkeypatch.setattr(image, "source_line", lambda release: f"deb somewhere {release} main")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return ran


def included(commands: list[list[str]]) -> list[set[str]]:
    words = [word for command in commands for word in command if word.startswith("--include=")]
    return [set(word.removeprefix("--include=").split(",")) for word in words]


def test_the_plain_image_keeps_its_key(tmp_path: Path, commands: list[list[str]]) -> None:
    entry = image.make_root(Cache(tmp_path)).entry
    parts = [image.RECIPE, "bookworm", image.PACKAGES, str(image.SIZE_MIB), *image.UNWANTED]
    assert entry.name == f"root-{digest(*parts)}"
    assert included(commands) == [set(image.PACKAGES.split(","))]


def test_extra_packages_make_an_image_of_their_own(
    tmp_path: Path, commands: list[list[str]]
) -> None:
    cache = Cache(tmp_path)
    plain = image.make_root(cache).entry
    extra = image.make_root(cache, ["gcc", "make"]).entry
    other = image.make_root(cache, ["gcc"]).entry
    assert len({plain, extra, other}) == 3
    assert all(entry.is_dir() for entry in (plain, extra, other))
    assert included(commands)[1] == included(commands)[0] | {"gcc", "make"}


def test_systemd_is_in_an_image_of_its_own(tmp_path: Path, commands: list[list[str]]) -> None:
    cache = Cache(tmp_path)
    plain = image.make_root(cache).entry
    systemd = image.make_root(cache, systemd=True).entry
    assert plain != systemd
    assert plain.is_dir()
    assert included(commands)[1] - included(commands)[0] == {
        "dbus",
        "systemd",
        "systemd-sysv",
        "udev",
    }


def test_many_extra_images_do_not_push_the_plain_one_out(
    tmp_path: Path, commands: list[list[str]]
) -> None:
    cache = Cache(tmp_path)
    plain = image.make_root(cache).entry
    for number in range(6):
        image.make_root(cache, [f"package{number}"])
    assert plain.is_dir()
    assert len(included(commands)) == 7
