"""What the closed and the open models of the family say of every noun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from critics.base import Query, check_nouns
from critics.detectors.yolo.network import Letterbox, YoloNetwork
from critics.parts.guard import device_of
from critics.parts.queries import stack_classes, stack_text
from critics.parts.readout import Detections
from critics.parts.text import tokenize
from critics.parts.vocabulary import Vocabulary


@dataclass
class ClosedYolo:
    """The family's part of a ``critics.detectors.base.DetectionCritic``: one output a class.

    Attributes:
        side: in pixels, of the canvas that pictures are letterboxed to.
    """

    network: YoloNetwork
    vocabulary: Vocabulary
    side: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.vocabulary.prepare(nouns, "yolo")

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        classes, _ = stack_classes(queries, images.device)
        logits, boxes = _scores(self.network, self.side, images)
        index = classes[..., None].expand(-1, -1, logits.shape[-1])
        return Detections(logits.gather(1, index).float(), boxes)


@dataclass
class OpenYolo:
    """The same for models that are asked in words.

    Attributes:
        tokenizer: CLIP's.
        side: in pixels, of the canvas that pictures are letterboxed to.
    """

    network: YoloNetwork
    tokenizer: Any
    side: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode the nouns as they are; ``text["yolo"]`` is (n, d), of unit length.

        Raises:
            UnknownNounError: an empty noun, or one that is too long for the text encoder.
        """
        if not nouns:
            return Query((), text={"yolo": torch.zeros(0, self.network.width)})
        encoder: Any = self.network.text
        check_nouns(nouns)
        texts = [" ".join(noun.split()) for noun in nouns]
        length = encoder.config.max_position_embeddings
        ids, attended = tokenize(
            self.tokenizer, texts, nouns, length, device_of(encoder), full=True
        )
        found = encoder(input_ids=ids, attention_mask=attended).text_embeds
        return Query(tuple(nouns), text={"yolo": F.normalize(found, dim=-1)})

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Every cell is a candidate, for every noun.

        Raises:
            ValueError: a query that another critic prepared.
        """
        logits, boxes = _scores(
            self.network, self.side, images, self._stack(queries, images.device)
        )
        count = max((len(query.nouns) for query in queries), default=0)
        return Detections(logits[:, :count].float(), boxes)

    def _stack(self, queries: Sequence[Query], device: torch.device) -> Float[Tensor, "b k d"]:
        """The nouns' embeddings, at least one a query, padded to the longest query with its own first noun.

        YOLO-World's features look at the noun that fits each cell best: another noun, even one of zeros,
        would change them, and a repeated one does not.
        """
        count = max([1, *(len(query.nouns) for query in queries)])
        stacked = torch.zeros(len(queries), count, self.network.width, device=device)
        known = stack_text(queries, "yolo", device)
        for row, query, text in zip(stacked, queries, known, strict=True):
            if query.nouns:
                row[:] = text[0]
                row[: len(query.nouns)] = text[: len(query.nouns)]
        return stacked


def _scores(
    network: YoloNetwork, side: int, images: Tensor, text: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and, in pixels of the images, boxes."""
    letterbox = Letterbox.of(images.shape[-2], images.shape[-1], side, network.stride)
    dtype = next(network.model.parameters()).dtype
    logits, boxes = network(letterbox(images).to(dtype), None if text is None else text.to(dtype))
    return logits, letterbox.back(boxes, images)
