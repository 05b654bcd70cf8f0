"""The tab that shows what each counter sees in a picture, and the API function of the same name."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from countgen.demo import limits as read
from countgen.demo import views
from countgen.demo.files import open_picture
from countgen.demo.page import DEVICE, HIDDEN, TO_RESULT, Page, told, visitor
from countgen.demo.running import Ticket
from countgen.errors import UsageError
from countgen.prompts import pluralise, singularise

if TYPE_CHECKING:
    from PIL import Image

    from critics.base import CountEstimate, CriticCard

TAB = "count"
MOST_NOUNS = 3
SIDE = 640
"""Longest side at which pictures are counted and shown."""
EMPTY = "Choose a picture, name what to count in it, and press Count."


@dataclass(frozen=True)
class Question:
    """A picture, and what is to be counted in it by whom."""

    image: Image.Image
    nouns: tuple[str, ...]
    counters: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What one counter sees."""

    card: CriticCard
    nouns: tuple[str, ...]
    counts: tuple[int, ...]
    soft: tuple[float, ...]
    confidence: tuple[float, ...]
    image: Image.Image
    """With boxes and numbers, or with the density as a glow."""

    def told(self) -> str:
        found = zip(self.counts, self.nouns, strict=True)
        return ", ".join(f"{n} {pluralise(noun, n)}" for n, noun in found)


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            picture = gr.Image(
                label="Picture",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=280,
                elem_id="cg-counted",
            )
            noun = gr.Textbox(
                label="Noun",
                placeholder="red apple",
                info=f"In the singular; up to {MOST_NOUNS}, separated by commas.",
                max_length=200,
                elem_id="cg-noun",
            )
            counters = gr.CheckboxGroup(
                list(page.studio.counters), value=list(page.studio.counters), label="Counters"
            )
            go = gr.Button("Count", variant="primary")
        with gr.Column(scale=6, min_width=300):
            shown = gr.HTML(views.waiting(EMPTY), elem_id="cg-seen")

    def on_count(request: gr.Request, file: Any, nouns: Any, names: Any) -> Iterator[str]:
        def updates(ticket: Ticket) -> Generator[str, None, None]:
            asked = read_question(page, file, nouns, names)
            for before in ticket.waiting():
                yield views.in_line(before)
            if not ticket.stopped:
                yield said_of(counted(page, asked))

        yield from page.shown(request, TAB, updates, lambda notice: notice)

    def said_of(found: list[Seen]) -> str:
        rows = [
            {
                "counter": one.card.name,
                "family": one.card.family,
                "counts": one.told(),
                "before rounding": ", ".join(f"{value:.2f}" for value in one.soft),
                "clear (0 to 1)": ", ".join(f"{value:.2f}" for value in one.confidence),
            }
            for one in found
        ]
        agree = len({one.counts for one in found}) == 1
        said = f"All counters agree: {found[0].told()}." if agree else "The counters do not agree."
        if len(found) == 1:
            said = f"{found[0].card.name} counts {found[0].told()}."
        pictures = [(one.image, f"{one.card.name}: {one.told()}") for one in found]
        return (
            views.notice(said, "good" if agree else "bad")
            + views.panels(pictures)
            + views.table(rows, "What each counter sees")
        )

    gr.on(
        [go.click, noun.submit],
        on_count,
        [picture, noun, counters],
        shown,
        show_progress="minimal",
        js=TO_RESULT % "cg-seen",
        **DEVICE,
        **HIDDEN,
    )
    _api(page, picture, noun, counters)


def read_question(page: Page, file: Any, nouns: Any, names: Any) -> Question:
    """What is to be counted, checked.

    Raises:
        UsageError: no picture, no noun, no counter.
    """
    limits = page.limits
    line = read.text(nouns, "the noun", 200)
    wanted = tuple(dict.fromkeys(singularise(n.strip()) for n in line.split(",") if n.strip()))
    if not wanted:
        raise UsageError("the noun is empty; fill it in")
    if len(wanted) > MOST_NOUNS:
        raise UsageError(f"at most {MOST_NOUNS} nouns are counted at once, not {len(wanted)}")
    chosen = read.several(
        names, "the counters", page.studio.counters, max(1, len(page.studio.counters))
    )
    image = open_picture(file, limits)
    image.thumbnail((SIDE, SIDE))
    return Question(image, wanted, chosen)


def counted(page: Page, asked: Question) -> list[Seen]:
    """What the chosen counters see.

    Raises:
        UnknownNounError: a noun that a counter cannot see.
    """
    import torch

    image, wanted = asked.image, asked.nouns
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    batch = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).float() / 255
    found = []
    for name in asked.counters:
        counter = page.studio.counter(name)
        query = counter.prepare(wanted)
        place = next(counter.network.parameters()).device
        with torch.no_grad():
            estimate = counter(batch.to(place), [query])
        found.append(_seen(counter.card, wanted, estimate, image))
    return found


def _seen(
    card: CriticCard, nouns: tuple[str, ...], estimate: CountEstimate, image: Image.Image
) -> Seen:
    from countgen.drawing import outlined

    rows = range(len(nouns))
    shown = image
    if estimate.candidates is not None:
        boxes, kept = estimate.candidates.boxes[0], estimate.candidates.kept[0]
        shown = outlined(image, [boxes[k][kept[k]].tolist() for k in rows], max(384, *image.size))
    elif estimate.density is not None:
        shown = views.glowing(
            image, estimate.density[0].sum(0).cpu().numpy(), max(384, *image.size)
        )
    return Seen(
        card,
        nouns,
        tuple(int(estimate.hard[0, k]) for k in rows),
        tuple(float(estimate.soft[0, k]) for k in rows),
        tuple(float(estimate.confidence[0, k]) for k in rows),
        shown,
    )


def _api(
    page: Page, picture_field: gr.Component, noun_field: gr.Component, counters_field: gr.Component
) -> None:
    """The function of the API and the tool of MCP clients."""

    def count(
        picture: str,
        noun: str,
        counters: Sequence[str] = page.studio.counters,
        request: gr.Request | None = None,
    ) -> tuple[str, list[dict[str, Any]]]:
        """Count objects in a picture with several counters, and say how clear each count is.

        Args:
            picture: The picture, PNG, JPEG or WebP.
            noun: What to count, in the singular; up to three nouns, separated by commas.
            counters: Names of the counters.

        Returns:
            The picture as the first counter sees it, with numbered boxes; and for each counter its counts by
            noun, the counts before rounding, and how clear each is, from 0 to 1.
        """
        with told(), page.tickets.open(visitor(request), "api") as ticket:
            asked = read_question(page, picture, noun, counters)
            for _ in ticket.waiting():
                pass
            found = counted(page, asked)
            return page.shelf.keep("counted.webp", views.webp(found[0].image)), [
                {
                    "counter": one.card.name,
                    "counts": dict(zip(one.nouns, one.counts, strict=True)),
                    "soft": dict(zip(one.nouns, (round(v, 3) for v in one.soft), strict=True)),
                    "confidence": dict(
                        zip(one.nouns, (round(v, 3) for v in one.confidence), strict=True)
                    ),
                }
                for one in found
            ]

    shown = [
        gr.Image(visible=False, type="filepath", label="Picture, numbered"),
        gr.JSON(visible=False, label="Counts"),
    ]
    gr.Button(visible=False).click(
        count, [picture_field, noun_field, counters_field], shown, api_name="count", **DEVICE
    )
