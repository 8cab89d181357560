"""The monitor: holds what must outlive a server, and watches it."""
