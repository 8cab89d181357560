"""``python -m swapfs.monitor DESCRIPTOR``: the daemon, as ``command.launch`` starts it."""

from __future__ import annotations

import sys

from swapfs.monitor.monitor import main

if __name__ == "__main__":
    sys.exit(main())
