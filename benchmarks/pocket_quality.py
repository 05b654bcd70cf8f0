"""Whether a method's pictures keep the look and the diversity of exact plain ones, on pocket's CLIP.

python -m benchmarks.pocket_quality --json --run DIR --methods edit engine

DIR is the run folder of benchmarks.pocket_methods, with best-of-n or none among its methods: their exact
pictures are the reference. Neither a counter nor a method's objective uses pocket's CLIP. ``controls`` tells
what the measure sees: damaged copies of the reference against the reference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from countgen.evaluation.quality import PLAIN, compare, exact_plain, look, quality
from countgen.evaluation.runs import Row, judged, load_picture, read_rows
from countgen.guidance.scores import ClipScore, pocket_score
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import SUITES, suite

BLOCK = 16


def seam(picture: Tensor, other: Tensor) -> Tensor:
    """A block of another picture in the middle of this one."""
    out = picture.clone()
    start = (picture.shape[-1] - BLOCK) // 2
    part = slice(start, start + BLOCK)
    out[:, part, part] = other[:, part, part]
    return out


def blur(picture: Tensor, _: Tensor) -> Tensor:
    """The mean of every 3x3 pixels."""
    return F.avg_pool2d(picture[None], 3, 1, 1, count_include_pad=False)[0]


def grain(picture: Tensor, _: Tensor) -> Tensor:
    """Noise of 0.05 on every value."""
    return picture + 0.05 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))


def pale(picture: Tensor, _: Tensor) -> Tensor:
    """Contrast cut by a fifth."""
    return 0.5 + 0.8 * (picture - 0.5)


DAMAGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (seam, blur, grain, pale)


def controls(reference: list[Row], run: Path, score: ClipScore) -> dict[str, Any]:
    """The reference, damaged, against itself."""
    whole, out = look(reference, run, score), {}
    for damage in DAMAGES:
        with tempfile.TemporaryDirectory() as folder:
            rows = []
            for number, row in enumerate(reference):
                other = load_picture(run, reference[number - 1])
                picture = damage(load_picture(run, row), other)
                to_pil(picture).save(Path(folder) / f"{number}.png")
                rows.append(row | {"picture": f"{number}.png"})
            out[damage.__name__] = compare(look(rows, Path(folder), score), whole)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--run", type=Path, required=True, help="folder of pocket_methods")
    parser.add_argument("--methods", nargs="+", help="all of the run's if not given")
    options = parser.parse_args()
    texts = {p.id: p.prompt for name in (*SUITES, "pocket-hard") for p in suite(name)}
    rows = [
        {"prompt": texts[row["id"]], **row}
        for row in read_rows(options.run / "rows.jsonl")
        if not options.methods or row["method"] in (*PLAIN, *options.methods)
    ]
    if not rows:
        parser.error(f"{options.run} holds no rows of pocket_methods")
    torch.set_flush_denormal(True)
    rows = judged(rows, load_critic(ROLES["judge"]), options.run)
    score = pocket_score()
    reference = exact_plain(rows)
    report = {
        "features": score.name,
        "n_plain_exact": len(reference),
        "methods": quality(rows, options.run, score),
        "controls": controls(reference, options.run, score),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
