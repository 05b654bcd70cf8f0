"""What one GPU does in ten minutes: guided steps, memory plans and models at published sizes, random weights.

    benchmarks/gpu.sh                                  one CUDA device, bfloat16
    benchmarks/gpu.sh --size tiny --device cpu         the same rows, as small as may be
    benchmarks/gpu.sh --rows sdxl-turbo plans          some of them

Rows come in the order of their weight. Each is saved as soon as it is done, and those for which no time was
left are named, so that a run that is cut short is worth what it has measured. What is in a row is told by
``benchmarks.pipelines``: every ratio has both of its sides measured in turns in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch

from benchmarks.pipelines import DTYPES, adapter_of, by_plan, guided, measure
from benchmarks.real_sizes import MODELS
from countgen.engine.sharing import frozen

CRITIC = "owlv2"
SHORT = 3
"""Timings of each thing, of which the median counts."""


class OutOfTime(BaseException):
    """The minutes are over; no exception that a row would catch."""


class Setting:
    """Where and how large the rows run.

    Attributes:
        tiny: models of a few thousand weights.
        dtype: of all weights.
    """

    def __init__(self, size: str, device: str, dtype: str | None) -> None:
        self.size, self.tiny, self.device = size, size == "tiny", device
        self.cuda = torch.device(device).type == "cuda"
        self.dtype = DTYPES[dtype or ("bfloat16" if self.cuda else "float32")]

    def steps(self, name: str, batches: Sequence[int], **options: Any) -> dict[str, Any]:
        """The loop of one model with the critic, beside its bare modules."""
        told = SimpleNamespace(size=self.size, batches=batches, repeats=SHORT)
        return guided(name, CRITIC, self.tiny, self.device, self.dtype, told, **options)


def sdxl_turbo(at: Setting) -> dict[str, Any]:
    """Guided steps, their peak memory, and fifty of them."""
    return at.steps("sdxl-turbo", (1, 2) if at.tiny else (1, 2, 4, 8, 16))


def plans(at: Setting) -> dict[str, Any]:
    """Every memory plan: forward, graph and the way back."""
    return by_plan("sdxl-turbo", at.tiny, at.device, at.dtype, (1,) if at.tiny else (1, 4), SHORT)


def looks(at: Setting) -> dict[str, Any]:
    """What the engine does without gradient, drawing and counting, beside the bare modules."""
    return at.steps("sdxl-turbo", (1,) if at.tiny else (1, 4, 16), gradient=False)


def compiled(at: Setting) -> dict[str, Any]:
    """``torch.compile``: the first call, which compiles, and then both kinds side by side."""
    found: dict[str, Any] = {}
    for kind in (False, True):
        adapter = adapter_of("sdxl-turbo", at.tiny, at.device, at.dtype, compile=kind)
        begun = time.perf_counter()
        with frozen(adapter.modules()):
            told = measure(adapter, "sdxl-turbo", at.tiny, 1, SHORT)
        told["seconds_in_all"] = round(time.perf_counter() - begun, 3)
        found["compiled" if kind else "plain"] = told
    return found


def model(name: str, batches: Sequence[int], plan: str = "fast") -> Callable[[Setting], Any]:
    """Guided steps of another model."""
    return lambda at: at.steps(name, (1,) if at.tiny else batches, memory_plan=plan)


ROWS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "sdxl-turbo": sdxl_turbo,
    "plans": plans,
    "looks": looks,
    "sd-turbo": model("sd-turbo", (1, 8)),
    "sana-sprint": model("sana-sprint", (1, 4)),
    "pixart-dmd": model("pixart-dmd", (1, 4)),
    "sd3.5-medium": model("sd3.5-medium", (1,), "balanced"),
    "compiled": compiled,
    "flux-schnell": model("flux-schnell", (1,), "low"),
}


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises ``OutOfTime`` inside when the seconds are over, in systems that have alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    names: Sequence[str], at: Setting, minutes: float, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Rows in their order, each told to ``save`` when it is done, until the minutes are over."""
    import diffusers
    import transformers

    end = time.monotonic() + 60 * minutes
    report: dict[str, Any] = {
        "command": "benchmarks/gpu.sh",
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(at.device) if at.cuda else at.device,
        "device_bytes": torch.cuda.mem_get_info(at.device)[1] if at.cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "size": at.size,
        "dtype": str(at.dtype).removeprefix("torch."),
        "models": sorted(MODELS),
        "critic": CRITIC,
        "rows": {},
        "not_reached": list(names),
    }
    save(report)
    for name in names:
        begun = time.monotonic()
        if begun >= end:
            break
        print(f"{name}: {end - begun:.0f} seconds are left", file=sys.stderr)
        try:
            with at_most(end - begun):
                row: dict[str, Any] = {"found": ROWS[name](at)}
        except OutOfTime:
            break
        except Exception as error:  # one row that fails must not cost the others
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        row["seconds"] = round(time.monotonic() - begun, 3)
        report["rows"][name] = row
        report["not_reached"].remove(name)
        save(report)
        gc.collect()
        if at.cuda:
            torch.cuda.empty_cache()
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--device", default="cuda", help="cuda, mps or cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no row is begun")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-SIZE.json")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; try --size tiny --device cpu")
    out = options.out or Path(__file__).parent / "results" / f"gpu-{options.size}.json"
    out.parent.mkdir(parents=True, exist_ok=True)

    def save(report: dict[str, Any]) -> None:
        """Through another name, so that a run that is cut off leaves a whole document."""
        part = out.with_name(f"{out.name}.part")
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(part, out)

    at = Setting(options.size, options.device, options.dtype)
    report = run(options.rows, at, options.minutes, save)
    print(json.dumps(report))
    return 1 if any("error" in row for row in report["rows"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
