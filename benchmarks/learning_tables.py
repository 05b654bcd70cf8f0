"""Tables of what learning from counters gains, from the committed results (see ``benchmarks.tables``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import grid, percent

RESULTS = Path(__file__).parent / "results"


def learned_clip() -> str:
    """Count-aware CLIP, a short training: every loss beside CLIP's own, and none."""
    return _clip("learning_clip")


def learned_clip_long() -> str:
    """The same, six times as long: the loss that gained most, and none."""
    return _clip("learning_clip_long")


def _clip(name: str) -> str:
    document = _result(name)
    rows = [_clip_row("before", document["before"])]
    rows += [_clip_row(f"`{run['loss']}`", run) for run in document["runs"]]
    head = [
        "counting loss",
        "number right (95%)",
        "off by (mean)",
        "retrieval by number: first right",
    ]
    head += ["average precision", "noun", "place"]
    return grid(head, rows)


def _clip_row(name: str, run: dict[str, Any]) -> list[str]:
    counting, found, matching = run["counting"], run["retrieval"], run["matching"]
    return [
        name,
        percent(counting["accuracy"], counting["accuracy_ci95"], digits=1),
        f"{counting['mae']:.2f}",
        percent(found["first_right"], digits=1),
        percent(found["average_precision"], digits=1),
        percent(matching["noun"], digits=1),
        percent(matching["background"], digits=1),
    ]


def learned_counters() -> str:
    """Each counter without and with what is new in it."""
    document = _result("learning_counters")
    news = {"clip-ebc": "whole-count bins", "hmode": "relative local loss"}
    rows = []
    for run in document["runs"]:
        what = f"{'with' if run['new'] else 'without'} {news[run['family']]}"
        parts = [run["errors"][name] for name in ("all", "up_to_10", "above_10")]
        rows.append(
            [
                f"`{run['family']}`",
                what,
                *_errors(parts[0]),
                *(f"{p['mae']:.2f}" for p in parts[1:]),
            ]
        )
    head = ["family", "", "MAE", "RMSE", "exact", "MAE up to 10", "MAE above 10"]
    return grid(head, rows)


def learned_referring() -> str:
    """The referring counter by what decides an expression, beside a detector that knows no places."""
    document = _result("learning_referring")
    rows = []
    for run in (run for run in document["runs"] if run["family"] == "c-rex"):
        name = f"`c-rex` {'with' if run['new'] else 'without'} contrast, seed {run['seed']}"
        rows.append([name, *_by_kind(run["errors"])])
    wrapped = document["referring_wrapper_over_detector_a"]
    rows.append(["detector A in the referring wrapper", *_by_kind(wrapped)])
    head = ["", "attribute: MAE", "RMSE", "exact", "place: MAE", "RMSE", "exact"]
    return grid(head, rows)


FIRST = {
    "screening": "learning_screening",
    "noise": "learning_noise",
    "token-network": "learning_token_network",
    "lora": "learning_lora",
}
"""Part of ``benchmarks.learning_generator`` -> its result file."""


def learned_first() -> str:
    """First pictures of plain noises, and with what a generator or a network before it has learnt."""
    rows = []
    for part, name in FIRST.items():
        for suite, methods in _result(name)[part].items():
            if not suite.startswith("pocket-"):
                continue
            for method, found in methods.items():
                rows.append([f"`{suite}`", method, *_first_row(found)])
    head = ["suite", "first picture", "pictures", "exact, by the judge", "against plain, points"]
    return grid([*head, "exact, by the critic", "off by (mean)", "plain renders"], rows)


def learned_variation() -> str:
    """New pictures told by a given one, with and without counting loss, and by its caption."""
    found = _result("learning_variation")["variation"]
    names = {
        "text": "the caption (the generator as it is)",
        "diffusion": "the picture, without counting loss",
        "counting": "the picture, with counting loss",
    }
    rows = []
    for method, what in names.items():
        own, judge = found[method], found[method]["judge"]
        low, high = judge["exact_ci95"]
        beside = own.get("against_text", {}).get("diversity")
        rows.append(
            [
                what,
                str(own["n_images"]),
                f"{percent(judge['exact'], digits=1)} ({100 * low:.0f} to {100 * high:.0f})",
                f"{judge['mae']:.2f}",
                percent(own["critic"]["exact"], digits=1),
                f"{own['distance_to_given']:.3f}",
                f"{100 * beside['change']:+.0f}%" if beside else "base",
            ]
        )
    head = ["told by", "new pictures", "the judge's counts of the given one", "off by (mean)"]
    head += ["the critic's", "distance to the given one", "diversity"]
    return grid(head, rows)


def learned_dataset() -> str:
    """A small detector on few scenes, and with a dataset's pictures beside them."""
    found = _result("learning_dataset")["dataset"]["detector"]
    tests = {
        "held_out_scenes": "held-out scenes",
        "pictures_counted_by_eye": "generated pictures, counted by eye",
    }
    rows = []
    for test, what in tests.items():
        own = found[test]
        low, high = own["gain_ci95"]
        rows.append(
            [
                what,
                str(own["n_images"]),
                percent(own["scenes"]["exact"], digits=1),
                percent(own["scenes + dataset"]["exact"], digits=1),
                f"{100 * own['gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            ]
        )
    head = ["counted exactly", "pictures", f"{found['scenes']} scenes", "the same and the dataset"]
    return grid([*head, "gain, points"], rows)


def _first_row(found: dict[str, Any]) -> list[str]:
    judge, against = found["judge"], found.get("minus_plain")
    low, high = judge["exact_ci95"]
    points = "base"
    if against is not None:
        less, more = against["exact_ci95"]
        points = f"{100 * against['exact']:+.0f} ({100 * less:+.0f} to {100 * more:+.0f})"
    return [
        str(found["n_images"]),
        f"{percent(judge['exact'], digits=1)} ({100 * low:.0f} to {100 * high:.0f})",
        points,
        percent(found["critic"]["exact"], digits=1),
        f"{judge['mae']:.2f}",
        f"{found['pre_mean']:.2f}",
    ]


def _by_kind(errors: dict[str, Any]) -> list[str]:
    return [*_errors(errors["attribute"]), *_errors(errors["place"])]


def _errors(found: dict[str, float]) -> list[str]:
    return [f"{found['mae']:.3f}", f"{found['rmse']:.3f}", percent(found["exact"], digits=1)]


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found
