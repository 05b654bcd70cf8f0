"""Seconds from the start of ``countgen generate`` to its end, a picture verified and saved.

python -m benchmarks.startup --json               prompts drawn by seed from pocket-small, a process each
python -m benchmarks.startup --json --parts-of "two cats"  where the time goes, in one process by itself

A prompt whose picture is not verified at the end counts as one that never is. Seconds of the processor, user
and system, stand beside those of the clock: on a machine that others use they say more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics as stats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def typed(prompt: str, out: str) -> dict[str, Any]:
    """The command as a newcomer types it, in a process of its own."""
    command = [sys.executable, "-m", "countgen", "generate", prompt, "--out", out, "--json"]
    before, begun = _children(), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, work = time.perf_counter() - begun, _children() - before
    document = json.loads(done.stdout)
    return {
        "prompt": prompt,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(work, 2),
        "pre": document["cost"]["pre"],
        "verified": document["images"][0]["verified"],
    }


def parts_of(prompt: str) -> dict[str, dict[str, float]]:
    """The same work part by part in this process, which must have loaded nothing yet."""
    found: dict[str, dict[str, float]] = {}

    def part(name: str, work: Callable[[], T]) -> T:
        begun, worked = time.perf_counter(), time.process_time()
        result = work()
        found[name] = {
            "seconds": round(time.perf_counter() - begun, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
        }
        return result

    from countgen import parse_prompt

    parsed = part("reading the prompt", lambda: parse_prompt(prompt))
    part("imports", _imports)
    from countgen import CountGuidedPipeline, drawing
    from countgen.engine.cost import PriceList

    pipeline = part("loading", lambda: CountGuidedPipeline.from_pretrained("pocket"))
    assert pipeline.verifier is not None
    roles = {"critic": pipeline.critic, "verifier": pipeline.verifier}

    def price() -> None:
        nouns = [target.noun for target in parsed.targets]
        queries = {role: critic.prepare(nouns) for role, critic in roles.items()}
        PriceList(pipeline.adapter, pipeline.adapter.plan(), roles).of(queries)

    part("pricing", price)
    run = pipeline.stream(parsed)
    part("drawing", lambda: [None for _ in run])
    (job,) = run.jobs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "comparison.png"
        part("saving", lambda: path.write_bytes(drawing.png(drawing.comparison(job), {})))
    return found


def _imports() -> None:
    """What the command imports sooner or later, all at once."""
    from countgen._collector import paused_collector

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    with paused_collector():
        for module in ("countgen.cli.commands", "countgen.pipeline"):
            import_module(module)
        from countgen.pocket import FOLDER

        index = json.loads((FOLDER / "generator" / "model_index.json").read_text())
        for module, name in (row for row in index.values() if isinstance(row, list) and row[0]):
            getattr(import_module(module), name)
        getattr(import_module("diffusers"), index["_class_name"])


def _children() -> float:
    """Seconds of the processor that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, 90th percentile and extremes; None for what is never reached."""
    rows = sorted(values)
    told = {
        "median": stats.median(rows),
        "p90": rows[int(0.9 * (len(rows) - 1) + 0.5)],
        "min": rows[0],
        "max": rows[-1],
    }
    return {name: round(x, 2) if x != float("inf") else None for name, x in told.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--prompts", type=int, default=20, help="how many, of pocket-small")
    parser.add_argument("--seed", type=int, default=0, help="that draws them")
    parser.add_argument("--parts-of", metavar="PROMPT", help="time the parts of one run, no more")
    options = parser.parse_args()
    indent = None if options.json else 1
    if options.parts_of:
        print(json.dumps(parts_of(options.parts_of), indent=indent))
        return 0
    from countgen.pocket.suites import suite

    chosen = random.Random(options.seed).sample(suite("pocket-small"), options.prompts)
    with tempfile.TemporaryDirectory() as out:
        typed("two cats", out)  # reads the files once, which a machine keeps in memory afterwards
        rows = [typed(one.prompt, out) for one in chosen]
    never = float("inf")
    command = [sys.executable, "-m", "benchmarks.startup", "--json", "--parts-of", chosen[0].prompt]
    parts = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report = {
        "command": f"python -m benchmarks.startup --json --prompts {options.prompts} --seed "
        f"{options.seed}",
        "cpus": os.cpu_count(),
        "prompts": len(rows),
        "verified": sum(row["verified"] for row in rows),
        "seconds": _spread([row["seconds"] if row["verified"] else never for row in rows]),
        "cpu_seconds": _spread([row["cpu_seconds"] for row in rows]),
        "parts": {"prompt": chosen[0].prompt} | json.loads(parts),
        "load_average": round(os.getloadavg()[0], 1),
        "pictures": rows,
    }
    print(json.dumps(report, indent=indent))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
