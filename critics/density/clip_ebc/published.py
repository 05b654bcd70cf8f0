"""The layout of CLIP-EBC's published files, and how it becomes that of ``ClipEbcNetwork``.

Read from the classes in the authors' code (Yiming-M/CLIP-EBC at b52a594). A ResNet, the blocks after the
encoder, the projection and the scale have the published names here too. The transformers' joined attention
projections are taken apart; class token, positions and text projection are bare tensors there, as in OpenAI's
CLIP; a ViT's prompts are one tensor a layer. Heads are 64 wide, which no tensor says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from critics.density.clip_ebc.network import ClipEbcConfig, ClipEbcNetwork, Numerals
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError, count_parts

CROP = 448
"""Side in pixels of the crops that the ResNets were trained on; smaller pictures were made as large."""


def network_of(
    path: Path,
    state: Mapping[str, Tensor],
    tokenizer: Any,
    anchors: tuple[float, ...],
    block: int,
    numerals: Numerals,
) -> ClipEbcNetwork:
    """A network of the sizes that a published file's tensors have, filled with them, frozen.

    Raises:
        CheckpointError: tensors of another model, or settings that do not go with them.
    """
    try:
        config = config_of(state, tokenizer, anchors, block, numerals)
    except KeyError as error:
        raise CheckpointError(f"{path} is no CLIP-EBC: {error.args[0]} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be loaded as asked: {error}") from None
    network = ClipEbcNetwork(config)
    checkpoint.fill(network, rename(state), path)
    return network


def vocabulary_size(path: Path, state: Mapping[str, Tensor]) -> int:
    """Number of entries of the tokenizer that a published file was trained with.

    Raises:
        CheckpointError: tensors of another model.
    """
    if "classifier.weight" in state:
        raise CheckpointError(
            f"{path} holds no CLIP-EBC but a classifier without text; a VGG of the same authors is loaded "
            "as dmcount-ebc"
        )
    key = "text_encoder.token_embedding.weight"
    if key not in state:
        raise CheckpointError(f"{path} is no CLIP-EBC: {key} is missing")
    return len(state[key])


def config_of(
    state: Mapping[str, Tensor],
    tokenizer: Any,
    anchors: tuple[float, ...],
    block: int,
    numerals: Numerals,
) -> ClipEbcConfig:
    """The sizes of a published network, from the shapes of its tensors.

    Raises:
        KeyError: a tensor that says one of them is missing.
    """
    words = state["text_encoder.token_embedding.weight"]
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "intermediate_size": 4 * words.shape[1],
        "num_hidden_layers": count_parts(state, r"text_encoder\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, words.shape[1] // 64),
        "max_position_embeddings": state["text_encoder.positional_embedding"].shape[0],
        "projection_dim": state["text_encoder.text_projection"].shape[1],
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if "image_encoder.layer1.0.conv1.weight" in state:
        blocks = range(count_parts(state, r"image_decoder\.(\d+)\."))
        resnet = {
            "layers": [
                count_parts(state, rf"image_encoder\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)
            ],
            "width": state["image_encoder.layer1.0.conv1.weight"].shape[0],
            "decoder": [state[f"image_decoder.{i}.conv3.weight"].shape[0] for i in blocks],
            "image_size": CROP,
        }
        return ClipEbcConfig(resnet, text, 0, block, anchors, backbone="resnet", numerals=numerals)
    width, _, patch, _ = state["image_encoder.conv1.weight"].shape
    positions = len(state["image_encoder.positional_embedding"])
    vit = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": count_parts(state, r"image_encoder\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, width // 64),
        "patch_size": patch,
        "image_size": patch * math.isqrt(positions - 1),
    }
    prompts = [value for key, value in state.items() if re.fullmatch(r"vpt_\d+", key)]
    tokens = len(prompts[0]) if prompts else 0
    return ClipEbcConfig(vit, text, tokens, block, anchors, numerals=numerals)


_VIT, _TEXT = "image_encoder.vit", "text_encoder.text_model"
_NAMES = (
    (r"image_encoder\.conv1\.(.*)", rf"{_VIT}.embeddings.patch_embedding.\1"),
    (r"image_encoder\.class_embedding", rf"{_VIT}.embeddings.class_embedding"),
    (r"image_encoder\.positional_embedding", rf"{_VIT}.embeddings.position_embedding.weight"),
    (r"image_encoder\.ln_pre\.(.*)", rf"{_VIT}.pre_layrnorm.\1"),
    (r"image_encoder\.ln_post\.(.*)", rf"{_VIT}.post_layernorm.\1"),
    (r"text_encoder\.token_embedding\.(.*)", rf"{_TEXT}.embeddings.token_embedding.\1"),
    (r"text_encoder\.positional_embedding", rf"{_TEXT}.embeddings.position_embedding.weight"),
    (r"text_encoder\.ln_final\.(.*)", rf"{_TEXT}.final_layer_norm.\1"),
)
_LAYER = re.compile(r"(image_encoder|text_encoder)\.transformer\.resblocks\.(\d+)\.(.*)")
_IN_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_IN_LAYER |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of ``ClipEbcNetwork``; a name without a rule stays as it is."""
    vit = "image_encoder.layer1.0.conv1.weight" not in state
    mapped: dict[str, Tensor] = {}
    prompts: dict[int, Tensor] = {}
    for key, value in state.items():
        if layer := _LAYER.fullmatch(key):
            mapped |= _rename_layer(layer, value)
        elif vit and (prompt := re.fullmatch(r"vpt_(\d+)", key)):
            prompts[int(prompt[1])] = value
        elif key == "text_encoder.text_projection":
            mapped["text_encoder.text_projection.weight"] = value.T
        else:
            rules = _NAMES if vit else _NAMES[5:]
            mapped[next((re.sub(a, b, key) for a, b in rules if re.fullmatch(a, key)), key)] = value
    if vit:
        depth = count_parts(state, r"image_encoder\.transformer\.resblocks\.(\d+)\.")
        if prompts.keys() == set(range(depth)):
            mapped["image_encoder.prompts"] = torch.stack([prompts[i] for i in range(depth)])
        elif prompts:  # told as surplus
            mapped |= {f"vpt_{i}": value for i, value in prompts.items()}
        else:
            width = len(state["image_encoder.class_embedding"])
            mapped["image_encoder.prompts"] = torch.zeros(depth, 0, width)
    return mapped


def _rename_layer(layer: re.Match[str], value: Tensor) -> dict[str, Tensor]:
    encoder, index, rest = layer.groups()
    stem = f"{_VIT if encoder == 'image_encoder' else _TEXT}.encoder.layers.{index}"
    if joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        names = [f"{stem}.self_attn.{part}_proj.{joined[1]}" for part in "qkv"]
        return dict(zip(names, value.chunk(3), strict=True))
    part, _, kind = rest.rpartition(".")
    return {f"{stem}.{_IN_LAYER.get(part, part)}.{kind}": value}
