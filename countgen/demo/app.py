"""The page: its tabs, and how it is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from countgen._torchvision import hide_unloadable_torchvision
from countgen.demo import batch, compare, count, generate
from countgen.demo.limits import Limits
from countgen.demo.page import Page
from countgen.demo.studio import Studio
from countgen.options import LoadOptions

TITLE = "countgen: exactly as many as you asked for"
HEAD = """# countgen
Pictures with **exactly** as many objects as you ask for: one counter steers, another one checks."""
CLEANING = (600, 3600)
"""Every so many seconds, remove files of the page that are so many seconds old."""


SPARE = 8
"""Requests and threads beside those who wait: who has the device, and others who press Stop or look."""


def build(
    models: Sequence[str],
    critics: Sequence[str],
    load: LoadOptions | None,
    limits: Limits | None,
    warm: bool,
) -> gr.Blocks:
    """``countgen.demo.build_app`` says what the arguments are."""
    hide_unloadable_torchvision()
    limits = (limits or Limits()).checked()
    page = Page(Studio(models, critics, load), limits)
    if warm:
        page.studio.warm()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as app:
        gr.Markdown(HEAD)
        with gr.Tab("Generate", id="generate"):
            generate.build(page)
        with gr.Tab("Compare", id="compare"):
            compare.build(page)
        with gr.Tab("Count", id="count"):
            count.build(page)
        with gr.Tab("List", id="batch"):
            batch.build(page)
    app.queue(max_size=limits.queue + SPARE)
    app.countgen = page
    return app


def launch_options(limits: Limits) -> dict[str, Any]:
    """What ``launch`` is to be called with."""
    return {
        "theme": _theme(),
        "css": Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        "max_file_size": limits.upload,
        "max_threads": limits.queue + SPARE,  # each who waits takes one
        "show_error": True,
        "footer_links": ["api"],
    }


def _theme() -> gr.themes.Base:
    """Gradio's own, with what its light scheme draws too faintly at a contrast of 4.5 and more."""
    return gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"]).set(
        body_text_color_subdued="*neutral_600",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
