"""Writes the tables of README.md and docs/ from the committed results, so that no number in them is typed.

python -m benchmarks.tables            # rewrites what stands between <!-- table: NAME --> and <!-- end -->
python -m benchmarks.tables --check    # exits with 1 where a file is not what this command would write

Every table is a function of this module, named as it is in the files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.card_tables import (
    critic_licences,
    critic_list,
    method_list,
    model_licences,
    model_list,
)
from benchmarks.guidance_tables import (
    ablations,
    batches,
    early_looks,
    moves,
    quality,
    time_to_exact,
    token_reuse,
)
from benchmarks.learning_tables import (
    learned_clip,
    learned_clip_long,
    learned_counters,
    learned_dataset,
    learned_first,
    learned_referring,
    learned_variation,
)
from benchmarks.markdown import grid, percent
from benchmarks.method_tables import (
    groups,
    hard,
    methods,
    paired,
    result,
    side_by_side,
    source,
    suites,
    trust,
    verified_pictures,
)

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def files() -> list[Path]:
    """The markdown files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rewritten(text: str) -> str:
    """The text with all of its tables as the results now say.

    Raises:
        KeyError: a table that this module does not have.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing, and say what would be"
    )
    options = parser.parse_args()
    stale = []
    for path in files():
        text = path.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not options.check:
                path.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'is not up to date' if options.check else 'rewritten'}")
    return 1 if options.check and stale else 0


# -- plain pictures ---------------------------------------------------------------------------------


def plain() -> str:
    """The generator without guidance."""
    document = result("pocket_plain")
    rows = []
    for suite, found in document["suites"].items():
        if suite != "pocket-dev":
            judge = found["judge"]
            rows.append(
                [
                    f"`{suite}`",
                    found["n_prompts"],
                    percent(judge["exact"], judge["exact_ci95"]),
                    percent(judge["within_one"]),
                    f"{judge['mae']:.2f}",
                ]
            )
    speed = document["speed"]
    one, many = speed["batch_1"], speed["batch_16"]
    return (
        f"{grid(['suite', 'prompts', 'exact', 'counts within one', 'mean absolute error'], rows)}\n\n"
        f"A plain picture took {one['seconds']:.2f} s alone ({one['min']:.2f} to {one['max']:.2f}) and "
        f"{many['seconds']:.3f} s in a batch of 16, by {document['threads']} threads of a CPU.\n"
        f"{source(document['command'], 'pocket_plain')}"
    )


# -- counters -------------------------------------------------------------------------------------


def counters() -> str:
    """Pocket's counters on composed scenes."""
    from countgen.pocket import ROLES
    from countgen.pocket.world import FOLDER

    rows = []
    for role, name in ROLES.items():
        training = FOLDER / name.removeprefix("pocket-") / "training.json"
        held = json.loads(training.read_text(encoding="utf-8"))["held_out"]
        few, many = held["up_to_10"]["exact"], held["11_to_20"]["exact"]
        rows.append([f"`{name}`", role, percent(few, digits=1), percent(many, digits=1)])
    return grid(["counter", "role", "exact, up to 10 objects", "exact, 11 to 20"], rows)


def labels() -> str:
    """Pocket's counters against pictures counted by eye."""
    document = result("pocket_labels")
    rows = []
    for name, found in document["counters"].items():
        few, all_of = found["agrees_up_to_10_asked"], found["agrees"]
        yes, no = found["sensitivity"], found["specificity"]
        rows.append(
            [
                f"`{name}`",
                percent(all_of["share"], all_of["ci95"]),
                percent(few["share"]),
                percent(yes["share"], yes["ci95"]),
                percent(no["share"], no["ci95"]),
            ]
        )
    head = [
        "counter",
        "agrees, all",
        "agrees, up to 10 asked for",
        "calls an exact picture exact",
        "an inexact one inexact",
    ]
    return (
        f"{document['pictures']} plain pictures; {document['sayable']} of them could be counted throughout, "
        f"of which {document['exact_by_eye']} were exact.\n\n{grid(head, rows)}\n\n"
        f"{source(document['command'], 'pocket_labels')}"
    )


def label_history() -> str:
    """What came before the labels, and what the counters learned from."""
    from countgen.pocket.world import FOLDER

    document = result("pocket_labels")
    before = result("earlier")["judge_on_earlier_labels"]
    learned = {
        role: len((FOLDER / f"train/pictures/{role}/labels.jsonl").read_text().splitlines())
        for role in ("search", "judge")
    }
    judge = next(c for c in document["counters"].values() if c["role"] == "judge")["agrees"]
    return (
        f"The judge agrees on {round(judge['share'] * judge['of'])} of {judge['of']}. On two earlier sets, "
        f"of {before['pictures'][0]} and {before['pictures'][1]}, its forerunners had "
        f"{percent(before['agreed'], digits=1)}: nearly all that they missed were pairs that overlap, which "
        "its suppression of duplicates took for one. It was then trained to tell such pairs itself, and "
        "these pictures were drawn and counted after that. Other pictures, counted in the same way, ended "
        "the counters' training (`countgen/pocket/train/pictures`): critic and verifier learned from "
        f"{learned['search']} of them, the judge from {learned['judge']} others, and its threshold was set "
        f"on the {learned['search']}."
    )


def hackability() -> str:
    """How far optimising pixels against one counter convinces the others."""
    document = result("hackability")
    rows = [
        [
            f"`{name}`",
            f"{found['reached']} of {found['pictures']}",
            f"{percent(found['transfer'])} ({percent(found['min'])} to {percent(found['max'])})",
            f"{percent(found['augmented']['transfer'])} "
            f"({percent(found['augmented']['min'])} to {percent(found['augmented']['max'])})",
        ]
        for name, found in document["critics"].items()
    ]
    head = ["critic", "reached its count", "confirmed by the others", "the same under random views"]
    return f"{grid(head, rows)}\n\n{source(document['command'], 'hackability')}"


def critic_cost() -> str:
    """What a critic costs above its bare network."""
    document, again = result("critics"), result("critics_again")["critics"]
    rows = [
        [
            f"`{name}`",
            f"{found['parameters'] / 1e6:.0f}",
            f"{found['bare_seconds']:.2f}",
            f"{found['ratio_to_bare']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})",
            f"{again[name]['ratio_to_bare']:.2f} ({again[name]['ratio_min']:.2f} to "
            f"{again[name]['ratio_max']:.2f})"
            if name in again
            else "",
        ]
        for name, found in document["critics"].items()
    ]
    head = ["critic", "parameters, millions", "network, s", "critic over network", "15 pairs"]
    return (
        f"{grid(head, rows)}\n\nForward and backward at published sizes with random weights, medians with "
        f"minimum and maximum. {source(document['command'], 'critics')}"
    )


# -- speed and robustness -------------------------------------------------------------------------


def guided_step() -> str:
    """What guidance costs beyond the passes of the networks, and what a first picture takes."""
    document, begun = result("guided_step"), result("startup")
    rows = [
        [
            name,
            f"{found['ratio_to_floor']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})",
            f"{found['seconds']:.2f}",
        ]
        for name, found in (
            *((f"`noise`, batch {size}", one) for size, one in document["by_batch"].items()),
            *((f"`{name}`, batch 16", one) for name, one in document["by_method"].items()),
        )
    ]
    first, parts = begun["seconds"], begun["parts"]
    told = ", ".join(
        f"{name} {found['seconds']:.1f}" for name, found in parts.items() if name != "prompt"
    )
    head = ["method", "guided step over bare forward and backward", "seconds"]
    return (
        f"{grid(head, rows)}\n\n{source(document['command'], 'guided_step')}\n\n"
        f"`countgen generate` took {first['median']:.1f} s from the start of the process to its end, the "
        f"picture saved (median of {begun['prompts']} prompts of `pocket-small` drawn by seed, 90th "
        f"percentile {first['p90']:.1f}; {begun['verified']} of {begun['prompts']} verified; "
        f"{begun['cpu_seconds']['median']:.1f} s of the processor). Of one run, in seconds: {told}. "
        f"{source(begun['command'], 'startup')}"
    )


def robustness() -> str:
    """What users can do wrong, tried at random."""
    document = result("robustness")
    return (
        f"{document['tried']:,} cases; {document['handled']:,} were handled, and {document['faults']} faults "
        f"were found, all of which were mended. {source(document['runs'][0]['command'], 'robustness')}"
    )


def prompt_lists() -> str:
    """How the prompt parser does on public lists."""
    document = result("prompts")
    rows = [
        [
            f"`{name}`",
            found["prompts"],
            found["with_targets"],
            percent(found["right"] / found["known"], digits=1) if found.get("known") else "",
        ]
        for name, found in document["lists"].items()
    ]
    return grid(["list", "prompts", "with counts", "all counts as its author says"], rows)


TABLES: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        hard,
        suites,
        groups,
        side_by_side,
        verified_pictures,
        trust,
        methods,
        paired,
        plain,
        counters,
        labels,
        label_history,
        hackability,
        critic_cost,
        guided_step,
        ablations,
        token_reuse,
        quality,
        moves,
        time_to_exact,
        early_looks,
        batches,
        robustness,
        prompt_lists,
        learned_clip,
        learned_clip_long,
        learned_counters,
        learned_referring,
        learned_first,
        learned_variation,
        learned_dataset,
        critic_licences,
        model_licences,
        critic_list,
        model_list,
        method_list,
    )
}


if __name__ == "__main__":
    raise SystemExit(main())
