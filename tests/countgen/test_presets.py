"""Names become generators and counters, and what cannot be is refused by name before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from countgen import presets
from countgen.errors import UsageError
from countgen.options import DrawOptions
from critics.base import UnknownNounError


def test_every_preset_has_a_card_and_three_families_of_counters() -> None:
    names = [preset.name for preset in presets.presets()]
    assert names[0] == "pocket" and "sdxl-turbo" in names and len(set(names)) == len(names)
    for preset in presets.presets():
        card = preset.card()
        assert card is not None and card.name == preset.name
        found = preset.roles()
        assert set(found) == {"critic", "verifier", "judge"}
        assert len({presets.counter_card(name).family for name in found.values()}) == 3


@pytest.mark.parametrize(
    ("nouns", "verifier"),
    [
        ((), "mm-grounding-dino"),
        (("cat",), "rt-detrv2"),
        (("cat", "teddy bear"), "rt-detrv2"),
        (("cat", "red apple"), "mm-grounding-dino"),
    ],
)
def test_the_verifier_of_real_models_is_one_that_sees_the_nouns(
    nouns: tuple[str, ...], verifier: str
) -> None:
    assert presets.roles("sdxl-turbo", nouns)["verifier"] == verifier
    assert presets.roles("pocket", nouns)["verifier"] == "pocket-density"


@pytest.mark.parametrize("name", ["pockett", "pocket ", "POCKET", "sdxl-turb", "", "nothing"])
def test_a_name_that_no_preset_has_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match="no model") as refusal:
        presets.find_preset(name)
    near = {"pockett": "mean pocket", "pocket ": "mean pocket", "sdxl-turb": "mean sdxl-turbo"}
    assert near.get(name, "there are") in str(refusal.value).replace("There", "there")


def test_hub_ids_and_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    assert presets.find_preset("someone/model").name == "someone/model"
    assert presets.find_preset(tmp_path).card() is None
    with pytest.raises(UsageError, match="no folder"):
        presets.find_preset(tmp_path / "nowhere")


def test_a_counters_card_is_read_without_loading_it_and_is_that_of_the_counter() -> None:
    for name in presets.EMBEDDED["pocket"].counters:
        assert presets.counter_card(name) == presets.load_critic(name).card
    with pytest.raises(UsageError, match="pocket-density"):
        presets.counter_card("pocket-densty")
    assert presets.counter_card("detr=some/checkpoint").vocabulary is None


def test_counters_that_cannot_do_it_are_refused_by_their_cards() -> None:
    pocket = presets.roles("pocket")
    presets.check_counters(pocket, ["cat"], "noise")
    with pytest.raises(UnknownNounError, match="unicorn"):
        presets.check_counters(pocket, ["unicorn"], "noise")
    swapped = {"critic": "pocket-density", "verifier": "pocket-detector-a"}
    with pytest.raises(UsageError, match="reno"):
        presets.check_counters(swapped, ["cat"], "noise")
    for method in ("reno", "best-of-n", "none"):
        presets.check_counters(swapped, ["cat"], method)


@pytest.mark.parametrize(
    ("text", "word"),
    [("", "empty"), ("\n\t", "empty"), ("-3 cats", "negative"), ("9000 cats", "too many")],
)
def test_prompts_that_cannot_be_are_refused(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        presets.read_prompt(text)


def test_a_prompt_is_parsed_once_with_notes_and_given_targets_win() -> None:
    prompt = presets.read_prompt("cats by moonlight", preset=presets.find_preset("pocket"))
    assert any("no count" in note for note in prompt.notes)
    assert any("moonlight" in note for note in prompt.notes)
    assert presets.read_prompt("minus 3 degrees", [("cat", 2)]).targets[0].count == 2
    with pytest.raises(UsageError, match="twice"):
        presets.read_prompt("cats", [("cat", 1), ("cat", 2)])
    with pytest.raises(UsageError, match="30 objects"):
        presets.read_prompt("thirty cats", preset=presets.find_preset("pocket"))


@pytest.mark.parametrize("device", ["cdua", "", "cuda:99", "meta", "cpu:x", "xla"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="cpu"):
        presets.check_device(device)


def test_the_cpu_is_always_there() -> None:
    assert presets.check_device("cpu") == "cpu"
    assert presets.load_generator("pocket", memory="low").memory.name == "low"
    for options in ({"dtype": "float16"}, {"tiny_decoder": "x/y"}, {"colour": 1}):
        with pytest.raises(UsageError, match=next(iter(options))):
            presets.load_generator("pocket", **options)


def test_options_are_in_their_ranges_or_refused() -> None:
    assert DrawOptions().checked() == DrawOptions()
    for options in (
        {"num_images_per_prompt": 10**23},
        {"budget": float("nan")},
        {"budget": 1e300},
        {"height": 100_000},
        {"width": -1},
        {"num_inference_steps": 0},
        {"guidance_scale": float("inf")},
        {"seed": 2**63},
        {"batch_size": 0},
    ):
        with pytest.raises(UsageError):
            DrawOptions(**options).checked()


LOADS = """
import countgen, sys
before = "torchvision" in sys.modules
{first}
from countgen import CountGuidedPipeline
CountGuidedPipeline.from_pretrained("pocket")
print(before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import transformers, diffusers", "import countgen.pocket"])
def test_a_model_is_loaded_whatever_torchvision_there_is(first: str, tmp_path: Path) -> None:
    """Also in a notebook that has imported the libraries before, and ``import countgen`` changes nothing."""
    code = LOADS.format(first=first)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "False\n"
