"""The shared mapping that outlives a server, and what lies in it."""
