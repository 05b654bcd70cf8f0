"""Looking at a run: what its history says as a plot, and a picture's way as a filmstrip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from countgen.engine.actions import Record

if TYPE_CHECKING:
    from PIL import Image

    from countgen.engine.pool import StepState

MOVES = {"draw": "#0050d0", "edit": "#e6194b", "improve": "#108030"}
"""Colour of every kind of move."""


def plot_history(records: Sequence[Record], wanted: Sequence[int]) -> Any:
    """A matplotlib figure of one picture's history: counts, objective, noise and gradient against cost.

    Raises:
        ImportError: matplotlib is not installed; the extra ``eval`` brings it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    cost = [record.pre for record in records]
    for noun, number in enumerate(wanted):
        axes[0].axhline(number, color="0.8", zorder=0)
        axes[0].plot(
            cost, [r.counts[noun] for r in records], drawstyle="steps-post", label=f"hard {noun}"
        )
        axes[0].plot(cost, [r.soft[noun] for r in records], ":", label=f"soft {noun}")
    axes[0].set_ylabel("count")
    if wanted:
        axes[0].legend(fontsize=8)
    axes[1].plot(cost, [record.loss for record in records], color="0.7", zorder=0)
    for move, colour in MOVES.items():
        chosen = [record for record in records if record.move == move]
        axes[1].scatter(
            [r.pre for r in chosen], [r.loss for r in chosen], s=18, color=colour, label=move
        )
    axes[1].set_ylabel("objective")
    axes[1].legend(fontsize=8)
    axes[2].plot(cost, [record.norm for record in records], label="norm of the noise")
    axes[2].plot(cost, [record.drift for record in records], label="drift")
    axes[2].set_ylabel("noise")
    axes[2].legend(fontsize=8)
    axes[3].plot(cost, [record.grad_norm for record in records], ".-")
    axes[3].set_ylabel("gradient norm")
    axes[3].set_xlabel("plain renders spent")
    return figure


def filmstrip(
    states: Iterable[StepState], index: int = 0, side: int = 160, columns: int = 8
) -> Image.Image:
    """Every look at one picture of a run, in order, each with its move and what was counted.

    Args:
        states: of a run, all or some; images and records are read from them.
        index: which picture.
        side: of each frame in pixels.

    Raises:
        ValueError: the states hold no look at that picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    from countgen.engine.run import to_pil

    looks = [
        (image, record)
        for state in states
        for job, image, record in zip(state.jobs, state.images, state.records, strict=True)
        if job.index == index
    ]
    if not looks:
        raise ValueError(f"the states hold no look at picture {index}")
    font, line = ImageFont.load_default(11), 16
    rows = -(-len(looks) // columns)
    width = min(len(looks), columns) * (side + 4)
    page = Image.new("RGB", (width, rows * (side + line + 8)), "white")
    pen = ImageDraw.Draw(page)
    for place, (image, record) in enumerate(looks):
        x, y = place % columns * (side + 4), place // columns * (side + line + 8)
        frame = to_pil(image).resize((side, side), Image.Resampling.BICUBIC)
        page.paste(frame, (x, y + line))
        counts = ", ".join(map(str, record.counts))
        pen.text((x + 2, y + 1), f"{record.move} {counts}", fill=MOVES[record.move], font=font)
        if record.exact:
            pen.rectangle(
                (x, y + line, x + side - 1, y + line + side - 1), outline="#108030", width=3
            )
    return page
