"""The kernel we run on: what it says, and what we ask of it."""
