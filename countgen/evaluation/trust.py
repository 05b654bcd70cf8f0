"""How sure a verified picture is: the probability that a judge whom nobody asked counts the same.

Two counters that agree are not always right, and a picture that was kept after forty tries less often than
one after two, for every try is another chance to fool both. The probability is a logistic regression on what
is known when a picture is finished, fitted on judged runs whose prompts are not reported. It holds for one
generator with one critic and one verifier; without a fit for them there is no number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from countgen.errors import UsageError

if TYPE_CHECKING:
    from countgen.engine.job import Job
    from countgen.evaluation.runs import Row

SCHEMA = 1
FEATURES = ("critic", "verifier", "tries", "kinds")
"""Log-odds of the two confidences, and the logarithms of how many looks and nouns there were."""
ENOUGH = 50
"""Verified pictures that a fit needs at least."""
BINS = 5
"""Groups of equally many pictures in a reliability curve."""
_EMBEDDED = {"pocket": Path(__file__).parents[1] / "pocket" / "trust.json"}


@dataclass(frozen=True)
class Trust:
    """A fit.

    Attributes:
        generator, critic, verifier, judge: names of what it holds for.
        centre, scale, weights: one value a feature.
        pictures: verified ones that it was fitted on, and ``agreed``, the share that the judge confirmed.
        note: where they came from.
    """

    generator: str
    critic: str
    verifier: str
    judge: str
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    pictures: int
    agreed: float
    note: str = ""

    def probabilities(self, features: Float[ndarray, "n 4"]) -> Float[ndarray, " n"]:
        """That the judge agrees, of verified pictures."""
        standard = (features - np.array(self.centre)) / np.array(self.scale)
        return 1 / (1 + np.exp(-(standard @ np.array(self.weights) + self.intercept)))

    def of_job(self, job: Job) -> float | None:
        """Of a finished picture; None where it is not verified."""
        if not job.verified or job.best is None:
            return None
        record, kinds = job.best.record, len(job.request.wanted)
        features = _features(record.confidence, record.verifier_confidence, len(job.records), kinds)
        return float(self.probabilities(np.array([features]))[0])

    def write(self, path: Path) -> None:
        """Save it as JSON."""
        from countgen.files import write

        text = json.dumps({"schema": SCHEMA, "features": FEATURES, **asdict(self)}, indent=1)
        write(path, text.encode() + b"\n", replace=True)

    @classmethod
    def read(cls, path: Path) -> Trust:
        """A saved fit.

        Raises:
            UsageError: no fit, a damaged one, or one of another version.
            OSError: the file cannot be opened.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("schema") != SCHEMA or tuple(found.pop("features")) != FEATURES:
                raise UsageError(f"{path} was fitted by another version; fit it again")
            vectors = {
                name: tuple(map(float, found[name])) for name in ("centre", "scale", "weights")
            }
            if any(len(vector) != len(FEATURES) for vector in vectors.values()):
                raise ValueError("a vector of another length")
            return cls(**found | vectors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is no fit of countgen trust ({error})") from None


def find_trust(generator: str, critic: str, verifier: str | None) -> Trust | None:
    """The fit that comes with countgen for these; None where there is none."""
    path = _EMBEDDED.get(generator)
    if path is None or not path.is_file():
        return None
    found = Trust.read(path)
    return found if (found.critic, found.verifier) == (critic, verifier) else None


def fit(rows: Sequence[Row], names: dict[str, str], note: str = "", penalty: float = 1.0) -> Trust:
    """Fit the verified pictures among some judged rows, by penalised maximum likelihood.

    Args:
        names: of generator, critic, verifier and judge.
        penalty: half of it times the square of each standardised weight is added to the loss, so that few
            disagreements do not make strong claims.

    Raises:
        UsageError: too few verified pictures, none that the judge disagrees with, or rows without what is
            needed.
    """
    from scipy.optimize import minimize

    features, agreed = _verified(rows)
    if len(agreed) < ENOUGH or agreed.all() or not agreed.any():
        raise UsageError(
            f"a fit needs at least {ENOUGH} verified pictures, some of which the judge counts otherwise; "
            f"here are {len(agreed)}, of which {int((~agreed).sum())}; evaluate more prompts or seeds"
        )
    centre, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    standard, signs = (features - centre) / scale, np.where(agreed, 1.0, -1.0)

    def loss(theta: ndarray) -> tuple[float, ndarray]:
        margins = signs * (standard @ theta[:-1] + theta[-1])
        slopes = -signs / (1 + np.exp(margins))
        gradient = np.append(standard.T @ slopes + penalty * theta[:-1], slopes.sum())
        value = np.logaddexp(0, -margins).sum() + penalty / 2 * (theta[:-1] ** 2).sum()
        return float(value), gradient

    start = np.append(np.zeros(len(FEATURES)), math.log(agreed.mean() / (1 - agreed.mean())))
    theta = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return Trust(
        **names,
        centre=tuple(map(float, centre)),
        scale=tuple(map(float, scale)),
        weights=tuple(map(float, theta[:-1])),
        intercept=float(theta[-1]),
        pictures=len(agreed),
        agreed=float(agreed.mean()),
        note=note,
    )


def with_trust(trust: Trust, rows: Sequence[Row]) -> list[Row]:
    """The rows, the verified ones among them with "trust", what is promised of them.

    Rows of older versions, which lack what is needed, stay as they are.
    """
    out = []
    for row in rows:
        try:
            sure = trust.probabilities(np.array([_features_of(row)])) if row["verified"] else None
        except KeyError:
            sure = None
        out.append(row if sure is None else row | {"trust": round(float(sure[0]), 4)})
    return out


def reliability(trust: Trust, rows: Sequence[Row], bins: int = BINS) -> dict[str, Any]:
    """What a fit promises of the verified pictures among some rows, and what the judge says: ``calibration``.

    Raises:
        UsageError: no verified picture, or rows without what is needed.
    """
    features, agreed = _verified(rows)
    if not len(agreed):
        raise UsageError("there is no verified picture to check the fit on")
    return calibration(trust.probabilities(features), agreed, bins)


def calibration(
    promised: Float[ndarray, " n"], agreed: Bool[ndarray, " n"], bins: int = BINS
) -> dict[str, Any]:
    """Probabilities against what came of them: expected calibration error, Brier score and curve.

    The curve has groups of equally many pictures, ordered by their probability: its mean, the share that
    the judge confirms, and that share's 95% interval. The error is the mean distance of the two.
    """
    from countgen.evaluation.statistics import wilson

    order = np.argsort(promised, kind="stable")
    curve, error = [], 0.0
    for part in np.array_split(order, min(bins, len(order))):
        share, mean = float(agreed[part].mean()), float(promised[part].mean())
        error += len(part) / len(order) * abs(share - mean)
        interval = wilson(int(agreed[part].sum()), len(part))
        curve.append(
            {
                "promised": round(mean, 4),
                "confirmed": round(share, 4),
                "confirmed_ci95": [round(x, 4) for x in interval],
                "pictures": len(part),
            }
        )
    return {
        "pictures": len(agreed),
        "promised": round(float(promised.mean()), 4),
        "confirmed": round(float(agreed.mean()), 4),
        "calibration_error": round(error, 4),
        "brier": round(float(((promised - agreed) ** 2).mean()), 4),
        "curve": curve,
    }


def told(probability: float) -> str:
    """For people; never "100%", which nothing here is."""
    return f"{min(99, math.floor(100 * probability + 0.5))}% sure"


def _features(critic: float, verifier: float, tries: int, kinds: int) -> tuple[float, ...]:
    def odds(confidence: float) -> float:
        clear = min(max(confidence, 0.01), 0.999)
        return math.log(clear / (1 - clear))

    return (
        odds(critic),
        odds(verifier),
        math.log(max(tries, 1)),
        math.log(max(kinds, 1)),
    )


def _features_of(row: Row) -> tuple[float, ...]:
    sure = row["confidence"]
    return _features(sure["critic"], sure["verifier"], row["tries"], len(row["wanted"]))


def _verified(rows: Sequence[Row]) -> tuple[Float[ndarray, "n 4"], ndarray]:
    """Features of the verified pictures, and whether the judge agrees."""
    from countgen.evaluation.metrics import is_exact

    found = [row for row in rows if row["verified"]]
    try:
        features = [_features_of(row) for row in found]
    except KeyError as error:
        raise UsageError(
            f"rows without {error} were written by an older version; evaluate again"
        ) from None
    if any(row.get("judge") is None for row in found):
        raise UsageError("these pictures were not judged; evaluate them with --judge")
    agreed = np.array([is_exact(row) for row in found], dtype=bool)
    return np.array(features, dtype=float).reshape(-1, len(FEATURES)), agreed
