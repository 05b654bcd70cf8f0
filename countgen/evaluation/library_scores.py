"""Picture quality as torchmetrics measures it: CLIPScore (2104.08718), and kernel distance (KID, 1801.01401).

Numbers that other reports have, too. They take all pictures of a method together; ``quality`` compares them
prompt by prompt, which needs fewer pictures.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from countgen._torchvision import hide_unloadable_torchvision, without_hidden_torchvision
from countgen.evaluation.quality import PLAIN, exact_plain
from countgen.evaluation.runs import Row, load_picture
from countgen.guidance.scores import ClipScore

hide_unloadable_torchvision()
with without_hidden_torchvision():
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.multimodal.clip_score import CLIPScore

LEAST = 8
"""Pictures on each side that a kernel distance needs."""
SUBSETS, SUBSET = 50, 100


class _Clip(nn.Module):
    """A CLIP as torchmetrics calls one; its embeddings are plain tensors."""

    def __init__(self, score: ClipScore) -> None:
        super().__init__()
        self.score, self.network = score, score.model
        self.config = score.model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.score.embed(pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # ``ClipScore`` reads whole texts; what came here are embeddings already, see ``_Processor``.
        return input_ids

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.score.embed(self.score.shrink(images))


class _Processor:
    """What prepares pictures and texts for ``_Clip``, as its CLIP was trained."""

    def __init__(self, score: ClipScore) -> None:
        self.score = score

    def __call__(
        self,
        text: Sequence[str] | None = None,
        images: Sequence[Tensor] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        if images is not None:
            return {"pixel_values": self.score.shrink(torch.stack(list(images)))}
        embedded = torch.stack([self.score.prepare(one) for one in text or ()])
        return {"input_ids": embedded, "attention_mask": torch.ones(len(embedded), 1)}


def library_scores(
    rows: Sequence[Row], run: Path, score: ClipScore, batch: int = 64
) -> dict[str, dict[str, float | None]]:
    """Of every method: ``clip_score``, the mean of 100 max(cosine, 0) over its pictures, and ``kid``.

    ``kid`` with ``kid_std`` is the kernel distance of a method's exact pictures from exact plain ones, on the
    CLIP's features of unit length, mean and deviation over random halves; None for fewer than ``LEAST``
    pictures on a side, and for plain methods.

    Raises:
        OSError: a picture that is missing or cannot be read.
    """
    clip = _Clip(score)
    reference = exact_plain(rows)
    out: dict[str, dict[str, float | None]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        # One process alone sums up: to wait for others would be for ever.
        fit = CLIPScore(cast(Any, lambda: (clip, _Processor(score))), sync_on_compute=False)
        for start in range(0, len(own), batch):
            part = own[start : start + batch]
            with torch.no_grad():
                pictures = [load_picture(run, row) for row in part]
                fit.update(pictures, [row["prompt"] for row in part])
        exact = [row for row in own if row["judge"] == row["wanted"]]
        kid = _kid(exact if method not in PLAIN else [], reference, run, clip, batch)
        out[method] = {"clip_score": round(float(fit.compute()), 3), **kid}
    return out


def _kid(
    exact: Sequence[Row], plain: Sequence[Row], run: Path, clip: _Clip, batch: int
) -> dict[str, float | None]:
    smaller = min(len(exact), len(plain))
    if smaller < LEAST:
        return {"kid": None, "kid_std": None}
    with warnings.catch_warnings():
        # It warns of the memory that all features take; these are of a small CLIP, and few.
        warnings.simplefilter("ignore")
        distance = KernelInceptionDistance(
            feature=clip,
            subsets=SUBSETS,
            subset_size=min(SUBSET, smaller // 2),
            normalize=True,
            sync_on_compute=False,
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # of the subsets
        for rows, real in ((plain, True), (exact, False)):
            for start in range(0, len(rows), batch):
                part = [load_picture(run, row) for row in rows[start : start + batch]]
                distance.update(torch.stack(part), real=real)
        mean, deviation = distance.compute()
    return {"kid": round(float(mean), 6), "kid_std": round(float(deviation), 6)}
