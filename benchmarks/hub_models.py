"""Random weights in the layout of the hub, since the hub itself may be out of reach.

``save_model(NAME, folder, "full")`` writes what ``load_critic(NAME, folder)`` loads: a model of the published
architecture and size with random weights, a tokenizer with the published number of entries (few of them are
words) and the preprocessor's settings. "tiny" is the same classes at a few thousand weights. Sizes are the
defaults of the config classes of ``transformers``, which are those of the published base models, or those of
a smaller published model. ``user_network(NAME, size)`` makes networks for the critics that have none.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from critics.parts.convnet import Pyramid
from critics.parts.vocabulary import COCO

Size = Literal["tiny", "full"]
CLIP_WORDS, BERT_WORDS = 49408, 30522
"""Entries of the published tokenizers."""


def save_model(name: str, folder: Path, size: Size) -> None:
    """Random weights for the critic of that name, from seed 0, in a folder that is made.

    Raises:
        KeyError: a critic that has no folder in the hub's layout; see ``user_network``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    _WRITERS[name](folder, name, size == "tiny")


def user_network(name: str, size: Size) -> nn.Module | None:
    """The network to bring to the critic of that name, or None for a critic that has its own."""
    torch.manual_seed(0)
    tiny = size == "tiny"
    if name == "clip-count":
        return ClipDensity(tiny)
    return Cardinality(tiny) if name == "yolo-count" else None


# -- tokenizers -------------------------------------------------------------------------------------


def clip_tokenizer(entries: int | None = None) -> Any:
    """CLIP's, which spells letter by letter; filled up to that many entries with words of no text."""
    from transformers import CLIPTokenizer

    letters = ["!", *string.ascii_lowercase, *string.digits, ".", ",", "-"]
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [f"<unused{i}>" for i in range((entries or 0) - len(words) - 2)]
    # The end of a text has the highest number, by which the text encoders find it.
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], pad_token="!")


def _save_bert_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizer

    places = {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }
    places |= {1100 + i: letter for i, letter in enumerate(string.ascii_lowercase)}
    places |= {1200 + i: f"##{letter}" for i, letter in enumerate(string.ascii_lowercase)}
    path = folder / "words.txt"
    path.write_text("".join(f"{places.get(i, f'[unused{i}]')}\n" for i in range(BERT_WORDS)))
    BertTokenizer(str(path)).save_pretrained(folder)
    path.unlink()


def _clip_text(tokenizer: Any, tiny: bool, **full: Any) -> dict[str, Any]:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    marks = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")
    }
    sizes = small | {"num_attention_heads": 4, "projection_dim": 16} if tiny else {}
    return full | sizes | marks | {"vocab_size": len(tokenizer)}


def _vit(tiny: bool, side: int, patch: int) -> dict[str, Any]:
    """ViT-B, the default of the configs, or a tiny one."""
    if not tiny:
        return {"image_size": side, "patch_size": patch}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return sizes | {"num_attention_heads": 4, "image_size": 32, "patch_size": 8}


# -- models of transformers ---------------------------------------------------------------------------


def _owl(folder: Path, name: str, tiny: bool) -> None:
    import transformers

    kind, side, patch = {"owl-vit": ("OwlViT", 768, 32), "owlv2": ("Owlv2", 960, 16)}[name]
    tokenizer = clip_tokenizer(None if tiny else CLIP_WORDS)
    text = _clip_text(tokenizer, tiny, max_position_embeddings=16)
    text.pop("projection_dim", None)
    config = getattr(transformers, f"{kind}Config")(
        text_config=text,
        vision_config=_vit(tiny, side, patch),
        # The heads compare patches with texts of this size; in the published models both are 512.
        projection_dim=32 if tiny else 512,
    )
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _grounding_dino(folder: Path, name: str, tiny: bool) -> None:
    import transformers

    prefix = "" if name in ("grounding-dino", "countgd") else "MM"
    swin: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"], "model_type": "swin"}
    bert: dict[str, Any] = {"model_type": "bert", "vocab_size": BERT_WORDS}
    more: dict[str, Any] = {}
    if name == "countgd":  # a Swin-B
        swin |= {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
        swin |= {"window_size": 12, "image_size": 384}
    if tiny:
        swin |= {"embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 4, 8], "window_size": 4}
        bert |= {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1}
        bert |= {"num_attention_heads": 4}
        more = _transformer(32) | {"num_queries": 10, "encoder_n_points": 2, "decoder_n_points": 2}
    config = getattr(transformers, f"{prefix}GroundingDinoConfig")(
        backbone_config=swin, text_config=bert, **more
    )
    getattr(transformers, f"{prefix}GroundingDinoForObjectDetection")(config).save_pretrained(
        folder
    )
    _save_bert_tokenizer(folder)
    sides = {"size": {"shortest_edge": 128, "longest_edge": 224}} if tiny else {}
    transformers.GroundingDinoImageProcessorPil(**sides).save_pretrained(folder)


def _transformer(width: int, layers: int = 2) -> dict[str, int]:
    parts = {"layers": layers, "attention_heads": 4, "ffn_dim": width}
    return {"d_model": width} | {
        f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in parts.items()
    }


_LABELS = {
    "id2label": dict(enumerate(COCO)),
    "label2id": {noun: i for i, noun in enumerate(COCO)},
}


def _detr(folder: Path, name: str, tiny: bool) -> None:
    import transformers

    backbone: dict[str, Any] = {"model_type": "resnet", "out_features": ["stage4"]}
    if tiny:
        backbone |= {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
    more = _transformer(32) | {"num_queries": 12} if tiny else {}
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, **more, **_LABELS
    )
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 64, "longest_edge": 112}} if tiny else {}
    transformers.DetrImageProcessorPil(**sides).save_pretrained(folder)


def _yolos(folder: Path, name: str, tiny: bool) -> None:
    """YOLOS-Ti of the paper."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    sizes |= {"image_size": [800, 1344], "use_mid_position_embeddings": False}
    if tiny:
        sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
        sizes |= {"num_hidden_layers": 2, "image_size": [64, 96], "num_detection_tokens": 10}
    transformers.YolosForObjectDetection(
        transformers.YolosConfig(**sizes, **_LABELS)
    ).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 64, "longest_edge": 112}} if tiny else {}
    transformers.YolosImageProcessorPil(**sides).save_pretrained(folder)


_TINY_HYBRID: dict[str, Any] = _transformer(32) | {
    "encoder_in_channels": [20, 30, 40],
    "encoder_hidden_dim": 32,
    "encoder_layers": 1,
    "num_queries": 20,
    "decoder_in_channels": [32] * 3,
    "decoder_n_points": 2,
}
_STAGES = {"out_features": ["stage2", "stage3", "stage4"]}


def _rt_detr(folder: Path, name: str, tiny: bool) -> None:
    """RT-DETRv2 with a ResNet-18."""
    import transformers

    backbone: dict[str, Any] = _STAGES | {"model_type": "rt_detr_resnet"}
    if tiny:
        backbone |= {"embedding_size": 10, "hidden_sizes": [10, 20, 30, 40], "depths": [1] * 4}
        more = _TINY_HYBRID
    else:
        backbone |= {"hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4, "layer_type": "basic"}
        more = {
            "encoder_in_channels": [128, 256, 512],
            "decoder_layers": 3,
            "hidden_expansion": 0.5,
        }
    config = transformers.RTDetrV2Config(backbone_config=backbone, **more, **_LABELS)
    transformers.RTDetrV2ForObjectDetection(config).save_pretrained(folder)
    _save_square(folder, tiny)


def _d_fine(folder: Path, name: str, tiny: bool) -> None:
    """D-FINE-S, on an HGNetv2-B0."""
    import transformers

    backbone: dict[str, Any] = _STAGES | {"model_type": "hgnet_v2"}
    if tiny:
        backbone |= {
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 16, 20, 30],
            "stage_mid_channels": [8] * 4,
            "stage_out_channels": [16, 20, 30, 40],
            "stage_num_blocks": [1] * 4,
            "stage_numb_of_layers": [1] * 4,
            "hidden_sizes": [16, 20, 30, 40],
            "depths": [1] * 4,
        }
        more = _TINY_HYBRID
    else:
        backbone |= {
            "stem_channels": [3, 16, 16],
            "stage_in_channels": [16, 64, 256, 512],
            "stage_mid_channels": [16, 32, 64, 128],
            "stage_out_channels": [64, 256, 512, 1024],
            "stage_num_blocks": [1, 1, 2, 1],
            "stage_numb_of_layers": [3] * 4,
            "hidden_sizes": [64, 256, 512, 1024],
            "use_learnable_affine_block": True,
        }
        more = {"encoder_in_channels": [256, 512, 1024], "decoder_layers": 3}
        more |= {"depth_mult": 0.34, "hidden_expansion": 0.5}
    config = transformers.DFineConfig(backbone_config=backbone, **more, **_LABELS)
    transformers.DFineForObjectDetection(config).save_pretrained(folder)
    _save_square(folder, tiny)


def _save_square(folder: Path, tiny: bool) -> None:
    import transformers

    sides = {"size": {"height": 96, "width": 96}} if tiny else {}
    transformers.RTDetrImageProcessorPil(**sides).save_pretrained(folder)


def _mask2former(folder: Path, name: str, tiny: bool) -> None:
    """Mask2Former with a Swin-T."""
    import transformers

    backbone: dict[str, Any] = {"model_type": "swin", "depths": [2, 2, 6, 2]}
    backbone |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    more: dict[str, Any] = {}
    if tiny:
        backbone |= {
            "embed_dim": 16,
            "depths": [1] * 4,
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
        }
        more = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 10}
        more |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1}
        more |= {"decoder_layers": 2, "num_attention_heads": 4}
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **more, **_LABELS)
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)


def _sam3(folder: Path, name: str, tiny: bool) -> None:
    import transformers

    tokenizer = clip_tokenizer(None if tiny else CLIP_WORDS)
    text = _clip_text(
        tokenizer, tiny, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24
    )
    text |= {"max_position_embeddings": 16} if tiny else {"num_attention_heads": 16}
    parts: dict[str, Any] = {
        "text_config": {"max_position_embeddings": 32, "hidden_act": "gelu"} | text
    }
    if tiny:
        vit = {"model_type": "sam3_vit_model", "image_size": 56, "window_size": 2}
        vit |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        vit |= {"num_attention_heads": 4, "global_attn_indexes": [1], "pretrain_image_size": 28}
        small = {"hidden_size": 32, "num_attention_heads": 4}
        layers = small | {"num_layers": 2, "intermediate_size": 48}
        sizes = [[16, 16], [8, 8], [4, 4]]
        parts |= {
            "vision_config": {
                "backbone_config": vit,
                "fpn_hidden_size": 32,
                "backbone_feature_sizes": sizes,
            },
            "geometry_encoder_config": layers,
            "detr_encoder_config": layers,
            "detr_decoder_config": layers | {"num_queries": 10},
            "mask_decoder_config": small,
        }
    transformers.Sam3Model(transformers.Sam3Config(**parts)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _clip_ebc(folder: Path, name: str, tiny: bool) -> None:
    """The published form for people, on a ViT-B/16."""
    from critics.density.clip_ebc import ClipEbcConfig, ClipEbcNetwork, save

    tokenizer = clip_tokenizer(None if tiny else CLIP_WORDS)
    text = _clip_text(tokenizer, tiny)
    config = ClipEbcConfig(_vit(tiny, 224, 16), text, prompt_tokens=3 if tiny else 32)
    save(folder, ClipEbcNetwork(config), tokenizer)


def _count_clip(folder: Path, name: str, tiny: bool) -> None:
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer(None if tiny else CLIP_WORDS)
    text = _clip_text(tokenizer, tiny)
    width = text.pop("projection_dim", 512)
    config = CLIPConfig(text_config=text, vision_config=_vit(tiny, 224, 32), projection_dim=width)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _hmode(folder: Path, name: str, tiny: bool) -> None:
    from critics.density.hmode import HmodeNetwork, save

    save(folder, HmodeNetwork(len(COCO), 16 if tiny else 64), COCO, 64 if tiny else 128)


def _c_rex(folder: Path, name: str, tiny: bool) -> None:
    from critics.detectors.c_rex import ReferNetwork, save, words

    known = sorted({word for noun in COCO for word in words(noun)})
    save(folder, ReferNetwork(len(known), 16 if tiny else 64), known, 64, 0.4)


def _dmcount_ebc(folder: Path, name: str, tiny: bool) -> None:
    from critics.density.dmcount_ebc import DMCountEbcConfig, DMCountEbcNetwork, save

    small: dict[str, Any] = {"plan": (4, 0, 4, 0, 4, 0, 8, 0, 8), "head": (8, 8), "side": 64}
    save(folder, DMCountEbcNetwork(DMCountEbcConfig(**(small if tiny else {}))))


_WRITERS: dict[str, Callable[[Path, str, bool], None]] = {
    "c-rex": _c_rex,
    "clip-ebc": _clip_ebc,
    "count-clip": _count_clip,
    "countgd": _grounding_dino,
    "dmcount-ebc": _dmcount_ebc,
    "d-fine": _d_fine,
    "detr": _detr,
    "grounding-dino": _grounding_dino,
    "hmode": _hmode,
    "llmdet": _grounding_dino,
    "mask2former": _mask2former,
    "mm-grounding-dino": _grounding_dino,
    "owl-vit": _owl,
    "owlv2": _owl,
    "rt-detrv2": _rt_detr,
    "sam3": _sam3,
    "yolos": _yolos,
}


# -- networks to bring ----------------------------------------------------------------------------------


class ClipDensity(nn.Module):
    """For CLIP-Count: CLIP's ViT-B/16 and text encoder, and a plain decoder in place of its interaction."""

    def __init__(self, tiny: bool) -> None:
        super().__init__()
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPVisionConfig,
            CLIPVisionModel,
        )

        self.tokenizer = clip_tokenizer()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes = sizes | {"num_attention_heads": 2} if tiny else {}
        vision = CLIPVisionConfig(**sizes, image_size=224, patch_size=16)
        width = vision.hidden_size
        text = _clip_text(self.tokenizer, tiny) | {"projection_dim": width}
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**text))
        self.vision = CLIPVisionModel(vision)
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width // 4, 3, padding=1),
            nn.SiLU(),
            nn.Upsample((96, 96), mode="bilinear"),
            nn.Conv2d(width // 4, width // 8, 3, padding=1),
            nn.SiLU(),
            nn.Upsample((384, 384), mode="bilinear"),
            nn.Conv2d(width // 8, 1, 1),
        )

    def encode(self, nouns: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(nouns), padding=True, return_tensors="pt")
        tokens = {key: value.to(self.vision.device) for key, value in tokens.items()}
        return F.normalize(self.text(**tokens).text_embeds, dim=-1)

    def density(self, pixels: Tensor, text: Tensor) -> Tensor:
        patches = self.vision(pixels).last_hidden_state[:, 1:].mT.unflatten(2, (14, 14))
        return self.decoder(patches * (1 + text[..., None, None]))[:, 0].sigmoid()


class Cardinality(nn.Module):
    """For YOLO-Count: a convolutional pyramid compared with one vector a noun, in cells of 8 pixels."""

    def __init__(self, tiny: bool) -> None:
        super().__init__()
        width = 32 if tiny else 256
        widths = (16, 32, 48, 48) if tiny else (32, 64, 128, 256)
        self.body = Pyramid(widths, (0, 1, 1, 1), width, first=2, stop=2)
        self.heads = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.words = nn.Embedding(len(COCO), width)

    def encode(self, nouns: Sequence[str]) -> Tensor:
        index = torch.tensor([COCO.index(noun) for noun in nouns], device=self.words.weight.device)
        return self.words(index)

    def cardinality(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(pixels)
        maps, logits = (torch.einsum("pdhw,pd->phw", head(seen), text) for head in self.heads)
        return maps, logits
