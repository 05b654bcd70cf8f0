"""The count token's counterpart of amortised guidance: one network from noun and number to a token.

Zafar et al. (arXiv 2408.11721) fit a token's embedding anew for every prompt. Here a small network is learnt
once, from the critic's gradient through the generator and its text encoders, and gives the token of any noun
and number in a single pass: the embedding of a word plus a change, which begins as nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from countgen.errors import UsageError
from countgen.guidance.objectives import OBJECTIVES
from countgen.guidance.prompt_tokens import place_token
from countgen.guidance.tokens import LearnedToken
from countgen.guidance.variables import embeddings_of
from countgen.learning.draws import Prompts
from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.learning.lora import bounded_rows, check_gradient, counting_loss, fresh_noise
from countgen.learning.screening import read_weights
from countgen.learning.settings import keep_settings
from countgen.prompts import CountPrompt, CountTarget
from critics.base import Critic
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Conditioning, PipelineAdapter, Plan
from pipelines.tokens import text_encoders, widths

FORMAT = "countgen-token-network-1"
INIT_WORD = "some"
"""Whose embedding a token begins with, as published for fitted ones."""
_WAVES = 4
NUMBERS = 2 + 2 * _WAVES
"""Entries by which a number is told."""


@dataclass(frozen=True)
class TokenNetworkConfig:
    """How a token network is trained.

    Attributes:
        objective: counting loss, by its name in ``OBJECTIVES``.
        keep: weight of the squared change, its mean over a token's entries, in mean squares of embeddings.
        place: where the token stands, as of ``CountToken``.
        hidden: width of the network.
        longest: largest gradient of one picture that comes back to its text (``bounded_rows``).
    """

    train: TrainConfig
    objective: str = "hinge"
    keep: float = 0.01
    place: Literal["before", "instead"] = "before"
    hidden: int = 128
    longest: float = 1.0

    def __post_init__(self) -> None:
        if self.keep < 0 or self.hidden < 1 or not self.longest > 0:
            raise UsageError("width and bound must be positive, and the weight not negative")
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"there is no counting loss {self.objective!r}; there are {', '.join(OBJECTIVES)}"
            )


CONFIG = TokenNetworkConfig(
    TrainConfig(steps=150, batch=8, learning_rate=2e-3, warmup=10, ema=0.97)
)
"""For pocket; published is nothing of the kind."""


def told_numbers(counts: Int64[Tensor, " b"]) -> Float[Tensor, "b n"]:
    """Numbers as a network reads them: their logarithm, their share of 20, and waves of 2 to 16."""
    n = counts.float()[:, None]
    waves = math.pi * n / 2.0 ** torch.arange(_WAVES)
    return torch.cat([torch.log1p(n), n / 20, waves.sin(), waves.cos()], 1)


class TokenNetwork(nn.Module):
    """Noun and number -> the change of a token's embeddings, in root mean squares of each encoder's table."""

    def __init__(self, width: int, hidden: int, seed: int = 0) -> None:
        """``width``: of all encoders' embeddings together."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Sequential(
                nn.Linear(width + NUMBERS, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
            )
            self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, nouns: Float[Tensor, "b d"], counts: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b d"]:
        told = told_numbers(counts.cpu()).to(nouns)
        return self.out(self.inner(torch.cat([nouns, told], 1)))


@dataclass
class TokenWords:
    """Writes a token of its own into every prompt, by a network.

    Attributes:
        generator: name of the one that it was learnt for.
        encoders: text encoder's component name -> width of its embeddings.
        place: where the token stands before or instead of the number of a prompt's first target.
    """

    generator: str
    encoders: Mapping[str, int]
    network: TokenNetwork
    place: Literal["before", "instead"] = "before"
    name: str = "token-network"
    _nouns: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)

    def encode(
        self, adapter: PipelineAdapter, prompts: Sequence[CountPrompt], plan: Plan
    ) -> Conditioning:
        """The prompts with their tokens; those without a number as they are. No gradient.

        Raises:
            UsageError: another generator than it was learnt for.
        """
        return self.encoded(adapter, prompts, plan)[0].detach()

    def encoded(
        self, adapter: PipelineAdapter, prompts: Sequence[CountPrompt], plan: Plan
    ) -> tuple[Conditioning, Tensor]:
        """The same with gradient to the network, and the mean square of each token's change."""
        self._check(adapter)
        counted = [i for i, prompt in enumerate(prompts) if prompt.targets]
        texts, tokens = [prompt.text for prompt in prompts], {}
        squares = torch.zeros(0)
        if counted:
            vectors, squares = self._vectors(adapter, [prompts[i].targets[0] for i in counted])
            for i, row in zip(counted, zip(*vectors, strict=True), strict=True):
                mark = f"<count-{i}>"
                texts[i] = place_token(prompts[i], mark, self.place)[0]
                tokens[mark] = list(row)
        return adapter.encode(texts, plan, tokens), squares

    def token_for(self, adapter: PipelineAdapter, prompt: CountPrompt) -> LearnedToken | None:
        """The token of one prompt, as a thing of its own; None where that has no number."""
        if not prompt.targets:
            return None
        self._check(adapter)
        with torch.no_grad():
            vectors, _ = self._vectors(adapter, prompt.targets[:1])
        return LearnedToken("<count>", dict(zip(self.encoders, vectors, strict=True)), self.place)

    def _vectors(
        self, adapter: PipelineAdapter, targets: Sequence[CountTarget]
    ) -> tuple[list[Float[Tensor, "b _"]], Float[Tensor, " b"]]:
        """Every encoder's embeddings of the targets' tokens, and the mean square of each one's change."""
        pipeline = getattr(adapter, "pipeline", None)
        scale = _scales(pipeline)
        nouns = torch.stack([self._noun(pipeline, target.noun) for target in targets])
        wanted = torch.tensor([target.count for target in targets])
        change = self.network(nouns / scale, wanted)
        start = torch.cat([vector[0] for vector in embeddings_of(pipeline, INIT_WORD)])
        vectors = (start + scale * change).split(list(self.encoders.values()), 1)
        return list(vectors), change.square().mean(1)

    def _noun(self, pipeline: Any, noun: str) -> Float[Tensor, " d"]:
        key = (id(pipeline), noun)
        if key not in self._nouns:
            found = embeddings_of(pipeline, noun)
            self._nouns[key] = torch.cat([vector[0] for vector in found])
        return self._nouns[key]

    def _check(self, adapter: PipelineAdapter) -> None:
        own = encoders_of(adapter)
        if dict(self.encoders) != own:
            raise UsageError(
                f"this token network was learnt for {self.generator}, whose text encoders have the widths "
                f"{dict(self.encoders)}, and {adapter.card.name} has {own}; learn one for it with countgen "
                "learn token-network"
            )

    def save(self, path: Path) -> None:
        """Write the network and what it is for."""
        from safetensors.torch import save

        from countgen.files import write

        about = {
            "format": FORMAT,
            "generator": self.generator,
            "encoders": dict(self.encoders),
            "place": self.place,
            "hidden": self.network.out.in_features,
        }
        state = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in self.network.state_dict().items()
        }
        write(path, save(state, {"countgen": json.dumps(about)}), replace=True)

    @staticmethod
    def load(path: Path) -> TokenWords:
        """Read what ``save`` wrote.

        Raises:
            UsageError: no such file, or one of something else.
        """
        about, state = read_weights(path, FORMAT, "countgen learn token-network")
        try:
            encoders = {str(name): int(width) for name, width in about["encoders"].items()}
            network = TokenNetwork(sum(encoders.values()), int(about["hidden"]))
            network.load_state_dict(state)
            place = about["place"]
            if place not in ("before", "instead"):
                raise ValueError(f"no place {place!r}")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(f"{path} is damaged ({error}); learn it again") from None
        network.eval().requires_grad_(False)
        return TokenWords(str(about["generator"]), encoders, network, place)


def encoders_of(adapter: PipelineAdapter) -> dict[str, int]:
    """Text encoder's component name -> width of its embeddings."""
    pipeline = getattr(adapter, "pipeline", None)
    names = [encoder for _, encoder in text_encoders(pipeline)]
    return dict(zip(names, widths(pipeline), strict=True))


def _scales(pipeline: Any) -> Float[Tensor, " d"]:
    """Root mean square of every encoder's embeddings, at each of its entries."""
    found = []
    for _, name in text_encoders(pipeline):
        table = getattr(pipeline, name).get_input_embeddings().weight.detach().float()
        found.append(table.square().mean().sqrt().expand(table.shape[1]))
    return torch.cat(found)


def train_token_network(
    adapter: DiffusersAdapter,
    critic: Critic,
    prompts: Prompts,
    config: TokenNetworkConfig,
    out: Path,
    *,
    stop_after: int | None = None,
    source: Mapping[str, Any] | None = None,
) -> TokenWords:
    """Train a token network, and save ``token-network.safetensors`` in ``out``.

    Args:
        prompts: number -> prompt, without end; those without a number are left out.
        source: what pictures or prompts are of, kept beside the settings, so that others are refused.

    Raises:
        UsageError: a critic without gradient, a generator without text encoder, prompts without numbers, or a
            folder of another training.
    """
    objective = OBJECTIVES[config.objective]
    check_gradient(critic, objective)
    embeddings_of(adapter.pipeline, INIT_WORD)  # refuses what has no text encoder
    for module in adapter.modules():
        module.requires_grad_(False)
    encoders = encoders_of(adapter)
    network = TokenNetwork(sum(encoders.values()), config.hidden, config.train.seed)
    words = TokenWords(adapter.card.name, encoders, network.to(adapter.device), config.place)
    about = {"generator": adapter.card.name, "critic": critic.card.name, **asdict(config)}
    keep_settings(out, "token-network", about)
    if source:
        keep_settings(out, "source", source)
    plan = adapter.plan()

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        asked = _counted(prompts, rng, config.train.batch)
        told, squares = words.encoded(adapter, asked, plan)
        bound = config.longest / len(asked)
        told.hidden.register_hook(lambda gradient: bounded_rows(gradient, bound))
        images = adapter.render(fresh_noise(adapter, plan, len(asked), noise), told, plan)
        counting = counting_loss(objective, critic, images, asked).mean()
        kept = squares.mean()
        return {"loss": counting + config.keep * kept, "counting": counting, "change": kept}

    fit("token-network", network, loss, config.train, out, stop_after=stop_after)
    network.requires_grad_(False)
    words.save(out / "token-network.safetensors")
    return words


def _counted(prompts: Prompts, rng: np.random.Generator, number: int) -> list[CountPrompt]:
    """So many prompts with a number.

    Raises:
        UsageError: a hundred times as many had none.
    """
    found: list[CountPrompt] = []
    for _ in range(100 * number):
        prompt = prompts(int(rng.integers(2**31)))
        if prompt.targets:
            found.append(prompt)
        if len(found) == number:
            return found
    raise UsageError("the prompts have no numbers, so there is no token to learn for them")
