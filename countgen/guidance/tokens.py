"""Count tokens as things: fitted on one prompt or several, saved, loaded, and used without more optimisation.

A token that several pictures share is fitted in a loop of its own over a fixed batch; the pool, in which
every row is one picture's, only applies it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.engine.evaluate import padded
from countgen.engine.sharing import using
from countgen.errors import UsageError
from countgen.guidance.base import Objective, Optimizer, Start
from countgen.guidance.objectives import SoftCount
from countgen.guidance.optimizers import Adam
from countgen.guidance.prompt_tokens import place_token
from countgen.guidance.variables import CountToken
from countgen.prompts import CountPrompt
from countgen.seeds import image_seed
from pipelines.base import Conditioning, Noise, PipelineAdapter, Plan, has_gradient
from pipelines.tokens import text_encoders, widths

if TYPE_CHECKING:
    from countgen.pipeline import CountGuidedPipeline

FORMAT = "countgen-token-1"
VARIABLE, OBJECTIVE = CountToken(), SoftCount()
OPTIMIZER = Adam(lr=0.01, weight_decay=0.01)
"""What Zafar et al. optimise, minimise and step with."""


@dataclass(frozen=True)
class LearnedToken:
    """The embeddings of a count token.

    Attributes:
        token: how it is written in a prompt.
        vectors: text encoder's component name -> (n, d) embeddings, n pieces of the token.
        place: where it stands, as of ``CountToken``.
        about: what it was fitted on, for people.
    """

    token: str
    vectors: dict[str, Float[Tensor, "n d"]]
    place: Literal["before", "instead"] = "before"
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name(self.token)

    def placed(self, prompt: CountPrompt) -> str:
        """The prompt with the token in its place."""
        return place_token(prompt, self.token, self.place)[0]

    def for_adapter(self, adapter: PipelineAdapter) -> dict[str, list[Tensor]]:
        """The token as ``PipelineAdapter.encode`` takes it.

        Raises:
            UsageError: a pipeline with other text encoders.
        """
        pipeline = getattr(adapter, "pipeline", None)
        names = [encoder for _, encoder in text_encoders(pipeline)]
        own = {name: tensor.shape[-1] for name, tensor in self.vectors.items()}
        wanted = dict(zip(names, widths(pipeline), strict=True))
        if own != wanted:
            raise UsageError(
                f"the token {self.token} was learned for text encoders of the widths {own}, and this "
                f"pipeline has {wanted}; fit one with this pipeline"
            )
        return {self.token: [self.vectors[name] for name in names]}

    def encode(
        self, adapter: PipelineAdapter, prompts: Sequence[CountPrompt], plan: Plan
    ) -> Conditioning:
        """Every prompt with the token in its place, without gradient.

        Raises:
            UsageError: a pipeline with other text encoders.
        """
        placed, learned = [self.placed(prompt) for prompt in prompts], self.for_adapter(adapter)
        return adapter.encode(placed, plan, learned).detach()

    def token_for(self, adapter: PipelineAdapter, prompt: CountPrompt) -> LearnedToken:
        """Itself, in every prompt."""
        return self

    def save(self, path: str | Path) -> None:
        """Write a textual-inversion file of safetensors.

        Of one encoder it holds the token's text and its embeddings, and Diffusers' ``load_textual_inversion``
        reads it as it is (naming ``text_encoder`` and ``tokenizer`` where the pipeline's are not the first).
        Of several it holds the embeddings by component name, each of which ``load_textual_inversion`` takes
        as a state: ``{token: tensor}``.
        """
        from safetensors.torch import save

        from countgen.files import write

        tensors = {name: t.detach().float().cpu().contiguous() for name, t in self.vectors.items()}
        if len(tensors) == 1:
            tensors = {self.token: next(iter(tensors.values()))}
        about = {
            "format": FORMAT,
            "token": self.token,
            "place": self.place,
            "encoders": list(self.vectors),
            "about": self.about,
        }
        write(Path(path), save(tensors, {"countgen": json.dumps(about)}), replace=True)

    @classmethod
    def load(cls, path: str | Path) -> LearnedToken:
        """Read what ``save`` wrote.

        Raises:
            UsageError: no such file, none of a count token, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("countgen", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise UsageError(f"{path} cannot be read as a token file ({error})") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UsageError(f"{path} is no token file of countgen; countgen token fit writes one")
        token, names = about.get("token"), about.get("encoders")
        if isinstance(token, str) and isinstance(names, list) and len(names) == 1:
            tensors = {str(names[0]): tensors[token]} if set(tensors) == {token} else {}
        rows = {tensor.shape[0] for tensor in tensors.values() if tensor.ndim == 2}
        whole = (
            isinstance(token, str)
            and bool(token.strip())
            and isinstance(names, list)
            and set(map(str, names)) == set(tensors)
            and all(t.ndim == 2 and t.is_floating_point() for t in tensors.values())
            and len(rows) == 1
            and min(rows) > 0
        )
        if not whole or about.get("place") not in ("before", "instead"):
            raise UsageError(
                f"{path} is damaged: its embeddings are not those that it tells of; fit the token again"
            )
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UsageError(
                f"{path} holds embeddings that are no finite numbers; fit the token again, in float32 and "
                "with smaller steps"
            )
        said = about.get("about")
        return cls(str(token), tensors, about["place"], said if isinstance(said, dict) else {})


@dataclass(frozen=True)
class FitState:
    """One step of a fit: the loss of the batch, the critic's hard and soft counts, and the wanted ones."""

    step: int
    loss: float
    hard: tuple[tuple[int, ...], ...]
    soft: tuple[tuple[float, ...], ...]
    wanted: tuple[tuple[int, ...], ...]


def fit_token(
    pipeline: CountGuidedPipeline,
    prompts: Sequence[CountPrompt],
    *,
    token: str = "<count>",
    variable: CountToken = VARIABLE,
    objective: Objective = OBJECTIVE,
    optimizer: Optimizer = OPTIMIZER,
    steps: int = 50,
    num_images_per_prompt: int = 4,
    seed: int = 0,
    num_inference_steps: int | None = None,
    progress: Callable[[FitState], None] = lambda state: None,
) -> LearnedToken:
    """One token for a fixed batch of pictures: the gradient of their mean loss, the best token by that loss.

    After Zafar et al. (arXiv 2408.11721), who fit one prompt and one noise; a batch of several makes a token
    that serves other pictures as well.

    Raises:
        UsageError: a prompt without a count, a pipeline without text encoder, or a token without a name.
        critics.base.UnknownNounError: a noun that the critic cannot see.
    """
    if not prompts or not all(prompt.targets for prompt in prompts):
        raise UsageError("a token is fitted on prompts that ask for a number, each of them")
    _check_name(token)
    if steps < 1 or num_images_per_prompt < 1:
        raise UsageError("a fit needs at least one step and one picture a prompt")
    adapter, critic = pipeline.adapter, pipeline.critic
    if not has_gradient(adapter):
        raise UsageError(
            f"a token is fitted by gradients, and {adapter.card.name} is called as it is, without them; take "
            "a generator of the families that countgen list pipelines tells"
        )
    plan = adapter.plan(num_inference_steps)
    batch = [prompt for prompt in prompts for _ in range(num_images_per_prompt)]
    queries = [critic.prepare([t.noun for t in prompt.targets]) for prompt in batch]
    counts = [[t.count for t in prompt.targets] for prompt in batch]
    seeds = [
        image_seed(seed, prompt.text, i) for prompt in prompts for i in range(num_images_per_prompt)
    ]
    noise = Noise.join(
        [adapter.noise([torch.Generator().manual_seed(one)], plan) for one in seeds]
    ).to(adapter.device)
    wanted = padded(counts).to(adapter.device)
    best: tuple[float, dict[str, Tensor]] | None = None
    with using(adapter, critic), torch.inference_mode(False):
        plain = adapter.encode([prompt.text for prompt in batch], plan)
        start = Start(noise, plain, tuple(batch), tuple(seeds), adapter, plan)
        shared = {name: rows.mean(0, keepdim=True) for name, rows in variable.init(start).items()}
        state = optimizer.init(shared)
        for step in range(steps):
            leaves = {name: row.detach().requires_grad_() for name, row in shared.items()}
            rows = {name: leaf.expand(len(batch), *leaf.shape[1:]) for name, leaf in leaves.items()}
            made, conditioning = variable.apply(rows, start)
            images = adapter.render(made, conditioning, plan)
            estimate = critic(images, queries)
            loss = objective(estimate, wanted).mean()
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            if not all(grad.isfinite().all() for grad in grads.values()):
                raise UsageError("the gradient of the token is not finite; use float32")
            if best is None or loss.item() < best[0]:
                best = loss.item(), {name: leaf.detach().clone() for name, leaf in leaves.items()}
            progress(
                FitState(
                    step,
                    loss.item(),
                    _rows(estimate.hard, counts),
                    _rows(estimate.soft.detach(), counts),
                    tuple(map(tuple, counts)),
                )
            )
            with torch.no_grad():
                shared, state = optimizer.update(grads, state, shared, loss.detach()[None])
    assert best is not None
    names = [encoder for _, encoder in text_encoders(getattr(adapter, "pipeline", None))]
    vectors = {name: best[1][f"token.{i}"][0].cpu() for i, name in enumerate(names)}
    about = {
        "prompts": [prompt.text for prompt in prompts],
        "model": adapter.card.name,
        "critic": critic.card.name,
        "steps": steps,
        "loss": best[0],
    }
    return LearnedToken(token, vectors, variable.place, about)


def _check_name(token: str) -> None:
    if not token.strip():
        raise UsageError('a token needs a name, such as "<count>"')


def _rows(values: Tensor, counts: Sequence[Sequence[int]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row[: len(own)]) for row, own in zip(values.tolist(), counts, strict=True))
