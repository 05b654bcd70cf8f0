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
from critic_contract import CriticContract, TrainedCounterContract, noise
from letter_tokenizer import letters
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import UnknownNounError
from critics.blockwise import blockwise_loss, expectation
from critics.checkpoint import CheckpointError
from critics.clip_ebc import ClipEbc, ClipEbcConfig, ClipEbcNetwork, number_sentences, save
from critics.density import DensityCritic
from critics.preprocess import IMAGENET, normalise
from critics.registry import card, load_critic

WINDOW, PATCH, WIDTH, LAYERS, TOKENS, EMBEDDING = 64, 16, 64, 2, 3, 24


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


# -- tests ----------------------------------------------------------------------------------------


class TestPeople(CriticContract):
    """The published form: people, from a ``.pth`` file."""

    nouns = ("person", "people", "human")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, published: tuple[Path, Path]) -> Any:
        path, words = published
        return load_critic("clip-ebc", path, allow_pickle=True, tokenizer=words)

    def test_a_noun_that_is_no_person_is_refused(self, critic: DensityCritic) -> None:
        with pytest.raises(UnknownNounError, match="cannot see 'cat'"):
            critic.prepare(["cat"])


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


def test_published_weights_give_the_published_network(
    plain: Plain, published: tuple[Path, Path]
) -> None:
    path, words = published
    critic = load_critic("clip-ebc", path, allow_pickle=True, tokenizer=words)
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
    nested = load_critic("clip-ebc", tmp_path / "last.pth", allow_pickle=True, tokenizer=words)
    assert nested.network.config.prompt_tokens == TOKENS
    torch.save({k: v for k, v in state.items() if "vpt" not in k}, tmp_path / "old.pth")
    old = load_critic("clip-ebc", tmp_path / "old.pth", allow_pickle=True, tokenizer=words)
    images = noise(1, 3, 72, 72)
    counts = [c(images, [c.prepare(["person"])]).soft.item() for c in (nested, old)]
    assert counts[0] != counts[1] and np.isfinite(counts).all()


def test_the_read_out_is_bounded_and_passes_gradcheck() -> None:
    logits = torch.randn(1, 2, 5, 2, 2, dtype=torch.float64)

    def count(values: Tensor) -> Tensor:
        # The read-out works in float32; its slope is checked on the same formula in float64.
        anchors = values.new_tensor([0.0, 1.0, 2.0, 3.0, 4.2])
        return torch.einsum("bknhw,n->bk", values.softmax(2), anchors)

    assert torch.autograd.gradcheck(count, (logits.requires_grad_(),))
    anchors = (0.0, 1.0, 2.0, 3.0, 4.2)
    torch.testing.assert_close(expectation(logits, anchors).sum((2, 3)), count(logits).float())
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
    assert half.network.log_scale.dtype == torch.bfloat16 and soft[1].dtype == torch.float32
    assert (soft[0] - soft[1]).abs() < 0.05 * soft[0]


class TestBadFiles:
    def test_no_source_at_all(self) -> None:
        with pytest.raises(CheckpointError, match="pickled"):
            load_critic("clip-ebc")
        with pytest.raises(CheckpointError, match="neither a file nor a folder"):
            load_critic("clip-ebc", "/nowhere/best.pth", allow_pickle=True)

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
            load_critic("clip-ebc", tmp_path / "odd.pth", allow_pickle=True, tokenizer=published[1])
        text = str(caught.value)
        assert "2 missing: projection.bias, prompts" in text
        assert "2 surplus: stray, vpt_7" in text and "1 of wrong shape: decoder.bn1.weight" in text

    def test_another_kind_of_model(self, published: tuple[Path, Path], tmp_path: Path) -> None:
        torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "vgg.pth")
        with pytest.raises(CheckpointError, match="no CLIP-EBC with a ViT"):
            load_critic("clip-ebc", tmp_path / "vgg.pth", allow_pickle=True, tokenizer=published[1])

    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"config.json is missing"):
            load_critic("clip-ebc", tmp_path)
        save(tmp_path, network(tiny()), letters())
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"subject": "ships"}))
        with pytest.raises(CheckpointError, match="not 'ships'"):
            load_critic("clip-ebc", tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])
        with pytest.raises(CheckpointError, match="damaged"):
            load_critic("clip-ebc", tmp_path)
        weights.unlink()
        with pytest.raises(CheckpointError, match="missing"):
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
            text = model.encode_text(tokens).unflatten(0, (len(NOUNS), 3))
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
