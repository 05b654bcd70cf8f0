"""When a picture is verified: critic and verifier count exactly what is wanted, and both are clear.

What search finds are pictures at the edge of a counter's judgement: two objects run into one, a half of one
at the border. The critic looks at such a picture once more in the mirror, where nothing that counts has
changed: a count that does not hold there is not clear.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.engine.cost import Passes
from countgen.engine.job import Job, Observation
from critics.base import CountEstimate, Critic

_SIDE = re.compile(r"\b(left|right)(most|hand)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Verification:
    """Asks both counters about pictures.

    Attributes:
        critic: the one that steers.
        verifier: of another family; without one the critic alone decides.
    """

    critic: Critic
    verifier: Critic | None

    def passes(self, job: Job) -> Passes:
        """What one picture that the critic counts exactly goes through."""
        asked = Counter[str]()
        if is_mirrored(job):
            asked["critic"] = 1
        if self.verifier is not None:
            asked["verifier"] = 1
        return Passes(asked)

    def __call__(
        self, seen: Sequence[Observation], jobs: Sequence[Job], device: torch.device | str
    ) -> list[Observation]:
        """The pictures with the critic's second look, where it counted exactly, and the verifier's word."""
        if not seen:
            return []
        with torch.inference_mode(False), torch.no_grad():
            images = torch.stack([one.image for one in seen]).to(device)
            seen = self._mirrored(images, seen, jobs)
            if self.verifier is None:
                return [self._judged(one) for one in seen]
            queries = [job.request.queries["verifier"] for job in jobs]
            estimate = self.verifier(images, queries)
        hard, clear = estimate.hard.tolist(), lowest_confidence(estimate)
        told = []
        for one, job, row, confidence in zip(seen, jobs, hard, clear, strict=True):
            counts = tuple(row[: len(job.request.wanted)])
            error = distance(counts, job.request.wanted)
            record = replace(
                one.record,
                verifier=counts,
                verifier_confidence=confidence,
                verifier_error=error,
            )
            told.append(self._judged(replace(one, record=record)))
        return told

    def _mirrored(
        self, images: Float[Tensor, "b 3 h w"], seen: Sequence[Observation], jobs: Sequence[Job]
    ) -> list[Observation]:
        """With the mean confidence of both looks; 0 where the mirror image has another count."""
        out = list(seen)
        places = [i for i, one in enumerate(seen) if one.record.error == 0 and is_mirrored(jobs[i])]
        if not places:
            return out
        queries = [jobs[i].request.queries["critic"] for i in places]
        estimate = self.critic(images[places].flip(-1), queries)
        hard, clear = estimate.hard.tolist(), lowest_confidence(estimate)
        for i, row, confidence in zip(places, hard, clear, strict=True):
            wanted, record = jobs[i].request.wanted, out[i].record
            same = tuple(row[: len(wanted)]) == wanted
            mean = (record.confidence + confidence) / 2 if same else 0.0
            out[i] = replace(out[i], record=replace(record, confidence=mean))
        return out

    def _judged(self, seen: Observation) -> Observation:
        record = seen.record
        exact = record.error == 0 and record.confidence >= self.critic.card.min_confidence
        if self.verifier is not None:
            exact &= record.verifier_error == 0
            exact &= record.verifier_confidence >= self.verifier.card.min_confidence
        return replace(seen, record=replace(record, exact=exact))


def is_mirrored(job: Job) -> bool:
    """Whether a picture's mirror image has the same counts: no noun names a side."""
    return bool(job.request.wanted) and not any(map(_SIDE.search, job.request.nouns))


def lowest_confidence(estimate: CountEstimate) -> list[float]:
    """Of every image the confidence of its least clear noun; 1 where nothing is counted."""
    clear = estimate.confidence
    return clear.amin(-1).tolist() if clear.shape[-1] else [1.0] * len(clear)


def distance(counts: Sequence[int], wanted: Sequence[int]) -> int:
    """Sum over the nouns of the distances from what is wanted."""
    return sum(abs(a - b) for a, b in zip(counts, wanted, strict=True))
