"""Another CLIP's text half as the text encoder of a pipeline: one that was taught something since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.folders import LoadError
from pipelines.loading import load_model
from pipelines.problems import one_line
from pipelines.tokens import text_encoders


def take_over_text(
    pipeline: Any,
    source: str | Path,
    *,
    dtype: torch.dtype,
    local_files_only: bool = False,
) -> list[str]:
    """Fill a pipeline's CLIP text encoders of the same shapes with the weights of another CLIP.

    Its denoiser was trained with the encoder of before, and understands the new one as far as the teaching
    has kept the old one's language: a CLIP that began as the very encoder, and was taught gently.

    Args:
        source: hub id or folder of a ``transformers.CLIPModel``, with its tokenizer.

    Returns:
        Names of the components that were filled.

    Raises:
        LoadError: nothing there that can be loaded, no CLIP text encoder in the pipeline, other shapes (the
            widths are told), or a tokenizer with other words.
    """
    from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

    own = {
        encoder: (getattr(pipeline, encoder), getattr(pipeline, tokenizer))
        for tokenizer, encoder in text_encoders(pipeline)
        if isinstance(getattr(pipeline, encoder), CLIPTextModel | CLIPTextModelWithProjection)
    }
    if not own:
        raise LoadError(
            f"{type(pipeline).__name__} has no CLIP text encoder, whose place {source} could take; leave "
            "text_encoder out"
        )
    clip = load_model(CLIPModel, source, dtype=dtype, local_files_only=local_files_only)
    found = {name: tensor for name, tensor in clip.state_dict().items() if name.startswith("text_")}
    states = {name: _state(encoder, found) for name, (encoder, _) in own.items()}
    fitting = {name: state for name, state in states.items() if state is not None}
    if not fitting:
        wanted = ", ".join(f"{name} {_shape(encoder.config)}" for name, (encoder, _) in own.items())
        raise LoadError(
            f"the text half of {source} ({_shape(clip.config.text_config)}) does not fit this "
            f"{type(pipeline).__name__}, which has {wanted}; teach a CLIP of its own shapes"
        )
    words = _words(source, local_files_only)
    for name in fitting:
        if own[name][1].get_vocab() != words:
            raise LoadError(
                f"the tokenizer of {source} has other words than that of {name}, so its embeddings would be "
                "those of others; teach a CLIP with the pipeline's own tokenizer"
            )
    for name, state in fitting.items():
        own[name][0].load_state_dict(state)
    return list(fitting)


def _state(encoder: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A CLIP's text weights under an encoder's own names, if all shapes are the same."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        # Without projection, transformers leaves the first part of the names out.
        given = found.get(name if name.startswith("text_") else f"text_model.{name}")
        if given is None or given.shape != tensor.shape:
            return None
        state[name] = given
    layers = sum(name.startswith("text_model.") for name in found)
    used = sum(not name.startswith("text_projection") for name in state)
    return state if used == layers else None


def _shape(config: Any) -> str:
    return (
        f"{config.hidden_size} wide, {config.num_hidden_layers} layers, {config.vocab_size} words"
    )


def _words(source: str | Path, local_files_only: bool) -> dict[str, int]:
    """What a CLIP's own tokenizer knows.

    Raises:
        LoadError: it has none.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(source), local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise LoadError(f"{source} has no tokenizer that can be read ({one_line(error)})") from None
    return dict(found.get_vocab())
