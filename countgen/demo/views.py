"""What the page shows of runs and counts, as HTML; everything that comes from outside is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from countgen.demo.watch import Shot, Watch, Watched, told_counts, told_wanted

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from PIL import Image

    from countgen.engine.job import Job

LIVE_SIDE = 384
"""Side of a picture that is forming, in pixels."""
FILM_SIDE = 72


def notice(sentence: str, kind: str = "note") -> str:
    """A sentence in a box: "note", "good", "bad" or "error", which is read out at once."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="cg-notice cg-{kind}" role="{role}">{escape(sentence)}</div>'


def waiting(what: str) -> str:
    """What stands in a panel before anything was done."""
    return f'<div class="cg-empty">{escape(what)}</div>'


def in_line(before: int) -> str:
    """What stands in a panel until the first picture, with how many are served before."""
    if not before:
        return waiting("Getting ready.")
    others = "One other is" if before == 1 else f"{before} others are"
    return waiting(f"{others} served before you.")


# -- pictures that are forming ----------------------------------------------------------------------


def live(watch: Watch, budget: float, numbered: bool = True) -> str:
    """All pictures of a run as they are now, with counts, the last move and the cost."""
    cards = [
        _card(one, budget, len(watch.pictures) > 1, numbered) for one in watch.pictures.values()
    ]
    many = " cg-many" if len(cards) > 1 else ""
    film = _film(next(iter(watch.pictures.values()))) if len(cards) == 1 else ""
    return f'<div class="cg-live{many}">{"".join(cards)}</div>{film}'


def ended(watch: Watch) -> str:
    """What is left of the panel when a run has ended: how a single picture came about."""
    pictures = list(watch.pictures.values())
    return _film(pictures[0]) if len(pictures) == 1 else ""


def _card(watched: Watched, budget: float, several: bool, numbered: bool) -> str:
    job, shot = watched.job, watched.latest
    name = f"Picture {job.index + 1}" if several else "Picture"
    if shot is None:
        return (
            '<figure class="cg-card"><div class="cg-blank"></div>'
            f"<figcaption>{name} waits</figcaption></figure>"
        )
    counted = told_counts(shot.counts, job.prompt)
    wanted = told_wanted(job.prompt)
    right = all(n == t.count for n, t in zip(shot.counts, job.prompt.targets, strict=False))
    side = LIVE_SIDE if not several else LIVE_SIDE // 2
    picture = source(_shown(shot, side, numbered))
    state = job.outcome or "working"
    lines = [
        f'<strong class="cg-count {"cg-right" if right else "cg-wrong"}">'
        f"{escape(counted) or 'nothing to count'}</strong>"
        + (f" <span>of {escape(wanted)}</span>" if wanted else ""),
        f"<span>{escape(_sentence_case(shot.move))}</span>",
        f"<span>Cost {shot.pre:.1f} of {budget:g} plain renders, look {watched.looks}</span>",
    ]
    if several or job.outcome:
        lines.append(f"<span>{name}: {escape(state)}</span>")
    alt = f"{name}: {counted or 'drawn'}"
    return (
        f'<figure class="cg-card"><img src="{picture}" alt="{escape(alt, quote=True)}">'
        f"<figcaption>{''.join(f'<div>{line}</div>' for line in lines)}</figcaption></figure>"
    )


def _film(watched: Watched) -> str:
    """The looks so far, small, in order."""
    if len(watched.shots) < 2:
        return ""
    first = watched.looks - len(watched.shots) + 1
    cells = []
    for number, shot in enumerate(watched.shots, first):
        counted = told_counts(shot.counts, watched.job.prompt)
        numbers = "+".join(map(str, shot.counts)) or "-"
        title = f"Look {number}: {shot.move}; {counted}; cost {shot.pre:.1f}"
        cells.append(
            f'<li title="{escape(title, quote=True)}"><img src="{source(_small(shot.image))}" '
            f'alt="{escape(title, quote=True)}"><span aria-hidden="true">{numbers}</span></li>'
        )
    # A list that scrolls can be reached by keyboard.
    return (
        '<ol class="cg-film" tabindex="0" aria-label="All looks at this picture">'
        f"{''.join(cells)}</ol>"
    )


def _shown(shot: Shot, side: int, numbered: bool) -> Image.Image:
    from countgen.drawing import outlined

    return outlined(shot.image, shot.boxes if numbered else (), side)


def _small(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((FILM_SIDE, FILM_SIDE))
    return small


def enlarged(shot: Shot, side: int = LIVE_SIDE) -> Image.Image:
    """A look with everything numbered that was counted."""
    return _shown(shot, side, True)


def glowing(image: Image.Image, density: Float[np.ndarray, "h w"], side: int) -> Image.Image:
    """A picture, darkened, in which the density of objects glows."""
    import numpy as np
    from PIL import Image

    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    glow = density.clip(0) / max(float(density.max()), 1e-6)
    mask = Image.fromarray((glow * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    dark = image.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    dark = dark.point(lambda value: value * 0.55)
    return Image.composite(Image.new("RGB", size, "#ffb000"), dark, mask)


def webp(image: Image.Image, quality: int = 90) -> bytes:
    """A picture as a WebP file."""
    file = BytesIO()
    image.save(file, format="WEBP", quality=quality)
    return file.getvalue()


def source(image: Image.Image) -> str:
    """A picture inside the page, as a data address."""
    return "data:image/webp;base64," + base64.b64encode(webp(image, 85)).decode()


# -- results ----------------------------------------------------------------------------------------


def verdict(job: Job, sentence: str, seconds: float, trust: float | None = None) -> str:
    """Whether a finished picture can be trusted, in plain words.

    Args:
        trust: probability that a third counter agrees, where it is known.
    """
    from countgen.engine.run import counts_of
    from countgen.evaluation.trust import told

    best = job.best
    if best is None:
        return notice("No picture was finished.", "bad")
    counts = counts_of(job)
    said = "; ".join(
        f"{role} counts {told_counts(list(found.values()), job.prompt)}"
        for role, found in counts.items()
        if found
    )
    wanted = told_wanted(job.prompt)
    if job.verified:
        sure = f" ({told(trust)})" if trust is not None else ""
        head, kind = f"Verified: {wanted}{sure}.", "good"
    elif not wanted:
        head, kind = "Not counted: the prompt names no number.", "note"
    else:
        head, kind = f"Not verified: this may not be {wanted} ({job.outcome}).", "bad"
    detail = f"{said[:1].upper()}{said[1:]}. " if said else ""
    looks = f"{len(job.records)} look{'s' if len(job.records) != 1 else ''}"
    cost = f"Cost: {job.spent:.1f} plain renders, {looks}, {seconds:.1f} s in all."
    return (
        f'<div class="cg-notice cg-{kind}" role="status"><strong>{escape(head)}</strong> '
        f"{escape(sentence)}<br><span>{escape(detail)}{escape(cost)}</span></div>"
    )


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """A table with the keys of its rows as headings."""
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in rows[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="cg-table" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def panels(shown: Iterable[tuple[Image.Image, str]]) -> str:
    """Pictures in a row, each with its caption."""
    cards = "".join(
        f'<figure class="cg-card"><img src="{source(image)}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in shown
    )
    return f'<div class="cg-live cg-many">{cards}</div>'


def progress(done: int, total: int, said: str) -> str:
    """How far a list is."""
    return (
        f'<div class="cg-progress"><progress max="{total}" value="{done}" aria-label="Prompts done">'
        f"</progress> <span>{done} of {total} done. {escape(said)}</span></div>"
    )


def _sentence_case(words: str) -> str:
    return words[:1].upper() + words[1:]
