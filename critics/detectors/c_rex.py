"""Counting what an expression refers to: centroids in tokens of the picture that have read the expression.

After C-REX (arXiv 2505.22850), of which only the abstract is public: a detector of centroids in place of
boxes, trained with supervised contrastive learning among image tokens alone, where tokens of one expression
are positives and everything else in the batch is a negative. This is a reconstruction: network, sizes,
targets and weights of the terms are ours; the contrastive loss is L_out of Khosla et al. (arXiv
2004.11362).

The network is small and trained from scratch, on words of a closed list; nobody's published weights load
here. What tells left from right is that tokens know where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query, UnknownNounError, check_nouns, look_up
from critics.detectors.base import DetectionCritic
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError, Config
from critics.loading.settings import global_settings_kept
from critics.parts.convnet import Pyramid, Residual, conv, normalise, resize
from critics.parts.queries import noun_mask, stack_text
from critics.parts.readout import Detections, ReadOut, join_pairs

CARDS = {
    "c-rex": CriticCard(
        name="c-rex",
        family="c-rex",
        summary="centroids of what an expression refers to, such as dogs on the left; a reconstruction from "
        "the abstract, of a closed list of words",
        license_code="Apache-2.0",
        license_weights="as its training data; none are published",
        input_size=64,
        citation="after C-REX, arXiv 2505.22850",
    )
}
STRIDE = 4
LONGEST = 12
"""Most words of an expression."""
_KIND = "c-rex"
_CURE = "Train one with countgen learn counter --family c-rex; none are published."
_WORD = re.compile(r"[^\W\d_]+|\d+")


def words(expression: str) -> list[str]:
    """The words of an expression in lower case.

    >>> words("The dogs, on the LEFT")
    ['the', 'dogs', 'on', 'the', 'left']
    """
    return _WORD.findall(expression.lower())


class ReferNetwork(nn.Module):
    """Tokens of a picture, one each 4x4 pixels, that have read an expression.

    Args:
        entries: number of known words.
        width: channels of a token.
        embedding: dimensions of the space in which tokens are contrasted.
    """

    def __init__(self, entries: int, width: int = 64, embedding: int = 32) -> None:
        super().__init__()
        self.width, self.embedding = width, embedding
        self.body = Pyramid((32, 64, 96), (0, 1, 2), width, first=2, stop=1)
        self.places = nn.Conv2d(width + 2, width, 1)
        self.entries = nn.Embedding(entries + 1, width, padding_idx=0)
        self.order = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        self.reader = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width)
        )
        self.scale, self.shift = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.mix = nn.Sequential(conv(width, width), Residual(width))
        self.logits = nn.Conv2d(width, 1, 1)
        self.offsets = nn.Conv2d(width, 2, 1)
        self.project = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, embedding)
        )
        assert self.logits.bias is not None
        # A prior of one in a hundred, so that the many empty cells do not swamp the first steps.
        nn.init.constant_(self.logits.bias, -4.6)

    def see(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
        """Tokens of pictures in [0, 1], which know where they are and nothing of an expression yet."""
        features = self.body(normalise(images))
        rows, columns = (
            torch.linspace(-1, 1, n, device=images.device) for n in features.shape[-2:]
        )
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).to(features)
        return self.places(torch.cat([features, grid.expand(len(features), -1, -1, -1)], 1))

    def read(self, ids: Int64[Tensor, "p n"]) -> Float[Tensor, "p d"]:
        """What expressions say; words by number from 1, padded with 0."""
        there = (ids > 0)[..., None]
        read = self.reader(self.entries(ids) + self.order[: ids.shape[1]])
        return (read * there).sum(1) / there.sum(1).clamp_min(1)

    def refer(
        self, tokens: Float[Tensor, "p c h w"], said: Float[Tensor, "p d"]
    ) -> Float[Tensor, "p c h w"]:
        """Tokens that have read an expression, one expression each."""
        scale, shift = self.scale(said)[..., None, None], self.shift(said)[..., None, None]
        return self.mix(F.silu(tokens * (1 + scale) + shift))

    def detect(
        self, tokens: Float[Tensor, "p c h w"]
    ) -> tuple[Float[Tensor, "p h w"], Float[Tensor, "p 2 h w"]]:
        """Log-odds that a centroid lies in each cell, and how far it is from the cell's centre in cells."""
        return self.logits(tokens)[:, 0], 0.5 * torch.tanh(self.offsets(tokens))

    def contrasted(self, tokens: Float[Tensor, "t c"]) -> Float[Tensor, "t d"]:
        """Unit vectors in which tokens are contrasted."""
        return F.normalize(self.project(tokens), dim=-1)


def supervised_contrastive_loss(
    embeds: Float[Tensor, "t d"], labels: Int64[Tensor, " t"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """L_out of Khosla et al. (arXiv 2004.11362, eq. 2), mean over the anchors that have a positive.

    -1/|P(i)| sum_{p in P(i)} log [exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)], where P(i) are the other
    tokens with the label of i.

    Args:
        embeds: unit vectors.
        labels: of their expressions; -1 for what is a negative of everything and no anchor.
    """
    logits = embeds @ embeds.T / temperature
    itself = torch.eye(len(embeds), dtype=torch.bool, device=embeds.device)
    share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positive: Bool[Tensor, "t t"] = (labels[:, None] == labels) & ~itself & (labels >= 0)[:, None]
    count = positive.sum(1)
    each = torch.where(positive, share, 0.0).sum(1) / count.clamp_min(1)
    return -each.sum() / (count > 0).sum().clamp_min(1)


@dataclass
class Referrer:
    """The family's part of a ``DetectionCritic``.

    Attributes:
        known: the words it has learned, in the order of their numbers from 1.
        side: in pixels, of the square that the network sees.
    """

    network: ReferNetwork
    known: tuple[str, ...]
    side: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode expressions: ``text["said"]``, (k, d).

        Raises:
            UnknownNounError: an empty one, one that is too long, or a word that was not learned.
        """
        check_nouns(nouns)
        ids = self.numbered(nouns)
        device = self.network.order.device
        if not nouns:
            return Query((), text={"said": torch.zeros(0, 2 * self.network.width, device=device)})
        return Query(tuple(nouns), text={"said": self.network.read(ids.to(device)).float()})

    def numbered(self, expressions: Sequence[str]) -> Int64[Tensor, "p n"]:
        """The words of expressions by number."""
        ids = torch.zeros(len(expressions), LONGEST, dtype=torch.int64)
        for row, expression in zip(ids, expressions, strict=True):
            said = words(expression)
            if not said or len(said) > LONGEST:
                raise UnknownNounError(
                    f"{expression[:60]!r} has {len(said)} words; c-rex reads one to {LONGEST}"
                )
            row[: len(said)] = look_up(said, self.known, "c-rex").classes + 1
        return ids

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        mask = noun_mask(queries, images.device)
        said = stack_text(queries, "said", images.device)
        rows, columns = mask.nonzero(as_tuple=True)
        kind = self.network.order.dtype
        tokens = self.network.see(resize(images, self.side).to(kind))[rows]
        logits, offsets = self.network.detect(
            self.network.refer(tokens, said[rows, columns].to(kind))
        )
        logits = logits.float()
        # What is no number stays a peak, so that the read-out can tell of it.
        peaks = ~(logits < F.max_pool2d(logits.detach()[:, None], 3, 1, 1)[:, 0])
        marked = logits.masked_fill(~peaks, -torch.inf).flatten(1)
        scale = images.new_tensor([images.shape[-1], images.shape[-2]] * 2).float() / self.side
        return join_pairs(marked, _boxes(offsets.detach().float()) * scale, mask)


def _boxes(offsets: Float[Tensor, "p 2 h w"]) -> Float[Tensor, "p c 4"]:
    """A cell around each centroid, in pixels of the square: extents are not learned."""
    rows, columns = (torch.arange(n, device=offsets.device) + 0.5 for n in offsets.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = (torch.stack([x, y]) + offsets) * STRIDE
    boxes = torch.cat([centres - STRIDE, centres + STRIDE], 1)
    return boxes.flatten(2).transpose(1, 2)


def critic(
    network: ReferNetwork, known: tuple[str, ...], side: int, threshold: float
) -> DetectionCritic:
    """A network as a critic, as it was trained."""
    card = CARDS["c-rex"].of(network, input_size=side)
    return DetectionCritic(Referrer(network, known, side), card, ReadOut(threshold, None, limit=64))


def save(
    folder: Path,
    network: ReferNetwork,
    known: Sequence[str],
    side: int,
    threshold: float,
    half: bool = True,
) -> None:
    """Write a trained network so that ``load`` reads it."""
    config = {"kind": _KIND, "words": list(known), "width": network.width}
    config |= {"embedding": network.embedding, "side": side, "threshold": threshold}
    checkpoint.save(folder, config, network, half)


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    threshold: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> DetectionCritic:
    """A referring counter from a folder that ``save`` wrote.

    Args:
        threshold: probability above which a centroid counts; the folder's if None.
        dtype: of the network; counts are float32 in any case.

    Raises:
        CheckpointError: no folder, or files that are missing, damaged or do not fit.
        ValueError: a threshold outside (0, 1).
    """
    if source is None:
        raise CheckpointError(f"{name} has no published weights; name a folder. {_CURE}")
    network, config = checkpoint.load_network(Path(source), _KIND, _network, _CURE)
    known, side = config.get("words", tuple[str, ...]), config.get("side", int)
    stored = config.get("threshold", float)
    found = config.build(lambda: critic(network.to(dtype), known, side, stored))
    return found if threshold is None else found.with_settings(threshold=threshold)


def _network(config: Config) -> ReferNetwork:
    side = config.get("side", int)
    if side < 16 or side % 8:
        raise ValueError(f"a side of {side} pixels does not have whole tokens")
    entries = len(config.get("words", tuple[str, ...]))
    return ReferNetwork(entries, config.get("width", int), config.get("embedding", int))
