"""Loading by name, folder and hub id, and the one sentence for each thing that can go wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_contract import PROMPTS, generators
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from tiny_pipelines import sd_folder
from transformers.utils import logging as transformers_logging

from countgen import pocket
from pipelines.adapter import DiffusersAdapter
from pipelines.loading import LoadError
from pipelines.names import PRESET_NAMES
from pipelines.registry import cards, find_card, load_adapter, wrap


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_folder(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def picture(adapter: DiffusersAdapter) -> torch.Tensor:
    plan = adapter.plan(1, height=16, width=16)
    with torch.no_grad():
        noise = adapter.noise(generators(1), plan)
        return adapter.render(noise, adapter.encode(PROMPTS[:1], plan), plan)


def sentence(call: Callable[[], object], kind: type[Exception] = ValueError) -> str:
    """What a call is refused with: one line, without a full stop in its middle."""
    with pytest.raises(kind) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and ". " not in text
    return text


def test_a_folder_is_loaded_in_the_precision_that_is_asked_for(folder: Path) -> None:
    exact, half = load_adapter(folder), load_adapter(folder, dtype=torch.bfloat16)
    assert exact.card.hub_id == str(folder) and exact.card.license_weights == "unknown"
    for adapter, dtype in ((exact, torch.float32), (half, torch.bfloat16)):
        assert {p.dtype for m in adapter.modules() for p in m.parameters()} == {dtype}
    assert (picture(exact) - picture(half)).abs().mean() < 0.05


def test_files_of_a_variant(folder: Path, tmp_path: Path) -> None:
    """Half the size on the disk, and of any precision once loaded."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    exact = load_adapter(tmp_path, variant="fp16", dtype=torch.float32)
    half = load_adapter(tmp_path, variant="fp16", dtype=torch.float16)
    weights = [a.pipeline.unet.conv_in.weight for a in (exact, half)]
    assert [w.dtype for w in weights] == [torch.float32, torch.float16]
    assert torch.equal(weights[0], weights[1].float())
    torch.testing.assert_close(picture(exact), picture(load_adapter(folder)), atol=0.02, rtol=0)
    assert "variant 'fp16' alone; name it" in sentence(lambda: load_adapter(tmp_path), LoadError)
    assert "has no weights of the variant 'fp16'; leave the variant out" in sentence(
        lambda: load_adapter(folder, variant="fp16"), LoadError
    )


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    state = StableDiffusionPipeline.from_pretrained(copy).unet.state_dict()
    torch.save(state, weights.with_suffix(".bin"))
    weights.unlink()
    assert "pickled weights (.bin), which are not loaded" in sentence(
        lambda: load_adapter(copy), LoadError
    )


def test_a_pipeline_of_the_users_own(folder: Path) -> None:
    """Its adapter makes the same pictures, takes its size from the configuration, and shares its weights."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    adapter = wrap(pipeline)
    assert adapter.pipeline is pipeline and adapter.card.size == 16 and adapter.card.steps == 50
    torch.testing.assert_close(picture(adapter), picture(load_adapter(folder)), atol=1e-5, rtol=0)
    assert wrap(pipeline, find_card("sd-turbo"), memory_plan="low").memory.name == "low"
    assert (
        "an object of the class object cannot be wrapped: take a loaded Diffusers pipeline"
        in sentence(lambda: wrap(object()))
    )


def test_presets_can_be_told_apart() -> None:
    names = [card.name for card in cards()]
    assert len(set(names)) == len(names)
    for card in cards():
        assert find_card(card.name) is card and card.revision == ""
        assert card.license_code and card.license_weights and card.hub_id and card.citation


def test_an_unknown_name_gets_the_nearest() -> None:
    found = sentence(lambda: load_adapter("sdxl-turb"))
    assert "no model 'sdxl-turb' (did you mean sdxl-turbo?)" in found and "flux-schnell" in found


def test_an_unknown_memory_plan_is_refused_before_anything_is_loaded(folder: Path) -> None:
    for call in (
        lambda: load_adapter("someone/not-there", memory_plan="huge"),
        lambda: wrap(StableDiffusionPipeline.from_pretrained(folder), memory_plan="huge"),
    ):
        assert "must be \"auto\" or one of fast, balanced, low, not 'huge'" in sentence(call)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("LTXPipeline", "it makes videos, and only pictures are counted"),
        ("MyOwnPipeline", "diffusers has no pipeline class MyOwnPipeline"),
    ],
)
def test_a_class_is_refused_before_its_weights_are_read(copy: Path, name: str, reason: str) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    for path in copy.rglob("*.safetensors"):
        path.write_bytes(b"")
    assert reason in sentence(lambda: load_adapter(copy))


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("model_index.json", "model_index.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/"),
        ("text_encoder/model.safetensors", "text_encoder/"),
        ("unet/config.json", "unet/config.json"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json"),
        ("tokenizer/tokenizer.json", "tokenizer/tokenizer.json"),
        ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer_config.json"),
        ("vae", "vae"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_a_folder_that_lacks_something(copy: Path, missing: str, told: str) -> None:
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = sentence(lambda: load_adapter(copy), LoadError)
    assert told in found and "missing" in found and str(copy) in found


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "model_index.json",
        "vae/config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_file_that_was_cut_short(copy: Path, file: str) -> None:
    path = copy / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = sentence(lambda: load_adapter(copy), LoadError)
    assert found.startswith(file) and "is damaged" in found and "copy the folder again" in found


@pytest.mark.parametrize("text", ["null", "3", "[]", '"words"'])
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_json_that_is_no_object(copy: Path, file: str, text: str) -> None:
    (copy / file).write_text(text)
    assert sentence(lambda: load_adapter(copy), LoadError).startswith(file)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "in_channels", "four"),
        ("unet/config.json", "block_out_channels", 3),
        ("unet/config.json", "block_out_channels", [8, "a"]),
        ("unet/config.json", "act_fn", 5),
        ("unet/config.json", "freq_shift", None),
        ("unet/config.json", "freq_shift", [None]),
        ("unet/config.json", "freq_shift", [1, 2]),
        ("vae/config.json", "scaling_factor", "large"),
        ("vae/config.json", "scaling_factor", None),
        ("vae/config.json", "layers_per_block", 10**9),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
        ("scheduler/scheduler_config.json", "beta_start", "x"),
        ("scheduler/scheduler_config.json", "timestep_spacing", "x"),
        ("text_encoder/config.json", "num_hidden_layers", "two"),
        ("text_encoder/config.json", "hidden_size", 17),
        ("text_encoder/config.json", "max_position_embeddings", None),
        ("tokenizer/tokenizer_config.json", "model_max_length", 10**12),
        ("tokenizer/tokenizer_config.json", "model_max_length", "many"),
        ("tokenizer/tokenizer_config.json", "pad_token", "<other>"),
        ("tokenizer/tokenizer_config.json", "pad_token", None),
        ("model_index.json", "unet", ["diffusers"]),
        ("model_index.json", "unet", None),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_place(
    copy: Path, file: str, key: str, value: object
) -> None:
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    found = sentence(lambda: load_adapter(copy), LoadError)
    assert str(copy) in found and len(found) < 600
    assert file.split("/")[0] in found or key in found


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_tensor_is_not_drawn_at_random(copy: Path, part: str) -> None:
    (path,) = (copy / part).glob("*.safetensors")
    state = load_file(path)
    first = min(state)
    del state[first]
    save_file(state, path, {"format": "pt"})
    found = sentence(lambda: load_adapter(copy), LoadError)
    assert f"{first} is missing" in found and part in found


def test_pocket_is_loaded_as_strictly(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pocket.FOLDER / "generator", tmp_path / "generator"))
    path = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(path)
    del state[min(state)]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(pocket.PocketError, match="is missing"):
        pocket.load_generator(folder)


@pytest.mark.parametrize("file", ["weights.bin", "../weights.safetensors", "weights.safetensors"])
def test_an_index_of_weights_leads_to_safetensors_beside_it(copy: Path, file: str) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    torch.save(state, copy / "unet" / "weights.bin")
    weights.rename(copy / "unet" / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, file)}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    found = sentence(lambda: load_adapter(copy), LoadError)
    assert file in found and "unet" in found


def test_loading_leaves_settings_and_random_state_alone(folder: Path) -> None:
    libraries = (diffusers_logging, transformers_logging)

    def state() -> list[object]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            [(lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries],
            are_progress_bars_disabled(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
        ]

    for shown in (True, False):
        for lib in libraries:
            (lib.enable_progress_bar if shown else lib.disable_progress_bar)()
        before = state()
        load_adapter(folder)
        pocket.load_generator()
        pocket.load_clip()
        assert state() == before
    for lib in libraries:
        lib.enable_progress_bar()


def test_what_is_loaded_in_inference_mode_has_gradients(folder: Path) -> None:
    with torch.inference_mode():
        adapter = load_adapter(folder)
    plan = adapter.plan(1, height=16, width=16)
    noise = adapter.noise(generators(1), plan)
    noise.latents.requires_grad_()
    adapter.render(noise, adapter.encode(PROMPTS[:1], plan), plan).sum().backward()
    assert noise.latents.grad is not None and noise.latents.grad.abs().sum() > 0


def test_weights_without_values_are_refused(folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.to("meta")
    assert "meta device" in sentence(lambda: wrap(pipeline))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing"):
        assert "there is no folder" in sentence(lambda place=place: load_adapter(place), LoadError)


def test_a_hub_id_without_a_network(folder: Path) -> None:
    for call, name in (
        (lambda: load_adapter("someone/thing"), "someone/thing"),
        (lambda: load_adapter("flux-schnell"), "black-forest-labs/FLUX.1-schnell"),
        (lambda: load_adapter(folder, tiny_decoder="madebyollin/taesd"), "madebyollin/taesd"),
        (
            lambda: load_adapter(replace(find_card("sdxl-lightning"), hub_id=str(folder))),
            "ByteDance/SDXL-Lightning",
        ),
    ):
        found = sentence(call, LoadError)
        assert f"{name} is not on this machine" in found and f"`hf download {name}`" in found


def test_what_was_downloaded_is_loaded_without_a_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was downloaded by half is told, with the command that completes it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    for name in ("whole", "half"):
        home = tmp_path / f"models--someone--{name}"
        snapshot = Path(shutil.copytree(folder, home / "snapshots" / commit))
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(commit)
    adapter = load_adapter("someone/whole")
    assert adapter.card.name == "someone/whole"
    torch.testing.assert_close(picture(adapter), picture(load_adapter(folder)))
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    found = sentence(lambda: load_adapter("someone/half"), LoadError)
    assert "someone/half" in found and "`hf download someone/half`" in found


ANSWERS = {
    "someone/gated": (401, "GatedRepo"),
    "someone/refused": (403, "GatedRepo"),
    "someone/nothing": (404, "RepoNotFound"),
    "someone/private": (401, "RepoNotFound"),
    "someone/branch": (404, "RevisionNotFound"),
    "someone/words": (404, "EntryNotFound"),
}
"""What a hub says of a repository: status, and its own word for it."""


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status, word = next(
            (answer for name, answer in ANSWERS.items() if self.path.startswith(f"/{name}/")),
            (404, "RepoNotFound"),
        )
        self.send_response(status)
        self.send_header("X-Error-Code", word)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


def test_what_a_hub_refuses(tmp_path: Path) -> None:
    """A real server on this machine, asked by the real client in a process of its own."""
    code = (
        "import json, sys\n"
        "from countgen._torchvision import hide_unloadable_torchvision\n"
        "hide_unloadable_torchvision()\n"
        "from pipelines.registry import load_adapter\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        load_adapter(name, revision='odd')\n"
        "    except Exception as error:\n"
        "        print(json.dumps([name, type(error).__name__, str(error)]))\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        changes = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        run = subprocess.run(
            [sys.executable, "-c", code, *ANSWERS],
            env={**os.environ, **changes},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        server.shutdown()
    found = {name: (kind, text) for name, kind, text in map(json.loads, run.stdout.splitlines())}
    assert {kind for kind, _ in found.values()} == {"LoadError"} and len(found) == len(ANSWERS)
    assert all("\n" not in text for _, text in found.values())
    for name, told in (
        ("someone/gated", "someone/gated is gated: accept its licence at https://huggingface.co/"),
        ("someone/refused", "someone/refused is gated: accept its licence"),
        ("someone/nothing", "there is no model 'someone/nothing'"),
        ("someone/private", "log in with `hf auth login` if it is private"),
        ("someone/branch", "has no revision 'odd'"),
        ("someone/words", "does not hold model_index.json: is it a Diffusers pipeline?"),
    ):
        assert told in found[name][1]


def test_the_names_that_are_told_before_torch_are_those_of_the_presets() -> None:
    assert tuple(card.name for card in cards()) == PRESET_NAMES
