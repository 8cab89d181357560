"""Make docs/page.png: the page of an instance that a kernel swaps on.

    python -m tests.vm.picture [--kernel 6.12] [FILE]

The VM has no browser and no network, so its answers are recorded there, and shown here.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.vm.host.app import CHECKOUT
from tests.fuse.browser import Browser
from tests.vm.running import run_module

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = CHECKOUT / "swapfs/server/page.html"
SIZE: Final = (1100, 830)
TIMEOUT_S: Final = 900
SEEN: Final = 5
"""Answers that the page has had when its picture is taken: rates need two."""
BOUND_S: Final = 60


class Replay(BaseHTTPRequestHandler):
    """Answers as the server in the VM did."""

    def __init__(self, answers: Iterator[str], *args: object) -> None:
        self._answers = answers
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send the page, or what comes next."""
        live = self.path.endswith("live.json")
        body = next(self._answers).encode() if live else PAGE.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if live else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def take(answers: list[str]) -> bytes:
    """Return the page as a PNG when it has seen some of *answers*."""
    served: list[str] = []

    def in_order() -> Iterator[str]:
        for answer in itertools.chain(answers, itertools.repeat(answers[-1])):
            served.append(answer)
            yield answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Replay, in_order()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile), *SIZE) as browser:
        browser.do("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
        end_s = time.monotonic() + BOUND_S
        while len(served) <= SEEN:
            if time.monotonic() > end_s:
                raise TimeoutError("the page asks for nothing")
            time.sleep(0.2)
        picture = browser.screenshot()
    server.shutdown()
    return picture


def main() -> int:
    """Record, show, and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=CHECKOUT / "docs/page.png")
    parser.add_argument("--kernel", default="6.12")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = run_module(
            "tests.vm.jobs.picture",
            Path(folder),
            kernel=args.kernel,
            disks_mib=(512,),
            timeout_s=TIMEOUT_S,
        )
        if run.failed:
            print("\n".join(run.failed), file=sys.stderr)
            return 1
        answers = (Path(folder) / "results/out/live.jsonl").read_text().splitlines()
    args.file.write_bytes(take(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
