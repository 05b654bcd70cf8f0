"""The configs of critics that are trained here: each value that is read is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from countgen.pocket import FOLDER
from critics.base import Critic
from critics.density.blockwise import BlockwiseCounter
from critics.detectors import dense, heatmap
from critics.loading.checkpoint import CheckpointError

LOADERS: dict[str, Callable[[Path, str], Critic]] = {
    "detector-a": heatmap.load,
    "detector-b": dense.load,
    "density": BlockwiseCounter.from_pretrained,
}
CURE = "Do this."
# Values that no field takes, and for each field those of its own type that make no sense.
WRONG: tuple[Any, ...] = (None, "many", [], {}, True, [None], -3, float("nan"))
NONSENSE: dict[str, tuple[Any, ...]] = {
    "threshold": (0.0, 1.5),
    "overlap": (-0.5, 2.0),
    "anchors": ([1.0], ["a", "b", "c", "d"]),
    "temperature": (0.0, "1"),
    "vocabulary": ("cat", [1, 2]),
    "width": (4.5, 10**15),
}


@pytest.fixture(params=LOADERS)
def critic(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[], str]]:
    """A folder, and what is said of it when it is refused."""
    folder = shutil.copytree(FOLDER / request.param, tmp_path / "critic")
    load = LOADERS[request.param]
    load(folder, CURE)  # or everything would be refused for another reason

    def refused() -> str:
        with pytest.raises(CheckpointError) as told:
            load(folder, CURE)
        assert "\n" not in str(told.value) and str(folder) in str(told.value)
        return str(told.value)

    return folder, refused


def test_wrong_values_are_refused_by_name(critic: tuple[Path, Callable[[], str]]) -> None:
    folder, refused = critic
    path = folder / "config.json"
    config = json.loads(path.read_text())
    read = {
        "width",
        "embedding",
        "vocabulary",
        "anchors",
        "temperature",
        "threshold",
        "overlap",
        "card",
    }
    tried = 0
    for key in read & config.keys():
        for value in (*WRONG, *NONSENSE.get(key, ())):
            path.write_text(json.dumps(config | {key: value}))
            told = refused()
            assert told.endswith(CURE), told
            tried += 1
        path.write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        assert f"({key} is missing)" in refused()
    assert tried >= 4 * len(WRONG)


def test_wrong_values_of_the_card_are_refused_by_name(
    critic: tuple[Path, Callable[[], str]],
) -> None:
    folder, refused = critic
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("name", "family", "input_size", "parameters"):
        for value in (None, [], {}, True, 0.5):
            path.write_text(json.dumps(config | {"card": config["card"] | {key: value}}))
            assert f"({key}: " in refused()
    path.write_text(json.dumps(config | {"card": config["card"] | {"input_size": 0}}))
    assert "input_size" in refused()


@pytest.mark.parametrize("text", ["null", "3", "[]", "{}", "{", ""])
def test_what_is_no_config_is_refused(critic: tuple[Path, Callable[[], str]], text: str) -> None:
    folder, refused = critic
    (folder / "config.json").write_text(text)
    assert "config.json" in refused()


def test_one_missing_tensor_is_told(critic: tuple[Path, Callable[[], str]]) -> None:
    folder, refused = critic
    state = load_file(folder / "model.safetensors")
    lost = sorted(state)[0]
    del state[lost]
    save_file(state, folder / "model.safetensors")
    assert f"1 missing: {lost}" in refused()
