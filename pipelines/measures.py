"""What one picture of a plan costs, in operations and in memory: measured once, on one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipelines import memory
from pipelines.base import Conditioning, Flops, Noise, Plan
from pipelines.devices import free_bytes, readable_bytes
from pipelines.flops import CountedFlops
from pipelines.memory import GraphBytes
from pipelines.tokens import widths

if TYPE_CHECKING:
    from pipelines.adapter import DiffusersAdapter


class Measures:
    """Of one adapter; what was measured holds until its modules are exchanged."""

    def __init__(self, adapter: DiffusersAdapter) -> None:
        self._adapter = adapter
        self.forget()

    def forget(self) -> None:
        """Measure anew from here on."""
        self._flops: dict[tuple[Plan, str], dict[str, Flops]] = {}
        self._graph_bytes: dict[tuple[Plan, str, bool], tuple[int, int]] = {}

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """As ``DiffusersAdapter.flops``."""
        plan = plan.measured()
        key = plan, self._adapter.memory.name
        if key not in self._flops:
            with torch.inference_mode(False), torch.enable_grad():
                self._flops[key] = self._measure_flops(plan)
        return self._flops[key]

    def _measure_flops(self, plan: Plan) -> dict[str, Flops]:
        adapter, dtype = self._adapter, torch.float32
        sizes = () if "prompt_embeds" in plan.arguments else widths(adapter.pipeline)
        vectors = [torch.zeros(w, dtype=dtype, requires_grad=True) for w in sizes]
        tokens = {"<token>": [vector.to(adapter.device) for vector in vectors]} if vectors else None
        with CountedFlops() as forward:
            encoded = adapter.encode(["<token>"], plan, tokens)
        states = [t for t in (encoded.hidden, encoded.pooled) if t is not None and t.requires_grad]
        with CountedFlops() as backward:
            if states:
                torch.autograd.grad([t.float().sum() for t in states], vectors, allow_unused=True)
        latents, _, step = self._one_step(plan, encoded)
        return {
            "text_encoder": Flops(forward.total, backward.total),
            "denoiser": _both_ways(step, latents),
            "decoder": _both_ways(lambda: adapter.decode(latents, plan), latents),
        }

    def _one_step(
        self, plan: Plan, conditioning: Conditioning
    ) -> tuple[Tensor, Conditioning, Callable[[], Tensor]]:
        """Latents of one picture with gradient, what the denoiser is told, and its first prediction."""
        adapter, shape = self._adapter, (1, *plan.latent_shape)
        time = adapter.sampler(plan).timesteps[0]
        device, dtype = adapter.device, torch.float32
        latents = torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)
        rows = adapter.networks.denoiser_rows(conditioning.detach(), plan, 1)
        return latents, rows, lambda: adapter.networks.predict(latents, time, rows, plan)

    def estimate_bytes(self, plan: Plan, batch: int, steps: int) -> int:
        """Of weights and of the graph of so many steps."""
        plan = plan.measured()
        if self._graph_key(plan) not in self._graph_bytes:
            self._measure_graph(plan, self._adapter.encode([""], plan))
        return self._graph(plan, batch, steps) + memory.module_bytes(*self._adapter.modules())

    def check_memory(
        self, noise: Noise, conditioning: Conditioning, plan: Plan, steps: int
    ) -> None:
        """Refuse a graph that cannot fit, before an operating system ends the process.

        Raises:
            torch.OutOfMemoryError: says what would need less.
        """
        leaves = (noise.latents, noise.step_noise, conditioning.hidden, conditioning.pooled)
        if not torch.is_grad_enabled() or not any(
            t is not None and t.requires_grad for t in leaves
        ):
            return
        plan, device = plan.measured(), self._adapter.device
        if self._graph_key(plan) not in self._graph_bytes:
            self._measure_graph(plan, conditioning.pick([0]))
        needed, free = self._graph(plan, len(noise), steps), free_bytes(device)
        if needed > free:
            raise torch.OutOfMemoryError(
                f"the gradient through {steps} steps of {len(noise)} pictures needs about "
                f"{readable_bytes(needed)}, and {device.type} has {readable_bytes(free)} free; take "
                "grad_steps, fewer pictures at once, or a memory plan that needs less"
            )

    def _graph_key(self, plan: Plan) -> tuple[Plan, str, bool]:
        """A graph keeps more where weights have a gradient too."""
        trained = any(p.requires_grad for m in self._adapter.modules() for p in m.parameters())
        return plan, self._adapter.memory.name, trained

    def _graph(self, plan: Plan, batch: int, steps: int) -> int:
        step, once = self._graph_bytes[self._graph_key(plan)]
        return batch * (steps * step + once)

    def _measure_graph(self, plan: Plan, conditioning: Conditioning) -> None:
        """Bytes that a graph keeps of every step, and of text and decoder once."""
        modules = self._adapter.modules()
        with torch.inference_mode(False), torch.enable_grad():
            latents, rows, step = self._one_step(plan, conditioning)
            with GraphBytes(modules, *rows.tensors()) as of_step:
                step()
            with GraphBytes(modules) as of_decoder:
                self._adapter.decode(latents, plan)
        text = sum(tensor.nbytes for tensor in rows.tensors())
        self._graph_bytes[self._graph_key(plan)] = of_step.total, of_decoder.total + text


def _both_ways(forward: Callable[[], Tensor], leaf: Tensor) -> Flops:
    with CountedFlops() as there:
        output = forward()
    with CountedFlops() as back:
        torch.autograd.grad(output.float().sum(), leaf)
    return Flops(there.total, back.total)
