"""CountGD asked by text alone: Grounding DINO with a Swin-B, trained on to count everything of a kind.

CountGD (Amini-Naieni, Han, Zisserman, arXiv 2407.04619) is Grounding DINO whose caption may also hold tokens
cut out of the picture, of marked examples. Without examples it is Grounding DINO's network and no more, so
the class of ``transformers`` runs it. As published: network, preprocessing, one caption a noun, "<noun> .",
and the count: the queries whose best token, whichever it is, has a probability above 0.23; no duplicates are
removed. Left out: examples, and the adaptive cropping of crowds beyond the network's 900 queries; a count
that reaches their number comes with a warning.

Published weights are a ``.pth`` file in the authors' layout; ``convert`` gives its tensors the names of
``transformers``. The published file itself was not at hand; the authors' class gave the same scores for the
same random weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from critics.base import CriticCard, Query
from critics.detectors import grounding_dino
from critics.detectors.base import DetectionCritic
from critics.detectors.grounding_dino import GroundingDino
from critics.loading.checkpoint import CheckpointError, count_parts, read_published
from critics.loading.hub import fill_model
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import IMAGENET
from critics.parts.queries import foreign_query, noun_mask
from critics.parts.readout import Detections, ReadOut, join_pairs

READ_OUT, SIDES = ReadOut(threshold=0.23), (800, 1333)
"""As published: none of a noun's queries is a duplicate; all of them take part, the network says how many."""

CARDS = {
    "countgd": CriticCard(
        name="countgd",
        family="grounding-dino",
        summary="CountGD by text: Grounding DINO with a Swin-B, trained to count up to its 900 queries; the "
        "layout of published weights is unverified against the real file",
        license_code="MIT",
        license_weights="MIT",
        input_size=SIDES[0],
        parameters=232_315_264,
        citation="Amini-Naieni et al., CountGD: Multi-Modal Open-World Counting, NeurIPS 2024, "
        "arXiv 2407.04619",
        published=True,
    )
}


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    tokenizer: str | Path = "google-bert/bert-base-uncased",
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> DetectionCritic:
    """CountGD as a critic.

    Args:
        source: the published file; or a converted model, a hub id or a folder with weights, tokenizer and
            ``preprocessor_config.json``, as for "grounding-dino".
        allow_pickle: agree to read a ``.pth`` file; only tensors are taken from it (``weights_only``).
        tokenizer: of a published file: BERT's uncased one, by hub id or folder.
        revision: on the hub, of the model or of a file's tokenizer.
        dtype: of the weights; counts are float32 whatever it is.
        settings: of the read-out, in place of those in ``READ_OUT``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: no source, a pickle without consent, parts that are missing,
            gated, damaged or of another model.
    """
    import transformers

    READ_OUT.changed(**settings)  # before anything is read
    if source is None:
        raise CheckpointError(
            f"{name} has a pickled .pth file only: download it as "
            "https://github.com/niki-amini-naieni/CountGD says and give its path with allow_pickle=True, or "
            "name a converted model"
        )
    cls = transformers.GroundingDinoForObjectDetection
    hub = {"revision": revision or "main", "local_files_only": local_files_only}
    if Path(source).is_file():
        state = read_published(Path(source), allow_pickle, "model")
        try:
            config = config_of(state)
        except KeyError as error:
            raise CheckpointError(f"{source} is no CountGD: {error.args[0]} is missing") from None
        network = fill_model(cls, config, convert(state), source, dtype=dtype)
        words = grounding_dino.load_tokenizer(name, tokenizer, **hub)
        detector = GroundingDino(name, network, words, SIDES, IMAGENET, "max")
    else:
        detector = grounding_dino.load_detector(name, cls, source, "max", dtype, **hub)
    read_out = READ_OUT.changed(limit=detector.network.config.num_queries).changed(**settings)
    return DetectionCritic(CountGD(detector), CARDS[name], read_out)


@dataclasses.dataclass
class CountGD:
    """The detector: every noun has a caption, and a pass of the network, of its own.

    Attributes:
        reader: Grounding DINO, which is asked for one noun at a time.
    """

    reader: GroundingDino

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self.reader.network
        return network

    def prepare(self, nouns: Sequence[str]) -> Query:
        """The captions' tokens; every token of a noun's own caption speaks for it, its dot too.

        Raises:
            UnknownNounError: a noun that is empty or that the tokenizer cannot spell.
            ValueError: more tokens than the network reads.
        """
        return Query(tuple(nouns), members=tuple(self._caption(noun) for noun in nouns))

    def _caption(self, noun: str) -> Query:
        query = self.reader.prepare([noun])
        every = torch.ones_like(query.text["tokens"])
        return dataclasses.replace(query, text=dict(query.text) | {"tokens": every})

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Candidates are the queries of every noun in turn; those of one noun can be no other."""
        for query in queries:
            if len(query.members) != len(query.nouns):
                raise foreign_query(query)
        mask = noun_mask(queries, images.device)
        if not mask.any():
            return Detections(images.new_zeros(*mask.shape, 1), images.new_zeros(len(images), 1, 4))
        rows, columns = mask.nonzero(as_tuple=True)
        captions = [
            queries[row].members[column]
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        found = self.reader.detect(images[rows], captions)
        return join_pairs(found.logits[:, 0], found.boxes, mask)


# -- published files --------------------------------------------------------------------------------

EXEMPLARS = r"feature_map_(proj|encoder|pos_embed)\."
"""What turns marked examples into tokens; nothing without examples."""
UNUSED = r"bert\.(pooler|embeddings\.position_ids)|.*\.relative_position_index$"
"""BERT's head, which nothing reads, and buffers that the network makes itself."""

_SWIN, _ENCODER = "model.backbone.conv_encoder.model", "model.encoder.layers"
_STEMS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (
        r"backbone\.0\.layers\.(\d+\.blocks\.\d+)\.",
        rf"{_SWIN}.encoder.layers.\1.",
        {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.qkv": "attention.self",
            "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    (r"backbone\.0\.layers\.(\d+\.downsample)\.", rf"{_SWIN}.encoder.layers.\1.", {}),
    (r"backbone\.0\.patch_embed\.proj\.", f"{_SWIN}.embeddings.patch_embeddings.projection.", {}),
    (r"backbone\.0\.patch_embed\.norm\.", f"{_SWIN}.embeddings.norm.", {}),
    # Stages are numbered from 0 there and from 1 here, after the stem.
    (r"backbone\.0\.norm1\.", f"{_SWIN}.hidden_states_norms.stage2.", {}),
    (r"backbone\.0\.norm2\.", f"{_SWIN}.hidden_states_norms.stage3.", {}),
    (r"backbone\.0\.norm3\.", f"{_SWIN}.hidden_states_norms.stage4.", {}),
    (
        r"transformer\.encoder\.layers\.(\d+)\.",
        rf"{_ENCODER}.\1.deformable_layer.",
        {
            "norm1": "self_attn_layer_norm",
            "norm2": "final_layer_norm",
            "linear1": "fc1",
            "linear2": "fc2",
        },
    ),
    (
        r"transformer\.encoder\.text_layers\.(\d+)\.",
        rf"{_ENCODER}.\1.text_enhancer_layer.",
        {
            "norm1": "layer_norm_before",
            "norm2": "layer_norm_after",
            "linear1": "fc1",
            "linear2": "fc2",
        },
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.",
        rf"{_ENCODER}.\1.fusion_layer.",
        {
            "gamma_v": "vision_param",
            "gamma_l": "text_param",
            "layer_norm_v": "layer_norm_vision",
            "layer_norm_l": "layer_norm_text",
            "attn.v_proj": "attn.vision_proj",
            "attn.l_proj": "attn.text_proj",
            "attn.values_v_proj": "attn.values_vision_proj",
            "attn.values_l_proj": "attn.values_text_proj",
            "attn.out_v_proj": "attn.out_vision_proj",
            "attn.out_l_proj": "attn.out_text_proj",
        },
    ),
    (
        r"transformer\.decoder\.layers\.(\d+)\.",
        r"model.decoder.layers.\1.",
        {
            "norm1": "encoder_attn_layer_norm",
            "norm2": "self_attn_layer_norm",
            "norm3": "final_layer_norm",
            "catext_norm": "encoder_attn_text_layer_norm",
            "ca_text": "encoder_attn_text",
            "ca_text.out_proj": "encoder_attn_text.out_proj",
            "linear1": "fc1",
            "linear2": "fc2",
        }
        | {
            f"cross_attn.{part}": f"encoder_attn.{part}"
            for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        },
    ),
    (r"transformer\.decoder\.norm\.", "model.decoder.layer_norm.", {}),
    (r"transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head.", {}),
    (r"transformer\.decoder\.bbox_embed\.", "model.decoder.bbox_embed.", {}),
    (r"transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed.", {}),
    (r"transformer\.tgt_embed\.", "model.query_position_embeddings.", {}),
    (r"transformer\.(level_embed|enc_output)", r"model.\1", {}),
    (r"input_proj\.", "model.input_proj_vision.", {}),
    (r"feat_map\.", "model.text_projection.", {}),
    (r"bert\.", "model.text_backbone.", {}),
)
_JOINED = re.compile(r"(?:(.*)\.in_proj_|(.*\.qkv)\.)(weight|bias)")


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state_dict with the names that ``transformers`` gives Grounding DINO's files.

    Queries, keys and values, joined there, are three tensors here. What belongs to ``EXEMPLARS`` or is
    ``UNUSED`` is left out; a name without a rule stays as it is.
    """
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if not re.match(EXEMPLARS, key) and not re.match(UNUSED, key):
            names = _rename(key)
            parts = value.chunk(len(names)) if len(names) > 1 else [value]
            named |= dict(zip(names, parts, strict=True))
    return named


def _rename(key: str) -> list[str]:
    for old, new, parts in _STEMS:
        if match := re.match(old, key):
            stem, rest = match.expand(new), key[match.end() :]
            if joined := _JOINED.fullmatch(rest):
                part = joined[1] or joined[2]
                part = parts.get(part, part)
                return [f"{stem}{part}.{one}.{joined[3]}" for one in ("query", "key", "value")]
            part, dot, kind = rest.rpartition(".")
            return [stem + parts.get(rest, parts.get(part, part) + dot + kind)]
    return [key]


def config_of(state: Mapping[str, Tensor]) -> Any:
    """The sizes of a published network, from the shapes of its tensors.

    What they do not say is as published: 32 channels a head (64 in BERT), no sharing between the boxes of
    encoder and decoder.

    Raises:
        KeyError: a tensor that says one of them is missing.
    """
    from transformers import BertConfig, GroundingDinoConfig, SwinConfig

    levels, width = state["transformer.level_embed"].shape
    encoder = "transformer.encoder.layers.0"
    offsets = len(state[f"{encoder}.self_attn.attention_weights.weight"])
    decoder_offsets = len(state["transformer.decoder.layers.0.cross_attn.attention_weights.weight"])
    heads = max(1, width // 32)
    patch = state["backbone.0.patch_embed.proj.weight"]
    bias = state["backbone.0.layers.0.blocks.0.attn.relative_position_bias_table"]
    stages = count_parts(state, r"backbone\.0\.layers\.(\d+)\.")
    swin = SwinConfig(
        embed_dim=len(patch),
        patch_size=patch.shape[-1],
        depths=[
            count_parts(state, rf"backbone\.0\.layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)
        ],
        num_heads=[max(1, len(patch) * 2**i // 32) for i in range(stages)],
        window_size=(math.isqrt(len(bias)) + 1) // 2,
        image_size=384,
        out_indices=[2, 3, 4],
    )
    words = state["bert.embeddings.word_embeddings.weight"]
    bert = BertConfig(
        vocab_size=len(words),
        hidden_size=words.shape[1],
        num_hidden_layers=count_parts(state, r"bert\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, words.shape[1] // 64),
        intermediate_size=len(state["bert.encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(state["bert.embeddings.position_embeddings.weight"]),
    )
    return GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=width,
        num_feature_levels=levels,
        num_queries=len(state["transformer.tgt_embed.weight"]),
        encoder_layers=count_parts(state, r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=count_parts(state, r"transformer\.decoder\.layers\.(\d+)\."),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=len(state[f"{encoder}.linear1.weight"]),
        decoder_ffn_dim=len(state["transformer.decoder.layers.0.linear1.weight"]),
        encoder_n_points=offsets // (heads * levels),
        decoder_n_points=decoder_offsets // (heads * levels),
        two_stage_bbox_embed_share=False,
        disable_custom_kernels=True,
    )
