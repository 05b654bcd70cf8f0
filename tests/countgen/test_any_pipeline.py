"""Pocket through the black box, and the example of docs/any-pipeline.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from countgen import CountGuidedPipeline, pocket
from pipelines.blackbox import BlackBox

DOCUMENT = Path(__file__).parents[2] / "docs" / "any-pipeline.md"


def test_edits_reach_the_same_pictures_as_through_the_adapter(
    loaded_pocket: CountGuidedPipeline,
) -> None:
    own = loaded_pocket
    box = BlackBox(pocket.load_generator(), pocket.card())
    boxed = CountGuidedPipeline(box, own.critic, own.verifier)
    prompts = ["nine red apples", "seven cats", "eight dogs"]
    options: dict[str, Any] = {"guidance": "edit", "budget": 8, "seed": 2, "output_type": "pt"}
    expected, found = (p(prompts, **options) for p in (own, boxed))
    moves, own_moves = (
        [[record.move for record in history] for history in output.history]
        for output in (found, expected)
    )
    assert moves == own_moves and any("edit" in history for history in moves)
    assert found.counts == expected.counts and found.outcomes == expected.outcomes
    torch.testing.assert_close(found.images, expected.images, atol=1e-4, rtol=0)


def test_the_example_in_the_documentation_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    assert isinstance(names["pipeline"].adapter, BlackBox)
    assert len(names["found"].images) == 1 and names["found"].counts[0]["critic"]
