"""The functions of the page as tools, through the client of the protocol's own package."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def talked(address: str, *calls: tuple[str, dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The tools by name, and the answers to some calls in one session."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> tuple[dict[str, Any], list[Any]]:
        async with (
            streamablehttp_client(address, timeout=300, sse_read_timeout=300) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, values) for name, values in calls]

    return asyncio.run(talk())


def test_a_client_draws_counts_and_is_refused(mcp_address: str) -> None:
    tools, (drawn, refused) = talked(
        mcp_address,
        ("generate", {"prompt": "two red apples", "seed": 0}),
        ("generate", {"prompt": "two unicorns"}),
    )
    assert set(tools) == {"generate", "compare", "count", "batch"}
    told = tools["generate"]
    assert "exactly the number" in told.description
    assert told.inputSchema["properties"]["seed"]["type"] in ("integer", "number")
    assert "engine" in json.dumps(told.inputSchema["properties"]["method"])
    assert not drawn.isError
    texts = " ".join(part.text for part in drawn.content if part.type == "text")
    assert "'verified': True" in texts or '"verified": true' in texts
    assert any(part.type == "image" for part in drawn.content) or ".png" in texts
    said = " ".join(part.text for part in refused.content if part.type == "text")
    assert refused.isError and "unicorn" in said and "Traceback" not in said
