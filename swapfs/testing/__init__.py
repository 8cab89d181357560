"""Helpers for tests of swapfs and of programs that swap on it; nothing here runs in service."""
