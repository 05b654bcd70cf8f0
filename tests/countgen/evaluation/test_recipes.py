"""Recipes say what a published protocol is, can be met as they stand, and run on the embedded model."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from countgen.cli import main
from countgen.errors import UsageError
from countgen.evaluation.recipes import PromptRule, load_recipe, recipe_names
from countgen.evaluation.runner import evaluate
from countgen.evaluation.suites import find_prompts
from countgen.guidance.methods import find_method
from countgen.presets import check_counters, counter_card, find_preset, read_prompt

NAMES = ("athena", "count-token", "d2d", "geneval-counting", "make-it-count")


def test_there_are_the_published_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(recipe_names()) == NAMES
    assert main(["list", "recipes", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)["items"]
    assert [card["name"] for card in cards] == list(NAMES)
    for card in cards:
        assert card["prompts"] >= 80 and card["models"] and card["differs"] and card["metrics"]
        assert "arXiv" in card["source"]
    with pytest.raises(UsageError, match="did you mean geneval-counting"):
        load_recipe("geneval")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_met(name: str) -> None:
    """Its models and methods exist, its counters are of families apart and see its nouns."""
    recipe = load_recipe(name)
    prompts = list(recipe.rule)
    assert prompts == list(recipe.prompts()) and len({p.id for p in prompts}) == len(prompts)
    nouns = sorted({target.noun for prompt in prompts for target in prompt.targets})
    for model in recipe.models:
        find_preset(model.name)
    names = {"critic": recipe.critic, "verifier": recipe.verifier}
    assert None not in names.values()
    for method in recipe.methods:
        find_method(method)
        check_counters(names, nouns, method)
    cards = [counter_card(n) for n in (*names.values(), *recipe.judges)]
    families = [family for card in cards for family in card.families]
    assert len(set(families)) == len(families), families
    first = cards[2]
    assert first.vocabulary is None or set(nouns) <= set(first.vocabulary)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_say_what_they_want(name: str) -> None:
    for recipe in (load_recipe(name), load_recipe(name).stand_in()):
        preset = find_preset(recipe.models[0].name)
        for prompt in recipe.rule:
            found = read_prompt(prompt.prompt, None, preset).targets
            ((noun, count),) = prompt.wanted
            assert [target.count for target in found] == [count], prompt
            said = found[0].noun
            assert said == noun or (noun in ("remote", "keyboard") and said.endswith(noun)), prompt


def test_geneval_asks_for_its_own_classes_in_its_own_words() -> None:
    prompts = {prompt.prompt: prompt.wanted for prompt in load_recipe("geneval-counting").rule}
    assert Counter(count for ((_, count),) in prompts.values()) == {2: 26, 3: 28, 4: 26}
    assert len({noun for ((noun, _),) in prompts.values()}) == 62
    assert prompts["a photo of three computer keyboards"] == (("keyboard", 3),)
    assert prompts["a photo of four benchs"] == (("bench", 4),)
    assert prompts["a photo of two wine glasses"] == (("wine glass", 2),)


def test_rules_draw_shares_and_say_nothing_twice() -> None:
    rule = load_recipe("make-it-count").rule
    prompts = list(rule)
    assert len(prompts) == 200 and prompts == list(rule)
    counts = Counter(count for prompt in prompts for _, count in prompt.wanted)
    assert counts == {2: 34, 3: 34, 4: 33, 5: 33, 7: 33, 10: 33}
    nouns = Counter(noun for prompt in prompts for noun, _ in prompt.wanted)
    assert set(nouns.values()) == {10} and len(nouns) == 20
    scenes = Counter(
        prompt.prompt.split(" on the ")[-1] for prompt in prompts if " on the " in prompt.prompt
    )
    assert scenes == {"grass": 39, "road": 37, "ground": 23}
    assert len({prompt.prompt for prompt in prompts}) > 190
    assert [p.prompt for p in dataclasses.replace(rule, seed=2)] != [p.prompt for p in rule]
    every = list(load_recipe("count-token").rule)
    assert len(every) == 475 == len({prompt.wanted for prompt in every})
    assert every[5].prompt == "A photo of 6 apples"
    odd = PromptRule(
        "{number} {nouns}", plural="s", plurals={"bus": "buses"}, nouns=("bus", "box"), counts=(2,)
    )
    assert [prompt.prompt for prompt in odd] == ["two buses", "two boxs"]


def test_settings_are_a_run_of_each_model(tmp_path: Path) -> None:
    recipe = load_recipe("athena")
    runs = list(recipe.settings(tmp_path, limit=5))
    assert [run.model for run in runs] == [model.name for model in recipe.models]
    assert len({run.out for run in runs}) == 3
    assert all(run.out.parent == tmp_path and run.limit == 5 for run in runs)
    first = runs[0]
    assert (first.counters.critic, first.counters.verifier, first.judge) == (
        "grounding-dino", "owlv2", "sam3"
    )  # fmt: skip
    assert (first.draw.num_inference_steps, first.draw.guidance_scale, first.draw.height) == (
        50,
        5.0,
        1024,
    )
    listed = [(p.prompt, p.wanted) for p in find_prompts(first.prompts)]
    assert listed == [(p.prompt, p.wanted) for p in recipe.rule]
    (other,) = recipe.on("black-forest-labs/FLUX.1-dev").settings(tmp_path, prompts="low-density")
    assert other.draw.guidance_scale == 3.5 and other.prompts == "low-density"
    (stranger,) = recipe.on("sd-turbo").settings(tmp_path)
    assert stranger.model == "sd-turbo" and stranger.draw.num_inference_steps is None
    assert recipe.on(None) == recipe and recipe.on("pocket") == recipe.stand_in()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_on_the_embedded_model(tmp_path: Path, name: str) -> None:
    recipe = dataclasses.replace(load_recipe(name).on("pocket"), budget=3.0, images=1)
    (settings,) = recipe.settings(tmp_path, limit=1)
    outcome = evaluate(settings, Console(file=StringIO()), lambda text: None)
    assert outcome.failed == 0 and outcome.document is not None
    assert set(outcome.document["methods"]) == set(recipe.methods)
    assert outcome.document["n_prompts"] == 1
    for found in outcome.document["methods"].values():
        assert 0 <= found["judge"]["exact"] <= 1 and found["judge"]["mae"] is not None


@pytest.mark.slow
def test_a_recipe_runs_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On pocket, in one command; one JSON document for all its models."""
    out = tmp_path / "run"
    command = ["evaluate", "--recipe", "geneval-counting", "--model", "pocket", "--limit", "1"]
    assert main([*command, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"] == "geneval-counting"
    assert document["models"]["pocket"]["n_prompts"] == 1
    assert (out / "pocket" / "report.html").exists()


def test_prompts_pictures_or_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--out", "run"]) == 2
    assert "--recipe" in capsys.readouterr().err
    assert main(["evaluate", "--recipe", "geneva", "--out", "run"]) == 2
    assert "geneval-counting" in capsys.readouterr().err
