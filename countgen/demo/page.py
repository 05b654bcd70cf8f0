"""What all tabs of the page share: what there is to choose from, its bounds, and who is at work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from countgen.demo import views
from countgen.demo.files import Shelf
from countgen.demo.limits import Limits
from countgen.demo.running import Ticket, Tickets, sentence_of
from countgen.demo.studio import OWN, Studio

DEVICE: dict[str, Any] = {"concurrency_limit": None, "preprocess": False}
"""Of every event that draws, counts, or stops that: at once with the handlers, which take a ticket for the
device. What was sent is checked by the handlers themselves, so that whatever is wrong with it is told in our
words."""
WATCHED: dict[str, Any] = {**DEVICE, "trigger_mode": "multiple", "show_progress": "minimal"}
"""Of what a visitor watches and may stop. A second request takes the place of the first one, which Gradio's
page would else wait for, and drop the second."""
STOPPING: dict[str, Any] = {**DEVICE, "trigger_mode": "multiple", "show_progress": "hidden"}
"""Of Stop: through Gradio's queue as well, so that it comes after what it stops, and can tell something."""
AT_ONCE: dict[str, Any] = {"queue": False, "preprocess": False, "show_progress": "hidden"}
"""Of events that only read or show something."""
TO_RESULT = """(...values) => {
  const result = document.getElementById("%s");
  if (window.innerWidth <= 768 && result) {
    result.style.minHeight = "100svh";
    result.scrollIntoView({behavior: "smooth"});
  }
  return values;
}"""
"""On a phone results stand below the form: show them to whoever pressed the button. Before there are any,
the page would end too soon to be scrolled so far, so the place for them is made as high as the screen."""
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
"""Of events of the page itself; the API has functions of its own."""


@dataclass
class Page:
    """The page that is being built, and its state while it runs."""

    studio: Studio
    limits: Limits
    tickets: Tickets = field(init=False)
    shelf: Shelf = field(default_factory=Shelf)

    def __post_init__(self) -> None:
        self.tickets = Tickets(self.limits.queue)

    def settings(self) -> dict[str, gr.Component]:
        """Model, critic, method, seed and budget: what several tabs ask for."""
        studio, limits = self.studio, self.limits
        return {
            "model": gr.Dropdown(list(studio.models), value=studio.models[0], label="Model"),
            "critic": gr.Dropdown(
                list(studio.critics),
                value=OWN,
                label="Critic",
                info="The counter that steers. A counter of another family checks the result.",
            ),
            "method": gr.Dropdown(
                list(studio.methods), value=studio.default_method, label="Method"
            ),
            "seed": gr.Number(
                0, label="Seed", precision=0, info="The same seed draws the same picture."
            ),
            "budget": gr.Slider(
                0,
                limits.budget,
                value=64,
                step=1,
                label="Budget",
                info="Most that one picture may cost, in plain renders.",
            ),
        }

    def shown(
        self,
        request: gr.Request,
        tab: str,
        work: Callable[[Ticket], Generator[Any, None, None]],
        failed: Callable[[str], Any],
    ) -> Iterator[Any]:
        """What a tab shows of the visitor's newest request, which ends an earlier one.

        Args:
            work: what is shown, one after the other.
            failed: what is shown instead, made of a notice, as soon as there is an error.
        """
        try:
            with (
                self.tickets.open(visitor(request), tab, replacing=True) as ticket,
                closing(work(ticket)) as updates,
            ):
                for update in updates:
                    if ticket.replaced:
                        return
                    yield update
        except Exception as error:
            yield failed(views.notice(sentence_of(error), "error"))

    def stopper(self, tab: str) -> Callable[[gr.Request], None]:
        """What a Stop button calls; what runs or waits shows by itself how it ended."""

        def on_stop(request: gr.Request) -> None:
            if self.tickets.stop(visitor(request), tab):
                gr.Info("Stopping. What there is so far is still checked.", duration=3)
            else:
                gr.Info("Nothing is being drawn for you.", duration=3)

        return on_stop


def visitor(request: gr.Request | None) -> str:
    """Who asks: the browser's session; one name for all where there is none."""
    return (getattr(request, "session_hash", None) or "") if request is not None else ""


@contextmanager
def told() -> Iterator[None]:
    """Whatever is raised within becomes one sentence for the visitor."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(sentence_of(error), print_exception=False) from None
