"""Plain draws and where their objects stand: what screening and amortised guidance learn from.

A row holds the seed of the noise, which makes the noise again, and the critic's boxes; pictures are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from countgen.engine.sharing import using
from countgen.errors import UsageError
from countgen.learning.settings import check_boxes
from countgen.prompts import CountPrompt, CountTarget
from countgen.seeds import image_seed
from critics.base import Critic
from pipelines.base import ImageSource, Noise, Plan

Box = tuple[float, float, float, float]
Prompts = Callable[[int], CountPrompt]
"""Number of a draw -> its prompt."""


@dataclass(frozen=True)
class DrawnBoxes:
    """One plain draw.

    Attributes:
        seed: of the generator that its noise was drawn with.
        boxes: of each target's noun, x0 y0 x1 y1 in shares of the picture's sides.
    """

    seed: int
    text: str
    targets: tuple[tuple[str, int], ...]
    boxes: tuple[tuple[Box, ...], ...]

    @property
    def error(self) -> int:
        """Sum over the nouns of the distances from what is wanted."""
        return sum(abs(len(b) - n) for b, (_, n) in zip(self.boxes, self.targets, strict=True))


def noise_of(source: ImageSource, plan: Plan, seeds: Sequence[int]) -> Noise:
    """The noises of some draws."""
    return source.noise([torch.Generator().manual_seed(seed) for seed in seeds], plan)


def pocket_prompt(seed: int, number: int) -> CountPrompt:
    """The caption of a random pocket scene: 0 to 20 objects of one to three kinds."""
    from countgen.pocket.captions import caption
    from countgen.pocket.scenes import sample_spec

    rng = np.random.default_rng([seed, number])
    spec = sample_spec(rng)
    targets = tuple(CountTarget(noun, count) for noun, count in spec.counts)
    return CountPrompt(caption(spec, rng), targets)


def read_draws(path: Path) -> list[DrawnBoxes]:
    """Rows that ``draw`` wrote; a last line that was cut off is left out.

    Raises:
        UsageError: no such file, or one of something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path} cannot be read as a file of draws ({error})") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut off
        try:
            row = json.loads(line)
            targets = tuple((str(noun), int(count)) for noun, count in row["targets"])
            boxes = tuple(tuple(tuple(box) for box in kind) for kind in row["boxes"])
            rows.append(DrawnBoxes(int(row["seed"]), row["prompt"], targets, boxes))
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"line {number} of {path} is no draw; name another file") from None
    return rows


def check_critic(critic: Critic) -> None:
    """Refuse a critic whose draws could not be kept.

    Raises:
        UsageError: it gives no boxes.
    """
    check_boxes(critic.card.name, critic.gives, "draws are kept with the boxes of their objects")


def draw(
    source: ImageSource,
    critic: Critic,
    prompts: Prompts,
    total: int,
    path: Path,
    *,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> list[DrawnBoxes]:
    """Append plain draws with their boxes to a file until it has ``total``; goes on behind what is there.

    Raises:
        UsageError: a critic without boxes, or a file of something else.
    """
    check_critic(critic)
    rows = read_draws(path) if path.exists() else []
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        whole = path.read_bytes().rpartition(b"\n")
        path.write_bytes(whole[0] + whole[1])
    plan = source.plan()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for start in range(len(rows), total, batch):
            asked = [prompts(i) for i in range(start, min(start + batch, total))]
            seeds = [image_seed(seed, prompt.text, start + i) for i, prompt in enumerate(asked)]
            found = look(source, critic, plan, asked, seeds)
            rows += found
            file.write("".join(_line(row) for row in found))
            file.flush()
            progress(len(rows))
    return rows


def look(
    source: ImageSource,
    critic: Critic,
    plan: Plan,
    prompts: Sequence[CountPrompt],
    seeds: Sequence[int],
) -> list[DrawnBoxes]:
    """Draw one batch and read the critic's boxes."""
    queries = [critic.prepare([t.noun for t in prompt.targets]) for prompt in prompts]
    with using(source, critic), torch.no_grad():
        noise = noise_of(source, plan, seeds)
        images = source.images(noise, [prompt.text for prompt in prompts], plan)
        candidates = critic(images, queries).candidates
    assert candidates is not None
    size = torch.tensor([plan.width, plan.height] * 2)
    boxes, kept = candidates.boxes.float().cpu() / size, candidates.kept.cpu()
    return [
        DrawnBoxes(
            seed,
            prompt.text,
            tuple((t.noun, t.count) for t in prompt.targets),
            tuple(
                tuple(_rounded(box) for box in boxes[i, k][kept[i, k]].tolist())
                for k in range(len(prompt.targets))
            ),
        )
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]


def _rounded(box: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (round(value, 4) for value in box)
    return x0, y0, x1, y1


def _line(row: DrawnBoxes) -> str:
    return (
        json.dumps(
            {"seed": row.seed, "prompt": row.text, "targets": row.targets, "boxes": row.boxes},
            ensure_ascii=False,
        )
        + "\n"
    )
