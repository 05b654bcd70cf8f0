"""CLIP-EBC: every block of a picture is classified into counts by its likeness to sentences with numbers.

CLIP-EBC (Ma, Sanchez, Guha, arXiv 2403.09281). A CLIP image encoder (ViT, frozen, with 32 learned tokens in
front of every layer: deep visual prompt tuning, arXiv 2203.12119), features resampled to one per block of
8x8 pixels, a residual block, a projection; the cosine of each block with the CLIP text embedding of "There
are two people." and so on, one sentence a bin; softmax over the bins, expectation over their mean counts
(eq. 5), sum.

As published: read-out, windows of 224 side by side, ImageNet (not CLIP's) normalisation, sentences, bins.
Ours: the network on modules of ``transformers``. The layout of published weights follows the authors' code;
no published file has been tried. Those weights know one noun, person. The *class-generic* form
(``subject="noun"``) puts other nouns into the sentences; nobody published weights for it, and untrained it
does not count: train a ``ClipEbcNetwork`` with ``critics.blockwise.blockwise_loss``, write it with ``save``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics import checkpoint
from critics.base import CriticCard, Query, check_nouns, look_up
from critics.blockwise import expectation
from critics.checkpoint import CheckpointError
from critics.density import DensityCritic, stack_text
from critics.hub import load_part
from critics.preprocess import IMAGENET, normalise
from critics.tiling import count_in_windows

PEOPLE = ("person", "people", "human")
"""Nouns that the published sentences are right for; all three mean the same count."""
NWPU_ANCHORS = (0.0, 1.0, 2.0, 3.0, 4.21931)
"""Mean count of each bin in its training set. Last ones of others: SHA 4.29992, SHB 4.41009, QNRF 4.21937."""

CARDS = {
    "clip-ebc": CriticCard(
        name="clip-ebc",
        family="clip",
        summary="blockwise count classification against number sentences; people only as published; the "
        "layout of published weights is unverified against a real file",
        license_code="MIT",
        license_weights="MIT",
        input_size=224,
        vocabulary=PEOPLE,
        hub_id="Yiming-M/CLIP-EBC",
        parameters=161_000_000,
        citation="Ma, Sanchez, Guha: CLIP-EBC, arXiv 2403.09281",
        published=True,
    )
}


@dataclasses.dataclass(frozen=True)
class ClipEbcConfig:
    """What the weights do not say.

    Attributes:
        vision: fields of ``transformers.CLIPVisionConfig``; ``image_size`` is the window.
        text: fields of ``transformers.CLIPTextConfig``; ``projection_dim`` is shared with the picture.
        prompt_tokens: learned tokens in front of every layer of the image encoder; 0: none.
        block: side in pixels of the block that is classified.
        anchors: mean count of each bin; the last bin stands for its number and everything above.
        subject: "people": the published sentences; "noun": the noun that is asked for takes their place.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    prompt_tokens: int = 32
    block: int = 8
    anchors: tuple[float, ...] = NWPU_ANCHORS
    subject: Literal["people", "noun"] = "people"

    def __post_init__(self) -> None:
        if self.subject not in ("people", "noun"):
            raise ValueError(f"a subject is 'people' or 'noun', not {self.subject!r}")
        if len(self.anchors) < 3 or self.prompt_tokens < 0:
            raise ValueError(
                "three anchors at least are needed (none, one, more), and no fewer than 0 tokens"
            )
        if self.block < 1 or self.window < 1 or self.window % self.block:
            raise ValueError(
                f"a window of {self.window} pixels has no whole number of blocks of {self.block} pixels"
            )

    @property
    def window(self) -> int:
        return int(self.vision["image_size"])


class ClipEbcNetwork(nn.Module):
    """Pictures to logits of every count bin in every block, and sentences to what they are compared with."""

    def __init__(self, config: ClipEbcConfig) -> None:
        super().__init__()
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPVisionConfig,
            CLIPVisionModel,
        )

        vision = CLIPVisionConfig(**config.vision)
        width = vision.hidden_size
        self.config = config
        self.image_encoder = CLIPVisionModel(vision)
        self.text_encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config.text))
        spread = math.sqrt(6 / (3 * vision.patch_size + width))
        shape = (vision.num_hidden_layers, config.prompt_tokens, width)
        self.prompts = nn.Parameter(torch.empty(shape).uniform_(-spread, spread))
        self.decoder = _ResidualBlock(width)
        embedding = self.text_encoder.config.projection_dim
        self.projection = nn.Conv2d(width, embedding, 1) if width != embedding else nn.Identity()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_text(self, tokens: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Unit vectors of sentences."""
        return F.normalize(self.text_encoder(**tokens).text_embeds, dim=-1)

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d hh ww"]:
        """Unit vectors of the blocks of normalised pictures of the window's size."""
        encoder, tokens = self.image_encoder, self.config.prompt_tokens
        hidden = encoder.pre_layrnorm(encoder.embeddings(pixels))
        for prompt, layer in zip(self.prompts, encoder.encoder.layers, strict=True):
            # Every layer sees tokens of its own; what it made of them is dropped.
            prompted = [hidden[:, :1], prompt.expand(len(hidden), -1, -1), hidden[:, 1:]]
            hidden = layer(torch.cat(prompted, 1), None)
            hidden = torch.cat([hidden[:, :1], hidden[:, 1 + tokens :]], 1)
        patches = encoder.post_layernorm(hidden)[:, 1:]
        side = math.isqrt(patches.shape[1])
        grid = patches.transpose(1, 2).unflatten(-1, (side, side))
        blocks = pixels.shape[-1] // self.config.block
        if blocks != side:
            grid = F.interpolate(grid, (blocks, blocks), mode="bilinear", align_corners=False)
        return F.normalize(self.projection(self.decoder(grid)), dim=1)

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], sentences: Float[Tensor, "b k n d"]
    ) -> Float[Tensor, "b k n hh ww"]:
        """Logits of the count bins of every noun: scaled cosines of blocks and sentences.

        For training with ``critics.blockwise.blockwise_loss``, which needs absent nouns in every batch.
        """
        cosines = torch.einsum("bdhw,bknd->bknhw", self.features(pixels), sentences)
        return cosines * self.log_scale.exp()


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip; named as in the published files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def number_sentences(bins: int, singular: str = "person", plural: str = "people") -> list[str]:
    """One sentence a count bin, with the published wording; the last bin has no upper end.

    >>> number_sentences(3)
    ['There is no person.', 'There is one person.', 'There are more than two people.']
    """
    import inflect

    words = [str(inflect.engine().number_to_words(str(n))) for n in range(bins)]
    rows = [f"There is {word} {singular}." for word in ("no", *words[1:2])]
    rows += [f"There are {word} {plural}." for word in words[2:-1]]
    return [*rows, f"There are more than {words[-1]} {plural}."]


@dataclasses.dataclass
class ClipEbc:
    """A density model (``critics.density``): the expectation of CLIP-EBC's blockwise classification.

    Attributes:
        tokenizer: CLIP's.
        stride: between windows in pixels; as long as a window: side by side, as published for ViTs.
    """

    network: ClipEbcNetwork
    tokenizer: Any
    stride: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Embed the sentences of each noun: ``text["bins"]``, (k, bins, d) unit vectors."""
        config = self.network.config
        if config.subject == "people":
            query = look_up(nouns, PEOPLE, "clip-ebc with people's sentences")
            rows = number_sentences(len(config.anchors)) * len(nouns)
        else:
            check_nouns(nouns)
            query = Query(tuple(nouns))
            rows = [
                row
                for noun in nouns
                for row in number_sentences(len(config.anchors), noun, _plural(noun))
            ]
        device = self.network.log_scale.device
        width = self.network.text_encoder.config.projection_dim
        embeddings = torch.zeros(0, width, device=device)
        if rows:
            tokens = self.tokenizer(rows, padding=True, truncation=True, return_tensors="pt")
            # Not inference mode: its tensors could not take part in a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                keys = {k: v.clone().to(device) for k, v in tokens.items() if k in _TOKENS}
                embeddings = self.network.encode_text(keys).float()
        shape = (len(nouns), len(config.anchors))
        return Query(query.nouns, query.classes, {"bins": embeddings.unflatten(0, shape)})

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        config, kind = self.network.config, self.network.log_scale.dtype
        bins = stack_text(queries, "bins", images.device)

        def count(windows: Tensor, rows: Tensor) -> Tensor:
            pixels = normalise(windows, IMAGENET)
            logits = self.network(pixels.to(kind), bins[rows].to(kind))
            return expectation(logits, config.anchors)

        return count_in_windows(count, images, config.window, config.block, self.stride)


_TOKENS = ("input_ids", "attention_mask")


def _plural(noun: str) -> str:
    import inflect

    return str(inflect.engine().plural_noun(noun))


def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    tokenizer: str | Path = "openai/clip-vit-base-patch16",
    anchors: Sequence[float] = NWPU_ANCHORS,
    block: int = 8,
    stride: int | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    local_files_only: bool = False,
) -> DensityCritic:
    """CLIP-EBC from a published ``.pth`` file, or from a folder that ``save`` wrote.

    Args:
        source: the file or the folder; files are not fetched, since they are pickles.
        allow_pickle: agree to read a ``.pth`` file; only tensors are taken from it (``weights_only``).
        tokenizer: of a ``.pth`` file: CLIP's, by hub id or folder. A folder from ``save`` has its own.
        anchors: of a ``.pth`` file: mean count of each bin, in the data it was trained on.
        block: of a ``.pth`` file: the published reduction.
        stride: between windows in pixels; None: side by side.
        dtype: of the network; counts are float32 in any case.
        revision, local_files_only: of the tokenizer on the hub.

    Raises:
        CheckpointError: no source, a pickle without consent, files that are missing, damaged or do not fit.
    """
    card = CARDS[name]
    if source is None:
        raise CheckpointError(
            f"{name} has pickled .pth files only: download one of https://huggingface.co/{card.hub_id} and "
            'give its path, load("clip-ebc", "best_mae.pth", allow_pickle=True), or a folder of safetensors'
        )
    source = Path(source)
    if source.is_dir():
        config = _read_config(source)
        words = load_part(_tokenizer_class(), source)
        network = ClipEbcNetwork(config)
        checkpoint.load_weights(source, network, _CURE)
    else:
        if not source.is_file():
            raise CheckpointError(f"there is no folder {source}, nor a file. {_CURE}")
        state = checkpoint.read_pickle(source, allow_pickle, ("model_state_dict",))
        options = {"revision": revision} if revision else {}
        words = load_part(
            _tokenizer_class(), tokenizer, local_files_only=local_files_only, **options
        )
        network = _from_published(source, state, words, tuple(anchors), block)
    network.eval().requires_grad_(False).to(dtype)
    config = network.config
    summary = card.summary
    if config.subject == "noun":
        summary = (
            "blockwise count classification against number sentences of any noun it was trained on"
        )
    card = dataclasses.replace(
        card,
        summary=summary,
        input_size=config.window,
        vocabulary=PEOPLE if config.subject == "people" else None,
        parameters=sum(p.numel() for p in network.parameters()),
        published=config.subject == "people",
    )
    return DensityCritic(ClipEbc(network, words, stride or config.window), card)


def save(folder: Path, network: ClipEbcNetwork, tokenizer: Any, half: bool = True) -> None:
    """Write a trained network and its tokenizer so that ``load`` reads them: no pickles."""
    config = dataclasses.asdict(network.config) | {"kind": _KIND}
    checkpoint.save(folder, config, network, half)
    tokenizer.save_pretrained(folder)


_KIND = "clip-ebc"
_CURE = "Write the folder with critics.clip_ebc.save, or name a published .pth file."


def _tokenizer_class() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer


def _read_config(folder: Path) -> ClipEbcConfig:
    fields = checkpoint.read_config(folder, _KIND, _CURE)
    fields.pop("kind")
    try:
        return ClipEbcConfig(**fields | {"anchors": tuple(fields["anchors"])})
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks or misstates a field of ClipEbcConfig ({error!r}). {_CURE}"
        ) from None


# -- published files ------------------------------------------------------------------------------
# A state_dict, or one under "model_state_dict". Attention projections are joined, the class token,
# positions and text projection are bare tensors, as in OpenAI's CLIP; its heads are 64 wide, which no
# tensor says.


def _from_published(
    path: Path, state: dict[str, Tensor], tokenizer: Any, anchors: tuple[float, ...], block: int
) -> ClipEbcNetwork:
    """A network of the sizes that the tensors have, filled with them."""
    try:
        config = _config_of(state, tokenizer, anchors, block)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is no CLIP-EBC with a ViT: {error.args[0]} is missing (ResNet and VGG are not read)"
        ) from None
    network = ClipEbcNetwork(config)
    mapped, surplus = _rename(state, config)
    checkpoint.fill(network, mapped | {key: state[key] for key in surplus}, path)
    return network


def _config_of(
    state: Mapping[str, Tensor], tokenizer: Any, anchors: tuple[float, ...], block: int
) -> ClipEbcConfig:
    stem = state["image_encoder.conv1.weight"]
    positions = state["image_encoder.positional_embedding"]
    words = state["text_encoder.token_embedding.weight"]
    context = state["text_encoder.positional_embedding"]
    projection = state["text_encoder.text_projection"]
    prompts = [key for key in state if re.fullmatch(r"vpt_\d+", key)]
    width, patch = stem.shape[0], stem.shape[-1]
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": _depth(state, "image_encoder"),
        "num_attention_heads": max(1, width // 64),
        "patch_size": patch,
        "image_size": patch * math.isqrt(len(positions) - 1),
    }
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "intermediate_size": 4 * words.shape[1],
        "num_hidden_layers": _depth(state, "text_encoder"),
        "num_attention_heads": max(1, words.shape[1] // 64),
        "max_position_embeddings": context.shape[0],
        "projection_dim": projection.shape[1],
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tokens = state[prompts[0]].shape[0] if prompts else 0
    return ClipEbcConfig(vision, text, tokens, block, anchors)


def _depth(state: Mapping[str, Tensor], encoder: str) -> int:
    rule = re.compile(rf"{encoder}\.transformer\.resblocks\.(\d+)\.")
    return 1 + max((int(m[1]) for m in map(rule.match, state) if m), default=-1)


_NAMES = (
    (r"image_encoder\.conv1\.(.*)", r"image_encoder.embeddings.patch_embedding.\1"),
    (r"image_encoder\.class_embedding", r"image_encoder.embeddings.class_embedding"),
    (
        r"image_encoder\.positional_embedding",
        r"image_encoder.embeddings.position_embedding.weight",
    ),
    (r"image_encoder\.ln_pre\.(.*)", r"image_encoder.pre_layrnorm.\1"),
    (r"image_encoder\.ln_post\.(.*)", r"image_encoder.post_layernorm.\1"),
    (
        r"text_encoder\.token_embedding\.(.*)",
        r"text_encoder.text_model.embeddings.token_embedding.\1",
    ),
    (
        r"text_encoder\.positional_embedding",
        r"text_encoder.text_model.embeddings.position_embedding.weight",
    ),
    (r"text_encoder\.ln_final\.(.*)", r"text_encoder.text_model.final_layer_norm.\1"),
    (r"image_decoder\.0\.(.*)", r"decoder.\1"),
    (r"(projection\..*)", r"\1"),
    (r"logit_scale", r"log_scale"),
)
_BLOCK = re.compile(r"(image_encoder|text_encoder)\.transformer\.resblocks\.(\d+)\.(.*)")
_IN_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_IN_BLOCK |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _rename(
    state: Mapping[str, Tensor], config: ClipEbcConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Published names to those of ``ClipEbcNetwork``, and the names that it has no place for."""
    depth, width = config.vision["num_hidden_layers"], config.vision["hidden_size"]
    mapped: dict[str, Tensor] = {}
    surplus = []
    prompts: dict[int, Tensor] = {}
    for key, value in state.items():
        if block := _BLOCK.fullmatch(key):
            mapped |= _rename_block(block, value)
        elif prompt := re.fullmatch(r"vpt_(\d+)", key):
            prompts[int(prompt[1])] = value
        elif key == "text_encoder.text_projection":
            mapped["text_encoder.text_projection.weight"] = value.T
        else:
            new = next((re.sub(a, b, key) for a, b in _NAMES if re.fullmatch(a, key)), None)
            if new is None:
                surplus.append(key)
            else:
                mapped[new] = value
    surplus += [f"vpt_{i}" for i in sorted(prompts) if i >= depth]
    if config.prompt_tokens and all(i in prompts for i in range(depth)):
        mapped["prompts"] = torch.stack([prompts[i] for i in range(depth)])
    elif not config.prompt_tokens:
        mapped["prompts"] = torch.zeros(depth, 0, width)
    return mapped, surplus


def _rename_block(block: re.Match[str], value: Tensor) -> dict[str, Tensor]:
    encoder, index, rest = block.groups()
    inner = "" if encoder == "image_encoder" else "text_model."
    stem = f"{encoder}.{inner}encoder.layers.{index}"
    if joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        names = [f"{stem}.self_attn.{part}_proj.{joined[1]}" for part in "qkv"]
        return dict(zip(names, value.chunk(3), strict=True))
    part, _, kind = rest.rpartition(".")
    return {f"{stem}.{_IN_BLOCK.get(part, part)}.{kind}": value}
