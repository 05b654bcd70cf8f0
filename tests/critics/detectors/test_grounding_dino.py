"""Grounding DINO, MM-Grounding-DINO and LLMDet, on tiny random models of their real classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_grounding_dino
import torch
import transformers
from critic_contract import CriticContract, HubContract, TokenizerContract, noise
from PIL import Image
from tiny_grounding_dino import SHORT
from torch import Tensor
from transformers.models.grounding_dino import modeling_grounding_dino

from critics.base import UnknownNounError
from critics.detectors.base import DetectionCritic
from critics.detectors.grounding_dino import CARDS, DELIMITERS, GroundingDino, noun_logits
from critics.loading.checkpoint import CheckpointError
from critics.registry import load_critic

NAMES = ("grounding-dino", "mm-grounding-dino", "llmdet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("hub")
    return {
        name: tiny_grounding_dino.save(place / name, "MM" * (name != NAMES[0])) for name in NAMES
    }


@pytest.fixture(scope="module")
def critics(folders: dict[str, Path]) -> dict[str, DetectionCritic]:
    return {name: load(name, folders) for name in NAMES}


def load(name: str, folders: dict[str, Path], **options: Any) -> DetectionCritic:
    critic = load_critic(name, folders[name], **options)
    assert isinstance(critic, DetectionCritic)
    return critic


def detector_of(critic: DetectionCritic) -> GroundingDino:
    assert isinstance(critic.detector, GroundingDino)
    return critic.detector


def processor_of(folder: Path) -> Any:
    """The library's own, with its class for PIL images."""
    return transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessorPil.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def picture(images: Tensor) -> Image.Image:
    return Image.fromarray((images[0] * 255).round().byte().permute(1, 2, 0).numpy())


class Contract(CriticContract):
    name: str
    nouns = ("cat", "dog", "red apples")

    @pytest.fixture
    def critic(self, critics: dict[str, DetectionCritic]) -> DetectionCritic:
        return critics[self.name]


class TestGroundingDino(Contract):
    name = "grounding-dino"


class TestMMGroundingDino(Contract):
    name = "mm-grounding-dino"


class TestLLMDet(Contract):
    name = "llmdet"


del Contract  # not a test by itself


class TestLoading(HubContract, TokenizerContract):
    @pytest.fixture(params=NAMES)
    def saved(self, request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[str, Path]:
        return request.param, folders[request.param]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_picks_the_published_class(name: str, critics: dict[str, DetectionCritic]) -> None:
    prefix = "" if name == "grounding-dino" else "MM"
    network = critics[name].network
    assert type(network).__name__ == f"{prefix}GroundingDinoForObjectDetection"
    assert network.config.disable_custom_kernels
    assert critics[name].card is CARDS[name] and CARDS[name].hub_id and not CARDS[name].published


# Text.


def test_the_delimiters_are_those_that_the_network_knows() -> None:
    assert list(DELIMITERS.values()) == modeling_grounding_dino.SPECIAL_TOKENS


def test_the_caption_is_the_processors_and_the_map_finds_the_nouns_in_it(
    critics: dict[str, DetectionCritic], folders: dict[str, Path]
) -> None:
    processor = processor_of(folders["grounding-dino"])
    query = critics["grounding-dino"].prepare(["A cat", "Red  Apples", "dog"])
    assert query.nouns == ("A cat", "Red  Apples", "dog")
    expected = processor(text=[["A cat", "Red  Apples", "dog"]]).input_ids[0]
    assert query.text["input_ids"].tolist() == expected
    words = np.array(processor.tokenizer.convert_ids_to_tokens(expected))
    assert [list(words[row]) for row in query.text["tokens"].numpy()] == [
        ["a", "cat"],
        ["red", "apple", "##s"],
        ["dog"],
    ]


def test_a_dot_within_a_noun_does_not_cut_it(critics: dict[str, DetectionCritic]) -> None:
    critic = critics["grounding-dino"]
    query, plain = critic.prepare(["red. apple?"]), critic.prepare(["red apple"])
    assert torch.equal(query.text["input_ids"], plain.text["input_ids"])


@pytest.mark.parametrize("noun", [" . ", "zebra", "red zebra", "\N{CAT FACE}"])
def test_a_noun_without_readable_tokens_is_refused(
    noun: str, critics: dict[str, DetectionCritic]
) -> None:
    with pytest.raises(UnknownNounError, match="llmdet cannot read"):
        critics["llmdet"].prepare(["cat", noun])


def test_more_text_than_the_network_reads_is_refused(critics: dict[str, DetectionCritic]) -> None:
    critics["llmdet"].prepare(["cat"] * 7)  # 2 + 7 * 2 = 16 tokens
    with pytest.raises(ValueError, match="8 nouns make 18 tokens, but llmdet reads 16 at most"):
        critics["llmdet"].prepare(["cat"] * 8)


@pytest.mark.parametrize("name", NAMES[:2])
def test_padding_and_neighbours_leave_no_trace_in_double_precision(
    name: str, folders: dict[str, Path]
) -> None:
    detector = detector_of(load(name, folders, dtype=torch.float64))
    queries = [detector.prepare(nouns) for nouns in (["cat"], ["red apples", "dog", "a cat"], [])]
    images = noise(3, 3, SHORT, SHORT)
    together = detector.detect(images, queries)
    assert together.logits.shape == (3, 3, 10) and together.boxes.shape == (3, 10, 4)
    for i, query in enumerate(queries):
        alone, k = detector.detect(images[i : i + 1], [query]), len(query.nouns)
        # The logits of the network itself leave it in float32.
        torch.testing.assert_close(alone.logits[0], together.logits[i, :k], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone.boxes[0], together.boxes[i], rtol=1e-6, atol=1e-5)
        assert (together.logits[i, k:] == -torch.inf).all()


# Pictures.


def test_a_picture_of_the_right_size_is_preprocessed_as_by_the_processor(
    critics: dict[str, DetectionCritic], folders: dict[str, Path]
) -> None:
    images = (noise(1, 3, SHORT, 160) * 255).round() / 255
    expected = processor_of(folders["llmdet"]).image_processor(picture(images), return_tensors="pt")
    pixels = detector_of(critics["llmdet"]).preprocess(images)
    torch.testing.assert_close(pixels, expected.pixel_values, rtol=0, atol=1e-5)
    assert expected.pixel_mask.all()  # which is what the network takes when it is given none


@pytest.mark.parametrize("size", [(96, 120), (200, 150), (60, 300), (301, 64), (512, 512)])
def test_resizing_is_that_of_the_processor_but_for_its_eight_bits(
    size: tuple[int, int], critics: dict[str, DetectionCritic], folders: dict[str, Path]
) -> None:
    images = (noise(1, 3, *size) * 255).round() / 255
    pixels = detector_of(critics["llmdet"]).preprocess(images)
    processor = processor_of(folders["llmdet"]).image_processor
    reference = processor(picture(images), return_tensors="pt").pixel_values
    assert pixels.shape == reference.shape
    # PIL rounds after each of its two passes, half a step each, and its weights a little.
    step = 1.05 / 255 / min(processor.image_std)
    torch.testing.assert_close(pixels, reference, rtol=0, atol=step)
    # Without rounding to 8 bits, PIL agrees much closer.
    channels = [
        np.array(
            Image.fromarray(channel.numpy()).resize(pixels.shape[:1:-1], Image.Resampling.BILINEAR)
        )
        for channel in images[0]
    ]
    exact = processor.normalize(np.stack(channels), processor.image_mean, processor.image_std)
    torch.testing.assert_close(pixels[0], torch.from_numpy(exact).float(), rtol=0, atol=1e-4)


# Counts.


@pytest.mark.parametrize("name", NAMES)
def test_the_hard_count_is_the_librarys_own(
    name: str, critics: dict[str, DetectionCritic], folders: dict[str, Path]
) -> None:
    processor = processor_of(folders[name])
    images = (noise(1, 3, SHORT, 160, seed=3) * 255).round() / 255
    nouns = {"red apple": {"red", "apple"}, "dog": {"dog"}, "cat": {"cat"}}
    inputs = processor(images=picture(images), text=[list(nouns)], return_tensors="pt")
    with torch.no_grad():
        outputs = critics[name].network(**inputs)
    counts = set()
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.8):
        critic = critics[name].with_settings(threshold=threshold)
        found = critic(images, [critic.prepare(list(nouns))])
        (seen,) = processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, text_threshold=threshold, target_sizes=[(SHORT, 160)]
        )
        assert found.candidates is not None
        for k, words in enumerate(nouns.values()):
            # Without a box there still is one empty label.
            labels = seen["text_labels"][: len(seen["boxes"])]
            hits = [bool(words & set(label.replace(".", " ").split())) for label in labels]
            assert found.hard[0, k] == sum(hits)
            kept = found.candidates.boxes[0, k][found.candidates.kept[0, k]]
            expected = seen["boxes"][hits]
            if sum(hits):
                apart = torch.cdist(kept, expected)  # in pixels; the order differs
                assert apart.amin(0).max() < 0.01 and apart.amin(1).max() < 0.01
            counts.add(sum(hits))
    assert len(counts) > 3  # or nothing was compared


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_step_along_the_gradient_raises_the_soft_count(
    name: str, critics: dict[str, DetectionCritic]
) -> None:
    critic = critics[name]
    images, query = noise(1, 3, SHORT, SHORT), critic.prepare(["dog"])
    images.requires_grad_()
    before = critic(images, [query]).soft.sum()
    (grad,) = torch.autograd.grad(before, images)
    moved = images + 1e-3 * grad / grad.norm()
    after = critic(moved.clamp(0, 1), [query]).soft.sum()
    assert after > before


def test_weights_in_half_precision_count_in_single(folders: dict[str, Path]) -> None:
    critic = load("mm-grounding-dino", folders, dtype=torch.bfloat16)
    images = noise(1, 3, SHORT, SHORT).requires_grad_()
    found = critic(images, [critic.prepare(["dog"])])
    assert found.soft.dtype == torch.float32
    found.soft.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


# Tokens to nouns.

TOKENS = torch.tensor([[[True, False, False, False], [False, True, True, False], [False] * 4]])


@pytest.mark.parametrize("join", ["max", "mean"])
def test_joining_tokens_passes_gradcheck(join: Any) -> None:
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: noun_logits(x, TOKENS, join)[:, :2], (logits,))


def test_joined_logits_are_log_odds_and_safe_at_the_ends() -> None:
    logits = torch.randn(1, 5, 4, dtype=torch.float64)
    one, two, none = noun_logits(logits, TOKENS, "mean")[0]
    torch.testing.assert_close(one, logits[0, :, 0])
    torch.testing.assert_close(two, torch.logit(logits[0, :, 1:3].sigmoid().mean(-1)))
    assert (none == -torch.inf).all()
    assert torch.equal(noun_logits(logits, TOKENS, "max")[0, 1], logits[0, :, 1:3].amax(-1))
    for join in ("max", "mean"):
        extreme = torch.tensor([[[90.0, 80.0, -80.0, -torch.inf]]], requires_grad=True)
        joined = noun_logits(extreme, TOKENS, join)  # type: ignore[arg-type]
        assert joined[0, :2].isfinite().all() and joined[0, 0].item() == pytest.approx(90)
        (grad,) = torch.autograd.grad(joined[0, :2].sum(), extreme)
        assert grad.isfinite().all()
        assert grad[0, 0, 0].item() == pytest.approx(1) and grad[0, 0, 3] == 0


def test_the_mean_of_tokens_never_counts_more_than_the_strongest(folders: dict[str, Path]) -> None:
    images, logits = noise(2, 3, SHORT, SHORT), {}
    for join in ("max", "mean"):
        detector = detector_of(load("mm-grounding-dino", folders, join=join))
        queries = [detector.prepare(["red apples", "cat"])] * 2
        logits[join] = detector.detect(images, queries).logits
    torch.testing.assert_close(logits["max"][:, 1], logits["mean"][:, 1])
    assert (logits["max"][:, 0] > logits["mean"][:, 0]).all()


# Bad input.


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["mm-grounding-dino"], tmp_path / "copy"))


@pytest.mark.parametrize("part", ["preprocessor_config.json", "tokenizer.json"])
def test_a_missing_part_is_one_sentence(part: str, copy: Path) -> None:
    (copy / part).unlink()
    with pytest.raises(CheckpointError, match=str(copy)):
        load_critic("llmdet", copy)


def test_weights_of_the_other_model_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="class_embed"):
        load_critic("mm-grounding-dino", folders["grounding-dino"])


def test_another_tokenizer_is_refused(copy: Path) -> None:
    (copy / "words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n.\n?\ncat\ndog\n")
    transformers.BertTokenizer(str(copy / "words.txt")).save_pretrained(copy)
    with pytest.raises(CheckpointError, match="not BERT's uncased one"):
        load_critic("llmdet", copy)


@pytest.mark.parametrize("longest", [0.5, 1, "big"])
def test_a_size_that_is_no_whole_number_is_refused(copy: Path, longest: object) -> None:
    path = copy / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config["size"]["longest_edge"] = longest
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load_critic("llmdet", copy)


def test_statistics_that_are_no_three_numbers_are_refused(copy: Path) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_std": 0.2}))
    with pytest.raises(CheckpointError, match="image_std"):
        load_critic("llmdet", copy)


def test_a_size_of_another_kind_is_refused(copy: Path) -> None:
    transformers.GroundingDinoImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(
        copy
    )
    with pytest.raises(CheckpointError, match="shortest_edge and longest_edge"):
        load_critic("llmdet", copy)


def test_an_unknown_way_to_join_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="'max' or 'mean', not 'sum'"):
        load_critic("llmdet", folders["llmdet"], join="sum")
