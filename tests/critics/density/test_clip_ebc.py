"""CLIP-EBC: contract, read-out, preprocessing, the published layout, and that it counts once trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting_scenes import NOUNS, Scenes, draw, errors, train
from critic_contract import CriticContract, LoadingContract, TrainedCounterContract, noise
from letter_tokenizer import letters
from torch import Tensor, nn
from torch.nn import functional as F

from critics.density.base import DensityCritic
from critics.density.blockwise import blockwise_loss, expectation
from critics.density.clip_ebc import (
    NWPU_ANCHORS,
    ClipEbcConfig,
    ClipEbcNetwork,
    number_sentences,
    save,
)
from critics.density.clip_ebc.critic import ClipEbc
from critics.density.clip_ebc.published import config_of, rename
from critics.loading.checkpoint import CheckpointError
from critics.parts.preprocess import IMAGENET, normalise
from critics.registry import card, load_critic

NWPU: dict[str, Any] = {"anchors": NWPU_ANCHORS, "block": 8, "numerals": "words"}
"""What a published file does not say of itself."""
WINDOW, PATCH, WIDTH, LAYERS, TOKENS, EMBEDDING = 64, 16, 64, 2, 3, 24
RESNET = {"layers": [2, 1, 1, 1], "width": 4, "decoder": [128, 40], "image_size": 64}


def tiny(subject: Any = "noun", **changes: Any) -> ClipEbcConfig:
    words = letters()
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "patch_size": PATCH,
        "image_size": WINDOW,
    }
    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 77,
        "projection_dim": EMBEDDING,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return dataclasses.replace(ClipEbcConfig(vision, text, TOKENS, 8, subject=subject), **changes)


def network(config: ClipEbcConfig) -> ClipEbcNetwork:
    torch.manual_seed(1)
    return ClipEbcNetwork(config).eval().requires_grad_(False)


# -- an independent network in the published layout -----------------------------------------------


class PlainBlock(nn.Module):
    """A transformer layer as OpenAI's CLIP names its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        inner = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class PlainTower(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(PlainBlock(width) for _ in range(layers))


class PlainResidual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()


class PlainImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((WINDOW // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = PlainTower(WIDTH, LAYERS)


class PlainText(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(words, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(77, WIDTH) / 10)
        self.transformer = PlainTower(WIDTH, 1)
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBEDDING))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        ends = ids.argmax(-1)  # the end of the text has the highest id
        return self.ln_final(x)[torch.arange(len(ids)), ends] @ self.text_projection


class Plain(nn.Module):
    """CLIP-EBC from its description, with the names of the published files."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = PlainImage(), PlainText(words)
        for i in range(LAYERS):
            setattr(self, f"vpt_{i}", nn.Parameter(torch.randn(TOKENS, WIDTH)))
        self.image_decoder = nn.Sequential(PlainResidual(WIDTH))
        self.projection = nn.Conv2d(WIDTH, EMBEDDING, 1)
        self.logit_scale = nn.Parameter(torch.tensor(1.7))

    def forward(self, pixels: Tensor, ids: Tensor, anchors: Tensor) -> Tensor:
        encoder = self.image_encoder
        patches = encoder.conv1(pixels).flatten(2).mT
        start = encoder.class_embedding.expand(len(pixels), 1, -1)
        x = encoder.ln_pre(torch.cat([start, patches], 1) + encoder.positional_embedding)
        for i, block in enumerate(encoder.transformer.resblocks):
            prompt = getattr(self, f"vpt_{i}").expand(len(x), -1, -1)
            x = block(torch.cat([x[:, :1], prompt, x[:, 1:]], 1))
            x = torch.cat([x[:, :1], x[:, 1 + TOKENS :]], 1)
        side = WINDOW // PATCH
        grid = encoder.ln_post(x[:, 1:]).mT.unflatten(2, (side, side))
        grid = F.interpolate(grid, scale_factor=PATCH / 8, mode="bilinear")
        seen = F.normalize(self.projection(self.image_decoder(grid)), dim=1)
        text = F.normalize(self.text_encoder(ids), dim=1)
        shares = (self.logit_scale.exp() * torch.einsum("bdhw,nd->bnhw", seen, text)).softmax(1)
        return (shares * anchors[:, None, None]).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def plain() -> Plain:
    torch.manual_seed(2)
    model = Plain(len(letters())).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def published(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file in the published layout, and the tokenizer's folder."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(plain.state_dict(), folder / "best_mae.pth")
    letters().save_pretrained(folder / "tokenizer")
    return folder / "best_mae.pth", folder / "tokenizer"


# -- the published tensors, as listed in the authors' classes --------------------------------------


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    counters = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm(name, width) | counters | {f"{name}.num_batches_tracked": ()}


def transformer(name: str, width: int, depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        block = f"{name}.transformer.resblocks.{i}"
        shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
        for part, sizes in (
            ("attn.out_proj", (width, width)),
            ("mlp.c_fc", (4 * width, width)),
            ("mlp.c_proj", (width, 4 * width)),
        ):
            shapes |= {f"{block}.{part}.weight": sizes, f"{block}.{part}.bias": sizes[:1]}
    return shapes


def text_encoder(embedding: int) -> dict[str, tuple[int, ...]]:
    return {
        "text_encoder.token_embedding.weight": (49408, 512),
        "text_encoder.positional_embedding": (77, 512),
        "text_encoder.text_projection": (512, embedding),
        **norm("text_encoder.ln_final", 512),
        **transformer("text_encoder", 512, 12),
        "logit_scale": (),
    }


def vit_b_16() -> dict[str, tuple[int, ...]]:
    return {
        **text_encoder(512),
        "image_encoder.conv1.weight": (768, 3, 16, 16),
        "image_encoder.class_embedding": (768,),
        "image_encoder.positional_embedding": (197, 768),
        **norm("image_encoder.ln_pre", 768),
        **norm("image_encoder.ln_post", 768),
        **transformer("image_encoder", 768, 12),
        **{f"vpt_{i}": (32, 768) for i in range(12)},
        **{f"image_decoder.0.conv{i}.weight": (768, 768, 3, 3) for i in (1, 2)},
        **batch_norm("image_decoder.0.bn1", 768),
        **batch_norm("image_decoder.0.bn2", 768),
        "projection.weight": (512, 768, 1, 1),
        "projection.bias": (512,),
    }


def bottleneck(name: str, inputs: int, width: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.conv1.weight": (width, inputs, 1, 1),
        f"{name}.conv2.weight": (width, width, 3, 3),
        f"{name}.conv3.weight": (outputs, width, 1, 1),
        **batch_norm(f"{name}.bn1", width),
        **batch_norm(f"{name}.bn2", width),
        **batch_norm(f"{name}.bn3", outputs),
    }


def resnet50() -> dict[str, tuple[int, ...]]:
    shapes = text_encoder(1024)
    for i, (inputs, outputs) in enumerate(((3, 32), (32, 32), (32, 64)), 1):
        shapes[f"image_encoder.conv{i}.weight"] = (outputs, inputs, 3, 3)
        shapes |= batch_norm(f"image_encoder.bn{i}", outputs)
    inputs = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for i in range(depth):
            block = f"image_encoder.layer{stage + 1}.{i}"
            shapes |= bottleneck(block, inputs, width, 4 * width)
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= batch_norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    shapes |= bottleneck("image_decoder.0", 2048, 2048, 2048)
    return shapes | {"projection.weight": (1024, 2048, 1, 1), "projection.bias": (1024,)}


@pytest.mark.parametrize(
    ("shapes", "backbone"), [(vit_b_16(), "vit"), (resnet50(), "resnet")], ids=["ViT", "ResNet"]
)
def test_every_published_tensor_has_its_place_and_every_place_its_tensor(
    shapes: dict[str, tuple[int, ...]], backbone: str
) -> None:
    """At full size, without weights. The lists are those of the authors' own class, which was run once."""
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = config_of(published, letters(), (0.0, 1.0, 2.0, 3.0, 4.2), 8, "words")
    assert config.backbone == backbone and config.window == {"vit": 224, "resnet": 448}[backbone]
    with torch.device("meta"):
        own = ClipEbcNetwork(config).state_dict()
    places = {key: value.shape for key, value in rename(published).items()}
    assert places == {key: value.shape for key, value in own.items()}


# -- an independent ResNet on a state_dict --------------------------------------------------------


def plain_resnet_features(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Unit vectors of blocks of 8 pixels, written down from the authors' forward passes."""

    def unit(x: Tensor, name: str, index: int, stride: int = 1, act: bool = True) -> Tensor:
        weight = state[f"{name}conv{index}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        x = normed(x, f"{name}bn{index}")
        return x.relu() if act else x

    def normed(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        y = unit(unit(x, name, 1), name, 2)
        y = unit(F.avg_pool2d(y, stride), name, 3, act=False)
        if f"{name}downsample.0.weight" in state:
            x = F.conv2d(F.avg_pool2d(x, stride), state[f"{name}downsample.0.weight"])
            x = normed(x, f"{name}downsample.1")
        return (x + y).relu()

    encoder = "image_encoder."
    x = unit(unit(unit(pixels, encoder, 1, stride=2), encoder, 2), encoder, 3)
    x = F.avg_pool2d(x, 2)
    for stage, depth in enumerate(RESNET["layers"], 1):
        for i in range(depth):
            x = block(x, f"{encoder}layer{stage}.{i}.", 2 if i == 0 and stage in (2, 3) else 1)
    x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
    for i in range(len(RESNET["decoder"])):
        x = block(x, f"image_decoder.{i}.", 1)
    return F.normalize(F.conv2d(x, state["projection.weight"], state["projection.bias"]), dim=1)


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    model = network(tiny("people", vision=RESNET, prompt_tokens=0, backbone="resnet"))
    for part in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        part.running_mean.normal_(0, 0.1)
        part.running_var.uniform_(0.5, 2)
        part.weight.uniform_(1, 3)  # or little of the picture is left
    save(folder, model, letters(), half=False)
    return folder


def to_published(model: ClipEbcNetwork, plain: Plain) -> dict[str, Tensor]:
    """The picture's side as it is, the text encoder of a file in the published layout."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("text_encoder.")}
    text = {k: v for k, v in plain.state_dict().items() if k.startswith("text_encoder.")}
    return state | text


def test_published_resnets_are_read_and_see_whole_pictures(
    resnet_folder: Path, plain: Plain, published: tuple[Path, Path], tmp_path: Path
) -> None:
    state = to_published(load_critic("clip-ebc", resnet_folder).network, plain)
    torch.save(state, tmp_path / "best.pth")
    critic = load_critic(
        "clip-ebc", tmp_path / "best.pth", allow_pickle=True, tokenizer=published[1], **NWPU
    )
    images = noise(1, 3, 448, 480)
    found = critic(images, [critic.prepare(["person"])]).density
    seen = plain_resnet_features(state, normalise(images, IMAGENET))
    ids = letters()(number_sentences(5), padding=True, return_tensors="pt")["input_ids"]
    text = F.normalize(plain.text_encoder(ids), dim=1)
    shares = (state["logit_scale"].exp() * torch.einsum("bdhw,nd->bnhw", seen, text)).softmax(1)
    anchors = torch.tensor(critic.network.config.anchors)[:, None, None]
    expected = (shares * anchors).sum(1, keepdim=True)
    assert found.shape == (1, 1, 56, 60) and found.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Cut into windows, a picture is seen in other surroundings.
    cut = load_critic("clip-ebc", resnet_folder, stride=64)
    whole = load_critic("clip-ebc", resnet_folder)
    wide = noise(1, 3, 64, 128)
    parts = torch.cat(
        [whole(wide[..., x : x + 64], [whole.prepare(["person"])]).density for x in (0, 64)], -1
    )
    torch.testing.assert_close(cut(wide, [cut.prepare(["person"])]).density, parts)


# -- tests ----------------------------------------------------------------------------------------


class TestPeople(CriticContract):
    """The published form: people, from a ``.pth`` file."""

    nouns = ("person", "people", "human")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, published: tuple[Path, Path]) -> Any:
        path, words = published
        return load_critic("clip-ebc", path, allow_pickle=True, tokenizer=words, **NWPU)


class TestAnyNoun(CriticContract):
    """The class-generic form, from a folder of safetensors."""

    nouns = ("red apple", "dog", "sheep")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("generic")
        save(folder, network(tiny()), letters())
        return load_critic("clip-ebc", folder)

    def test_nouns_are_told_apart(self, critic: DensityCritic) -> None:
        found = critic(self.images(1), [critic.prepare(self.nouns)])
        assert found.soft[0].unique().numel() == 3
        assert critic.card.vocabulary is None and not critic.card.published


class TestResNet(CriticContract):
    """The published form with CLIP's ResNet, from a folder of safetensors."""

    nouns = ("person", "people", "human")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, resnet_folder: Path) -> Any:
        return load_critic("clip-ebc", resnet_folder)


class TestLoading(LoadingContract):
    @pytest.fixture(scope="module")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("generic")
        save(folder, network(tiny()), letters())
        return "clip-ebc", folder


def test_published_weights_give_the_published_network(
    plain: Plain, published: tuple[Path, Path]
) -> None:
    path, words = published
    critic = load_critic("clip-ebc", path, allow_pickle=True, tokenizer=words, **NWPU)
    images = noise(2, 3, WINDOW, WINDOW)
    anchors = torch.tensor(critic.network.config.anchors)
    ids = letters()(number_sentences(5), padding=True, return_tensors="pt")["input_ids"]
    query = critic.prepare(["person"])
    expected = plain(normalise(images, IMAGENET), ids, anchors)
    torch.testing.assert_close(critic(images, [query] * 2).density, expected, rtol=1e-4, atol=1e-5)
    # A picture of four windows is four pictures.
    four = noise(1, 3, 2 * WINDOW, 2 * WINDOW, seed=3)
    parts = [four[..., y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    whole = sum(plain(normalise(part, IMAGENET), ids, anchors).sum() for part in parts)
    torch.testing.assert_close(critic(four, [query]).soft.sum(), whole, rtol=1e-4, atol=1e-4)


def test_a_training_checkpoint_and_one_without_prompts_are_read_too(
    plain: Plain, published: tuple[Path, Path], tmp_path: Path
) -> None:
    _, words = published
    state = plain.state_dict()
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "last.pth")
    nested = load_critic(
        "clip-ebc", tmp_path / "last.pth", allow_pickle=True, tokenizer=words, **NWPU
    )
    assert nested.network.config.prompt_tokens == TOKENS
    torch.save({k: v for k, v in state.items() if "vpt" not in k}, tmp_path / "old.pth")
    old = load_critic("clip-ebc", tmp_path / "old.pth", allow_pickle=True, tokenizer=words, **NWPU)
    images = noise(1, 3, 72, 72)
    counts = [c(images, [c.prepare(["person"])]).soft.item() for c in (nested, old)]
    assert counts[0] != counts[1] and np.isfinite(counts).all()


def test_the_read_out_is_bounded_and_passes_gradcheck() -> None:
    logits = torch.randn(1, 2, 5, 2, 2, dtype=torch.float64)

    anchors = (0.0, 1.0, 2.0, 3.0, 4.2)
    odds = logits.exp()
    expected = sum(a * odds[:, :, n] for n, a in enumerate(anchors)) / odds.sum(2)
    torch.testing.assert_close(expectation(logits, anchors), expected)
    assert torch.autograd.gradcheck(
        lambda x: expectation(x, anchors, 0.7), (logits.requires_grad_(),)
    )
    assert expectation(logits.half(), anchors).dtype == torch.float32
    assert expectation(logits * 1e3, anchors).max() <= 4.2 + 1e-5


def test_preprocessing_equals_the_reference_processor_with_imagenet_statistics() -> None:
    """Exactly, since windows are cut and not resized: the 8-bit picture has the window's size."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(image_mean=IMAGENET[0], image_std=IMAGENET[1])
    reference = processor(picture, return_tensors="pt")["pixel_values"]
    mine = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, IMAGENET)
    torch.testing.assert_close(mine, reference, rtol=0, atol=1e-4)


def test_sentences_are_the_published_ones() -> None:
    assert number_sentences(5) == [
        "There is no person.",
        "There is one person.",
        "There are two people.",
        "There are three people.",
        "There are more than four people.",
    ]
    assert number_sentences(3, "dog", "dogs")[-1] == "There are more than two dogs."


def test_half_precision_networks_count_nearly_the_same(tmp_path: Path) -> None:
    save(tmp_path, network(tiny()), letters(), half=False)
    full = load_critic("clip-ebc", tmp_path)
    half = load_critic("clip-ebc", tmp_path, dtype=torch.bfloat16)
    images = noise(1, 3, 64, 64)
    soft = [c(images, [c.prepare(["dog"])]).soft for c in (full, half)]
    assert half.network.logit_scale.dtype == torch.bfloat16 and soft[1].dtype == torch.float32
    assert (soft[0] - soft[1]).abs() < 0.05 * soft[0]


class TestBadFiles:
    def test_no_source_at_all(self) -> None:
        with pytest.raises(CheckpointError, match="pickled"):
            load_critic("clip-ebc")

    def test_a_pickle_is_read_only_with_consent_and_only_for_tensors(
        self, published: tuple[Path, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match="allow_pickle=True"):
            load_critic("clip-ebc", published[0])
        torch.save({"model_state_dict": Path("x")}, tmp_path / "code.pth")
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            load_critic("clip-ebc", tmp_path / "code.pth", allow_pickle=True)
        (tmp_path / "cut.pth").write_bytes(published[0].read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="damaged"):
            load_critic("clip-ebc", tmp_path / "cut.pth", allow_pickle=True)

    def test_missing_surplus_and_misshapen_keys_are_listed(
        self, plain: Plain, published: tuple[Path, Path], tmp_path: Path
    ) -> None:
        state = plain.state_dict()
        del state["vpt_1"], state["projection.bias"]
        state |= {"stray": torch.zeros(1), "vpt_7": torch.zeros(TOKENS, WIDTH)}
        state["image_decoder.0.bn1.weight"] = torch.zeros(5)
        torch.save(state, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError) as caught:
            load_critic(
                "clip-ebc", tmp_path / "odd.pth", allow_pickle=True, tokenizer=published[1], **NWPU
            )
        text = str(caught.value)
        assert "2 missing: image_encoder.prompts, projection.bias" in text
        assert "3 surplus: stray, vpt_0, vpt_7" in text
        assert "1 of wrong shape: image_decoder.0.bn1.weight" in text

    def test_another_kind_of_model(self, published: tuple[Path, Path], tmp_path: Path) -> None:
        for key, message in (
            ("features.0.weight", "is no CLIP-EBC: text_encoder.token_embedding.weight is missing"),
            ("classifier.weight", "a VGG of the same authors is loaded as dmcount-ebc"),
        ):
            torch.save({key: torch.zeros(2)}, tmp_path / "vgg.pth")
            with pytest.raises(CheckpointError, match=message):
                load_critic(
                    "clip-ebc",
                    tmp_path / "vgg.pth",
                    allow_pickle=True,
                    tokenizer=published[1],
                    **NWPU,
                )

    @pytest.mark.parametrize("lacking", NWPU)
    def test_what_a_file_does_not_say_is_asked_for(
        self, published: tuple[Path, Path], lacking: str
    ) -> None:
        options = {key: value for key, value in NWPU.items() if key != lacking}
        with pytest.raises(CheckpointError, match=rf"pass {lacking}=\.\.\. \("):
            load_critic(
                "clip-ebc", published[0], allow_pickle=True, tokenizer=published[1], **options
            )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"block": 7}, "blocks of 7 pixels"),
            ({"anchors": (0.0, 1.0)}, "three anchors"),
            ({"numerals": "roman"}, "not 'roman'"),
        ],
    )
    def test_answers_that_do_not_fit_are_refused(
        self, published: tuple[Path, Path], changes: dict[str, Any], message: str
    ) -> None:
        options = NWPU | changes
        with pytest.raises(CheckpointError, match=message):
            load_critic(
                "clip-ebc", published[0], allow_pickle=True, tokenizer=published[1], **options
            )

    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"config.json is missing"):
            load_critic("clip-ebc", tmp_path)
        save(tmp_path, network(tiny()), letters())
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"subject": "ships"}))
        with pytest.raises(CheckpointError, match=r"subject: .*ships.* is not 'people' or 'noun'"):
            load_critic("clip-ebc", tmp_path)


def test_weights_of_digits_are_asked_in_digits(published: tuple[Path, Path]) -> None:
    """As the authors' "number" prompts: another sentence, another count."""
    options = {"allow_pickle": True, "tokenizer": published[1]}
    words, digits = (
        load_critic("clip-ebc", published[0], **options, **NWPU | {"numerals": numerals})
        for numerals in ("words", "digits")
    )
    sentences = ["There is 0 person.", "There is 1 person.", "There are 2 people."]
    sentences += ["There are 3 people.", "There are more than 4 people."]
    tokens = letters()(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = digits.network.encode_text(tokens["input_ids"], tokens["attention_mask"])
    found = digits.prepare(["person"]).text["bins"][0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, words.prepare(["person"]).text["bins"][0], atol=1e-3)


def test_a_folder_without_a_tokenizer_does_not_count_with_an_empty_one(tmp_path: Path) -> None:
    save(tmp_path, network(tiny()), letters())
    for path in tmp_path.glob("*token*"):
        path.unlink()
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="tokenizer in"):
        load_critic("clip-ebc", tmp_path)


def test_the_card_warns_that_the_layout_is_unverified() -> None:
    assert "unverified" in card("clip-ebc").summary


@pytest.mark.slow
class TestTrained(TrainedCounterContract):
    """The class-generic form."""

    nouns = NOUNS

    @pytest.fixture(scope="class")
    @classmethod
    def critic(cls) -> DensityCritic:
        config = tiny(anchors=(0.0, 1.0, 2.1))
        config.vision.update(image_size=64, patch_size=8)
        torch.manual_seed(0)
        model = ClipEbcNetwork(config)
        words = letters()
        counter = ClipEbc(model, words, 64)
        sentences = [s for noun in NOUNS for s in number_sentences(3, noun, f"{noun}s")]
        tokens = dict(words(sentences, padding=True, return_tensors="pt"))

        def loss(scenes: Scenes) -> Tensor:
            text = model.encode_text(tokens["input_ids"], tokens["attention_mask"]).unflatten(
                0, (len(NOUNS), 3)
            )
            logits = model(
                normalise(scenes.images, IMAGENET), text.expand(len(scenes.nouns), -1, -1, -1)
            )
            return blockwise_loss(logits, scenes.centres(8), config.anchors)

        train(model, loss, steps=220, rate=1e-3)
        return DensityCritic(counter, card("clip-ebc"))

    def test_it_counts(self, critic: DensityCritic) -> None:
        held_out = draw(128, seed=7)
        found = critic(held_out.images, [critic.prepare([NOUNS[i]]) for i in held_out.nouns])
        mine, constant = errors(found.soft[:, 0], held_out.counts)
        assert mine < 0.6 * constant, (mine, constant)
