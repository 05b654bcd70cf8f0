"""What is wrong with weights, told apart; and the file that stands in two packages."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

import critics
import pipelines
from critics.loading.problems import Problem, damaged_file, hub_problem, index_problem, one_line


def test_both_packages_have_the_same_file() -> None:
    mine = Path(critics.__file__).parent / "loading" / "problems.py"
    theirs = Path(pipelines.__file__).parent / "problems.py"
    assert mine.read_text() == theirs.read_text()


def answer(
    kind: type[Exception], url: str = "https://hub/owner/model/resolve/main/a.json"
) -> Exception:
    return kind("told", response=httpx.Response(404, request=httpx.Request("GET", url)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer(errors.GatedRepoError), Problem("gated")),
        (answer(errors.RepositoryNotFoundError), Problem("no model")),
        (errors.HFValidationError("a/b/c"), Problem("no model")),
        (answer(errors.RevisionNotFoundError), Problem("no revision")),
        (answer(errors.RemoteEntryNotFoundError), Problem("no file", "a.json")),
        (answer(errors.HfHubHTTPError), Problem("offline")),
        (errors.LocalEntryNotFoundError("nothing"), Problem("offline")),
        (OSError("We couldn't connect to the hub"), Problem("offline")),
        (KeyError("hidden"), Problem("unreadable", "'hidden'")),
        (AttributeError(), Problem("unreadable", "AttributeError")),
        (ImportError("no scipy"), None),
        (MemoryError(), None),
    ],
)
def test_each_error_has_its_kind_and_so_has_what_was_raised_from_it(
    error: Exception, expected: Problem | None
) -> None:
    assert hub_problem(error, local=False) == expected
    if expected and expected.kind != "unreadable" and "couldn't" not in str(error):
        outer = RuntimeError("outside")
        outer.__cause__ = ValueError("between")
        outer.__cause__.__context__ = error
        error.__context__ = outer  # a circle must not hang it
        assert hub_problem(outer, local=False) == expected


def test_a_folder_is_never_offline() -> None:
    assert hub_problem(ConnectionError("reset"), local=True) == Problem("unreadable", "reset")


@pytest.mark.parametrize("text", ["null", "3", "[]", '"a"', "{", "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "part/tokenizer.json", "a.safetensors.index.json"])
def test_json_that_is_no_object_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "notes.json").write_text("[]")  # nobody reads it
    assert damaged_file(tmp_path) is None
    (tmp_path / name).write_text(text)
    path, wrong = damaged_file(tmp_path)
    assert path == tmp_path / name and wrong and "\n" not in wrong


def test_weights_that_are_cut_short_are_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    assert damaged_file(tmp_path) is None
    path.write_bytes(path.read_bytes()[:-3])
    assert damaged_file(tmp_path)[0] == path


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "model-1.safetensors"}}, ""),
        ({"weight_map": {"a": "model-1.safetensors", "b": "weights.bin"}}, "pickle"),
        ({"weight_map": {"a": "../model.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": None}}, "no file beside it"),
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": "model.safetensors"}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_an_index_leads_to_safetensors_beside_it(
    tmp_path: Path, index: dict[str, object], message: str
) -> None:
    assert message in index_problem(index) and bool(message) == bool(index_problem(index))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (damaged_file(tmp_path) is not None) == bool(message)


def test_what_an_error_says_stays_on_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert len(one_line(ValueError("x" * 5000))) == 300
