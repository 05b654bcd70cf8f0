"""Grounding DINO and its descendants: open-vocabulary set predictors that match queries to words.

Grounding DINO (Liu et al., arXiv 2303.05499), MM-Grounding-DINO (Zhao et al., arXiv 2401.02361) and LLMDet
(Fu et al., arXiv 2501.18954) read a caption beside the image and give every query one logit a *token* of
it. As published: networks, caption, preprocessing, the token logits, and both ways to join the tokens of a
noun (``noun_logits``). Ours: the count, see ``critics.parts.readout``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from critics.base import CriticCard, Query, UnknownNounError
from critics.detectors.base import DetectionCritic
from critics.loading.checkpoint import CheckpointError
from critics.loading.hub import (
    channel_statistics,
    load_model,
    load_part,
    picture_sides,
    resolve_source,
)
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import fit_sides, normalise, resize, scale_boxes
from critics.parts.queries import check_text
from critics.parts.readout import Detections, ReadOut

Join = Literal["max", "mean"]

DELIMITERS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Where a phrase ends. The networks know these ids of BERT's uncased vocabulary by heart."""

CARDS = {
    card.name: card
    for card in (
        CriticCard(
            name="grounding-dino",
            family="grounding-dino",
            summary="Grounding DINO tiny: 900 queries matched to the words of a caption",
            license_code="Apache-2.0",
            license_weights="Apache-2.0",
            input_size=800,
            hub_id="IDEA-Research/grounding-dino-tiny",
            parameters=172_250_626,
            citation="Liu et al., Grounding DINO, ECCV 2024, arXiv 2303.05499",
        ),
        CriticCard(
            name="mm-grounding-dino",
            family="grounding-dino",
            summary="MM-Grounding-DINO tiny: Grounding DINO trained anew on open data",
            license_code="Apache-2.0",
            license_weights="Apache-2.0 by MMDetection; not verified for the hub's copy",
            input_size=800,
            hub_id="openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
            parameters=172_250_628,
            citation="Zhao et al., An Open and Comprehensive Pipeline for Unified Object Grounding and "
            "Detection, 2024, arXiv 2401.02361",
        ),
        CriticCard(
            name="llmdet",
            family="grounding-dino",
            summary="LLMDet tiny: MM-Grounding-DINO trained on with long captions",
            license_code="Apache-2.0",
            license_weights="Apache-2.0",
            input_size=800,
            hub_id="iSEE-Laboratory/llmdet_tiny",
            parameters=172_250_628,
            citation="Fu et al., LLMDet, CVPR 2025, arXiv 2501.18954",
        ),
    )
}

READ_OUTS: dict[str, ReadOut] = {
    "grounding-dino": ReadOut(threshold=0.35),
    "mm-grounding-dino": ReadOut(threshold=0.3),
    "llmdet": ReadOut(threshold=0.3),
}
"""Grounding DINO's threshold is that of its authors' demonstration; the others' are ours, not tuned for
counting."""


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    join: Join = "max",
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> DetectionCritic:
    """A critic of this family.

    Args:
        name: a key of ``CARDS``.
        source: hub id or local folder with weights, tokenizer and ``preprocessor_config.json``; by default
            the card's.
        join: how the tokens of a noun become one logit; see ``noun_logits``.
        revision: of the hub's repository.
        dtype: of the weights; counts are float32 whatever it is.
        settings: of the read-out, in place of those in ``READ_OUTS``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: parts that are missing, gated, damaged or of another model.
    """
    import transformers

    read_out = READ_OUTS[name].changed(**settings)
    source, hub = resolve_source(CARDS[name], source, revision, local_files_only)
    prefix = "" if name == "grounding-dino" else "MM"
    cls = getattr(transformers, f"{prefix}GroundingDinoForObjectDetection")
    detector = load_detector(name, cls, source, join, dtype, **hub)
    return DetectionCritic(detector, CARDS[name], read_out)


def load_detector(
    name: str, cls: Any, source: str | Path, join: Join, dtype: torch.dtype, **hub: Any
) -> GroundingDino:
    """Network, tokenizer and settings of the preprocessing; with the errors of ``load``.

    Args:
        name: of the critic, for messages.
        cls: class of the network.
        hub: ``revision`` and ``local_files_only``.
    """
    from transformers import GroundingDinoImageProcessorPil

    if join not in ("max", "mean"):
        raise ValueError(f"join must be 'max' or 'mean', not {join!r}")
    # Plain operations run on every device and can be differentiated twice.
    network = load_model(cls, source, dtype=dtype, disable_custom_kernels=True, **hub)
    tokenizer = load_tokenizer(name, source, **hub)
    # The class for PIL images has the same settings and needs no torchvision.
    processor = load_part(GroundingDinoImageProcessorPil, source, **hub)
    sides = (processor.size.shortest_edge, processor.size.longest_edge)
    if not all(sides):
        raise CheckpointError(
            f"the preprocessor_config.json in {source} must give size as shortest_edge and longest_edge"
        )
    sides = picture_sides(*sides, source)
    statistics = channel_statistics(processor, source)
    return GroundingDino(name, network, tokenizer, sides, statistics, join)


def load_tokenizer(name: str, source: str | Path, **hub: Any) -> Any:
    """BERT's uncased tokenizer, whose ids the networks of this family know."""
    from transformers import AutoTokenizer

    tokenizer = load_part(AutoTokenizer, source, **hub)
    if tokenizer.convert_tokens_to_ids(list(DELIMITERS)) != list(DELIMITERS.values()):
        raise CheckpointError(
            f"the tokenizer in {source} is not BERT's uncased one, which {name} needs; add the tokenizer's "
            "files of the published model"
        )
    return tokenizer


@dataclass
class GroundingDino:
    """The detector: a caption of the nouns goes in with the image, token logits come out.

    Attributes:
        network: ``GroundingDinoForObjectDetection`` or ``MMGroundingDinoForObjectDetection``.
        edges: pixels of the short side after resizing, and the most that the long one may have.
        statistics: means and deviations of the channels.
    """

    name: str
    network: Any
    tokenizer: Any
    edges: tuple[int, int]
    statistics: tuple[Sequence[float], Sequence[float]]
    join: Join

    def prepare(self, nouns: Sequence[str]) -> Query:
        """The caption's tokens, "red apple. dog." for "red apple" and "Dog".

        Each noun is put as it is given, in lower case and ended by a dot, as these networks were trained on
        lists of categories; an article is the caller's to add. Dots and question marks within a noun are
        left out, since they would cut it in two.

        Returns:
            A query with the ``text``: ``input_ids`` (t,), and ``tokens`` (k, t), True where a token is a
            part of a noun (no article or dot but the noun's own, no special token).

        Raises:
            UnknownNounError: a noun that is empty or that the tokenizer cannot spell.
            ValueError: more tokens than the network reads.
        """
        ids, spans = [DELIMITERS["[CLS]"]], []
        for noun in nouns:
            words = self.tokenizer(noun.lower(), add_special_tokens=False)["input_ids"]
            words = [word for word in words if word not in DELIMITERS.values()]
            if not words or self.tokenizer.unk_token_id in words:
                raise UnknownNounError(
                    f"{self.name} cannot read {noun!r}; write it in English letters"
                )
            spans.append((len(ids), len(ids) + len(words)))
            ids += [*words, DELIMITERS["."]]
        ids.append(DELIMITERS["[SEP]"])
        most = self.network.config.max_text_len
        if len(ids) > most:
            raise ValueError(
                f"{len(nouns)} nouns make {len(ids)} tokens, but {self.name} reads {most} at most; ask for "
                "fewer or shorter ones"
            )
        tokens = torch.zeros(len(spans), len(ids), dtype=torch.bool)
        for row, (start, stop) in enumerate(spans):
            tokens[row, start:stop] = True
        return Query(tuple(nouns), text={"input_ids": torch.tensor(ids), "tokens": tokens})

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Every query of the network is a candidate; logits are log-odds, joined over a noun's tokens."""
        ids, real, tokens = stack_captions(queries, self.tokenizer.pad_token_id, images.device)
        pixels = self.preprocess(images).to(self.network.dtype)
        with _ShiftWithoutGradient():
            found = self.network(pixel_values=pixels, input_ids=ids, attention_mask=real.long())
        logits = noun_logits(found.logits[..., : ids.shape[1]].float(), tokens, self.join)
        return Detections(logits, scale_boxes(found.pred_boxes, images))

    def preprocess(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Short side to ``edges[0]`` unless the long one would pass ``edges[1]``; then normalised.

        A batch has one size, so nothing is padded and the networks' pixel mask is all ones, its default.
        """
        size = fit_sides(images.shape[-2], images.shape[-1], *self.edges)
        return normalise(resize(images, size), self.statistics)


def stack_captions(
    queries: Sequence[Query], pad: int, device: torch.device
) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"], Bool[Tensor, "b k t"]]:
    """Token ids of a batch padded to the longest caption, where they are real, and those of every noun.

    A padded token attends to itself alone and none attends to it, so a row is what it is on its own.

    Raises:
        ValueError: a query that another critic prepared.
    """
    check_text(queries, "tokens")
    length = max((len(query.text["input_ids"]) for query in queries), default=0)
    nouns = max((len(query.nouns) for query in queries), default=0)
    ids = torch.full((len(queries), length), pad, dtype=torch.int64)
    real = torch.zeros(len(queries), length, dtype=torch.bool)
    tokens = torch.zeros(len(queries), nouns, length, dtype=torch.bool)
    for row, query in enumerate(queries):
        k, t = query.text["tokens"].shape
        ids[row, :t] = query.text["input_ids"]
        real[row, :t] = True
        tokens[row, :k, :t] = query.text["tokens"]
    return ids.to(device), real.to(device), tokens.to(device)


def noun_logits(
    logits: Float[Tensor, "b c t"], tokens: Bool[Tensor, "b k t"], join: Join
) -> Float[Tensor, "b k c"]:
    """The log-odds of a noun from those of its tokens; -inf for a noun without tokens.

    Args:
        logits: of every candidate and token; -inf on padding.
        tokens: which tokens a noun has.
        join: "max", the strongest token, as the processors of ``transformers`` and Grounding DINO's
            demonstration score a box: it survives tokens that a query leaves out ("##s"), but for "red
            apple" a green one may do. "mean", the log-odds of the mean probability, as Grounding DINO and
            MM-Grounding-DINO evaluate detection: stricter, and lower for long nouns, so it wants a lower
            threshold. Both agree for a noun of one token.
    """
    chosen = tokens[:, :, None, :]
    each = logits[:, None]
    if join == "max":
        return torch.where(chosen, each, -torch.inf).amax(-1)
    # Finite in place of -inf: logsumexp over nothing but -inf has no gradient but nan.
    low = torch.finfo(logits.dtype).min
    each = torch.where(chosen, each, 0.0)
    yes = torch.where(chosen, nn.functional.logsigmoid(each), low).logsumexp(-1)
    no = torch.where(chosen, nn.functional.logsigmoid(-each), low).logsumexp(-1)
    return torch.where(tokens.any(-1)[..., None], yes - no, -torch.inf)


class _ShiftWithoutGradient(TorchFunctionMode):
    """Keeps the images of a batch apart in the backward pass.

    The fusion layers subtract the greatest attention logit of the whole batch before their softmax. That
    changes no value, but its gradient, zero but for rounding, would run from each image to that of the
    maximum. A shift of a softmax needs none.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.max and len(args) == 1 and not kwargs:
            args = (args[0].detach(),)
        return func(*args, **(kwargs or {}))
