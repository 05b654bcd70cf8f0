"""Errors that a user can cause and mend, told in one sentence each."""

from __future__ import annotations


class UsageError(ValueError):
    """The request itself is wrong; the message says what was wrong and what to do."""
