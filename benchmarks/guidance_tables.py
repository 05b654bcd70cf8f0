"""Tables of what guidance is made of: ablations, reuse of tokens, quality of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import grid, percent

RESULTS = Path(__file__).parent / "results"


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _signed(value: float, interval: list[float], digits: int = 0) -> str:
    """A difference in points with its interval; all are shares."""
    low, high = (f"{100 * bound:+.{digits}f}" for bound in interval)
    return f"{100 * value:+.{digits}f} ({low} to {high})"


def ablations() -> str:
    """A table a group, every arm beside the group's base."""
    found = _result("ablations")
    parts = []
    for name, group in found["groups"].items():
        rows = []
        for arm, seen in group["arms"].items():
            beside = seen.get("paired")
            against = "base"
            if beside:
                ratio = beside["par2"]
                low, high = ratio["ratio_ci95"]
                against = f"{ratio['ratio']:.2f} ({low:.2f} to {high:.2f})"
            low, high = seen["par2_ci95"]
            rows.append(
                [
                    arm,
                    f"{seen['par2']:.1f} ({low:.0f} to {high:.0f})",
                    against,
                    percent(seen["verified"]),
                    percent(seen["judge_exact"]),
                    _signed(seen["critic_judge_gap"], seen["critic_judge_gap_ci95"]),
                ]
            )
        head = [
            "arm",
            "penalised mean cost",
            "of the base's",
            "verified",
            "exact, by the judge",
            "critic less judge, points",
        ]
        parts.append(f"**`{name}`**: {group['question']}\n\n{grid(head, rows)}")
    prompts = len(found["prompts"])
    where = "`benchmarks/results/ablations.json`"
    parts.append(
        f"{prompts} prompts of pocket-dev that ask for 5 to 16 objects, one picture each, a cap of "
        f"{found['cap']:g} plain renders; 95% intervals over prompts. In {where}."
    )
    return "\n\n".join(parts)


def token_reuse() -> str:
    """Uses as rows, tokens as columns."""
    found = _result("token_reuse")
    tokens = found["tokens"]
    rows = [
        [use, percent(plain["judge_exact"])]
        + [
            f"{percent(token['uses'][use]['judge_exact'])}, "
            + _signed(
                token["uses"][use]["judge_exact_gain"], token["uses"][use]["judge_exact_gain_ci95"]
            )
            for token in tokens.values()
        ]
        for use, plain in found["plain"].items()
    ]
    heads = ["use", "plain"]
    for name, token in tokens.items():
        heads.append(f"{name} (loss {token['loss']:.3f})")
    return f"{grid(heads, rows)}\n\n`{found['command']}`, in `benchmarks/results/token_reuse.json`."


def quality() -> str:
    """Changes from exact plain pictures, of the methods and of the controls."""
    found = _result("pocket_quality")
    rows = []
    for kind in ("methods", "controls"):
        for name, seen in found[kind].items():
            distance, spread, fit = seen["kernel_distance"], seen["diversity"], seen["fit"]
            rows.append(
                [
                    name if kind == "methods" else f"*{name}*",
                    _signed(distance["of_spread"], distance["of_spread_ci95"], 1),
                    _signed(spread["change"], spread["change_ci95"]),
                    _signed(fit["change"], fit["change_ci95"], 1),
                ]
            )
    head = ["pictures", "kernel distance, % of spread", "diversity, %", "fit to the prompt, %"]
    return (
        f"{grid(head, rows)}\n\n{found['n_plain_exact']} exact plain pictures are the reference. "
        f"`{found['command']}`, in `benchmarks/results/pocket_quality.json`."
    )


def moves() -> str:
    """Of each kind of move from each state: how often it was seen, and where it led."""
    from countgen.engine.rates import EXACT, read_rates
    from countgen.pocket.world import FOLDER

    path = FOLDER / "moves.json"
    found, order = json.loads(path.read_text(encoding="utf-8")), read_rates(path).values
    rows = []
    for kind, by_state in found["moves"].items():
        for state, results in by_state.items():
            nearer = sum(
                share
                for then, share in results.items()
                if state and order[then] < order[state] and then != EXACT
            )
            rows.append(
                [
                    f"`{kind}`",
                    state or "-",
                    found["seen"][kind][state],
                    percent(results.get(EXACT, 0.0)),
                    percent(nearer) if state else "-",
                ]
            )
    head = ["move", "from", "seen", "verified at once", "nearer, by what is to be expected"]
    return (
        f"{grid(head, rows)}\n\nA climb costs {found['climb']:.1f} plain renders, every other move one and "
        f"its count. `{found['command']}`, in `countgen/pocket/moves.json`."
    )


def time_to_exact() -> str:
    """What an exact picture costs by the engine and by drawing again, and single pictures on the clock."""
    suites, found = _result("pocket_suites"), _result("time_to_exact")
    rows = []
    for name, methods in suites["suites"].items():
        ratio = suites["ratios"][name]["best-of-n"]
        low, high = ratio["ratio_ci95"]
        cells = [f"`{name}`"]
        for method in ("best-of-n", "engine"):
            seen = methods[method]
            low_cost, high_cost = seen["cost"]["par2_ci95"]
            cells.append(f"{seen['cost']['par2']:.1f} ({low_cost:.0f} to {high_cost:.0f})")
            cells.append(percent(seen["verified"]["share"]))
        rows.append([*cells, f"{ratio['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    head = [
        "suite",
        "best of N: cost",
        "verified",
        "engine: cost",
        "verified",
        "engine over best of N",
    ]
    alone = found["one_picture"]
    seconds = "; ".join(
        f"{name} {one['median']:.1f} s in the median, {one['p90']:.1f} s at the 90th percentile, "
        f"{one['verified']} verified"
        for name, one in alone["methods"].items()
    )
    return (
        f"{grid(head, rows)}\n\nFive pictures a prompt; costs are penalised means. `{suites['command']}`, in "
        "`benchmarks/results/pocket_suites.json`.\n\nOne picture alone, of "
        f"{len(alone['prompts'])} hard prompts drawn by seed, the engine as wide as the batch and best-of-n "
        f"sixteen at once, on {found['threads']} core: {seconds}. `{found['command']}`, in "
        "`benchmarks/results/time_to_exact.json`."
    )


def early_looks() -> str:
    """What the critic counts in predicted clean pictures by the share of the steps, and what that saves."""
    found = _result("early_looks")
    rows = []
    for share, seen in found["agreement"].items():
        cells = [f"{share}%"]
        for name in ("same", "within_one", "exact_look_exact", "others_look_exact"):
            low, high = seen[name]["ci95"]
            cells.append(f"{percent(seen[name]['share'])} ({100 * low:.0f} to {100 * high:.0f})")
        price = seen["price_per_exact_over_without"]
        low, high = price["ratio_ci95"]
        known = price["ratio"] is not None and high is not None
        rows.append([*cells, f"{price['ratio']:.2f} ({low:.2f} to {high:.2f})" if known else "-"])
    head = [
        "after",
        "count of the finished picture",
        "within one of it",
        "exact ones look exact",
        "others look exact",
        "price of an exact one, over without",
    ]
    (first, *_) = found["agreement"].values()
    told = (
        f"{grid(head, rows)}\n\n{first['same']['of']} plain draws, {first['exact_look_exact']['of']} of them "
        f"exact for the critic; {found['steps']} steps; intervals over {found['n_prompts']} prompts of "
        "pocket-dev. The last column: drawing again, by the critic's word, where only what looks exact is "
        f"finished. `{found['command']}`, in `benchmarks/results/early_looks.json`."
    )
    if "cost" in found:
        return f"{told}\n\n{_early_costs(found)}"
    return f"{told} What the engine saves has not been measured yet (`--parts cost`)."


def _early_costs(found: dict[str, Any]) -> str:
    """Drawing again and the engine, without early looks and with them."""
    rows = []
    for several in found["cost"].values():
        for name, arm in several.items():
            cost = arm["cost"]
            cells = [f"`{name}`", percent(arm["verified"]["share"]), f"{cost['pre_mean']:.1f}"]
            cells += [f"{cost['par2']:.1f}", percent(arm["abandoned"])]
            for key in ("pre_over_without", "par2_over_without"):
                if key not in arm:
                    cells.append("-")
                    continue
                low, high = arm[key]["ratio_ci95"]
                cells.append(f"{arm[key]['ratio']:.2f} ({low:.2f} to {high:.2f})")
            rows.append(cells)
    head = [
        "method, and after which percent of the steps",
        "verified",
        "renders spent",
        "cost",
        "abandoned",
        "spent, over without",
        "cost, over without",
    ]
    return f"{grid(head, rows)}\n\nCap {found['cap']:g}; costs are penalised means."


def batches() -> str:
    """Continuous batches against groups that wait for their last picture."""
    found = _result("batches")
    rows = []
    for arm, one in found["arms"].items():
        fill, shares = one["fill"], one["share_of_time"]
        unfinished, waiting = fill["jobs_outnumber_slots"], fill["jobs_not_begun"]
        rows.append(
            [
                arm,
                f"{one['seconds']['median']:.0f} s",
                one["calls"],
                *(
                    percent(part[kind]["fill"])
                    for part in (waiting, unfinished)
                    for kind in ("plain", "gradient")
                ),
                percent(shares["bookkeeping"]["median"], digits=1),
            ]
        )
    ratio = found["seconds_ratio"]
    head = [
        "batches",
        "time",
        "number",
        "plain full, while pictures wait",
        "gradient full, while pictures wait",
    ]
    head += ["plain full, while more are unfinished than fit", "the same, gradient", "bookkeeping"]
    return (
        f"{grid(head, rows)}\n\n{found['n_prompts']} prompts of three suites, {found['batch']} pictures a "
        f"batch, {found['threads']} threads. Continuous over static: {ratio['median']:.2f} of the time "
        f"({ratio['min']:.2f} to {ratio['max']:.2f}), {found['calls_ratio']:.2f} of the batches; "
        f"{percent(found['same_histories'])} of the pictures have the same history. `{found['command']}`, in "
        "`benchmarks/results/batches.json`."
    )
