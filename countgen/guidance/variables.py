"""What is optimised: the noise itself, a network that changes it, its mean and variance, or a count token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.base import Rows, Start, per_row
from countgen.guidance.prompt_tokens import place_token
from countgen.seeds import derived_seed
from pipelines.base import Conditioning, Noise
from pipelines.tokens import text_encoders


@dataclass(frozen=True)
class DirectNoise:
    """The initial noise (ReNO, arXiv 2406.04312, and others)."""

    modules: tuple[str, ...] = ()
    latents: bool = True

    def init(self, start: Start) -> Rows:
        return {"latents": start.noise.latents.clone()}

    def apply(self, rows: Rows, start: Start) -> tuple[Noise, Conditioning]:
        return replace(start.noise, latents=rows["latents"]), start.conditioning


@dataclass(frozen=True)
class MeanLogVariance:
    """noise * exp(log_variance / 2) + mean, entry by entry (InitNO, arXiv 2404.04650)."""

    modules: tuple[str, ...] = ()
    latents: bool = False

    def init(self, start: Start) -> Rows:
        zeros = torch.zeros_like(start.noise.latents)
        return {"mean": zeros, "log_variance": zeros.clone()}

    def apply(self, rows: Rows, start: Start) -> tuple[Noise, Conditioning]:
        spread = (rows["log_variance"] / 2).exp()
        return replace(start.noise, latents=start.noise.latents * spread + rows["mean"]), (
            start.conditioning
        )


@dataclass(frozen=True)
class LatentModifier:
    """A network of three layers, made anew for every picture, whose output is mixed with the noise.

    A reconstruction of D2D's latent modifier network (arXiv 2510.19278), of which reviews tell three layers
    and a mix weight of 0.2, and no more: w * noise + (1 - w) * (noise + network(noise)), scaled to the norm
    of the noise. The last layer begins with zeros, so that a climb begins with the plain picture.

    Attributes:
        mix: w, the share of the original noise.
        hidden: width of the two layers between.
    """

    mix: float = 0.2
    hidden: int = 64
    modules: tuple[str, ...] = ()
    latents: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mix < 1:
            raise UsageError(f"the mix of a latent modifier must lie in [0, 1), not {self.mix}")
        if self.hidden < 1:
            raise UsageError(f"a latent modifier is at least 1 wide, not {self.hidden}")

    def init(self, start: Start) -> Rows:
        noise = start.noise.latents
        entries = noise[0].numel()
        sizes = ((entries, self.hidden), (self.hidden, self.hidden))
        rows: Rows = {}
        for layer, (inputs, outputs) in enumerate(sizes):
            weights = []
            for seed in start.seeds:
                random = torch.Generator().manual_seed(derived_seed(seed, "modifier", layer))
                weights.append(torch.randn(inputs, outputs, generator=random) / math.sqrt(inputs))
            rows[f"weight{layer}"] = torch.stack(weights).to(noise)
            rows[f"bias{layer}"] = noise.new_zeros(len(noise), outputs)
        rows["weight2"] = noise.new_zeros(len(noise), self.hidden, entries)
        return rows

    def apply(self, rows: Rows, start: Start) -> tuple[Noise, Conditioning]:
        noise = start.noise.latents
        state = noise.flatten(1)
        for layer in range(2):
            state = torch.einsum("bi,bio->bo", state, rows[f"weight{layer}"])
            state = torch.nn.functional.silu(state + rows[f"bias{layer}"])
        change = torch.einsum("bi,bio->bo", state, rows["weight2"]).reshape(noise.shape)
        mixed = noise + (1 - self.mix) * change
        radius = noise.flatten(1).norm(dim=1)
        scale = radius / mixed.flatten(1).norm(dim=1).clamp_min(1e-12)
        return replace(start.noise, latents=mixed * per_row(scale, mixed)), start.conditioning


@dataclass(frozen=True)
class CountToken:
    """The embeddings of one new word in the prompt, in every text encoder (after arXiv 2408.11721).

    Zafar et al. overwrite the word "some" of SDXL-Turbo's first encoder, in "A photo of some {N} {class}".
    Here a new word begins with the embedding of ``init``, nothing of the model is changed, and every encoder
    that the model has learns its own.

    Attributes:
        init_word: the word whose embedding the token begins with.
        place: "before" the number of the prompt's first target, as published, or "instead" of it, where the
            token begins as the number itself and a climb begins with the plain picture.
    """

    init_word: str = "some"
    place: Literal["before", "instead"] = "before"
    modules: tuple[str, ...] = ("text_encoder",)
    latents: bool = False

    def __post_init__(self) -> None:
        if self.place not in ("before", "instead"):
            raise UsageError(f"a token stands before a number or instead of it, not {self.place!r}")

    def init(self, start: Start) -> Rows:
        rows: dict[str, list[Tensor]] = {}
        for prompt in start.prompts:
            number = place_token(prompt, _MARK, self.place)[1]
            word = number if self.place == "instead" and number else self.init_word
            for encoder, vector in enumerate(
                embeddings_of(getattr(start.adapter, "pipeline", None), word)
            ):
                rows.setdefault(f"token.{encoder}", []).append(vector)
        return {name: torch.stack(vectors) for name, vectors in rows.items()}

    def apply(self, rows: Rows, start: Start) -> tuple[Noise, Conditioning]:
        texts, tokens = [], {}
        for index, prompt in enumerate(start.prompts):
            token = _MARK.format(index)
            texts.append(place_token(prompt, token, self.place)[0])
            tokens[token] = [rows[f"token.{n}"][index] for n in range(len(rows))]
        return start.noise, start.adapter.encode(texts, start.plan, tokens)


_MARK = "<count-{}>"


def embeddings_of(pipeline: Any, word: str) -> list[Float[Tensor, "1 d"]]:
    """Per text encoder of a pipeline, the mean of the embeddings of a word's pieces, in float32.

    Raises:
        UsageError: a pipeline without text encoder, or a word that is nothing to its tokenizer.
    """
    check_text_encoders(pipeline)
    found = []
    for tokenizer_name, encoder_name in text_encoders(pipeline):
        ids = getattr(pipeline, tokenizer_name)(word, add_special_tokens=False)["input_ids"]
        table = getattr(pipeline, encoder_name).get_input_embeddings().weight
        if not ids:
            raise UsageError(
                f"the tokenizer makes nothing of {word!r}; begin the token with another word"
            )
        rows = table[torch.tensor(ids, device=table.device)]
        found.append(rows.detach().float().mean(0, keepdim=True))
    return found


def check_text_encoders(pipeline: Any) -> None:
    """Refuse a pipeline that no token can be given to.

    Raises:
        UsageError: it has no text encoder.
    """
    if not text_encoders(pipeline):
        raise UsageError(
            "a count token needs a text encoder whose embeddings can be reached, and this pipeline has none; "
            "take a method that changes the noise, such as noise or edit"
        )
