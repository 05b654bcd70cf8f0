"""The text encoders of YOLO-World and YOLOE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from critics.loading.checkpoint import CheckpointError, read_safetensors
from critics.loading.hub import load_model, load_part, load_tokenizer
from critics.loading.problems import one_line

TEXT_ENCODERS = {"yolo-world": "openai/clip-vit-base-patch32"}
"""What encodes the nouns, where it is on a hub in a form that ``transformers`` reads."""


def load_text_encoder(
    name: str, source: str | Path | None, width: int, hub: dict[str, Any]
) -> tuple[Any, Any]:
    """Text encoder and tokenizer.

    Raises:
        CheckpointError: none was named, or it does not fit the model.
    """
    import transformers

    place = str(source or TEXT_ENCODERS.get(name, ""))
    if not place:
        raise CheckpointError(
            f"{name} needs a text encoder, text=...: transformers has no MobileCLIP, but its text encoder is "
            "a plain CLIP one; write it with critics.detectors.yolo.save_text_encoder, and name that folder"
        )
    # A whole CLIP has these too.
    ignore = (r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$", r"position_ids$")
    cls = transformers.CLIPTextModelWithProjection
    encoder = load_model(cls, place, ignore=ignore, **hub)
    words = encoder.config.vocab_size
    tokenizer = load_tokenizer(transformers.CLIPTokenizer, place, words, **hub)
    if encoder.config.projection_dim != width:
        raise CheckpointError(
            f"the text encoder in {place} makes embeddings of {encoder.config.projection_dim} numbers, but "
            f"the {name} model compares {width}; take the encoder that it was trained with"
        )
    return encoder, tokenizer


def save_text_encoder(
    source: str | Path, folder: str | Path, tokenizer: str | Path = TEXT_ENCODERS["yolo-world"]
) -> None:
    """Write a folder for ``load(text=...)`` from an OpenCLIP file: MobileCLIP-B(LT)'s for YOLOE on v8 and 11.

    Its text encoder is CLIP's transformer with exact GELUs (MobileCLIP, arXiv 2311.17049). That of YOLOE-26,
    MobileCLIP2-B (arXiv 2508.20691), is read alike if it has the same layers; this is not verified.

    Args:
        source: safetensors file with OpenCLIP's names, such as that of apple/MobileCLIP-B-LT-OpenCLIP.
        tokenizer: CLIP's, by hub id or folder.

    Raises:
        CheckpointError: a file that is missing, damaged, or holds no such text encoder; no tokenizer.
    """
    import transformers

    words = load_part(transformers.CLIPTokenizer, tokenizer)
    state = read_safetensors(Path(source))
    state = {k.removeprefix("text."): v for k, v in state.items() if not k.startswith("visual.")}
    try:
        size, width = state["token_embedding.weight"].shape
        config = transformers.CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=len([k for k in state if k.endswith("attn.in_proj_weight")]),
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=len(state["positional_embedding"]),
            projection_dim=state["text_projection"].shape[1],
            hidden_act="gelu",
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        encoder = transformers.CLIPTextModelWithProjection(config)
        mapped = {new: value for key in state for new, value in _rename(key, state[key]).items()}
        encoder.load_state_dict({key: value.float() for key, value in mapped.items()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} holds no text encoder of CLIP with OpenCLIP's names ({one_line(error)})"
        ) from None
    encoder.save_pretrained(folder)
    words.save_pretrained(folder)


_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _rename(key: str, value: Tensor) -> dict[str, Tensor]:
    """One entry, by OpenCLIP's name, as ``transformers`` has it: queries, keys and values apart."""
    if key in ("logit_scale", "logit_bias", "attn_mask"):
        return {}
    if key == "text_projection":
        return {"text_projection.weight": value.T.contiguous()}
    block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", key)
    if not block:
        return {_OUTSIDE.get(key, key): value}
    index, part, kind = block.groups()
    stem = f"text_model.encoder.layers.{index}"
    if part == "attn.in_proj":
        thirds = zip("qkv", value.chunk(3), strict=True)
        return {f"{stem}.self_attn.{one}_proj.{kind}": third for one, third in thirds}
    return {f"{stem}.{_INSIDE.get(part, part)}.{kind}": value}
