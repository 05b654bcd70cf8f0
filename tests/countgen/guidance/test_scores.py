"""Scores of picture and text: what CLIP says, with gradient, as a term beside the count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from countgen import CountGuidedPipeline
from countgen.engine.policy import DrawThenImprove
from countgen.guidance.methods import find_method
from countgen.guidance.scores import ClipScore, pocket_score
from critics.parts.preprocess import resize


@pytest.fixture(scope="module")
def score() -> ClipScore:
    return pocket_score()


def test_a_score_is_the_cosine_of_clips_own_embeddings(score: ClipScore) -> None:
    images = torch.rand(2, 3, 64, 64)
    texts = [score.prepare("two stars"), score.prepare("seven red apples")]
    side = score.model.config.vision_config.image_size
    pixels = 2 * resize(images, (side, side), "bicubic") - 1
    length = score.model.config.text_config.max_position_embeddings
    tokens = score.tokenizer(
        ["two stars", "seven red apples"],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    with torch.no_grad():
        out = score.model(input_ids=tokens.input_ids, pixel_values=pixels)
        found = score(images, texts)
    expected = (1 + (out.image_embeds * out.text_embeds).sum(-1)) / 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert ((found >= 0) & (found <= 1)).all()


def test_it_prefers_the_text_of_the_picture_and_has_a_gradient(
    score: ClipScore, pocket: CountGuidedPipeline
) -> None:
    images = pocket(["four stars", "four dogs on grass"], guidance="none", output_type="pt").images
    leaf = images.clone().requires_grad_()
    texts = [score.prepare("four stars"), score.prepare("four dogs on grass")]
    right = score(leaf, texts)
    wrong = score(leaf, texts[::-1])
    assert (right > wrong).all()
    (grad,) = torch.autograd.grad(right[0], leaf)
    assert grad[0].abs().sum() > 0 and not grad[1].any()


def test_a_semantic_term_is_part_of_the_objective_and_paid_for(
    score: ClipScore, pocket: CountGuidedPipeline
) -> None:
    plain = replace(find_method("noise"), policy=DrawThenImprove(draws=0, steps=1, candidates=1))
    pipeline = CountGuidedPipeline(
        pocket.adapter, pocket.critic, pocket.verifier, replace(plain, semantic=3.0), score
    )
    with_score = pipeline("eleven dogs", seed=1, budget=8)
    without = pipeline("eleven dogs", seed=1, budget=8, guidance=plain)
    one, two = with_score.history[0][0], without.history[0][0]
    assert without.jobs[0].plain is not None
    fits = score(without.jobs[0].plain.image[None], [score.prepare("eleven dogs")]).item()
    assert one.loss == pytest.approx(two.loss + 3.0 * (1 - fits), rel=1e-4)
    assert with_score.cost.forwards["score"] == len(with_score.history[0])
    assert with_score.cost.backwards["score"] == 1 and "score" not in without.cost.forwards
    assert one.pre > two.pre
