"""Scenes with expressions, what the referring counter is trained towards, and that it learns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from countgen.learning import refer
from countgen.learning.loop import TrainConfig, fit
from countgen.pocket.world import NAMES
from critics.detectors.c_rex import STRIDE, ReferNetwork, Referrer, critic


def test_an_expression_means_the_objects_of_its_attribute_or_place() -> None:
    batch = refer.draw(np.random.default_rng(0), 40)
    assert {one.decided_by for one in batch.expressions} == {"attribute", "place"}
    for row, one in zip(batch.rows.tolist(), batch.expressions, strict=True):
        scene = batch.scenes[row]
        middles = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
        for label, (x, y), chosen in zip(scene.labels, middles, one.chosen, strict=True):
            noun = refer.head(one)
            there = {
                "": True,
                "on the left": x < 32,
                "on the right": x >= 32,
                "at the top": y < 32,
                "at the bottom": y >= 32,
            }[_place(one.key)]
            assert chosen == (NAMES[label] == noun and there)
        assert _place(one.key) in one.text


def _place(key: str) -> str:
    return next((place for place in refer.PLACES if key.endswith(place)), "")


def test_the_two_expressions_of_a_place_share_out_all_of_a_kind() -> None:
    batch = refer.draw(np.random.default_rng(1), 40)
    pairs = zip(batch.expressions[::2], batch.expressions[1::2], batch.scenes, strict=True)
    for one, other, scene in pairs:
        assert not (one.chosen & other.chosen).any()
        if one.decided_by == "place":
            assert (one.chosen | other.chosen).sum() == (
                scene.labels == NAMES.index(refer.head(one))
            ).sum()


def test_every_expression_is_of_known_words() -> None:
    known = refer.known_words()
    referrer = Referrer(ReferNetwork(len(known)), known, 64)
    batch = refer.draw(np.random.default_rng(2), 60)
    ids = referrer.numbered([one.text for one in batch.expressions])
    assert (ids[:, 0] > 0).all() and ids.max() <= len(known)


def test_targets_stand_at_the_centroids() -> None:
    batch = refer.draw(np.random.default_rng(3), 8)
    found = refer.targets(batch)
    side = 64 // STRIDE
    assert found.peaks.shape == (16, side, side)
    for p, one in enumerate(batch.expressions):
        scene = batch.scenes[int(batch.rows[p])]
        middles = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 / STRIDE
        mine = found.meant[:, 0] == p
        cells = found.meant[mine][:, 1:].flip(1) + 0.5 + found.offsets[mine]
        wanted = sorted(map(tuple, middles[one.chosen].round(3).tolist()))
        assert len({(int(x), int(y)) for x, y in wanted}) == len(cells)
        near = [min(np.abs(np.array(w) - cell.numpy()).max() for w in wanted) for cell in cells]
        assert all(gap < 1e-3 for gap in near)
        assert (found.peaks[p] == 1).sum() == len(cells)
    taken = {tuple(cell) for cell in found.meant.tolist()}
    assert not taken & {tuple(cell) for cell in found.others.tolist()}


def test_tokens_of_one_expression_are_positives_wherever_they_are_in_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def keep(embeds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.update(embeds=embeds, labels=labels)
        return embeds.sum()

    monkeypatch.setattr(refer, "supervised_contrastive_loss", keep)
    batch = refer.draw(np.random.default_rng(4), 12)
    network = ReferNetwork(len(refer.known_words()))
    wanted = refer.targets(batch)
    tokens = torch.rand(len(batch.expressions), network.width, 16, 16)
    noise = torch.Generator().manual_seed(0)
    refer.contrastive(network, tokens, batch.expressions, wanted, noise)
    labels = seen["labels"]
    keys = [batch.expressions[p].key for p in wanted.meant[:, 0].tolist()]
    anchors = labels[labels >= 0].tolist()
    assert len(anchors) == len(keys)
    assert len(set(zip(anchors, keys, strict=True))) == len(set(keys)) == len(set(anchors))
    assert (labels < 0).sum() > len(wanted.others)


def test_errors_are_those_of_the_counts_by_what_decides() -> None:
    batch = refer.held_out(20)
    known = refer.known_words()
    made = critic(ReferNetwork(len(known)).eval().requires_grad_(False), known, 64, 0.9)
    found = refer.errors(refer.misses(made, batch, refer.said), batch)  # counts nothing at all
    true = np.array([one.chosen.sum() for one in batch.expressions])
    assert found["all"]["mae"] == pytest.approx(true.mean())
    assert found["all"]["rmse"] == pytest.approx(np.sqrt((true**2).mean()))
    assert found["place"]["expressions"] + found["attribute"]["expressions"] == 40


@pytest.mark.slow
def test_it_learns_to_tell_places_apart(tmp_path: Any) -> None:
    """In a minute: "dogs on the left" has more to do with dogs on the left than with all dogs."""
    torch.manual_seed(0)
    known = refer.known_words()
    network = ReferNetwork(len(known))
    config = TrainConfig(280, 12, 3e-3, warmup=20, ema=0.9)
    fit("c-rex", network, refer.objective(Referrer(network, known, 64), 12, 0.1), config, tmp_path)
    made = critic(network.requires_grad_(False), known, 64, 0.4)
    batch = refer.held_out(60)
    mine = refer.errors(refer.misses(made, batch, refer.said), batch)["place"]["mae"]
    true = np.array([one.chosen.sum() for one in batch.expressions if one.decided_by == "place"])
    constant = np.abs(true - np.median(true)).mean()
    assert mine < 0.75 * constant, (mine, constant)
