"""Where the bytes of a slot are: the pool in memory, and the tiers below it."""
