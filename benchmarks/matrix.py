"""The table of what every family of pipelines can do: docs/matrix.md.

    python -m benchmarks.matrix            prints it
    python -m benchmarks.matrix --write    writes docs/matrix.md

What is known of a family without running it comes from its cards and from the signatures of its Diffusers
classes. The rest is measured on a tiny pipeline of the real class with random weights: whether a gradient
reaches the noise, how much more the picture changes where the noise was changed than elsewhere (which is what
edits need), what a graph keeps under each memory plan, and how far the picture is from Diffusers' own. There
are no text encoders: the prompt's states are random, and given to both.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pipelines import adapter_of
from benchmarks.real_sizes import MODELS
from countgen.engine.sharing import frozen
from pipelines import memory
from pipelines.adapter import DiffusersAdapter
from pipelines.arguments import CALLBACKS, OWN, parameters
from pipelines.base import Conditioning, Plan
from pipelines.memory import GraphBytes
from pipelines.registry import FAMILIES, cards, diffusers_classes, family

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
MEASURED = {
    "sd": "sd-turbo",
    "sdxl": "sdxl-turbo",
    "pixart": "pixart-dmd",
    "sana": "sana-sprint",
    "sd3": "sd3.5-medium",
    "flux": "flux-schnell",
    "z-image": "z-image-turbo",
}
"""Family -> the preset on whose tiny pipeline it is measured."""
KNOWN = ("family", "pipelines", "steps of its presets", "tokens", "arguments")
FOUND = ("gradient", "edits", "memory plans", "equality with Diffusers")
HEAD = """# What every family can do

Made by `python -m benchmarks.matrix --write`; do not edit it by hand.

- **gradient**: whether one reaches the noise, and the preset on whose tiny pipeline it was tried.
- **edits**: where a quarter of the noise was changed, the picture changes so many times as much as elsewhere.
- **memory plans**: bytes that a graph keeps under `fast`, `balanced` and `low`, as shares of the first.
- **equality with Diffusers**: the largest difference of a pixel in [0, 1] from Diffusers' own picture.
- **tokens**: text encoders that a learned count token goes into.
- **arguments**: of the pipeline's own call, beside those that all share (prompt, height, width,
  num_inference_steps, guidance_scale, generator, latents).

Measured on tiny pipelines of the real classes with random weights, in float32 on a CPU, with the number of
steps of the preset. Pipelines of no family that work in the ordinary way can do the same: they are wrapped
when their pictures equal Diffusers' own, which is tried at once. All others are black boxes: without
gradient, with all of their own arguments, and with edits wherever their latents have places.
"""


def known(name: str) -> dict[str, str]:
    """What a family's cards and classes tell."""
    own = family(name)
    kinds = [getattr(diffusers_classes(), kind) for kind in own.pipelines]
    presets = [card for card in cards() if card.family == name]
    encoders = {sum(n.startswith("text_encoder") for n in parameters(k, "__init__")) for k in kinds}
    taken: dict[str, None] = {}
    for kind in kinds:
        call = parameters(kind, "__call__")
        acted_on = (*parameters(kind, "encode_prompt"), "timesteps", "sigmas", "eta", *CALLBACKS)
        taken |= dict.fromkeys(
            n
            for n, p in call.items()
            if n in (*acted_on, *own.arguments) and n not in OWN and p.kind is not p.VAR_KEYWORD
        )
    return {
        "family": name,
        "pipelines": ", ".join(own.pipelines),
        "steps of its presets": ", ".join(f"{card.name} {card.steps}" for card in presets),
        "tokens": " or ".join(map(str, sorted(encoders))),
        "arguments": ", ".join(f"`{n}`" for n in sorted(taken)),
    }


def found(name: str) -> dict[str, str]:
    """What a tiny pipeline of a family shows."""
    preset = MEASURED[name]
    adapter = adapter_of(preset, True, "cpu", torch.float32)
    plan = adapter.plan()
    rows = MODELS[preset].conditioning(1, True, "cpu", torch.float32)
    if adapter.family.uses_cfg(adapter.pipeline, plan):
        rows = replace(rows, unconditional=replace(rows, hidden=-rows.hidden))
    noise = adapter.noise([torch.Generator().manual_seed(0)], plan)
    leaf = noise.latents.clone().requires_grad_()
    kept = {}
    with frozen(adapter.modules()):
        for memory_plan in memory.NAMES:
            adapter.set_memory_plan(memory_plan)
            with GraphBytes(adapter.modules()) as graph:
                images = adapter.render(replace(noise, latents=leaf), rows, plan)
            kept[memory_plan] = graph.total
        (grad,) = torch.autograd.grad(images.square().sum(), leaf)
        adapter.set_memory_plan("fast")
        with torch.no_grad():
            picture = adapter.render(noise, rows, plan)
            other = noise.latents.clone()
            height, width = (side // 2 for side in other.shape[-2:])
            fresh = torch.randn(other.shape, generator=torch.Generator().manual_seed(1))
            other[..., :height, :width] = fresh[..., :height, :width]
            moved = adapter.render(replace(noise, latents=other), rows, plan) - picture
    reached = bool(grad.isfinite().all() and grad.abs().sum() > 0)
    shares = [f"{100 * kept[plan_name] / kept['fast']:.0f}%" for plan_name in memory.NAMES]
    return {
        "gradient": f"yes ({preset})" if reached else "no",
        "edits": f"{_inside_over_outside(moved):.1f} times",
        "memory plans": " ".join(shares),
        "equality with Diffusers": f"{float((picture - _own(adapter, rows, plan)).abs().max()):.0e}",
    }


def _inside_over_outside(moved: Tensor) -> float:
    """Mean change in the quarter over that of the rest."""
    height, width = (side // 2 for side in moved.shape[-2:])
    inside = torch.zeros(moved.shape[-2:], dtype=torch.bool)
    inside[:height, :width] = True
    change = moved.abs().mean((0, 1))
    return float(change[inside].mean() / change[~inside].mean())


def _own(adapter: DiffusersAdapter, rows: Conditioning, plan: Plan) -> Tensor:
    """The picture of the Diffusers pipeline itself, for the same states of a prompt."""
    call = parameters(type(adapter.pipeline), "__call__")
    other = rows.unconditional
    given: dict[str, Any] = {
        "prompt_embeds": list(rows.hidden) if adapter.family.name == "z-image" else rows.hidden,
        "pooled_prompt_embeds": rows.pooled,
        "prompt_attention_mask": rows.mask,
        "negative_prompt_embeds": None if other is None else other.hidden,
        "negative_pooled_prompt_embeds": None if other is None else other.pooled,
        "negative_prompt": None,
        "use_resolution_binning": False,
        "clean_caption": False,
        **plan.arguments,
    }
    adapter.pipeline.set_progress_bar_config(disable=True)
    return adapter.pipeline(
        height=plan.height,
        width=plan.width,
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        generator=[torch.Generator().manual_seed(0)],
        output_type="pt",
        **{name: value for name, value in given.items() if name in call},
    ).images


def page(rows: Sequence[Mapping[str, str]]) -> str:
    """The page, from a row for each family."""
    names = (*KNOWN[:3], *FOUND, *KNOWN[3:])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row.get(name, "") for name in names) + " |" for row in rows]
    return HEAD + "\n" + "\n".join(lines) + "\n"


def read(text: str) -> list[dict[str, str]]:
    """The rows of a page."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(table[0], cells, strict=True)) for cells in table[1:]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write docs/matrix.md")
    options = parser.parse_args(arguments)
    text = page([known(name) | found(name) for name in FAMILIES])
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
