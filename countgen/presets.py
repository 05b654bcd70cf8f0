"""Generators and counters by name: the embedded ones, presets of the hub, and local folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError

if TYPE_CHECKING:
    import torch

    from critics.base import Critic
    from pipelines.base import PipelineAdapter

POCKET = "pocket"
REAL_ROLES = {"critic": "owlv2", "verifier": "mm-grounding-dino", "judge": "sam3"}
"""Default counters of all generators but pocket: three families with open vocabularies."""


def roles(model: str) -> dict[str, str]:
    """Default counters of a generator: role -> name."""
    from countgen.pocket import ROLES

    return ROLES if model == POCKET else REAL_ROLES


def load_counter(name: str, **options: Any) -> Critic:
    """A counter by name: of pocket, of the registry, or NAME=SOURCE with a hub id or folder of weights.

    Args:
        options: of the family's ``load``, for counters that are not pocket's.

    Raises:
        UsageError: unknown name, with the nearest ones.
        CheckpointError: its weights cannot be loaded.
    """
    from countgen.pocket import ROLES
    from countgen.pocket import load_critic as load_pocket
    from critics.registry import UnknownCriticError, load_critic

    if name in ROLES.values():
        return load_pocket(name)
    name, _, source = name.partition("=")
    try:
        return load_critic(name, source or None, **options)
    except UnknownCriticError as error:
        raise UsageError(
            f"{error}; of pocket's own there are {', '.join(ROLES.values())}"
        ) from None


def load_generator(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    memory: str = "auto",
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    tiny_decoder: str | None = None,
    compile: bool = False,
) -> PipelineAdapter:
    """A generator by name: ``pocket``, a preset, a hub id, or a local folder.

    Args:
        memory: "auto", or one of ``pipelines.memory.PLANS``.
        compile: ``torch.compile`` for denoiser and decoder.

    Raises:
        UsageError: unknown name, unsupported class, or an impossible option.
        pipelines.loading.LoadError: what is there cannot be loaded.
        countgen.pocket.PocketError: missing or damaged files of pocket.
    """
    if model == POCKET:
        from countgen.pocket import load_adapter as load_pocket

        return load_pocket().to(device)
    from pipelines.loading import LoadError
    from pipelines.registry import load_adapter

    try:
        return load_adapter(
            model,
            dtype=dtype,
            device=device,
            variant=variant,
            revision=revision,
            local_files_only=local_files_only,
            memory_plan=memory,
            tiny_decoder=tiny_decoder,
            compile=compile,
        )
    except LoadError:
        raise
    except ValueError as error:
        raise UsageError(f"{error}; the embedded one is pocket") from None


def best_device() -> str:
    """cuda, then mps, then cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
