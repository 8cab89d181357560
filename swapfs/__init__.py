"""swapfs: the kernel's virtual swap layer in userspace. See ARCHITECTURE.md."""

from __future__ import annotations

__version__ = "0.1.0"
