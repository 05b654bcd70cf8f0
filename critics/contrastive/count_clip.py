"""Counting by captions: which of "two cats", "three cats", ..., "ten cats" does CLIP find in the picture?

After "Teaching CLIP to Count to Ten" (Paiss et al., arXiv 2302.12066): as published are the numbers 2 to 10,
the choice of the likeliest caption as the count (here the hard count), and ``counting_contrastive_loss``,
which teaches CLIP to tell a caption from one with a wrong number. Ours are the soft count (the expectation
over the numbers), captions of nothing but number and noun, and the squeezed picture instead of a centre
crop, which would cut objects off.

The paper's weights were never published. The card names plain CLIP, which counts badly (its authors measure
32 % right where theirs has 76 %) and can say neither 0, 1 nor more than 10: for other counts it is wrong by
construction. A CLIP that was taught to count (``countgen learn clip``) loads from its own folder, where
``counting.json`` says which numbers it learned; with zero among them "no cats" is one of its captions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CountEstimate, CriticCard, Gives, Query, check_nouns
from critics.loading import checkpoint
from critics.loading.hub import load_model, load_tokenizer, resolve_source
from critics.loading.settings import global_settings_kept
from critics.parts.guard import device_of, guarded_count, guarded_prepare, move
from critics.parts.preprocess import CLIP, normalise, resize
from critics.parts.queries import noun_mask, stack_text
from critics.parts.text import tokenize
from critics.targets import MAX_COUNT

Statistics = tuple[Sequence[float], Sequence[float]]

NUMBERS = range(2, 11)
"""The counts that captions name, as published."""
SETTINGS = "counting.json"
"""Beside the weights of a CLIP that was taught to count: see ``save_settings``."""
_KIND = "count-clip"
_CURE = "Write it with countgen learn clip, or remove it to count as plain CLIP does."

CARDS = {
    "count-clip": CriticCard(
        name="count-clip",
        family="clip",
        summary="likeliest of nine number captions, 2 to 10 only; a plain CLIP unless one is given that was "
        "taught to count, which may know others",
        license_code="Apache-2.0",
        license_weights="MIT",
        input_size=224,
        hub_id="openai/clip-vit-base-patch32",
        parameters=151_277_313,
        citation="Paiss et al.: Teaching CLIP to Count to Ten, arXiv 2302.12066",
    )
}

# What may follow the noun that is counted: "dogs on the left", "cups with a handle".
_AFTER_NOUN = re.compile(
    r"\s(?:about|above|at|behind|below|beside|between|by|from|in|inside|near|next|of|on|outside|over|that|"
    r"under|wearing|which|who|with|without)\s"
)


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    temperature: float = 1.0,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> CountClip:
    """A critic by name.

    Args:
        source: hub id or folder of a ``transformers.CLIPModel`` with its tokenizer; the card's if None.
        temperature: divides the logits of the captions.
        dtype: of the network; counts are float32.

    Raises:
        CheckpointError: weights or tokenizer missing, damaged or of another model, or wrong settings of one
            that was taught to count.
        ValueError: a temperature that is not positive.
    """
    from transformers import AutoTokenizer, CLIPModel

    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature divides logits and must be positive, not {temperature}")
    source, options = resolve_source(CARDS[name], source, revision, local_files_only)
    # Older files of CLIP hold the positions' indices, which the model makes itself.
    network = load_model(CLIPModel, source, ignore=["position_ids$"], dtype=dtype, **options)
    entries = network.config.text_config.vocab_size
    tokenizer = load_tokenizer(AutoTokenizer, source, entries, **options)
    if not (Path(source) / SETTINGS).is_file():
        return CountClip(network, tokenizer, CARDS[name], temperature)
    numbers, statistics = _read_settings(Path(source))
    card = CARDS[name].of(
        network,
        summary=f"likeliest of its number captions, {numbers[0]} to {numbers[-1]}, which it was taught",
        input_size=network.config.vision_config.image_size,
    )
    return CountClip(network, tokenizer, card, temperature, numbers, statistics)


def save_settings(folder: Path, numbers: range, statistics: Statistics = CLIP) -> None:
    """Write beside the weights of a CLIP what it was taught, so that ``load`` reads it.

    Args:
        numbers: the counts that its captions name, at least two.
        statistics: means and deviations of the channels that it was taught with.
    """
    config = {
        "kind": _KIND,
        "lowest": numbers[0],
        "highest": numbers[-1],
        "image_mean": list(statistics[0]),
        "image_std": list(statistics[1]),
    }
    (folder / SETTINGS).write_text(json.dumps(config, indent=2) + "\n")


def _read_settings(folder: Path) -> tuple[range, Statistics]:
    config = checkpoint.read_config(folder, _KIND, _CURE, SETTINGS)
    lowest, highest = config.get("lowest", int), config.get("highest", int)
    if not 0 <= lowest < highest <= MAX_COUNT:
        raise config.error(f"lowest {lowest} and highest {highest} are no range of counts")
    means = config.get("image_mean", tuple[float, float, float])
    deviations = config.get("image_std", tuple[float, float, float])
    if min(deviations) <= 0:
        raise config.error("image_std must be positive")
    return range(lowest, highest + 1), (means, deviations)


@dataclass
class CountClip:
    """A critic: the expectation of a softmax over number captions.

    Attributes:
        network: ``transformers.CLIPModel``.
        tokenizer: of its text encoder.
        temperature: divides the logits, which are CLIP's own scale times the cosine.
        numbers: the counts that its captions name.
        statistics: means and deviations of the channels that the network expects.
    """

    network: nn.Module
    tokenizer: Any
    card: CriticCard
    temperature: float = 1.0
    numbers: range = NUMBERS
    statistics: Statistics = CLIP

    @property
    def gives(self) -> Gives:
        return "soft"

    def to(self, device: str | torch.device) -> Self:
        move(self.network, device)
        return self

    @guarded_prepare
    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode a caption a number and noun; nouns are given in the singular.

        Raises:
            UnknownNounError: an empty noun, or one that is too long for the text encoder.
        """
        if not nouns:
            return Query((), text={"captions": torch.zeros(0, len(self.numbers), 1)})
        network: Any = self.network
        captions = [caption for noun in nouns for caption in number_captions(noun, self.numbers)]
        named = [noun for noun in nouns for _ in self.numbers]
        length = network.config.text_config.max_position_embeddings
        ids, attended = tokenize(self.tokenizer, captions, named, length, device_of(network))
        found = network.get_text_features(input_ids=ids, attention_mask=attended)
        embeds = F.normalize(found.pooler_output.float(), dim=-1)
        return Query(tuple(nouns), text={"captions": embeds.unflatten(0, (-1, len(self.numbers)))})

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        mask = noun_mask(queries, images.device)
        if not mask.numel():
            empty = images.new_zeros(mask.shape, dtype=torch.float32)
            return CountEstimate(empty, empty.long(), mask)
        network: Any = self.network
        side = network.config.vision_config.image_size
        pixels = normalise(resize(images, (side, side), "bicubic"), self.statistics)
        seen = network.get_image_features(pixel_values=pixels.to(network.dtype)).pooler_output
        seen = F.normalize(seen.float(), dim=-1)
        captions = stack_text(queries, "captions", seen.device)
        scale = network.logit_scale.exp().float() / self.temperature
        logits = scale * torch.einsum("bd,bknd->bkn", seen, captions)
        soft = torch.where(mask, expected_number(logits, self.numbers), 0.0)
        likeliest = logits.detach().argmax(-1) + self.numbers[0]
        return CountEstimate(soft, torch.where(mask, likeliest, 0), mask)


def expected_number(logits: Float[Tensor, "*b n"], numbers: range = NUMBERS) -> Float[Tensor, "*b"]:
    """Ours: the sum over the numbers of n softmax_n(logits)."""
    return (logits.softmax(-1) * logits.new_tensor(list(numbers))).sum(-1)


def number_captions(noun: str, numbers: range = NUMBERS) -> list[str]:
    """ "no cats", "one cat", "two cats", ..., of a noun in the singular.

    >>> number_captions("red apple", range(3))
    ['no red apples', 'one red apple', 'two red apples']
    """
    things = plural(noun)
    words = ["no" if n == 0 else _word(n) for n in numbers]
    return [
        f"{word} {' '.join(noun.split()) if n == 1 else things}"
        for n, word in zip(numbers, words, strict=True)
    ]


def plural(noun: str) -> str:
    """The plural of a noun in the singular: of its last word, or of the last before "on", "with" and so on.

    >>> plural("red apple"), plural("child on the left"), plural("sheep")
    ('red apples', 'children on the left', 'sheep')
    """
    check_nouns([noun])
    noun = " ".join(noun.split())
    cut = _AFTER_NOUN.search(noun)
    head, rest = (noun[: cut.start()], noun[cut.start() :]) if cut else (noun, "")
    return f"{_english().plural_noun(head)}{rest}"


@cache
def _word(number: int) -> str:
    return str(_english().number_to_words(number))


@cache
def _english() -> Any:
    import inflect  # takes most of a second

    return inflect.engine()


def counting_contrastive_loss(
    image_embeds: Float[Tensor, "n d"],
    text_embeds: Float[Tensor, "n d"],
    counterfactual_embeds: Float[Tensor, "n d"],
) -> Float[Tensor, ""]:
    """L_count = -1/N sum_k log [exp<i_k, t_k> / (exp<i_k, t_k> + exp<i_k, t_k^CF>)] (arXiv 2302.12066).

    As published: each image against its own two captions only, the right one and that with a wrong number.
    The paper adds it to CLIP's own loss with weight 1, on the images that show a counted thing.

    Args:
        image_embeds: of N images, as they enter the inner product: normalise them first, and multiply by
            CLIP's scale for its temperature; the formula has none.
        text_embeds: of their captions.
        counterfactual_embeds: of the same captions with another number.
    """
    right = (image_embeds * text_embeds).sum(-1)
    wrong = (image_embeds * counterfactual_embeds).sum(-1)
    # -log(e^r / (e^r + e^w)) = softplus(w - r), which cannot overflow.
    return F.softplus(wrong - right).mean()
