"""SAM 3: a set predictor that is asked for one noun phrase at a time.

After Carion et al., arXiv 2511.16719. As published: network, preprocessing, and the score of a query, the
probability that it is an instance times the probability that the phrase is in the picture at all. Ours:
the count, see ``critics.parts.readout``. Masks are computed by the network, but not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from critics.base import CriticCard, Query, check_nouns
from critics.detectors.base import DetectionCritic, join_pairs, noun_mask
from critics.loading.hub import load_model, load_part, origin
from critics.parts.preprocess import normalise, resize
from critics.parts.readout import Detections

STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

CARDS = {
    "sam3": CriticCard(
        name="sam3",
        family="sam3",
        summary="SAM 3: 200 queries for each noun phrase, weighed by its presence",
        license_code="Apache-2.0",
        license_weights="SAM License (gated)",
        input_size=1008,
        hub_id="facebook/sam3",
        parameters=840_376_374,
        citation="Carion et al., SAM 3: Segment Anything with Concepts, 2025, arXiv 2511.16719",
    )
}


def load(
    name: str,
    source: str | Path | None = None,
    *,
    threshold: float = 0.5,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **readout: Any,
) -> DetectionCritic:
    """SAM 3 as a critic.

    Args:
        name: a key of ``CARDS``.
        source: hub id or local folder with weights and tokenizer; by default the card's, which is gated.
            The weights may be those of the video model, whose detector is taken.
        threshold: score above which a query counts as an object; not tuned for counting.
        revision: of the hub's repository.
        dtype: of the weights; counts are float32 whatever it is.
        readout: ``overlap``, ``limit``, ``steepness`` or ``duplicates`` of
            ``critics.detectors.base.DetectionCritic``.

    Raises:
        CheckpointError: parts that are missing, gated, damaged or of another model.
    """
    from transformers import AutoTokenizer, Sam3Model

    source, hub = origin(CARDS[name], source, revision, local_files_only)
    network = load_model(Sam3Model, source, dtype=dtype, **hub)
    tokenizer = load_part(AutoTokenizer, source, **hub)
    return DetectionCritic(Sam3(network, tokenizer), CARDS[name], threshold, **readout)


@dataclass
class Sam3:
    """The detector: the image is encoded once, and decoded once for each of its nouns.

    The network clamps the logits of its queries to 12 and that of presence to 10 on either side; what is
    clamped has no gradient.

    Attributes:
        network: ``Sam3Model``.
    """

    network: Any
    tokenizer: Any

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode every noun as a phrase of its own.

        Returns:
            A query with the ``text``: ``features`` (k, t, d) of the text encoder, and ``real`` (k, t), True
            where there is a token and no padding.

        Raises:
            UnknownNounError: for an empty noun.
            ValueError: a noun of more tokens than the text encoder reads.
        """
        check_nouns(nouns)
        most = self.network.config.text_config.max_position_embeddings
        ids = [self.tokenizer(noun)["input_ids"] for noun in nouns]
        for noun, words in zip(nouns, ids, strict=True):
            if len(words) > most:
                raise ValueError(
                    f"{noun!r} makes {len(words)} tokens, but sam3 reads {most} at most; say it shorter"
                )
        length = max(map(len, ids), default=1)
        padded = torch.full((len(ids), length), self.tokenizer.pad_token_id, dtype=torch.int64)
        real = torch.zeros(len(ids), length, dtype=torch.bool)
        for row, words in enumerate(ids):
            padded[row, : len(words)] = torch.tensor(words)
            real[row, : len(words)] = True
        if not ids:
            return Query((), text={"features": torch.zeros(0, 1, 1), "real": real})
        device = self.network.device
        # Tensors made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            encoded = self.network.get_text_features(
                input_ids=padded.to(device), attention_mask=real.long().to(device)
            )
        return Query(tuple(nouns), text={"features": encoded.pooler_output, "real": real})

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Candidates are the queries of every noun in turn; those of one noun can be no other."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        mask = noun_mask(queries, images.device)
        if not mask.any():
            return Detections(images.new_zeros(*mask.shape, 1), images.new_zeros(len(images), 1, 4))
        rows = mask.nonzero(as_tuple=True)[0]
        size = self.network.config.image_size
        pixels = normalise(resize(images, (size, size)), STATISTICS)
        seen = self.network.get_vision_features(pixels.to(self.network.dtype))
        pairs = type(seen)(
            fpn_hidden_states=tuple(level[rows] for level in seen.fpn_hidden_states),
            fpn_position_encoding=tuple(level[rows] for level in seen.fpn_position_encoding),
        )
        features, real = stack_phrases(queries)
        found = self.network(
            vision_embeds=pairs,
            text_embeds=BaseModelOutputWithPooling(pooler_output=features.to(pixels.device)),
            attention_mask=real.to(pixels.device),
        )
        scores = joint_log_odds(found.pred_logits.float(), found.presence_logits.float())
        edges = images.new_tensor([images.shape[-1], images.shape[-2]] * 2, dtype=torch.float32)
        return join_pairs(scores, found.pred_boxes.detach().float() * edges, mask)


def stack_phrases(
    queries: Sequence[Query],
) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"]]:
    """Features of all nouns of a batch, image after image, padded to the longest, and where they are real."""
    texts = [query.text for query in queries if query.nouns]
    total = sum(len(text["real"]) for text in texts)
    length = max(text["real"].shape[1] for text in texts)
    features = texts[0]["features"]
    stacked = features.new_zeros(total, length, features.shape[-1])
    real = torch.zeros(total, length, dtype=torch.bool)
    start = 0
    for text in texts:
        k, t = text["real"].shape
        stacked[start : start + k, :t] = text["features"]
        real[start : start + k, :t] = text["real"]
        start += k
    return stacked, real


def joint_log_odds(
    instance: Float[Tensor, "n c"], presence: Float[Tensor, "n 1"]
) -> Float[Tensor, "n c"]:
    """The log-odds of sigmoid(instance) * sigmoid(presence), safe where either is all but 0 or 1.

    With a and p for the two, 1 / (sigmoid(a) sigmoid(p)) - 1 = exp(-a) + exp(-p) + exp(-a - p).
    """
    terms = torch.broadcast_tensors(-instance, -presence, -instance - presence)
    return -torch.stack(terms).logsumexp(0)
