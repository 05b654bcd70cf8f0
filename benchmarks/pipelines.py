"""Seconds and memory of every generator, by memory plan and batch size.

    python -m benchmarks.pipelines --json                             tiny models, on a CPU
    python -m benchmarks.pipelines --json --size full --device cuda    published sizes, bfloat16
    python -m benchmarks.pipelines --json --size full --device cuda --pipelines sdxl-turbo --critic owlv2

Weights are random. Three things are timed, each the median of several runs with minimum and maximum: a plain
picture (forward), the same with a graph (graph), and with the way back to the noise (backward).
``peak_bytes`` is the most that a CUDA device had allocated meanwhile, null elsewhere; ``graph_bytes`` is what
the graph keeps for the way back, weights aside, and the same on all devices. Text encoders run once, and are
not part of it.

With --critic the whole guided loop is timed beside the bare modules chained: see ``guided`` in the document.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.real_sizes import MODELS
from countgen.engine.cost import Prices
from countgen.engine.sharing import frozen
from countgen.errors import MemoryShortage
from critics.base import Query
from pipelines import memory
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Flops, Noise, Plan
from pipelines.registry import find_card, wrap

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def adapter_of(
    name: str, tiny: bool, device: str, dtype: torch.dtype, compile: bool = False
) -> DiffusersAdapter:
    """The preset's adapter around a pipeline with random weights; tiny ones draw 16 x 16 latents."""
    pipeline, card = MODELS[name].build(tiny, device, dtype), find_card(name)
    options: dict[str, Any] = {"memory_plan": "fast", "compile": compile}
    adapter = wrap(pipeline, card, **options)
    if tiny:
        _, rows, _ = adapter.family.latent_shape(pipeline, card.size, card.size)
        adapter = wrap(pipeline, replace(card, size=card.size * 16 // rows), **options)
    return adapter


def measure(
    adapter: DiffusersAdapter, name: str, tiny: bool, batch: int, repeats: int
) -> dict[str, Any]:
    """One memory plan, the adapter's, and one batch size.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    plan, device = adapter.plan(), adapter.device
    dtype = next(getattr(adapter.pipeline, adapter.family.denoiser).parameters()).dtype
    rows = MODELS[name].conditioning(batch, tiny, str(device), dtype)
    if adapter.family.uses_cfg(adapter.pipeline, plan):
        rows = replace(rows, unconditional=rows)
    noise = adapter.noise([torch.Generator().manual_seed(i) for i in range(batch)], plan)

    def forward() -> None:
        with torch.no_grad():
            adapter.render(noise, rows, plan)

    def graph() -> tuple[Tensor, Tensor]:
        leaf = noise.latents.clone().requires_grad_()
        return leaf, adapter.render(replace(noise, latents=leaf), rows, plan)

    def backward() -> None:
        leaf, images = graph()
        torch.autograd.grad(images.sum(), leaf)

    calls: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "graph": graph,
        "backward": backward,
    }
    found: dict[str, Any] = {key: timed(call, device, repeats) for key, call in calls.items()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph()
    return found | {"graph_bytes": sum(kept.values())}


def timed(call: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, Any]:
    """Median, least and most seconds, and peak bytes; a first call is not counted."""
    cuda = device.type == "cuda"
    call()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return {
        "seconds": round(stats.median(seconds), 5),
        "min": round(min(seconds), 5),
        "max": round(max(seconds), 5),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
    }


def by_plan(
    name: str, tiny: bool, device: str, dtype: torch.dtype, batches: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Memory plan -> batch size -> what ``measure`` finds, or an ``error`` where memory does not suffice."""
    adapter = adapter_of(name, tiny, device, dtype)
    found: dict[str, Any] = {}
    with frozen(adapter.modules()):
        for plan in memory.NAMES:
            adapter.set_memory_plan(plan)
            found[plan] = {}
            for batch in batches:
                print(f"{name}: {plan}, batch {batch}", file=sys.stderr)
                try:
                    found[plan][batch] = measure(adapter, name, tiny, batch, repeats)
                except torch.OutOfMemoryError:
                    found[plan][batch] = {"error": "the device's memory does not suffice"}
                    torch.cuda.empty_cache()
    return found


def guided(
    name: str,
    critic_name: str,
    tiny: bool,
    device: str,
    dtype: torch.dtype,
    options: Any,
    *,
    gradient: bool = True,
    memory_plan: str = "fast",
) -> dict[str, Any]:
    """The guided loop with a critic of random weights, by batch size.

    ``ratio_to_floor`` is a guided step over the same modules chained bare: denoiser with its scheduler's
    step, decoder, critic, one way back. ``seconds_50`` is that of fifty guided steps.

    Args:
        gradient: False times the engine's looks, which draw and count, and go no way back.
    """
    from benchmarks.hub_models import save_model
    from countgen.engine.cost import Cost
    from countgen.engine.evaluate import Evaluator
    from countgen.engine.job import Job, Request
    from countgen.engine.policy import BestOfN, DrawThenImprove
    from countgen.engine.pool import Pool
    from countgen.guidance.methods import Method
    from countgen.guidance.objectives import SoftCount
    from countgen.prompts import parse_prompt
    from critics.registry import load_critic

    adapter = adapter_of(name, tiny, device, dtype)
    adapter.set_memory_plan(memory_plan)
    with tempfile.TemporaryDirectory() as folder:
        save_model(critic_name, Path(folder), options.size)
        critic: Any = load_critic(critic_name, folder, dtype=dtype)
    critic.to(device)
    prompt = parse_prompt("twenty apples", [("apple", 20)])
    query, plan = critic.prepare(["apple"]), adapter.plan()
    found: dict[str, Any] = {}
    for batch in options.batches:
        rows = MODELS[name].conditioning(batch, tiny, device, dtype)
        policy = DrawThenImprove(draws=0, steps=10**9) if gradient else BestOfN()
        method = Method("timed", "endless", policy, objective=SoftCount())
        look = Evaluator(adapter, plan, critic, None, method, rows, [prompt] * batch, FlatPrices())

        def draw(candidate: int) -> Noise:
            return adapter.noise([torch.Generator().manual_seed(candidate)], plan)

        jobs = [Job(Request(i, prompt, i, {"critic": query}, draw, i, 1e12)) for i in range(batch)]
        noise = Noise.join([draw(i) for i in range(batch)]).to(device)

        def bare(rows: Any = rows, noise: Noise = noise, batch: int = batch) -> None:
            if not gradient:
                with torch.no_grad():
                    critic(adapter.render(noise, rows, plan), [query] * batch)
                return
            leaf = noise.latents.clone().requires_grad_()
            images = adapter.render(replace(noise, latents=leaf), rows, plan)
            torch.autograd.grad(critic(images, [query] * batch).soft.sum(), leaf)

        print(f"guided: {name} with {critic_name}, batch {batch}", file=sys.stderr)
        with frozen(adapter.modules()):
            states = Pool(look, Cost(), batch).run(jobs)
            try:
                found[str(batch)] = _compare(lambda s=states: next(s), bare, adapter, plan, options)
            except (torch.OutOfMemoryError, MemoryShortage):
                found[str(batch)] = {"error": "the device's memory does not suffice"}
            finally:
                states.close()
    memory_name = adapter.memory.name
    return {"pipeline": name, "critic": critic_name, "memory": memory_name, "by_batch": found}


class FlatPrices:
    """In place of a ``PriceList``: these models have no text encoder to measure, and budgets no end."""

    def of(self, queries: Mapping[str, Query]) -> Prices:
        names = ("denoiser", "decoder", "critic", "text_encoder")
        return Prices(dict.fromkeys(names, Flops(1.0, 1.0)))

    def refresh(self) -> None:
        """They are the same for every memory plan."""


def _compare(
    step: Callable[[], Any],
    bare: Callable[[], Any],
    adapter: DiffusersAdapter,
    plan: Plan,
    options: Any,
) -> dict[str, Any]:
    """Both sides in turn, so that the machine's moods fall on both."""
    times: list[tuple[float, float]] = []
    peak = None
    for _ in range(options.repeats + 1):
        ours = timed_once(step, adapter.device)
        times.append((ours, timed_once(bare, adapter.device)))
    times = times[1:]
    ratios = [ours / floor for ours, floor in times]
    if adapter.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(adapter.device)
        step()
        peak = torch.cuda.max_memory_allocated(adapter.device)
    seconds = stats.median(ours for ours, _ in times)
    return {
        "ratio_to_floor": round(stats.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "seconds": round(seconds, 5),
        "seconds_50": round(50 * seconds, 3),
        "peak_bytes": peak,
        "size": [plan.height, plan.width],
    }


def timed_once(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on one line")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--pipelines", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5, help="timings of each thing")
    parser.add_argument("--critic", help="time the guided loop with this critic, and only that")
    options = parser.parse_args(arguments)
    cuda = torch.device(options.device).type == "cuda"
    dtype = DTYPES[options.dtype or ("bfloat16" if cuda else "float32")]
    import diffusers

    report: dict[str, Any] = {
        "command": "python -m benchmarks.pipelines " + " ".join(arguments or sys.argv[1:]),
        "device": torch.cuda.get_device_name() if cuda else options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "size": options.size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    tiny = options.size == "tiny"
    if options.critic:
        report["guided"] = [
            guided(name, options.critic, tiny, options.device, dtype, options)
            for name in options.pipelines
        ]
    else:
        report["pipelines"] = {
            name: by_plan(name, tiny, options.device, dtype, options.batches, options.repeats)
            for name in options.pipelines
        }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
