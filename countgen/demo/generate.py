"""The tab that draws pictures, and the API function of the same name."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import gradio as gr

from countgen.demo import views
from countgen.demo.files import read_picture_settings
from countgen.demo.kept import Kept, captions, keep
from countgen.demo.page import (
    AT_ONCE,
    DEVICE,
    HIDDEN,
    STOPPING,
    TO_RESULT,
    WATCHED,
    Page,
    told,
    visitor,
)
from countgen.demo.running import Ticket, watched
from countgen.demo.wishes import Wish, form_of, read_wish
from countgen.engine.run import Run

TAB = "generate"
EXAMPLES = (
    "seven red apples on a table",
    "five cats and three dogs on grass",
    "12 stars in the sky",
    "nine penguins in the snow",
)
EMPTY = "Write what you want, say how many in words or digits, and press Generate."


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    limits = page.limits
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = gr.Textbox(
                "",
                label="Prompt",
                placeholder=EXAMPLES[0],
                info="Say the number: it is what will be counted.",
                lines=2,
                max_lines=4,
                max_length=limits.prompt,
                elem_id="cg-prompt",
            )
            with gr.Row():
                noun = gr.Textbox(
                    "", label="or a noun", placeholder="red apple", max_length=60, min_width=140
                )
                count = gr.Number(
                    7,
                    label="and a number",
                    precision=0,
                    minimum=0,
                    maximum=limits.count,
                    min_width=100,
                )
            with gr.Row():
                go = gr.Button("Generate", variant="primary", min_width=100, elem_id="cg-go")
                stop = gr.Button("Stop", variant="secondary", min_width=100, elem_id="cg-stop")
            with gr.Accordion("Settings", open=False):
                fields: dict[str, gr.Component] = {
                    "prompt": prompt,
                    "noun": noun,
                    "number": count,
                    **page.settings(),
                    "pictures": gr.Slider(
                        1, limits.pictures, value=1, step=1, label="Number of pictures"
                    ),
                    "steps": gr.Slider(
                        0,
                        limits.steps,
                        value=0,
                        step=1,
                        label="Sampling steps",
                        info="0 takes what the model was made for.",
                    ),
                    "width": gr.Number(
                        0, label="Width", precision=0, info="In pixels; 0 for the model's own."
                    ),
                    "height": gr.Number(
                        0, label="Height", precision=0, info="In pixels; 0 for the model's own."
                    ),
                }
            gr.Markdown("Examples, drawn at once", elem_classes="cg-label")
            with gr.Row():
                examples = [gr.Button(text, size="sm", min_width=160) for text in EXAMPLES]
            earlier = gr.File(
                label="Settings of an earlier picture",
                file_types=[".png"],
                height=150,
                elem_id="cg-earlier",
            )
        with gr.Column(scale=6, min_width=300, elem_id="cg-results"):
            verdict = gr.HTML(elem_id="cg-verdict")
            live = gr.HTML(views.waiting(EMPTY), elem_id="cg-live")
            slider = gr.ImageSlider(
                label="Plain (left) and exact (right)",
                visible=False,
                interactive=False,
                type="filepath",
                elem_id="cg-slider",
            )
            numbered = gr.Checkbox(True, label="Outline and number what was counted", visible=False)
            gallery = gr.Gallery(
                label="All pictures: choose one to see it beside its plain draw",
                visible=False,
                columns=3,
                height="auto",
                elem_id="cg-gallery",
            )
            with gr.Row():
                picture = gr.DownloadButton(
                    "Picture with its settings (PNG)", visible=False, elem_id="cg-picture"
                )
                settings = gr.DownloadButton("Settings (JSON)", visible=False)
    kept = gr.State([])
    chosen = gr.State(0)
    results = [verdict, live, slider, numbered, gallery, picture, settings, kept, chosen]

    def show(pictures: Sequence[Kept], index: int, with_numbers: bool) -> dict[Any, Any]:
        one = pictures[index]
        return {
            verdict: one.verdict,
            slider: gr.update(value=one.pairs[bool(with_numbers)], visible=True, label=one.beside),
            numbered: gr.update(visible=True),
            picture: gr.update(value=one.picture, visible=True),
            settings: gr.update(value=one.settings, visible=True),
            chosen: index,
        }

    def finished(pictures: Sequence[Kept], shown: str, with_numbers: bool) -> dict[Any, Any]:
        several = len(pictures) > 1
        first = next((i for i, one in enumerate(pictures) if one.record["verified"]), 0)
        return {
            **show(pictures, first, with_numbers),
            live: shown,
            gallery: gr.update(value=captions(pictures) if several else None, visible=several),
            kept: list(pictures),
        }

    def clean(panel: str) -> dict[Any, Any]:
        hidden = dict.fromkeys(
            (slider, numbered, gallery, picture, settings), gr.update(visible=False)
        )
        return {**hidden, verdict: "", live: panel, kept: [], chosen: 0}

    def on_generate(
        request: gr.Request, with_numbers: Any, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        def updates(ticket: Ticket) -> Generator[dict[Any, Any], None, None]:
            yield clean(views.in_line(0))
            wish = read_wish(dict(zip(fields, values, strict=True)), page.studio, limits)
            for before in ticket.waiting():
                yield clean(views.in_line(before))
            pictures = None
            for run, panel, pictures in drawn(page, wish, ticket, bool(with_numbers)):
                if pictures is None:
                    yield {live: panel, verdict: _notes(run)}
                else:
                    yield finished(pictures, panel, bool(with_numbers))
            if pictures is None:
                yield clean(views.notice("Stopped before the first picture."))

        yield from page.shown(request, TAB, updates, clean)

    def on_select(pictures: Any, with_numbers: Any, event: gr.SelectData) -> dict[Any, Any]:
        index = event.index if isinstance(event.index, int) else 0
        return show(pictures, min(index, len(pictures) - 1), bool(with_numbers)) if pictures else {}

    def on_number(pictures: Any, index: Any, with_numbers: Any) -> dict[Any, Any]:
        return show(pictures, index, bool(with_numbers)) if pictures else {}

    def on_earlier(file: Any) -> Any:
        if file is None:
            return {verdict: gr.skip()}
        with told():
            found = form_of(read_picture_settings(file, limits), page.studio, limits)
        said = "These are the settings of the picture that you dropped; Generate draws it again."
        return {fields[name]: value for name, value in found.items()} | {
            verdict: views.notice(said)
        }

    inputs = [numbered, *fields.values()]
    gr.on(
        [go.click, prompt.submit, noun.submit],
        on_generate,
        inputs,
        results,
        show_progress_on=live,
        js=TO_RESULT % "cg-results",
        **WATCHED,
        **HIDDEN,
    )
    for button, text in zip(examples, EXAMPLES, strict=True):
        filled = button.click(
            lambda text=text: (text, "", 7), None, [prompt, noun, count], **AT_ONCE, **HIDDEN
        )
        filled.then(
            on_generate,
            inputs,
            results,
            show_progress_on=live,
            js=TO_RESULT % "cg-results",
            **WATCHED,
            **HIDDEN,
        )
    stop.click(page.stopper(TAB), js=TO_RESULT % "cg-results", **STOPPING, **HIDDEN)
    gallery.select(
        on_select,
        [kept, numbered],
        [verdict, slider, numbered, picture, settings, chosen],
        **AT_ONCE,
        **HIDDEN,
    )
    numbered.input(
        on_number,
        [kept, chosen, numbered],
        [verdict, slider, numbered, picture, settings, chosen],
        **AT_ONCE,
        **HIDDEN,
    )
    earlier.upload(on_earlier, [earlier], [*fields.values(), verdict], **AT_ONCE, **HIDDEN)
    _api(page, fields)


def drawn(
    page: Page, wish: Wish, ticket: Ticket, numbered: bool = True
) -> Iterator[tuple[Run, str, list[Kept] | None]]:
    """The run, the panel to show, and at the end the finished pictures, if it was not stopped before any.

    Raises:
        UsageError, UnknownNounError: what generator or counters refuse.
        RuntimeError: every picture failed.
    """
    if ticket.stopped:
        return
    nouns = [target.noun for target in wish.prompt.targets]
    pipeline = page.studio.pipeline(wish.model, wish.critic, nouns, wish.method)
    with closing(watched(pipeline, wish, ticket, page.limits.seconds)) as states:
        for run, watch in states:
            yield run, views.live(watch, wish.budget, numbered), None
    found = (keep(job, run, pipeline, wish, page.shelf) for job in run.jobs)
    pictures = [one for one in found if one is not None]
    if not pictures:
        if ticket.stopped:
            return
        error = next((job.error for job in run.jobs if job.error is not None), None)
        raise error or RuntimeError("no picture was finished")
    yield run, views.ended(watch), pictures


def _notes(run: Run) -> str:
    return views.notice("Note: " + "; ".join(run.notes)) if run.notes else ""


def _api(page: Page, fields: dict[str, gr.Component]) -> None:
    """The function of the API and the tool of MCP clients."""

    def generate(
        prompt: str = "",
        noun: str = "",
        number: int | None = None,
        model: str = page.studio.models[0],
        critic: str = page.studio.critics[0],
        method: str = page.studio.default_method,
        seed: int = 0,
        budget: float = 64,
        request: gr.Request | None = None,
    ) -> Iterator[tuple[str | None, str | None, dict[str, Any]]]:
        """Draw a picture that holds exactly the number of objects that the prompt asks for, and check it.

        One counter steers the picture, another one checks it; only where both agree is it verified. Look at
        "verified" in the result before you trust the number. The default model, pocket, draws up to 20
        objects of 16 kinds: red and green apples, oranges, bananas, cats, dogs, birds, fish, cars, flowers,
        cups, donuts, balls, stars, mushrooms and penguins.

        Args:
            prompt: What to draw, with numbers in words or digits: "seven red apples on a table".
            noun: What to count, in the singular, where the prompt does not say it.
            number: How many of the noun.
            model: Name of the generator, one of those that this page offers.
            critic: Name of the counter that steers.
            method: How the picture is made exact.
            seed: The same seed draws the same picture.
            budget: Most that the picture may cost, in plain renders.

        Returns:
            The picture, a PNG file that carries its settings; the same with everything numbered that was
            counted; and a result with counts, verified, outcome, its meaning, cost and boxes.
        """
        names = ("prompt", "noun", "number", "model", "critic", "method", "seed", "budget")
        values = (prompt, noun, number, model, critic, method, seed, budget)
        with told(), page.tickets.open(visitor(request), "api") as ticket:
            wish = read_wish(dict(zip(names, values, strict=True)), page.studio, page.limits)
            for before in ticket.waiting():
                yield None, None, {"state": "waiting", "before": before}
            for run, _, pictures in drawn(page, wish, ticket):
                if pictures is None:
                    looks = sum(len(job.records) for job in run.jobs)
                    yield None, None, {"state": "working", "looks": looks, "pre": run.cost.pre}
                    continue
                (one,) = pictures
                yield one.picture, one.pairs[True][1], dict(one.record)

    shown = [
        gr.Image(visible=False, type="filepath", format="png", label="Picture"),
        gr.Image(visible=False, type="filepath", label="Picture, numbered"),
        gr.JSON(visible=False, label="Result"),
    ]
    names = ("prompt", "noun", "number", "model", "critic", "method", "seed", "budget")
    gr.Button(visible=False).click(
        generate, [fields[name] for name in names], shown, api_name="generate", **DEVICE
    )
