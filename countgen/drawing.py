"""Draw pictures, count them with two counters, and keep the first that both find exact (best of N)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError
from countgen.prompts import CountPrompt, parse_prompt
from countgen.seeds import image_seed

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from critics.base import Critic

EXACT = "exact"
BUDGET_SPENT = "budget spent"
NO_COUNT = "no count in the prompt"
OUTCOMES = {
    EXACT: "Critic and verifier both count exactly what the prompt asks for.",
    BUDGET_SPENT: "No picture was exact within the budget; the nearest one is kept. Raise the budget, or "
    "ask for fewer objects.",
    NO_COUNT: "The prompt names no count, so the first picture is kept as it came.",
}
BATCH = 8


@dataclass(frozen=True)
class Drawing:
    """One finished picture and what the counters said about it.

    Attributes:
        counts: role -> noun -> count.
        verified: critic and verifier both count exactly.
        draws: pictures drawn for it, itself included.
    """

    image: Image.Image
    seed: int
    counts: dict[str, dict[str, int]]
    verified: bool
    outcome: str
    draws: int


@dataclass
class Artist:
    """The pocket generator with its critic and verifier, loaded once.

    Attributes:
        note: receives remarks for the user, one sentence each.
    """

    pipeline: Any
    critic: Critic
    verifier: Critic
    note: Callable[[str], None] = field(default=lambda text: None)

    @classmethod
    def pocket(cls, note: Callable[[str], None] = lambda text: None) -> Artist:
        """The embedded default.

        Raises:
            countgen.pocket.PocketError: a file of pocket is missing or damaged.
        """
        from countgen.pocket import ROLES, load_critic, load_generator

        return cls(
            load_generator(), load_critic(ROLES["critic"]), load_critic(ROLES["verifier"]), note
        )

    def render(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Plain pictures, (b, 3, h, w) in [0, 1], each from its own CPU generator."""
        import torch

        from countgen.pocket import STEPS

        with torch.no_grad():
            return self.pipeline(
                list(prompts),
                num_inference_steps=STEPS,
                guidance_scale=1.0,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
            ).images

    def draw(self, prompt: CountPrompt, seed: int = 0, image: int = 0, draws: int = 16) -> Drawing:
        """Draw up to ``draws`` pictures and return the first verified one, else the nearest.

        Raises:
            critics.base.UnknownNounError: a noun that the counters cannot see.
        """
        import torch

        nouns = [target.noun for target in prompt.targets]
        wanted = torch.tensor([target.count for target in prompt.targets])
        critic_query, verifier_query = self.critic.prepare(nouns), self.verifier.prepare(nouns)
        best: tuple[int, Drawing] | None = None
        for start in range(0, draws, BATCH):
            # A first picture alone: it is often right, and a newcomer waits for it.
            numbers = range(start, min(start + BATCH, draws)) if nouns else range(1)
            seeds = [image_seed(seed, prompt.text, image, number) for number in numbers]
            pictures = self.render([prompt.text] * len(seeds), seeds)
            with torch.no_grad():
                first = self.critic(pictures, [critic_query] * len(seeds)).hard
                second = self.verifier(pictures, [verifier_query] * len(seeds)).hard
            for i, number in enumerate(numbers):
                counts = {
                    role: dict(zip(nouns, hard[i].tolist(), strict=True))
                    for role, hard in (("critic", first), ("verifier", second))
                }
                error = int((first[i] - wanted).abs().sum() + (second[i] - wanted).abs().sum())
                exact = error == 0 and bool(nouns)
                outcome = EXACT if exact else BUDGET_SPENT if nouns else NO_COUNT
                drawn = number + 1 if exact or not nouns else draws
                if best is None or error < best[0]:
                    picture = to_pil(pictures[i])
                    best = error, Drawing(picture, seeds[i], counts, exact, outcome, drawn)
                if exact or not nouns:
                    return best[1]
        assert best is not None
        return best[1]


def to_pil(picture: torch.Tensor) -> Image.Image:
    """An RGB picture from (3, h, w) in [0, 1]."""
    from PIL import Image

    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy(), "RGB")


def read_prompt(text: str, note: Callable[[str], None]) -> CountPrompt:
    """Parse a prompt for the pocket world and tell the user what will be ignored.

    Raises:
        UsageError: an empty prompt, or more objects than pocket can draw.
    """
    from countgen.pocket import unknown_words
    from countgen.pocket.world import MAX_OBJECTS

    if not text.strip():
        raise UsageError('the prompt is empty; try "seven red apples on a table"')
    prompt = parse_prompt(text)
    for remark in prompt.notes:
        note(remark)
    total = sum(target.count for target in prompt.targets)
    if total > MAX_OBJECTS:
        raise UsageError(
            f"{total} objects are more than the pocket generator was trained for; "
            f"ask for at most {MAX_OBJECTS} in all"
        )
    if not prompt.targets:
        note("the prompt names no count, so the picture is drawn as it comes")
    strangers = unknown_words(text)
    if strangers:
        note(f"words the pocket generator does not know and reads as <unk>: {', '.join(strangers)}")
    return prompt


def generate(
    prompt: str,
    out: Path,
    *,
    seed: int = 0,
    num_images: int = 1,
    draws: int = 16,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[Drawing], None] = lambda drawing: None,
) -> dict[str, Any]:
    """Draw pictures of a prompt into a folder and report them as one JSON-ready document.

    Every picture is written under a temporary name and renamed, and carries prompt, seed and counts in its
    metadata; what was finished stays if a later one fails.

    Raises:
        UsageError: an impossible request.
        OSError: the folder cannot be written.
    """
    if num_images < 1 or draws < 1:
        raise UsageError("--num-images and --draws must be at least 1")
    parsed = read_prompt(prompt, note)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    artist = Artist.pocket(note)
    rows, drawn = [], 0
    for image in range(num_images):
        drawing = artist.draw(parsed, seed, image, draws)
        path = out / f"{image:03d}.png"
        save(drawing, prompt, path)
        drawn += drawing.draws
        rows.append(
            {
                "path": os.path.relpath(path),
                "seed": drawing.seed,
                "counts": drawing.counts,
                "verified": drawing.verified,
                "outcome": drawing.outcome,
            }
        )
        progress(drawing)
    return {
        "prompt": prompt,
        "targets": [{"noun": t.noun, "count": t.count} for t in parsed.targets],
        "images": rows,
        "cost": {"draws": drawn, "seconds": round(time.monotonic() - started, 3)},
    }


def save(drawing: Drawing, prompt: str, path: Path) -> None:
    """Write a picture with its settings as PNG text, all or nothing."""
    from PIL.PngImagePlugin import PngInfo

    settings = {
        "prompt": prompt,
        "model": "pocket",
        "seed": drawing.seed,
        "counts": drawing.counts,
        "verified": drawing.verified,
    }
    info = PngInfo()
    info.add_text("countgen", json.dumps(settings))
    partial = path.with_name(path.name + ".partial")
    try:
        drawing.image.save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
