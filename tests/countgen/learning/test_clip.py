"""Teaching CLIP to count: data, objective, resuming, the result as a critic, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from countgen.cli import main
from countgen.errors import UsageError
from countgen.learning import clip
from countgen.learning.captioned import PocketCaptions, agreed, read_captions
from countgen.learning.clip_losses import VARIANTS
from countgen.learning.clip_scores import counting, held_out, retrieval
from countgen.learning.loop import TrainConfig
from countgen.pocket import load_critic as load_pocket
from countgen.pocket.scenes import SceneSpec, compose
from countgen.presets import load_critic
from critics.loading.checkpoint import CheckpointError

TRAIN = TrainConfig(steps=4, batch=4, warmup=1, learning_rate=1e-3, ema=0.5, held_out=32)
SETTINGS = clip.ClipSettings(TRAIN, share=0.5, numbers=(0, 3))


@pytest.fixture(autouse=True)
def small_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out scores are the same code on fewer scenes."""
    real, scores = clip.held_out, clip.scores
    monkeypatch.setattr(clip, "scores", lambda student, held, count: scores(student, held, 8))
    monkeypatch.setattr(clip, "held_out", lambda numbers, per_number: _first(real(numbers, 1)))


def _first(held: Any) -> Any:
    return replace(held, images=held.images[:8], nouns=held.nouns[:8], counts=held.counts[:8])


def captioned_folder(place: Path, captions: list[str]) -> Path:
    """Scenes with captions; the pictures show what the captions say."""
    place.mkdir()
    rows = []
    for i, caption in enumerate(captions):
        count = i % 4
        image = compose(SceneSpec((("cat", count),)), i).image
        Image.fromarray(image).save(place / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": caption}))
    (place / "metadata.jsonl").write_text("\n".join(rows))
    return place


CAPTIONS = [f"{word} on a table" for word in ("no cats", "one cat", "two cats", "three cats")] * 3


class TestPocketCaptions:
    def test_pictures_show_what_counting_captions_say(self) -> None:
        batch = PocketCaptions(range(0, 6)).draw(np.random.default_rng(0), 24, 16)
        assert batch.images.shape == (24, 3, 64, 64) and len(batch.counted) == 16
        assert [c.text for c in batch.counted] == batch.texts[:16]
        critic = load_pocket("pocket-detector-a")
        queries = [critic.prepare([caption.noun]) for caption in batch.counted]
        hard = critic(batch.images[:16], queries).hard[:, 0].tolist()
        same = [n == caption.number for n, caption in zip(hard, batch.counted, strict=True)]
        assert sum(same) >= 13

    def test_a_batch_is_a_function_of_its_generator(self) -> None:
        one, two = (PocketCaptions(range(4)).draw(np.random.default_rng(3), 6, 3) for _ in range(2))
        assert torch.equal(one.images, two.images) and one.texts == two.texts


class TestFolders:
    @pytest.mark.parametrize("layout", ["jsonl", "csv", "txt", "countbench"])
    def test_layouts(self, tmp_path: Path, layout: str) -> None:
        folder = captioned_folder(tmp_path / "data", [*CAPTIONS, "a cat", "two cats and a dog"])
        rows = [json.loads(r) for r in (folder / "metadata.jsonl").read_text().splitlines()]
        if layout != "jsonl":
            (folder / "metadata.jsonl").unlink()
        if layout == "csv":
            lines = [f'{row["file_name"]},"{row["text"]}"' for row in rows]
            (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]))
        elif layout == "txt":
            for row in rows:
                (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")
        elif layout == "countbench":
            entries = [
                {"image_url": "https://example.org/x.png", "text": r["text"], "number": i % 4}
                for i, r in enumerate(rows[:12])
            ]
            (folder / "CountBench.json").write_text(json.dumps(entries))
        found = read_captions(folder, range(0, 4), 64)
        assert len(found.counting) == 12 and len(found.others) == (
            0 if layout == "countbench" else 2
        )
        record = found.counting[2]
        assert record.counts is not None and record.counts.number == 2 and record.path.is_file()

    def test_numbers_that_are_not_learned_count_nothing(self, tmp_path: Path) -> None:
        found = read_captions(captioned_folder(tmp_path / "data", CAPTIONS), range(2, 4), 64)
        assert {r.counts.number for r in found.counting if r.counts} == {2, 3}
        assert len(found.others) == 6

    @pytest.mark.parametrize(
        ("captions", "message"),
        [
            ([], "has no captions; it needs a metadata"),
            (["a cat", "some dogs"], "none counts one thing from 0 to 3"),
        ],
    )
    def test_folders_without_captions_or_numbers_are_told(
        self, tmp_path: Path, captions: list[str], message: str
    ) -> None:
        folder = captioned_folder(tmp_path / "data", captions)
        if not captions:
            (folder / "metadata.jsonl").unlink()
        with pytest.raises(UsageError, match=message):
            read_captions(folder, range(0, 4), 64)

    def test_rows_that_lead_elsewhere_or_have_no_caption_are_named(self, tmp_path: Path) -> None:
        folder = captioned_folder(tmp_path / "data", CAPTIONS)
        for row, message in (
            ({"file_name": "../x.png", "text": "two cats"}, "does not lie"),
            ({"file_name": "0.png"}, "names no caption"),
        ):
            (folder / "metadata.jsonl").write_text(json.dumps(row))
            with pytest.raises(UsageError, match=rf"metadata\.jsonl, line 1.*{message}"):
                read_captions(folder, range(0, 4), 64)

    def test_a_detector_keeps_the_captions_that_it_agrees_with(self, tmp_path: Path) -> None:
        lies = ["three cats", "one cat", "two cats", "no cats", "two zebras"]
        folder = captioned_folder(tmp_path / "data", lies)
        found = read_captions(folder, range(0, 4), 64)
        critic = load_pocket("pocket-detector-a")
        asked: list[int] = []
        kept = agreed(
            found, critic, tmp_path / "agreed.json", lambda done, total: asked.append(total)
        )
        assert [r.text for r in kept.counting] == ["one cat", "two cats"] and asked
        assert {r.text for r in kept.others} == {"three cats", "no cats", "two zebras"}
        assert "agrees with 2 of 5" in kept.notes[-1]
        again: list[int] = []
        assert agreed(found, critic, tmp_path / "agreed.json", lambda d, t: again.append(t)) == kept
        assert not again
        with pytest.raises(UsageError, match="agrees with none of the 1"):
            agreed(replace(found, counting=found.counting[:1]), critic, tmp_path / "other.json")


def test_the_objective_is_clips_loss_and_the_weighted_counting_loss() -> None:
    student = clip.load_student("pocket", range(0, 4), "cpu")
    data = PocketCaptions(range(0, 4))
    noise = torch.Generator().manual_seed(0)
    losses = {
        weight: clip.objective(student, data, replace(SETTINGS, weight=weight, loss="all-wrong"))(
            np.random.default_rng(0), noise
        )
        for weight in (0.0, 1.0, 2.0)
    }
    assert "count" not in losses[0.0]
    for weight in (1.0, 2.0):
        terms = losses[weight]
        torch.testing.assert_close(terms["loss"], terms["clip"] + weight * terms["count"])
        torch.testing.assert_close(terms["clip"], losses[0.0]["clip"])


def test_clips_loss_is_symmetric_cross_entropy() -> None:
    torch.manual_seed(0)
    seen, said = torch.nn.functional.normalize(torch.randn(2, 5, 4).double(), dim=-1)
    logits = (3 * seen @ said.T).tolist()
    expected = 0.0
    for i in range(5):
        rows = sum(math.exp(s) for s in logits[i])
        columns = sum(math.exp(row[i]) for row in logits)
        expected -= (
            math.log(math.exp(logits[i][i]) / rows) + math.log(math.exp(logits[i][i]) / columns)
        ) / 10
    assert clip.clip_loss(seen, said, torch.tensor(3.0).double()).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["one-wrong", "group-ordering"])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, loss: Any) -> None:
    settings = replace(SETTINGS, loss=loss)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    results = clip.train(settings, whole)
    assert set(results) == {"counting", "retrieval", "matching"}
    assert clip.train(settings, cut, stop_after=2) == {}
    assert not (cut / "model.safetensors").exists()
    assert clip.train(settings, cut) == results
    one, two = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert list((whole / "work" / "samples").glob("step-*.png"))


def test_ctrl_c_leaves_a_checkpoint_that_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, drawn = PocketCaptions.draw, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(PocketCaptions, "draw", interrupted)
    command = ["learn", "clip", "--steps", "4", "--batch", "4", "--share", "0.5"]
    command += ["--highest", "3", "--json", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 1
    assert "interrupted at step 2" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert 0 <= printed["held_out"]["counting"]["accuracy"] <= 1
    assert drawn == 5  # the third batch, and the last two


def test_the_result_counts_down_to_zero_as_a_critic(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path / "data", CAPTIONS)
    settings = replace(SETTINGS, data=str(folder), loss="all-wrong")
    results = clip.train(settings, tmp_path / "out")
    assert results["counting"]["pictures"] == 1
    critic: Any = load_critic(f"count-clip={tmp_path / 'out'}")
    assert critic.numbers == range(0, 4) and critic.statistics[0] == (0.5, 0.5, 0.5)
    images = torch.rand(2, 3, 64, 64).requires_grad_()
    found = critic(images, [critic.prepare(["cat"])] * 2)
    found.soft.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert ((found.soft >= 0) & (found.soft <= 3)).all()


def test_a_trained_folder_is_taught_on_with_its_own_statistics(tmp_path: Path) -> None:
    student = clip.load_student("pocket", range(0, 4), "cpu")
    student.save(tmp_path)
    again = clip.load_student(str(tmp_path), range(0, 8), "cpu")
    assert again.statistics == student.statistics
    (tmp_path / "counting.json").unlink()
    assert clip.load_student(str(tmp_path), range(0, 4), "cpu").statistics == clip.CLIP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": (3, 3)}, "not from 3 to 3"),
        ({"loss": "magic"}, "there are one-wrong"),
        ({"share": 0.0}, r"share of counting pictures lies in \(0, 1\]"),
        ({"weight": -1.0}, "not negative"),
        ({"train": replace(TRAIN, batch=1)}, "two pictures at least"),
    ],
)
def test_settings_that_cannot_be_are_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **change)


def test_what_cannot_be_gone_on_with_is_told_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip.train(SETTINGS, out, stop_after=2)
    before = (out / "work" / "clip.checkpoint").read_bytes()
    for other in (
        replace(SETTINGS, loss="decoupled"),
        replace(SETTINGS, train=replace(TRAIN, seed=7)),
    ):
        with pytest.raises(
            UsageError, match=r"other settings \((loss one-wrong, now dec|seed 0, now 7)"
        ):
            clip.train(other, out)
    assert (out / "work" / "clip.checkpoint").read_bytes() == before
    with pytest.raises(UsageError, match="is not empty, and holds no training"):
        clip.train(SETTINGS, out / "work")
    with pytest.raises(CheckpointError):
        clip.train(replace(SETTINGS, model=str(tmp_path)), tmp_path / "other")
    with pytest.raises(UsageError, match="filter nothing"):
        clip.train(replace(SETTINGS, filter_by="owlv2"), tmp_path / "third")


def test_retrieval_and_counting_of_a_perfect_and_a_blind_critic() -> None:
    """Embeddings that are the number itself, and ones that are all alike."""

    class Perfect:
        numbers = range(0, 4)
        statistics = clip.HALVES

        def __init__(self, blind: bool) -> None:
            self.blind = blind
            self.network = torch.nn.Linear(1, 1)
            self.network.config = type(
                "C", (), {"vision_config": type("V", (), {"image_size": 64})}
            )
            self.network.get_image_features = self.see

        def see(self, pixel_values: Any) -> Any:
            count = (pixel_values[:, 0, 0, 0] * 2 + 2).round().long()
            eye = torch.ones(len(count), 4) if self.blind else torch.eye(4)[count]
            return type("O", (), {"pooler_output": eye})

        def prepare(self, nouns: list[str]) -> Any:
            return type("Q", (), {"text": {"captions": torch.eye(4)[None]}})

    held = held_out(range(0, 4), 2)
    images = torch.tensor(held.counts).float()[:, None, None, None].expand(-1, 3, 64, 64) / 4
    marked = replace(held, images=images)
    assert retrieval(Perfect(False), marked) == {"first_right": 1.0, "average_precision": 1.0}
    assert retrieval(Perfect(True), marked)["average_precision"] < 0.6
    critic = clip.load_student("pocket", range(0, 4), "cpu").critic
    found = counting(critic, _first(held))
    assert set(found["by_number"]) == {"0", "1", "2", "3"} and found["mae"] >= 0


def test_every_loss_can_be_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["learn", "clip", "--help"])
    text = capsys.readouterr().out
    assert all(name in text.replace("\n", "") for name in VARIANTS) and "count-clip=" in text


def test_usage_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = str(tmp_path / "out")
    assert main(["learn", "clip", "--data", str(empty), "--out", out]) == 2
    assert "has no captions" in capsys.readouterr().err
    assert main(["learn", "clip", "--data", str(empty / "none"), "--out", out]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
