"""The page under use: seconds from the request to the first picture and to a verified one, and under load.

    python -m benchmarks.demo [--json] [--prompts 20] [--visitors 20] [--generations 200]

A model is loaded and serves the page in this process; the requests come through Gradio's client, as those
of a browser do. Prompts are drawn by seed from ``pocket-small``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import tyro

PATIENT = {"timeout": 300}
"""Browsers wait; Gradio's client hangs up after 5 s, which is soon where clients and server share cores."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    prompts: int = 20
    """Prompts of ``pocket-small``, drawn by seed."""
    seed: int = 0
    """Of the prompts and of the pictures."""
    method: str | None = None
    """By default that of the page."""
    visitors: int = 20
    """Visitors who ask at the same time."""
    generations: int = 200
    """Pictures drawn one after the other while memory is watched."""
    json: bool = False
    """Print one JSON document."""


def measure(options: Options) -> dict[str, Any]:
    """Latency, visitors at once, and memory."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from countgen.demo import build_app, launch_options

    app = build_app(warm=True)
    app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    chosen = {"method": options.method or app.countgen.studio.default_method}
    try:
        found: dict[str, Any] = {"command": "python -m benchmarks.demo --json"}
        found |= {"method": chosen["method"], "cpus": os.cpu_count()}
        for name, part in (
            ("latency", lambda: _latency(app.local_url, options, chosen)),
            ("visitors", lambda: _visitors(app.local_url, options)),
            ("memory", lambda: _memory(app.local_url, options)),
        ):
            before, begun = os.getloadavg()[0], time.monotonic()
            work = time.process_time()
            found[name] = part()
            # Of others, too: on a machine that is shared, seconds say less than the work of this process.
            found[name]["load_average"] = [round(x, 1) for x in (before, os.getloadavg()[0])]
            found[name]["wall_seconds"] = round(time.monotonic() - begun, 1)
            found[name]["cpu_seconds"] = round(time.process_time() - work, 1)
            print(f"{name} measured: {json.dumps(found[name])}", file=sys.stderr, flush=True)
        return found
    finally:
        app.close(verbose=False)


def _latency(address: str, options: Options, chosen: dict[str, Any]) -> dict[str, Any]:
    from gradio_client import Client

    from countgen.pocket.suites import suite

    client = Client(address, verbose=False)
    prompts = random.Random(options.seed).sample(suite("pocket-small"), options.prompts)
    client.predict("a cat", method="none", api_name="/generate")  # connections are open then
    first, verified, rows = [], [], []
    for one in prompts:
        begun = time.monotonic()
        job = client.submit(one.prompt, seed=options.seed, api_name="/generate", **chosen)
        seen = None
        while not job.done():
            if seen is None and any(found[2].get("looks") for found in job.outputs()):
                seen = time.monotonic() - begun
            time.sleep(0.01)
        result = job.result()[2]
        taken = time.monotonic() - begun
        first.append(taken if seen is None else seen)
        rows.append({"prompt": one.prompt, "seconds": round(taken, 2)} | result["cost"])
        if result["verified"]:
            verified.append(taken)
    # One that was never verified waits for ever.
    waits = sorted(verified) + [float("inf")] * (len(prompts) - len(verified))
    return {
        "prompts": len(prompts),
        "verified": len(verified),
        "first_picture_seconds": _summary(first),
        "verified_seconds": {
            "median": _finite(statistics.median(waits)),
            "p90": _finite(waits[int(0.9 * (len(waits) - 1) + 0.5)]),
        },
        "pictures": rows,
    }


def _visitors(address: str, options: Options) -> dict[str, Any]:
    from gradio_client import Client

    from countgen.pocket.world import NOUNS

    wanted = [f"two {NOUNS[i % len(NOUNS)].plural}" for i in range(options.visitors)]

    lost: list[str] = []

    def ask(number: int) -> tuple[bool, float]:
        begun = time.monotonic()
        try:
            client = Client(address, verbose=False, httpx_kwargs=PATIENT)
            result = client.predict(
                wanted[number], seed=number, method="none", api_name="/generate"
            )[2]
        except Exception as error:
            lost.append(f"{type(error).__name__}: {error}"[:200])
            return False, time.monotonic() - begun
        own = (result["prompt"], result["seed"]) == (wanted[number], number)
        return own, time.monotonic() - begun

    with ThreadPoolExecutor(options.visitors) as pool:
        found = list(pool.map(ask, range(options.visitors)))
    return {
        "visitors": options.visitors,
        "own_picture": sum(own for own, _ in found),
        "lost": lost,
        "seconds": _summary([taken for _, taken in found]),
    }


def _memory(address: str, options: Options) -> dict[str, Any]:
    """Resident memory after every tenth of the generations, the first tenth being warm-up.

    Beside it what the C library has given out: the rest are pages that it keeps for later.
    """
    from gradio_client import Client

    client, process = Client(address, verbose=False, download_files=False), psutil.Process()
    marks: list[int] = []
    given: list[int | None] = []
    for number in range(options.generations):
        client.predict("two cats", seed=number, budget=4, api_name="/generate")
        if (number + 1) % max(1, options.generations // 10) == 0:
            gc.collect()
            marks.append(process.memory_info().rss)
            given.append(_given_out())
    return {
        "generations": options.generations,
        "resident_mb": [round(mark / 1e6) for mark in marks],
        "growth_mb": round((marks[-1] - marks[0]) / 1e6, 1) if marks else None,
        "given_out_mb": [None if one is None else round(one / 1e6, 1) for one in given],
    }


class _MallocState(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
    ] + [(name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")]


def _given_out() -> int | None:
    """Bytes in use by the C library's account; None where it keeps none."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    ask.restype = _MallocState
    state = ask()
    return int(state.uordblks + state.hblkhd)


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
        "min": round(min(values), 2),
    }


def _finite(value: float) -> float | None:
    return round(value, 2) if value != float("inf") else None


def main() -> None:
    """Print what was measured."""
    options = tyro.cli(Options, description=__doc__)
    found = measure(options)
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
