"""What ``countgen generate`` does: pictures with their settings, a side-by-side of each, and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError
from countgen.presets import POCKET, best_device
from countgen.prompts import (
    NEGATIVE,
    TOO_MANY,
    CountPrompt,
    CountTarget,
    parse_prompt,
    parse_target,
    pluralise,
)
from countgen.seeds import image_seed

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from countgen.engine import Look, Picture, StepState
    from countgen.pipeline import CountGuidedPipeline

COLOURS = ("#e6194b", "#0050d0", "#108030", "#b0189c", "#c05000")


@dataclass(frozen=True)
class Report:
    """The command's JSON document, and a sentence for every outcome that occurred."""

    document: dict[str, Any]
    sentences: tuple[str, ...]


def read_targets(written: Sequence[str]) -> tuple[CountTarget, ...] | None:
    """Targets as ``--target`` takes them; None when there are none, so that the prompt is read.

    Raises:
        UsageError: one that is not written NOUN=NUMBER, or a noun named twice.
    """
    try:
        targets = tuple(map(parse_target, written))
    except ValueError as error:
        raise UsageError(f"--target: {error}") from error
    nouns = [target.noun for target in targets]
    for noun in nouns:
        if nouns.count(noun) > 1:
            raise UsageError(f"--target names {noun!r} twice")
    return targets or None


def read_prompt(
    text: str,
    note: Callable[[str], None],
    model: str = POCKET,
    targets: Sequence[CountTarget] | None = None,
) -> CountPrompt:
    """Parse a prompt and tell the user what will be ignored, in the pocket world unknown words too.

    Args:
        targets: what to count, in place of what the prompt says.

    Raises:
        UsageError: an empty prompt, a negative count, or more objects than pocket can draw.
    """
    if not text.strip():
        raise UsageError('the prompt is empty; try "seven red apples on a table"')
    prompt = parse_prompt(text, targets)
    impossible = [remark for remark in prompt.notes if TOO_MANY in remark or NEGATIVE in remark]
    if impossible:
        raise UsageError(impossible[0])
    for remark in prompt.notes:
        note(remark)
    if not prompt.targets:
        note("the prompt names no count, so the picture is drawn as it comes")
    if model == POCKET:
        _check_for_pocket(prompt, note)
    return prompt


def _check_for_pocket(prompt: CountPrompt, note: Callable[[str], None]) -> None:
    from countgen.pocket.world import MAX_OBJECTS

    total = sum(target.count for target in prompt.targets)
    if total > MAX_OBJECTS:
        raise UsageError(
            f"{total} objects are more than the pocket generator was trained for; "
            f"ask for at most {MAX_OBJECTS} in all"
        )
    from countgen.pocket import unknown_words

    strangers = unknown_words(prompt.text)
    if strangers:
        note(f"words the pocket generator does not know and reads as <unk>: {', '.join(strangers)}")


def generate(
    prompt: str,
    out: Path,
    *,
    model: str = POCKET,
    critic: str | None = None,
    verifier: str | None = None,
    device: str | None = None,
    memory: str = "auto",
    tiny_decoder: str | None = None,
    seed: int = 0,
    num_images: int = 1,
    budget: float = 64.0,
    method: str = "noise",
    targets: Sequence[CountTarget] | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[StepState], None] = lambda state: None,
) -> Report:
    """Draw pictures of a prompt into a folder and report them.

    Every picture is written as soon as it is finished, under a temporary name and then renamed, and carries
    its settings in its metadata; what was finished stays if a later one fails or the run is interrupted.

    Args:
        model, critic, verifier, memory, tiny_decoder: as for ``CountGuidedPipeline.from_pretrained``.
        targets: what to count, in place of what the prompt says.
        device: None takes the best there is, and for pocket, which is small, the CPU.

    Raises:
        UsageError: an impossible request.
        OSError: the folder cannot be written, or the disk is full.
        MemoryShortage: the device is too small for one picture.
        pipelines.hub.LoadError, critics.checkpoint.CheckpointError, countgen.pocket.PocketError:
            weights that cannot be loaded.
    """
    if num_images < 1:
        raise UsageError(f"--num-images must be at least 1, not {num_images}")
    if not budget > 0:
        raise UsageError(f"--budget must be a positive number of plain renders, not {budget}")
    parsed = read_prompt(prompt, note, model, targets)
    # What follows loads torch; what a user can get wrong is found before, without waiting for it.
    from countgen.engine import OUTCOMES
    from countgen.guidance.methods import find_method
    from countgen.pipeline import CountGuidedPipeline

    chosen = find_method(method)
    _check_writable(out)

    pipeline = CountGuidedPipeline.from_pretrained(
        model,
        critic=critic,
        verifier=verifier,
        guidance=chosen,
        device=device or ("cpu" if model == POCKET else best_device()),
        memory=memory,
        tiny_decoder=tiny_decoder,
    )
    if model != POCKET:
        plan = pipeline.adapter.memory
        note(f"memory plan {plan.name}: {plan.summary}, on {pipeline.adapter.device}")
    rows: dict[int, dict[str, Any]] = {}
    states = pipeline.stream(
        prompt, targets=parsed.targets, num_images_per_prompt=num_images, seed=seed, budget=budget
    )
    for state in states:
        progress(state)
        for picture in state.finished:
            rows[picture.index] = _keep(picture, pipeline, out, seed, model, method)
    done = [rows[index] for index in sorted(rows)]
    document = {
        "prompt": prompt,
        "targets": [{"noun": t.noun, "count": t.count} for t in parsed.targets],
        "images": done,
        "cost": pipeline.output("pt").cost.report(),
    }
    outcomes = dict.fromkeys(row["outcome"] for row in done)
    return Report(document, tuple(OUTCOMES[outcome] for outcome in outcomes))


def _check_writable(out: Path) -> None:
    """Find out before the work, not after it."""
    out.mkdir(parents=True, exist_ok=True)
    probe = out / ".countgen.partial"
    probe.write_bytes(b"")
    probe.unlink()


def _keep(
    picture: Picture, pipeline: CountGuidedPipeline, out: Path, seed: int, model: str, method: str
) -> dict[str, Any]:
    """Write a finished picture and its side-by-side; its row of the report."""
    from countgen.pipeline import counts, to_pil

    look = picture.best
    assert look is not None
    path = out / f"{picture.index:03d}.png"
    row = {
        "path": os.path.relpath(path),
        "seed": image_seed(seed, picture.prompt.text, picture.index, look.candidate),
        "counts": counts(picture),
        "verified": picture.verified,
        "outcome": picture.outcome,
    }
    settings = {
        **{key: value for key, value in row.items() if key != "path"},
        "prompt": picture.prompt.text,
        "model": model,
        "method": method,
        "run_seed": seed,
        "image": picture.index,
        "candidate": look.candidate,
        "gradient_steps": look.step,
        "pre": round(picture.spent, 3),
        "critic": pipeline.critic.card.name,
        "verifier": pipeline.verifier.card.name if pipeline.verifier else "",
    }
    save(to_pil(look.image), path, settings)
    if picture.prompt.targets:
        save(side_by_side(picture), out / f"{picture.index:03d}-compare.png", settings)
    return row


def save(image: Image.Image, path: Path, settings: dict[str, Any]) -> None:
    """Write a picture with its settings as PNG text, all or nothing."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("countgen", json.dumps(settings))
    partial = path.with_name(path.name + ".partial")
    try:
        image.save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def side_by_side(picture: Picture, side: int = 384) -> Image.Image:
    """The plain first draw beside the picture that was kept, counted objects outlined and numbered."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(16)
    page = Image.new("RGB", (2 * side + 8, side + 52), "white")
    pen = ImageDraw.Draw(page)
    pen.text((4, 3), picture.prompt.text, fill="black", font=font)
    sides = ((0, "plain", picture.plain), (side + 8, "guided", picture.best))
    for x, name, look in sides:
        if look is None:
            continue
        verified = " (verified)" if look is picture.best and picture.verified else ""
        pen.text((x + 4, 26), f"{name}: {_said(picture, look)}{verified}", fill="black", font=font)
        page.paste(outlined(look, side), (x, 52))
    return page


def _said(picture: Picture, look: Look) -> str:
    nouns = [target.noun for target in picture.prompt.targets]
    return ", ".join(
        f"{n} {pluralise(noun, n)}" for noun, n in zip(nouns, look.critic, strict=True)
    )


def outlined(look: Look, side: int) -> Image.Image:
    """A picture enlarged, with a numbered box around everything that the critic counted."""
    from PIL import Image, ImageDraw, ImageFont

    from countgen.pipeline import to_pil

    image = to_pil(look.image)
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    pen: ImageDraw.ImageDraw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, side // 24))
    for kind, boxes in enumerate(look.boxes or ()):
        colour = COLOURS[kind % len(COLOURS)]
        for number, box in enumerate(_reading_order(boxes.tolist()), 1):
            x0, y0, x1, y1 = (round(v * scale) for v in box)
            x0, y0 = max(x0, 0), max(y0, 0)
            x1, y1 = max(x0, min(x1, image.width - 1)), max(y0, min(y1, image.height - 1))
            pen.rectangle((x0, y0, x1, y1), outline=colour, width=2)
            corner, text = (x0 + 3, y0 + 1), str(number)
            left, top, right, bottom = pen.textbbox(corner, text, font=font)
            pen.rectangle((left - 3, top - 2, right + 2, bottom + 2), fill=colour)
            pen.text(corner, text, fill="white", font=font)
    return image


def _reading_order(boxes: Iterable[list[float]]) -> list[list[float]]:
    """Top to bottom in bands, left to right within one, so that numbers are easy to follow."""
    boxes = list(boxes)
    if not boxes:
        return []
    band = sum(box[3] - box[1] for box in boxes) / len(boxes)
    return sorted(boxes, key=lambda b: (int((b[1] + b[3]) / 2 // max(band, 1e-6)), b[0]))
