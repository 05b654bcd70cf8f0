"""Prompt-free variation: what a generator is told of a picture, what is learnt, kept, drawn and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import pixart_folder
from tiny_pipelines import sd3_folder, sd_folder, tiny, unet
from torch import Tensor

from countgen.cli import main
from countgen.errors import UsageError
from countgen.learning.loop import TrainConfig
from countgen.learning.lora import LoraConfig
from countgen.learning.prompted import Captioned, pocket_scenes
from countgen.learning.references import (
    PictureEncoder,
    References,
    crops,
    find_objects,
    load_encoder,
)
from countgen.learning.variation import (
    PRESETS,
    Variation,
    VariationConfig,
    told_by_pictures,
    train_variation,
)
from countgen.learning.vary import vary
from countgen.pocket import load_adapter, load_critic
from countgen.pocket.world import NAMES
from critics.base import Critic

TRAIN = TrainConfig(steps=3, batch=2, learning_rate=1e-2, warmup=1, ema=0.5)
LORA = LoraConfig(TRAIN, rank=2, objective="soft", count_batch=2, count_from=2, grad_steps=0)
TINY = VariationConfig(LORA, bank=2)
FEW = replace(TINY, slots=1, drop=0.5)
"""Fewer places than objects, and pictures that nothing is told of."""


def small_scenes(rng: np.random.Generator, number: int) -> list[Captioned]:
    """Pocket scenes at the size of the tiny pipelines, 16 x 16."""
    return [replace(one, image=one.image[:, ::4, ::4]) for one in pocket_scenes(rng, number)]


@pytest.fixture(scope="module")
def critic() -> Critic:
    return load_critic("pocket-detector-a")


@pytest.fixture(scope="module")
def encoder() -> PictureEncoder:
    return load_encoder("pocket")


@pytest.fixture(scope="module")
def scene() -> Captioned:
    """A scene of several objects."""
    return next(
        one for one in pocket_scenes(np.random.default_rng(5), 20) if 3 <= len(one.boxes) <= 8
    )


def test_crops_are_the_boxes_in_whole_pixels() -> None:
    image = torch.arange(64.0).reshape(1, 8, 8).expand(3, 8, 8)
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.99, 0.0, 1.2, 0.01]])
    first, second = crops(image, boxes)
    torch.testing.assert_close(first, image[:, 4:8, 2:4])
    torch.testing.assert_close(second, image[:, :1, 7:8])


def test_an_object_looks_the_same_wherever_it_stands(
    encoder: PictureEncoder, scene: Captioned
) -> None:
    """A crop's embedding is that of the object alone: moved, it stays; the whole picture's changes."""
    image = torch.full((3, 64, 64), 0.5)
    x0, y0, x1, y1 = (scene.boxes[0] * 64).round().int().tolist()
    part = scene.image[:, y0:y1, x0:x1]
    here, there = image.clone(), image.clone()
    here[:, : part.shape[1], : part.shape[2]] = part
    there[:, -part.shape[1] :, -part.shape[2] :] = part
    size = torch.tensor([part.shape[2], part.shape[1]]) / 64
    first = encoder(here, torch.cat([torch.zeros(2), size])[None])
    second = encoder(there, torch.cat([1 - size, torch.ones(2)])[None])
    torch.testing.assert_close(first.objects, second.objects, atol=1e-4, rtol=1e-4)
    assert (first.whole - second.whole).abs().max() > 0.1
    assert first.whole.square().mean() == pytest.approx(1, abs=1e-5)


def test_objects_are_those_of_the_scene(critic: Critic, scene: Captioned) -> None:
    found = find_objects(critic, scene.image, NAMES)
    wanted = {target.noun: target.count for target in scene.prompt.targets if target.count}
    assert {noun: len(boxes) for noun, boxes in found.items()} == wanted
    assert all(0 <= float(boxes.min()) <= float(boxes.max()) <= 1.05 for boxes in found.values())


def test_boxes_come_from_the_critic_where_a_picture_has_none(
    critic: Critic, encoder: PictureEncoder, scene: Captioned
) -> None:
    references = References(encoder, critic)
    own = references(scene)
    assert len(own.objects) == len(scene.boxes)
    seen = references(replace(scene, boxes=torch.zeros(0, 4)))
    assert len(seen.objects) == len(scene.boxes)
    assert references(scene) is own  # computed once


@pytest.mark.parametrize("family", ["sd-turbo", "sd3.5-large-turbo"])
def test_a_generator_told_by_a_picture_leaves_the_one_told_by_texts(
    tmp_path: Path, encoder: PictureEncoder, scene: Captioned, family: str
) -> None:
    folder = (sd_folder if family == "sd-turbo" else sd3_folder)(tmp_path)
    adapter = tiny(family, folder)
    plan = adapter.plan()
    noise = adapter.noise([torch.Generator().manual_seed(0)], plan)
    before = adapter.images(noise, ["two cats"], plan)
    made = told_by_pictures(adapter, encoder, 2, "attention", 8, guided=False)
    reference = encoder(scene.image, scene.boxes)
    fewer = replace(reference, objects=reference.objects[:-1])
    own = made.plan()
    first, second = (made.images(noise, [one], own) for one in (reference, fewer))
    assert not torch.equal(first, second)  # every object is told
    torch.testing.assert_close(adapter.images(noise, ["two cats"], plan), before)
    shared = {id(weight) for weight in adapter.networks.denoiser.parameters()}
    new = [n for n, w in made.adapter.networks.denoiser.named_parameters() if id(w) not in shared]
    assert new and all("lora_" in name for name in new)
    with pytest.raises(UsageError, match="9 objects, and 8 are the most"):
        made.tell([replace(reference, objects=reference.objects[:1].repeat(9, 1))], own)


def test_it_resumes_to_the_same_file_is_read_again_and_draws(
    tmp_path: Path, critic: Critic, encoder: PictureEncoder, scene: Captioned
) -> None:
    sd_folder(tmp_path / "model")

    def train(out: str, config: VariationConfig = TINY, **options: object) -> Variation:
        adapter = tiny("sd-turbo", tmp_path / "model")
        options = {"samples": 0, **options}
        return train_variation(
            adapter, critic, small_scenes, encoder, config, tmp_path / out, **options
        )

    whole = train("whole", samples=2)
    assert list((tmp_path / "whole").glob("samples-*.png"))
    train("cut", stop_after=2)
    again = train("cut")
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    read = Variation.load(tmp_path / "cut" / "variation.safetensors")
    assert (read.shape, read.rank, read.guided) == (whole.shape, 2, False)
    assert all(torch.equal(whole.state[name], read.state[name]) for name in whole.state)
    with pytest.raises(UsageError, match="slots 20, now 5"):
        train("cut", replace(TINY, slots=5))
    rows = [json.loads(line) for line in (tmp_path / "whole/variation.log.jsonl").open()]
    assert rows[0]["diffusion"] > 0 and "counting" not in rows[0]

    adapter = tiny("sd-turbo", tmp_path / "model")
    options = {"number": 3, "seed": 4, "encoder": encoder}
    verifier = load_critic("pocket-density")
    found = vary(scene.image, read, adapter, critic, verifier, batch=2, **options)
    one = vary(scene.image, read, adapter, critic, verifier, batch=16, **options)
    torch.testing.assert_close(found.images, one.images, atol=1e-5, rtol=1e-5)
    assert found.images.shape == (3, 3, 16, 16) and len(set(found.seeds)) == 3
    assert not torch.equal(found.images[0], found.images[1])
    assert found.given["critic"] == {t.noun: t.count for t in scene.prompt.targets if t.count}
    assert set(found.given["verifier"]) == set(found.given["critic"])
    assert len(found.counts) == len(found.same) == 3
    trained = {name: tensor for name, tensor in read.state.items() if "lora_B" in name}
    assert any(tensor.any() for tensor in trained.values())


def test_it_resumes_where_chance_decides_what_is_told(
    tmp_path: Path, critic: Critic, encoder: PictureEncoder
) -> None:
    def train(out: str, **options: object) -> dict[str, Tensor]:
        adapter = tiny("sd-turbo", sd_folder(tmp_path / f"model-{len(list(tmp_path.iterdir()))}"))
        return train_variation(
            adapter, critic, small_scenes, encoder, FEW, tmp_path / out, samples=0, **options
        ).state

    whole = train("whole")
    train("cut", stop_after=2)
    again = train("cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_guidance_needs_pictures_that_nothing_was_told_of(
    tmp_path: Path, encoder: PictureEncoder, scene: Captioned
) -> None:
    """With a share dropped, the other half of classifier-free guidance is told nothing."""
    adapter = tiny("sd-turbo", sd_folder(tmp_path))
    guided = adapter.plan(guidance_scale=3.0)
    made = told_by_pictures(adapter, encoder, 2, "attention", 8, guided=True)
    reference = encoder(scene.image, scene.boxes)
    told = made.tell([reference], guided)
    assert told.unconditional is not None and len(told.unconditional) == 1
    nothing = made.tokens([None])
    torch.testing.assert_close(told.unconditional.hidden, nothing.hidden)
    assert made.tell([reference], made.plan()).unconditional is None


def test_the_published_settings() -> None:
    found = PRESETS["pfcd"]
    lora = found.lora
    assert (lora.rank, lora.train.learning_rate, lora.count_from) == (128, 1e-4, 1000)
    assert lora.objective == "counting-reward" and lora.loss is not None
    assert (getattr(lora.loss, "scale", 0), getattr(lora.loss, "threshold", 0)) == (0.5, 0.1)


def test_what_cannot_be_learnt_is_refused_in_a_sentence(
    tmp_path: Path, critic: Critic, encoder: PictureEncoder
) -> None:
    def learn(adapter: object, counter: Critic = critic) -> None:
        train_variation(adapter, counter, small_scenes, encoder, TINY, tmp_path / "out")

    with pytest.raises(UsageError, match="pocket-density gives none; take a detector"):
        learn(load_adapter(), load_critic("pocket-density"))
    adapter = tiny("sd-turbo", sd_folder(tmp_path / "sd"))
    plain = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
    adapter.pipeline.unet = unet(
        down_block_types=plain[0], up_block_types=plain[1], mid_block_type="UNetMidBlock2D"
    ).eval()
    with pytest.raises(UsageError, match="no attention to token states"):
        learn(adapter)
    from diffusers import DiffusionPipeline

    from pipelines.registry import wrap

    with pytest.raises(UsageError, match="LoRA into a PixArtAlphaPipeline"):
        learn(wrap(DiffusionPipeline.from_pretrained(pixart_folder(tmp_path / "pixart"))))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="places for objects"):
        replace(TINY, slots=0)


class Open:
    """A detector that says that its vocabulary is open."""

    def __init__(self, critic: Critic) -> None:
        self.inner, self.network, self.gives = critic, critic.network, critic.gives
        self.card = replace(critic.card, vocabulary=None)

    def prepare(self, nouns: list[str]) -> object:
        return self.inner.prepare(nouns)

    def __call__(self, images: Tensor, queries: list[object]) -> object:
        return self.inner(images, queries)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, critic: Critic) -> Path:
    """A variation for pocket of two steps."""
    out = tmp_path_factory.mktemp("variation") / "out"
    arguments = ["learn", "variation", "--steps", "2", "--batch", "2", "--rank", "2"]
    assert main([*arguments, "--bank", "2", "--samples", "0", "--out", str(out)]) == 0
    return out / "variation.safetensors"


def test_what_cannot_be_varied_is_refused_in_a_sentence(
    learnt: Path, tmp_path: Path, critic: Critic, encoder: PictureEncoder, scene: Captioned
) -> None:
    read = Variation.load(learnt)
    adapter = load_adapter()
    with pytest.raises(UsageError, match="sees no object in the picture"):
        vary(torch.full((3, 64, 64), 0.5), read, adapter, critic, encoder=encoder)
    with pytest.raises(UsageError, match="say what is in the picture"):
        vary(scene.image, read, adapter, Open(critic), encoder=encoder)
    with pytest.raises(UsageError, match="gives none; take a detector"):
        vary(scene.image, read, adapter, load_critic("pocket-density"), encoder=encoder)
    other = tiny("sd-turbo", sd_folder(tmp_path / "sd"))
    with pytest.raises(UsageError, match="learnt for pocket"):
        vary(scene.image, read, other, critic, encoder=encoder)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        Variation.load(tmp_path / "other.safetensors")


def test_the_command_draws_and_counts(
    learnt: Path, tmp_path: Path, scene: Captioned, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "given.png"
    pixels = (scene.image.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(picture)
    arguments = ["vary", str(picture), "--with", str(learnt), "--num-images", "2"]
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    wanted = {t.noun: t.count for t in scene.prompt.targets if t.count}
    assert document["given"]["counts"]["critic"] == wanted
    assert [set(row["counts"]) for row in document["images"]] == [{"critic", "verifier"}] * 2
    assert all(Path(row["path"]).is_file() for row in document["images"])
    assert main(["vary", str(tmp_path / "no.png"), "--with", str(learnt), "--out", "x"]) == 2
    assert "no.png" in capsys.readouterr().err
    blank = tmp_path / "blank.png"
    Image.new("RGB", (64, 64), "gray").save(blank)
    assert main(["vary", str(blank), "--with", str(learnt), "--out", str(tmp_path / "x")]) == 2
    assert "sees no object" in " ".join(capsys.readouterr().err.split())
