"""Prompt-free variation: a generator that is told by a picture what to draw, instead of by a text.

After prompt-free multi-object augmentation (PFCD, arXiv 2507.06146): the embedding of the whole picture and
those of its objects' crops take the place of token states, and a LoRA on the denoiser learns to read them, by
the diffusion loss and a critic's counting loss. PFCD's embeddings are as wide as its generator's token
states; here small projections bring any CLIP to any generator. Places without an object hold a learned state,
where PFCD has zeros, and pooled text, where a generator takes it, is told from the embeddings' sum as well.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from countgen.errors import UsageError
from countgen.learning.adapting import ADAPTER, add_lora, lora_layers
from countgen.learning.loop import TrainConfig, fit
from countgen.learning.lora import LoraConfig, Session, unguided_plan
from countgen.learning.prompted import Captioned, Pictures
from countgen.learning.references import PictureEncoder, Reference, References, check_critic
from countgen.learning.screening import read_weights
from countgen.learning.settings import keep_settings
from countgen.seeds import derived_seed
from critics.base import Critic
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Conditioning, Noise, Plan

FORMAT = "countgen-variation-1"


@dataclass(frozen=True)
class VariationConfig:
    """How a generator learns to be told by pictures.

    Attributes:
        lora: of the LoRA, the diffusion loss and the counting loss.
        slots: most objects of a picture.
        drop: share of the pictures that the generator is told nothing of, which classifier-free guidance
            needs; with 0 it draws without guidance.
        bank: different pictures that are learnt from; each one's embeddings are computed once.
    """

    lora: LoraConfig
    slots: int = 20
    drop: float = 0.0
    bank: int = 2000

    def __post_init__(self) -> None:
        if self.slots < 1 or self.bank < 1 or not 0 <= self.drop < 1:
            raise UsageError(
                "places for objects and pictures must be at least 1, and the share that is dropped in [0, 1)"
            )


PRESETS: dict[str, VariationConfig] = {
    # Rank, learning rate, places, first counting step, threshold and scale as published; steps, batch and the
    # share that is dropped are ours.
    "pfcd": VariationConfig(
        LoraConfig(
            TrainConfig(steps=20_000, batch=16, learning_rate=1e-4, warmup=0, ema=0.0),
            rank=128,
            objective="counting-reward",
            count_from=1000,
            grad_steps=0,
            count_batch=16,
        ),
        slots=9,
        drop=0.1,
        bank=20_000,
    ),
    "pocket": VariationConfig(
        LoraConfig(
            TrainConfig(steps=600, batch=16, learning_rate=2e-3, warmup=20, ema=0.98),
            rank=32,
            weight=0.1,
            count_from=200,
            grad_steps=0,
            count_batch=16,
            keep="own",
        ),
    ),
}
"""Published settings, and those for pocket."""


@dataclass(frozen=True)
class TokenShape:
    """What stands between a CLIP and a generator.

    Attributes:
        features: length of an embedding.
        width: of a token state.
        pooled: of the pooled text; 0 for generators without.
        slots: most objects.
        masked: whether the generator is told which tokens there are.
    """

    features: int
    width: int
    pooled: int
    slots: int
    masked: bool

    @staticmethod
    def of(encoder: PictureEncoder, text: Conditioning, slots: int) -> TokenShape:
        """As texts of a generator are."""
        pooled = 0 if text.pooled is None else text.pooled.shape[-1]
        masked = text.mask is not None
        return TokenShape(encoder.width, text.hidden.shape[-1], pooled, slots, masked)


class PictureTokens(nn.Module):
    """References as token states: the whole picture, its objects, and a learned state in places without."""

    def __init__(self, shape: TokenShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        features, width = shape.features, shape.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.whole, self.object = (_projection(features, width) for _ in range(2))
            self.norm = nn.LayerNorm(width)
            self.empty, self.nothing = (nn.Parameter(torch.zeros(width)) for _ in range(2))
            pooled = _projection(2 * features, shape.pooled) if shape.pooled else None
        self.pooled: nn.Sequential | None = pooled

    def begin(self, text: Conditioning) -> None:
        """Begin in the range of a generator's own token states, given those of some texts."""
        states = text.hidden.detach().float().flatten(0, 1).cpu()
        with torch.no_grad():
            mean = states.mean(0)
            self.norm.weight.copy_(states.std(0))
            for own in (self.norm.bias, self.empty, self.nothing):
                own.copy_(mean)
            if self.pooled is not None and text.pooled is not None:
                self.pooled.get_parameter("2.bias").copy_(
                    text.pooled.detach().float().mean(0).cpu()
                )

    def forward(self, references: Sequence[Reference | None]) -> Conditioning:
        """A row for each reference; None tells nothing.

        Raises:
            UsageError: a picture with more objects than there are places.
        """
        device, shape = self.empty.device, self.shape
        wholes = torch.zeros(len(references), shape.features, device=device)
        objects = torch.zeros(len(references), shape.slots, shape.features, device=device)
        told = torch.zeros(len(references), 1, 1, dtype=torch.bool, device=device)
        filled = torch.zeros(len(references), shape.slots, 1, dtype=torch.bool, device=device)
        for i, reference in enumerate(references):
            if reference is None:
                continue
            number = len(reference.objects)
            if number > shape.slots:
                raise UsageError(
                    f"a picture has {number} objects, and {shape.slots} are the most that can be told here; "
                    "leave it out, or learn with more (--slots)"
                )
            wholes[i], objects[i, :number] = reference.whole, reference.objects
            told[i], filled[i, :number] = True, True
        first = torch.where(told, self.norm(self.whole(wholes))[:, None], self.nothing)
        others = torch.where(filled, self.norm(self.object(objects)), self.empty)
        hidden = torch.cat([first, others], 1)
        pooled = None
        if self.pooled is not None:
            pooled = self.pooled(torch.cat([wholes, objects.sum(1) / shape.slots**0.5], 1))
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=device)
        return Conditioning(hidden, pooled, mask if shape.masked else None)


def _projection(features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))


@dataclass
class PictureTold:
    """A generator whose denoiser reads pictures' embeddings; the one that it was made of stays as it is.

    Attributes:
        adapter: with a denoiser of its own, which shares all weights and has a LoRA besides.
        guided: whether pictures are drawn with the classifier-free guidance of the generator's plan.
    """

    adapter: DiffusersAdapter
    tokens: PictureTokens
    guided: bool

    def plan(self) -> Plan:
        return self.adapter.plan() if self.guided else unguided_plan(self.adapter)

    def tell(self, references: Sequence[Reference | None], plan: Plan) -> Conditioning:
        """What the denoiser is told, with gradient to the projections."""
        told = self.tokens(references)
        if not self.adapter.family.uses_cfg(self.adapter.pipeline, plan):
            return told
        return replace(told, unconditional=self.tokens([None] * len(references)))

    def images(
        self, noise: Noise, references: Sequence[Reference], plan: Plan
    ) -> Float[Tensor, "b 3 h w"]:
        """New pictures, in [0, 1]."""
        with torch.no_grad():
            return self.adapter.render(noise, self.tell(references, plan), plan)


def told_by_pictures(
    adapter: DiffusersAdapter,
    encoder: PictureEncoder,
    rank: int,
    where: str,
    slots: int,
    guided: bool,
    seed: int = 0,
) -> PictureTold:
    """A generator that is about to learn from pictures; its tokens begin in the range of its texts.

    Raises:
        UsageError: a generator that peft cannot adapt, or whose denoiser reads no token states.
    """
    own = _beside(adapter)
    text = own.encode(["a picture", "two cats on grass", "seven red apples"], unguided_plan(own))
    _check_reads(own, text.pick([0]))
    add_lora(own, rank, where, seed)
    tokens = PictureTokens(TokenShape.of(encoder, text, slots), seed)
    tokens.begin(text)
    return PictureTold(own, tokens.to(own.device), guided)


def _beside(adapter: DiffusersAdapter) -> DiffusersAdapter:
    """The same generator with a denoiser of its own, which shares all weights."""
    base: Any = adapter.networks.denoiser
    pipeline: Any = copy.copy(adapter.pipeline)
    shared: dict[int, Any] = {id(weight): weight for weight in base.parameters()}
    pipeline.__dict__[adapter.family.denoiser] = copy.deepcopy(base, shared)
    options = adapter.networks.options()
    return DiffusersAdapter(pipeline, adapter.family, adapter.card, **options)


def _check_reads(adapter: DiffusersAdapter, text: Conditioning) -> None:
    """Refuse a denoiser that token states make no difference to.

    Raises:
        UsageError: it has no attention to them.
    """
    plan = unguided_plan(adapter)
    random = torch.Generator().manual_seed(0)
    noise = adapter.noise([random], plan)
    hidden = text.hidden.detach().clone().requires_grad_()
    time = adapter.sampler(plan, noise.step_noise).timesteps[0]
    told = replace(text, hidden=hidden)
    found = adapter.networks.predict(noise.latents, time, told, plan).float().square().mean()
    (gradient,) = torch.autograd.grad(found, [hidden], allow_unused=True)
    if gradient is None or not gradient.any():
        raise UsageError(
            f"the {type(adapter.networks.denoiser).__name__} of {adapter.card.name} has no attention to "
            "token states, in whose place a picture could tell it something; take a generator with "
            "cross-attention to its text"
        )


# -- training ----------------------------------------------------------------------------------------


def train_variation(
    adapter: DiffusersAdapter,
    critic: Critic,
    pictures: Pictures,
    encoder: PictureEncoder,
    config: VariationConfig,
    out: Path,
    *,
    stop_after: int | None = None,
    source: Mapping[str, Any] | None = None,
    samples: int = 16,
) -> Variation:
    """Learn to be told by pictures, and save ``variation.safetensors`` in ``out``.

    Losses, checkpoints and samples lie beside it; the same call goes on from there.

    Args:
        pictures: to learn from: each is both what is told and what should be drawn.
        samples: pictures of the sheet that is drawn on the way, and counted.
        source: what pictures or prompts are of, kept beside the settings, so that others are refused.

    Raises:
        UsageError: a generator that cannot be adapted or told, a critic without boxes or gradient, or a
            folder of another training.
        MemoryShortage: the graph cannot fit; says what would.
    """
    check_critic(critic)
    lora = config.lora
    made = told_by_pictures(
        adapter, encoder, lora.rank, lora.where, config.slots, config.drop > 0, lora.train.seed
    )
    teller = _Teller(made, References(encoder, critic), config)
    bank = _Bank(pictures, config.bank, lora.train.seed)
    session = Session(made.adapter, critic, bank, lora, teller, made.plan(), adapted=True)
    about = {"generator": adapter.card.name, "critic": critic.card.name, "encoder": encoder.name}
    keep_settings(out, "variation", about | asdict(config))
    if source:
        keep_settings(out, "source", source)

    def begin(step: int) -> None:
        session.begin(step)
        teller.begin(step)

    fit(
        "variation",
        nn.ModuleDict({"denoiser": session.denoiser, "tokens": made.tokens}),
        session.losses,
        lora.train,
        out,
        look=session.looker(out, samples) if samples else None,
        look_every=max(lora.train.steps // 6, 1),
        stop_after=stop_after,
        at_step=begin,
    )
    found = Variation.of(made, adapter.card.name, encoder.name, lora.rank, lora.where)
    found.save(out / "variation.safetensors")
    return found


@dataclass(frozen=True)
class _Bank:
    """So many of the pictures, over and over."""

    pictures: Pictures
    size: int
    seed: int

    def __call__(self, rng: np.random.Generator, number: int) -> list[Captioned]:
        return [
            self.pictures(np.random.default_rng([self.seed, int(index)]), 1)[0]
            for index in rng.integers(self.size, size=number)
        ]


@dataclass
class _Teller:
    """What the denoiser is told of training pictures; some it is told nothing of.

    Of a picture with more objects than places it is told some by chance, as published.
    """

    told: PictureTold
    references: References
    config: VariationConfig
    _chance: torch.Generator = field(default_factory=torch.Generator)

    def begin(self, step: int) -> None:
        seed = derived_seed(self.config.lora.train.seed, "variation", step)
        self._chance.manual_seed(seed)

    def __call__(self, batch: Sequence[Captioned]) -> Conditioning:
        known: list[Reference | None] = [self._some(self.references(one)) for one in batch]
        if self.config.drop and torch.is_grad_enabled():
            chance = torch.rand(len(batch), generator=self._chance)
            drop = (chance < self.config.drop).tolist()
            known = [None if out else one for one, out in zip(known, drop, strict=True)]
        return self.told.tell(known, self.told.plan())

    def _some(self, reference: Reference) -> Reference:
        number, slots = len(reference.objects), self.config.slots
        if number <= slots:
            return reference
        chosen = torch.randperm(number, generator=self._chance)[:slots]
        return replace(reference, objects=reference.objects[chosen])


# -- use ---------------------------------------------------------------------------------------------


@dataclass
class Variation:
    """What was learnt, as it lies in a file.

    Attributes:
        generator: name of the one that it was learnt for.
        encoder: name of the CLIP that pictures are embedded with (``load_encoder``).
        state: LoRA (``denoiser.``) and projections (``tokens.``).
    """

    generator: str
    encoder: str
    shape: TokenShape
    rank: int
    where: str
    guided: bool
    state: dict[str, Tensor] = field(repr=False)

    @staticmethod
    def of(made: PictureTold, generator: str, encoder: str, rank: int, where: str) -> Variation:
        layers = lora_layers(made.adapter.networks.denoiser)
        state = {f"denoiser.{name}": tensor for name, tensor in layers.items()}
        for name, tensor in made.tokens.state_dict().items():
            state[f"tokens.{name}"] = tensor.detach().float().cpu().contiguous()
        return Variation(generator, encoder, made.tokens.shape, rank, where, made.guided, state)

    def on(self, adapter: DiffusersAdapter, encoder: PictureEncoder) -> PictureTold:
        """Beside a generator, whose own denoiser stays as it is.

        Raises:
            UsageError: another generator or CLIP than it was learnt for.
        """
        from peft import set_peft_model_state_dict

        shape = self.shape
        made = told_by_pictures(adapter, encoder, self.rank, self.where, shape.slots, self.guided)
        denoiser: Any = made.adapter.networks.denoiser
        wanted = {name: t.shape for name, t in self._part("denoiser.").items()}
        own = {name: t.shape for name, t in lora_layers(denoiser).items()}
        if wanted != own or shape != made.tokens.shape:
            raise UsageError(
                f"this variation was learnt for {self.generator} and the CLIP {self.encoder}, and "
                f"{adapter.card.name} with {encoder.name} is another; learn one for it with countgen learn "
                "variation"
            )
        set_peft_model_state_dict(denoiser, self._part("denoiser."), adapter_name=ADAPTER)
        made.tokens.load_state_dict(self._part("tokens."))
        for module in (denoiser, made.tokens):
            module.eval().requires_grad_(False)
        return made

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.state.items()
            if name.startswith(prefix)
        }

    def save(self, path: Path) -> None:
        """Write it as one file of safetensors."""
        from safetensors.torch import save

        from countgen.files import write

        about = {"format": FORMAT, "shape": asdict(self.shape)}
        for name in ("generator", "encoder", "rank", "where", "guided"):
            about[name] = getattr(self, name)
        write(path, save(self.state, {"countgen": json.dumps(about)}), replace=True)

    @staticmethod
    def load(path: Path) -> Variation:
        """Read what ``save`` wrote.

        Raises:
            UsageError: no such file, or one of something else.
        """
        about, state = read_weights(path, FORMAT, "countgen learn variation")
        try:
            made = Variation(
                str(about["generator"]),
                str(about["encoder"]),
                TokenShape(**about["shape"]),
                int(about["rank"]),
                str(about["where"]),
                bool(about["guided"]),
                state,
            )
            PictureTokens(made.shape).load_state_dict(made._part("tokens."))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{path} is damaged ({error}); learn it again") from None
        return made
