"""The server: serves one region on one FUSE connection."""
