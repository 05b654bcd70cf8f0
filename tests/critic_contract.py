"""What every critic promises, on a tiny random model of its real classes; subclassed once a critic.

A subclass of ``CriticContract`` has a class- or module-scoped fixture ``critic``, loaded from a folder in the
hub's layout, and ``nouns``: three that it knows. One of ``LoadingContract``, of ``ConfigContract`` where the
folder's config is read, or of ``HubContract`` where weights come from the hub, has a fixture ``saved``: name
and folder. Critics that were trained on pocket's scenes promise more: ``TrainedCounterContract``.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.utils
import jaxtyping
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from countgen import CountGuidedPipeline
from countgen.engine.policy import BestOfN, DrawThenImprove
from countgen.guidance.methods import Method
from countgen.guidance.objectives import SoftCount
from countgen.pocket import ROLES, load_adapter
from countgen.pocket import load_critic as load_pocket
from countgen.pocket.scenes import SceneSpec, SceneStyle, compose
from countgen.pocket.world import NAMES, NOUNS
from critics.base import (
    Critic,
    NonFiniteCountError,
    NonFiniteImageError,
    Query,
    UnknownNounError,
)
from critics.loading.checkpoint import CheckpointError
from critics.registry import load_critic
from pipelines.base import PipelineAdapter


@contextmanager
def default_dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


WRONG_BATCHES = (
    (torch.zeros(2, 3, 64, 64), ValueError, "2 images and 1 queries"),
    (torch.full((1, 3, 64, 64), 255.0), ValueError, "divide 8-bit images by 255"),
    (torch.full((1, 3, 64, 64), -1.0), ValueError, r"\[-1, 1\]"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, r"in \[0, 1\], not torch\.uint8"),
    (torch.zeros(3, 64, 64), ValueError, r"\(batch, 3, height, width\), not \(3, 64, 64\)"),
    (torch.zeros(1, 1, 64, 64), ValueError, r"\(batch, 3, height, width\), not \(1, 1, 64, 64\)"),
    (torch.full((1, 3, 64, 64), torch.nan), NonFiniteImageError, "not finite in image 0"),
    (torch.full((1, 3, 64, 64), torch.inf), NonFiniteImageError, "not finite in image 0"),
    (torch.zeros(1, 3, 64, 64, device="meta"), ValueError, "'meta' have no values"),
)
"""Batches that would be counted wrongly, and what is said of each."""


class BatchContract:
    """Wrong pictures are refused by all critics alike. ``nouns``: some that the critic knows."""

    nouns: tuple[str, ...]

    @pytest.mark.parametrize(("images", "error", "message"), WRONG_BATCHES)
    def test_wrong_batches_are_refused_in_one_sentence(
        self,
        critic: Critic,
        images: Tensor,
        error: type[Exception],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # The shape checks that tests run under would be faster than the critic's own.
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        with pytest.raises(error, match=message) as told:
            critic(images, [critic.prepare(self.nouns[:1])])
        assert "\n" not in str(told.value)


class CriticContract(BatchContract):
    """Holds for every critic, trained or not."""

    nouns: tuple[str, str, str]
    size = (64, 64)

    def images(self, count: int, seed: int = 0) -> Tensor:
        return noise(count, 3, *self.size, seed=seed)

    def test_shapes_types_and_masks(self, critic: Critic) -> None:
        one, two, three = self.nouns
        found = critic(self.images(2), [critic.prepare([one]), critic.prepare([two, three])])
        assert found.soft.shape == found.hard.shape == found.mask.shape == (2, 2)
        assert found.soft.dtype == torch.float32 and found.hard.dtype == torch.int64
        assert found.mask.tolist() == [[True, False], [True, True]]
        assert found.hard[0, 1] == 0 and found.soft[0, 1] == 0
        assert not found.hard.requires_grad and torch.isfinite(found.soft).all()
        assert found.confidence.shape == (2, 2)

    @pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
    def test_the_pixel_gradient_is_finite_and_not_zero_on_flat_pictures(
        self, critic: Critic, level: float
    ) -> None:
        images = torch.full((1, 3, *self.size), level, requires_grad=True)
        critic(images, [critic.prepare(self.nouns[:1])]).soft.sum().backward()
        assert images.grad is not None and torch.isfinite(images.grad).all()
        assert images.grad.abs().sum() > 0

    def test_an_image_counts_the_same_alone_and_in_a_mixed_batch(self, critic: Critic) -> None:
        one, two, three = self.nouns
        queries = [critic.prepare(nouns) for nouns in ([one], [two, three], [three])]
        images = self.images(3)
        together = critic(images, queries)
        for i, query in enumerate(queries):
            alone = critic(images[i : i + 1], [query])
            k = len(query.nouns)
            torch.testing.assert_close(alone.soft[0], together.soft[i, :k], rtol=1e-4, atol=1e-5)
            assert torch.equal(alone.hard[0], together.hard[i, :k])

    def test_the_gradient_of_an_image_is_its_own(self, critic: Critic) -> None:
        query = critic.prepare(self.nouns[:1])
        images = self.images(2).requires_grad_()
        (grad,) = torch.autograd.grad(critic(images, [query, query]).soft[0].sum(), images)
        assert grad[0].abs().sum() > 0 and grad[1].abs().sum() == 0

    def test_counting_changes_no_state_and_repeats_exactly(self, critic: Critic) -> None:
        network = critic.network
        before = {key: value.clone() for key, value in network.state_dict().items()}
        images, query = self.images(1), critic.prepare(self.nouns[:2])
        first = critic(images, [query]).soft
        assert torch.equal(first, critic(images, [query]).soft)
        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad for p in network.parameters())

    def test_it_has_a_gradient_after_a_call_in_inference_mode(self, critic: Critic) -> None:
        with torch.inference_mode():
            query = critic.prepare(self.nouns[:1])
            critic(self.images(1), [query])
        images = self.images(1).requires_grad_()
        critic(images, [query]).soft.sum().backward()
        assert images.grad is not None and images.grad.abs().sum() > 0

    def test_half_precision_pictures_give_float32_counts(self, critic: Critic) -> None:
        images = self.images(1).to(torch.bfloat16).requires_grad_()
        found = critic(images, [critic.prepare(self.nouns[:1])])
        assert found.soft.dtype == torch.float32
        found.soft.sum().backward()
        assert images.grad is not None and torch.isfinite(images.grad).all()

    @pytest.mark.parametrize("size", [(48, 48), (64, 112), (120, 72), (256, 256)])
    def test_any_size_and_aspect_ratio_is_counted(
        self, critic: Critic, size: tuple[int, int]
    ) -> None:
        images = noise(1, 3, *size).requires_grad_()
        critic(images, [critic.prepare(self.nouns[:1])]).soft.sum().backward()
        assert images.grad is not None and images.grad.shape == images.shape
        assert images.grad.abs().sum() > 0

    def test_the_rows_of_pictures_that_are_not_finite_are_named(self, critic: Critic) -> None:
        """A single pixel is enough, and the critic still works afterwards."""
        images, query = self.images(3), critic.prepare(self.nouns[:1])
        before = critic(images, [query] * 3).hard
        broken = images.clone()
        broken[0, 1, 5, 7], broken[2, 0, 0, 0] = torch.nan, -torch.inf
        with pytest.raises(NonFiniteImageError, match="images 0, 2 of the batch") as told:
            critic(broken, [query] * 3)
        assert told.value.rows == (0, 2)
        assert pickle.loads(pickle.dumps(told.value)).rows == (0, 2)
        assert torch.equal(critic(images, [query] * 3).hard, before)

    def test_a_network_that_gives_no_numbers_is_told(self, critic: Critic) -> None:
        """As one that overflows in half precision; its silence would pass for "none of these"."""
        broken = deepcopy(critic)
        with torch.no_grad():
            for weight in broken.network.parameters():
                weight.fill_(torch.nan)
        with pytest.raises(NonFiniteCountError, match="image 0"):
            broken(self.images(1), [critic.prepare(self.nouns[:1])])

    def test_autocast_changes_nothing(self, critic: Critic) -> None:
        images = self.images(1).requires_grad_()
        expected = critic(images, [critic.prepare(self.nouns[:1])]).soft
        with torch.autocast("cpu", torch.bfloat16):
            found = critic(images, [critic.prepare(self.nouns[:1])]).soft
            (grad,) = torch.autograd.grad(found.sum(), images)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0

    def test_another_default_type_of_new_tensors_changes_nothing(self, critic: Critic) -> None:
        images = self.images(1)
        expected = critic(images, [critic.prepare(self.nouns[:2])])
        with default_dtype(torch.float64):
            found = critic(images, [critic.prepare(self.nouns[:2])])
            assert torch.get_default_dtype() == torch.float64
            wide = critic(images.double(), [critic.prepare(self.nouns[:2])])
        assert found.soft.dtype == wide.soft.dtype == torch.float32
        assert torch.equal(found.soft, expected.soft) and torch.equal(found.hard, expected.hard)
        torch.testing.assert_close(wide.soft, expected.soft, rtol=1e-4, atol=1e-5)

    def test_pictures_that_were_made_in_inference_mode_are_counted(self, critic: Critic) -> None:
        query = critic.prepare(self.nouns[:1])
        with torch.inference_mode():
            images = self.images(1)
        assert torch.equal(critic(images, [query]).hard, critic(images.clone(), [query]).hard)

    def test_pictures_on_another_device_are_told(self, critic: Critic) -> None:
        """The device without memory stands for a GPU here."""
        moved = deepcopy(critic).to("meta")
        with pytest.raises(ValueError, match=r"on the device meta.*images are on cpu"):
            moved(self.images(1), [critic.prepare(self.nouns[:1])])

    def test_it_can_be_moved_and_is_itself(self, critic: Critic) -> None:
        with torch.inference_mode():
            assert critic.to("cpu") is critic
        assert not any(weight.is_inference() for weight in critic.network.parameters())

    def test_it_can_be_pickled_with_its_queries(self, critic: Critic) -> None:
        images, query = self.images(1), critic.prepare(self.nouns[:2])
        try:
            pickle.dumps(critic.network)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            pytest.skip(f"its network cannot be pickled by itself: {error}")
        again, asked = pickle.loads(pickle.dumps((critic, query)))
        torch.testing.assert_close(again(images, [asked]).soft, critic(images, [query]).soft)
        assert again.card == critic.card

    def test_an_empty_batch_has_no_counts(self, critic: Critic) -> None:
        assert critic(self.images(0), []).soft.shape == (0, 0)

    def test_queries_of_another_critic_are_told(self, critic: Critic) -> None:
        foreign = Query(self.nouns[:1], text={"stranger": torch.zeros(1, 3)})
        with pytest.raises(ValueError, match="prepared by another critic"):
            critic(self.images(1), [foreign])

    def test_nouns_that_are_too_long_are_refused_not_cut(self, critic: Critic) -> None:
        with pytest.raises(ValueError) as told:
            critic.prepare([f"{'very ' * 3000}red apple"])
        assert "\n" not in str(told.value)

    def test_no_noun_at_all_gives_no_count(self, critic: Critic) -> None:
        found = critic(self.images(2), [critic.prepare([]), critic.prepare([])])
        assert found.soft.shape == (2, 0)

    def test_prepared_text_is_reused_and_nouns_keep_their_order(self, critic: Critic) -> None:
        one, two, _ = self.nouns
        images = self.images(1)
        both = critic(images, [critic.prepare([one, two])])
        swapped = critic(images, [critic.prepare([two, one])])
        torch.testing.assert_close(both.soft, swapped.soft.flip(1), rtol=1e-4, atol=1e-5)

    def test_nouns_that_it_cannot_look_for_are_refused(self, critic: Critic) -> None:
        with pytest.raises(UnknownNounError):
            critic.prepare([self.nouns[0], "  "])
        for known in critic.card.vocabulary or ():
            with pytest.raises(UnknownNounError, match=f"cannot see '{known}zz'; .*{known}"):
                critic.prepare([f"{known}zz"])

    def test_the_card_says_what_it_is(self, critic: Critic) -> None:
        card = critic.card
        assert card.name == card.name.lower() and card.family and card.summary
        assert card.license_code and card.license_weights and card.citation
        assert card.input_size > 0


# -- weights that are wrong -------------------------------------------------------------------------


class LoadingContract:
    """What every family says of wrong weights: one sentence that names what is wrong and where.

    ``saved`` is the name of a critic and a folder that it is loaded from with ``options``.
    """

    def options(self) -> dict[str, Any]:
        return {}

    def refused(self, name: str, source: str | Path) -> str:
        with pytest.raises(CheckpointError) as told:
            load_critic(name, source, **self.options())
        assert "\n" not in str(told.value)
        return str(told.value)

    def test_it_loads_as_it_was_saved(self, saved: tuple[str, Path]) -> None:
        """Or everything below would be refused for another reason."""
        name, folder = saved
        assert load_critic(name, folder, **self.options()).card.name == name

    def test_loading_leaves_the_process_as_it_was(self, saved: tuple[str, Path]) -> None:
        def settings() -> list[Any]:
            return [
                torch.get_rng_state().tolist(),
                random.getstate(),
                np.random.get_state()[1].tolist(),
                torch.get_default_dtype(),
                torch.is_grad_enabled(),
                transformers.utils.logging.get_verbosity(),
                transformers.utils.logging.is_progress_bar_enabled(),
                huggingface_hub.utils.are_progress_bars_disabled(),
                [
                    logging.getLogger(name).level
                    for name in (None, "transformers", "huggingface_hub")
                ],
                repr(torch.tensor([1 / 3, 1e-9])),
                repr(np.array([1 / 3, 1e-9])),
                dict(os.environ),
            ]

        options = self.options()
        before = settings()
        load_critic(*saved, **options)
        assert settings() == before

    @pytest.mark.parametrize("mode", ["inference", "float64"])
    def test_it_loads_in_any_mode_and_has_a_gradient_afterwards(
        self, saved: tuple[str, Path], mode: str
    ) -> None:
        context = torch.inference_mode() if mode == "inference" else default_dtype(torch.float64)
        options = self.options()
        with context:
            critic = load_critic(*saved, **options)
        weights = list(critic.network.parameters())
        assert not any(weight.is_inference() or weight.dtype == torch.float64 for weight in weights)

    def test_one_missing_tensor_is_told(self, saved: tuple[str, Path], tmp_path: Path) -> None:
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        state = load_file(folder / "model.safetensors")
        # Not of a training loss, and no buffer that is computed anew.
        keys = [k for k in sorted(state) if k.endswith("weight") and "criterion" not in k]
        lost = keys[len(keys) // 2]
        del state[lost]
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        told = self.refused(name, folder)
        # By its name in the model, which may be newer than that in the file.
        assert "1 missing: " in told and ".".join(lost.split(".")[-2:]) in told

    @pytest.mark.parametrize("kind", [Path, str])
    def test_a_missing_folder_is_named(
        self, saved: tuple[str, Path], tmp_path: Path, kind: type
    ) -> None:
        assert f"no folder {tmp_path}/nowhere" in self.refused(saved[0], kind(tmp_path / "nowhere"))

    def test_a_missing_file_is_named(self, saved: tuple[str, Path]) -> None:
        assert "there is no file elsewhere/best.pth" in self.refused(saved[0], "elsewhere/best.pth")

    def test_damaged_weights_are_told(self, saved: tuple[str, Path], tmp_path: Path) -> None:
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        told = self.refused(name, folder)
        assert "damaged" in told and str(folder) in told

    def test_missing_weights_are_told_and_a_pickle_is_not_read_for_them(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        told = self.refused(name, folder)
        assert "model.safetensors" in told and "pickle" not in told
        torch.save(state, folder / "pytorch_model.bin")
        assert "pytorch_model.bin is a pickle" in self.refused(name, folder)

    def test_a_pickle_by_its_own_name_is_not_read(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "weights.pth"
        torch.save({"weight": torch.zeros(2)}, path)
        assert f"{path} is a pickle" in self.refused(saved[0], path)

    def test_keys_and_shapes_that_do_not_fit_are_listed(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        state = load_file(folder / "model.safetensors")
        lost, bent = (key for key in sorted(state)[-2:])
        state["stranger"] = state.pop(lost)
        state[bent] = torch.cat([state[bent], state[bent]])
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        told = self.refused(name, folder)
        assert f"missing: {lost}" in told and "surplus: stranger" in told
        assert f"1 of wrong shape: {bent}" in told


class ConfigContract(LoadingContract):
    """And what those say whose folders have configs that are read."""

    @pytest.mark.parametrize("text", ["null", "3", "[]", '"words"', "{", ""])
    def test_a_config_that_is_no_object_is_named(
        self, saved: tuple[str, Path], tmp_path: Path, text: str
    ) -> None:
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        for path in sorted(folder.glob("*.json")):
            kept = path.read_text()
            path.write_text(text)
            assert str(path) in self.refused(name, folder)
            path.write_text(kept)

    # How many values of config.json are tried; more in a config of our own, which is small and all read.
    every_nth_value = 1

    @pytest.mark.parametrize("value", [None, "many", [], {}, True])
    def test_a_value_of_a_wrong_type_is_told_or_not_read(
        self, saved: tuple[str, Path], tmp_path: Path, value: Any
    ) -> None:
        """In place of one value of config.json after the other."""
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        path = folder / "config.json"
        config = json.loads(path.read_text())
        told = 0
        for key in sorted(config)[:: self.every_nth_value]:
            path.write_text(json.dumps(config | {key: value}))
            try:
                load_critic(name, folder, **self.options())
            except CheckpointError as error:
                told += 1
                assert str(folder) in str(error) and "\n" not in str(error)
        assert told or self.every_nth_value > 1


class TokenizerContract:
    """What those say of a wrong tokenizer that read text. ``saved`` as of ``LoadingContract``."""

    def folder_without(self, saved: Path, place: Path, *patterns: str) -> Path:
        folder = shutil.copytree(saved, place / "copy")
        found = [path for pattern in patterns for path in folder.glob(pattern)]
        assert found
        for path in set(found):
            path.unlink()
        return folder

    def test_without_a_tokenizer_nothing_is_counted(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        """``transformers`` makes one of a few special tokens in its place."""
        files = ("*token*", "vocab.*", "merges.txt")
        folder = self.folder_without(saved[1], tmp_path, *files)
        with pytest.raises(
            CheckpointError, match=r"tokenizer in|Tokenizer cannot be loaded"
        ) as told:
            load_critic(saved[0], folder)
        assert str(folder) in str(told.value) and "\n" not in str(told.value)

    def test_without_the_tokenizers_config_it_reads_the_same_or_is_refused(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        folder = self.folder_without(saved[1], tmp_path, "tokenizer_config.json")
        nouns = ["cat", "red apple"]
        try:
            found = load_critic(saved[0], folder).prepare(nouns).text
        except CheckpointError as error:
            assert str(folder) in str(error)
            return
        expected = load_critic(*saved).prepare(nouns).text
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_an_absurd_length_in_the_tokenizers_config_changes_nothing(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(saved[1], tmp_path / "copy")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**12}))
        nouns = ["cat", "red apple"]
        found = load_critic(saved[0], folder).prepare(nouns).text
        expected = load_critic(*saved).prepare(nouns).text
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_a_tokenizer_without_padding_is_told_or_pads_as_before(
        self, saved: tuple[str, Path], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(saved[1], tmp_path / "copy")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
        nouns = ["cat", "red apple"]
        try:
            found = load_critic(saved[0], folder).prepare(nouns).text
        except CheckpointError as told:
            assert "pad_token" in str(told) or "tokenizer" in str(told).lower()
            return
        expected = load_critic(*saved).prepare(nouns).text
        assert all(torch.equal(found[key], expected[key]) for key in expected)


class _Hub(BaseHTTPRequestHandler):
    """Answers every question as the hub does about a model that one may not have."""

    def do_GET(self) -> None:
        code, word = {
            "gated": (403, "GatedRepo"),
            "locked": (401, "GatedRepo"),
            "nothing": (401, "RepoNotFound"),
            "older": (404, "RevisionNotFound"),
            "empty": (404, "EntryNotFound"),
        }[next(part for part in self.path.split("/") if part in _MODELS)]
        self.send_response(code)
        self.send_header("X-Error-Code", word)
        self.send_header("X-Error-Message", "as the hub explains it")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


_MODELS = ("gated", "locked", "nothing", "older", "empty")


class HubContract(ConfigContract):
    """And what those say whose weights are on the hub, or in a folder in the hub's layout."""

    every_nth_value = 8

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("pytorch_model.bin", "pickle"),
            ("../model.safetensors", "no file beside it"),
            (7, "no file beside it"),
        ],
    )
    def test_an_index_that_leads_elsewhere_is_refused(
        self, saved: tuple[str, Path], tmp_path: Path, file: Any, message: str
    ) -> None:
        name, folder = saved[0], shutil.copytree(saved[1], tmp_path / "copy")
        state = load_file(folder / "model.safetensors")
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, file)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        told = self.refused(name, folder)
        assert "model.safetensors.index.json" in told and message in told

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        """A server on this machine in the hub's place, and an empty cache."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        constants, place = huggingface_hub.constants, f"http://127.0.0.1:{server.server_port}"
        path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "ENDPOINT", place)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + path)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield
        server.shutdown()
        server.server_close()

    @pytest.mark.parametrize("model", ["gated", "locked"])
    def test_gated_weights_name_the_page_and_how_to_log_in(
        self, saved: tuple[str, Path], hub: None, model: str
    ) -> None:
        told = self.refused(saved[0], f"owner/{model}")
        assert "is gated" in told and "`hf auth login`" in told
        assert f"https://huggingface.co/owner/{model} " in told

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("nothing", "no model 'owner/nothing', neither as a folder nor at https"),
            ("older", "has no revision 'main'"),
            ("empty", "cannot be loaded from https://huggingface.co/owner/empty"),
        ],
    )
    def test_what_the_hub_has_not_is_told_apart(
        self, saved: tuple[str, Path], hub: None, model: str, message: str
    ) -> None:
        assert message in self.refused(saved[0], f"owner/{model}")

    def test_a_model_that_is_not_here_is_told_when_the_hub_cannot_be_asked(
        self, saved: tuple[str, Path]
    ) -> None:
        told = self.refused(saved[0], "owner/elsewhere")
        assert re.match("owner/elsewhere is not on this machine and the hub cannot be reach", told)


# -- weights that were trained ----------------------------------------------------------------------


class TrainedCounterContract:
    """Holds for a critic whose weights learned pocket's scenes.

    Attributes:
        nouns: that it learned.
        style, ground: of the scenes that it learned; None for any background.
        ghosts: most that an absent noun may count on average.
        rise: least that one more object must add on average.
    """

    nouns: tuple[str, ...]
    style = SceneStyle()
    ground: str | None = None
    ghosts, rise = 0.3, 0.3

    def scene(self, noun: str, count: int, seed: int) -> Tensor:
        """(3, 64, 64) in [0, 1]."""
        image = compose(SceneSpec(((noun, count),), self.ground), seed, self.style).image
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        """Networks this small only make a second thread wait."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @torch.no_grad()
    def test_an_absent_noun_counts_about_zero(self, critic: Critic) -> None:
        images, absent, present = [], [], []
        for i in range(24):
            noun = self.nouns[i % len(self.nouns)]
            images.append(self.scene(noun, 2 + i % 6, i))
            present.append(critic.prepare([noun]))
            absent.append(critic.prepare([other for other in self.nouns if other != noun]))
        assert critic(torch.stack(images), absent).soft.mean() < self.ghosts
        # Not for blindness: there are 4.5 on average.
        assert critic(torch.stack(images), present).soft.mean() > 3

    @torch.no_grad()
    def test_adding_an_object_raises_the_count(self, critic: Critic) -> None:
        """On average over scenes of each number: the other objects do not stay where they are."""
        noun, most, scenes = self.nouns[0], 6, 8
        images = [self.scene(noun, n, seed) for n in range(1, most + 1) for seed in range(scenes)]
        found = critic(torch.stack(images), [critic.prepare([noun])] * len(images)).soft
        assert (found.view(most, scenes).mean(1).diff() > self.rise).all()

    def test_guidance_with_it_moves_the_judges_count(self, critic: Critic) -> None:
        """In two sampling steps, after which plain pictures lack most of their objects.

        A counter of another family judges: pocket's judge, or detector A where the judge itself guides.
        """
        wanted = [(self.nouns[i % len(self.nouns)], 3 + i % 4) for i in range(9)]
        prompts = [f"{count} {NOUNS[NAMES.index(noun)].plural}" for noun, count in wanted]
        mine = critic.card.families
        judge = next(
            counter
            for counter in map(load_pocket, (ROLES["judge"], ROLES["critic"]))
            if not counter.card.families & mine
        )
        queries = [judge.prepare([noun]) for noun, _ in wanted]
        pipeline = CountGuidedPipeline(_adapter(), critic)
        errors = []
        for policy in (BestOfN(1), DrawThenImprove(draws=1, steps=10, candidates=1)):
            made = pipeline(
                prompts,
                targets=[{noun: count} for noun, count in wanted],
                guidance=Method("same noises", "", policy, SoftCount()),
                num_inference_steps=2,
                budget=1e6,
                output_type="pt",
            )
            hard = judge(torch.as_tensor(made.images), queries).hard[:, 0].tolist()
            pairs = zip(hard, wanted, strict=True)
            errors.append(sum(abs(found - count) for found, (_, count) in pairs) / len(wanted))
        assert errors[1] < 0.75 * errors[0], errors


@cache
def _adapter() -> PipelineAdapter:
    return load_adapter()
