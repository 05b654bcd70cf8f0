"""Run folders are read and judged as they were written, and summed up with the right intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from countgen.evaluation.metrics import paired, par2, ratio_of_par2, success_by_cap, summary
from countgen.evaluation.runs import judged, picture_path, read_rows
from countgen.evaluation.statistics import bootstrap_by_prompt, wilson
from countgen.pocket import ROLES, load_critic
from countgen.pocket.scenes import SceneSpec, compose


def row(prompt: str, found: int, *, wanted: int = 4, method: str = "none", **more: Any) -> dict:
    return {
        "method": method,
        "id": prompt,
        "image": 0,
        "nouns": ["star"],
        "wanted": [wanted],
        "critic": [found],
        "verifier": [found],
        "verified": found == wanted,
        "outcome": "exact" if found == wanted else "budget spent",
        "pre": 2.0,
        "steps": 0,
    } | more


def test_rows_are_read_and_a_line_that_was_cut_off_is_dropped_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    whole = "".join(json.dumps(row(name, 4)) + "\n" for name in ("a", "b"))
    path.write_text(whole + '{"method": "no')
    assert [found["id"] for found in read_rows(path)] == ["a", "b"]
    assert path.read_text() == whole


def test_the_judge_counts_the_pictures_of_a_run_folder(tmp_path: Path) -> None:
    for number in (3, 4):
        scene = compose(SceneSpec((("star", number),), "grass"), number)
        Image.fromarray(np.asarray(scene.image)).save(
            picture_path(tmp_path, "none", f"p{number}", 0)
        )
    rows = [row("p3", 4), row("p4", 4)]
    found = judged(rows, load_critic(ROLES["judge"]), tmp_path, batch=1)
    assert [each["judge"] for each in found] == [[3], [4]]
    assert [{k: v for k, v in each.items() if k != "judge"} for each in found] == rows


def test_a_summary_has_shares_errors_and_the_price_of_a_right_picture() -> None:
    rows = [row("a", 4, judge=[4]), row("b", 4, judge=[5]), row("c", 2, judge=[2], pre=6.0)]
    found = summary(rows)
    assert found["n_prompts"] == found["n_images"] == 3
    assert found["critic"]["exact"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["judge"]["mae"] == 1.0 and found["judge"]["within_one"] == pytest.approx(
        2 / 3, 0.01
    )
    assert found["judge"]["by_count"] == {4: 0.333}
    assert found["verified"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["verified"]["judge_exact"] == 0.5
    cost = found["cost"]
    assert (cost["pre_median"], cost["pre_mean"], cost["pre_per_verified_exact"]) == (
        2.0,
        3.33,
        10.0,
    )
    # Twice the cap for the wrong one and for the one that is not verified, its price for the other.
    assert cost["par2"] == 86.0


def test_intervals_hold_their_share() -> None:
    low, high = wilson(95, 100)
    assert low == pytest.approx(0.8882, abs=1e-3) and high == pytest.approx(0.9785, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(10, 10)[1] == 1.0
    low, high = bootstrap_by_prompt([[0, 0, 0], [1, 1, 1]] * 50)
    assert 0.39 < low < 0.45 and 0.55 < high < 0.61
    assert bootstrap_by_prompt([[1, 1]] * 5) == (1.0, 1.0)


def test_pairs_are_differences_prompt_by_prompt() -> None:
    def row(method: str, prompt: str, exact: bool, verified: bool) -> dict[str, object]:
        judge = [3] if exact else [2]
        return {
            "method": method, "id": prompt, "image": 0, "judge": judge, "wanted": [3],
            "verified": verified
        }  # fmt: skip

    rows = [row("none", "a", True, True)]
    for prompt in "abcd":
        rows += [row("noise", prompt, True, True), row("best-of-n", prompt, prompt == "a", True)]
    found = paired(rows, "noise", "best-of-n")
    assert found["exact"] == found["verified_exact"] == 0.75 and found["verified"] == 0
    assert found["exact_ci95"][0] < 0.75 < found["exact_ci95"][1]
    assert found["verified_ci95"] == [0, 0]


def test_penalised_costs_cannot_be_bought_by_giving_up() -> None:
    rows = [
        row("a", 4, judge=[4], pre=3.0),
        row("b", 4, judge=[5], pre=3.0),  # verified, but the judge says otherwise
        row("c", 2, judge=[4], pre=1.0),  # right by chance, and not verified
    ]
    assert par2(rows, 64.0)["par2"] == pytest.approx((3 + 128 + 128) / 3, abs=1e-3)
    curve = success_by_cap(rows)
    assert curve["2"] == 0.0 and curve["3"] == curve["64"] == pytest.approx(1 / 3, abs=1e-3)


def test_the_ratio_of_penalised_costs_is_paired_by_prompt() -> None:
    rows = []
    for prompt, cost in (("a", 2.0), ("b", 20.0), ("c", 40.0)):
        rows.append(row(prompt, 4, judge=[4], method="none", pre=cost))
        rows.append(row(prompt, 4, judge=[4], method="edit", pre=cost / 2))
    found = ratio_of_par2(rows, "edit", "none", 64.0)
    # Every prompt has the same ratio, so that resampling them changes nothing.
    assert found == {"ratio": 0.5, "ratio_ci95": [0.5, 0.5]}
