"""The hackability benchmark: its parts by hand, and itself at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.hackability import (
    STARTS,
    attack,
    cases,
    confirmed,
    hard_counts,
    main,
    optimise,
    summarise,
)
from countgen.pocket import ROLES, load_critic

COMMITTED = Path(benchmarks.__file__).parent / "results" / "hackability.json"


@pytest.fixture(autouse=True)
def _threads() -> object:
    """The benchmark sets the number of threads for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def test_a_gain_is_confirmed_by_the_share_of_it_that_others_see() -> None:
    assert confirmed(4, 4) == 1 and confirmed(4, 1) == 0.25
    assert confirmed(4, 9) == 1 and confirmed(4, -2) == 0
    assert confirmed(0, 3) is None and confirmed(-1, -1) is None


def test_the_summary_is_the_median_over_seeds_of_means_over_pictures() -> None:
    def row(seed: int, start: str, a: float | None, b: float | None) -> dict[str, object]:
        return {"seed": seed, "start": start, "reached": a == 1, "confirmed": {"a": a, "b": b}}

    rows = [
        row(0, "noise", 0.0, 0.0),
        row(0, "scene", 1.0, 0.0),
        row(1, "noise", 1.0, 1.0),
        row(1, "scene", None, None),
        row(2, "noise", 0.0, 0.2),
    ]
    found = summarise(rows)
    assert (found["transfer"], found["min"], found["max"]) == (0.25, 0.1, 1.0)
    assert (found["pictures"], found["raised"], found["reached"]) == (5, 4, 2)
    assert found["confirmed_by"]["b"] == {"transfer": 0.2, "min": 0.0, "max": 1.0}
    assert found["by_start"]["scene"] == {"transfer": 0.5, "min": 0.5, "max": 0.5}
    nothing = summarise([row(0, "noise", None, None)])
    assert nothing["transfer"] is None and nothing["raised"] == 0


def test_cases_repeat_and_scenes_show_what_they_should() -> None:
    first, again = cases(4, 2), cases(4, 2)
    assert [c.start for c in first] == ["noise", "noise", "scene", "scene"]
    assert len({case.seed for case in first + cases(5, 2)}) == 8
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.image, two.image) and one.wanted == two.wanted
    scenes = [case for case in cases(4, 6) if case.start == "scene"]
    seen = hard_counts(
        load_critic("pocket-detector-a"), torch.stack([c.image for c in scenes]), scenes
    )
    assert seen == [case.wanted - 3 for case in scenes]


def test_descent_fools_the_counter_that_it_descends_on() -> None:
    critic = load_critic("pocket-density")
    todo = [case for case in cases(0, 2) if case.start == "scene"]
    before = torch.stack([case.image for case in todo])
    after = optimise(critic, todo, 12)
    assert after.min() >= 0 and after.max() <= 1
    old, new = hard_counts(critic, before, todo), hard_counts(critic, after, todo)
    wanted = [case.wanted for case in todo]
    errors = [sum(abs(w - c) for w, c in zip(wanted, counts, strict=True)) for counts in (old, new)]
    assert errors[1] < errors[0]


def test_every_picture_gives_one_row_whatever_the_views() -> None:
    everyone = {name: load_critic(name) for name in ("pocket-density", "pocket-detector-a")}
    for views in (0, 1):
        rows = attack("pocket-density", everyone, 0, 1, 1, views)
        assert [row["start"] for row in rows] == list(STARTS)
        assert all(set(row["confirmed"]) == {"pocket-detector-a"} for row in rows)


def test_it_runs_and_the_committed_result_has_the_same_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--json", "--seeds", "1", "--each", "1", "--steps", "1", "--views", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    committed = json.loads(COMMITTED.read_text())
    assert committed.keys() == found.keys()
    assert committed["critics"].keys() == found["critics"].keys() == set(ROLES.values())
    for name, entry in committed["critics"].items():
        assert entry.keys() == found["critics"][name].keys()
        for one in (entry, entry["augmented"]):
            assert one["pictures"] == 2 * committed["seeds"] * committed["each"]
            if one["transfer"] is not None:
                assert 0 <= one["min"] <= one["transfer"] <= one["max"] <= 1
    assert committed["command"].startswith("python -m benchmarks.hackability --json --seeds")
