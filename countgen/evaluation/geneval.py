"""GenEval's rules of counting and presence, without its colours and places (Ghosh et al., arXiv 2310.11513).

A detection counts if its score is above 0.9 where the prompt asks for a number (the tag ``counting``), and
above 0.3 elsewhere; the 16 strongest of a class at most. A picture is right if it has at least as many of
every included class as the prompt asks for, and fewer of every excluded one than stands there: for a number N
its records exclude N + 1, so that exactly N are right. Boxes of one class that overlap by ``max_overlap`` or
more would be one, but by default none are. Prompts with a colour or a place need a classifier of colours, and
are left out by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from critics.parts.vocabulary import COCO

COUNTING = "counting"
COCO_NAMES = {"computer keyboard": "keyboard", "computer mouse": "mouse", "tv remote": "remote"}
"""Classes that GenEval calls otherwise than COCO does, for counters that know COCO's names alone."""
_NOT_SCORED = ("color", "position")


@dataclass(frozen=True)
class Rules:
    """Which detections count.

    Attributes:
        threshold, counting_threshold: that a score must be above, without and with the tag ``counting``.
        max_objects: the strongest of a class that are considered.
        max_overlap: intersection over union from which on a weaker box is the same object; 1 for never.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0

    def select(
        self, boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], tag: str
    ) -> Int[np.ndarray, " k"]:
        """The detections of one class that count, the strongest first, as indices.

        Args:
            boxes: x0, y0, x1, y1 in pixels.
            scores: in [0, 1].
        """
        least = self.counting_threshold if tag == COUNTING else self.threshold
        order = np.argsort(-scores, kind="stable")
        left = order[scores[order] > least][: self.max_objects]
        if self.max_overlap == 1:
            return left
        kept: list[int] = []
        while len(left):
            first, left = left[0], left[1:]
            kept.append(int(first))
            left = left[_overlaps(boxes[first], boxes[left]) < self.max_overlap]
        return np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is what its prompt asks for; the reasons, a line each, where it is not."""

    correct: bool
    reasons: tuple[str, ...] = ()


def class_of(noun: str) -> str | None:
    """What GenEval calls a noun; None for what it has no class for: its classes are COCO's 80."""
    own = {known: name for name, known in COCO_NAMES.items()}
    known = " ".join(noun.lower().split())
    known = COCO_NAMES.get(known, known)
    return own.get(known, known) if known in COCO else None


def is_scored(metadata: Mapping[str, Any]) -> bool:
    """Whether the rules here can tell: no clause asks for a colour or a place."""
    return not any(key in clause for clause in metadata.get("include", ()) for key in _NOT_SCORED)


def verdict(counts: Mapping[str, int], metadata: Mapping[str, Any]) -> Verdict:
    """Judge a picture by how many of each class were found in it.

    Raises:
        ValueError: a prompt with a colour or a place.
    """
    if not is_scored(metadata):
        raise ValueError("prompts with a colour or a place are not judged by counts")
    reasons = [
        f"expected {clause['class']}>={clause['count']}, found {counts.get(clause['class'], 0)}"
        for clause in metadata.get("include", ())
        if counts.get(clause["class"], 0) < clause["count"]
    ]
    reasons += [
        f"expected {clause['class']}<{clause['count']}, found {counts.get(clause['class'], 0)}"
        for clause in metadata.get("exclude", ())
        if counts.get(clause["class"], 0) >= clause["count"]
    ]
    return Verdict(not reasons, tuple(reasons))


def summary(judged: Sequence[tuple[Mapping[str, Any], bool | None]]) -> dict[str, Any]:
    """Shares of right pictures by tag, and their mean over tags, which is GenEval's overall score.

    Args:
        judged: the record of each picture, and whether it is right; None where that is not scored.
    """
    tags: dict[str, list[bool]] = {}
    left_out: dict[str, int] = {}
    for metadata, correct in judged:
        tag = str(metadata.get("tag", ""))
        if correct is None:
            left_out[tag] = left_out.get(tag, 0) + 1
        else:
            tags.setdefault(tag, []).append(correct)
    shares = {
        tag: {"correct": round(sum(found) / len(found), 4), "n": len(found)}
        for tag, found in tags.items()
    }
    out: dict[str, Any] = {"tags": shares, "left_out": left_out}
    if shares:
        exact = [sum(found) / len(found) for found in tags.values()]
        out["overall"] = round(sum(exact) / len(exact), 5)
    return out


def _overlaps(
    box: Float[np.ndarray, " 4"], others: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
    """Intersection over union of a box with others, whose edges are whole pixels that belong to them."""

    def area(b: np.ndarray) -> np.ndarray:
        return (b[..., 2:] - b[..., :2] + 1).clip(0).prod(-1)

    both = area(
        np.concatenate([np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])], -1)
    )
    union = area(box) + area(others) - both
    return np.where(union > 0, both / np.maximum(union, 1e-9), 0.0)
