"""Attempts to recover what was forgotten."""
