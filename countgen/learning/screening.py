"""Screening: a small network that reads a noise and tells what it will become, before anything is drawn.

Ours; that noise decides where objects stand and how many there are: arXiv 2305.03382, 2411.18810, 2510.11117.
The network is told the prompt, one noun and its wanted count, and predicts where objects of that noun will
stand and how many they will be. It learns from plain draws and the critic's boxes in them
(``countgen.learning.draws``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from countgen.engine.cost import flops_of
from countgen.errors import UsageError
from countgen.guidance.base import Start
from countgen.learning.draws import DrawnBoxes, noise_of
from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.learning.settings import keep_settings
from countgen.seeds import derived_seed
from pipelines.base import Conditioning, Noise, PipelineAdapter, Plan

FORMAT = "countgen-screening-1"
MOST = 40
"""Largest count that is told apart."""
CONFIG = TrainConfig(
    steps=1800, batch=48, learning_rate=2e-3, warmup=50, ema=0.998, weight_decay=0.1
)
"""What was found on pocket."""


@dataclass(frozen=True)
class Shape:
    """Of a screening network.

    Attributes:
        channels: of the generator's latents.
        text: width of its text states.
        patch: latents a side of one cell of the network's grid.
        width, blocks: of its residual convolutions.
    """

    channels: int
    text: int
    patch: int = 2
    width: int = 64
    blocks: int = 5

    @staticmethod
    def of(plan: Plan, conditioning: Conditioning) -> Shape:
        """For a generator's latents: a grid of half their side, and of at most 16 cells."""
        channels, height, width = plan.latent_shape
        patch = 2 if min(height, width) % 2 == 0 else 1
        while max(height, width) // patch > 16 and min(height, width) % (2 * patch) == 0:
            patch *= 2
        return Shape(channels, text_features(conditioning).shape[1], patch)


class ScreeningNetwork(nn.Module):
    """Residual convolutions over the noise, each block modulated by what is asked for (FiLM, 1709.07871)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.wanted = nn.Embedding(MOST + 1, width)
        self.text = nn.Sequential(
            nn.Linear(2 * shape.text, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        inside = shape.channels * shape.patch**2 + 2
        self.stem = nn.Conv2d(inside, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(shape.blocks))
        self.centres = nn.Conv2d(width, 1, 1)
        assert self.centres.bias is not None
        nn.init.constant_(self.centres.bias, -3.0)
        self.count = nn.Sequential(
            nn.Linear(3 * width + 1, 2 * width), nn.SiLU(), nn.Linear(2 * width, MOST + 1)
        )

    def forward(
        self,
        noise: Float[Tensor, "b c h w"],
        prompt: Float[Tensor, "b d"],
        noun: Float[Tensor, "b d"],
        wanted: Int64[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b y x"], Float[Tensor, "b n"]]:
        """Logits that an object's centre lies in a cell, and of how many objects there will be, 0 to 40."""
        told = self.text(torch.cat([prompt, noun], 1)) + self.wanted(wanted.clamp(0, MOST))
        cells = F.pixel_unshuffle(noise, self.shape.patch)
        height, width = cells.shape[-2:]
        # Objects keep off the edges: cells must know where they are.
        down = torch.linspace(-1, 1, height, device=noise.device).expand(width, height).T
        across = torch.linspace(-1, 1, width, device=noise.device).expand(height, width)
        place = torch.stack([down, across]).expand(len(noise), 2, height, width)
        hidden = self.stem(torch.cat([cells, place], 1))
        for block in self.blocks:
            hidden = block(hidden, told)
        centres = self.centres(hidden)[:, 0]
        expected = centres.sigmoid().sum((1, 2))[:, None]
        pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3)), told, expected / 10], 1)
        return centres, self.count(pooled)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(8, width)
        self.film = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout2d(0.1)
        nn.init.zeros_(self.second.weight)

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[..., None, None].chunk(2, 1)
        inner = self.norm(hidden) * (1 + scale) + shift
        return hidden + self.second(self.drop(F.silu(self.first(F.silu(inner)))))


def text_features(conditioning: Conditioning) -> Float[Tensor, "b d"]:
    """One vector a text: the mean of its token states, beside the pooled one where there is one."""
    hidden = conditioning.hidden.float()
    if conditioning.mask is None:
        mean = hidden.mean(1)
    else:
        weights = conditioning.mask.float()[..., None]
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
    pooled = conditioning.pooled
    return mean if pooled is None else torch.cat([mean, pooled.float()], 1)


# -- training ----------------------------------------------------------------------------------------


class Examples:
    """Draws as the network learns from them; the noise of each is made again from its seed."""

    def __init__(
        self, adapter: PipelineAdapter, draws: Sequence[DrawnBoxes], batch: int = 64
    ) -> None:
        """Encodes every prompt and noun once."""
        self.adapter, self.plan, self.draws = adapter, adapter.plan(), draws
        nouns = sorted({noun for draw in draws for noun, _ in draw.targets})
        self._nouns = dict(zip(nouns, self._encoded(nouns, batch), strict=True))
        self._prompts = self._encoded([draw.text for draw in draws], batch)

    def _encoded(self, texts: Sequence[str], batch: int) -> Tensor:
        parts = [
            text_features(self.adapter.encode(texts[i : i + batch], self.plan)).cpu()
            for i in range(0, len(texts), batch)
        ]
        return torch.cat(parts)

    def batch(self, rows: Sequence[int], patch: int) -> dict[str, Tensor]:
        """A row for each noun of these draws: what the network is told, and what it should say."""
        pairs = [(row, k) for row in rows for k in range(len(self.draws[row].targets))]
        noise = noise_of(self.adapter, self.plan, [self.draws[row].seed for row in rows]).latents
        place = {row: i for i, row in enumerate(rows)}
        grid = (noise.shape[-2] // patch, noise.shape[-1] // patch)
        return {
            "noise": noise[[place[row] for row, _ in pairs]],
            "prompt": self._prompts[[row for row, _ in pairs]],
            "noun": torch.stack([self._nouns[self.draws[r].targets[k][0]] for r, k in pairs]),
            "wanted": torch.tensor([self.draws[r].targets[k][1] for r, k in pairs]),
            "found": torch.tensor([len(self.draws[r].boxes[k]) for r, k in pairs]),
            "centres": torch.stack([_centre_map(self.draws[r].boxes[k], grid) for r, k in pairs]),
        }


def _centre_map(boxes: Sequence[Sequence[float]], grid: tuple[int, int]) -> Float[Tensor, "y x"]:
    """1 in every cell with an object's centre."""
    found = torch.zeros(grid)
    for x0, y0, x1, y1 in boxes:
        down = min(max(int((y0 + y1) / 2 * grid[0]), 0), grid[0] - 1)
        across = min(max(int((x0 + x1) / 2 * grid[1]), 0), grid[1] - 1)
        found[down, across] = 1
    return found


def screening_loss(network: ScreeningNetwork, batch: dict[str, Tensor]) -> Losses:
    """Cross-entropy of the centre map, summed over its cells by the number of objects, and of the count."""
    centres, counts = network(batch["noise"], batch["prompt"], batch["noun"], batch["wanted"])
    cells = F.binary_cross_entropy_with_logits(centres, batch["centres"], reduction="none")
    where = cells.sum() / batch["centres"].sum().clamp_min(1)
    count = F.cross_entropy(counts, batch["found"].clamp(max=MOST))
    return {"loss": count + 0.5 * where, "count": count, "where": where}


def check_draws(number: int) -> None:
    """Refuse too few draws to learn from.

    Raises:
        UsageError: fewer than 20.
    """
    if number < 20:
        raise UsageError(f"{number} draws are too few to learn from; take at least 20")


def train_screening(
    adapter: PipelineAdapter,
    draws: Sequence[DrawnBoxes],
    out: Path,
    config: TrainConfig = CONFIG,
    *,
    held_out: int = 500,
    stop_after: int | None = None,
) -> Screening:
    """Learn to screen from plain draws, and save ``screening.safetensors`` in ``out``.

    Args:
        held_out: of the last draws, which only the log's correlation is measured on.

    Raises:
        UsageError: too few draws, or a folder of another training.
    """
    held_out = min(held_out, len(draws) // 10)
    check_draws(len(draws))
    about = {"generator": adapter.card.name, "draws": len(draws), **asdict(config)}
    keep_settings(out, "screening", about)
    examples = Examples(adapter, draws)
    shape = Shape.of(examples.plan, adapter.encode(["a picture"], examples.plan))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ScreeningNetwork(shape)
    train = len(draws) - held_out

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        rows = rng.integers(train, size=config.batch).tolist()
        with torch.random.fork_rng(devices=[]):
            # What is dropped out depends on the step alone, so that a resumed training is the same.
            torch.manual_seed(noise.initial_seed())
            return screening_loss(network, examples.batch(rows, shape.patch))

    def look(model: nn.Module, step: int) -> str:
        found = held_out_scores(network, examples, range(train, len(draws)))
        return ", ".join(f"{name} {value:.3f}" for name, value in found.items())

    fit("screening", network, loss, config, out, look=look, look_every=250, stop_after=stop_after)
    found = Screening(network, adapter.card.name)
    found.save(out / "screening.safetensors")
    return found


def held_out_scores(
    network: ScreeningNetwork, examples: Examples, rows: Sequence[int]
) -> dict[str, float]:
    """On draws that were not learnt from: the count's cross-entropy; the correlation of the expected error
    with the true one; and the area under the curve of "exact" by its probability."""
    errors, expected, likely, losses = [], [], [], []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = examples.batch(list(rows[start : start + 64]), network.shape.patch)
            _, counts = network(batch["noise"], batch["prompt"], batch["noun"], batch["wanted"])
            found = batch["found"].clamp(max=MOST)
            losses.append(F.cross_entropy(counts, found, reduction="none"))
            off = (torch.arange(MOST + 1)[None] - batch["wanted"][:, None]).abs().float()
            expected.append((counts.softmax(1) * off).sum(1))
            errors.append((found - batch["wanted"]).abs().float())
            wanted = batch["wanted"].clamp(max=MOST)
            likely.append(counts.log_softmax(1).gather(1, wanted[:, None])[:, 0])
    error, guess, exact = torch.cat(errors), torch.cat(expected), torch.cat(likely)
    correlation = float(torch.corrcoef(torch.stack([error, guess]))[0, 1])
    right, wrong = exact[error == 0], exact[error > 0]
    area = (
        float((right[:, None] > wrong[None]).float().mean()) if len(right) and len(wrong) else 0.5
    )
    return {
        "cross-entropy": float(torch.cat(losses).mean()),
        "correlation": correlation,
        "area": area,
    }


# -- use ---------------------------------------------------------------------------------------------


@dataclass
class Screening:
    """The best of many noises by a network's word, as the first noise of every draw (``FirstNoise``).

    Attributes:
        generator: name of the one that it was learnt for.
        looks: how often one draw asks the network. Each noise is asked about once for every noun, so that a
            draw chooses from ``looks`` noises, or from as many fewer as there are nouns, and its price hardly
            depends on the prompt.
    """

    network: ScreeningNetwork
    generator: str
    looks: int = 36
    name: str = "screening"
    _nouns: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.looks < 1:
            raise UsageError(f"screening looks at one noise at least, not {self.looks}")
        self.network.eval().requires_grad_(False)

    def __call__(self, start: Start, draws: Sequence[int]) -> Noise:
        """Of every picture the noise whose counts are the likeliest to be right; its own is one of them."""
        told = text_features(start.conditioning)
        self._check(start.adapter, start.plan, told.shape[1])
        chosen = []
        for i, (prompt, seed) in enumerate(zip(start.prompts, start.seeds, strict=True)):
            own = [start.noise.pick(i).to("cpu")]
            several = self._noises(len(prompt.targets))
            seeds = [derived_seed(seed, "screening", draws[i], k) for k in range(1, several)]
            others = noise_of(start.adapter, start.plan, seeds).to("cpu") if seeds else None
            choice = Noise.join([*own, others]) if others is not None else own[0]
            targets = [(t.noun, t.count) for t in prompt.targets]
            if not targets:
                chosen.append(own[0])
                continue
            scores = self.scores(choice, told[i].cpu(), targets, start.adapter, start.plan)
            chosen.append(choice.pick(int(scores.argmax())))
        return Noise.join(chosen).to(start.noise.latents.device)

    def _noises(self, kinds: int) -> int:
        """From how many noises a draw chooses."""
        return max(self.looks // max(kinds, 1), 1)

    def scores(
        self,
        noise: Noise,
        told: Float[Tensor, " d"],
        targets: Sequence[tuple[str, int]],
        adapter: PipelineAdapter,
        plan: Plan,
    ) -> Float[Tensor, " b"]:
        """Log-probability that every noun's count will be right, of every noise."""
        total = torch.zeros(len(noise))
        with torch.no_grad():
            for noun, count in targets:
                if noun not in self._nouns:
                    self._nouns[noun] = text_features(adapter.encode([noun], plan))[0].cpu()
                prompt, kind = (x.expand(len(noise), -1) for x in (told, self._nouns[noun]))
                wanted = torch.full((len(noise),), min(count, MOST))
                _, counts = self.network(noise.latents.float(), prompt, kind, wanted)
                total += counts.log_softmax(1)[:, min(count, MOST)]
        return total

    def _check(self, adapter: PipelineAdapter, plan: Plan, text: int) -> None:
        """Refuse another generator's noise.

        Raises:
            UsageError: other latents, or texts of another width.
        """
        shape = self.network.shape
        if (shape.channels, shape.text) != (plan.latent_shape[0], text):
            raise UsageError(
                f"this screening was learnt for {self.generator}, and {adapter.card.name} has other latents "
                "or texts; learn one for it with countgen learn screening"
            )

    def flops(self, adapter: PipelineAdapter, plan: Plan, kinds: int) -> float:
        """Operations of one draw's looks, the nouns' encoding included."""
        shape, (channels, height, width) = self.network.shape, plan.latent_shape
        self._check(adapter, plan, shape.text)
        noise, text = torch.zeros(1, channels, height, width), torch.zeros(1, shape.text)
        wanted = torch.zeros(1, dtype=torch.int64)
        one = flops_of(lambda: self.network(noise, text, text, wanted))
        told = adapter.flops(plan)["text_encoder"].forward
        return kinds * (self._noises(kinds) * one + told)

    def save(self, path: Path) -> None:
        """Write the network and what it is for."""
        from safetensors.torch import save

        from countgen.files import write

        about = {
            "format": FORMAT,
            "generator": self.generator,
            "looks": self.looks,
            "shape": asdict(self.network.shape),
        }
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        write(path, save(state, {"countgen": json.dumps(about)}), replace=True)

    @staticmethod
    def load(path: Path) -> Screening:
        """Read what ``save`` wrote.

        Raises:
            UsageError: no such file, or one of something else.
        """
        about, state = read_weights(path, FORMAT, "countgen learn screening")
        try:
            network = ScreeningNetwork(Shape(**about["shape"]))
            network.load_state_dict(state)
            return Screening(network, str(about["generator"]), int(about["looks"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{path} is damaged ({error}); learn it again") from None


def read_weights(path: Path, kind: str, command: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a safetensors file of ours says of itself, and its tensors.

    Raises:
        UsageError: no such file, or one of something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("countgen", "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    if not isinstance(about, dict) or about.get("format") != kind:
        raise UsageError(f"{path} is of another kind; {command} writes what is needed here")
    return about, state
