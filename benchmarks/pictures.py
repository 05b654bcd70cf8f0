"""The pictures of README.md and the documents, made anew from the embedded world.

python -m benchmarks.pictures strip    # docs/exact.png: plain above exact, counted objects numbered
python -m benchmarks.pictures film     # docs/figures/how-it-works.png: one picture on its way
python -m benchmarks.pictures moves    # docs/figures/engine-moves.png: every look at one hard prompt
python -m benchmarks.pictures curve    # docs/figures/success-against-cap.png, from pocket_suites.json
python -m benchmarks.pictures seeds    # looks for the seeds that the first two draw with

So that no picture shows mere luck, the seed of a prompt is the first whose first draw is wrong and whose
exact picture came from that very draw by edits or gradient steps; that is checked whenever it is drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.method_tables import HARD, SHOWN, result
from countgen import CountGuidedPipeline
from countgen.drawing import fitted, outlined
from countgen.engine.best_move import kind_of
from countgen.engine.job import Job, Observation
from countgen.engine.pool import StepState
from countgen.engine.rates import state_of
from countgen.guidance.diagnostics import MOVES
from countgen.pipeline import to_pil
from countgen.prompts import pluralise

DOCS = Path(__file__).parents[1] / "docs"
PROMPTS = {
    "seven red apples on a table": 7,
    "eleven mushrooms on grass": 3,
    "six cats and three dogs": 1,
    "thirteen stars in the sky": 1,
    "two cats and five donuts on a table": 3,
}
"""Prompt -> seed."""
FILM = "eleven mushrooms on grass"
HARD_PROMPT = "a photo of seven oranges, one ball and four cups"
LOOKS = (12, 18)
"""Of the hard prompt: as many as one can follow on a page."""
SEEDS = 40
SIDE = 192


def drawn(pipeline: CountGuidedPipeline, prompt: str, seed: int) -> tuple[Job, list[StepState]]:
    """One picture by the engine, and every look at it."""
    run = pipeline.stream(prompt, guidance="engine", seed=seed)
    states = list(run)
    return run.jobs[0], states


def is_mended(job: Job) -> bool:
    """Wrong at first, and then made exact from that first draw by moves of its noise."""
    if job.plain is None or job.best is None or job.plain.record.error == 0:
        return False
    return job.verified and job.best.record.move != "draw" and _from_the_first(job)


def mended(pipeline: CountGuidedPipeline, prompt: str) -> tuple[Job, list[StepState]]:
    """The picture of a prompt.

    Raises:
        SystemExit: its seed no longer gives one that was mended.
    """
    job, states = drawn(pipeline, prompt, PROMPTS[prompt])
    if not is_mended(job):
        raise SystemExit(
            f"seed {PROMPTS[prompt]} does not mend {prompt!r}; look for another: seeds"
        )
    return job, states


def seeds(pipeline: CountGuidedPipeline, prompts: Sequence[str]) -> None:
    """Print the first seed that mends each prompt."""
    for prompt in prompts:
        found = (s for s in range(SEEDS) if is_mended(drawn(pipeline, prompt, s)[0]))
        print(f"{prompt!r}: {next(found, None)},", flush=True)


def _from_the_first(job: Job) -> bool:
    """The picture that was kept goes back to the first draw, which is the plain picture above it."""
    records = {record.number: record for record in job.records}
    record = job.best.record if job.best is not None else None
    while record is not None and record.base is not None:
        record = records[record.base]
    return record is not None and record.candidate == 0


def strip(pipeline: CountGuidedPipeline) -> Image.Image:
    """Plain above exact, a column a prompt."""
    line, gap, left = 34, 8, 58
    width = left + len(PROMPTS) * (SIDE + gap)
    page = Image.new("RGB", (width, line + 2 * (SIDE + line)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for row, name in enumerate(("plain", "exact")):
        pen.text((4, line + row * (SIDE + line) + SIDE // 2), name, fill="black", font=font)
    for place, prompt in enumerate(PROMPTS):
        job, _ = mended(pipeline, prompt)
        assert job.plain is not None and job.best is not None
        x = left + place * (SIDE + gap)
        pen.text((x, 9), fitted(prompt, font, SIDE), fill="black", font=font)
        for row, seen in enumerate((job.plain, job.best)):
            y = line + row * (SIDE + line)
            page.paste(_outlined(seen), (x, y))
            text, colour = _counted(job, seen), "#108030" if row else "#b00020"
            pen.text((x, y + SIDE + 4), fitted(text, font, SIDE), fill=colour, font=font)
    return page


def film(pipeline: CountGuidedPipeline) -> Image.Image:
    """The way of one picture: what the critic saw, what was done about it, and the verifier's word."""
    job, states = mended(pipeline, FILM)
    looks = [
        (image, record)
        for state in states
        for image, record in zip(state.images, state.records, strict=True)
    ]
    assert job.best is not None
    best, records = job.best, {record.number: record for record in job.records}
    way, record = [], best.record
    while True:
        way.append(record.number)
        if record.base is None:
            break
        record = records[record.base]
    way = way[::-1]
    shown = [look for look in looks if look[1].number in way]
    side, gap, top = 208, 62, 58
    page = Image.new("RGB", (len(shown) * (side + gap) + 160, top + side + 54), "white")
    pen, font, small = (
        ImageDraw.Draw(page),
        ImageFont.load_default(19),
        ImageFont.load_default(17),
    )
    pen.text((4, 6), f'"{job.prompt.text}", seed {PROMPTS[FILM]}', fill="black", font=font)
    says = {"draw": "noise drawn", "edit": "noise edited", "improve": "gradient step"}
    for place, (image, record) in enumerate(shown):
        x = place * (side + gap)
        pen.text((x, 30), says[record.move], fill=MOVES[record.move], font=font)
        page.paste(to_pil(image).resize((side, side), Image.Resampling.BICUBIC), (x, top))
        pen.text((x, top + side + 4), f"critic counts {record.counts[0]}", fill="black", font=small)
        what = ", ".join(change.kind for change in record.changes) or (
            f"confidence {record.confidence:.2f}" if record.move == "improve" else ""
        )
        pen.text(
            (x, top + side + 26), fitted(what, small, side + gap - 10), fill="#555", font=small
        )
        _arrow(pen, x + side + 8, x + side + gap - 8, top + side // 2)
    x = len(shown) * (side + gap)
    for row, text in enumerate(
        (
            "verifier,",
            "another family:",
            f"counts {best.record.verifier[0] if best.record.verifier else '?'}",
            "",
            "verified",
        )
    ):
        colour = "#108030" if row == 4 else "black"
        pen.text((x, top + 40 + row * 25), text, fill=colour, font=font)
    return page


def _outlined(seen: Observation) -> Image.Image:
    return outlined(to_pil(seen.image), [kind.tolist() for kind in seen.boxes or ()], SIDE)


def _counted(job: Job, seen: Observation) -> str:
    return ", ".join(
        f"{n} {pluralise(target.noun, n)}"
        for n, target in zip(seen.record.counts, job.prompt.targets, strict=True)
    )


def _arrow(pen: ImageDraw.ImageDraw, start: int, end: int, y: int) -> None:
    pen.line((start, y, end, y), fill="black", width=2)
    pen.polygon(((end, y), (end - 8, y - 5), (end - 8, y + 5)), fill="black")


def moves(pipeline: CountGuidedPipeline) -> Image.Image:
    """Every look at one hard prompt, in order: the move, from which look, and what the critic counts."""
    for seed in range(SEEDS):
        job, states = drawn(pipeline, HARD_PROMPT, seed)
        if job.verified and LOOKS[0] <= len(job.records) <= LOOKS[1]:
            break
    else:
        raise SystemExit(f"no seed below {SEEDS} takes {LOOKS[0]} to {LOOKS[1]} looks")
    looks = [
        (image, record)
        for state in states
        for image, record in zip(state.images, state.records, strict=True)
    ]
    side, gap, line, across, top = 176, 14, 20, 5, 34
    down = -(-len(looks) // across)
    height = side + 3 * line + gap
    page = Image.new("RGB", (across * (side + gap), top + down * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    pen.text((2, 8), f'"{HARD_PROMPT}", seed {seed}', fill="black", font=font)
    for place, (image, record) in enumerate(looks):
        x, y = place % across * (side + gap), top + place // across * height
        page.paste(to_pil(image).resize((side, side), Image.Resampling.BICUBIC), (x, y + line))
        what = kind_of(record.changes) if record.changes else record.move
        told = f"{record.number}: {what}" + ("" if record.base is None else f" of {record.base}")
        pen.text((x, y), fitted(told, font, side), fill=MOVES[record.move], font=font)
        counts = ", ".join(
            f"{n} {pluralise(t.noun, n)}"
            for n, t in zip(record.counts, job.prompt.targets, strict=True)
        )
        pen.text((x, y + side + line), fitted(counts, font, side), fill="black", font=font)
        state = state_of(record)
        told = {"exact": "verified", "unclear": "exact, not clear", "disputed": "exact, disputed"}
        pen.text(
            (x, y + side + 2 * line),
            told.get(state, f"off by {record.error}"),
            fill="#108030" if state == "exact" else "#555",
            font=font,
        )
    return page


def curve(path: Path) -> None:
    """Share of the hard third's pictures that were verified and right for the judge, against the cap."""
    from matplotlib.figure import Figure

    methods = result("pocket_suites")["suites"][HARD]
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, mark in zip(methods, "v^sDo", strict=False):
        shares = {float(cap): 100 * s for cap, s in methods[name]["success_by_cap"].items()}
        axes.plot(list(shares), list(shares.values()), marker=mark, label=SHOWN.get(name, name))
    axes.set_xscale("log", base=2)
    ticks = (2, 4, 8, 16, 32, 64)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("cap, in plain renders a picture")
    axes.set_ylabel("verified and right, % of pictures")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("which", choices=["strip", "film", "moves", "curve", "seeds"])
    parser.add_argument("prompts", nargs="*", default=list(PROMPTS), help="of seeds")
    options = parser.parse_args()
    (DOCS / "figures").mkdir(exist_ok=True)
    if options.which == "curve":
        curve(DOCS / "figures" / "success-against-cap.png")
        return 0
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    if options.which == "seeds":
        seeds(pipeline, options.prompts)
    elif options.which == "strip":
        strip(pipeline).save(DOCS / "exact.png", optimize=True)
    elif options.which == "moves":
        moves(pipeline).save(DOCS / "figures" / "engine-moves.png", optimize=True)
    else:
        film(pipeline).save(DOCS / "figures" / "how-it-works.png", optimize=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
