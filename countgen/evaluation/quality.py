"""Whether a method's pictures still look like the generator's, on features that no role uses.

The reference are *exact plain* pictures: what the generator draws by itself where it happens to be right.
They are compared with the exact pictures of a method on the prompts that have both, every prompt with the
same weight, so that neither harder prompts nor other counts pass for a difference in quality. Intervals
resample prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from countgen.errors import UsageError
from countgen.evaluation.runs import Row, group, load_picture
from countgen.evaluation.statistics import resamples
from countgen.guidance.methods import METHODS
from countgen.guidance.scores import ClipScore, clip_score, pocket_score

KEPT = 0.05
"""Something is kept where the 95% bound of the loss stays within this share."""
PLAIN = ("best-of-n", "none")
"""Methods whose pictures are plain draws: the generator's own, chosen but never changed."""


@dataclass(frozen=True)
class Looks:
    """Pictures of one prompt as a CLIP sees them.

    Attributes:
        features: (n, d), of unit length.
        fit: (n,) in [0, 1], of picture and text (``ClipScore``).
    """

    features: Float[ndarray, "n d"]
    fit: Float[ndarray, " n"]


def look(rows: Sequence[Row], run: Path, score: ClipScore, batch: int = 64) -> dict[str, Looks]:
    """The saved pictures of some rows, by prompt id.

    Raises:
        UsageError: rows without their prompt's text.
        OSError: a picture that is missing or cannot be read.
    """
    if any("prompt" not in row for row in rows):
        raise UsageError(f"the rows of {run} have no prompts, so their fit cannot be told")
    texts = {text: score.prepare(text) for text in sorted({row["prompt"] for row in rows})}
    seen: list[ndarray] = []
    fit: list[float] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with torch.no_grad():
            pixels = torch.cat([score.shrink(load_picture(run, row)[None]) for row in part])
            found = score.embed(pixels)
            fit += score.compare(found, [texts[row["prompt"]] for row in part]).tolist()
        seen.append(found.double().cpu().numpy())
    features = np.concatenate(seen)
    places = group(range(len(rows)), [row["id"] for row in rows])
    return {name: Looks(features[at], np.array(fit)[at]) for name, at in places.items()}


def exact_plain(rows: Iterable[Row]) -> list[Row]:
    """The reference: plain pictures that are exact for the judge, each draw once.

    Where a prompt's image was drawn both by ``best-of-n`` and by ``none``, they may be the same picture.
    """
    found: dict[tuple[str, int], Row] = {}
    for method in PLAIN:
        for row in rows:
            if row["method"] == method and row["judge"] == row["wanted"]:
                found.setdefault((row["id"], row["image"]), row)
    return list(found.values())


def check_unseen(methods: Iterable[str]) -> None:
    """Refuse methods that were guided by what the pictures are measured with.

    Raises:
        UsageError: a method with a semantic term, whose score is a CLIP.
    """
    for name in methods:
        if name in METHODS and METHODS[name].semantic:
            raise UsageError(
                f"{name} is guided by a CLIP, so its pictures cannot be measured with one; leave it out"
            )


def polynomial_kernel(
    first: Float[ndarray, "n d"], second: Float[ndarray, "m d"]
) -> Float[ndarray, "n m"]:
    """(x y + 1)^3, the kernel of KID (arXiv 1801.01401), of features of unit length."""
    return (first @ second.T + 1) ** 3


def kernel_distance(
    first: Mapping[str, Looks], second: Mapping[str, Looks], rounds: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Squared distance of the mean embeddings (MMD, arXiv 1801.01401), of pictures with the same prompts.

    The unbiased estimate over pairs of *different* prompts p and q, d_p being the difference of the two
    sides' mean embeddings of prompt p: mean of <d_p, d_q>. It needs one picture of a prompt only, and
    pictures that began with the same noise do not bias it. ``of_spread`` divides it by the variance of the
    second side's pictures of one prompt in the same embedding: 0.05 is a shift of 0.22 standard deviations.

    Args:
        first, second: pictures by prompt; those without a partner are left out.
        rounds, seed: of the bootstrap over prompts.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return {"n_prompts": len(shared), "value": None, "of_spread": None, "kept": None}
    products = _products(first, second, shared)
    spread = _spread([second[name].features for name in shared])
    picks = resamples(len(shared), rounds, seed)
    counts = np.stack([np.bincount(row, minlength=len(shared)) for row in picks])
    values = _off_diagonal_means(products, counts)
    value = float(_off_diagonal_means(products, np.ones((1, len(shared)), int))[0])
    low, high = np.nanpercentile(values, (2.5, 97.5))
    out: dict[str, Any] = {
        "n_prompts": len(shared),
        "value": round(value, 6),
        "value_ci95": [round(float(low), 6), round(float(high), 6)],
        "of_spread": None,
        "kept": None,
    }
    if spread:
        out["of_spread"] = round(value / spread, 4)
        out["of_spread_ci95"] = [round(float(x / spread), 4) for x in (low, high)]
        out["kept"] = bool(high / spread < KEPT)
    return out


def _products(
    first: Mapping[str, Looks], second: Mapping[str, Looks], names: Sequence[str]
) -> Float[ndarray, "p p"]:
    """<d_p, d_q> of all pairs of prompts, with d_p = mean embedding of the first minus that of the second."""
    features = np.concatenate([side[name].features for name in names for side in (first, second)])
    weights = np.zeros((len(names), len(features)))
    place = 0
    for p, name in enumerate(names):
        for sign, side in ((1, first), (-1, second)):
            size = len(side[name].features)
            weights[p, place : place + size] = sign / size
            place += size
    return weights @ polynomial_kernel(features, features) @ weights.T


def _off_diagonal_means(
    products: Float[ndarray, "p p"], counts: ndarray
) -> Float[ndarray, " rounds"]:
    """Means over pairs of different prompts, each as often as it was picked."""
    off = products - np.diag(np.diag(products))
    sums = np.einsum("rp,pq,rq->r", counts, off, counts, optimize=True)
    pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
    return sums / np.where(pairs > 0, pairs, np.nan)


def _spread(prompts: Sequence[Float[ndarray, "_ d"]]) -> float | None:
    """Variance of one prompt's pictures in the kernel's embedding; None where none has two."""
    found = []
    for features in prompts:
        n = len(features)
        if n > 1:
            kernel = polynomial_kernel(features, features)
            found.append((n * np.trace(kernel) - kernel.sum()) / (n * (n - 1)))
    return float(np.mean(found)) or None if found else None


def mean_pairwise_distance(features: Float[ndarray, "n d"]) -> float:
    """Mean of 1 - cosine over pairs of a prompt's pictures, in [0, 2]; there must be two."""
    n = len(features)
    return float((n * n - (features @ features.T).sum()) / (n * (n - 1)))


def compare(first: Mapping[str, Looks], plain: Mapping[str, Looks]) -> dict[str, Any]:
    """A method's pictures against plain ones: kernel distance, diversity and fit, each kept or not."""
    both = sorted(first.keys() & plain.keys())
    several = [n for n in both if min(len(first[n].features), len(plain[n].features)) > 1]
    distances = [
        (mean_pairwise_distance(first[n].features), mean_pairwise_distance(plain[n].features))
        for n in several
    ]
    fits = [(float(first[n].fit.mean()), float(plain[n].fit.mean())) for n in both]
    return {
        "n_images": sum(len(first[n].features) for n in both),
        "n_plain": sum(len(plain[n].features) for n in both),
        "kernel_distance": kernel_distance(first, plain),
        "diversity": _change("mean_pairwise_distance", distances),
        "fit": _change("clip_score", fits),
    }


def _change(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """A mean over prompts, the plain pictures' one, and the relative difference with its 95% interval."""
    if not pairs:
        return {"n_prompts": 0, name: None, "plain": None, "change": None, "kept": None}
    values = np.array(pairs)
    means = values[resamples(len(pairs))].mean(1)
    low, high = np.percentile(means[:, 0] / means[:, 1] - 1, (2.5, 97.5))
    mean, plain = values.mean(0)
    return {
        "n_prompts": len(pairs),
        name: round(float(mean), 4),
        "plain": round(float(plain), 4),
        "change": round(float(mean / plain - 1), 4),
        "change_ci95": [round(float(low), 4), round(float(high), 4)],
        "kept": bool(low > -KEPT),
    }


def quality(rows: Sequence[Row], run: Path, score: ClipScore) -> dict[str, dict[str, Any]]:
    """For every method but the plain ones, its exact pictures against exact plain pictures.

    Args:
        rows: judged, of all methods, the plain ones among them.

    Raises:
        UsageError: a method that was guided by a CLIP, or no exact plain picture.
    """
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name not in PLAIN]
    check_unseen(methods)
    reference = exact_plain(rows)
    if not reference:
        raise UsageError(
            f"no plain picture of {run} is exact, so there is nothing to compare with; evaluate "
            f"{' or '.join(PLAIN)} on the same prompts"
        )
    plain = look(reference, run, score)
    out: dict[str, dict[str, Any]] = {}
    for method in methods:
        exact = [row for row in rows if row["method"] == method and row["judge"] == row["wanted"]]
        out[method] = compare(look(exact, run, score) if exact else {}, plain)
    return out


def measured(
    rows: Sequence[Row], run: Path, model: str, clip: str | None = None
) -> dict[str, dict[str, Any]] | str:
    """The quality of every method of a run, or in a sentence why there is none.

    Every method has ``clip_score``, ``kid`` and ``kid_std`` where torchmetrics is installed
    (``library_scores``), and the others than plain ones what ``quality`` says.

    Args:
        rows: judged, of all methods of the run.
        model: the generator; pocket brings a CLIP of its own.
        clip: name or folder of another CLIP.
    """
    if clip is None and model != "pocket":
        return "Not measured, since no CLIP was named: --clip openai/clip-vit-base-patch32, or a folder."
    score = clip_score(clip) if clip else pocket_score()
    found: dict[str, dict[str, Any]] = {}
    try:
        found = quality(rows, run, score)
        try:
            from countgen.evaluation.library_scores import library_scores
        except ImportError:
            return found
        scores = library_scores(rows, run, score)
    except (UsageError, OSError) as error:
        return f"Not measured: {error}."
    return {method: scores[method] | found.get(method, {}) for method in scores}
