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
from critics.detectors.base import DetectionCritic
from critics.loading.hub import load_model, load_tokenizer, resolve_source
from critics.loading.settings import global_settings_kept
from critics.parts.guard import device_of
from critics.parts.preprocess import normalise, resize
from critics.parts.queries import check_text, noun_mask
from critics.parts.readout import Detections, ReadOut, join_pairs
from critics.parts.text import tokenize

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


READ_OUT = ReadOut(threshold=0.5)
"""Of a query's score; not tuned for counting."""


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> DetectionCritic:
    """SAM 3 as a critic.

    Args:
        name: a key of ``CARDS``.
        source: hub id or local folder with weights and tokenizer; by default the card's, which is gated.
            The weights may be those of the video model, whose detector is taken.
        revision: of the hub's repository.
        dtype: of the weights; counts are float32 whatever it is.
        settings: of the read-out, in place of those in ``READ_OUT``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: parts that are missing, gated, damaged or of another model.
    """
    from transformers import AutoTokenizer, Sam3Model

    read_out = READ_OUT.changed(**settings)
    source, hub = resolve_source(CARDS[name], source, revision, local_files_only)
    network = load_model(Sam3Model, source, dtype=dtype, **hub)
    entries = network.config.text_config.vocab_size
    tokenizer = load_tokenizer(AutoTokenizer, source, entries, **hub)
    return DetectionCritic(Sam3(network, tokenizer), CARDS[name], read_out)


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
            UnknownNounError: an empty noun, or one that is too long for the text encoder.
        """
        check_nouns(nouns)
        if not nouns:
            empty = torch.zeros(0, 1, dtype=torch.bool)
            return Query((), text={"features": torch.zeros(0, 1, 1), "real": empty})
        most = self.network.config.text_config.max_position_embeddings
        ids, attended = tokenize(self.tokenizer, nouns, nouns, most, device_of(self.network))
        encoded = self.network.get_text_features(input_ids=ids, attention_mask=attended)
        return Query(
            tuple(nouns), text={"features": encoded.pooler_output, "real": attended.bool().cpu()}
        )

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Candidates are the queries of every noun in turn; those of one noun can be no other."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        check_text(queries, "real")
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
