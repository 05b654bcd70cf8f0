"""Z-Image: the contract on a tiny random pipeline, at scale 0 and guided."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_contract import AdapterContract
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny_pipelines import saved, tiny, vae, words
from transformers import Qwen3Config, Qwen3Model

from pipelines.adapter import DiffusersAdapter

TEMPLATE = "{% for message in messages %}<start> {{ message['content'] }} <end>{% endfor %}"


def z_image_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = words()
    tokenizer.chat_template = TEMPLATE
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # Padding is made of these, and a trained model's are not zero.
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    pipeline = ZImagePipeline(
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return saved(pipeline, folder)


class TestZImageTurbo(AdapterContract):
    steps = (1, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("z-image-turbo", z_image_folder(tmp_path_factory.mktemp("z-image")), steps=4)

    def test_prompts_of_different_lengths_are_padded(self, adapter: DiffusersAdapter) -> None:
        encoded = adapter.encode(["two cats", "two red cats on grass"], adapter.plan())
        assert encoded.mask is not None
        lengths = encoded.mask.sum(1).tolist()
        assert lengths[1] == lengths[0] + 3 == encoded.hidden.shape[1]
        assert (encoded.hidden[~encoded.mask] == 0).all()


class TestGuidedZImage(AdapterContract):
    """Its scale counts from 0, where the scale of others counts from 1."""

    steps = (1, 2)
    test_guidance_moves_the_count_of_a_trained_critic = None  # which the other class has shown

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = z_image_folder(tmp_path_factory.mktemp("z-image-guided"))
        return tiny("z-image-turbo", folder, steps=2, guidance_scale=0.7)
