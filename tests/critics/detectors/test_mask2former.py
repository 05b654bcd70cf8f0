"""GenEval's judge, on a tiny random Mask2Former."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from critic_contract import CriticContract, HubContract, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    DetrImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
)

from critics.detectors.base import DetectionCritic
from critics.detectors.mask2former import (
    READ_OUT,
    SIDES,
    mask_boxes,
    mask_certainty,
    product_log_odds,
)
from critics.loading.checkpoint import CheckpointError
from critics.parts.readout import ReadOut
from critics.parts.vocabulary import COCO
from critics.registry import card, load_critic

LABELS = ["person", "cat", "dog", "hot dog"]


@torch.no_grad()
def save(folder: Path) -> Path:
    torch.manual_seed(3)
    backbone = dict(
        model_type="swin",
        image_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[1, 2, 4, 8],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=10,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    # Larger weights than those of a fresh model, whose queries all say the same.
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    nn.init.normal_(model.class_predictor.weight)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hub") / "mask2former")


@pytest.fixture(scope="module")
def critic(made: Path) -> DetectionCritic:
    # A lower threshold than GenEval's: a random network is sure of nothing.
    counter = load_critic("mask2former", made, threshold=0.4, sides=(64, 112))
    assert isinstance(counter, DetectionCritic)
    return counter


class TestContract(CriticContract):
    nouns = ("person", "cat", "hot dog")


class TestLoading(HubContract):
    @pytest.fixture
    def saved(self, made: Path) -> tuple[str, Path]:
        return "mask2former", made


def test_the_settings_are_those_of_geneval(made: Path) -> None:
    judge = load_critic("mask2former", made)
    assert judge.read_out == READ_OUT == ReadOut(0.9, overlap=None, limit=16)
    assert SIDES == (800, 1333)
    assert judge.detector.sides == SIDES and judge.card.vocabulary == tuple(LABELS)
    assert card("mask2former").vocabulary == COCO and not card("mask2former").published
    assert judge.card.parameters == sum(p.numel() for p in judge.network.parameters())


def test_scores_and_counts_are_those_of_the_published_post_processing(made: Path) -> None:
    # At 384 x 384, the size at which transformers compares masks, both are made of the same pixels. At 0.35
    # fewer pairs of query and class count than the number of queries, which is where transformers stops.
    threshold = 0.35
    judge = load_critic("mask2former", made, threshold=threshold, sides=(384, 640))
    raw: list[Any] = []
    handle = judge.network.register_forward_hook(lambda *call: raw.append(call[-1]))
    with torch.no_grad():
        found = judge(noise(1, 3, 384, 384, seed=4), [judge.prepare(LABELS)])
    handle.remove()
    (expected,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        raw[0], threshold=threshold, return_binary_maps=True
    )
    labels = [segment["label_id"] for segment in expected["segments_info"]]
    assert found.hard[0].tolist() == [labels.count(i) for i in range(len(LABELS))]
    margins = found.candidates.margins[found.candidates.kept]
    ours = torch.sigmoid(margins + torch.logit(torch.tensor(threshold)))
    theirs = torch.tensor([segment["score"] for segment in expected["segments_info"]])
    torch.testing.assert_close(ours.sort().values, theirs.sort().values, rtol=0, atol=1e-5)
    assert 1 < len(labels) < 10 and theirs.max() - theirs.min() > 0.05


def seen(judge: DetectionCritic, images: Tensor) -> Tensor:
    """What the judge's network was shown."""
    shown: list[Tensor] = []
    handle = judge.network.register_forward_pre_hook(
        lambda _, args, kwargs: shown.append(kwargs["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad():
        judge(images, [judge.prepare(LABELS[:1])] * len(images))
    handle.remove()
    return shown[0]


def test_pictures_are_resized_normalised_and_padded_as_published(made: Path) -> None:
    from PIL import Image

    judge = load_critic("mask2former", made, sides=(64, 112))
    images = (noise(1, 3, 64, 84) * 255).round() / 255
    image = Image.fromarray((images[0] * 255).byte().permute(1, 2, 0).numpy())
    # DETR's processor keeps the aspect ratio, as GenEval's network is fed; Mask2Former's own one would not.
    size = {"shortest_edge": 64, "longest_edge": 112}
    expected = DetrImageProcessorPil(size=size)(image, return_tensors="pt")["pixel_values"]
    shown = seen(judge, images)
    assert shown.shape == (1, 3, 64, 96) and expected.shape == (1, 3, 64, 84)
    torch.testing.assert_close(shown[..., :84], expected, rtol=0, atol=1e-4)
    assert not shown[..., 84:].any()
    assert seen(judge, noise(1, 3, 32, 128)).shape == (1, 3, 32, 128)  # 28 x 112, padded


def test_at_most_the_limit_is_counted(made: Path) -> None:
    few = load_critic("mask2former", made, threshold=0.01, sides=(64, 112), limit=2)
    found = few(noise(1, 3, 64, 64), [few.prepare(LABELS)])
    assert found.hard.amax() == 2


# The read-out's own parts.


def test_certainty_is_the_mean_over_a_masks_own_pixels() -> None:
    masks = torch.tensor([[[2.0, -1.0], [0.5, -9.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    certainty, doubt, present = mask_certainty(masks)
    mean = (torch.sigmoid(torch.tensor(2.0)) + torch.sigmoid(torch.tensor(0.5))) / 2
    assert certainty[0].exp() == pytest.approx(mean.item())
    assert doubt[0].exp() == pytest.approx(1 - mean.item())
    assert present.tolist() == [True, False]


def test_the_read_out_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(1, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    masks = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    masks = (masks + 0.1 * masks.sign()).requires_grad_()  # away from the jump at 0

    def read(odds: Tensor, masks: Tensor) -> Tensor:
        certainty, doubt, _ = mask_certainty(masks)
        return product_log_odds(odds, certainty[None, None], doubt[None, None])

    assert torch.autograd.gradcheck(read, (odds, masks))


@given(st.floats(-15, 15), st.floats(0.5, 0.9999))
@settings(max_examples=50, deadline=None)
def test_the_product_is_that_of_the_probabilities(odds: float, certainty: float) -> None:
    wide = [torch.tensor([[[value]]], dtype=torch.float64) for value in (odds, certainty)]
    found = product_log_odds(wide[0], wide[1].log(), torch.log1p(-wide[1]))
    score = torch.sigmoid(wide[0]) * wide[1]
    torch.testing.assert_close(torch.sigmoid(found), score)


def test_values_and_gradients_stay_finite_where_everything_is_certain() -> None:
    odds = torch.tensor([[[400.0, -400.0, 30.0]]], requires_grad=True)
    masks = torch.full((3, 2, 2), 200.0, requires_grad=True)
    certainty, doubt, _ = mask_certainty(masks)
    found = product_log_odds(odds, certainty[None, None], doubt[None, None])
    found.sum().backward()
    for value in (found, odds.grad, masks.grad):
        assert value is not None and torch.isfinite(value).all()


def test_boxes_hold_their_masks_exactly() -> None:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    masks[1, 5, 0] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 7, 4], [0, 5, 1, 6], [0, 0, 0, 0]]


# What goes wrong.


def test_a_model_of_another_critic_is_told(made: Path) -> None:
    with pytest.raises(CheckpointError, match="'mask2former', but d-fine is made of d_fine"):
        load_critic("d-fine", made)


def test_older_checkpoints_lack_some_and_have_other_buffers(tmp_path: Path) -> None:
    folder = save(tmp_path)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    rest = {key: value for key, value in state.items() if not key.startswith("criterion.")}
    layer = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    rest[f"{layer}.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    save_file(rest, weights, metadata={"format": "pt"})
    load_critic("mask2former", folder)


def test_a_missing_scipy_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mask2former import modeling_mask2former

    def refuse(*_: Any) -> None:
        raise ImportError("requires the scipy library")

    monkeypatch.setattr(modeling_mask2former, "requires_backends", refuse)
    with pytest.raises(CheckpointError, match=r'scipy.*extra "eval"'):
        load_critic("mask2former", made)
