"""What is verified: both counters count exactly and clearly, and the critic in the mirror, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from countgen.engine.job import Job, Observation, Request
from countgen.engine.verification import Verification, is_mirrored
from countgen.prompts import CountPrompt, CountTarget
from critics.base import CriticCard, Query
from critics.density.base import DensityCritic
from pipelines.base import Noise
from tests.hand_made import noun, record


class Dots:
    """Counts single white pixels from a column on: one that begins later misses the dots at the left."""

    network = torch.nn.Identity()

    def __init__(self, begin: int) -> None:
        self.begin = begin

    def prepare(self, nouns: Sequence[str]) -> Query:
        return Query(tuple(nouns))

    def density(self, images: Tensor, queries: Sequence[Query]) -> Tensor:
        seen = images[:, :1] * (torch.arange(images.shape[-1]) >= self.begin)
        return seen.expand(-1, max(len(query.nouns) for query in queries), -1, -1)


def critic(begin: int, family: str = "dots") -> Any:
    card = CriticCard(family, family, "white dots", "MIT", "MIT", 16)
    return DensityCritic(Dots(begin), card)


def picture(*columns: int) -> Tensor:
    image = torch.zeros(3, 16, 16)
    image[:, 8, list(columns)] = 1
    return image


def job(noun_: str = "dot", wanted: int = 3) -> Job:
    prompt = CountPrompt("dots", (CountTarget(noun_, wanted),))
    queries = {role: Query((noun_,)) for role in ("critic", "verifier")}
    return Job(Request(0, prompt, 0, queries, lambda number: Noise(torch.zeros(1)), 0, 8.0))


def seen(image: Tensor, counted: int, wanted: int = 3) -> Observation:
    found = record(0, noun(wanted, counted), confidence=0.8)
    return Observation(found, image, (16, 16), Noise(torch.zeros(1, 1, 4, 4)), None, None, None)


class TestVerification:
    def test_both_counters_agree_and_the_mirror_image_has_the_same_count(self) -> None:
        (told,) = Verification(critic(0), critic(0, "others"))(
            [seen(picture(3, 7, 12), 3)], [job()], "cpu"
        )
        assert told.record.exact and told.record.verifier == (3,)
        assert told.record.confidence == pytest.approx((0.8 + 1.0) / 2, abs=0.1)

    def test_a_count_that_only_holds_on_one_side_is_not_clear(self) -> None:
        # The dot in the first column is missed as it is, and counted in the mirror.
        one_sided = Verification(critic(2), critic(2, "others"))
        (told,) = one_sided([seen(picture(0, 4, 8, 12), 3)], [job()], "cpu")
        assert told.record.verifier == (3,)
        assert not told.record.exact and told.record.confidence == 0
        (still,) = one_sided([seen(picture(4, 8, 12), 3)], [job()], "cpu")
        assert still.record.exact

    def test_nouns_that_name_a_side_are_not_mirrored(self) -> None:
        for name in ("dot on the left", "Leftmost dot", "right-hand dot"):
            asked = job(name)
            assert not is_mirrored(asked)
            found = Verification(critic(2), critic(2, "others"))
            (told,) = found([seen(picture(0, 4, 8, 12), 3)], [asked], "cpu")
            assert told.record.exact and told.record.confidence == pytest.approx(0.8)
            assert found.passes(asked).forwards == {"verifier": 1}
        assert is_mirrored(job("bright dot"))
        assert Verification(critic(2), None).passes(job()).forwards == {"critic": 1}

    def test_what_the_critic_does_not_count_exactly_is_never_verified(self) -> None:
        (told,) = Verification(critic(0), critic(0, "others"))(
            [seen(picture(3, 7, 12), 2)], [job()], "cpu"
        )
        assert not told.record.exact and told.record.verifier == (3,)

    def test_without_a_verifier_the_critic_decides(self) -> None:
        alone = Verification(critic(2), None)
        told = alone(
            [seen(picture(4, 8, 12), 3), seen(picture(0, 4, 8, 12), 3)], [job(), job()], "cpu"
        )
        assert [one.record.exact for one in told] == [True, False]
        assert alone([], [], "cpu") == []
