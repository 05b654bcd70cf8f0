"""The tab that puts methods side by side on one prompt and one seed, and its API function."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from countgen.demo import limits as read
from countgen.demo import views
from countgen.demo.page import DEVICE, HIDDEN, STOPPING, TO_RESULT, WATCHED, Page, told, visitor
from countgen.demo.running import Ticket, watched
from countgen.demo.watch import Shot, Watched, told_counts
from countgen.demo.wishes import Wish, read_wish
from countgen.engine.job import Job
from countgen.engine.run import counts_of

TAB = "compare"
CHOSEN = ("none", "best-of-n", "engine")
EMPTY = "All methods begin with the same noise. Choose some, and press Compare."


@dataclass
class Side:
    """One method's picture."""

    method: str
    watched: Watched
    seconds: float = 0.0

    def caption(self) -> str:
        job, shot = self.watched.job, self.watched.latest
        if shot is None:
            return f"{self.method}: waits"
        counted = told_counts(shot.counts, job.prompt) or "drawn"
        mark = "verified" if job.verified else job.outcome or "working"
        return f"{self.method}: {counted} ({mark}), cost {job.spent:.1f}"

    def row(self) -> dict[str, Any]:
        job = self.watched.job
        counts = {
            role: told_counts(list(found.values()), job.prompt)
            for role, found in counts_of(job).items()
        }
        return {
            "method": self.method,
            "critic counts": counts.get("critic", ""),
            "verifier counts": counts.get("verifier", ""),
            "verified": "yes" if job.verified else "no" if job.outcome else "",
            "outcome": job.outcome or "working",
            "cost (plain renders)": f"{job.spent:.1f}",
            "looks": len(job.records),
            "seconds": f"{self.seconds:.1f}",
        }

    def answer(self) -> dict[str, Any]:
        """For the API."""
        job = self.watched.job
        return {
            "method": self.method,
            "counts": counts_of(job),
            "verified": job.verified,
            "outcome": job.outcome,
            "pre": round(job.spent, 3),
            "looks": len(job.records),
            "seconds": round(self.seconds, 2),
        }


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    chosen = [name for name in CHOSEN if name in page.studio.methods]
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = gr.Textbox(
                value="six green apples on a table",
                label="Prompt",
                lines=2,
                max_lines=4,
                max_length=page.limits.prompt,
            )
            settings = page.settings()
            methods = gr.Dropdown(
                list(page.studio.methods),
                value=chosen,
                multiselect=True,
                max_choices=page.limits.methods,
                label=f"Methods, at most {page.limits.methods}",
            )
            settings["method"].visible = False
            with gr.Row():
                go = gr.Button("Compare", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="secondary", min_width=100)
        with gr.Column(scale=6, min_width=300):
            shown = gr.HTML(views.waiting(EMPTY), elem_id="cg-compared")
            sheet = gr.DownloadButton("All of them in one picture (PNG)", visible=False)
    del settings["method"]
    fields = {"prompt": prompt, **settings}
    results = [shown, sheet]

    def panel(sides: list[Side], note: str = "") -> str:
        pictures = [
            (views.enlarged(shot), side.caption())
            for side in sides
            if (shot := side.watched.latest) is not None
        ]
        rows = views.table([side.row() for side in sides], "What each method came to")
        return note + views.panels(pictures) + rows

    def ended(sides: list[Side], note: str = "") -> dict[Any, Any]:
        return {
            shown: panel(sides, note),
            sheet: gr.update(value=_sheet(page, sides), visible=bool(sides)),
        }

    def on_compare(request: gr.Request, names: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        def updates(ticket: Ticket) -> Generator[dict[Any, Any], None, None]:
            yield {shown: views.in_line(0), sheet: gr.update(visible=False)}
            wish, wanted = _read(page, dict(zip(fields, values, strict=True)), names)
            for before in ticket.waiting():
                yield {shown: views.in_line(before)}
            sides: list[Side] = []
            for sides in compared(page, wish, wanted, ticket):
                yield {shown: panel(sides)}
            yield ended(sides, views.notice("Stopped.") if ticket.stopped else "")

        yield from page.shown(request, TAB, updates, lambda notice: {shown: notice})

    gr.on(
        [go.click, prompt.submit],
        on_compare,
        [methods, *fields.values()],
        results,
        show_progress_on=shown,
        js=TO_RESULT % "cg-compared",
        **WATCHED,
        **HIDDEN,
    )
    stop.click(page.stopper(TAB), **STOPPING, **HIDDEN)
    _api(page, fields, methods)


def _read(page: Page, values: Mapping[str, Any], names: Any) -> tuple[Wish, tuple[str, ...]]:
    wanted = read.several(names, "the methods", page.studio.methods, page.limits.methods)
    return read_wish({**values, "method": wanted[0]}, page.studio, page.limits), wanted


def compared(
    page: Page, wish: Wish, methods: tuple[str, ...], ticket: Ticket
) -> Iterator[list[Side]]:
    """The sides so far, after every look; the seed and so the first noise are the same for all.

    Raises:
        UsageError, UnknownNounError: what generator or counters refuse.
    """
    nouns = [target.noun for target in wish.prompt.targets]
    for method in methods:  # what cannot be done is told before any work
        page.studio.check(wish.model, wish.critic, nouns, method)
    sides: list[Side] = []
    for method in methods:
        for _ in ticket.waiting():  # others have their turn between two methods
            yield list(sides)
        if ticket.stopped:
            return
        one = replace(wish, method=method)
        pipeline = page.studio.pipeline(wish.model, wish.critic, nouns, method)
        with closing(watched(pipeline, one, ticket, page.limits.seconds)) as states:
            for run, watch in states:
                (seen,) = watch.pictures.values()
                side = Side(method, seen, run.cost.seconds)
                yield [*sides, side]
        _show_best(seen)
        if seen.job.error is not None:
            raise seen.job.error
        sides.append(Side(method, seen, run.cost.seconds))
        yield list(sides)
        ticket.give_way()


def _show_best(seen: Watched) -> None:
    """At its end a side shows the picture that was kept, not the one that was looked at last."""
    job, last = seen.job, seen.latest
    if job.best is not None and last is not None:
        seen.shots.append(_kept(job, last))


def _kept(job: Job, last: Shot) -> Shot:
    from countgen.engine.run import to_pil

    best = job.best
    assert best is not None
    boxes = [kind.tolist() for kind in best.boxes or ()]
    return replace(last, image=to_pil(best.image), boxes=boxes, counts=best.record.counts)


def _sheet(page: Page, sides: list[Side]) -> str | None:
    """All sides in one picture, to take along."""
    from countgen.drawing import Panel, png, side_by_side

    panels = [
        Panel(side.caption(), shot.image, shot.boxes)
        for side in sides
        if (shot := side.watched.latest) is not None
    ]
    if not panels:
        return None
    title = sides[0].watched.job.prompt.text
    picture = side_by_side(title, panels)
    return page.shelf.keep("compared.png", png(picture, {"prompt": title}))


def _api(page: Page, fields: Mapping[str, gr.Component], methods_field: gr.Component) -> None:
    """The function of the API and the tool of MCP clients."""

    def compare(
        prompt: str,
        methods: list[str],
        model: str = page.studio.models[0],
        critic: str = page.studio.critics[0],
        seed: int = 0,
        budget: float = 64,
        request: gr.Request | None = None,
    ) -> Iterator[tuple[str | None, list[dict[str, Any]]]]:
        """Draw one prompt with several methods from the same noise, and say what each came to.

        Args:
            prompt: What to draw, with numbers in words or digits.
            methods: Names of the methods, such as none (one plain picture), best-of-n, edit, engine.
            model: Name of the generator, one of those that this page offers.
            critic: Name of the counter that steers.
            seed: The same seed gives all methods the same first noise.
            budget: Most that one method's picture may cost, in plain renders.

        Returns:
            All pictures side by side, everything numbered that was counted; and for each method its counts,
            verified, outcome, cost in plain renders, looks and seconds.
        """
        names = ("prompt", "model", "critic", "seed", "budget")
        values = (prompt, model, critic, seed, budget)
        with told(), page.tickets.open(visitor(request), "api") as ticket:
            wish, wanted = _read(page, dict(zip(names, values, strict=True)), methods)
            sides: list[Side] = []
            for sides in compared(page, wish, wanted, ticket):
                yield None, [side.answer() for side in sides]
            yield _sheet(page, sides), [side.answer() for side in sides]

    shown = [
        gr.Image(visible=False, type="filepath", format="png", label="Pictures side by side"),
        gr.JSON(visible=False, label="Results"),
    ]
    inputs = [
        fields["prompt"],
        methods_field,
        *(fields[name] for name in ("model", "critic", "seed", "budget")),
    ]
    gr.Button(visible=False).click(compare, inputs, shown, api_name="compare", **DEVICE)
