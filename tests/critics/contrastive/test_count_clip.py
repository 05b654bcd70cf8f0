"""Count-aware CLIP: the contract, the library's own logits, the loss as published, captions."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from critic_contract import CriticContract, HubContract, TokenizerContract, noise
from letter_tokenizer import letters
from torch import Tensor

from critics.base import Critic, UnknownNounError
from critics.contrastive.count_clip import (
    CountClip,
    counting_contrastive_loss,
    expected_number,
    number_captions,
    plural,
    save_settings,
)
from critics.loading.checkpoint import CheckpointError
from critics.parts.preprocess import CLIP, normalise, resize
from critics.registry import card, load_critic


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP as the hub lays it out."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    tokenizer = letters()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = sizes | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 40,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config=text,
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    place = tmp_path_factory.mktemp("count-clip")
    CLIPModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def critic(folder: Path) -> Critic:
    return load_critic("count-clip", folder)


class TestCountClip(CriticContract):
    nouns = ("cat", "dog", "red apple")

    def test_it_says_no_number_but_two_to_ten(self, critic: Critic) -> None:
        query = critic.prepare(self.nouns)
        found = critic(self.images(4), [query] * 4)
        assert ((found.soft >= 2) & (found.soft <= 10)).all()
        assert ((found.hard >= 2) & (found.hard <= 10)).all()


class TestLoading(HubContract, TokenizerContract):
    @pytest.fixture
    def saved(self, folder: Path) -> tuple[str, Path]:
        return "count-clip", folder


def test_the_counts_are_those_of_the_librarys_logits(critic: Critic, folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = noise(3, 3, 32, 32)
    words = "two three four five six seven eight nine ten"
    captions = [f"{word} red apples" for word in words.split()]
    with torch.no_grad():
        logits = model(
            **tokenizer(captions, padding=True, return_tensors="pt"),
            pixel_values=normalise(images, CLIP),
        ).logits_per_image
    found = critic(images, [critic.prepare(["red apple"])] * 3)
    expected = (logits.softmax(-1) * torch.arange(2.0, 11.0)).sum(-1)
    torch.testing.assert_close(found.soft[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.hard[:, 0], logits.argmax(-1) + 2)


def test_preprocessing_is_the_librarys_but_for_the_crop(folder: Path) -> None:
    """Exactly where nothing is resized; a resized square up to two 8-bit steps, since PIL rounds."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    bytes_ = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(bytes_[:8, :8]).resize((96, 96), Image.Resampling.BICUBIC))
    for picture, tolerance in ((bytes_, 1e-4), (smooth, 2 / 255 / min(CLIP[1]))):
        reference = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        images = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        mine = normalise(resize(images, (32, 32), "bicubic"), CLIP)
        torch.testing.assert_close(mine, reference, rtol=0, atol=tolerance)


def test_the_whole_picture_is_seen_whatever_its_shape(critic: Critic) -> None:
    images = noise(1, 3, 32, 96).requires_grad_()
    critic(images, [critic.prepare(["cat"])]).soft.sum().backward()
    assert images.grad is not None
    # A centre crop would leave the outer thirds without a gradient.
    assert (images.grad.abs().sum((0, 1, 2)) > 0).all()


def test_the_expectation_passes_gradcheck_and_is_steady() -> None:
    logits = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(expected_number, (logits,))
    assert expected_number(torch.zeros(9)).item() == pytest.approx(6)
    sure = torch.zeros(9)
    sure[5] = 1e4
    assert expected_number(sure).item() == 7


def test_a_higher_temperature_flattens_the_softmax(folder: Path) -> None:
    images = noise(1, 3, 32, 32)
    flat = load_critic("count-clip", folder, temperature=1e6)
    assert flat(images, [flat.prepare(["cat"])]).soft.item() == pytest.approx(6, abs=1e-3)
    with pytest.raises(ValueError, match="must be positive"):
        load_critic("count-clip", folder, temperature=0)


def test_half_precision_weights_count_in_float32(folder: Path) -> None:
    critic = load_critic("count-clip", folder, dtype=torch.bfloat16)
    images = noise(1, 3, 32, 32).requires_grad_()
    found = critic(images, [critic.prepare(["cat"])])
    found.soft.sum().backward()
    assert found.soft.dtype == torch.float32
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_text_is_encoded_once_and_no_noun_is_cut_short(critic: Critic) -> None:
    assert isinstance(critic, CountClip)
    query = critic.prepare(["cat", "dog"])
    assert query.text["captions"].shape == (2, 9, 16)
    norms = query.text["captions"].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(2, 9))
    with pytest.raises(UnknownNounError, match="too long"):
        critic.prepare(["x" * 200])


@pytest.mark.parametrize("count", [1, 5])
def test_the_loss_is_the_published_formula(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    image, text, wrong = torch.randn(3, count, 4, generator=draw, dtype=torch.float64)
    expected = 0.0
    for i, t, c in zip(image.tolist(), text.tolist(), wrong.tolist(), strict=True):
        right = math.exp(sum(a * b for a, b in zip(i, t, strict=True)))
        other = math.exp(sum(a * b for a, b in zip(i, c, strict=True)))
        expected -= math.log(right / (right + other)) / count
    assert counting_contrastive_loss(image, text, wrong).item() == pytest.approx(expected)
    inputs = tuple(x.requires_grad_() for x in (image.clone(), text.clone(), wrong.clone()))
    assert torch.autograd.gradcheck(counting_contrastive_loss, inputs)


def test_the_loss_survives_large_scales_and_is_a_coin_toss_for_equal_captions() -> None:
    ones = torch.ones(2, 3)
    assert counting_contrastive_loss(ones, ones, ones).item() == pytest.approx(math.log(2))
    far = counting_contrastive_loss(ones * 1e3, ones, -ones)
    assert far.item() == 0 and torch.isfinite(counting_contrastive_loss(ones * 1e3, -ones, ones))


def test_training_on_the_loss_teaches_the_text_encoder_numbers(folder: Path) -> None:
    """A few steps on a tiny model: right captions move closer to their image than wrong ones."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    captions = ["two cats", "three cats", "five cats", "nine cats"]
    wrong = ["eight cats", "two cats", "ten cats", "three cats"]
    images = noise(4, 3, 32, 32)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)

    def loss() -> Tensor:
        seen = model.get_image_features(pixel_values=images).pooler_output
        said = [
            model.get_text_features(**tokenizer(c, padding=True, return_tensors="pt")).pooler_output
            for c in (captions, wrong)
        ]
        embeds = [torch.nn.functional.normalize(x, dim=-1) for x in (seen, *said)]
        return counting_contrastive_loss(embeds[0] * 10, embeds[1], embeds[2])

    before = loss().item()
    for _ in range(6):
        optimiser.zero_grad()
        now = loss()
        now.backward()
        optimiser.step()
    assert now.item() < 0.7 * before


def test_captions_name_numbers_and_plurals() -> None:
    assert number_captions("cat")[0] == "two cats" and number_captions("cat")[-1] == "ten cats"
    cases = {
        "red apple": "red apples",
        "dog on the left": "dogs on the left",
        "person wearing a hat": "people wearing a hat",
        "mouse": "mice",
        "wine glass": "wine glasses",
        "sheep": "sheep",
    }
    assert {noun: plural(noun) for noun in cases} == cases


# -- one that was taught to count -------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = shutil.copytree(folder, tmp_path_factory.mktemp("taught") / "clip")
    save_settings(place, range(0, 13), ((0.5,) * 3, (0.25,) * 3))
    return place


class TestTaught(CriticContract):
    nouns = ("cat", "dog", "red apple")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, taught_folder: Path) -> Any:
        return load_critic("count-clip", taught_folder)

    def test_it_says_the_numbers_that_it_learned_zero_among_them(
        self, critic: Any, taught_folder: Path
    ) -> None:
        """The library's own logits of "no red apples", "one red apple", "two red apples" and so on."""
        from transformers import AutoTokenizer, CLIPModel

        model = CLIPModel.from_pretrained(taught_folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(taught_folder)
        images = noise(3, 3, 32, 32)
        captions = number_captions("red apple", range(13))
        assert captions[0] == "no red apples" and captions[12] == "twelve red apples"
        with torch.no_grad():
            logits = model(
                **tokenizer(captions, padding=True, return_tensors="pt"),
                pixel_values=(images - 0.5) / 0.25,
            ).logits_per_image
        found = critic(images, [critic.prepare(["red apple"])] * 3)
        expected = (logits.softmax(-1) * torch.arange(13.0)).sum(-1)
        torch.testing.assert_close(found.soft[:, 0], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.hard[:, 0], logits.argmax(-1))
        assert "0 to 12" in critic.card.summary and critic.card.input_size == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lowest": 5, "highest": 5}, "no range of counts"),
        ({"lowest": -1}, "no range of counts"),
        ({"highest": "ten"}, "highest"),
        ({"image_std": [0.5, 0, 0.5]}, "must be positive"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"kind": "hmode"}, "describes 'hmode'"),
    ],
)
def test_settings_that_cannot_be_are_told(
    taught_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    place = shutil.copytree(taught_folder, tmp_path / "clip")
    path = place / "counting.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message) as told:
        load_critic("count-clip", place)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_the_card_is_honest() -> None:
    found = card("count-clip")
    assert not found.published and found.vocabulary is None and found.families == {"clip"}
