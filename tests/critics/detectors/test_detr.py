"""Closed-vocabulary set predictors, on tiny random models of their real classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from critic_contract import CriticContract, HubContract, noise
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from critics.base import UnknownNounError
from critics.detectors.base import DetectionCritic
from critics.detectors.detr import CARDS, KINDS, Preprocessing
from critics.loading.checkpoint import CheckpointError
from critics.parts.preprocess import fit_sides
from critics.parts.readout import softmax_log_odds
from critics.parts.vocabulary import COCO, Vocabulary
from critics.registry import card, load_critic

# Spelt and numbered as in the published configs: a gap named N/A, capitals.
LABELS = ["person", "N/A", "cat", "dog", "Traffic Light"]
NOUNS = ("person", "cat", "dog", "traffic light")
LABELS_OF = {label.lower(): i for i, label in enumerate(LABELS)}
CLASSES = dict(id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)})
STAGES = dict(out_features=["stage2", "stage3", "stage4"], out_indices=[2, 3, 4], depths=[1] * 4)
HYBRID: dict[str, Any] = dict(
    encoder_in_channels=[20, 30, 40],
    encoder_hidden_dim=32,
    encoder_layers=1,
    encoder_ffn_dim=32,
    encoder_attention_heads=2,
    d_model=32,
    num_queries=20,
    decoder_in_channels=[32] * 3,
    decoder_ffn_dim=32,
    num_feature_levels=3,
    decoder_n_points=2,
    decoder_layers=2,
    decoder_attention_heads=2,
    num_denoising=4,
)


def detr() -> nn.Module:
    backbone = dict(
        model_type="resnet",
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        out_features=["stage4"],
        out_indices=[4],
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        **CLASSES,
    )
    return transformers.DetrForObjectDetection(config)


def yolos() -> nn.Module:
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=[64, 96],
        patch_size=16,
        num_detection_tokens=10,
        **CLASSES,
    )
    model = transformers.YolosForObjectDetection(config)
    nn.init.normal_(model.vit.embeddings.detection_tokens)  # zeros would make all tokens one
    return model


def rt_detr(version: str) -> nn.Module:
    backbone = STAGES | dict(
        model_type="rt_detr_resnet", embedding_size=10, hidden_sizes=[10, 20, 30, 40]
    )
    config = getattr(transformers, f"RTDetr{version}Config")
    model = getattr(transformers, f"RTDetr{version}ForObjectDetection")
    return model(config(backbone_config=backbone, **HYBRID, **CLASSES))


def d_fine() -> nn.Module:
    backbone = STAGES | dict(
        model_type="hgnet_v2",
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 20, 30],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[16, 20, 30, 40],
        stage_num_blocks=[1] * 4,
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3] * 4,
        stage_numb_of_layers=[1] * 4,
        embedding_size=8,
        hidden_sizes=[16, 20, 30, 40],
    )
    config = transformers.DFineConfig(backbone_config=backbone, **HYBRID, **CLASSES)
    return transformers.DFineForObjectDetection(config)


BUILDS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "detr": ("detr", detr),
    "yolos": ("yolos", yolos),
    "rt-detrv2": ("rt-detrv2", lambda: rt_detr("V2")),
    "rt-detr v1": ("rt-detrv2", lambda: rt_detr("")),
    "d-fine": ("d-fine", d_fine),
}
SIDES = {"shortest_edge": 64, "longest_edge": 112}


def processor_of(name: str) -> Any:
    size = SIDES if KINDS[name].background else {"height": 96, "width": 96}
    return getattr(transformers, KINDS[name].processor)(size=size)


def enliven(model: nn.Module) -> None:
    """Larger weights than those of a fresh network, which is zero on black and whose queries are alike."""
    for module in model.modules():
        if hasattr(module, "running_mean"):
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)


@torch.no_grad()
def decide(network: nn.Module, pixels: Tensor, classes: int, mean: float) -> None:
    """Spread the logits of the queries for these pictures: every class's have this mean, deviation 2."""
    seen: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, out: seen.append((m, out.flatten(0, 1))))
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    network(pixel_values=pixels)
    for handle in handles:
        handle.remove()
    head, logits = seen[-1]
    scale = 2 / logits.std(0)
    head.weight *= scale[:, None]
    head.bias.copy_((head.bias - logits.mean(0)) * scale + mean)


@torch.no_grad()
def save(build: str, folder: Path) -> Path:
    name, make = BUILDS[build]
    torch.manual_seed(1)
    model = make().eval()
    enliven(model)
    model.save_pretrained(folder)
    processor_of(name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name, _ = BUILDS[request.param]
    folder = save(request.param, tmp_path_factory.mktemp("hub") / name)
    return SimpleNamespace(name=name, folder=folder, critic=load_critic(name, folder))


@pytest.fixture(scope="module")
def critic(made: Any) -> DetectionCritic:
    return made.critic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save("detr", tmp_path / "detr")


class TestContract(CriticContract):
    nouns = NOUNS[:3]


class TestLoading(HubContract):
    @pytest.fixture
    def saved(self, made: Any) -> tuple[str, Path]:
        return made.name, made.folder


def test_the_card_of_a_loaded_critic_is_that_of_its_checkpoint(made: Any) -> None:
    known, loaded = card(made.name), made.critic.card
    assert loaded.vocabulary == NOUNS and known.vocabulary == COCO and len(set(COCO)) == 80
    assert loaded.input_size == (64 if KINDS[made.name].background else 96)
    assert loaded.parameters == sum(p.numel() for p in made.critic.network.parameters())
    assert known == CARDS[made.name] and known.hub_id and not known.published


def test_the_hard_count_is_that_of_the_published_post_processing(made: Any) -> None:
    counter = load_critic(made.name, made.folder)
    images = noise(6, 3, 80, 72) * torch.linspace(0.1, 1, 6)[:, None, None, None]
    pixels = counter.detector.preprocessing(images)
    if KINDS[made.name].background:
        decide(counter.network, pixels, len(LABELS) + 1, mean=0.0)
    else:  # so low that fewer pairs of query and class count than post-processing looks at
        decide(counter.network, pixels, len(LABELS), mean=-2.5)
    with torch.no_grad():
        raw = counter.network(pixel_values=pixels)
    totals = []
    for threshold in (0.5, 0.7, 0.9):
        counter = counter.with_settings(threshold=threshold)
        found = counter(images, [counter.prepare(NOUNS)] * len(images))
        boxes = processor_of(made.name).post_process_object_detection(
            raw, threshold=threshold, target_sizes=[(80, 72)] * len(images)
        )
        expected = torch.tensor(
            [[int((b["labels"] == LABELS_OF[noun]).sum()) for noun in NOUNS] for b in boxes]
        )
        assert torch.equal(found.hard, expected)
        ours = found.candidates.boxes[found.candidates.kept]
        theirs = torch.cat([b["boxes"][b["labels"] != LABELS.index("N/A")] for b in boxes])
        torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values)
        totals.append(int(expected.sum()))
    assert totals[0] > totals[-1]  # the scores do spread


def test_the_first_version_of_rt_detr_is_loaded_too(tmp_path: Path) -> None:
    counter = load_critic("rt-detrv2", save("rt-detr v1", tmp_path))
    assert isinstance(counter.network, transformers.RTDetrForObjectDetection)
    images = noise(1, 3, 64, 64).requires_grad_()
    counter(images, [counter.prepare(NOUNS[:1])]).soft.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_more_objects_than_candidates_of_other_detectors_are_all_counted(
    tmp_path: Path,
) -> None:
    crowd = save("detr", tmp_path)
    state = load_file(crowd / "model.safetensors")
    state["class_labels_classifier.bias"][LABELS_OF["cat"]] = 50.0
    save_file(state, crowd / "model.safetensors", metadata={"format": "pt"})
    counter = load_critic("detr", crowd)
    query = counter.prepare(["cat", "dog"])
    assert counter(noise(1, 3, 64, 64), [query]).hard.tolist() == [[12, 0]]
    few = load_critic("detr", crowd, limit=5)
    assert few(noise(1, 3, 64, 64), [query]).hard.tolist() == [[5, 0]]


def test_a_network_in_half_precision_counts_in_single(made: Any) -> None:
    half = load_critic(made.name, made.folder, dtype=torch.bfloat16)
    images = noise(1, 3, 64, 64).requires_grad_()
    found = half(images, [half.prepare(NOUNS[:1])])
    assert found.soft.dtype == torch.float32
    assert next(half.network.parameters()).dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(found.soft.sum(), images)
    assert torch.isfinite(grad).all() and grad.abs().sum() > 0


# Preprocessing. Without torchvision the reference is the processor that works on PIL images.


def picture(height: int, width: int) -> tuple[Tensor, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, Image.fromarray(pixels)


def test_preprocessing_equals_the_published_one_where_nothing_is_resized(made: Any) -> None:
    images, image = picture(*((64, 96) if KINDS[made.name].background else (96, 96)))
    expected = processor_of(made.name)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        made.critic.detector.preprocessing(images), expected, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("size", [(40, 50), (131, 77), (50, 200), (64, 70), (300, 80)])
def test_resizing_equals_the_published_one_up_to_its_rounding_to_8_bits(
    made: Any, size: tuple[int, int]
) -> None:
    images, image = picture(*size)
    expected = processor_of(made.name)(image, return_tensors="pt")["pixel_values"]
    found = made.critic.detector.preprocessing
    ours = found(images)
    # PIL rounds after each of its two passes.
    step = 1 / 255 / (1 if found.statistics is None else min(found.statistics[1]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1.1 * step)
    # PIL without rounding: channel by channel in floating point.
    height, width = ours.shape[-2:]
    channels = [Image.fromarray(channel.numpy()) for channel in images[0]]
    resized = [np.asarray(c.resize((width, height), Image.Resampling.BILINEAR)) for c in channels]
    exact = torch.from_numpy(np.stack(resized))[None]
    if found.statistics is not None:
        mean, deviation = (torch.tensor(s)[:, None, None] for s in found.statistics)
        exact = (exact - mean) / deviation
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)


@given(st.integers(16, 2500), st.integers(16, 2500), st.sampled_from([(800, 1333), (512, 864)]))
@example(850, 29, (512, 864))
@example(29, 850, (512, 864))
@settings(max_examples=300, deadline=None)
def test_sides_are_those_of_the_published_processors(
    height: int, width: int, sides: tuple[int, int]
) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio
    from transformers.models.yolos import image_processing_pil_yolos as reference

    assert fit_sides(height, width, *sides) == get_size_with_aspect_ratio((height, width), *sides)
    if max(height, width) / min(height, width) < 30:  # beyond, YOLOS' own rounds to no pixels
        expected = reference.get_size_with_aspect_ratio_yolos((height, width), *sides)
        assert fit_sides(height, width, *sides, size_multiple=16) == expected


def test_a_folder_without_a_preprocessor_gets_the_published_values(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    found = load_critic("detr", folder).detector.preprocessing
    assert found.size is None and found.sides == (800, 1333) and found.statistics is not None
    rt = save("rt-detrv2", folder.parent / "rt")
    (rt / "preprocessor_config.json").unlink()
    assert load_critic("rt-detrv2", rt).detector.preprocessing == Preprocessing((640, 640))


# Log-odds of a softmax.


def test_log_odds_are_those_of_the_softmax_and_pass_gradcheck() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([[0, 3], [2, 2]])
    odds = softmax_log_odds(logits, classes)
    p = logits.softmax(-1).transpose(1, 2).gather(1, classes[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(odds, torch.logit(p))
    assert torch.autograd.gradcheck(lambda x: softmax_log_odds(x, classes), (logits,))


def test_log_odds_keep_their_value_and_gradient_where_the_softmax_saturates() -> None:
    logits = torch.tensor([[[300.0, 0.0, -300.0]]], requires_grad=True)
    odds = softmax_log_odds(logits, torch.tensor([[0, 1, 2]]))
    assert odds.flatten().tolist() == [300, -300, -600]
    odds.sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    (grad,) = torch.autograd.grad(softmax_log_odds(logits, torch.tensor([[0]])).sum(), logits)
    assert grad[0, 0, 0] == 1


# What goes wrong, in one sentence each.


def test_unknown_nouns_name_the_nearest(critic: DetectionCritic) -> None:
    with pytest.raises(UnknownNounError, match=r"cannot see 'traffic sign'.*traffic light"):
        critic.prepare(["cat", "traffic sign"])
    with pytest.raises(UnknownNounError, match="cannot see 'n/a'"):
        critic.prepare(["n/a"])
    assert critic.prepare(["Traffic  light"]).classes.tolist() == [4]


def test_names_are_normalised_and_the_first_of_equal_ones_wins() -> None:
    found = Vocabulary.from_labels({2: "Hot_Dog", 0: "N/A", 1: " cat ", 3: "CAT"})
    assert found.names == ("cat", "hot dog") and found.outputs == (1, 2)


def test_counters_of_batches_may_be_missing_or_left_over(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    for key in counters:
        del state[key]
    state["model.backbone.num_batches_tracked"] = torch.tensor(3)
    save_file(state, weights, metadata={"format": "pt"})
    load_critic("detr", folder)


def test_a_checkpoint_of_another_model_is_told(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"type 'detr', but d-fine is made of d_fine"):
        load_critic("d-fine", folder)


def test_a_backbone_that_needs_another_package_is_told(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet50"}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"timm.*revision=\"no_timm\""):
        load_critic("detr", folder)


def test_a_size_that_cannot_be_made_is_told(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text()) | {"size": {"max_height": 80, "max_width": 80}}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="shortest_edge and longest_edge"):
        load_critic("detr", folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", 0.5),
        ("image_mean", [0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", "x"),
    ],
)
def test_statistics_that_are_no_three_numbers_are_told(
    folder: Path, name: str, value: object
) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json.*{name}"):
        load_critic("detr", folder)


def test_less_than_no_queries_are_told(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_queries": -1}))
    with pytest.raises(CheckpointError):
        load_critic("detr", folder)


@pytest.mark.parametrize("threshold", [0, 1.0, 70])
def test_a_threshold_that_is_no_probability_is_told(folder: Path, threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_critic("detr", folder, threshold=threshold)
