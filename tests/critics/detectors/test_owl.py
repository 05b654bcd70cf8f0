"""OWL-ViT and OWLv2: what every critic promises, and that scores, boxes and pictures are the library's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_owl
import torch
import transformers
from critic_contract import CriticContract, HubContract, TokenizerContract, noise
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from critics.detectors.base import DetectionCritic
from critics.detectors.owl import _blur, pad_to_square, resize_bicubic, resize_blurred
from critics.loading.checkpoint import CheckpointError
from critics.parts.preprocess import CLIP, normalise
from critics.registry import card, load_critic

NAMES = ("owl-vit", "owlv2")
NOUNS = ["cat", "red apple", "dog on the left"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only make a second thread wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny_owl.save(tmp_path_factory.mktemp(name), name) for name in NAMES}


def load(folders: dict[str, Path], name: str, **options: Any) -> DetectionCritic:
    critic = load_critic(name, folders[name], **options)
    assert isinstance(critic, DetectionCritic)
    return critic


def eight_bit(height: int, width: int) -> tuple[np.ndarray, Tensor]:
    """The same smooth random picture for the library's processors and for ours."""
    rough = noise(1, 3, 8, 8, seed=3)
    smooth = F.interpolate(rough, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    picture = (smooth[0] * 255).round().to(torch.uint8)
    return picture.permute(1, 2, 0).numpy(), picture[None].float() / 255


class TestOwlViT(CriticContract):
    nouns = ("cat", "red apple", "dog")

    @pytest.fixture(scope="class")
    @classmethod
    def critic(cls, folders: dict[str, Path]) -> DetectionCritic:
        return load(folders, "owl-vit")


class TestOwlV2(CriticContract):
    nouns = ("cat", "red apple", "dog")

    @pytest.fixture(scope="class")
    @classmethod
    def critic(cls, folders: dict[str, Path]) -> DetectionCritic:
        return load(folders, "owlv2")


class TestLoading(HubContract, TokenizerContract):
    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def saved(cls, request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[str, Path]:
        return request.param, folders[request.param]


# -- scores and boxes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (40, 64), (90, 30)])
def test_scores_boxes_and_counts_are_the_librarys_own(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    """The whole library path, text and post-processing included, on the pictures that we prepared."""
    critic = load(folders, name, overlap=None, limit=1000, threshold=0.12)
    detector, images = critic.detector, noise(2, 3, *size)
    query = critic.prepare(NOUNS)
    found = detector.detect(images, [query, query])
    seen = pad_to_square(images) if name == "owlv2" else images
    side = critic.card.input_size
    pixels = normalise((resize_blurred if name == "owlv2" else resize_bicubic)(seen, side), CLIP)
    texts = detector.tokenizer(  # type: ignore[attr-defined]
        [f"a photo of a {noun}" for noun in NOUNS] * 2, padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        output = critic.network(**texts, pixel_values=pixels)
    torch.testing.assert_close(found.logits.transpose(1, 2), output.logits, rtol=1e-4, atol=1e-4)
    kind = {"owl-vit": "OwlViT", "owlv2": "Owlv2"}[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")()
    hard = critic(images, [query, query]).hard
    whole, some = len(found.boxes[0]), 0
    for k in range(len(NOUNS)):
        output.logits = found.logits[
            :, k, :, None
        ]  # the library reports a box once, for its best noun
        results = processor.post_process_object_detection(output, 0.12, [size, size])
        for b, result in enumerate(results):
            assert hard[b, k] == len(result["boxes"])
            kept = found.logits[b, k].sigmoid() > 0.12
            torch.testing.assert_close(found.boxes[b, kept], result["boxes"], rtol=1e-4, atol=1e-3)
            some += len(result["boxes"])
    assert 0 < some < 2 * len(NOUNS) * whole  # the threshold divides


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_are_removed_unless_told_otherwise(folders: dict[str, Path], name: str) -> None:
    every = load(folders, name, overlap=None, threshold=0.01)
    apart = load(folders, name, overlap=0.0, threshold=0.01)
    images = noise(1, 3, 32, 32)
    query = every.prepare(["cat"])
    assert 0 < apart(images, [query]).hard.item() < every(images, [query]).hard.item()


def test_boxes_of_a_padded_picture_are_in_its_own_pixels(folders: dict[str, Path]) -> None:
    """A wide picture and the square that it is padded to have the same boxes."""
    critic = load(folders, "owlv2")
    wide, query = noise(1, 3, 40, 64), critic.prepare(["cat"])
    square = pad_to_square(wide)
    assert square.shape[-2:] == (64, 64) and square[..., 40:, :].abs().sum() == 0
    torch.testing.assert_close(
        critic.detector.detect(wide, [query]).boxes, critic.detector.detect(square, [query]).boxes
    )


def test_objectness_takes_no_part(folders: dict[str, Path]) -> None:
    critic = load(folders, "owlv2")
    images, query = noise(1, 3, 32, 32), critic.prepare(["cat"])
    before = critic(images, [query]).soft
    for weight in critic.network.objectness_head.parameters():  # type: ignore[union-attr, operator]
        weight.data.add_(5)
    assert torch.equal(before, critic(images, [query]).soft)


@pytest.mark.parametrize("name", NAMES)
def test_the_pixel_gradient_is_that_of_finite_differences(
    folders: dict[str, Path], name: str
) -> None:
    """A directional derivative through preprocessing, network and read-out."""
    critic = load(folders, name)
    query = critic.prepare(["cat"])
    images, direction = noise(1, 3, 40, 32), noise(1, 3, 40, 32, seed=1) - 0.5
    images = (images * 0.8 + 0.1).requires_grad_()
    (grad,) = torch.autograd.grad(critic(images, [query]).soft.sum(), images)
    step = 2e-3
    with torch.no_grad():
        high, low = (critic(images + s * step * direction, [query]).soft.item() for s in (1, -1))
    assert (grad * direction).sum().item() == pytest.approx((high - low) / (2 * step), rel=0.05)


def test_weights_in_half_precision_count_in_single(folders: dict[str, Path]) -> None:
    half, full = load(folders, "owlv2", dtype=torch.bfloat16), load(folders, "owlv2")
    assert next(half.network.parameters()).dtype == torch.bfloat16
    images = noise(1, 3, 64, 64).requires_grad_()
    found = half(images, [half.prepare(NOUNS)])
    assert found.soft.dtype == torch.float32
    found.soft.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    seen = [c.detector.detect(images, [c.prepare(NOUNS)]) for c in (half, full)]
    assert (seen[0].logits - seen[1].logits).abs().max() < 0.3
    assert (seen[0].boxes - seen[1].boxes).abs().max() < 1.5


# -- text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_text_is_encoded_in_prepare_and_never_again(folders: dict[str, Path], name: str) -> None:
    critic = load(folders, name)
    query = critic.prepare(["cat", "dog"])
    assert query.nouns == ("cat", "dog") and not query.text["owl"].requires_grad
    torch.testing.assert_close(query.text["owl"].norm(dim=-1), torch.ones(2))
    calls = []
    text = critic.network.base_model.text_model  # type: ignore[union-attr]
    hook = text.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, operator]
    critic(noise(1, 3, 32, 32), [query])
    assert not calls
    critic.prepare(["cat"])
    hook.remove()
    assert calls == [1]


def test_case_and_spaces_do_not_matter_and_the_template_does(folders: dict[str, Path]) -> None:
    critic = load(folders, "owlv2")
    plain, other = critic.prepare(["red apple"]), critic.prepare([" Red  apple "])
    assert torch.equal(plain.text["owl"], other.text["owl"])
    bare = load(folders, "owlv2", template="{}").prepare(["red apple"])
    assert not torch.allclose(plain.text["owl"], bare.text["owl"])


def test_long_nouns_templates_and_queries_are_refused(folders: dict[str, Path]) -> None:
    critic = load(folders, "owlv2")
    with pytest.raises(ValueError, match=r"too long: .* reads 16"):
        critic.prepare(["extraordinarily"])
    with pytest.raises(ValueError, match=r"one \{\} in the noun's place"):
        load(folders, "owlv2", template="a photo")
    foreign = type(critic.prepare([]))(("cat",))
    with pytest.raises(ValueError, match="prepared by another critic"):
        critic(noise(1, 3, 32, 32), [foreign])


# -- preprocessing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pictures_that_need_no_resizing_are_the_processors(name: str) -> None:
    """To 1e-4: rescaling, padding to a square (OWLv2), normalisation."""
    kind = {"owl-vit": "OwlViT", "owlv2": "Owlv2"}[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(do_resize=False)
    picture, ours = eight_bit(40, 64)
    theirs = processor(picture, return_tensors="pt").pixel_values
    ours = normalise(pad_to_square(ours) if name == "owlv2" else ours, CLIP)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(40, 64), (200, 120)])
def test_bicubic_resizing_is_the_processors_up_to_its_rounding(size: tuple[int, int]) -> None:
    """The processor rounds to 8 bits after each of its two passes, across and down."""
    picture, ours = eight_bit(*size)
    processor = transformers.OwlViTImageProcessorPil(size={"height": 96, "width": 96})
    theirs = processor(picture, return_tensors="pt").pixel_values
    step = 1 / 255 / min(CLIP[1])
    assert (normalise(resize_bicubic(ours, 96), CLIP) - theirs).abs().max() < 1.5 * step
    for channel in range(3):  # and PIL's own, without the rounding
        plane = Image.fromarray(ours[0, channel].numpy(), "F").resize(
            (96, 96), Image.Resampling.BICUBIC
        )
        exact = torch.from_numpy(np.asarray(plane).copy()).clamp(0, 1)
        torch.testing.assert_close(resize_bicubic(ours, 96)[0, channel], exact, rtol=0, atol=1e-4)


def test_the_blur_is_a_gaussian_cut_off_after_three_deviations_and_reflected() -> None:
    images, deviation = noise(1, 3, 24, 24), 1.3
    offsets = np.arange(-4, 5)
    kernel = np.exp(-(offsets**2) / (2 * deviation**2))
    kernel /= kernel.sum()
    for channel in range(3):
        wide = np.pad(images[0, channel].double().numpy(), 4, mode="reflect")
        down = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), 0, wide)
        both = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), 1, down)
        torch.testing.assert_close(
            _blur(images, deviation)[0, channel].double(), torch.from_numpy(both), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("size", "tolerance"), [((40, 64), 1e-4), ((150, 200), 5e-3)])
def test_padded_resizing_is_the_processors(size: tuple[int, int], tolerance: float) -> None:
    """Away from the rims, which the processor on SciPy reflects where the default one repeats; and when
    shrinking up to the tails of the blur, which it cuts off after four deviations instead of three."""
    pytest.importorskip("scipy", reason="the reference processor resizes with SciPy")
    picture, ours = eight_bit(*size)
    processor = transformers.Owlv2ImageProcessorPil(size={"height": 96, "width": 96})
    theirs = processor(picture, return_tensors="pt").pixel_values
    mine = normalise(resize_blurred(pad_to_square(ours), 96), CLIP)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(mine[inside], theirs[inside], rtol=0, atol=tolerance)


def test_a_white_picture_keeps_its_whole_gradient_through_bicubic_resizing() -> None:
    white = torch.ones(1, 3, 30, 30, requires_grad=True)
    (grad,) = torch.autograd.grad(resize_bicubic(white, 96).sum(), white)
    assert grad.sum().item() == pytest.approx(3 * 96 * 96, rel=1e-4)


# -- loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_input_size_is_the_models(folders: dict[str, Path], name: str) -> None:
    assert load(folders, name).card.input_size == 32
    assert card(name).input_size in (768, 960) and card(name).vocabulary is None


@pytest.mark.parametrize("name", NAMES)
def test_files_of_older_versions_hold_the_positions_numbers_too(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / name)
    weights = folder / "model.safetensors"
    body = "owlvit" if name == "owl-vit" else "owlv2"
    old = {f"{body}.text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(load_file(weights) | old, weights, metadata={"format": "pt"})
    load_critic(name, folder)


def test_a_missing_tokenizer_is_no_empty_tokenizer(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["owlv2"], tmp_path / "owlv2")
    for file in ("vocab.json", "merges.txt"):
        (folder / file).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer in .*vocab\.json and merges\.txt"):
        load_critic("owlv2", folder)


def test_the_weights_of_the_other_family_do_not_fit(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="do not fit Owlv2ForObjectDetection"):
        load_critic("owlv2", folders["owl-vit"])
