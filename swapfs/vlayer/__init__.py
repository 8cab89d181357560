"""The virtual slot layer: what a slot of the swap file holds, and where."""
