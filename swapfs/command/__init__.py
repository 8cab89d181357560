"""The ``swapfs`` command: everything that runs in the caller's own process."""
