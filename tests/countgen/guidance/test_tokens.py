"""Count tokens that several pictures share: fitted, saved, loaded, and applied elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from countgen import CountGuidedPipeline, parse_prompt
from countgen.errors import UsageError
from countgen.guidance.optimizers import Adam
from countgen.guidance.tokens import FORMAT, VARIABLE, FitState, LearnedToken, fit_token
from pipelines.adapter import DiffusersAdapter
from pipelines.tokens import text_encoders, widths

PROMPTS = [parse_prompt("a photo of seven cats"), parse_prompt("seven cups on grass")]


@pytest.fixture(scope="module")
def fitted(loaded_pocket: CountGuidedPipeline) -> tuple[LearnedToken, list[FitState]]:
    states: list[FitState] = []
    token = fit_token(
        loaded_pocket,
        PROMPTS,
        variable=replace(VARIABLE, place="instead"),
        optimizer=Adam(lr=0.1),
        steps=5,
        num_images_per_prompt=2,
        seed=1,
        progress=states.append,
    )
    return token, states


def test_a_fit_keeps_the_token_of_the_least_loss(
    fitted: tuple[LearnedToken, list[FitState]],
) -> None:
    token, states = fitted
    losses = [state.loss for state in states]
    assert len(losses) == 5 and token.about["loss"] == min(losses) and len(set(losses)) > 1
    for state in states:
        assert state.wanted == ((7,),) * 4 and [len(row) for row in state.soft] == [1] * 4
        off = [abs(row[0] - 7) for row in state.soft]
        assert state.loss == pytest.approx(sum(off) / 4, rel=1e-5)


def test_instead_of_its_number_a_token_begins_as_the_number(
    tiny_sd: DiffusersAdapter, loaded_pocket: CountGuidedPipeline
) -> None:
    """Of one step, hence untouched: the text is the plain one."""
    pipeline = CountGuidedPipeline(tiny_sd, loaded_pocket.critic, guidance="none")
    prompt, variable = parse_prompt("seven cats"), replace(VARIABLE, place="instead")
    token = fit_token(pipeline, [prompt], variable=variable, steps=1, num_images_per_prompt=1)
    plain = tiny_sd.encode([prompt.text], tiny_sd.plan())
    own = tiny_sd.encode([token.placed(prompt)], tiny_sd.plan(), token.for_adapter(tiny_sd))
    torch.testing.assert_close(own.hidden, plain.hidden, atol=1e-6, rtol=0)


def test_a_token_is_applied_to_other_nouns_and_seeds(
    pocket: CountGuidedPipeline, fitted: tuple[LearnedToken, list[FitState]]
) -> None:
    options = {"guidance": "none", "output_type": "pt", "num_images_per_prompt": 2, "seed": 9}
    vectors = {name: vector + 0.3 for name, vector in fitted[0].vectors.items()}
    token = replace(fitted[0], vectors=vectors)
    plain = pocket("seven dogs on the road", **options)
    other = pocket("seven dogs on the road", token=token, **options)
    assert (plain.images - other.images).abs().max() > 0.01
    assert not other.cost.backwards and other.cost.forwards["text_encoder"] == 1


def test_what_is_saved_is_loaded_and_is_a_textual_inversion(
    fitted: tuple[LearnedToken, list[FitState]], tmp_path: Path
) -> None:
    token, path = fitted[0], tmp_path / "seven.safetensors"
    token.save(path)
    again = LearnedToken.load(path)
    assert (again.token, again.place, again.about) == (token.token, token.place, token.about)
    assert torch.equal(again.vectors["text_encoder_2"], token.vectors["text_encoder_2"])
    state = load_file(path)
    assert list(state) == ["<count>"]  # what Diffusers reads of a file with one encoder


def test_diffusers_draws_the_same_with_the_saved_token(
    tiny_sd: DiffusersAdapter, tmp_path: Path
) -> None:
    """Through ``load_textual_inversion`` of the pipeline itself."""
    (width,), ((_, encoder),) = widths(tiny_sd.pipeline), text_encoders(tiny_sd.pipeline)
    generator = torch.Generator().manual_seed(5)
    vector = 0.1 * torch.randn(1, width, generator=generator)
    token = LearnedToken("<count>", {encoder: vector})
    token.save(tmp_path / "token.safetensors")
    prompt = parse_prompt("seven red apples")
    plan = tiny_sd.plan()
    ours = tiny_sd.encode([token.placed(prompt)], plan, token.for_adapter(tiny_sd)).hidden
    import copy

    theirs = copy.deepcopy(tiny_sd.pipeline)
    theirs.load_textual_inversion(tmp_path / "token.safetensors")
    hidden, _ = theirs.encode_prompt(token.placed(prompt), "cpu", 1, False)
    torch.testing.assert_close(ours, hidden, atol=1e-5, rtol=1e-4)


def test_a_token_of_another_model_is_refused(
    tiny_sd: DiffusersAdapter, fitted: tuple[LearnedToken, list[FitState]]
) -> None:
    with pytest.raises(UsageError, match="learned for text encoders of the widths"):
        fitted[0].for_adapter(tiny_sd)


@pytest.mark.parametrize("kind", ["missing", "text", "other"])
def test_what_is_no_token_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "token.safetensors"
    if kind == "text":
        path.write_text("no token")
    if kind == "other":
        save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match=r"token\.safetensors.*token file"):
        LearnedToken.load(path)


GOOD: dict[str, Any] = {
    "format": FORMAT,
    "token": "<count>",
    "place": "before",
    "encoders": ["text_encoder"],
    "about": {},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders": None}, "damaged"),
        ({"encoders": []}, "damaged"),
        ({"encoders": "text_encoder"}, "damaged"),
        ({"encoders": ["text_encoder", "text_encoder_2"]}, "damaged"),
        ({"token": "<other>"}, "damaged"),
        ({"token": 3}, "damaged"),
        ({"token": None}, "damaged"),
        ({"place": "behind"}, "damaged"),
        ({"format": "countgen-token-2"}, "no token file"),
    ],
)
def test_a_token_file_that_says_something_else_than_it_holds_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path, rows = tmp_path / "token.safetensors", {"<count>": torch.zeros(1, 8)}
    save_file(rows, path, {"countgen": json.dumps(GOOD)})
    assert LearnedToken.load(path).token == "<count>"
    save_file(rows, path, {"countgen": json.dumps(GOOD | changes)})
    with pytest.raises(UsageError, match=message):
        LearnedToken.load(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(8), "damaged"),
        (torch.zeros(0, 8), "damaged"),
        (torch.zeros(1, 8, dtype=torch.int64), "damaged"),
        (torch.full((1, 8), torch.nan), "no finite numbers"),
    ],
)
def test_embeddings_that_are_none_are_refused(rows: Tensor, message: str, tmp_path: Path) -> None:
    path = tmp_path / "token.safetensors"
    save_file({"<count>": rows}, path, {"countgen": json.dumps(GOOD)})
    with pytest.raises(UsageError, match=message):
        LearnedToken.load(path)


def test_a_token_has_a_name(pocket: CountGuidedPipeline) -> None:
    with pytest.raises(UsageError, match="needs a name"):
        LearnedToken(" ", {})
    with pytest.raises(UsageError, match="needs a name"):
        fit_token(pocket, PROMPTS, token="")


def test_a_fit_needs_numbers_and_steps(pocket: CountGuidedPipeline) -> None:
    with pytest.raises(UsageError, match="ask for a number"):
        fit_token(pocket, [parse_prompt("cats on grass")])
    with pytest.raises(UsageError, match="at least one step"):
        fit_token(pocket, PROMPTS, steps=0)
