"""The page of the metrics address, in a browser: what it shows, by keyboard, dark and light.

SWAPFS_SCREENSHOT=FILE keeps the picture that docs/lab.md shows.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.fuse.browser import Browser
from tests.fuse.instance import Start, wait_until
from tests.fuse.load import Load, fill

pytestmark = pytest.mark.timeout(180)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_page_shows_what_is_there_and_is_used_by_keyboard(tmp_path: Path, start: Start) -> None:
    port = _port()
    instance = start("512M", "16M", "1G", "--metrics", f"127.0.0.1:{port}")
    fill(instance, 16384, 12288)
    Load(instance, 16384).run(40, seed=1)
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"http://127.0.0.1:{port}/")

        def text(element: str) -> str:
            return str(browser.evaluate(f"(document.getElementById('{element}')||{{}}).innerText"))

        wait_until(lambda: instance.name in text("name"), "the first figures")
        assert text("state").startswith(("good", "degraded"))
        assert "file" in text("tiers")
        assert "demoted" in text("rates")
        assert browser.evaluate("cells.length") == 3 * 256

        browser.evaluate("document.getElementById('map').focus()")
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
            browser.press(key)
        assert text("cell").startswith("Slots 512 to 1023: ")
        assert "% in use" in text("cell")

        backgrounds = []
        for on in (True, False):
            browser.dark(on)
            backgrounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert backgrounds == ["rgb(20, 23, 26)", "rgb(255, 255, 255)"]

        before = browser.evaluate("shown.time_s")
        wait_until(lambda: browser.evaluate("shown.time_s") > before, "the next second")
        picture = browser.screenshot()
        assert picture.startswith(b"\x89PNG")
        if keep := os.environ.get("SWAPFS_SCREENSHOT"):
            Path(keep).write_bytes(picture)
