"""Tables of what methods come to: of the suites, by what is asked for, counter by counter, and by eye."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import grid, percent

RESULTS = Path(__file__).parent / "results"
PLAIN, AGAIN, HARD = "none", "best-of-n", "pocket-hard"
OURS = ("noise", "noise-soft", "noise-scaled", "edit", "engine")
"""This project's own methods; what is neither among them nor plain or drawn again is published."""
SHOWN = {PLAIN: "plain", AGAIN: "best of N"}


def result(name: str) -> dict[str, Any]:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def source(command: str, name: str) -> str:
    return f"`{command}`, in `benchmarks/results/{name}.json`."


def name_of(method: str) -> str:
    return f"**{method}**" if method in OURS else SHOWN.get(method, method)


def cost_of(found: dict[str, Any]) -> str:
    low, high = found["par2_ci95"]
    return f"{found['par2']:.1f} ({low:.0f} to {high:.0f})"


def table_of(methods: dict[str, Any], names: Sequence[str]) -> str:
    rows = [
        [
            name_of(name),
            percent(methods[name]["judge"]["exact"], methods[name]["judge"]["exact_ci95"]),
            percent(methods[name]["verified"]["share"]),
            percent(
                methods[name]["verified"].get("judge_exact"),
                methods[name]["verified"].get("judge_exact_ci95"),
                digits=1,
            ),
            f"{methods[name]['cost']['pre_mean']:.1f}",
            cost_of(methods[name]["cost"]),
        ]
        for name in names
    ]
    head = ["method", "exact, by the judge", "verified", "judge-exact among verified"]
    return grid([*head, "mean cost", "penalised mean cost"], rows)


def _sizes(found: dict[str, Any]) -> str:
    some = next(iter(found.values()))
    return f"{some['n_prompts']} prompts, {some['n_images']} pictures a method"


def hard() -> str:
    """The one table of the README: plain, drawn again, the best of others' methods, and the engine."""
    document = result("pocket_suites")
    methods = document["suites"][HARD]
    others = [name for name in methods if name not in (PLAIN, AGAIN, *OURS)]
    return (
        f"{table_of(methods, [PLAIN, AGAIN, *others, 'engine'])}\n\n`{HARD}`: {_sizes(methods)}; a cap of "
        f"{document['cap']:g} plain renders a picture; 95% intervals over prompts. Costs are in plain "
        "renders, everything counted. The penalised cost counts twice the cap for every picture that is not "
        f"both verified and exact.\n{source(document['command'], 'pocket_suites')}"
    )


def suites() -> str:
    """Every suite."""
    document = result("pocket_suites")
    parts = []
    for suite, methods in document["suites"].items():
        ratios = ", ".join(
            f"{SHOWN.get(other, other)} {one['ratio']:.2f} "
            f"({one['ratio_ci95'][0]:.2f} to {one['ratio_ci95'][1]:.2f})"
            for other, one in document["ratios"][suite].items()
            if other != PLAIN
        )
        parts.append(
            f"`{suite}`, {_sizes(methods)}:\n\n{table_of(methods, list(methods))}\n\n"
            f"Penalised cost of the engine over that of {ratios}."
        )
    return "\n\n".join([*parts, source(document["command"], "pocket_suites")])


def groups() -> str:
    """The hard third by what is asked for."""
    document = result("pocket_suites")
    methods = [name for name in document["suites"][HARD] if name != PLAIN]
    rows = []
    for name, found in document["hard_by_group"].items():
        engine = found["engine"]
        rows.append(
            [
                name,
                found["n_prompts"],
                *(cost_of(found[method]) for method in methods),
                percent(engine["verified"]),
                f"{engine['judge_right_of_verified']} of {engine['n_verified']}",
            ]
        )
    costs = [f"{SHOWN.get(method, method)}: cost" for method in methods]
    return grid(
        ["asked for", "prompts", *costs, "engine: verified", "of them right, by the judge"], rows
    )


def side_by_side() -> str:
    """Every picture of the hard third by each counter."""
    document = result("pocket_suites")
    rows = [
        [
            name_of(name),
            *(
                percent(found[role]["exact"], found[role]["exact_ci95"])
                for role in ("critic", "verifier", "judge")
            ),
        ]
        for name, found in document["suites"][HARD].items()
    ]
    return grid(["method", "exact, by the critic", "by the verifier", "by the judge"], rows)


def verified_pictures() -> str:
    """Verified pictures counted by eye."""
    document = result("verified_pictures")
    rows = []
    for key, label in (("verified", "verified"), ("not_verified", "not verified, mixed in")):
        found = document[key]
        rows.append(
            [
                label,
                found["pictures"],
                *(percent(found[name]["share"], found[name]["ci95"], digits=1) for name in KEYS),
                found["open"],
                found["wrong"],
                percent(found["judge_right"]["share"], digits=1),
            ]
        )
    return (
        grid(
            [
                "pictures",
                "number",
                "right for both readings",
                "of those that both readings count alike",
                "open",
                "wrong for both",
                "right for the judge",
            ],
            rows,
        )
        + f"\n\nRead by {document['reader']}. {source(document['command'], 'verified_pictures')}"
    )


KEYS = ("right", "right_of_clear")


def trust() -> str:
    """What is promised of verified pictures, against the judge's word on fresh ones."""
    document = result("trust")
    check = document["check"]
    rows = [
        [
            part["pictures"],
            percent(part["promised"], digits=1),
            percent(part["confirmed"], part["confirmed_ci95"], digits=1),
        ]
        for part in check["curve"]
    ]
    return (
        f"{grid(['verified pictures', 'promised', 'confirmed by the judge'], rows)}\n\nExpected calibration "
        f"error {100 * check['calibration_error']:.1f} points on {check['pictures']} verified pictures of "
        f"fresh prompts and seeds; fitted on {document['fit']['pictures']} of pocket-dev. "
        f"{source(document['command'], 'trust')}"
    )


def methods() -> str:
    """Every method, on the hard third of the prompts before these."""
    document = result("pocket_hard")
    found = document["suites"][HARD]

    def place(name: str) -> tuple[bool, bool, float]:
        return name != PLAIN, name != AGAIN, -found[name]["cost"]["par2"]

    return (
        f"{table_of(found, sorted(found, key=place))}\n\n{_sizes(found)}, of an earlier edition of the "
        f"prompts. {source(document['command'], 'pocket_hard')}"
    )


def paired() -> str:
    """Methods against best of N on the same prompts and first noises."""
    keys = ("exact", "verified", "verified_exact")
    rows = [
        [
            name.removesuffix("_minus_best_of_n"),
            *(
                f"{100 * gap[key]:+.0f} ({100 * gap[key + '_ci95'][0]:+.0f} to "
                f"{100 * gap[key + '_ci95'][1]:+.0f})"
                for key in keys
            ),
        ]
        for name, gap in result("pocket_hard")["paired"][HARD].items()
    ]
    return grid(["method", "exact", "verified", "both"], rows)
