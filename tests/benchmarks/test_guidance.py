"""The benchmarks of guidance: their parts by hand, and what is committed of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import ablations, looked_at, token_reuse

RESULTS = Path(benchmarks.__file__).parent / "results"


def row(method: str, prompt: str, pre: float, verified: bool, judge: int, critic: int = 4) -> Any:
    return {
        "method": method,
        "id": prompt,
        "image": 0,
        "wanted": [4],
        "critic": [critic],
        "judge": [judge],
        "verified": verified,
        "pre": pre,
        "steps": 0,
        "drift": 0.0,
        "diverged": 0,
    }


def test_every_group_of_ablations_begins_with_its_base_and_changes_something() -> None:
    several = ablations.groups()
    for name, group in several.items():
        assert group.question.endswith("?") and len(group.arms) > 1, name
        arms = list(group.arms.values())
        assert all(arm != arms[0] for arm in arms[1:]), name
    # An arm's rows are found by its name, whichever group it stands in.
    every = [item for group in several.values() for item in group.arms.items()]
    for name, arm in every:
        assert [other for label, other in every if label == name] == [arm] * sum(
            label == name for label, _ in every
        )


def test_ablations_are_looked_at_on_development_prompts_alone() -> None:
    chosen = ablations.chosen_prompts(10)
    assert len(chosen) == 10 and all(p.id.startswith("pocket-dev") for p in chosen)
    assert all(5 <= sum(count for _, count in p.targets) <= 16 for p in chosen)
    assert len({p.id for p in ablations.chosen_prompts(99)}) == 28


def test_an_arm_is_paired_with_its_base() -> None:
    rows = [
        row("new", "a", 2.0, True, judge=4),
        row("new", "b", 4.0, True, judge=5),
        row("base", "a", 4.0, True, judge=4),
        row("base", "b", 8.0, False, judge=5, critic=5),
    ]
    found = ablations.against(rows, "new", "base", 10.0)
    # Costs 2 and 20, since the judge disagrees, against 4 and 20.
    assert found["par2"]["ratio"] == pytest.approx(22 / 24, abs=1e-4)
    assert found["verified"] == 0.5 and found["exact"] == 0.0
    # The critic is wrongly content with one of two pictures, and with none in the base.
    assert found["critic_judge_gap"] == 0.5
    assert ablations.figures(rows[:2], 10.0)["critic_judge_gap"] == 0.5
    assert ablations.figures(rows[:2], 10.0)["judge_exact_among_verified"] == 0.5


def test_what_was_seen_is_joined_with_what_was_drawn() -> None:
    picture = row("edit", "a", 2.0, True, judge=4) | {
        "picture": "edit-a-0",
        "nouns": ["cat"],
        "prompt": "four cats",
        "verifier": [4],
    }
    label = {
        "picture": "edit-a-0",
        "eye": {"cat": 5},
        "marks": ["half"],
        "remark": "a tail at the rim",
    }
    (joined,) = looked_at.joined([picture], [label])
    assert joined["eye"] == [5] and joined["judge"] == [4] and joined["marks"] == ["half"]
    found = looked_at.summary([joined, joined | {"eye": [None], "marks": []}])
    assert found["eye_can_count"]["share"] == 0.5
    assert found["judge_agrees_with_eye"] == {"share": 0.0, "ci95": [0.0, 0.7935], "of": 1}
    assert found["marks"]["half"] == 1 and found["without_marks"]["share"] == 0.5
    for wrong in ({"picture": "edit-a-9"}, {"eye": {"dog": 1}}, {"marks": ["ugly"]}):
        with pytest.raises(ValueError, match="label"):
            looked_at.joined([picture], [label | wrong])


def test_a_tokens_gain_is_paired_picture_by_picture() -> None:
    plain = token_reuse.Drawn({"a": [0, 2], "b": [-3, 1]})
    made = token_reuse.Drawn({"a": [0, 0], "b": [-1, 1]})
    found = token_reuse.figures(made, plain)
    assert (found["judge_exact"], found["judge_exact_gain"]) == (0.5, 0.25)
    assert (found["within_one"], found["within_one_gain"]) == (1.0, 0.5)
    assert (found["mae"], found["mae_gain"]) == (0.5, -1.0)
    assert (found["bias"], found["bias_gain"]) == (0.0, 0.0)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_json(path: Path) -> None:
    assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
