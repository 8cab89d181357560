"""``python -m swapfs.monitor DESCRIPTOR``: the daemon, as ``command.launch`` starts it."""

from __future__ import annotations

import sys

from swapfs.host import deferred

deferred.defer()

from swapfs.monitor.monitor import main  # noqa: E402 - what it imports, imports what is deferred

if __name__ == "__main__":
    sys.exit(main())
