"""Pocket's critics: the contracts, their records and files; and that the read-outs are right."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from critic_contract import CriticContract, TrainedCounterContract
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from countgen.pocket import ROLES, PocketError, load_clip, load_critic
from countgen.pocket.scenes import SceneSpec, compose
from countgen.pocket.train.scoring import HELD_OUT, exact_share, held_out_scenes, scores
from countgen.pocket.world import FOLDER, NAMES
from critics.base import Critic, UnknownNounError
from critics.density.blockwise import BlockwiseCounter, blockwise_loss, expectation
from critics.detectors.base import DetectionCritic
from critics.parts.boxes import intersection_over_union, suppress

CRITICS = tuple(ROLES.values())


def picture(*counts: tuple[str, int], seed: int = 0, ground: str = "grass") -> Tensor:
    """(3, 64, 64) composed scene in [0, 1]."""
    image = compose(SceneSpec(counts, ground), seed).image
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


class TestPocketCritics(TrainedCounterContract, CriticContract):
    """The contracts of every critic and of every trained one, and what holds for pocket's own."""

    nouns = ("cat", "dog", "cup")
    ghosts, rise = 0.05, 0.8

    @pytest.fixture(scope="module", params=CRITICS)
    @classmethod
    def critic(cls, request: pytest.FixtureRequest) -> Critic:
        return load_critic(request.param)

    def test_a_kind_counts_the_same_whatever_else_is_asked(self, critic: Critic) -> None:
        images = picture(("dog", 2), ("cup", 4))[None]
        both = critic(images, [critic.prepare(["dog", "cup"])])
        swapped = critic(images, [critic.prepare(["cup", "dog"])])
        torch.testing.assert_close(both.soft, swapped.soft.flip(1))
        assert both.hard.tolist() == [[2, 4]]

    def test_half_precision_pictures_are_counted_nearly_the_same(self, critic: Critic) -> None:
        found = critic(picture(("cat", 3))[None].to(torch.bfloat16), [critic.prepare(["cat"])])
        assert abs(found.soft.item() - 3) < 0.5

    @pytest.mark.parametrize("side", [64, 512])
    def test_the_count_is_that_of_any_size(self, critic: Critic, side: int) -> None:
        images = torch.nn.functional.interpolate(
            picture(("ball", 2), seed=1)[None], (side, side), mode="bilinear", antialias=True
        )
        assert critic(images, [critic.prepare(["ball"])]).hard.item() == 2

    def test_confidence_says_how_far_another_count_is(self, critic: Critic) -> None:
        clean, other = picture(("cat", 3)), picture(("dog", 2), ("cup", 4))
        queries = [critic.prepare(["cat"]), critic.prepare(["dog", "cup"])]
        found = critic(torch.stack([clean, other]), queries).confidence
        assert found.shape == (2, 2) and not found.requires_grad and found[0, 1] == 1
        assert (found >= 0).all() and (found <= 1).all()
        several = torch.stack([picture(("cat", 3), seed=seed) for seed in range(8)])
        assert critic(several, [queries[0]] * 8).confidence.mean() > 0.5
        # On the way from three cats to none, every change of the count passes the verge.
        flat = clean[:, :1, :1].expand_as(clean)
        fading = torch.stack([clean.lerp(flat, w) for w in torch.linspace(0, 1, 65).tolist()])
        path = critic(fading, [queries[0]] * 65)
        assert path.hard[0] != path.hard[-1] and path.confidence.min() < 0.2

    def test_an_empty_scene_counts_zero(self, critic: Critic) -> None:
        images = torch.stack([picture(("cat", 0), ground=g) for g in ("table", "sky", "snow")])
        found = critic(images, [critic.prepare(list(NAMES))] * 3)
        assert (found.hard == 0).all()

    def test_an_attribute_alone_separates_two_kinds(self, critic: Critic) -> None:
        images = picture(("red apple", 4), ("green apple", 3))[None]
        found = critic(images, [critic.prepare(["red apple", "green apple"])])
        assert found.hard.tolist() == [[4, 3]]

    def test_unknown_nouns_are_refused_with_the_nearest(self, critic: Critic) -> None:
        with pytest.raises(
            UnknownNounError, match="'apple'; the nearest are red apple, green apple"
        ):
            critic.prepare(["apple"])
        with pytest.raises(UnknownNounError, match="it sees red apple"):
            critic.prepare(["xylophone"])

    def test_held_out_scenes_are_counted_as_the_record_says(self, critic: Critic) -> None:
        """A sample of fresh scenes: no worse than the committed score less four standard errors."""
        name = critic.card.name.removeprefix("pocket-")
        record = json.loads((FOLDER / name / "training.json").read_text())["held_out"]
        found = scores(critic, count=150, seed=HELD_OUT + 2_000_000)
        for part in ("up_to_10", "11_to_20"):
            claimed = record[part]["exact"]
            slack = 4 * max(claimed * (1 - claimed), 0.004) ** 0.5 / 150**0.5
            assert found[part]["exact"] >= claimed - slack, part

    def test_pocket_is_free_and_names_its_nouns(self, critic: Critic) -> None:
        card = critic.card
        assert card.license_code == card.license_weights == "Apache-2.0"
        assert card.vocabulary == NAMES and card.parameters > 0


def test_the_three_roles_are_three_families() -> None:
    assert len({load_critic(name).card.family for name in CRITICS}) == 3


def test_the_judge_ignores_pieces_ghosts_and_mixtures() -> None:
    from countgen.pocket.train.scenery import judge_style

    judge = load_critic(ROLES["judge"])
    rng = np.random.default_rng(0)
    right = 0
    for seed in range(60):
        style = judge_style(rng)
        scene = compose(SceneSpec((("cat", 4), ("star", 3))), HELD_OUT + seed, style)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        found = judge(image, [judge.prepare(["cat", "star"])]).hard
        right += found.tolist() == [[4, 3]]
    assert right >= 52


# -- read-outs ------------------------------------------------------------------------------------


def test_expectation_is_the_mean_of_the_bins_and_passes_gradcheck() -> None:
    logits = torch.randn(1, 2, 4, 2, 2)
    anchors = (0.0, 1.0, 2.0, 3.3)
    found = expectation(logits, anchors)
    for k, y, x in itertools.product(range(2), range(2), range(2)):
        e = np.exp(logits[0, k, :, y, x].numpy().astype(np.float64))
        assert found[0, k, y, x].item() == pytest.approx(float((e / e.sum()) @ anchors), rel=1e-5)
    assert found.max() < anchors[-1]
    confident = torch.full((1, 1, 4, 1, 1), -50.0)
    confident[:, :, 2] = 50.0
    assert expectation(confident, anchors).item() == pytest.approx(2.0)


@pytest.mark.parametrize("present", [0, 1, 2])
def test_the_loss_is_the_entropy_and_the_error_of_each_group_whichever_classes_a_batch_holds(
    present: int,
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    counts = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    counts[:, :present, 0, 0], counts[:, :present, 1, 1] = 1, 3
    anchors = (0.0, 1.0, 2.5)
    shares = logits.softmax(2)
    entropy = -sum(
        shares[0, k, min(int(counts[0, k, y, x]), 2), y, x].log()
        for k, y, x in itertools.product(range(2), repeat=3)
    )
    found = (shares * torch.tensor(anchors)[:, None, None]).sum((2, 3, 4))[0]
    errors = [(found[k] - counts[0, k].sum()).abs() for k in range(2)]
    groups = [group for group in (errors[:present], errors[present:]) if group]
    expected = entropy / max(2 * present, 1) + 0.3 * sum(sum(g) / len(g) for g in groups)
    loss = blockwise_loss(logits, counts, anchors, count_weight=0.3)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(grad).all()


boxes_strategy = st.lists(
    st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 12)] * 2), min_size=1, max_size=12
)


@given(boxes_strategy, st.sampled_from([0.2, 0.45, 0.7]))
@settings(max_examples=80, deadline=None)
def test_suppression_equals_the_textbook_loop(
    raw: list[tuple[int, int, int, int]], overlap: float
) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in raw], dtype=torch.float32)
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if all(bool(intersection_over_union(box, boxes[j]) <= overlap) for j in kept):
            kept.append(i)
    found = suppress(boxes[None, None], torch.ones(1, 1, len(boxes), dtype=torch.bool), overlap)
    assert found[0, 0].nonzero().flatten().tolist() == kept


def test_boxes_are_where_the_objects_are() -> None:
    """Kept boxes of both detectors meet the composed boxes, in pixels of the picture given."""
    for name in ("pocket-detector-a", "pocket-detector-b"):
        detector = load_critic(name)
        scene = compose(SceneSpec((("car", 5),), "grass"), 4)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        for zoom in (1, 3):
            large = torch.nn.functional.interpolate(image, scale_factor=zoom, mode="nearest")
            found = detector(large, [detector.prepare(["car"])]).candidates
            assert found is not None
            boxes = found.boxes[found.kept]
            truth = torch.from_numpy(scene.boxes) * zoom
            shared = intersection_over_union(boxes[:, None], truth[None])
            assert len(boxes) == 5
            assert shared.amax(0).min() > 0.5, (name, zoom)


def test_density_lies_where_the_objects_are() -> None:
    counter = load_critic("pocket-density")
    scene = compose(SceneSpec((("donut", 6),), "sand"), 9)
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
    density = counter(image, [counter.prepare(["donut"])]).density
    assert density is not None and density.sum().item() == pytest.approx(6, abs=0.5)
    centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    blocks = {(int(y // 8), int(x // 8)) for x, y in centres}
    inside = sum(float(density[0, 0, y, x]) for y, x in blocks)
    assert inside > 5


# -- files ----------------------------------------------------------------------------------------


def test_a_missing_or_damaged_critic_names_file_and_cure(tmp_path: Path) -> None:
    source = FOLDER / "detector-a"
    with pytest.raises(PocketError, match=r"config\.json is missing\. Reinstall countgen"):
        load_critic("pocket-detector-a", tmp_path)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(PocketError, match=r"model\.safetensors is missing\. Reinstall"):
        load_critic("pocket-detector-a", tmp_path)
    weights = (source / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(PocketError, match=r"model\.safetensors is damaged"):
        load_critic("pocket-detector-a", tmp_path)
    state = load_file(source / "model.safetensors")
    first = sorted(state)[0]
    state["stranger"] = state.pop(first)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(PocketError, match=f"1 missing: {first}; 1 surplus: stranger"):
        load_critic("pocket-detector-a", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PocketError, match=r"config\.json cannot be read"):
        load_critic("pocket-detector-a", tmp_path)
    (tmp_path / "config.json").write_text((FOLDER / "density" / "config.json").read_text())
    with pytest.raises(PocketError, match="'heatmap-detector' is needed"):
        load_critic("pocket-detector-a", tmp_path)


def test_unknown_counters_are_refused_with_the_list() -> None:
    with pytest.raises(PocketError, match="pocket-detector-b"):
        load_critic("pocket-oracle")


def test_exact_share_counts_a_wrong_counter_wrong() -> None:
    """The score itself: a counter that sees nothing is right on no scene with objects."""
    blind = load_critic("pocket-detector-a")
    assert isinstance(blind, DetectionCritic)
    blind = blind.with_settings(threshold=1 - 1e-9)
    assert exact_share(blind, held_out_scenes(20, HELD_OUT, (1, 10)))["exact"] == 0
    numb = load_critic("pocket-density")
    assert isinstance(numb, BlockwiseCounter)
    assert exact_share(numb, held_out_scenes(20, HELD_OUT, (1, 10)))["exact"] > 0.5


def test_clip_tells_kinds_and_backgrounds_apart() -> None:
    from countgen.pocket.train.clip import scores as clip_scores

    record = json.loads((FOLDER / "clip" / "training.json").read_text())["held_out"]
    found = clip_scores(*load_clip(), count=200)
    for key in ("noun", "background"):
        assert found[key] >= record[key] - 0.12
