"""The page of ``countgen demo``: pictures with exact counts in a browser, and the same as an API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError

if TYPE_CHECKING:
    from gradio import Blocks

    from countgen.demo.limits import Limits
    from countgen.options import LoadOptions

__all__ = ["build_app", "launch_options"]


def build_app(
    models: str | Sequence[str] = "pocket",
    *,
    critics: Sequence[str] = (),
    load: LoadOptions | None = None,
    limits: Limits | None = None,
    warm: bool = False,
) -> Blocks:
    """The page as a Gradio app; ``app.launch(**launch_options())`` serves it.

    Args:
        models: names, hub ids or folders of the generators that it offers, the first one preselected.
            Visitors choose among these and can name no others.
        critics: further counters that it offers as the critic, beside those of the models.
        load: how generators are loaded.
        limits: bounds of every request.
        warm: load the first model now, not at the first request.

    Raises:
        UsageError: an unknown name, limits that leave nothing, or Gradio is not installed.
    """
    try:
        from countgen.demo.app import build
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise UsageError("the page needs Gradio: pip install 'countgen[demo]'") from None
    return build([models] if isinstance(models, str) else models, critics, load, limits, warm)


def launch_options(limits: Limits | None = None) -> dict[str, Any]:
    """What ``launch`` of the page is to be called with: its looks, and what of the limits the server keeps.

    Args:
        limits: those that ``build_app`` was given.
    """
    from countgen.demo import app
    from countgen.demo.limits import Limits

    return app.launch_options(limits or Limits())
