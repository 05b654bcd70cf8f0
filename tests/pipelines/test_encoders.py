"""A CLIP that was taught something as a pipeline's text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import clip_config, sd3_folder, sd_folder, words
from tokenizers import Tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, PreTrainedTokenizerFast

from countgen import CountGuidedPipeline
from countgen.errors import UsageError
from countgen.presets import load_generator
from pipelines.folders import LoadError
from pipelines.registry import load_adapter


def clip_folder(
    folder: Path, width: int = 16, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """A whole CLIP of random weights, as ``countgen learn clip`` leaves one."""
    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    config = CLIPConfig(
        text_config=clip_config(width).to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    (tokenizer or words()).save_pretrained(folder)
    return folder


def test_a_stable_diffusion_takes_over_the_weights(tmp_path: Path) -> None:
    sd, clip = sd_folder(tmp_path / "sd"), clip_folder(tmp_path / "clip")
    plain, taught = load_adapter(sd), load_adapter(sd, text_encoder=clip)
    model = CLIPModel.from_pretrained(clip)
    own = taught.pipeline.text_encoder
    tokens = taught.pipeline.tokenizer(
        "two cats", padding="max_length", max_length=words().model_max_length, return_tensors="pt"
    )
    wanted = model.text_model(input_ids=tokens.input_ids).last_hidden_state
    plan = taught.plan()
    torch.testing.assert_close(taught.encode(["two cats"], plan).hidden, wanted.detach())
    assert not own.training and type(own) is type(plain.pipeline.text_encoder)
    assert not torch.allclose(plain.encode(["two cats"], plan).hidden, wanted)
    # By the user's own door, and without countgen: what Diffusers saves of it loads as it is.
    guided = CountGuidedPipeline.from_pretrained(
        sd,
        critic="pocket-detector-a",
        verifier="pocket-density",
        text_encoder=str(clip),
        device="cpu",
    )
    found = guided.adapter.encode(["two cats"], guided.adapter.plan()).hidden
    torch.testing.assert_close(found, wanted.detach())
    taught.pipeline.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved").text_encoder
    torch.testing.assert_close(again(tokens.input_ids).last_hidden_state, wanted)


def test_of_several_encoders_those_that_fit(tmp_path: Path) -> None:
    """Stable Diffusion 3 has two CLIPs with a projection, and a T5 that stays."""
    folder = sd3_folder(tmp_path / "sd3")
    plain, taught = (
        load_adapter(folder),
        load_adapter(folder, text_encoder=clip_folder(tmp_path / "c")),
    )
    changed = {
        name
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3")
        if any(
            not torch.equal(a, b)
            for a, b in zip(
                getattr(plain.pipeline, name).state_dict().values(),
                getattr(taught.pipeline, name).state_dict().values(),
                strict=True,
            )
        )
    }
    assert changed and "text_encoder_3" not in changed


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sd = sd_folder(tmp_path / "sd")
    with pytest.raises(LoadError, match=r"32 wide.*which has text_encoder 16 wide"):
        load_adapter(sd, text_encoder=clip_folder(tmp_path / "wide", 32))
    text, mark = words().backend_tokenizer.to_str(), '"<mark>"'
    first, second = '"two"', '"three"'
    text = text.replace(first, mark).replace(second, first).replace(mark, second)
    exchanged = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text))
    with pytest.raises(LoadError, match="has other words"):
        load_adapter(sd, text_encoder=clip_folder(tmp_path / "other", tokenizer=exchanged))
    with pytest.raises(LoadError):
        load_adapter(sd, text_encoder=tmp_path / "nothing")
    with pytest.raises(UsageError, match="takes no text_encoder"):
        load_generator("pocket", text_encoder="taught")
