"""CountGD by text: contract, read-out, and the published layout on random models of the real class."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_grounding_dino
import torch
import transformers
from critic_contract import CriticContract, HubContract, noise
from safetensors.torch import load_file, save_file
from tiny_grounding_dino import SHORT
from torch import Tensor

from critics.detectors.base import DetectionCritic
from critics.detectors.countgd import EXEMPLARS, UNUSED, CountGD, config_of, convert
from critics.loading.checkpoint import CheckpointError
from critics.registry import card, load_critic

# Heads of 32 channels, and of 64 in BERT, as published, since no tensor says how many there are.
WIDTH, FEED, QUERIES = 64, 32, 10
BERT = {"hidden_size": WIDTH, "num_attention_heads": 1, "intermediate_size": 37}
BERT |= {"num_hidden_layers": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, as the hub would have it."""
    place = tmp_path_factory.mktemp("countgd")
    bert = {"model_type": "bert", "vocab_size": tiny_grounding_dino.save_tokenizer(place)} | BERT
    sizes = {"text_config": bert, "max_text_len": 256, "two_stage_bbox_embed_share": False}
    tiny_grounding_dino.save(place, width=WIDTH, heads=WIDTH // 32, **sizes)
    weights = load_file(place / "model.safetensors")
    # A sum of 64 products at random, and the best of six, would be sure of everything.
    weights["model.decoder.layer_norm.weight"] *= 0.1
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return place


@pytest.fixture(scope="module")
def critic(folder: Path) -> DetectionCritic:
    found = load_critic("countgd", folder)
    assert isinstance(found, DetectionCritic) and isinstance(found.detector, CountGD)
    return found


class TestContract(CriticContract):
    nouns = ("cat", "dog", "red apples")


class TestLoading(HubContract):
    @pytest.fixture
    def saved(self, folder: Path) -> tuple[str, Path]:
        return "countgd", folder


# -- the read-out -----------------------------------------------------------------------------------


def library_scores(critic: DetectionCritic, folder: Path, text: str, images: Tensor) -> Tensor:
    """The published read-out on the library's own output: each query's best token, whichever it is."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    pixels = critic.detector.reader.preprocess(images)  # type: ignore[attr-defined]
    with torch.no_grad():
        output = critic.network(pixel_values=pixels, **tokens)
    return output.logits[0].sigmoid().max(-1).values


def test_the_count_is_the_published_one_of_each_nouns_own_caption(
    critic: DetectionCritic, folder: Path
) -> None:
    images, nouns = noise(1, 3, SHORT, 160), ["red apples", "cat"]
    scores = [library_scores(critic, folder, f"{noun} .", images) for noun in nouns]
    counts = set()
    for level in torch.cat(scores).quantile(torch.tensor([0.1, 0.4, 0.6, 0.9])).tolist():
        found = critic.with_settings(threshold=level)(images, [critic.prepare(nouns)])
        assert found.hard[0].tolist() == [int((s > level).sum()) for s in scores]
        counts |= set(found.hard[0].tolist())
    assert len(counts) > 3
    assert (
        critic.read_out.threshold == 0.23
        and critic.read_out.overlap is None
        and critic.read_out.limit == QUERIES
    )


def test_a_token_that_is_no_word_counts_too(critic: DetectionCritic) -> None:
    (caption,) = critic.prepare(["red apples"]).members
    assert caption.text["input_ids"].tolist() == [101, 1032, 1033, 1034, 1012, 102]
    assert caption.text["tokens"].tolist() == [[True] * 6]


def test_a_noun_is_counted_the_same_whatever_else_is_asked_for(critic: DetectionCritic) -> None:
    images = noise(1, 3, SHORT, SHORT)
    both = critic(images, [critic.prepare(["cat", "dog"])])
    alone = critic(images, [critic.prepare(["dog"])])
    torch.testing.assert_close(both.soft[0, 1], alone.soft[0, 0])
    assert both.candidates is not None and both.candidates.margins.shape == (1, 2, QUERIES)


def test_a_count_of_all_queries_comes_with_a_warning(critic: DetectionCritic) -> None:
    images, query = noise(1, 3, SHORT, SHORT), critic.prepare(["cat"])
    eager = critic.with_settings(threshold=1e-6)
    with pytest.warns(UserWarning, match="countgd counts 10 objects of a kind at most.*be more"):
        assert eager(images, [query]).hard.item() == QUERIES
    few = eager.with_settings(limit=4)
    with pytest.warns(UserWarning, match="counts 4 objects"):
        few(images, [query])


def test_the_card_warns_of_its_family_and_layout() -> None:
    found = card("countgd")
    assert found.family == "grounding-dino" and found.published and "unverified" in found.summary


# -- the published layout ---------------------------------------------------------------------------


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    joined = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return joined | linear(f"{name}.out_proj", width, width)


def deformable(name: str, width: int, points: int) -> dict[str, tuple[int, ...]]:
    samples = width // 32 * 4 * points  # heads, levels, points
    return {
        **linear(f"{name}.sampling_offsets", 2 * samples, width),
        **linear(f"{name}.attention_weights", samples, width),
        **linear(f"{name}.value_proj", width, width),
        **linear(f"{name}.output_proj", width, width),
    }


def mlp(name: str, widths: list[int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        shapes |= linear(f"{name}.layers.{i}", b, a)
    return shapes


def swin(width: int, depths: list[int], window: int) -> dict[str, tuple[int, ...]]:
    shapes = {"backbone.0.patch_embed.proj.weight": (width, 3, 4, 4)}
    shapes |= {"backbone.0.patch_embed.proj.bias": (width,)}
    shapes |= norm("backbone.0.patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        wide, name = width * 2**stage, f"backbone.0.layers.{stage}"
        for i in range(depth):
            block = f"{name}.blocks.{i}"
            shapes |= norm(f"{block}.norm1", wide) | norm(f"{block}.norm2", wide)
            table = ((2 * window - 1) ** 2, wide // 32)
            shapes[f"{block}.attn.relative_position_bias_table"] = table
            shapes[f"{block}.attn.relative_position_index"] = (window**2, window**2)
            shapes |= linear(f"{block}.attn.qkv", 3 * wide, wide)
            shapes |= linear(f"{block}.attn.proj", wide, wide)
            shapes |= linear(f"{block}.mlp.fc1", 4 * wide, wide)
            shapes |= linear(f"{block}.mlp.fc2", wide, 4 * wide)
        if stage < 3:
            shapes[f"{name}.downsample.reduction.weight"] = (2 * wide, 4 * wide)
            shapes |= norm(f"{name}.downsample.norm", 4 * wide)
        if stage:
            shapes |= norm(f"backbone.0.norm{stage}", wide)
    return shapes


def bert(vocabulary: int, width: int, feed: int, layers: int, positions: int) -> dict[str, Any]:
    shapes = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, width),
        "bert.embeddings.position_embeddings.weight": (positions, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        **norm("bert.embeddings.LayerNorm", width),
        **linear("bert.pooler.dense", width, width),
    }
    for i in range(layers):
        name = f"bert.encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{name}.attention.{part}", width, width)
        shapes |= norm(f"{name}.attention.output.LayerNorm", width)
        shapes |= linear(f"{name}.intermediate.dense", feed, width)
        shapes |= linear(f"{name}.output.dense", width, feed)
        shapes |= norm(f"{name}.output.LayerNorm", width)
    return shapes


def published(
    d: int, feed: int, layers: int, points: int, queries: int, words: int, **parts: Any
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of the authors' class, without position ids."""
    stem = parts["swin"]["width"]
    shapes = {
        **swin(**parts["swin"]),
        **bert(**parts["bert"]),
        **linear("feat_map", d, words),
        "feature_map_proj.weight": (d, 14 * stem, 1, 1),
        "feature_map_proj.bias": (d,),
        "transformer.level_embed": (4, d),
        "transformer.tgt_embed.weight": (queries, d),
        **norm("transformer.decoder.norm", d),
        **mlp("transformer.decoder.ref_point_head", [2 * d, d, d]),
        **linear("transformer.enc_output", d, d),
        **norm("transformer.enc_output_norm", d),
        **mlp("transformer.enc_out_bbox_embed", [d, d, d, 4]),
    }
    for level, inputs in enumerate((2 * stem, 4 * stem, 8 * stem, 8 * stem)):
        kernel = 3 if level == 3 else 1
        shapes[f"input_proj.{level}.0.weight"] = (d, inputs, kernel, kernel)
        shapes |= {f"input_proj.{level}.0.bias": (d,), **norm(f"input_proj.{level}.1", d)}
    for i in range(layers):
        shapes |= mlp(f"bbox_embed.{i}", [d, d, d, 4])
        shapes |= mlp(f"transformer.decoder.bbox_embed.{i}", [d, d, d, 4])
        layer = f"transformer.encoder.layers.{i}"
        shapes |= deformable(f"{layer}.self_attn", d, points)
        shapes |= norm(f"{layer}.norm1", d) | norm(f"{layer}.norm2", d)
        shapes |= linear(f"{layer}.linear1", feed, d) | linear(f"{layer}.linear2", d, feed)
        text = f"transformer.encoder.text_layers.{i}"
        shapes |= attention(f"{text}.self_attn", d)
        shapes |= norm(f"{text}.norm1", d) | norm(f"{text}.norm2", d)
        shapes |= linear(f"{text}.linear1", feed // 2, d) | linear(f"{text}.linear2", d, feed // 2)
        fusion = f"transformer.encoder.fusion_layers.{i}"
        shapes |= {f"{fusion}.gamma_v": (d,), f"{fusion}.gamma_l": (d,)}
        shapes |= norm(f"{fusion}.layer_norm_v", d) | norm(f"{fusion}.layer_norm_l", d)
        for part in ("v_proj", "l_proj", "values_v_proj", "values_l_proj"):
            shapes |= linear(f"{fusion}.attn.{part}", feed // 2, d)
        for part in ("out_v_proj", "out_l_proj"):
            shapes |= linear(f"{fusion}.attn.{part}", d, feed // 2)
        layer = f"transformer.decoder.layers.{i}"
        shapes |= deformable(f"{layer}.cross_attn", d, points)
        shapes |= attention(f"{layer}.ca_text", d) | attention(f"{layer}.self_attn", d)
        for part in ("norm1", "catext_norm", "norm2", "norm3"):
            shapes |= norm(f"{layer}.{part}", d)
        shapes |= linear(f"{layer}.linear1", feed, d) | linear(f"{layer}.linear2", d, feed)
    return shapes


FULL = {
    "swin": {"width": 128, "depths": [2, 2, 18, 2], "window": 12},
    "bert": {"vocabulary": 30522, "width": 768, "feed": 3072, "layers": 12, "positions": 512},
}
SMALL = {
    "swin": {"width": 32, "depths": [1, 1, 1, 1], "window": 4},
    "bert": {"vocabulary": 1036, "width": WIDTH, "feed": 37, "layers": 2, "positions": 64},
}


def test_the_published_sizes_are_those_of_grounding_dino_with_a_swin_b() -> None:
    """The list is that of the authors' class, which was made once: 1108 tensors."""
    shapes = published(256, 2048, 6, 4, 900, 768, **FULL)
    assert len(shapes) == 1108
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = config_of(state)
    swin_b, text = config.backbone_config, config.text_config
    assert (swin_b.embed_dim, swin_b.window_size) == (128, 12)
    assert (swin_b.depths, swin_b.num_heads) == ([2, 2, 18, 2], [4, 8, 16, 32])
    default = transformers.GroundingDinoConfig()
    ours = {"backbone_config", "disable_custom_kernels", "transformers_version"}
    for key, value in default.to_dict().items():
        assert key in ours or config.to_dict()[key] == value, key
    assert text.num_attention_heads == 12 and config.num_queries == 900
    with torch.device("meta"):
        network = transformers.GroundingDinoForObjectDetection(config)
    # The boxes' head is shared by all layers of the decoder; the last norm of the Swin is not in the file.
    once = {
        k: v for k, v in convert(state).items() if not re.match(r"(model.decoder.)?bbox_embed", k)
    }
    once |= {k: v for k, v in convert(state).items() if k.startswith("bbox_embed.0.")}
    held = sum(value.numel() for value in once.values()) + 2 * 1024
    assert held == sum(p.numel() for p in network.parameters()) == card("countgd").parameters


def test_what_is_left_out_is_the_examples_and_what_nothing_reads() -> None:
    shapes = published(64, 32, 2, 2, 10, 64, **SMALL)
    kinds = {re.sub(r"\d+", "N", k) for k in shapes if re.match(EXEMPLARS, k)}
    assert kinds == {"feature_map_proj.weight", "feature_map_proj.bias"}
    kinds = {re.sub(r"\d+", "N", k) for k in shapes if re.match(UNUSED, k)}
    assert kinds == {
        "backbone.N.layers.N.blocks.N.attn.relative_position_index",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }


# From the library's names to the authors'; "#" marks what is joined there, in this order.
BACK = (
    (r"model\.text_backbone", "bert"),
    (
        r"model\.backbone\.conv_encoder\.model\.embeddings\.patch_embeddings\.projection",
        "backbone.0.patch_embed.proj",
    ),
    (r"model\.backbone\.conv_encoder\.model\.embeddings\.norm", "backbone.0.patch_embed.norm"),
    (r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage2", "backbone.0.norm1"),
    (r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage3", "backbone.0.norm2"),
    (r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage4", "backbone.0.norm3"),
    (r"model\.backbone\.conv_encoder\.model\.encoder", "backbone.0"),
    (r"(backbone.*)layernorm_before", r"\1norm1"),
    (r"(backbone.*)layernorm_after", r"\1norm2"),
    (r"(backbone.*)attention\.self\.relative", r"\1attn.relative"),
    (r"(backbone.*)attention\.self\.", r"\1attn.qkv."),
    (r"(backbone.*)attention\.output\.dense", r"\1attn.proj"),
    (r"(backbone.*)intermediate\.dense", r"\1mlp.fc1"),
    (r"(backbone.*)output\.dense", r"\1mlp.fc2"),
    (r"model\.encoder\.layers\.(\d+)\.deformable_layer", r"transformer.encoder.layers.\1"),
    (r"model\.encoder\.layers\.(\d+)\.text_enhancer_layer", r"transformer.encoder.text_layers.\1"),
    (r"model\.encoder\.layers\.(\d+)\.fusion_layer", r"transformer.encoder.fusion_layers.\1"),
    (r"(encoder\.layers.*)self_attn_layer_norm", r"\1norm1"),
    (r"(encoder\.layers.*)final_layer_norm", r"\1norm2"),
    (r"(text_layers.*)layer_norm_before", r"\1norm1"),
    (r"(text_layers.*)layer_norm_after", r"\1norm2"),
    (r"vision_param", "gamma_v"),
    (r"text_param", "gamma_l"),
    (r"layer_norm_vision", "layer_norm_v"),
    (r"layer_norm_text", "layer_norm_l"),
    (r"(attn\.|values_|out_)vision_proj", r"\1v_proj"),
    (r"(attn\.|values_|out_)text_proj", r"\1l_proj"),
    (r"model\.decoder\.layers", "transformer.decoder.layers"),
    (r"(decoder\.layers.*)encoder_attn_text_layer_norm", r"\1catext_norm"),
    (r"(decoder\.layers.*)encoder_attn_text", r"\1ca_text"),
    (r"(decoder\.layers.*)encoder_attn_layer_norm", r"\1norm1"),
    (r"(decoder\.layers.*)encoder_attn", r"\1cross_attn"),
    (r"(decoder\.layers.*)self_attn_layer_norm", r"\1norm2"),
    (r"(decoder\.layers.*)final_layer_norm", r"\1norm3"),
    (r"(layers.*)\.fc(\d)", r"\1.linear\2"),
    (r"(backbone.*)linear", r"\1fc"),
    (r"model\.decoder\.layer_norm", "transformer.decoder.norm"),
    (r"model\.decoder\.reference_points_head", "transformer.decoder.ref_point_head"),
    (r"model\.encoder_output_bbox_embed", "transformer.enc_out_bbox_embed"),
    (r"model\.query_position_embeddings", "transformer.tgt_embed"),
    (r"model\.(level_embed|enc_output)", r"transformer.\1"),
    (r"model\.input_proj_vision", "input_proj"),
    (r"model\.text_projection", "feat_map"),
    (r"(transformer.*)\.query\.(weight|bias)", r"\1.in_proj_\2#0"),
    (r"(transformer.*)\.key\.(weight|bias)", r"\1.in_proj_\2#1"),
    (r"(transformer.*)\.value\.(weight|bias)", r"\1.in_proj_\2#2"),
    (r"(qkv)\.query\.(weight|bias)", r"\1.\2#0"),
    (r"(qkv)\.key\.(weight|bias)", r"\1.\2#1"),
    (r"(qkv)\.value\.(weight|bias)", r"\1.\2#2"),
)


def to_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file of the library's in the authors' layout, with what only theirs has."""
    state: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for key, value in sorted(weights.items()):
        if ".swin.layernorm." in key:  # of the library only, and unused
            continue
        for old, new in BACK:
            key = re.sub(old, new, key)
        name, _, place = key.partition("#")
        if place:
            parts.setdefault(name, [torch.empty(0)] * 3)[int(place)] = value
        else:
            state[name] = value
    state |= {name: torch.cat(values) for name, values in parts.items()}
    for key, value in list(state.items()):
        if key.startswith("bbox_embed.0."):
            for copy in (
                "bbox_embed.1.",
                "transformer.decoder.bbox_embed.0.",
                "transformer.decoder.bbox_embed.1.",
            ):
                state[copy + key.removeprefix("bbox_embed.0.")] = value.clone()
    return state


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, Tensor]:
    found = to_published(load_file(folder / "model.safetensors"))
    for key, shape in published(64, 32, 2, 2, 10, 64, **SMALL).items():
        if re.match(EXEMPLARS, key) or re.match(UNUSED, key):
            found[key] = torch.randn(shape)
    return found


def test_a_published_file_gives_exactly_the_network_that_it_was_made_of(
    state: dict[str, Tensor], critic: DetectionCritic, folder: Path, tmp_path: Path
) -> None:
    shapes = published(64, 32, 2, 2, 10, 64, **SMALL)
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    settings = argparse.Namespace(lr=1e-4, milestones=[10, 20])
    torch.save({"model": state, "epoch": 3, "args": settings}, tmp_path / "best.pth")
    read = load_critic("countgd", tmp_path / "best.pth", allow_pickle=True, tokenizer=folder)
    assert isinstance(read, DetectionCritic) and isinstance(read.detector, CountGD)
    assert read.detector.reader.edges == (800, 1333) and read.read_out.limit == QUERIES
    read.detector.reader.edges = (128, 224)
    images, nouns = noise(2, 3, SHORT, 160), ["red apples", "dog"]
    for images_ in (images, images.flip(-1)):
        mine, theirs = (
            c.detector.detect(images_, [c.prepare(nouns), c.prepare(nouns[1:])])
            for c in (read, critic)
        )
        assert torch.equal(mine.logits, theirs.logits) and torch.equal(mine.boxes, theirs.boxes)
    own = dict(critic.network.state_dict())
    assert all(
        torch.equal(own[k], v)
        for k, v in read.network.state_dict().items()
        if "swin.layernorm" not in k
    )


def test_wrong_files_are_told(state: dict[str, Tensor], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"

    def told(**options: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_critic("countgd", path, **({"allow_pickle": True, "tokenizer": folder} | options))
        return str(caught.value)

    torch.save({"model": state}, path)
    assert "allow_pickle=True" in told(allow_pickle=False)
    assert "not on this machine" in told(tokenizer="owner/elsewhere")
    odd = dict(state) | {"stranger": torch.zeros(())}
    del odd["feat_map.bias"]
    torch.save({"model": odd}, path)
    assert "1 missing: model.text_projection.bias; 1 surplus: stranger" in told()
    torch.save({"model": {"weight": torch.zeros(2)}}, path)
    assert "is no CountGD: transformer.level_embed is missing" in told()
    torch.save({"model": state, "code": Path("x")}, path)
    assert "holds more than tensors" in told()
    with pytest.raises(CheckpointError, match=r"github\.com/niki-amini-naieni/CountGD"):
        load_critic("countgd")
