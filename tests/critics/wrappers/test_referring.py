"""Phrases against their negatives: the rule, the choice of negatives, a detector trained to need them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tiny_owl
import torch
import transformers
from critic_contract import CriticContract, TrainedCounterContract, noise
from torch import Tensor
from torch.nn import functional as F

from countgen.pocket import ROLES
from countgen.pocket import load_critic as load_pocket
from countgen.pocket.scenes import SceneSpec, SceneStyle, compose
from countgen.pocket.world import NAMES
from critics.base import Critic
from critics.detectors.base import DetectionCritic
from critics.parts.preprocess import CLIP, normalise
from critics.parts.readout import Detections
from critics.registry import load_critic
from critics.wrappers.referring import are_rivals, referring

NEGATIVES = {"cat": ["dog", "red apple"], "Red  Apple": ["green apple"], "dog": []}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only make a second thread wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> DetectionCritic:
    """A random OWLv2 that counts every patch above the threshold."""
    folder = tiny_owl.save(tmp_path_factory.mktemp("owlv2"), "owlv2")
    critic = load_critic("owlv2", folder, overlap=None, threshold=0.12)
    assert isinstance(critic, DetectionCritic)
    return critic


@pytest.fixture(scope="module")
def critic(plain: DetectionCritic) -> DetectionCritic:
    return referring(plain, NEGATIVES)


class TestReferring(CriticContract):
    """A batch mixes prompts with different numbers of negatives: two, one and none."""

    nouns = ("cat", "red apple", "dog")


def test_a_candidate_counts_above_threshold_and_negatives(
    plain: DetectionCritic, critic: DetectionCritic
) -> None:
    """The published rule, from the detector's own scores; the soft count is the smaller margin's sigmoid."""
    images, nouns = noise(3, 3, 64, 48), ["cat", "red apple", "dog"]
    found = critic(images, [critic.prepare(nouns)] * 3)
    query = plain.prepare([*nouns, "green apple"])
    cat, red, dog, green = plain.detector.detect(images, [query] * 3).logits.unbind(1)
    level = torch.logit(torch.tensor(0.12))
    rivals = (torch.maximum(dog, red), green, torch.full_like(dog, -torch.inf))
    for k, (own, rival) in enumerate(zip((cat, red, dog), rivals, strict=True)):
        counts = ((own > level) & (own > rival)).sum(-1)
        assert torch.equal(found.hard[:, k], counts)
        margins = torch.minimum(own - level, own - rival)
        soft = torch.sigmoid(critic.read_out.inverse_temperature * margins).sum(-1)
        torch.testing.assert_close(found.soft[:, k], soft, rtol=1e-4, atol=1e-4)
    every = plain(images, [query] * 3).hard
    assert (found.hard[:, :2] < every[:, :2]).any() and (found.hard[:, :2] > 0).any()
    assert torch.equal(found.hard[:, 2], every[:, 2])  # "dog" has no negatives


def test_margins_against_rivals_pass_gradcheck() -> None:
    logits, rivals = (torch.randn(1, 2, 6, dtype=torch.float64).requires_grad_() for _ in range(2))
    boxes = torch.zeros(1, 6, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda own, other: Detections(own, boxes, other).margins(-0.3), (logits, rivals)
    )
    none = torch.full_like(rivals, -torch.inf)
    assert torch.equal(
        Detections(logits, boxes, none).margins(-0.3), Detections(logits, boxes).margins(-0.3)
    )


def test_the_other_nouns_of_the_same_head_are_negatives_by_default(plain: DetectionCritic) -> None:
    images = noise(1, 3, 64, 64)
    nouns = ["red apple", "cat", "green apples"]
    default = referring(plain)
    told = referring(plain, {nouns[0]: [nouns[2]], nouns[2]: [nouns[0]], nouns[1]: []})
    found, same = (c(images, [c.prepare(nouns)]) for c in (default, told))
    assert torch.equal(found.soft, same.soft)
    alone = default(images, [default.prepare(["red apple"])])
    assert torch.equal(alone.soft, plain(images, [plain.prepare(["red apple"])]).soft)
    assert found.soft[0, 0] < alone.soft[0, 0]


def test_which_phrases_are_rivals() -> None:
    assert are_rivals("red apple", "Green  apples") and are_rivals(
        "glass of water", "glass of milk"
    )
    assert are_rivals("dogs on the left", "dog on the right") and are_rivals(
        "red bus", "blue buses"
    )
    assert not are_rivals("red apple", "apple") and not are_rivals("apples", "red apple")
    assert not are_rivals("cat on a car", "red car") and not are_rivals("red apple", "red apples")
    assert not are_rivals("wine glass", "glass of wine")  # the same words
    assert not are_rivals("", "") and not are_rivals("apple", "cat")


def test_negatives_add_up_when_wrapped_twice(plain: DetectionCritic) -> None:
    images = noise(1, 3, 64, 64)
    twice = referring(referring(plain, {"cat": ["dog"]}), {"cat": ["red apple"]})
    once = referring(plain, {"cat": ["dog", "red apple"]})
    first, second = (c(images, [c.prepare(["cat"])]).soft for c in (twice, once))
    assert torch.equal(first, second)


def test_settings_and_weights_are_the_critics_own(plain: DetectionCritic) -> None:
    critic = referring(plain)
    assert critic.network is plain.network and critic.read_out == plain.read_out
    assert critic.card.name == "owlv2-referring" and critic.card.family == plain.card.family
    assert not critic.card.published
    # A threshold that is changed later holds for both halves of the rule.
    images, loose = noise(1, 3, 64, 64), critic.with_settings(threshold=0.01)
    query = critic.prepare(["red apple", "green apple"])
    critic.read_out = critic.read_out.changed(threshold=0.01)
    assert torch.equal(critic(images, [query]).hard, loose(images, [query]).hard)


def test_what_cannot_be_is_refused_in_one_sentence(plain: DetectionCritic) -> None:
    with pytest.raises(ValueError, match="among its own negatives"):
        referring(plain, {"red apple": ["green apple", "Red apple"]})
    with pytest.raises(TypeError, match="need a detection critic"):
        referring(load_pocket(ROLES["verifier"]))
    with pytest.raises(ValueError, match=r"threshold .*probability"):
        plain.with_settings(threshold=1.5)
    critic = referring(plain, {"cat": ["dog"]})
    with pytest.raises(ValueError, match="prepared by another critic"):
        critic(noise(1, 3, 32, 32), [plain.prepare(["red apple", "cat"])])


class TestPocket(CriticContract):
    """Pocket's detectors, whose vocabulary is closed, against negatives from it."""

    nouns = ("cat", "red apple", "dog")

    @pytest.fixture(scope="class", params=[ROLES["critic"], ROLES["judge"]])
    @classmethod
    def critic(cls, request: pytest.FixtureRequest) -> DetectionCritic:
        return referring(load_pocket(request.param), NEGATIVES)

    def test_a_picture_of_both_is_counted_as_before(self, critic: DetectionCritic) -> None:
        made = compose(SceneSpec((("red apple", 4), ("green apple", 3))), 5)
        images = torch.from_numpy(made.image).permute(2, 0, 1).float()[None] / 255
        nouns = ["red apple", "green apple", "cat"]
        assert critic(images, [critic.prepare(nouns)]).hard.tolist() == [[4, 3, 0]]


# -- a detector that half ignores colours -------------------------------------------------------------

KINDS = ("red apple", "green apple", "cat")
STYLE = SceneStyle(grid=16, largest=0.25, max_overlap=0.0, rotation=0.0)
"""Objects as large as a patch, one in a patch at most: learned in seconds."""


def scene(seed: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Picture, (16, 3) which kind is in which patch, (16, 4) its box there, relative; and the counts."""
    counts = np.random.default_rng(seed).integers(0, 4, len(KINDS)).tolist()
    made = compose(SceneSpec(tuple(zip(KINDS, counts, strict=True)), "table"), seed, STYLE)
    kinds, places = torch.zeros(16, len(KINDS)), torch.zeros(16, 4)
    for (x0, y0, x1, y1), label in zip(made.boxes.tolist(), made.labels, strict=True):
        patch = int((y0 + y1) / 32) * 4 + int((x0 + x1) / 32)
        kinds[patch, KINDS.index(NAMES[label])] = 1
        places[patch] = torch.tensor([x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0)]) / 128
    image = torch.from_numpy(made.image).permute(2, 0, 1).float() / 255
    return image, kinds, places, counts


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DetectionCritic:
    """An OWLv2 trained from nothing, text encoder and all, that half ignores colours: for an apple of the
    other colour it is taught a probability of one half."""
    folder = tmp_path_factory.mktemp("apples")
    torch.manual_seed(0)
    model = tiny_owl.build(
        "owlv2", tiny_owl.save_tokenizer(folder), side=64, patch=16, width=32, layers=1
    )
    scenes = [scene(seed) for seed in range(256)]
    pixels = normalise(torch.stack([image for image, *_ in scenes]), CLIP)
    truth = torch.stack([kinds for _, kinds, _, _ in scenes])
    truth[..., :2] += truth[..., :2].flip(-1) / 2
    places = torch.stack([place for _, _, place, _ in scenes])
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    texts = tokenizer(
        [f"a photo of a {kind}" for kind in KINDS],
        padding="max_length",
        max_length=16,
        return_tensors="pt",
    )
    steps = 200
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(scenes), (32,))
        nouns = model.base_model.get_text_features(**texts).pooler_output
        features = model.image_embedder(pixels[rows])[0].flatten(1, 2)
        logits = model.class_predictor(features, nouns.expand(32, -1, -1))[0]
        boxes = (model.box_head(features) + model.box_bias).sigmoid()
        full = truth[rows].amax(-1) > 0
        loss = F.binary_cross_entropy_with_logits(logits, truth[rows])
        loss = loss + 2 * (boxes - places[rows])[full].abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    tiny_owl.save_model(folder, "owlv2", model.eval())
    critic = load_critic("owlv2", folder, threshold=0.3)
    assert isinstance(critic, DetectionCritic)
    return critic


def exact(critic: Critic, nouns: tuple[str, ...]) -> float:
    """Share of fresh scenes in which every noun's count is right."""
    scenes = [scene(seed) for seed in range(10_000, 10_060)]
    images = torch.stack([image for image, *_ in scenes])
    hard = critic(images, [critic.prepare(nouns)] * len(scenes)).hard
    true = torch.tensor([counts for *_, counts in scenes])[:, [KINDS.index(n) for n in nouns]]
    return (hard == true).all(-1).float().mean().item()


def test_red_and_green_apples_are_told_apart_only_against_each_other(
    trained: DetectionCritic,
) -> None:
    assert exact(trained, ("cat",)) >= 0.95  # it detects well, ...
    assert exact(trained, KINDS) <= 0.3  # ... but takes apples of either colour for both
    assert exact(referring(trained), KINDS) >= 0.95
    # Where the prompt has one kind only, its negatives have to be named.
    assert exact(referring(trained), ("red apple",)) <= 0.4
    named = referring(trained, {"red apple": ["green apple"]})
    assert exact(named, ("red apple",)) >= 0.95


class TestTrained(TrainedCounterContract):
    nouns = KINDS
    style, ground = STYLE, "table"

    @pytest.fixture
    def critic(self, trained: DetectionCritic) -> DetectionCritic:
        return referring(trained, {KINDS[0]: [KINDS[1]], KINDS[1]: [KINDS[0]]})


def test_boxes_of_the_trained_detector_are_where_the_apples_are(trained: DetectionCritic) -> None:
    image, kinds, places, _ = scene(10_001)
    critic = referring(trained)
    found = critic(image[None], [critic.prepare(KINDS)]).candidates
    assert found is not None
    for k in range(len(KINDS)):
        kept = found.boxes[0, k][found.kept[0, k]]
        centres = (kept[:, :2] + kept[:, 2:]) / 2
        true = places[kinds[:, k] > 0][:, :2] * 64
        assert len(true) == len(centres)
        if len(true):
            assert torch.cdist(true, centres).amin(1).max() < 3


def test_the_gradient_recolours_apples_when_more_red_ones_are_wanted(
    trained: DetectionCritic,
) -> None:
    """Against its negative "red apple" wants red; alone it is content with a green one."""
    made = compose(SceneSpec((("green apple", 3),), "table"), 5, STYLE)
    start = torch.from_numpy(made.image).permute(2, 0, 1).float()[None] / 255
    critic = referring(trained)
    query = critic.prepare(["red apple", "green apple"])
    before = critic(start, [query])
    assert before.hard.tolist() == [[0, 3]]
    assert trained(start, [trained.prepare(["red apple"])]).hard.item() == 3
    picture = start.clone()
    for _ in range(40):
        picture.requires_grad_()
        soft = critic(picture, [query]).soft[0]
        (grad,) = torch.autograd.grad(soft[0] - soft[1], picture)
        with torch.no_grad():
            picture = (picture + 1.0 * grad / grad.norm()).clamp(0, 1)
    after = critic(picture, [query])
    assert after.hard[0, 0] >= 2 and after.hard[0, 1] <= 1
    change = (picture - start)[0]
    apples = torch.zeros(64, 64, dtype=torch.bool)
    for x0, y0, x1, y1 in made.boxes.astype(int):
        apples[y0:y1, x0:x1] = True
    assert (change[0] - change[1])[apples].mean() > 0.05  # redder, less green
