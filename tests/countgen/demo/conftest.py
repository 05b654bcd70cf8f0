"""The page, served once for all tests, and a browser where there is Chromium."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_in_browser import opened
from PIL import Image

pytest.importorskip("gradio")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The page as ``countgen demo`` serves it, in a process of its own; its address.

    Not in this one: the checks of shapes that the tests put around all functions hide from Gradio which
    of them are generators.
    """
    command = [sys.executable, "-m", "countgen", "demo", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = process.stdout.readline().strip()
            assert found.startswith("http://127.0.0.1:"), "countgen demo did not start"
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # where a shell has the signal ignored, as with nohup
                process.kill()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with served() as found:
        yield found


@pytest.fixture(scope="session")
def mcp_address() -> Iterator[str]:
    """Where MCP clients find the functions."""
    pytest.importorskip("mcp")
    with served("--mcp") as found:
        yield f"{found}gradio_api/mcp/"


@pytest.fixture(scope="session")
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; tests are skipped, with the reason, where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install it (apt-get install chromium) to run these")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        yield (found := started.chromium.launch(executable_path=CHROMIUM, args=FLAGS))
        found.close()


@pytest.fixture
def web(browser: Any, address: str) -> Iterator[Any]:
    """The page in a browser of its own session."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield opened(context, address)
    context.close()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A composed scene of three red apples, as a PNG file without settings."""
    from countgen.pocket.scenes import SceneSpec, compose

    path = tmp_path / "three.png"
    pixels = compose(SceneSpec((("red apple", 3),)), seed=5).image
    Image.fromarray(np.asarray(pixels)).save(path)
    return path
