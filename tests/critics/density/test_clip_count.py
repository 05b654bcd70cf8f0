"""CLIP-Count's read-out and preprocessing, around a small network on CLIP modules that learns to count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting_scenes import NOUNS, Scenes, draw, errors, train
from critic_contract import CriticContract, LoadingContract, noise
from letter_tokenizer import letters
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from critics.density.cardinality import cardinality_target
from critics.loading import checkpoint
from critics.parts.preprocess import CLIP, normalise, resize
from critics.registry import load_critic

SIDE = 48
"""Of the map: cells of 8 of a window's 384 pixels."""


class TinyNetwork(nn.Module):
    """CLIP's two encoders and a decoder with a sigmoid: patches times text, up-sampled."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.tokenizer = letters()
        parts = {"hidden_size": width, "intermediate_size": 128, "num_hidden_layers": 2}
        parts |= {"num_attention_heads": 2}
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                **parts,
                vocab_size=len(self.tokenizer),
                projection_dim=width,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.vision = CLIPVisionModel(CLIPVisionConfig(**parts, image_size=224, patch_size=16))
        self.decoder = nn.Sequential(
            nn.Conv2d(width, 32, 3, padding=1),
            nn.SiLU(),
            nn.Upsample((SIDE, SIDE), mode="bilinear"),
            nn.Conv2d(32, 1, 3, padding=1),
        )
        nn.init.constant_(self.decoder[-1].bias, -2.0)

    def encode(self, nouns: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(nouns), padding=True, return_tensors="pt")
        return F.normalize(self.text(**tokens).text_embeds, dim=-1)

    def density(self, pixels: Tensor, text: Tensor) -> Tensor:
        patches = self.vision(pixels).last_hidden_state[:, 1:].mT.unflatten(2, (14, 14))
        return self.decoder(patches * (1 + 8 * text[..., None, None]))[:, 0].sigmoid()


def tiny() -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork()


class TestContract(CriticContract):
    nouns = NOUNS

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("clip-count")
        checkpoint.save(folder, {}, tiny())
        return load_critic("clip-count", folder, network=TinyNetwork(), cell=8)

    def test_a_square_is_one_window_over_sixty(self, critic: Any) -> None:
        images, query = noise(2, 3, 384, 384), critic.prepare(["dog"])
        pixels = normalise(resize(images, (224, 224)), CLIP)
        maps = critic.network.density(pixels, query.text["nouns"].expand(2, -1))
        found = critic(images, [query] * 2)
        torch.testing.assert_close(found.density[:, 0], maps / 60)
        torch.testing.assert_close(found.soft[:, 0], maps.sum((1, 2)) / 60)

    def test_a_broad_picture_is_several_windows_averaged_where_they_overlap(
        self, critic: Any
    ) -> None:
        images, query = noise(1, 3, 384, 512), critic.prepare(["dog"])
        parts = [critic(images[..., x : x + 384], [query]).density[0, 0] for x in (0, 128)]
        joined = critic(images, [query]).density[0, 0]
        torch.testing.assert_close(joined[:, :16], parts[0][:, :16])
        torch.testing.assert_close(joined[:, 16:48], (parts[0][:, 16:] + parts[1][:, :32]) / 2)
        torch.testing.assert_close(joined[:, 48:], parts[1][:, 32:])


class TestLoading(LoadingContract):
    @pytest.fixture(scope="module")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("clip-count")
        checkpoint.save(folder, {}, tiny())
        return "clip-count", folder

    def options(self) -> dict[str, Any]:
        return {"network": TinyNetwork(), "cell": 8}


def test_preprocessing_equals_the_reference_processor() -> None:
    """Exactly, on a picture that needs no resize; the resize itself is compared with PIL elsewhere."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    reference = CLIPImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    mine = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, CLIP)
    torch.testing.assert_close(mine, reference, rtol=0, atol=1e-4)


def test_networks_and_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a network of your own, network=.*none was given"):
        load_critic("clip-count")
    with pytest.raises(TypeError, match="DensityNetwork; Linear is none"):
        load_critic("clip-count", network=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="must be positive"):
        load_critic("clip-count", network=tiny(), factor=0.0)
    with pytest.raises(ValueError, match="does not divide the stride"):
        load_critic("clip-count", network=tiny(), cell=7)
    critic = load_critic("clip-count", network=tiny(), cell=16)
    with pytest.raises(ValueError, match="the counter's maps are"):
        critic(noise(1, 3, 64, 64), [critic.prepare(["dog"])])


@pytest.mark.slow
def test_a_small_network_on_clip_modules_learns_to_count() -> None:
    network = tiny()

    def target(boxes: Tensor) -> Tensor:
        masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, (boxes * SIDE / 64).int().tolist(), strict=True):
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        return cardinality_target(masks, 1) * 60

    def loss(scenes: Scenes) -> Tensor:
        text = network.encode(NOUNS)[scenes.nouns]
        found = network.density(normalise(resize(scenes.images, (224, 224)), CLIP), text)
        truth = torch.stack([target(boxes) for boxes in scenes.boxes])
        return 20 * F.mse_loss(found, truth) + (found.sum((1, 2)) / 60 - scenes.counts).abs().mean()

    train(network, loss, steps=120, rate=1e-3, batch=12)
    critic = load_critic("clip-count", network=network, cell=8)
    held_out = draw(64, seed=7)
    found = critic(held_out.images, [critic.prepare([NOUNS[i]]) for i in held_out.nouns])
    mine, constant = errors(found.soft[:, 0], held_out.counts)
    assert mine < 0.8 * constant, (mine, constant)
