"""LoRAs on a denoiser: which layers get one, how it is put there, and the file that Diffusers loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from countgen.errors import UsageError
from pipelines.adapter import DiffusersAdapter

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that Diffusers looks for in a folder."""
ADAPTER = "countgen"
"""Name of the LoRA on the denoiser."""
_ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


def add_lora(adapter: DiffusersAdapter, rank: int, where: str, seed: int) -> nn.Module:
    """The denoiser with a fresh LoRA, the only weights of the pipeline that ask for a gradient.

    Raises:
        UsageError: a generator that peft or Diffusers cannot adapt, or one whose plan keeps no graph.
    """
    import peft

    pipeline: Any = adapter.pipeline
    denoiser: Any = adapter.networks.denoiser
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "save_lora_weights") or not hasattr(denoiser, "add_adapter"):
        raise UsageError(
            f"Diffusers cannot load a LoRA into a {kind}, so none is trained on it; take a generator whose "
            "pipeline has load_lora_weights"
        )
    if adapter.memory.model_offload:
        raise UsageError(
            f"the memory plan {adapter.memory.name} recomputes whole passes without the weights' gradient; "
            "take the plan balanced, fewer pictures at once, or a smaller size"
        )
    names = lora_targets(denoiser, where)
    if not names:
        raise UsageError(
            f"the {type(denoiser).__name__} of this {kind} has no layers of attention that a LoRA could "
            "stand on; take where=all"
        )
    for module in adapter.modules():
        module.requires_grad_(False)
    if ADAPTER in (getattr(denoiser, "peft_config", None) or {}):
        denoiser.delete_adapters(ADAPTER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            denoiser.add_adapter(
                peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), ADAPTER
            )
        except (ValueError, NotImplementedError) as error:
            raise UsageError(f"peft cannot adapt the {type(denoiser).__name__}: {error}") from None
    for weight in denoiser.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return denoiser


def lora_targets(denoiser: nn.Module, where: str) -> list[str]:
    """Names of the layers that get a LoRA."""
    layers = [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and "lora_" not in name
    ]
    if where == "all":  # grouped convolutions have no LoRA in Diffusers
        return [name for name in layers if getattr(denoiser.get_submodule(name), "groups", 1) == 1]
    return [name for name in layers if name.endswith(_ATTENTION)]


def save_lora(adapter: DiffusersAdapter, out: Path) -> Path:
    """Write the denoiser's LoRA as Diffusers' ``load_lora_weights`` reads it, all or nothing."""
    layers = lora_layers(adapter.networks.denoiser)
    partial = out / ".lora.partial"
    options: dict[str, Any] = {f"{adapter.family.denoiser}_lora_layers": layers}
    type(adapter.pipeline).save_lora_weights(partial, weight_name=WEIGHTS, **options)
    os.replace(partial / WEIGHTS, out / WEIGHTS)
    shutil.rmtree(partial)
    return out / WEIGHTS


def lora_layers(denoiser: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by peft's names, float32, on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
