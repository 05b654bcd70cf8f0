"""Closed vocabularies: from the labels of a checkpoint's config to the nouns that it can be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from critics.base import Query, look_up

_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports
ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine
glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
vase, scissors, teddy bear, hair drier, toothbrush
"""
COCO = tuple(name.strip() for name in _COCO.replace("\n", " ").split(","))
"""The 80 object categories of COCO (arXiv 1405.0312) in their order, as the data set spells them."""
PEOPLE = ("person", "people", "human")
"""What counters of crowds count; all three nouns mean the same count."""


@dataclass(frozen=True)
class Vocabulary:
    """The nouns of a closed-vocabulary network, and which of its outputs belongs to each.

    Attributes:
        names: lower case, single spaces.
        outputs: position of each name's class among the network's outputs.
    """

    names: tuple[str, ...]
    outputs: tuple[int, ...]

    @classmethod
    def from_labels(cls, labels: Mapping[int, str]) -> Vocabulary:
        """From a config's ``id2label``.

        COCO's numbering has gaps, and some checkpoints keep an output, named N/A, for each of them: those
        are no nouns. Where two outputs share a name, the first one has it.
        """
        found: dict[str, int] = {}
        for output, label in sorted((int(key), label) for key, label in labels.items()):
            name = " ".join(str(label).lower().replace("_", " ").split())
            if name and name != "n/a":
                found.setdefault(name, output)
        return cls(tuple(found), tuple(found.values()))

    def prepare(self, nouns: Sequence[str], critic: str) -> Query:
        """A query whose ``classes`` are positions among the network's outputs.

        Raises:
            critics.base.UnknownNounError: naming the nearest nouns that the critic knows.
        """
        query = look_up(nouns, self.names, critic)
        return Query(query.nouns, torch.tensor(self.outputs, dtype=torch.int64)[query.classes])
