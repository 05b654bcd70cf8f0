"""The benchmark of batches: its clock, and both arms on a few small prompts."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks import batches


def test_nested_work_is_its_own_owners_alone() -> None:
    clock = batches.Clock()
    inner = clock.timed("inner", lambda: time.sleep(0.02))
    outer = clock.timed("outer", inner)
    begun = time.perf_counter()
    outer()
    inner()
    whole = time.perf_counter() - begun
    assert clock.seconds["inner"] > 0.03 > clock.seconds["outer"] > 0
    assert clock.seconds["inner"] + clock.seconds["outer"] < whole


def test_both_arms_draw_the_same_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompts", "5", "--repeats", "1", "--budget", "8", "--batch", "2", "--json"]
    assert batches.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same_outcomes"] == found["same_histories"] == 1.0
    assert found["arms"]["continuous"]["verified"] == found["arms"]["static"]["verified"]
    assert 0 < found["calls_ratio"] <= 1
    for arm in batches.ARMS:
        shares = {
            name: share["median"] for name, share in found["arms"][arm]["share_of_time"].items()
        }
        assert 0 < shares["policy"] < shares["bookkeeping"] < shares["generator"] < 1
        assert sum(shares.values()) - shares["policy"] == pytest.approx(1, abs=1e-3)
    full = found["arms"]["continuous"]["fill"]["jobs_not_begun"]
    assert full["plain"]["batches"] > 0 and full["plain"]["fill"] == 1.0
    assert full["gradient"]["fill"] in (None, 1.0)
