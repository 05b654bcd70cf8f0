"""Errors that a user can cause and mend, told in one sentence each."""

from __future__ import annotations


class UsageError(ValueError):
    """The request itself is wrong; the message says what was wrong and what to do."""


class MemoryShortage(RuntimeError):
    """The device's memory does not suffice; the message says what would need less."""
