"""Pictures for people: numbered boxes, side-by-sides, and PNG files that carry their settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from countgen.engine.job import Job, Observation

COLOURS = ("#e6194b", "#0050d0", "#108030", "#b0189c", "#c05000")
Box = Sequence[float]
"""x0, y0, x1, y1 in pixels of the picture."""


@dataclass(frozen=True)
class Panel:
    """One side of a side-by-side.

    Attributes:
        boxes: per noun, what was counted.
    """

    caption: str
    image: Image.Image
    boxes: Sequence[Sequence[Box]] = ()


def comparison(job: Job, side: int = 384) -> Image.Image:
    """The plain first draw of a finished picture beside what was kept, with what the critic counted."""
    panels = (_panel("plain", job, job.plain), _panel("kept", job, job.best))
    return side_by_side(job.prompt.text, panels, side)


def _panel(name: str, job: Job, seen: Observation | None) -> Panel | None:
    from countgen.engine.run import to_pil
    from countgen.prompts import pluralise

    if seen is None:
        return None
    found = ", ".join(
        f"{n} {pluralise(target.noun, n)}"
        for n, target in zip(seen.record.counts, job.prompt.targets, strict=True)
    )
    verified = " (verified)" if seen is job.best and job.verified else ""
    boxes = [kind.tolist() for kind in seen.boxes or ()]
    return Panel(f"{name}: {found}{verified}", to_pil(seen.image), boxes)


def side_by_side(title: str, panels: Sequence[Panel | None], side: int = 384) -> Image.Image:
    """Pictures in a row under one title, counted objects outlined and numbered; None leaves a place empty."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(16)
    page = Image.new("RGB", (len(panels) * side + (len(panels) - 1) * 8, side + 52), "white")
    pen = ImageDraw.Draw(page)
    pen.text((4, 3), fitted(title, font, page.width - 8), fill="black", font=font)
    for place, panel in enumerate(panels):
        if panel is not None:
            x = place * (side + 8)
            pen.text((x + 4, 26), fitted(panel.caption, font, side - 8), fill="black", font=font)
            page.paste(outlined(panel.image, panel.boxes, side), (x, 52))
    return page


def outlined(image: Image.Image, boxes: Sequence[Sequence[Box]], side: int) -> Image.Image:
    """A picture enlarged to ``side``, with a numbered box around everything that was counted."""
    from PIL import Image, ImageDraw, ImageFont

    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    pen: ImageDraw.ImageDraw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, side // 24))
    for kind, found in enumerate(boxes):
        colour = COLOURS[kind % len(COLOURS)]
        for number, box in enumerate(reading_order(found), 1):
            x0, y0, x1, y1 = (round(v * scale) for v in box)
            x0, y0 = max(x0, 0), max(y0, 0)
            x1, y1 = max(x0, min(x1, image.width - 1)), max(y0, min(y1, image.height - 1))
            pen.rectangle((x0, y0, x1, y1), outline=colour, width=2)
            corner, text = (x0 + 3, y0 + 1), str(number)
            left, top, right, bottom = pen.textbbox(corner, text, font=font)
            pen.rectangle((left - 3, top - 2, right + 2, bottom + 2), fill=colour)
            pen.text(corner, text, fill="white", font=font)
    return image


def reading_order(boxes: Iterable[Box]) -> list[Box]:
    """Top to bottom in bands, left to right within one, so that numbers are easy to follow."""
    boxes = list(boxes)
    if not boxes:
        return []
    band = sum(box[3] - box[1] for box in boxes) / len(boxes)
    return sorted(boxes, key=lambda b: (int((b[1] + b[3]) / 2 // max(band, 1e-6)), b[0]))


def fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A text in one line of at most ``width`` pixels, in signs that the font has (others become "?")."""
    line = "".join(_drawable(sign, font) for sign in " ".join(text[:1000].split()))
    if len(text) <= 1000 and font.getlength(line) <= width:
        return line
    short, long = 0, len(line)
    while short < long:
        middle = (short + long + 1) // 2
        fits = font.getlength(line[:middle].rstrip() + "...") <= width
        short, long = (middle, long) if fits else (short, middle - 1)
    return line[:short].rstrip() + "..."


def _drawable(sign: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The sign, or "?" where the font has none: Pillow's own has little beyond ASCII."""
    if " " <= sign <= "~":
        return sign
    try:
        mask, missing = font.getmask(sign), font.getmask("\uffff")
    except (
        UnicodeEncodeError
    ):  # the bitmap font that Pillow has where it was built without FreeType
        return "?"
    return "?" if (mask.size, bytes(mask)) == (missing.size, bytes(missing)) else sign


def png(
    image: Image.Image, settings: Mapping[str, Any], chunks: Mapping[bytes, bytes] | None = None
) -> bytes:
    """A PNG file that carries the settings: JSON for us (``countgen``), text for others (``parameters``).

    Args:
        chunks: further ones by their names of four letters.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", parameters(settings))
    info.add_text("countgen", json.dumps(dict(settings)))
    for name, data in (chunks or {}).items():
        info.add(name, data)
    file = BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def parameters(settings: Mapping[str, Any]) -> str:
    """The settings as stable-diffusion-webui writes them: the prompt, then one line of ``Name: value``.

    Programs that show how a picture was made read this. A value that holds a comma, a colon or a line break
    is quoted as JSON, as they expect it.
    """
    names = {
        "steps": "Steps",
        "scheduler": "Sampler",
        "guidance_scale": "CFG scale",
        "seed": "Seed",
        "size": "Size",
        "model": "Model",
        "method": "Count method",
        "critic": "Count critic",
        "verifier": "Count verifier",
        "outcome": "Count outcome",
        "version": "Version",
    }
    known = [
        (name, settings[key]) for key, name in names.items() if settings.get(key) not in (None, "")
    ]
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in known)
    return f"{settings.get('prompt', '')}\n{line}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value
