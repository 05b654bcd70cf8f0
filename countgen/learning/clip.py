"""Count-aware CLIP: a CLIP goes on learning from captions, and from what they would say of other numbers.

"Teaching CLIP to Count to Ten" (Paiss et al., arXiv 2302.12066): L = L_CLIP + lambda L_count, on batches of
which a small share has captions that count. As published are the losses' sum with lambda 1, the share of 1
in 32, counterfactuals by exchange of the number, one a picture and step, and captions that a detector
agreed with (``captioned.agreed``). Ours are the range of numbers (theirs is two to ten), the other losses
by name (``clip_losses``), and batches that fit one machine.

The result is a folder that ``transformers.CLIPModel`` loads, and that the critic ``count-clip`` counts with:
``load_critic("count-clip", folder)``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from countgen.drawing import Panel, png, side_by_side
from countgen.errors import UsageError
from countgen.learning import folder
from countgen.learning.captioned import (
    Captions,
    PocketCaptions,
    Record,
    agreed,
    picture,
    read_captions,
)
from countgen.learning.clip_losses import LOSSES, VARIANTS, Sayings, Variant
from countgen.learning.clip_scores import HeldOut, counting, held_out, matching, retrieval
from countgen.learning.count_captions import CountCaption
from countgen.learning.loop import Losses, TrainConfig, fit
from critics.base import CriticCard
from critics.contrastive.count_clip import CARDS, CountClip, Statistics, save_settings
from critics.loading.hub import channel_statistics, load_model, load_tokenizer
from critics.parts.preprocess import CLIP, normalise, resize
from pipelines.loading import unchanged_settings

POCKET = "pocket"
HALVES: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Means and deviations of pocket's own CLIP."""
HELD_OUT_SHARE = 0.1
LARGEST_SCALE = 100.0
"""Of CLIP's logits (Radford et al., arXiv 2103.00020)."""


@dataclass(frozen=True)
class ClipSettings:
    """What CLIP is taught, by what, and how.

    Attributes:
        data: "pocket" for composed scenes without end, or a folder of captioned pictures.
        model: "pocket", or a hub id or folder of a ``transformers.CLIPModel`` with its tokenizer.
        loss: name of the counting loss.
        weight: of it beside CLIP's own (lambda); 0 leaves it out.
        share: of the pictures of a batch whose captions count.
        numbers: lowest and highest that are learned.
        filter_by: critic by whose agreement counting captions are kept; None keeps all.
    """

    train: TrainConfig
    data: str = POCKET
    model: str = POCKET
    loss: Variant = "one-wrong"
    weight: float = 1.0
    share: float = 1 / 32
    numbers: tuple[int, int] = (0, 10)
    filter_by: str | None = None

    def __post_init__(self) -> None:
        low, high = self.numbers
        if not 0 <= low < high <= 100:
            raise UsageError(f"numbers are learned from 0 to 100, not from {low} to {high}")
        if self.loss not in VARIANTS:
            raise UsageError(f"there is no loss {self.loss!r}; there are {', '.join(VARIANTS)}")
        if not 0 < self.share <= 1 or not 0 <= self.weight < math.inf:
            raise UsageError(
                f"the share of counting pictures lies in (0, 1] and the weight of their loss is not "
                f"negative; here they are {self.share:g} and {self.weight:g}"
            )
        if self.train.batch < 2 or self.train.steps < 1:
            raise UsageError("a batch has two pictures at least, and a training one step")

    @property
    def range(self) -> range:
        return range(self.numbers[0], self.numbers[1] + 1)

    @property
    def counting_pictures(self) -> int:
        """Of a batch: its share, one at least."""
        return max(1, round(self.share * self.train.batch))


@dataclass
class Student:
    """A CLIP that is being taught.

    Attributes:
        statistics: means and deviations of the channels that it expects.
    """

    model: Any
    tokenizer: Any
    statistics: Statistics
    numbers: range
    card: CriticCard = field(default_factory=lambda: CARDS["count-clip"])

    @property
    def side(self) -> int:
        return int(self.model.config.vision_config.image_size)

    @property
    def critic(self) -> CountClip:
        """As it counts; shares its weights."""
        return CountClip(self.model, self.tokenizer, self.card, 1.0, self.numbers, self.statistics)

    @property
    def scale(self) -> Float[Tensor, ""]:
        scale: Tensor = self.model.logit_scale.exp()
        return scale.clamp_max(LARGEST_SCALE)

    def see(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures in [0, 1]."""
        pixels = normalise(resize(images, (self.side, self.side), "bicubic"), self.statistics)
        found = self.model.get_image_features(pixel_values=pixels.to(self.model.device))
        return F.normalize(found.pooler_output.float(), dim=-1)

    def read(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts; what is beyond the encoder's length is cut off."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.model.device)
        found = self.model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        return F.normalize(found.pooler_output.float(), dim=-1)

    def save(self, out: Path) -> None:
        with unchanged_settings():
            self.model.save_pretrained(out)
            self.tokenizer.save_pretrained(out)
        save_settings(out, self.numbers, self.statistics)


def load_student(model: str, numbers: range, device: str) -> Student:
    """A CLIP to be taught, all of its weights.

    Raises:
        CheckpointError: no CLIP, or one without tokenizer.
    """
    from transformers import AutoTokenizer, CLIPModel

    from countgen.pocket import load_clip

    if model == POCKET:
        network, tokenizer = load_clip()
        statistics: Statistics = HALVES
    else:
        with unchanged_settings():
            network = load_model(CLIPModel, model, ignore=["position_ids$"])
            tokenizer = load_tokenizer(AutoTokenizer, model, network.config.text_config.vocab_size)
        statistics = _statistics(Path(model))
    return Student(network.requires_grad_(True).to(device), tokenizer, statistics, numbers)


def _statistics(model: Path) -> Statistics:
    for name in ("counting.json", "preprocessor_config.json"):
        path = model / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if {"image_mean", "image_std"} <= set(found):
                means, deviations = channel_statistics(SimpleNamespace(**found), model)
                return tuple(means), tuple(deviations)
    return CLIP


def clip_loss(
    seen: Float[Tensor, "b d"], said: Float[Tensor, "b d"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """The symmetric contrastive loss over a batch of unit vectors (Radford et al., arXiv 2103.00020)."""
    logits = scale * seen @ said.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sayings(
    student: Student,
    seen: Float[Tensor, "n d"],
    captions: Sequence[CountCaption],
    noise: torch.Generator,
    one: bool,
) -> Sayings:
    """Pictures with their captions in every number, or in the right and ``one`` wrong number at random."""
    device, every = seen.device, list(student.numbers)
    rows = []
    for caption in captions:
        row = every
        if one:
            wrong = [n for n in every if n != caption.number]
            row = [caption.number, wrong[int(torch.randint(len(wrong), (), generator=noise))]]
        rows.append(row)
    said = student.read([c.say(n) for c, row in zip(captions, rows, strict=True) for n in row])
    right = [row.index(caption.number) for caption, row in zip(captions, rows, strict=True)]
    return Sayings(
        seen,
        said.unflatten(0, (len(rows), -1)),
        torch.tensor(rows, device=device),
        torch.tensor(right, device=device),
        student.scale,
    )


def objective(
    student: Student, data: Captions, settings: ClipSettings
) -> Callable[[np.random.Generator, torch.Generator], Losses]:
    """L_CLIP + weight L_count of a batch."""

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        batch = data.draw(rng, settings.train.batch, settings.counting_pictures)
        seen, said = student.see(batch.images), student.read(batch.texts)
        terms = {"clip": clip_loss(seen, said, student.scale)}
        total = terms["clip"]
        if settings.weight:
            counted = seen[: len(batch.counted)]
            one = settings.loss == "one-wrong"
            terms["count"] = LOSSES[settings.loss](
                sayings(student, counted, batch.counted, noise, one), noise
            )
            total = total + settings.weight * terms["count"]
        return {"loss": total, **terms}

    return loss


def train(
    settings: ClipSettings,
    out: Path,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Teach a CLIP to count, write it to ``out``, and score what was written; held-out scores by name.

    A training that was interrupted goes on when it is started again with the same settings.

    Args:
        say: told what was read and left out.
        stop_after: end early at this step, without a result.

    Raises:
        UsageError: data without captions or numbers, or a folder of another training.
        CheckpointError: a model that is no CLIP.
    """
    # Read before anything is written: what cannot be learned from should leave no folder behind.
    student = load_student(settings.model, settings.range, device)
    data, held = _data(settings, student, device, say, lambda: folder.claim(out, asdict(settings)))
    work = folder.claim(out, asdict(settings))
    torch.manual_seed(settings.train.seed)
    look = _look(student, held, work / "samples")
    fit(
        "clip",
        student.model,
        objective(student, data, settings),
        settings.train,
        work,
        look=look,
        look_every=-(-settings.train.steps // 3),
        stop_after=stop_after,
    )
    if stop_after is not None and stop_after < settings.train.steps:
        return {}
    student.save(out)
    results = scores(load_student(str(out), settings.range, device), held, settings.train.held_out)
    folder.note(out, asdict(settings), results)
    return results


def _data(
    settings: ClipSettings,
    student: Student,
    device: str,
    say: Callable[[str], None],
    claim: Callable[[], Path],
) -> tuple[Captions, HeldOut | Sequence[Record]]:
    """Where batches come from, and what is kept from training for the scores."""
    if settings.data == POCKET:
        if settings.filter_by:
            raise UsageError("pocket's scenes are composed, and their counts true: filter nothing")
        return PocketCaptions(settings.range), held_out(settings.range, per_number=1)
    found = read_captions(Path(settings.data), settings.range, student.side)
    if settings.filter_by:
        from countgen.presets import load_critic

        critic = load_critic(settings.filter_by).to(device)
        found = agreed(found, critic, claim() / "agreed.json")
    for line in found.notes:
        say(line)
    return found.split(HELD_OUT_SHARE, settings.train.seed)


def scores(student: Student, held: HeldOut | Sequence[Record], count: int) -> dict[str, Any]:
    """What a CLIP makes of held-out pictures: counting, retrieval by number, and matching in general."""
    student.model.eval()
    with torch.no_grad():
        if isinstance(held, HeldOut):
            return {
                "counting": counting(student.critic, held),
                "retrieval": retrieval(student.critic, held),
                "matching": matching(student.model, student.tokenizer, count),
            }
        return {"counting": _told_apart(student, held)}


def _told_apart(student: Student, held: Sequence[Record]) -> dict[str, float]:
    """Which number of its own caption each picture is likeliest to show."""
    right, off = 0, 0
    for record in held:
        assert record.counts is not None
        seen = student.see(picture(record, student.side)[None])
        said = student.read([record.counts.say(n) for n in student.numbers])
        found = student.numbers[int((said @ seen[0]).argmax())]
        right += found == record.counts.number
        off += abs(found - record.counts.number)
    return {"accuracy": right / len(held), "mae": off / len(held), "pictures": len(held)}


def _look(
    student: Student, held: HeldOut | Sequence[Record], samples: Path
) -> Callable[[nn.Module, int], str]:
    """Held-out scores for the log, and a sheet of pictures with what the CLIP counts in them."""

    def look(_: nn.Module, step: int) -> str:
        found = scores(student, held, count=100)
        sheet(student, held, samples / f"step-{step:06d}.png")
        parts = [f"numbers right {found['counting']['accuracy']:.1%}"]
        if "retrieval" in found:
            parts.append(f"retrieval by number {found['retrieval']['average_precision']:.1%}")
            parts.append(f"noun {found['matching']['noun']:.1%}")
        return ", ".join(parts)

    return look


def sheet(student: Student, held: HeldOut | Sequence[Record], path: Path, most: int = 6) -> None:
    """Some held-out pictures side by side, with the number counted and the true one."""
    if isinstance(held, HeldOut):
        rows = np.linspace(0, len(held.nouns) - 1, most).astype(int).tolist()
        images, nouns = held.images[rows], [held.nouns[i] for i in rows]
        true = [held.counts[i] for i in rows]
    else:
        chosen = [(r, r.counts) for r in held[:most] if r.counts is not None]
        images = torch.stack([picture(record, student.side) for record, _ in chosen])
        nouns, true = [c.noun for _, c in chosen], [c.number for _, c in chosen]
    critic = student.critic
    found = critic(images.to(student.model.device), [critic.prepare([noun]) for noun in nouns])
    panels: list[Panel | None] = []
    for image, noun, count, hard in zip(
        images, nouns, true, found.hard[:, 0].tolist(), strict=True
    ):
        panels.append(Panel(f"{noun}: counts {hard}, has {count}", _shown(image)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(side_by_side(path.stem, panels, side=192), {}))


def _shown(image: Float[Tensor, "3 h w"]) -> Any:
    from PIL import Image

    return Image.fromarray((image.permute(1, 2, 0) * 255 + 0.5).byte().cpu().numpy())


def default_train(model: str, steps: int, batch: int, rate: float | None, seed: int) -> TrainConfig:
    """AdamW with warm-up and cosine decay; the rate is CountCLIP's 5e-6 but for pocket's own small CLIP."""
    if rate is None:
        rate = 3e-4 if model == POCKET else 5e-6
    return replace(
        TrainConfig(steps, batch),
        learning_rate=rate,
        warmup=min(100, max(1, steps // 10)),
        ema=0.99,
        seed=seed,
    )
