"""Whether an evaluation can be trusted to end well, and what it costs beside the pictures.

python -m benchmarks.evaluation --json --parts kills overhead memory throughput

kills: two processes are killed with kill -9 at random moments, together and one alone, over and over in one
run; then it is let finish, and compared with an undisturbed run of one process. overhead: the share of the
time that is neither generator nor counters. memory: the resident set over --pictures plain pictures, and over
a list of --lines prompts of which 100 are drawn. throughput: two processes of one thread over one such
process, and over one process of two threads.

The processes of kills and throughput are forked from this one, which has imported all libraries before, as
importing them takes longer than the work between two kills.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

Row = dict[str, Any]


FORK = multiprocessing.get_context("fork")


def arguments_of(run: Path, *more: str) -> list[str]:
    """Of the command line."""
    return ["evaluate", "--out", str(run), "--json", *more]


def start(arguments: list[str], ranks: int, threads: int = 1) -> list[ForkProcess]:
    """Processes of one run with the variables that a launcher sets, in a process group of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[ForkProcess] = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
        environment = {name: str(value) for name, value in own.items()}
        process = FORK.Process(target=_rank, args=(arguments, environment, threads))
        process.start()
        processes.append(process)
        os.setpgid(int(process.pid or 0), int(processes[0].pid or 0))
    return processes


def _rank(arguments: list[str], environment: dict[str, str], threads: int) -> None:
    """What a forked process does: the command, with what it says in files beside its run folder."""
    import torch

    from countgen.cli import main

    os.environ.update(environment)
    torch.set_num_threads(threads)
    place = f"{arguments[2]}.rank{environment['RANK']}"
    for number, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{place}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os._exit(main(arguments))


def finish(processes: Sequence[ForkProcess]) -> None:
    """Wait for all of them.

    Raises:
        RuntimeError: one of them failed.
    """
    for process in processes:
        process.join(7200)
        if process.exitcode:
            raise RuntimeError(f"a process has ended with {process.exitcode}")


def kill_all(processes: Sequence[ForkProcess]) -> None:
    """kill -9 of the whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(int(processes[0].pid or 0), signal.SIGKILL)
    for process in processes:
        process.join()


def import_all() -> None:
    """Whatever an evaluation on pocket imports, so that forked processes begin with the work."""
    import accelerate  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from countgen import presets
    from countgen.evaluation import (  # noqa: F401
        feed,
        folder,
        library_scores,
        processes,
        progress,
        queue,
        runner,
        summing,
    )

    for name in presets.roles("pocket").values():
        presets.load_critic(name)
    presets.load_generator("pocket")


def rows_of(run: Path) -> list[Row]:
    """All whole rows of a run folder."""
    rows = []
    for path in sorted(run.glob("results.rank*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                rows.append(json.loads(line))
    return rows


def key(row: Row) -> tuple[str, str, int]:
    return row["method"], row["id"], row["image"]


def compared(found: Sequence[Row], wanted: Sequence[Row]) -> dict[str, Any]:
    """Rows against those of an undisturbed run: lost, double, and the share with another result."""
    times = Counter(map(key, found))
    by_key = {key(row): row for row in found}
    parts = ("outcome", "critic", "verifier", "judge", "tries", "seed")
    pairs = [(by_key[key(row)], row) for row in wanted if key(row) in by_key]
    other = sum(any(a.get(part) != b.get(part) for part in parts) for a, b in pairs)
    return {
        "rows": len(found),
        "lost": len(wanted) - len(pairs),
        "double": sum(n - 1 for n in times.values()),
        "foreign": len(times) - len(pairs),
        "outcome_differs": sum(a["outcome"] != b["outcome"] for a, b in pairs),
        "anything_differs": other,
    }


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill a run of two processes over and over, and compare what it comes to."""
    moments = random.Random(options.seed)
    arguments = [
        *("--prompts", "pocket-small", "--limit", str(options.prompts), "--budget", "8"),
        *("--num-images", "2", "--methods", "none", "engine"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        begun = time.monotonic()
        quiet = start(arguments_of(whole, *arguments), 1)
        _first_row(whole, quiet)
        loading = time.monotonic() - begun
        finish(quiet)
        undisturbed = time.monotonic() - begun
        wanted = rows_of(whole)
        # A part of the kills hits the loading, the others the drawing, which has to last for all of them.
        span, log = (undisturbed - loading) / (options.group + options.alone), []
        for kind in ["group"] * options.group + ["alone"] * options.alone:
            before = len(rows_of(broken))
            processes = start(arguments_of(broken, *arguments), 2)
            drawing = moments.random() < 0.7
            if drawing:
                _until(lambda: len(rows_of(broken)) > before, processes)  # noqa: B023
            _wait(processes, moments.uniform(0, span if drawing else loading))
            if kind == "alone":
                victim, other = moments.sample(processes, 2)
                victim.kill()
                victim.join()
                _wait([other], moments.uniform(0, span))
            ended = all(not process.is_alive() for process in processes)
            rows = len(rows_of(broken)) - before
            kill_all(processes)
            log.append({"kill": kind, "drawing": drawing, "rows": rows, "ended_before": ended})
        # The end: of two processes one dies once more, and the other finishes all alone.
        processes = start(arguments_of(broken, *arguments), 2)
        _until(lambda: len(_joined(broken)) == 2, processes)
        _wait(processes, moments.uniform(0, loading))
        processes[1].kill()
        processes[1].join()
        finish(processes[:1])
        document = json.loads((broken / "summary.json").read_text())
        pictures = sum((broken / row["picture"]).is_file() for row in rows_of(broken))
        return {
            "group": options.group,
            "alone": options.alone,
            "undisturbed_seconds": round(undisturbed, 1),
            "loading_seconds": round(loading, 1),
            "wanted": len(wanted),
            **compared(rows_of(broken), wanted),
            "pictures": pictures,
            "summed": document["n_images"],
            "partial_files": len(list(broken.rglob("*.partial"))),
            "kills": log,
        }


def _joined(run: Path) -> dict[str, str]:
    """The processes that take part in a run."""
    try:
        return dict(json.loads((run / "queue" / "state.json").read_text())["ranks"])
    except (OSError, ValueError):
        return {}


def _until(reached: Callable[[], bool], processes: Sequence[ForkProcess]) -> None:
    """Wait for it, or until all of them have ended."""
    while not reached() and any(process.is_alive() for process in processes):
        time.sleep(0.05)


def _wait(processes: Sequence[ForkProcess], seconds: float) -> None:
    """That long, or until all of them have ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.is_alive() for process in processes):
        time.sleep(0.02)


# -- inside one process -----------------------------------------------------------------------------


@contextmanager
def timed(spent: dict[str, float], name: str, owner: Any, attribute: str) -> Iterator[None]:
    """Add up the time inside of a function while the context lasts; nested calls count once."""
    inner = getattr(owner, attribute)

    def outer(*arguments: Any, **more: Any) -> Any:
        if spent.get("depth"):
            return inner(*arguments, **more)
        begun, spent["depth"] = time.perf_counter(), 1.0
        try:
            return inner(*arguments, **more)
        finally:
            spent["depth"] = 0.0
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun

    setattr(owner, attribute, outer)
    try:
        yield
    finally:
        setattr(owner, attribute, inner)


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """The share of an evaluation's time that is neither loading nor generator nor counters, by method.

    Prices are measured by running the models, and count as theirs.
    """
    import torch

    from countgen.engine.cost import PriceList
    from countgen.evaluation import runner
    from critics.density.blockwise import BlockwiseCounter
    from critics.detectors.base import DetectionCritic
    from pipelines.adapter import DiffusersAdapter

    out = {}
    parts: list[tuple[str, Any, str]] = [
        *(
            ("generator", DiffusersAdapter, name)
            for name in ("encode", "noise", "render", "images")
        ),
        *(("generator", PriceList, name) for name in ("__init__", "of")),
        *(("counters", critic, "__call__") for critic in (DetectionCritic, BlockwiseCounter)),
        ("generator", torch.autograd, "grad"),
        ("loading", runner._Rank, "_load"),
    ]
    for method in ("none", "best-of-n", "engine"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            spent: dict[str, float] = {}
            settings = _settings(folder, "pocket-small", (method,), options)
            for part in parts:
                stack.enter_context(timed(spent, *part))
            begun = time.perf_counter()
            outcome = runner.evaluate(settings)
            total = time.perf_counter() - begun
            assert outcome.document is not None
            working = total - spent["loading"]
            out[method] = {
                "pictures": outcome.document["n_images"],
                "seconds": round(working, 2),
                "overhead": round(1 - (spent["generator"] + spent["counters"]) / working, 4),
                "counters": round(spent["counters"] / working, 4),
            }
    return out


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """The resident set while many pictures are drawn, and while few are drawn of a very long list."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "many.csv")
        _write_list(path, options.pictures)
        out["pictures"] = _watched(path, folder, options, None)
    with tempfile.TemporaryDirectory() as folder:
        for lines in (options.lines // 100, options.lines):
            path = Path(folder, f"list{lines}.csv")
            _write_list(path, lines)
            out[f"lines_{lines}"] = _watched(path, folder, options, 100)
    return out


def _write_list(path: Path, lines: int) -> None:
    from countgen.pocket.world import NAMES, NOUNS

    with path.open("w", encoding="utf-8") as file:
        file.write("id,prompt,noun,count\n")
        for number in range(lines):
            noun, count = NAMES[number % len(NAMES)], 1 + number // len(NAMES) % 10
            word = noun if count == 1 else NOUNS[NAMES.index(noun)].plural
            file.write(f"p{number},{count} {word},{noun},{count}\n")


def _watched(path: Path, folder: str, options: argparse.Namespace, limit: int | None) -> Row:
    """One evaluation as a process of its own, with its resident set read from outside ten times a second."""
    run = Path(folder, f"run-{path.stem}")
    arguments = ["--prompts", str(path), "--methods", "none", "--num-images", "1"]
    arguments += ["--limit", str(limit)] if limit else []
    begun = time.monotonic()
    with Path(f"{run}.err").open("wb") as said:
        command = [sys.executable, "-m", "countgen", *arguments_of(run, *arguments)]
        process = subprocess.Popen(command, stdout=said, stderr=said)
    curve: list[tuple[int, int]] = []
    results = run / "results.rank0.jsonl"
    done = peak = 0
    offset = 0
    while process.poll() is None:
        held = _resident(process.pid)
        peak = max(peak, held)
        if results.exists():
            with results.open("rb") as file:
                file.seek(offset)
                data = file.read()
            offset, done = offset + len(data), done + data.count(b"\n")
            if done and (not curve or done >= curve[-1][0] + 100):
                curve.append((done, held))
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(Path(f"{run}.err").read_text()[-2000:])
    drawn = [held for _, held in curve]
    tenth = max(1, len(drawn) // 10)
    early, late = (
        statistics.median(drawn[tenth : 2 * tenth] or drawn),
        statistics.median(drawn[-tenth:]),
    )
    return {
        "pictures": len(rows_of(run)),
        "seconds": round(time.monotonic() - begun, 1),
        "peak_bytes": peak,
        "after_a_tenth_bytes": int(early),
        "at_the_end_bytes": int(late),
        "growth": round(late / early - 1, 4),
        "curve": [list(point) for point in curve[:: max(1, len(curve) // 20)]],
    }


def _resident(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of two processes of one thread, of one such, and of one with two threads."""
    arguments = [
        *("--prompts", "pocket-small", "--num-images", str(options.images), "--budget", "16"),
        *("--methods", "best-of-n"),
    ]
    ways = {"two_processes": (2, 1), "one_process": (1, 1), "two_threads": (1, 2)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            for name, (ranks, threads) in ways.items():
                run = Path(folder, f"{name}{round_}")
                processes = start(arguments_of(run, *arguments), ranks, threads)
                begun, done = _first_row(run, processes)
                finish(processes)
                rates[name].append((len(rows_of(run)) - done) / (_last_change(run) - begun))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "pictures_a_second": {
            name: [round(x, 3) for x in (min(v), middle[name], max(v))] for name, v in rates.items()
        },
        "over_one_process": round(middle["two_processes"] / middle["one_process"], 3),
        "over_two_threads": round(middle["two_processes"] / middle["two_threads"], 3),
    }


def _first_row(run: Path, processes: Sequence[ForkProcess]) -> tuple[float, int]:
    """When the models were loaded and every process had its first results, and how many these were."""
    while any(process.is_alive() for process in processes):
        files = list(run.glob("results.rank*.jsonl"))
        if len(files) == len(processes) and all(path.stat().st_size for path in files):
            return time.time(), len(rows_of(run))
        time.sleep(0.01)
    return time.time(), 0


def _last_change(run: Path) -> float:
    return max(path.stat().st_mtime for path in run.glob("results.rank*.jsonl"))


def _settings(
    folder: str, prompts: str, methods: tuple[str, ...], options: argparse.Namespace
) -> Any:
    from countgen.evaluation.runner import Settings
    from countgen.options import DrawOptions

    draw = DrawOptions(num_images_per_prompt=options.images, budget=16)
    return Settings(prompts, Path(folder, "run"), methods, draw=draw)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "kills": kills,
    "overhead": overhead,
    "memory": memory,
    "throughput": throughput,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--group", type=int, default=20, help="kills of both processes")
    parser.add_argument("--alone", type=int, default=10, help="kills of one process alone")
    parser.add_argument("--prompts", type=int, default=40, help="prompts of the run that is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--images", type=int, default=2, help="pictures a prompt, of overhead and throughput"
    )
    parser.add_argument("--pictures", type=int, default=5000, help="drawn for memory")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the long list")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput")
    options = parser.parse_args()
    if {"kills", "throughput"} & set(options.parts):
        # Before torch is imported: threads of a pool do not live on in forked processes.
        os.environ["OMP_NUM_THREADS"] = "1"
    import_all()
    report = {name: PARTS[name](options) for name in options.parts}
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
