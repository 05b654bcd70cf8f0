"""A counting reward in fine-tuning: a LoRA on a generator, by the diffusion loss and a critic's counts.

After prompt-free multi-object augmentation (PFCD, arXiv 2507.06146), whose counting loss is one-sided and
read off the picture that is predicted at the noised picture of the diffusion loss. Ours: two-sided
objectives, and the gradient through the last steps of a whole sampling (as DRaFT-K, 2309.17400, for any
reward). The result is a LoRA file that Diffusers loads without countgen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from countgen.engine.evaluate import padded
from countgen.errors import MemoryShortage, UsageError
from countgen.guidance.base import Objective
from countgen.guidance.objectives import OBJECTIVES, CountingReward, TwoSidedHinge
from countgen.learning.adapting import add_lora, save_lora
from countgen.learning.diffusion import Diffusion, Noised, noise_shares
from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.learning.prompted import Captioned, Pictures
from countgen.learning.settings import keep_settings
from countgen.prompts import CountPrompt
from critics.base import Critic
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Conditioning, Noise, Plan
from pipelines.devices import free_bytes, readable_bytes


@dataclass(frozen=True)
class LoraConfig:
    """How a LoRA is trained.

    Attributes:
        train: steps, batch and learning rate.
        rank: of every LoRA; its alpha is the same, so that its scale is 1.
        where: "attention": queries, keys, values and outputs; "all": every linear layer and convolution.
        objective: name of a counting loss (``countgen.guidance.objectives.OBJECTIVES``): "hinge" is
            two-sided, "counting-reward" the published one; None trains by the diffusion loss alone.
        weight: of the counting loss beside the diffusion loss.
        count_from: first step with the counting loss.
        grad_steps: how many of the last sampling steps the counting loss has a gradient through; 0 counts in
            the picture that is predicted at the diffusion loss's own noised latents, as published.
        count_batch: pictures of a step that are counted; at most the batch.
        longest: largest gradient of one picture's counting loss that goes back through a step; what passes
            through many steps explodes for single pictures, and the others would not be heard. 0 bounds
            nothing.
        keep: what the diffusion loss holds the generator to: "data": the pictures, as published; "own": its
            own predictions before training, at the same noised pictures, which distilled generators need,
            whose guidance or few steps a training on data would undo.
    """

    train: TrainConfig
    rank: int = 16
    where: Literal["attention", "all"] = "attention"
    objective: str | None = "hinge"
    weight: float = 1.0
    count_from: int = 0
    grad_steps: int = 1
    count_batch: int = 8
    longest: float = 0.0
    keep: Literal["data", "own"] = "data"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.count_batch < 1 or self.grad_steps < 0 or self.count_from < 0:
            raise UsageError(
                "rank and counted pictures must be at least 1, gradient steps and the first counting step "
                "not negative"
            )
        if self.count_batch > self.train.batch:
            raise UsageError(
                f"{self.count_batch} pictures of a batch of {self.train.batch} cannot be counted; take a "
                "larger batch, or count fewer"
            )
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise UsageError(
                f"there is no counting loss {self.objective!r}; there are {', '.join(OBJECTIVES)}"
            )
        if not self.weight > 0 or self.longest < 0:
            raise UsageError("the counting loss has a positive weight, and a bound is not negative")

    @property
    def loss(self) -> Objective | None:
        return None if self.objective is None else OBJECTIVES[self.objective]


PRESETS: dict[str, LoraConfig] = {
    # Rank, learning rate, first counting step, threshold and scale as published; steps and batch are ours.
    "pfcd": LoraConfig(
        TrainConfig(steps=5000, batch=1, learning_rate=1e-4, warmup=0, ema=0.0),
        rank=128,
        objective="counting-reward",
        count_from=1000,
        grad_steps=0,
        count_batch=1,
    ),
    "pocket": LoraConfig(
        TrainConfig(steps=300, batch=8, learning_rate=1e-3, warmup=10, ema=0.97),
        rank=32,
        where="all",
        weight=0.1,
        grad_steps=8,
        count_batch=8,
        longest=1.0,
        keep="own",
    ),
}
"""Published settings, and those that were found on pocket."""


@dataclass(frozen=True)
class LoraResult:
    """What was trained.

    Attributes:
        path: of the LoRA file.
        parameters: trained numbers.
    """

    path: Path
    parameters: int


def train_lora(
    adapter: DiffusersAdapter,
    critic: Critic,
    pictures: Pictures,
    config: LoraConfig,
    out: Path,
    *,
    stop_after: int | None = None,
    source: Mapping[str, Any] | None = None,
    samples: int = 16,
    name: str = "lora",
) -> LoraResult:
    """Train a LoRA on a generator's denoiser, which holds it afterwards, and save it.

    Losses, checkpoints and samples lie in ``out`` beside the file; the same call goes on from there.

    Args:
        samples: pictures of the sheet that is drawn on the way, and counted.
        source: what pictures or prompts are of, kept beside the settings, so that others are refused.

    Raises:
        UsageError: a generator that cannot be adapted, a critic without gradient, a noising that is not
            known, or a folder of another training.
        MemoryShortage: the graph cannot fit; says what would.
    """
    session = Session(adapter, critic, pictures, config)
    about = {"generator": adapter.card.name, "critic": critic.card.name, **asdict(config)}
    keep_settings(out, name, about)
    if source:
        keep_settings(out, "source", source)
    fit(
        name,
        session.denoiser,
        session.losses,
        config.train,
        out,
        look=session.looker(out, samples) if samples else None,
        look_every=max(config.train.steps // 6, 1),
        stop_after=stop_after,
        at_step=session.begin,
    )
    path = save_lora(adapter, out)
    trained = sum(p.numel() for p in session.denoiser.parameters() if p.requires_grad)
    return LoraResult(path, trained)


@dataclass
class Session:
    """One training: its parts, and the losses of a step.

    Attributes:
        tell: what the denoiser is told of pictures; None tells it their texts.
        drawn: plan of the pictures that are drawn on the way; None takes the adapter's own.
        adapted: whether the denoiser has its LoRA already.
    """

    adapter: DiffusersAdapter
    critic: Critic
    pictures: Pictures
    config: LoraConfig
    tell: Callable[[Sequence[Captioned]], Conditioning] | None = None
    drawn: Plan | None = None
    adapted: bool = False
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        adapter, config = self.adapter, self.config
        self.plan = self.drawn or adapter.plan()
        if config.grad_steps > self.plan.evaluations:
            raise UsageError(
                f"{adapter.card.name} draws in {self.plan.evaluations} steps, and the gradient cannot go "
                f"through {config.grad_steps} of them"
            )
        self.unguided = unguided_plan(adapter)
        self.diffusion = Diffusion(adapter, self.unguided)
        if config.loss is not None:
            check_gradient(self.critic, config.loss)
        self.denoiser = adapter.networks.denoiser
        if not self.adapted:
            add_lora(adapter, config.rank, config.where, config.train.seed)
        check_memory(adapter, self.plan, config)

    def begin(self, step: int) -> None:
        """The number of the step whose losses come next."""
        self.step = step

    def losses(self, rng: np.random.Generator, noise: torch.Generator) -> Losses:
        """The diffusion loss of a batch, and where it is time the counting loss of its first pictures."""
        config, adapter = self.config, self.adapter
        batch = self.pictures(rng, config.train.batch)
        told = self.told(batch)
        images = torch.stack([one.image for one in batch]).to(adapter.device)
        clean = self.diffusion.latents_of(images)
        epsilon = torch.randn(clean.shape, generator=noise).to(clean.device)
        shares = noise_shares(len(batch), noise).to(clean.device)
        at = self.diffusion.noised(clean, epsilon, shares)
        prediction = self.diffusion.predict(at, told)
        if config.keep == "data":
            target = self.diffusion.target(clean, epsilon, at)
        else:
            target = self._before(at, self._texts(batch))
        error = (prediction - target).square().mean()
        parts: dict[str, Tensor] = {"loss": error, "diffusion": error}
        counted = [i for i, one in enumerate(batch) if one.prompt.targets][: config.count_batch]
        if config.loss is None or self.step < config.count_from or not counted:
            return parts
        prompts = [batch[i].prompt for i in counted]
        if config.grad_steps:
            drawn = self._drawn(told.pick(counted), noise)
        else:
            drawn = adapter.decode(self.diffusion.clean(prediction, at)[counted], self.plan)
        counting = counting_loss(config.loss, self.critic, drawn, prompts).mean()
        return parts | {"loss": error + config.weight * counting, "counting": counting}

    def told(self, batch: Sequence[Captioned]) -> Conditioning:
        """What the denoiser is told of these pictures."""
        return self._texts(batch) if self.tell is None else self.tell(batch)

    def _texts(self, batch: Sequence[Captioned]) -> Conditioning:
        return self.adapter.encode([one.prompt.text for one in batch], self.plan)

    def _before(self, at: Noised, told: Conditioning) -> Tensor:
        """What the denoiser said before it was trained, when it was told texts."""
        adapted: Any = self.denoiser
        adapted.disable_adapters()
        try:
            with torch.no_grad():
                return self.diffusion.predict(at, told)
        finally:
            adapted.enable_adapters()

    def _drawn(self, told: Conditioning, noise: torch.Generator) -> Tensor:
        """Pictures of fresh noises, with gradient to the weights through the last steps."""
        config, adapter = self.config, self.adapter
        fresh = fresh_noise(adapter, self.plan, len(told), noise)
        bound = config.longest * config.weight / len(told)
        latents = fresh.latents
        for step in adapter.trajectory(fresh, told, self.plan, grad_steps=config.grad_steps):
            latents = step.latents
            if bound and latents.requires_grad:
                latents.register_hook(lambda gradient: bounded_rows(gradient, bound))
        return adapter.decode(latents, self.plan)

    def looker(self, out: Path, number: int) -> Callable[[nn.Module, int], str]:
        """Draws the same prompts and noises again and again, and says how many the critic finds exact."""
        shown = self.pictures(np.random.default_rng(10**6), number)
        shown = [one for one in shown if one.prompt.targets] or shown
        prompts = [one.prompt for one in shown]
        noise = fresh_noise(self.adapter, self.plan, len(prompts), torch.Generator().manual_seed(0))

        def look(model: nn.Module, step: int) -> str:
            images = self.adapter.render(noise, self.told(shown), self.plan)
            sheet(images).save(out / f"samples-{step:06d}.png")
            return f"critic exact on {exact_share(self.critic, images, prompts):.0%} of the samples"

        return look


# -- parts that other trainings share ---------------------------------------------------------------


def counting_loss(
    objective: Objective, critic: Critic, images: Tensor, prompts: Sequence[CountPrompt]
) -> Float[Tensor, " b"]:
    """The objective of every picture, by the number of objects that it should hold (at least 1)."""
    wanted = wanted_of(prompts).to(images.device)
    queries = [critic.prepare([t.noun for t in prompt.targets]) for prompt in prompts]
    loss = objective(critic(images, queries), wanted)
    published = isinstance(objective, CountingReward)  # which divides by it itself
    return loss if published else loss / wanted.sum(-1).clamp_min(1)


def wanted_of(prompts: Sequence[CountPrompt]) -> Int64[Tensor, "b k"]:
    """Wanted counts, padded with 0."""
    return padded([[t.count for t in prompt.targets] for prompt in prompts])


def exact_share(critic: Critic, images: Tensor, prompts: Sequence[CountPrompt]) -> float:
    """Share of pictures in which a critic counts exactly what their prompts ask for."""
    queries = [critic.prepare([t.noun for t in prompt.targets]) for prompt in prompts]
    found = critic(images, queries)
    right = (found.hard.cpu() == wanted_of(prompts)) | ~found.mask.cpu()
    return float(right.all(-1).float().mean())


def bounded_rows(gradient: Tensor, longest: float) -> Tensor:
    """A batch's gradient with each picture's part no longer than that; what is no number becomes 0."""
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    scale = (longest / length).clamp(max=1).reshape(-1, *[1] * (gradient.ndim - 1))
    return (gradient * scale).nan_to_num(0.0, 0.0, 0.0)


def fresh_noise(
    adapter: DiffusersAdapter, plan: Plan, number: int, generator: torch.Generator
) -> Noise:
    """Noises of so many pictures, from seeds that a generator draws."""
    seeds = torch.randint(2**62, (number,), generator=generator).tolist()
    return adapter.noise([torch.Generator().manual_seed(seed) for seed in seeds], plan)


def unguided_plan(adapter: DiffusersAdapter) -> Plan:
    """The adapter's own plan without classifier-free guidance.

    Raises:
        UsageError: a pipeline that always guides.
    """
    for scale in (None, 1.0, 0.0):
        plan = adapter.plan(guidance_scale=scale)
        if not adapter.family.uses_cfg(adapter.pipeline, plan):
            return plan
    raise UsageError(f"{adapter.card.name} cannot be drawn without guidance, which training needs")


def check_gradient(critic: Critic, objective: Objective) -> None:
    """Refuse a critic that an objective cannot learn from.

    Raises:
        UsageError: it does not give what the objective reads, or no gradient.
    """
    name = critic.card.name
    if objective.needs not in ("soft", critic.gives):
        raise UsageError(
            f"this counting loss reads {objective.needs}, and {name} gives {critic.gives}; take another "
            "critic, or the loss 'soft'"
        )
    size = min(critic.card.input_size, 224)
    device = next(critic.network.parameters()).device
    image = torch.full((1, 3, size, size), 0.5, device=device, requires_grad=True)
    noun = (critic.card.vocabulary or ("apple",))[0]
    loss = objective(critic(image, [critic.prepare([noun])]), torch.ones(1, 1).long().to(device))
    if not loss.requires_grad:
        raise UsageError(
            f"{name} gives no gradient to the picture, so nothing can be learnt from it; it serves as a "
            "verifier or a judge. Take a critic with gradient (countgen list critics)"
        )


def check_memory(
    adapter: DiffusersAdapter, plan: Plan, config: LoraConfig, free: int | None = None
) -> None:
    """Refuse a training whose graph cannot fit.

    Args:
        free: bytes; None asks the device.

    Raises:
        MemoryShortage: says what would fit.
    """
    free = free_bytes(adapter.device) if free is None else free
    weights = adapter.estimate_bytes(plan, 0)

    def needed(batch: int, counted: int, steps: int) -> int:
        graph = adapter.estimate_bytes(plan, batch, 1) - weights
        if config.objective is not None and steps:
            graph += adapter.estimate_bytes(plan, counted, steps) - weights
        return graph

    batch, counted, steps = config.train.batch, config.count_batch, config.grad_steps
    if needed(batch, counted, steps) <= free:
        return
    asked = readable_bytes(needed(batch, counted, steps))
    while needed(batch, counted, steps) > free and max(batch, counted, steps) > 1:
        if batch > counted or batch == counted > 1:
            batch = max(batch // 2, 1)
            counted = min(counted, batch)
        elif steps > 1:
            steps //= 2
        else:
            break
    told = f"training needs about {asked} for its graph, and {readable_bytes(free)} are free"
    if needed(batch, counted, steps) > free:
        raise MemoryShortage(f"{told}; one picture does not fit either: take a smaller size")
    through = f" and the gradient through {steps} steps" if config.grad_steps else ""
    raise MemoryShortage(f"{told}; a batch of {batch} with {counted} counted{through} would fit")


def sheet(images: Float[Tensor, "b 3 h w"], across: int = 8, zoom: int = 2) -> Image.Image:
    """Pictures side by side."""
    from countgen.pipeline import to_pil

    tiles = [to_pil(image) for image in images]
    width, height = tiles[0].width * zoom, tiles[0].height * zoom
    page = Image.new("RGB", (across * width, -(-len(tiles) // across) * height))
    for i, tile in enumerate(tiles):
        place = i % across * width, i // across * height
        page.paste(tile.resize((width, height), Image.Resampling.LANCZOS), place)
    return page


__all__ = ["PRESETS", "Captioned", "LoraConfig", "LoraResult", "TwoSidedHinge", "train_lora"]
