"""Run folders: what is kept and mended, and who may write to them."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from countgen.evaluation.folder import (
    Results,
    RunError,
    RunFolder,
    cut_tail,
    picture_key,
    picture_name,
)
from countgen.evaluation.queue import BusyError, Queue


def row(prompt: str, image: int = 0) -> dict:
    return {
        "method": "none",
        "id": prompt,
        "image": image,
        "prompt": "two cats",
        "nouns": ["cat"],
        "wanted": [2],
        "picture": picture_name("none", prompt, image),
    }


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", {"model": "pocket", "seed": 0})
    folder.path.mkdir()
    folder.begin({"device": "cpu"})
    return folder


@contextmanager
def results(folder: RunFolder, rank: int = 0) -> Iterator[Results]:
    opened = Results(folder, rank)
    try:
        yield opened
    finally:
        opened.close()


def ids(folder: RunFolder) -> list[str]:
    return [found["id"] for found in folder.rows()]


def test_a_row_is_there_with_its_picture(folder: RunFolder) -> None:
    with results(folder) as own:
        own.append(row("a"), b"picture")
        own.append(row("b"), b"picture")
    again = RunFolder(folder.path, folder.config)
    again.look()
    assert ids(again) == ["a", "b"]
    assert again.done == {picture_key("none", "a", 0), picture_key("none", "b", 0)}
    assert (folder.path / row("b")["picture"]).read_bytes() == b"picture"


def test_what_a_kill_leaves_is_mended(folder: RunFolder) -> None:
    with results(folder) as own, results(folder, 1) as other:
        for name in "abc":
            own.append(row(name), b"picture")
        other.append(row("c"), b"picture")  # a double
        other.append(row("d"), b"picture")
    path = folder.path / "results.rank0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 5])
    (folder.path / row("b")["picture"]).unlink()
    partial = folder.path / "pictures" / "none" / ".countgen-0123456789abcdef.partial"
    partial.write_bytes(b"half")
    folder.mend()
    assert ids(folder) == ["a", "c", "d"] and not partial.exists()
    assert path.read_bytes().endswith(b"\n")
    with results(folder) as own:
        own.append(row("b"), b"picture")
    assert ids(folder) == ["a", "c", "b", "d"]


@pytest.mark.parametrize("cut", [1, 5, 4095, 4096, 4097, 9000])
def test_a_cut_line_of_any_length_is_dropped(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for whole in (b"", b"one\n", b"x" * 5000 + b"\n"):
        path.write_bytes(whole + b"y" * cut)
        cut_tail(path)
        assert path.read_bytes() == whole


def test_a_full_disk_takes_back_the_row_that_did_not_fit(folder: RunFolder) -> None:
    with results(folder) as own:
        own.append(row("a"), b"picture")
        before = own.path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (own.size + 20, hard))
        try:
            with pytest.raises(OSError, match=r"results\.rank0\.jsonl"):
                own.append(row("b"), b"picture")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert own.path.read_bytes() == before
        own.append(row("b"), b"picture")
    assert ids(folder) == ["a", "b"]


def test_other_settings_layouts_and_files_are_refused(folder: RunFolder, tmp_path: Path) -> None:
    folder.check()
    with pytest.raises(RunError, match="seed 0 there, 1 here"):
        RunFolder(folder.path, {"model": "pocket", "seed": 1}).check()
    path = folder.path / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"schema": 99}))
    with pytest.raises(RunError, match="layout 99"):
        folder.check()
    path.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        folder.check()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(RunError, match=r"letter\.txt"):
        RunFolder(tmp_path / "mine", folder.config).check()
    with pytest.raises(NotADirectoryError):
        RunFolder(tmp_path / "mine" / "letter.txt", folder.config).check()


def test_lines_that_are_no_rows_are_told(folder: RunFolder) -> None:
    path = folder.path / "results.rank0.jsonl"
    path.write_text('{"method": "none"}\n')
    with pytest.raises(RunError, match="line 1"):
        list(folder.rows())
    path.write_text(json.dumps({**row("a"), "config": "another"}) + "\n")
    with pytest.raises(RunError, match="another run"):
        list(folder.rows())


def test_any_id_makes_a_name_of_its_own() -> None:
    names = ["a", "A", "a/b", "a-b", "../x", "é", "ë", "x" * 300, "x" * 301, ".", "con\x00", "a b"]
    made = [picture_name("none", name, 0) for name in names]
    assert len({name.lower() for name in made}) == len(names)
    for name in made:
        assert len(os.path.basename(name)) < 120 and ".." not in name
        assert name.startswith("pictures/none/") and name.count("/") == 2 and name.isprintable()


# -- who draws what ---------------------------------------------------------------------------------


def queue(folder: Path, rank: int, plan: str = "plan") -> Queue:
    return Queue(folder, rank, plan)


def test_prompts_are_handed_out_once_by_method(tmp_path: Path) -> None:
    alone: list[bool] = []
    first, second = queue(tmp_path, 0), queue(tmp_path, 1)
    with first.joined(alone.append), second.joined(alone.append):
        a, b, other = first.positions("none"), second.positions("none"), second.positions("noise")
        assert [next(a), next(b), next(b), next(a), next(other)] == [0, 1, 2, 3, 0]
    assert alone == [True, False]


def test_the_work_of_one_that_died_goes_to_those_that_live(tmp_path: Path) -> None:
    first, second = queue(tmp_path, 0), queue(tmp_path, 1)
    dying = ExitStack()
    with first.joined(lambda alone: None):
        dying.enter_context(second.joined(lambda alone: None))
        assert next(second.positions("none")) == 0
        dying.close()  # its lock is given back, and it has not said that it was done
        assert next(first.positions("none")) == 1
        assert first.goes_on()
        assert next(first.positions("none")) == 0
        assert not first.goes_on()
        assert first.is_last() and not first.is_last()


def test_one_that_is_done_is_not_taken_for_dead(tmp_path: Path) -> None:
    first, second = queue(tmp_path, 0), queue(tmp_path, 1)
    with first.joined(lambda alone: None):
        with second.joined(lambda alone: None), second._guarded():
            state = second._read_own()
            state.ranks["1"] = "done"  # what goes_on writes before it waits
            second._write(state)
        assert not first.goes_on()


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with queue(tmp_path, 0).joined(lambda alone: None):
        with (
            pytest.raises(BusyError, match="another run is writing"),
            queue(tmp_path, 0).joined(lambda alone: None),
        ):
            pass
        with (
            pytest.raises(BusyError, match="another run is writing"),
            queue(tmp_path, 1, "another plan").joined(lambda alone: None),
        ):
            pass
    with queue(tmp_path, 1, "another plan").joined(lambda alone: None) as free:
        assert next(free.positions("none")) == 0


def test_a_damaged_state_of_a_killed_run_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"plan": "pl')
    with queue(tmp_path, 0).joined(lambda alone: None) as own:
        assert next(own.positions("none")) == 0
