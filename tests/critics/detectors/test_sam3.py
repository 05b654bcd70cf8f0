"""SAM 3, on a tiny random model of its real class."""

from __future__ import annotations

import json
import math
import string
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from critic_contract import CriticContract, HubContract, noise
from PIL import Image
from safetensors.torch import load_file, save_file

from critics.detectors.base import DetectionCritic
from critics.detectors.sam3 import CARDS, STATISTICS, Sam3, joint_log_odds
from critics.parts.preprocess import normalise, resize
from critics.registry import load_critic

SIDE = 56


def write_model(folder: Path) -> Path:
    """A folder in the hub's layout: weights and CLIP's tokenizer, which spells letter by letter here."""
    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    words += [letter + "</w>" for letter in string.ascii_lowercase]
    transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[]
    ).save_pretrained(folder)
    vit = dict(model_type="sam3_vit_model", hidden_size=32, intermediate_size=48)
    vit |= dict(num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=14)
    vit |= dict(window_size=2, global_attn_indexes=[1], pretrain_image_size=28)
    clip = dict(model_type="clip_text_model", vocab_size=len(words), hidden_size=32)
    clip |= dict(intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    clip |= dict(max_position_embeddings=16, projection_dim=16, bos_token_id=0, eos_token_id=1)
    small = dict(hidden_size=32, num_attention_heads=4)
    layers = small | dict(num_layers=2, intermediate_size=48)
    config = transformers.Sam3Config(
        vision_config=dict(
            backbone_config=vit,
            fpn_hidden_size=32,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        text_config=clip,
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config=layers | dict(num_queries=10),
        mask_decoder_config=small,
    )
    torch.manual_seed(0)
    network = transformers.Sam3Model(config)
    # Random weights of the usual size hardly look at the picture, and no score differs from another.
    for name, weight in network.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            weight.data.mul_(4)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def critic(folder: Path) -> DetectionCritic:
    critic = load_critic("sam3", folder)
    assert isinstance(critic, DetectionCritic)
    return critic


class TestSam3(CriticContract):
    nouns = ("cat", "dog", "red apples")


class TestLoading(HubContract):
    @pytest.fixture
    def saved(self, folder: Path) -> tuple[str, Path]:
        return "sam3", folder


def test_the_card_says_that_it_is_gated() -> None:
    assert "gated" in CARDS["sam3"].license_weights and CARDS["sam3"].vocabulary is None


def test_preprocessing_is_pils_resizing_to_the_networks_square(critic: DetectionCritic) -> None:
    # The library's own processor needs torchvision; it resizes bilinearly with antialiasing, as PIL does.
    images = noise(1, 3, 90, 70)
    ours = normalise(resize(images, (SIDE, SIDE)), STATISTICS)
    channels = [
        np.array(Image.fromarray(c.numpy()).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for c in images[0]
    ]
    expected = (torch.from_numpy(np.stack(channels)) - 0.5) / 0.5
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-4)
    assert critic.network.config.image_size == SIDE


def test_counts_and_boxes_are_those_of_the_networks_own_scores(critic: DetectionCritic) -> None:
    nouns = ["cat", "red apples"]
    images = noise(1, 3, SIDE, SIDE)
    assert isinstance(critic.detector, Sam3)
    # As the library's processor pads: all phrases to the same full length.
    text = critic.detector.tokenizer(
        nouns, padding="max_length", max_length=16, return_tensors="pt"
    )
    pixels = (images.expand(2, -1, -1, -1) - 0.5) / 0.5
    with torch.no_grad():
        outputs = critic.network(pixel_values=pixels, **text)
    scores = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()
    levels = [*scores.quantile(torch.tensor([0.1, 0.5, 0.8])).tolist(), 0.999]
    counts = set()
    for threshold in levels:
        found = critic.with_settings(threshold=threshold)(images, [critic.prepare(nouns)])
        assert found.candidates is not None
        for k in range(2):
            hits = scores[k] > threshold
            assert found.hard[0, k] == hits.sum()
            counts.add(int(hits.sum()))
            order = scores[k].argsort(descending=True)
            boxes = outputs.pred_boxes[k][order] * SIDE
            torch.testing.assert_close(
                found.candidates.boxes[0, k, :10], boxes, rtol=1e-3, atol=1e-2
            )
    assert len(counts) > 3


def test_one_noun_says_nothing_of_another_ones_candidates(critic: DetectionCritic) -> None:
    found = critic.detector.detect(noise(1, 3, 64, 64), [critic.prepare(["cat", "dog"])])
    assert found.logits.shape == (1, 2, 20) and found.boxes.shape == (1, 20, 4)
    assert (found.logits[0, 0, 10:] == -torch.inf).all()
    assert (found.logits[0, 1, :10] == -torch.inf).all()
    assert found.logits[0, 0, :10].isfinite().all() and found.logits[0, 1, 10:].isfinite().all()


def test_boxes_are_in_pixels_of_the_picture_given(critic: DetectionCritic) -> None:
    images, query = noise(1, 3, SIDE, SIDE), critic.prepare(["cat"])
    wide = torch.nn.functional.interpolate(images, (SIDE, 4 * SIDE), mode="nearest")
    boxes = critic.detector.detect(wide, [query]).boxes
    assert boxes[..., [0, 2]].max() > 2 * SIDE and boxes[..., [1, 3]].max() <= SIDE


def test_a_row_without_nouns_counts_nothing_beside_one_with(critic: DetectionCritic) -> None:
    images = noise(2, 3, SIDE, SIDE)
    found = critic(images, [critic.prepare([]), critic.prepare(["cat"])])
    alone = critic(images[1:], [critic.prepare(["cat"])])
    assert found.mask.tolist() == [[False], [True]] and found.soft[0, 0] == 0
    torch.testing.assert_close(found.soft[1], alone.soft[0])


def test_the_text_encoder_runs_in_prepare_only(critic: DetectionCritic) -> None:
    calls = []
    handle = critic.network.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    query = critic.prepare(["cat", "dog"])
    assert len(calls) == 1
    critic(noise(2, 3, 64, 64), [query, query])
    handle.remove()
    assert len(calls) == 1


def test_a_step_along_the_gradient_raises_the_soft_count(critic: DetectionCritic) -> None:
    images, query = noise(1, 3, SIDE, SIDE).requires_grad_(), critic.prepare(["dog"])
    before = critic(images, [query]).soft.sum()
    (grad,) = torch.autograd.grad(before, images)
    after = critic((images + 0.01 * grad / grad.norm()).clamp(0, 1), [query]).soft.sum()
    assert after > before


def test_the_joint_log_odds_pass_gradcheck_and_are_those_of_the_product() -> None:
    instance = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    presence = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(joint_log_odds, (instance, presence))
    expected = torch.logit(instance.sigmoid() * presence.sigmoid())
    torch.testing.assert_close(joint_log_odds(instance, presence), expected)


@pytest.mark.parametrize(
    ("a", "p", "expected"),
    [(80.0, 80.0, 80 - math.log(2)), (80.0, -90.0, -90), (-80.0, -90.0, -170), (60.0, 90.0, 60)],
)
def test_the_joint_log_odds_are_finite_at_the_ends(a: float, p: float, expected: float) -> None:
    instance = torch.tensor([[a]], requires_grad=True)
    odds = joint_log_odds(instance, torch.tensor([[p]]))
    assert odds.item() == pytest.approx(expected, rel=1e-5)
    (grad,) = torch.autograd.grad(odds.sum(), instance)
    assert grad.isfinite().all()


def test_weights_in_half_precision_count_in_single(folder: Path) -> None:
    critic = load_critic("sam3", folder, dtype=torch.bfloat16)
    images = noise(1, 3, SIDE, SIDE).requires_grad_()
    found = critic(images, [critic.prepare(["dog"])])
    assert found.soft.dtype == torch.float32
    found.soft.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


# Bad input, and the layouts of the hub.


def test_the_detector_of_the_video_model_is_taken(folder: Path, tmp_path: Path) -> None:
    """The hub's folder is the video model's: a detector and a tracker."""
    critic = load_critic("sam3", folder)
    video = tmp_path / "video"
    critic.detector.tokenizer.save_pretrained(video)  # type: ignore[attr-defined]
    weights = load_file(folder / "model.safetensors")
    weights = {f"detector_model.{key}": value for key, value in weights.items()}
    weights |= {"tracker_model.no_memory": torch.zeros(1), "tracker_neck.weight": torch.zeros(1)}
    save_file(weights, video / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "sam3_video", "detector_config": config}
    (video / "config.json").write_text(json.dumps(outer))
    images, query = noise(1, 3, 64, 64), critic.prepare(["cat"])
    same = load_critic("sam3", video)
    assert torch.equal(critic(images, [query]).soft, same(images, [same.prepare(["cat"])]).soft)


def test_a_noun_that_is_too_long_is_refused(critic: DetectionCritic) -> None:
    critic.prepare(["a" * 14])
    with pytest.raises(ValueError, match=r"too long: .* reads 16"):
        critic.prepare(["cat", "a" * 15])
