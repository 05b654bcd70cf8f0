"""Looking at a run: what its history says as a plot, and a picture's way as a filmstrip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
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
    from matplotlib.ticker import MaxNLocator

    # Where no gradient was taken there is none to show.
    climbs = any(math.isfinite(record.grad_norm) for record in records)
    figure = Figure(figsize=(8, 9 if climbs else 7), layout="constrained")
    axes = figure.subplots(4 if climbs else 3, 1, sharex=True)
    cost = [record.pre for record in records]
    for noun, number in enumerate(wanted):
        axes[0].axhline(number, color="0.8", zorder=0)
        axes[0].plot(
            cost, [r.counts[noun] for r in records], drawstyle="steps-post", label=f"hard {noun}"
        )
        axes[0].plot(cost, [r.soft[noun] for r in records], ":", label=f"soft {noun}")
    axes[0].set_ylabel("count")
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    if wanted:
        axes[0].legend(fontsize=8)
    axes[1].plot(cost, [record.loss for record in records], color="0.7", zorder=0)
    for move, colour in MOVES.items():
        chosen = [record for record in records if record.move == move]
        if chosen:
            axes[1].scatter(
                [r.pre for r in chosen], [r.loss for r in chosen], s=18, color=colour, label=move
            )
    axes[1].set_ylabel("objective")
    axes[1].legend(fontsize=8)
    axes[2].plot(cost, [record.norm for record in records], label="norm of the noise")
    axes[2].plot(cost, [record.drift for record in records], label="drift")
    axes[2].set_ylabel("noise")
    axes[2].legend(fontsize=8)
    if climbs:
        axes[3].plot(cost, [record.grad_norm for record in records], ".-")
        axes[3].set_ylabel("gradient norm")
    axes[-1].set_xlabel("plain renders spent")
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
    from PIL import Image

    shots = [shot for state in states for job, shot in film_of(state, side) if job == index]
    if not shots:
        raise ValueError(f"the states hold no look at picture {index}")
    width, height = shots[0].size
    rows = -(-len(shots) // columns)
    page = Image.new("RGB", (min(len(shots), columns) * (width + 4), rows * (height + 8)), "white")
    for place, shot in enumerate(shots):
        page.paste(shot, (place % columns * (width + 4), place // columns * (height + 8)))
    return page


def film_of(state: StepState, side: int = 256) -> Iterator[tuple[int, Image.Image]]:
    """The looks of one state: the picture's number, and a frame with the move and what was counted.

    Args:
        side: of the picture in pixels; the line of text above it comes on top.
    """
    from PIL import Image, ImageDraw, ImageFont

    from countgen.engine.run import to_pil

    font = ImageFont.load_default(max(11, side // 16))
    line = max(16, side // 16 + 6)
    for job, image, record in zip(state.jobs, state.images, state.records, strict=True):
        frame = Image.new("RGB", (side, side + line), "white")
        pen = ImageDraw.Draw(frame)
        frame.paste(to_pil(image).resize((side, side), Image.Resampling.BICUBIC), (0, line))
        counts = ", ".join(map(str, record.counts))
        pen.text((2, 1), f"{record.move} {counts}", fill=MOVES[record.move], font=font)
        if record.exact:
            pen.rectangle((0, line, side - 1, line + side - 1), outline="#108030", width=3)
        yield job.index, frame


def animation(frames: Sequence[Image.Image], seconds: float = 0.5, hold: float = 2.0) -> bytes:
    """Frames as an animated WebP that goes round; ``hold`` is how long the last one stays."""
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * hold)]
    file = BytesIO()
    frames[0].save(
        file,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        lossless=False,
        quality=85,
    )
    return file.getvalue()
