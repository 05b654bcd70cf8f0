"""What ``countgen check`` does: load a generator and its counters, take one guided step, say what fits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen import presets
from countgen.errors import MemoryShortage
from countgen.prompts import CountTarget, pluralise

if TYPE_CHECKING:
    import torch

    from countgen.pipeline import CountGuidedPipeline
    from critics.base import Critic
    from pipelines.base import PipelineAdapter

MEBIBYTE = 2**20


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


def check(
    model: str | Path = presets.POCKET,
    *,
    critic: str | None = None,
    verifier: str | None = None,
    device: str | None = None,
    memory: str = "auto",
    targets: Sequence[CountTarget] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Load what is there and take one guided step with it.

    The step counts ``targets``, or three of a noun that the critic knows.
    On a CUDA device every memory plan is tried unless ``memory`` names one; elsewhere the chosen one.

    Raises:
        UsageError: unknown names.
    """
    device = device or presets.best_device()
    parts: dict[str, str] = {}
    found: dict[str, Any] = {
        "model": str(model),
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
    generator = _try(
        parts, "generator", lambda: presets.load_generator(model, device=device, memory=memory)
    )
    if generator is not None:
        card = generator.card
        keys = ("family", "license_code", "license_weights", "commercial")
        found |= {key: getattr(card, key) for key in keys}
    names = presets.roles(str(model)) | {
        role: name for role, name in (("critic", critic), ("verifier", verifier)) if name
    }
    counters: dict[str, Critic | None] = {}
    for role in ("critic", "verifier"):
        progress(f"loading {names[role]}")
        counters[role] = _try(parts, role, partial(presets.load_counter, names[role]))
    steering = counters["critic"]
    if generator is not None and steering is not None:
        from countgen.pipeline import CountGuidedPipeline

        pipeline = CountGuidedPipeline(generator, steering, counters["verifier"]).to(device)
        for name in _plans(generator, device, memory):
            progress(f"one guided step with the memory plan {name}")
            found["plans"][name] = _step(pipeline, name, targets)
        found["works"] = any("error" not in plan for plan in found["plans"].values())
    return Report(found)


def _try(parts: dict[str, str], part: str, load: Callable[[], Any]) -> Any:
    """What ``load`` gives, or None and a word on why it gave nothing."""
    from countgen.pocket import PocketError
    from critics.checkpoint import CheckpointError
    from pipelines.hub import LoadError

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


def _plans(generator: PipelineAdapter, device: str, memory: str) -> list[str]:
    import torch

    from pipelines.memory import NAMES

    every = memory == "auto" and torch.device(device).type == "cuda"
    return list(NAMES) if every else [generator.memory.name]


def _step(
    pipeline: CountGuidedPipeline, plan: str, targets: Sequence[CountTarget] | None
) -> dict[str, Any]:
    """Seconds and peak bytes of the second of two gradient steps, or an ``error``."""
    import torch

    from countgen.cost import Clock, peak_bytes
    from countgen.guidance.methods import find_method

    adapter, device = pipeline.adapter, pipeline.adapter.device
    adapter.use(plan)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    targets = targets or (CountTarget(_noun(pipeline.critic), 3),)
    prompt = " and ".join(f"{t.count} {pluralise(t.noun, t.count)}" for t in targets)
    method = replace(find_method("noise"), steps=2, explore=0, candidates=1)
    steps = pipeline.stream(prompt, targets=targets, guidance=method, budget=1e9, batch_size=1)
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
    picture = pipeline.output("pt").pictures[0]
    if picture.broken:
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
