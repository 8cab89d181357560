"""What `make demo-tiers` shows, as a test."""

from __future__ import annotations

import sys

from deploy.vm.jobs.demo_tiers import main

if __name__ == "__main__":
    sys.exit(main())
