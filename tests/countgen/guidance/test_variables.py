"""Variables: where a climb begins, what the rows make, and that pictures do not mix."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_pipelines import sd3_folder, tiny
from torch import Tensor

from countgen import parse_prompt
from countgen.errors import UsageError
from countgen.guidance.base import Rows, Start, Variable, join, pick
from countgen.guidance.prompt_tokens import place_token
from countgen.guidance.variables import (
    CountToken,
    DirectNoise,
    LatentModifier,
    MeanLogVariance,
    embeddings_of,
)
from pipelines.adapter import DiffusersAdapter

PROMPTS = ("seven red apples", "two cats on grass")
VARIABLES: dict[str, Variable] = {
    "noise": DirectNoise(),
    "mean": MeanLogVariance(),
    "modifier": LatentModifier(hidden=8),
    "token": CountToken(),
    "token instead": CountToken(place="instead"),
}


@pytest.fixture(scope="module")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
    """Three text encoders."""
    return tiny("sd3.5-large-turbo", sd3_folder(tmp_path_factory.mktemp("sd3")))


def start(adapter: DiffusersAdapter, prompts: tuple[str, ...] = PROMPTS) -> Start:
    plan = adapter.plan(2)
    noise = adapter.noise([torch.Generator().manual_seed(i) for i in range(len(prompts))], plan)
    text = adapter.encode(prompts, plan)
    parsed = tuple(parse_prompt(prompt) for prompt in prompts)
    return Start(noise, text, parsed, tuple(range(5, 5 + len(prompts))), adapter, plan)


def picture(variable: Variable, rows: Rows, begin: Start) -> Tensor:
    return begin.adapter.render(*variable.apply(rows, begin), begin.plan)


def stirred(rows: Rows) -> Rows:
    generator = torch.Generator().manual_seed(3)
    return {
        name: row + 0.3 * torch.randn(row.shape, generator=generator) for name, row in rows.items()
    }


@pytest.mark.parametrize("name", ["noise", "mean", "modifier", "token instead"])
def test_a_climb_begins_with_the_plain_picture(name: str, tiny_sd: DiffusersAdapter) -> None:
    begin, variable = start(tiny_sd), VARIABLES[name]
    with torch.no_grad():
        plain = tiny_sd.render(begin.noise, begin.conditioning, begin.plan)
        found = picture(variable, variable.init(begin), begin)
        other = picture(variable, stirred(variable.init(begin)), begin)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    assert (other - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", VARIABLES)
def test_gradients_reach_all_rows_and_each_picture_has_its_own(
    name: str, tiny_sd: DiffusersAdapter
) -> None:
    begin, variable = start(tiny_sd), VARIABLES[name]
    leaves = {k: row.requires_grad_() for k, row in stirred(variable.init(begin)).items()}
    images = picture(variable, leaves, begin)
    grads = torch.autograd.grad(images[0].square().sum(), list(leaves.values()), retain_graph=True)
    for key, grad in zip(leaves, grads, strict=True):
        assert grad.shape == leaves[key].shape and len(grad) == 2
        assert grad[0].isfinite().all() and grad[0].abs().sum() > 0 and not grad[1].any(), key


@pytest.mark.parametrize("name", VARIABLES)
def test_a_batch_is_its_pictures_alone(name: str, tiny_sd: DiffusersAdapter) -> None:
    begin, variable = start(tiny_sd), VARIABLES[name]
    rows = variable.init(begin)
    singles = [start(tiny_sd, PROMPTS[i : i + 1]) for i in range(2)]
    singles[1] = replace(
        singles[1], seeds=(6,), noise=replace(begin.noise, latents=begin.noise.latents[1:])
    )
    alone = join([variable.init(single) for single in singles])
    for key, row in rows.items():
        assert torch.equal(row, alone[key])
    rows = stirred(rows)
    with torch.no_grad():
        together = picture(variable, rows, begin)
        apart = [picture(variable, pick(rows, i), single) for i, single in enumerate(singles)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)


def test_mean_and_log_variance_make_the_noise_of_initno(tiny_sd: DiffusersAdapter) -> None:
    begin, variable = start(tiny_sd), MeanLogVariance()
    rows = stirred(variable.init(begin))
    noise, text = variable.apply(rows, begin)
    # arXiv 2404.04650: noise * exp(logvar / 2) + mu
    expected = begin.noise.latents * torch.exp(0.5 * rows["log_variance"]) + rows["mean"]
    torch.testing.assert_close(noise.latents, expected)
    assert text is begin.conditioning and noise.step_noise is begin.noise.step_noise


@pytest.mark.parametrize("mix", [0.0, 0.2, 0.9])
def test_the_modifier_mixes_noise_and_network_at_the_noises_norm(
    mix: float, tiny_sd: DiffusersAdapter
) -> None:
    begin = start(tiny_sd)
    rows = stirred(LatentModifier(mix, hidden=8).init(begin))
    found = LatentModifier(mix, hidden=8).apply(rows, begin)[0].latents
    for i in range(2):
        noise = begin.noise.latents[i]
        state = noise.flatten()
        for layer in range(2):
            state = torch.nn.functional.silu(
                state @ rows[f"weight{layer}"][i] + rows[f"bias{layer}"][i]
            )
        mixed = mix * noise + (1 - mix) * (
            noise + (state @ rows["weight2"][i]).reshape(noise.shape)
        )
        expected = mixed * noise.norm() / mixed.norm()
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(rows["weight0"][0], rows["weight0"][1])
    with pytest.raises(UsageError, match=r"mix.*\[0, 1\)"):
        LatentModifier(mix=1.0)


# -- count tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "expected", "number"),
    [
        ("a photo of seven cats", "before", "a photo of <t> seven cats", "seven"),
        ("a photo of seven cats", "instead", "a photo of <t> cats", "seven"),
        ("7 cats", "instead", "<t> cats", "7"),
        ("Seven cats and two dogs", "before", "<t> Seven cats and two dogs", "Seven"),
        ("cats", "before", "<t> cats", ""),
    ],
)
def test_a_token_stands_at_the_number_of_the_first_target(
    text: str, place: Any, expected: str, number: str
) -> None:
    assert place_token(parse_prompt(text), "<t>", place) == (expected, number)


def test_a_number_that_is_not_in_the_text_has_the_token_first() -> None:
    prompt = parse_prompt("some cats", [("cat", 3)])
    assert place_token(prompt, "<t>", "instead") == ("<t> some cats", "")


def test_a_token_begins_with_the_words_embedding(tiny_sd: DiffusersAdapter) -> None:
    begin, pipe = start(tiny_sd), tiny_sd.pipeline
    table = pipe.text_encoder.get_input_embeddings().weight

    def embedding(word: str) -> Tensor:
        return table[pipe.tokenizer(word, add_special_tokens=False).input_ids].mean(0).detach()

    rows = CountToken(init_word="red").init(begin)
    assert list(rows) == ["token.0"] and rows["token.0"].shape == (2, 1, 16)
    assert torch.equal(rows["token.0"][0, 0], embedding("red"))
    instead = CountToken(place="instead").init(begin)["token.0"]
    assert torch.equal(instead[0, 0], embedding("seven"))
    assert torch.equal(instead[1, 0], embedding("two"))
    assert not torch.equal(embedding("seven"), embedding("two"))


def test_every_text_encoder_learns_its_own_token(tiny_sd3: DiffusersAdapter) -> None:
    begin, variable = start(tiny_sd3), CountToken(init_word="red")
    rows = variable.init(begin)
    assert {name: row.shape[-1] for name, row in rows.items()} == {
        "token.0": 16,
        "token.1": 16,
        "token.2": 40,
    }
    leaves = {name: row.requires_grad_() for name, row in rows.items()}
    images = picture(variable, leaves, begin)
    for grad in torch.autograd.grad(images.square().sum(), list(leaves.values())):
        assert grad.isfinite().all() and (grad.flatten(1).norm(dim=1) > 0).all()


def test_a_token_needs_a_text_encoder_and_a_word_that_is_something() -> None:
    for pipeline in (None, SimpleNamespace(unet=object())):
        with pytest.raises(UsageError, match=r"needs a text encoder.*noise or edit"):
            embeddings_of(pipeline, "some")


def test_a_word_that_is_nothing_to_the_tokenizer_is_refused(tiny_sd: DiffusersAdapter) -> None:
    with pytest.raises(UsageError, match="makes nothing of ''"):
        embeddings_of(tiny_sd.pipeline, "")
