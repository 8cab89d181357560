"""Compiled code for what is done to every page."""
