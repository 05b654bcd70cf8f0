"""``countgen demo``: the page in a browser, and the same as an API and as tools of MCP clients."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass, field

import tyro
from rich.console import Console

from countgen.demo.limits import Limits
from countgen.errors import UsageError
from countgen.options import DEFAULT_MODEL, LoadOptions


@dataclass(frozen=True)
class Demo:
    """Serve a page that draws exact pictures; the embedded model needs no GPU and no download.

    The page has an API ("Use via API" at its foot), and with --mcp its functions are tools of MCP clients.

    Example: countgen demo
    """

    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Generator that the page offers (see: countgen list pipelines); may be repeated. By default pocket."""
    critic: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further counter that the page offers as the critic, beside those of the models; may be repeated."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Port to serve on; 0 takes any that is free."""
    share: bool = False
    """Also make a public address, through a tunnel of Gradio's."""
    mcp: bool = False
    """Also serve the functions as tools of MCP clients."""
    open_browser: bool = False
    """Open the page in a browser."""
    limits: tyro.conf.OmitArgPrefixes[Limits] = field(default_factory=Limits)
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)

    def run(self, messages: Console) -> int:
        """Serve until Ctrl-C."""
        if not 0 <= self.port <= 65535:
            raise UsageError(f"the port must be from 0 to 65535, not {self.port}")
        # Files of visitors lie in a folder of this page alone, and are gone with it.
        with tempfile.TemporaryDirectory(prefix="countgen-demo-") as folder:
            os.environ.setdefault("GRADIO_TEMP_DIR", folder)
            os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
            from countgen.demo import build_app, launch_options

            with messages.status("loading the model and its counters"):
                app = build_app(
                    self.model or (DEFAULT_MODEL,),
                    critics=self.critic,
                    load=self.load,
                    limits=self.limits,
                    warm=True,
                )
            _serve(app, self, launch_options(self.limits), messages)
        return 0


def _serve(app: object, demo: Demo, options: dict[str, object], messages: Console) -> None:
    """Serve a page until the process is interrupted.

    Raises:
        UsageError: the port is taken, or --mcp without the package for it.
    """
    try:
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # Gradio has things to say; the address alone was asked for
            app.launch(  # type: ignore[attr-defined]
                server_name=demo.host,
                server_port=demo.port or None,
                share=demo.share,
                mcp_server=demo.mcp,
                inbrowser=demo.open_browser,
                prevent_thread_lock=True,
                quiet=True,
                **options,
            )
    except ImportError as error:
        if not demo.mcp:
            raise
        raise UsageError(
            f"--mcp needs the package mcp: pip install 'countgen[demo]' ({error})"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the page cannot be served on {demo.host}:{demo.port} ({error}); take another --port"
        ) from None
    address = app.local_url  # type: ignore[attr-defined]
    print(address, flush=True)
    if demo.mcp:
        messages.print(f"tools for MCP clients: {address}gradio_api/mcp/", soft_wrap=True)
    messages.print("press Ctrl-C to stop", soft_wrap=True)
    app.block_thread()  # type: ignore[attr-defined]
