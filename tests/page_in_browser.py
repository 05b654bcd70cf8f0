"""The page in a browser."""

from __future__ import annotations

from typing import Any


def opened(context: Any, address: str) -> Any:
    """The page in a browser, ready."""
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    return page
