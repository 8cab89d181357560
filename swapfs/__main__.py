"""``python -m swapfs``: the same as the ``swapfs`` command."""

from __future__ import annotations

import sys

from swapfs.command.main import main

if __name__ == "__main__":
    sys.exit(main())
