"""One command in two processes, as a user starts them: every picture once, and the same as of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from countgen.evaluation.runner import Settings, evaluate
from countgen.options import DrawOptions

LIST = "two cats\nthree cups\n4 stars\none dog\nfive birds\n6 oranges\n"


def rows(run: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """By method, prompt and picture, none of which may come twice."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in run.glob("results.rank*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            key = row["method"], row["id"], row["image"]
            assert key not in found
            found[key] = row
    return found


@pytest.mark.slow
def test_two_processes_draw_every_picture_once_and_as_one_does(tmp_path: Path) -> None:
    prompts = tmp_path / "list.txt"
    prompts.write_text(LIST)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "countgen", "evaluate"]
    command += ["--prompts", str(prompts), "--methods", "none", "--num-images", "2"]
    command += ["--out", str(tmp_path / "two"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    draw = DrawOptions(num_images_per_prompt=2)
    evaluate(Settings(prompts=str(prompts), out=tmp_path / "one", methods=("none",), draw=draw))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == 12 and one.keys() == two.keys()
    same = [one[key]["judge"] == two[key]["judge"] for key in one]
    assert sum(same) == 12 and all(one[key]["seed"] == two[key]["seed"] for key in one)
    said = json.loads(done.stdout)  # by the process that summed up, and by no other
    kept = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert said["n_prompts"] == kept["n_prompts"] == 6
    assert said["n_images"] == kept["n_images"] == 12
