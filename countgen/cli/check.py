"""``countgen check``: load a generator and its counters, take one guided step, say what fits.

A generator without gradient draws a picture instead.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from countgen.errors import MemoryShortage
from countgen.options import DEFAULT_MODEL, MAX_BUDGET, CounterOptions, LoadOptions
from countgen.prompts import CountTarget, pluralise

if TYPE_CHECKING:
    import torch

    from countgen.pipeline import CountGuidedPipeline
    from critics.base import Critic
    from pipelines.base import ImageSource

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Check:
    """Load a generator and its counters, run one guided step, and say what fits and what is missing.

    Example: countgen check --model sdxl-turbo
    """

    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the guided step counts, such as --target "cat=3"; may be repeated. By default three of a noun that
    the critic knows."""
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        """Check, and print what was found."""
        with messages.status("checking") as status:
            found = check(self, status.update)
        print(json.dumps(found.document) if self.json else "\n".join(found.lines()))
        return 0 if found.document["works"] else 1


@dataclass(frozen=True)
class Report:
    """The command's JSON document.

    ``parts`` tells for generator, critic and verifier "ok" or what is missing; ``plans`` for each memory plan
    that was tried the seconds and peak bytes of a guided step of one picture, or why there was none;
    ``works`` whether a guided step with a finite gradient was taken.
    """

    document: dict[str, Any]

    def lines(self) -> list[str]:
        """The document for people."""
        found = self.document
        lines = [f"model: {found['model']} ({found['family'] or 'not loaded'})"]
        if found["family"]:
            use = "" if found["commercial"] else " (non-commercial, or with further terms: read it)"
            lines += [
                f"licence of the code: {found['license_code']}",
                f"licence of the weights: {found['license_weights']}{use}",
            ]
        lines += [f"{part}: {word}" for part, word in found["parts"].items()]
        lines += [f"device: {found['device']}"]
        for name, plan in found["plans"].items():
            told = plan.get("error") or (
                f"{plan['seconds']:.2f} s a guided step, {plan['peak_bytes'] / MEBIBYTE:.0f} MiB at most"
            )
            lines.append(f"memory plan {name}: {told}")
        lines.append("everything works" if found["works"] else "it does not work yet, see above")
        return lines


def check(options: Check, progress: Callable[[str], None] = lambda text: None) -> Report:
    """Load what is there and take one guided step with it.

    On a CUDA device every memory plan is tried unless the options name one; elsewhere the chosen one.

    Raises:
        UsageError: unknown names, or a device that is not there; before anything is loaded.
    """
    from countgen import presets

    targets = presets.read_targets(options.target)
    model, memory = options.model, options.load.memory
    preset = presets.find_preset(model)
    nouns = [target.noun for target in targets or ()]
    names = preset.roles(nouns)
    names = {
        role: getattr(options.counters, role) or names[role] for role in ("critic", "verifier")
    }
    presets.check_counters(names, nouns, "none")
    device = presets.check_device(options.load.device or presets.best_device())
    parts: dict[str, str] = {}
    found: dict[str, Any] = {
        "model": model,
        "family": "",
        "license_code": "",
        "license_weights": "",
        "commercial": False,
        "device": _name(device),
        "parts": parts,
        "plans": {},
        "works": False,
    }
    progress(f"loading {model}")
    loading = asdict(options.load) | {"device": device}
    generator = _try(parts, "generator", partial(presets.load_generator, model, **loading))
    if generator is not None:
        card = generator.card
        keys = ("family", "license_code", "license_weights", "commercial")
        found |= {key: getattr(card, key) for key in keys}
    counters: dict[str, Critic | None] = {}
    for role in ("critic", "verifier"):
        progress(f"loading {names[role]}")
        counters[role] = _try(parts, role, partial(presets.load_critic, names[role]))
    critic = counters["critic"]
    if generator is not None and critic is not None:
        from countgen.pipeline import CountGuidedPipeline

        pipeline = CountGuidedPipeline(generator, critic, counters["verifier"]).to(device)
        for name in _plans(generator, device, memory):
            progress(f"one guided step with the memory plan {name}")
            found["plans"][name] = _step(pipeline, name, targets)
        found["works"] = any("error" not in plan for plan in found["plans"].values())
    return Report(found)


def _try(parts: dict[str, str], part: str, load: Callable[[], Any]) -> Any:
    """What ``load`` gives, or None and a word on why it gave nothing."""
    from countgen.pocket import PocketError
    from critics.loading.checkpoint import CheckpointError
    from pipelines.loading import LoadError

    try:
        loaded = load()
    except (LoadError, CheckpointError, PocketError, OSError) as error:
        parts[part] = str(error)
        return None
    parts[part] = f"ok ({loaded.card.name})"
    return loaded


def _name(device: str) -> str:
    import torch

    if torch.device(device).type != "cuda":
        return device
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return f"{name}, {free / MEBIBYTE:.0f} of {total / MEBIBYTE:.0f} MiB free"


def _plans(generator: ImageSource, device: str, memory: str) -> list[str]:
    import torch

    from pipelines.base import has_gradient
    from pipelines.memory import NAMES

    every = has_gradient(generator) and memory == "auto" and torch.device(device).type == "cuda"
    return list(NAMES) if every else [generator.memory.name]


def _step(
    pipeline: CountGuidedPipeline, plan: str, targets: Sequence[CountTarget] | None
) -> dict[str, Any]:
    """Seconds and peak bytes of the second of two gradient steps, or an ``error``."""
    import torch

    from countgen.engine.cost import Clock, peak_bytes
    from countgen.engine.policy import BestOfN, DrawThenImprove
    from countgen.guidance.methods import Method
    from countgen.guidance.objectives import SoftCount
    from pipelines.base import has_gradient

    adapter, device = pipeline.adapter, pipeline.adapter.device
    if has_gradient(adapter):
        adapter.set_memory_plan(plan)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    targets = targets or (CountTarget(_noun(pipeline.critic), 3),)
    prompt = " and ".join(f"{t.count} {pluralise(t.noun, t.count)}" for t in targets)
    # Any critic can serve the soft count.
    once = DrawThenImprove(draws=0, steps=2, candidates=1)
    method = Method("check", "two steps of the noise", once, SoftCount())
    if not has_gradient(adapter):
        method = Method("check", "two pictures", BestOfN(candidates=2))
    steps = pipeline.stream(
        prompt, targets=targets, guidance=method, budget=MAX_BUDGET, batch_size=1
    )
    seconds: list[float] = []
    try:
        for _ in range(2):
            _wait(device)
            clock = Clock()
            state = next(steps, None)
            _wait(device)
            if state is None or state.finished:
                break
            seconds.append(clock.seconds())
    except (MemoryShortage, torch.OutOfMemoryError):
        return {"error": "the device's memory does not suffice"}
    finally:
        steps.close()
    records = steps.jobs[0].records
    if any(record.gradient and not math.isfinite(record.grad_norm) for record in records):
        return {"error": "the gradient is not finite; try dtype float32 or bfloat16"}
    if adapter.memory.name != plan:
        return {"error": f"the device's memory does not suffice; {adapter.memory.name} does"}
    return {
        "seconds": seconds[-1] if seconds else clock.seconds(),
        "peak_bytes": peak_bytes(device),
    }


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _noun(critic: Critic) -> str:
    """One that the critic can see."""
    known = critic.card.vocabulary
    for noun in ("red apple", "apple"):
        if known is None or noun in known:
            return noun
    return known[0] if known else "apple"
