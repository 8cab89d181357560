"""The lab: traces of what a kernel swapped, and what becomes of them under other policies."""
