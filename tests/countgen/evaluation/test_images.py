"""Finished pictures are judged by several counters, and counters by pictures whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from countgen.errors import UsageError
from countgen.evaluation import counting
from countgen.evaluation.counters import Reading, absent_score, agreement, scores, trusted
from countgen.evaluation.counting import Counters, Question
from countgen.evaluation.images import ROWS, SUMMARY, ImageOptions, evaluate_images, table
from countgen.pocket import load_critic
from countgen.pocket.scenes import SceneSpec, compose
from critics.base import Critic, NonFiniteCountError, Query

NAMES = ("pocket-detector-b", "pocket-density")


@pytest.fixture(scope="module")
def critics() -> dict[str, Critic]:
    return {name: load_critic(name) for name in NAMES}


def scene(path: Path, seed: int, side: int = 64, **counts: int) -> Path:
    found = compose(SceneSpec(tuple(counts.items()), "grass"), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(found.image).resize((side, side)).save(path)
    return path


def reading(
    count: int, expected: int, picture: str = "a", noun: str = "cat", group: str = ""
) -> Reading:
    return Reading(group or picture, picture, noun, count, expected)


# -- counting ---------------------------------------------------------------------------------------


def test_pictures_of_any_size_are_counted_in_their_order(
    tmp_path: Path, critics: dict[str, Critic]
) -> None:
    questions = []
    for k in range(7):
        side = (64, 96, 64, 128)[k % 4]
        path = scene(tmp_path / f"{k}.png", k, side, star=k + 1)
        questions.append(Question(path, ("star", "cat") if k % 2 else ("star",), k))
    (tmp_path / "3.png").write_bytes(b"no picture")
    answers = list(Counters(critics).count(questions, batch_size=4))
    assert [a.question.key for a in answers] == list(range(7))
    for k, answer in enumerate(answers):
        if k == 3:
            assert str(tmp_path / "3.png") in answer.error and not answer.seen
            continue
        assert not answer.error and list(answer.seen) == list(NAMES)
        for found in answer.seen.values():
            assert found["star"].count == k + 1 and set(found) == set(questions[k].nouns)
        detected, summed = (answer.seen[name]["star"] for name in NAMES)
        assert detected.boxes is not None and len(detected.boxes) == detected.count
        assert all(-8 <= x <= answer.size[0] + 8 for box in detected.boxes for x in box)
        assert summed.boxes is None and 0 <= summed.confidence <= 1
    alone = [next(Counters(critics).count([question])) for question in questions]
    assert [a.seen and a.seen[NAMES[0]]["star"].count for a in alone] == [
        a.seen and a.seen[NAMES[0]]["star"].count for a in answers
    ]


def test_a_noun_that_one_counter_cannot_see_is_left_to_the_others(
    tmp_path: Path, critics: dict[str, Critic]
) -> None:
    class Blind:
        """The density counter, with a smaller vocabulary."""

        def __init__(self, critic: Critic) -> None:
            self.critic, self.card, self.gives = critic, critic.card, critic.gives
            self.network = critic.network

        def to(self, device: Any) -> Any:
            return self

        def prepare(self, nouns: Sequence[str]) -> Query:
            return self.critic.prepare(["unicorn" if noun == "cat" else noun for noun in nouns])

        def __call__(self, images: Any, queries: Any) -> Any:
            return self.critic(images, queries)

    path = scene(tmp_path / "a.png", 1, star=2, cat=1)
    counters = Counters({"sees": critics[NAMES[0]], "blind": Blind(critics[NAMES[1]])})
    (answer,) = counters.count([Question(path, ("star", "cat"))])
    assert set(answer.seen["sees"]) == {"star", "cat"} and set(answer.seen["blind"]) == {"star"}
    assert list(counters.unseen["blind"]) == ["cat"] and not counters.unseen["sees"]


@pytest.mark.parametrize("error", ["memory", "numbers"])
def test_one_picture_that_is_too_much_does_not_stop_the_others(
    tmp_path: Path, critics: dict[str, Critic], error: str
) -> None:
    critic = critics[NAMES[1]]
    sizes = []

    class Strained:
        """The density counter, which has room for two pictures at once, and none for a black one."""

        card, gives, network, prepare = critic.card, critic.gives, critic.network, critic.prepare

        def to(self, device: Any) -> Any:
            return self

        def __call__(self, images: torch.Tensor, queries: Sequence[Query]) -> Any:
            sizes.append(len(images))
            black = (images.flatten(1).amax(1) == 0).nonzero()[:, 0].tolist()
            if error == "memory" and (len(images) > 2 or black):
                raise torch.OutOfMemoryError("CUDA out of memory")
            if black:
                raise NonFiniteCountError(black, "it")
            return critic(images, queries)

    paths = [scene(tmp_path / f"{k}.png", k, star=k + 1) for k in range(5)]
    Image.new("RGB", (64, 64)).save(paths[2])
    answers = list(Counters({"it": Strained()}).count([Question(p, ("star",)) for p in paths]))
    found = [a.seen["it"]["star"].count if a.seen else a.error for a in answers]
    assert [x for k, x in enumerate(found) if k != 2] == [1, 2, 4, 5]
    assert str(paths[2]) in found[2] and ("memory" if error == "memory" else "finite") in found[2]


def test_few_pictures_are_held_at_once(
    tmp_path: Path, critics: dict[str, Critic], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MAX_BATCH_PIXELS", 2 * 64 * 64)
    read = []
    original = counting.read_picture
    monkeypatch.setattr(
        counting, "read_picture", lambda path: (read.append(path), original(path))[1]
    )
    paths = [scene(tmp_path / f"{k}.png", k, star=1) for k in range(6)]
    answers = Counters(critics).count([Question(path, ("star",)) for path in paths])
    next(answers)
    assert len(read) == 3  # two that are counted, and the next one
    assert len(list(answers)) == 5


# -- folders ----------------------------------------------------------------------------------------


def stars_and_cats(folder: Path) -> None:
    """Twelve pictures: in one of three more stars were asked for than there are; cats in half of them."""
    rows = ["picture,noun,count,true,prompt"]
    for k in range(12):
        stars, cats = k % 5 + 1, k % 2
        scene(folder / f"{k}.png", k, star=stars, **({"cat": cats} if cats else {}))
        rows.append(f"{k}.png,star,{stars + (k % 3 == 0)},{stars},prompt {k % 6}")
        rows.append(f"{k}.png,cat,,{cats},prompt {k % 6}")
    (folder / "pictures.csv").write_text("\n".join(rows))


def test_pictures_and_counters_are_scored_by_one_table(
    tmp_path: Path, critics: dict[str, Critic]
) -> None:
    stars_and_cats(tmp_path)
    (tmp_path / "11.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told: list[str] = []
    found = evaluate_images(ImageOptions(tmp_path), critics, told.append)
    assert found["n_images"] == 11 and found["n_prompts"] == 6 and found["layout"] == "table"
    assert [f["picture"] for f in found["failed"]] == ["11.png"] and "11.png" in told[0]
    judge = found["methods"]["images"]["judge"]
    assert judge == found["methods"]["images"]["judges"]["pocket-detector-b"]
    assert judge["n"] == judge["pictures"] == 11
    assert judge["exact"] == judge["pictures_exact"] == pytest.approx(7 / 11, abs=1e-4)
    assert judge["bias"] == pytest.approx(-4 / 11, abs=1e-4) == -judge["mae"]
    assert (
        judge["within_one"] == 1
        and judge["exact_ci95"][0] < judge["exact"] < judge["exact_ci95"][1]
    )
    for name in NAMES:
        counter = found["counters"][name]
        assert counter["exact"] == 1 and counter["mae"] == 0 and counter["n"] == 11 + 5
        assert counter["absent"] == {"n": 6, "none_counted": 1, "mean_count": 0}
        assert counter["by_noun"]["star"]["n"] == 11 and counter["by_count"][1]["n"] == 3 + 5
    (pair,) = found["agreement"]
    assert pair["counters"] == list(NAMES) and pair["same"] == 1 and pair["n"] == 22
    assert found["trusted"]["star"]["mae"] == 0 and found["trusted"]["star"]["sure"] is False
    json.dumps(found)
    told = "\n".join(table(found))
    assert "1 could not be counted" in told and "63.6%" in told and "100.0%" in told
    assert "for star trust pocket-detector-b" in told and "count the same in 100.0% of 22" in told


def test_counters_are_asked_for_what_is_absent(tmp_path: Path, critics: dict[str, Critic]) -> None:
    kinds = ["star", "cat", "dog"]
    data: dict[str, Any] = {"images": [], "annotations": []}
    data["categories"] = [{"id": k, "name": name} for k, name in enumerate(kinds)]
    for k in range(6):
        scene(tmp_path / f"{k}.png", k, **{kinds[k % 3]: k + 1})
        data["images"].append({"id": k, "file_name": f"{k}.png"})
        data["annotations"] += [{"image_id": k, "category_id": k % 3, "iscrowd": 0}] * (k + 1)
        # Crowds of dogs were not counted: dogs are never asked for as absent.
        data["annotations"].append({"image_id": k, "category_id": 2, "iscrowd": 1})
    (tmp_path / "truth.json").write_text(json.dumps(data))
    options = ImageOptions(tmp_path, tmp_path / "truth.json", absent=2, out=tmp_path / "out")
    found = evaluate_images(options, critics)
    rows = [json.loads(line) for line in (tmp_path / "out" / ROWS).read_text().splitlines()]
    assert len(rows) == 4  # those of dogs have nothing that was counted singly
    for row in rows:
        assert row["true"][1:] == [0] and row["nouns"][1] not in ("dog", row["nouns"][0])
        assert row["wanted"] == [None, None]
    assert found["counters"][NAMES[0]]["absent"]["n"] == 4 and not found["methods"]


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, critics: dict[str, Critic], monkeypatch: pytest.MonkeyPatch
) -> None:
    stars_and_cats(tmp_path / "in")
    whole = evaluate_images(ImageOptions(tmp_path / "in", out=tmp_path / "whole"), critics)
    assert json.loads((tmp_path / "whole" / SUMMARY).read_text()) == json.loads(json.dumps(whole))
    options = ImageOptions(tmp_path / "in", out=tmp_path / "out", batch_size=2)

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_images(options, critics, progress=stop)
    rows = tmp_path / "out" / ROWS
    rows.write_text(rows.read_text() + '{"cut off')
    asked = []
    original = counting.read_picture
    monkeypatch.setattr(
        counting, "read_picture", lambda path: (asked.append(path), original(path))[1]
    )
    assert evaluate_images(options, critics) == whole
    assert 12 - 6 <= len(asked) <= 12 - 5
    # A picture that has become another one is counted again.
    scene(tmp_path / "in" / "0.png", 99, star=9)
    asked.clear()
    assert evaluate_images(options, critics) != whole
    assert [path.name for path in asked] == ["0.png"]


def test_a_folder_that_holds_something_else_is_left_as_it_is(
    tmp_path: Path, critics: dict[str, Critic]
) -> None:
    stars_and_cats(tmp_path / "in")
    run, other = tmp_path / "run", tmp_path / "other"
    for folder, name, text in (
        (run, "run.json", "{}"),
        (run, SUMMARY, "precious"),
        (other, ROWS, '{"picture": "a.png", "noun": "star", "count": 1}'),  # and no end of the line
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, words in (
        (run, "is a run folder"),
        (other, f"{ROWS}, line 1 is no row"),
        (tmp_path / "in", "folder of the pictures"),
    ):
        with pytest.raises(UsageError, match=words):
            evaluate_images(ImageOptions(tmp_path / "in", out=out), critics)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_cannot_be_done_is_told(tmp_path: Path, critics: dict[str, Critic]) -> None:
    scene(tmp_path / "a.png", 1, star=1)
    (tmp_path / "pictures.csv").write_text("picture,noun,count\na.png,unicorn,3\n")
    with pytest.raises(UsageError, match="unicorn"):
        evaluate_images(ImageOptions(tmp_path), critics)
    for options, words in (
        (ImageOptions(tmp_path, judges=("owlv3",)), "owlv2"),
        (ImageOptions(tmp_path, judges=("sam3", "sam3")), "twice"),
        (ImageOptions(tmp_path, limit=0), "limit"),
        (ImageOptions(tmp_path, batch_size=0), "batch size"),
        (ImageOptions(tmp_path, absent=-1), "absent"),
        (ImageOptions(tmp_path, device="abacus"), "abacus"),
    ):
        with pytest.raises(UsageError, match=words):
            evaluate_images(options)


def test_a_limit_draws_the_same_pictures_again(tmp_path: Path, critics: dict[str, Critic]) -> None:
    stars_and_cats(tmp_path)
    found = [
        evaluate_images(ImageOptions(tmp_path, limit=4, seed=seed), critics) for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2] and found[0]["n_images"] == 4


# -- sums -------------------------------------------------------------------------------------------


def test_scores_are_the_textbook_numbers() -> None:
    rng = np.random.default_rng(0)
    expected, count = rng.integers(1, 9, 200), rng.integers(0, 12, 200)
    found = scores(
        [
            reading(int(c), int(e), str(k))
            for k, (c, e) in enumerate(zip(count, expected, strict=True))
        ]
    )
    off = count - expected
    assert found["n"] == 200 and found["exact"] == pytest.approx((off == 0).mean(), abs=1e-4)
    assert found["mae"] == pytest.approx(np.abs(off).mean(), abs=1e-4)
    assert found["rmse"] == pytest.approx(np.sqrt((off**2).mean()), abs=1e-4)
    assert found["bias"] == pytest.approx(off.mean(), abs=1e-4)
    assert found["within_one"] == pytest.approx((np.abs(off) <= 1).mean(), abs=1e-4)
    assert found["by_count"][3]["n"] == int((expected == 3).sum())
    low, high = found["exact_ci95"]
    spread = 1.96 * np.sqrt(found["exact"] * (1 - found["exact"]) / 200)
    assert high - low == pytest.approx(2 * spread, rel=0.2)
    assert scores([]) == {"n": 0} and absent_score([reading(3, 3)]) == {"n": 0}


def test_the_counter_of_a_noun_is_trusted_on_the_same_pictures() -> None:
    pictures = [str(k) for k in range(30)]
    good = [reading(3, 3, p) for p in pictures] + [reading(5, 3, p, "dog") for p in pictures]
    bad = [reading(3 + (int(p) % 2), 3, p) for p in pictures]
    bad += [reading(3, 3, p, "dog") for p in pictures] + [reading(1, 1, "0", "cow")]
    found = trusted({"good": good, "bad": bad})
    assert found["cat"] == {"counter": "good", "mae": 0, "n": 30, "sure": True}
    assert found["dog"]["counter"] == "bad" and "cow" not in found
    (pair,) = agreement({"good": good, "bad": bad})
    assert pair["n"] == 60 and pair["same"] == 0.25 and pair["within_one"] == 0.5
    assert pair["mean_difference"] == 0.75
    assert agreement({"good": good, "none": []})[0] == {"counters": ["good", "none"], "n": 0}
