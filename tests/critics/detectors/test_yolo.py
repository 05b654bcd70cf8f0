"""YOLO critics: real models of ultralytics, tiny or random, and one that is trained here and thrown away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from counting_scenes import NOUNS, Scenes, draw, errors, train
from critic_contract import ConfigContract, CriticContract, noise
from letter_tokenizer import letters
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import critics
from countgen import CountGuidedPipeline
from countgen.pocket import ROLES, load_adapter
from countgen.pocket import load_critic as load_pocket_critic
from countgen.pocket.scenes import SceneSpec, SceneStyle, compose
from critics.base import UnknownNounError
from critics.detectors.yolo import CARDS, save_folder, save_text_encoder
from critics.detectors.yolo.network import PADDING, Letterbox
from critics.loading.checkpoint import CheckpointError
from critics.registry import load_critic

pytest.importorskip("ultralytics")

import ultralytics
from ultralytics.data.augment import LetterBox
from ultralytics.nn import tasks
from ultralytics.nn.modules import head as heads
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

SIDE = 64
# Plan in ultralytics' wheel -> critic that reads it. The first three have no second branch.
PLANS = {
    "yolo11n": "yolo",
    "yolo12n": "yolo",
    "yolov8n-worldv2": "yolo-world",
    "yoloe-11n": "yoloe",
    "yolo26n": "yolo",
    "yolo26n-seg": "yolo",
    "yoloe-26n-seg": "yoloe",
}
CLASSES = {
    "yolo": tasks.DetectionModel,
    "yolo-seg": tasks.SegmentationModel,
    "yolo-world": tasks.WorldModel,
    "yoloe": tasks.YOLOEModel,
    "yoloe-seg": tasks.YOLOESegModel,
}


def words(model: Any, text: Tensor) -> dict[str, Tensor]:
    """How a model takes text embeddings (b, n, 512)."""
    if isinstance(model, tasks.WorldModel):
        model.model[-1].nc = text.shape[1]
        return {"txt_feats": text}
    return {"tpe": text} if isinstance(model, tasks.YOLOEModel) else {}


def enliven(head: Any, prefix: str, branch: dict[str, Any]) -> None:
    """Move a branch's logits to a mean of -1 on every level, and spread them to at most 5 from there."""
    towers, last = getattr(head, f"{prefix}cv3"), getattr(head, f"{prefix}cv4", None)
    levels = branch["scores"].split([f.shape[-2] * f.shape[-1] for f in branch["feats"]], -1)
    for i, (tower, scores) in enumerate(zip(towers, levels, strict=True)):
        middle = scores.mean()
        factor = 5 / (scores - middle).abs().max()
        compares = last is not None and hasattr(last[i], "logit_scale")  # with text
        bias = last[i].bias if compares else tower[-1].bias
        bias.sub_(middle).mul_(factor).sub_(1)
        if compares:
            last[i].logit_scale.add_(factor.log())
        else:
            tower[-1].weight.mul_(factor)


def random_model(plan: str) -> Any:
    """Random weights through which pictures still differ, and scores on both sides of the threshold.

    As ultralytics initialises them, every layer shrinks what it is given until all pictures are one.
    """
    torch.manual_seed(0)
    name = PLANS[plan] + "-seg" * plan.endswith("-seg")
    layers = tasks.yaml_model_load(f"{plan}.yaml") | {"scales": {"n": [0.33, 0.25, 512]}}
    model = CLASSES[name](layers, nc=len(NOUNS), verbose=False).eval()
    model.names = dict(enumerate(NOUNS))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
            nn.init.kaiming_normal_(layer.weight)
    flat = torch.linspace(0, 1, 3)[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    images = torch.cat([flat, noise(9, 3, SIDE, SIDE, seed=9)])
    text = F.normalize(torch.randn(len(images), len(NOUNS), 512), dim=-1)
    with torch.no_grad():
        found = model(images, **words(model, text))[1]
        branches = {"": found.get("one2many", found), "one2one_": found.get("one2one")}
        for prefix, branch in branches.items():
            if branch is not None:
                enliven(model.model[-1], prefix, branch)
    return model


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Layers this small only wait for each other on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, as the hub has it, of which the text encoder alone is read."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = letters()
    size = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    marks = dict(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = transformers.CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            max_position_embeddings=16,
            projection_dim=512,
            **size,
            **marks,
        ),
        vision_config=dict(image_size=32, patch_size=8, **size),
        projection_dim=512,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path
) -> Callable[[str], tuple[Any, Any, Path]]:
    """By plan: a model of ultralytics, the critic that was loaded from its folder, and that folder."""
    made: dict[str, tuple[Any, Any, Path]] = {}

    def make(plan: str) -> tuple[Any, Any, Path]:
        if plan not in made:
            model, folder = random_model(plan), tmp_path_factory.mktemp(plan)
            save_folder(model, folder, side=SIDE)
            options = {} if PLANS[plan] == "yolo" else {"text": text_folder}
            made[plan] = model, load_critic(PLANS[plan], folder, **options), folder
        return made[plan]

    return make


class TestContract(CriticContract):
    nouns = NOUNS

    @pytest.fixture(
        scope="module",
        params=["yolo11n", "yolo12n", "yolo26n", "yolov8n-worldv2", "yoloe-11n", "yoloe-26n-seg"],
    )
    @classmethod
    def critic(cls, request: pytest.FixtureRequest, models: Any) -> Any:
        return models(request.param)[1]

    def test_the_card_is_the_loaded_models(self, critic: Any) -> None:
        card = critic.card
        assert card.vocabulary == (NOUNS if card.name == "yolo" else None)
        assert card.input_size == SIDE and not card.published
        assert card.parameters == sum(p.numel() for p in critic.network.parameters())
        assert "AGPL-3.0" in card.license_code and card.family == "yolo"


class TestLoading(ConfigContract):
    @pytest.fixture(scope="module")
    @classmethod
    def saved(cls, models: Any) -> tuple[str, Path]:
        return "yolo", models("yolo11n")[2]


def torchvision_problem() -> str:
    """Why torchvision cannot be imported beside this torch; empty where it can."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("plan", PLANS)
def test_the_hard_count_is_ultralytics_own(plan: str, models: Any) -> None:
    """Boxes, too: after non-maximum suppression, or the top-k selection of a one-to-one branch."""
    model, critic, _ = models(plan)
    if not critic.detector.network.single and (problem := torchvision_problem()):
        pytest.skip(
            f"ultralytics' own suppression needs torchvision, which does not load: {problem}"
        )
    images, query = noise(3, 3, SIDE, SIDE, seed=5), critic.prepare(NOUNS)
    text = query.text["yolo"].expand(3, -1, -1) if query.text else torch.zeros(3, 3, 512)
    single = model.end2end = "26" in plan
    assert (critic.read_out.overlap is None) == single
    with torch.no_grad():
        answer, raw = model(images, **words(model, text))
    answer = answer[0] if isinstance(answer, tuple) else answer
    # About one in five of all boxes, so that the library's limit of 84 leaves none out; between two scores.
    level = raw.get("one2one", raw)["scores"].quantile(0.8005).sigmoid().item()
    critic = critic.with_settings(threshold=level)
    found = critic(images, [query] * 3)
    boxes = non_max_suppression(answer, level, 0.7, multi_label=True, nc=len(NOUNS), end2end=single)
    for row, theirs in enumerate(boxes):
        for k in range(len(NOUNS)):
            mine = found.candidates.boxes[row, k][found.candidates.kept[row, k]]
            own = theirs[theirs[:, 5] == k]
            assert found.hard[row, k] == len(own)
            torch.testing.assert_close(mine, own[:, :4], atol=1e-2, rtol=1e-4)
    every = critic.with_settings(overlap=None)(images, [query] * 3).hard.sum()
    assert 0 < found.hard.sum() == every if single else 0 < found.hard.sum() < every


# -- preprocessing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(64, 64), (64, 40), (33, 64), (100, 60), (37, 50), (200, 121), (3, 150)]
)
def test_letterboxing_is_that_of_ultralytics(size: tuple[int, int]) -> None:
    """Its own, on floats: with 8-bit pictures alone would it round. The first three need no resizing."""
    images = noise(1, 3, *size)
    mine = Letterbox.of(*size, SIDE, 32)(images)
    theirs = LetterBox((SIDE, SIDE), auto=True, stride=32, padding_value=PADDING)
    expected = theirs(image=images[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(
        mine[0].permute(1, 2, 0),
        torch.from_numpy(np.ascontiguousarray(expected)),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (24, 32), (200, 121)])
def test_boxes_come_back_to_where_they_are_in_the_picture(size: tuple[int, int]) -> None:
    images = noise(1, 3, *size)
    box = Letterbox.of(*size, SIDE, 32)
    (top, left), (height, width) = box.before, box.size
    corners = torch.tensor([[[left, top, left + width, top + height]]]).float()
    whole = torch.tensor([[[0, 0, size[1], size[0]]]]).float()
    torch.testing.assert_close(box.back(corners, images), whole)
    if size != (200, 121):  # where nothing is rounded
        inner = torch.tensor([[[left + 3.0, top + 2.0, left + 30.0, top + 20.0]]])
        expected = scale_boxes(box.canvas, inner[0].clone(), size)
        torch.testing.assert_close(box.back(inner, images)[0], expected)


def test_the_side_is_a_multiple_of_the_stride(models: Any) -> None:
    folder = models("yolo11n")[2]
    assert load_critic("yolo", folder, side=96).card.input_size == 96
    with pytest.raises(ValueError, match="multiple of 32 pixels, not 100"):
        load_critic("yolo", folder, side=100)


def test_weights_in_half_precision_count_in_float32(models: Any) -> None:
    _, exact, folder = models("yolo11n")
    half = load_critic("yolo", folder, dtype=torch.bfloat16)
    images = noise(1, 3, SIDE, SIDE).requires_grad_()
    found = half(images, [half.prepare(NOUNS)])
    found.soft.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()
    assert found.soft.dtype == torch.float32
    expected = exact(images.detach(), [exact.prepare(NOUNS)])
    torch.testing.assert_close(found.soft.detach(), expected.soft, rtol=0.2, atol=1.0)


# -- nouns ------------------------------------------------------------------------------------------


def test_a_closed_vocabulary_names_the_nearest_nouns(models: Any) -> None:
    with pytest.raises(UnknownNounError, match=r"yolo cannot see 'green apple'.*red apple"):
        models("yolo11n")[1].prepare(["green apple"])


def test_nouns_are_encoded_by_clips_text_encoder(models: Any, text_folder: Path) -> None:
    critic = models("yolov8n-worldv2")[1]
    clip = transformers.CLIPModel.from_pretrained(text_folder).eval()
    tokens = letters()(["red apple", "dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        features = clip.get_text_features(**tokens).pooler_output
    expected = F.normalize(features, dim=-1)
    torch.testing.assert_close(critic.prepare(["red  apple", "dog"]).text["yolo"], expected)
    with pytest.raises(ValueError, match="a noun is empty"):
        critic.prepare([" "])
    with pytest.raises(ValueError, match="22 tokens, but the text encoder reads 16"):
        critic.prepare(["abcdefghijklmnopqrst"])
    foreign = models("yolo11n")[1].prepare(["dog"])
    with pytest.raises(ValueError, match="prepared by another critic"):
        critic(noise(1, 3, SIDE, SIDE), [foreign])


def test_text_encoders_that_do_not_fit_are_refused(
    models: Any, text_folder: Path, tmp_path: Path
) -> None:
    folder = models("yoloe-11n")[2]
    with pytest.raises(CheckpointError, match="save_text_encoder"):
        load_critic("yoloe", folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(letters()), hidden_size=32, num_hidden_layers=1, projection_dim=16
    )
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"embeddings of 16 numbers, but .* compares 512"):
        load_critic("yoloe", folder, text=tmp_path)
    assert load_critic("yoloe", folder, text=text_folder).card.vocabulary is None


def test_mobileclips_text_encoder_is_read_from_an_openclip_file(
    models: Any, tmp_path: Path
) -> None:
    """Against PyTorch's own transformer, with the weights under the names that OpenCLIP gives them."""
    torch.manual_seed(0)
    width, length, tokenizer = 128, 16, letters()
    layer = nn.TransformerEncoderLayer(
        width, 2, 4 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
    )
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    words, places = torch.randn(len(tokenizer), width), torch.randn(length, width)
    last, projection = nn.LayerNorm(width), torch.randn(width, 512)
    inside = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "linear1": "mlp.c_fc",
        "linear2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    state = {
        "text.token_embedding.weight": words,
        "text.positional_embedding": places,
        "text.ln_final.weight": last.weight.detach(),
        "text.ln_final.bias": last.bias.detach(),
        "text.text_projection": projection,
        "visual.trunk.stem.weight": torch.zeros(1),
        "logit_scale": torch.zeros(1),
    }
    for key, value in body.state_dict().items():
        _, index, rest = key.split(".", 2)
        part, _, kind = rest.rpartition(".")
        name = f"{inside[part]}.{kind}" if part in inside else rest.replace("self_attn", "attn")
        state[f"text.transformer.resblocks.{index}.{name}"] = value
    save_file(state, tmp_path / "open_clip_model.safetensors")
    letters().save_pretrained(tmp_path / "tokenizer")
    save_text_encoder(
        tmp_path / "open_clip_model.safetensors", tmp_path / "text", tmp_path / "tokenizer"
    )
    critic = load_critic("yoloe", models("yoloe-11n")[2], text=tmp_path / "text")
    ids = torch.tensor([tokenizer("red apple")["input_ids"]])
    mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
    with torch.no_grad():
        seen = body(words[ids] + places[: ids.shape[1]], mask=mask)[:, -1]
        expected = F.normalize(last(seen) @ projection, dim=-1)
    torch.testing.assert_close(
        critic.prepare(["red apple"]).text["yolo"], expected, atol=1e-4, rtol=1e-4
    )
    del state["text.text_projection"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no text encoder .*text_projection"):
        save_text_encoder(tmp_path / "part.safetensors", tmp_path / "text", tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="none is missing"):
        save_text_encoder(tmp_path / "none", tmp_path / "text", tmp_path / "tokenizer")


# -- what blocks a gradient -------------------------------------------------------------------------


def test_a_version_that_detaches_the_branch_is_refused(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As releases before 8.4.190 do: the one-to-one branch sees features without their gradient."""
    published = heads.Detect.forward

    def detaching(self: Any, x: list[Tensor]) -> Any:
        if self.training:
            return published(self, x)
        alone = [features.detach() for features in x]
        return None, {
            "one2many": self.forward_head(x, **self.one2many),
            "one2one": self.forward_head(alone, **self.one2one),
        }

    monkeypatch.setattr(heads.Detect, "forward", detaching)
    with pytest.raises(
        CheckpointError,
        match=r"ultralytics \d+\.\d+\.\d+ blocks .*`pip install -U 'ultralytics>=.*one-to-one branch",
    ):
        load_critic("yolo", models("yolo26n")[2])


def test_a_version_that_answers_in_another_form_is_refused(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As releases before 8.4 do: a list of maps instead of scores and boxes by name."""
    published = heads.Detect.forward

    def as_list(self: Any, x: list[Tensor]) -> Any:
        found = published(self, x)
        return found if self.training else (found[0], [found[1]["scores"], found[1]["boxes"]])

    monkeypatch.setattr(heads.Detect, "forward", as_list)
    with pytest.raises(CheckpointError, match=r"answers in a form .*pip install -U"):
        load_critic("yolo", models("yolo11n")[2])


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_settings", [False, True], ids=["new", "user of ultralytics"])
def test_ultralytics_keeps_its_words_and_settings_to_itself(
    models: Any, tmp_path: Path, has_settings: bool
) -> None:
    """In a fresh interpreter of a user who has never used it, or has."""
    settings = tmp_path / ".config" / "Ultralytics" / "settings.json"
    if has_settings:
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(dict(ultralytics.settings)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code = f"""
import os, sys
import numpy, torch
from critics.detectors.yolo import load
before = dict(os.environ), repr(torch.ones(30) / 3), repr(numpy.ones(30) / 3)
load("yolo", {str(models("yolo11n")[2])!r})
assert "ultralytics" in sys.modules
assert before == (dict(os.environ), repr(torch.ones(30) / 3), repr(numpy.ones(30) / 3))
from ultralytics.utils import LOGGER
LOGGER.warning("a warning")
"""
    root = Path(critics.__file__).parents[1]
    places = {"HOME": str(tmp_path), "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)}
    hidden = ("YOLO_CONFIG_DIR", "YOLO_VERBOSE", "XDG_CONFIG_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | places
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and "a warning" in result.stderr
    assert "settings" not in result.stderr.lower()
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("name", CARDS)
def test_nothing_is_fetched(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"download a .pt file .*allow_pickle=True"):
        load_critic(name)


def test_a_pickle_is_read_with_consent_and_counts_as_its_folder_does(
    models: Any, tmp_path: Path
) -> None:
    model, critic, _ = models("yolo26n")
    path = tmp_path / "best.pt"
    torch.save({"ema": deepcopy(model).half(), "train_args": {"imgsz": SIDE}}, path)
    with pytest.raises(CheckpointError, match=r"is a pickle.*allow_pickle=True"):
        load_critic("yolo", path)
    found = load_critic("yolo", path, allow_pickle=True)
    assert found.card == critic.card
    images = noise(1, 3, SIDE, SIDE)
    mine, expected = (c(images, [c.prepare(NOUNS)]) for c in (found, critic))
    torch.testing.assert_close(mine.soft, expected.soft, rtol=0.05, atol=0.5)
    with pytest.raises(CheckpointError, match='for the critic "yolo", not for "yoloe"'):
        load_critic("yoloe", path, allow_pickle=True)


def test_a_version_without_a_restricted_loader_reads_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.pt"
    torch.save({}, path)
    monkeypatch.setattr("ultralytics.__version__", "8.3.241")
    with pytest.raises(CheckpointError, match=r"ultralytics 8.3.241 may run code .*pip install -U"):
        load_critic("yolo", path, allow_pickle=True)


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_pickle_runs_even_with_consent(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"model": Payload(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError, match="without running its code"):
        load_critic("yolo", path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="holds no model"):
        load_critic("yolo", path, allow_pickle=True)
    path.write_bytes(b"no pickle at all")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_critic("yolo", path, allow_pickle=True)
    with pytest.raises(CheckpointError, match="there is no file"):
        load_critic("yolo", tmp_path / "none.pt", allow_pickle=True)


def rewrite(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a folder whose config was changed."""
    target.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", "check_requirements"),
        ("layer", "torch_load"),
        ("layer", "TorchVision"),
        ("layer", "nn.Mystery"),
        ("layer", "DetectionModel"),
        ("layer", "torchvision.ops.MLP"),
        ("activation", "__import__('os').mkdir('ran')"),
        ("activation", "nn.SiLU(__import__('os').mkdir('ran'))"),
    ],
)
def test_a_config_can_name_layers_only(
    field: str, value: str, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def change(config: dict[str, Any]) -> None:
        if field == "layer":
            config["model"]["backbone"][1][2] = value
        else:
            config["model"]["activation"] = value

    with pytest.raises(CheckpointError, match="names what is no layer"):
        load_critic("yolo", rewrite(models("yolo11n")[2], tmp_path / "changed", change))
    assert not (tmp_path / "ran").exists()


def test_folders_that_do_not_fit_are_refused(models: Any, tmp_path: Path) -> None:
    folder, changed = models("yolo11n")[2], tmp_path / "changed"

    def with_head(config: dict[str, Any]) -> None:
        config["model"]["head"][-1] = [[16, 19, 22], 1, "RTDETRDecoder", ["nc"]]

    def with_a_gap(config: dict[str, Any]) -> None:
        config["model"]["backbone"][1][0] = 40

    for change, message in (
        (lambda config: config.update(kind="owl"), "describes 'owl', but 'ultralytics' is needed"),
        (lambda config: config.pop("model"), "lacks or misstates"),
        (lambda config: config.pop("names"), "lacks or misstates"),
        (lambda config: config["model"].update(nc="x"), "lacks or misstates"),
        (with_a_gap, "cannot build what"),
        (with_head, "there is the critic rt-detrv2"),
        (lambda config: config["model"].update(scale="none"), "cannot build what"),
        (lambda config: config["model"].update(nc=5), "of wrong shape"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_critic("yolo", rewrite(folder, changed, change))
    rewrite(folder, changed, lambda config: None)
    weights = changed / "model.safetensors"
    state = load_file(weights)
    state["odd"] = state.pop("model.0.conv.weight")
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"missing: model.0.conv.weight; 1 surplus: odd"):
        load_critic("yolo", changed)
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged"):
        load_critic("yolo", changed)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing.*save_folder"):
        load_critic("yolo", changed)


def test_models_that_were_changed_since_are_not_saved(models: Any, tmp_path: Path) -> None:
    fused = deepcopy(models("yolo11n")[0]).fuse(verbose=False)
    with pytest.raises(CheckpointError, match=r"fused.*take the model as it was trained"):
        save_folder(fused, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"Linear is no model of ultralytics .*take its .model"
    ):
        save_folder(nn.Linear(1, 1), tmp_path)
    assert not list(tmp_path.iterdir())


# -- trained ----------------------------------------------------------------------------------------

# 82,000 weights, the same parts as YOLO11 has; cells of 4 and 8 pixels, since the pictures have 64.
SMALL: dict[str, Any] = {
    "nc": len(NOUNS),
    "scales": {"n": [1, 1, 1024]},
    "scale": "n",
    "reg_max": 4,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C3k2", [32, False, 0.5]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "C3k2", [64, False, 0.5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3k2", [32, False, 0.5]],
        [[7, 4], 1, "Detect", ["nc"]],
    ],
}


@pytest.fixture(scope="module")
def trained() -> Any:
    """A critic that is trained with ultralytics' own loss. Its weights fall under AGPL-3.0: none is kept."""
    torch.manual_seed(0)
    model = tasks.DetectionModel(deepcopy(SMALL), verbose=False)
    model.names, model.args = dict(enumerate(NOUNS)), DEFAULT_CFG

    def loss(scenes: Scenes) -> Tensor:
        count = torch.tensor([len(boxes) for boxes in scenes.boxes])
        corners = torch.cat(scenes.boxes) / SIDE
        low, high = corners.split(2, -1)
        found, _ = model(
            {
                "img": scenes.images,
                "batch_idx": torch.arange(len(count)).repeat_interleave(count).float(),
                "cls": scenes.nouns.repeat_interleave(count).float(),
                "bboxes": torch.cat([(low + high) / 2, high - low], -1),
            }
        )
        return found.sum() / len(count)

    train(model, loss, steps=150, rate=5e-3)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, folder, side=SIDE)
        return load_critic("yolo", folder, overlap=0.5)


@pytest.mark.slow
def test_a_trained_yolo_counts_what_is_there_and_not_what_is_absent(trained: Any) -> None:
    held_out = draw(96, seed=7)
    asked = [trained.prepare([NOUNS[i]]) for i in held_out.nouns]
    found = trained(held_out.images, asked)
    for counts in (found.soft[:, 0], found.hard[:, 0]):
        mine, constant = errors(counts, held_out.counts)
        assert mine < 0.15 * constant, (mine, constant)
    others = [trained.prepare([NOUNS[(i + 1) % len(NOUNS)]]) for i in held_out.nouns]
    absent = trained(held_out.images, others)
    assert absent.soft.mean() < 0.2 and absent.hard.float().mean() < 0.2
    # One object more is counted as one more.
    seen = []
    for count in range(7):
        specs = [SceneSpec((("dog", count),)) for _ in range(12)]
        pictures = [
            compose(spec, 90 + i, SceneStyle(size=SIDE)).image for i, spec in enumerate(specs)
        ]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        seen.append(trained(images, [trained.prepare(["dog"])] * len(specs)).soft.mean().item())
    steps = np.diff(seen)
    assert (steps > 0.6).all() and (steps < 1.4).all(), seen


@pytest.mark.slow
def test_guidance_by_a_trained_yolo_moves_the_judges_count(trained: Any) -> None:
    """The pocket judge is of another family, trained on other data, and takes no part in the search."""
    counts = [("red apple", 8), ("dog", 6), ("cat", 7)]
    prompts = ["eight red apples", "six dogs", "seven cats"]
    pipeline = CountGuidedPipeline(load_adapter(), trained)
    judge = load_pocket_critic(ROLES["judge"])
    queries = [judge.prepare([noun]) for noun, _ in counts for _ in range(4)]
    wanted = torch.tensor([[n] for _, n in counts for _ in range(4)])
    wrong = {}
    for method in ("none", "noise"):
        found = pipeline(
            prompts, guidance=method, num_images_per_prompt=4, output_type="pt", budget=24, seed=11
        )
        with torch.no_grad():
            wrong[method] = (judge(found.images, queries).hard - wanted).abs().float().mean().item()
    assert wrong["noise"] < 0.5 * wrong["none"], wrong
