"""Files: nothing that is there is lost, nothing else is written to, nothing is half written."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from threading import Thread

import pytest

from countgen import files
from countgen.files import STALE, PictureFolder, shown, write


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_have_their_index_as_number_in_a_new_folder(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "a" / "b")
    folder.check()
    assert not (tmp_path / "a").exists()
    for index in (2, 0, 1):
        folder.keep(index, b"p%d" % index, b"c%d" % index if index else None)
    found = {"000.png": b"p0", "001.png": b"p1", "001-compare.png": b"c1"}
    assert contents(tmp_path / "a" / "b") == found | {"002.png": b"p2", "002-compare.png": b"c2"}


@pytest.mark.parametrize("name", ["000.png", "000-compare.png"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_a_name_that_is_taken_is_left_alone(name: str, kind: str, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.write_bytes(b"precious")
    place = out / name
    folder = PictureFolder(out)
    folder.keep(0, b"first")
    (out / "000.png").unlink()  # the run thinks that 000 is the next
    folder._first = 0
    if kind == "file":
        place.write_bytes(b"theirs")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    path = folder.keep(0, b"new", b"beside")
    assert path.name == "001.png" and path.read_bytes() == b"new"
    assert (out / "001-compare.png").read_bytes() == b"beside"
    assert other.read_bytes() == b"precious" and not (tmp_path / "nowhere").exists()
    assert (
        place.is_dir()
        if kind == "folder"
        else place.is_symlink() or place.read_bytes() == b"theirs"
    )


def test_overwriting_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.write_bytes(b"precious")
    (out / "000.png").symlink_to(other)
    (out / "000-compare.png").write_bytes(b"old")
    PictureFolder(out, overwrite=True).keep(0, b"new")
    assert contents(out) == {"000.png": b"new"} and other.read_bytes() == b"precious"


def test_several_writers_in_one_folder_lose_nothing(tmp_path: Path) -> None:
    def writer(name: int) -> None:
        folder = PictureFolder(tmp_path)
        for index in range(25):
            data = b"%d-%d" % (name, index)
            folder.keep(index, data, b"beside " + data)

    writers = [Thread(target=writer, args=(name,)) for name in range(8)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    found = contents(tmp_path)
    pictures = {name: data for name, data in found.items() if "compare" not in name}
    assert sorted(pictures.values()) == sorted(
        b"%d-%d" % (w, i) for w in range(8) for i in range(25)
    )
    for name, data in pictures.items():
        assert found[name.replace(".png", "-compare.png")] == b"beside " + data
    assert len(found) == 400


def test_only_our_own_old_partial_files_are_removed(tmp_path: Path) -> None:
    ours = tmp_path / ".countgen-0123456789abcdef.partial"
    fresh = tmp_path / ".countgen-fedcba9876543210.partial"
    link = tmp_path / ".countgen-00000000000000ff.partial"
    theirs = tmp_path / "000.png.partial"
    for path in (ours, fresh, theirs):
        path.write_bytes(b"half")
    link.symlink_to(theirs)
    old = time.time() - STALE - 60
    for path in (ours, theirs):
        os.utime(path, (old, old))
    os.utime(link, (old, old), follow_symlinks=False)
    PictureFolder(tmp_path).check()
    assert sorted(os.listdir(tmp_path)) == sorted(p.name for p in (fresh, link, theirs))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "000.png"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileExistsError):
        write(path, b"new")
    for name, replace in (("link", False), ("replace", True)):
        monkeypatch.setattr(files.os, name, full)
        place = path if replace else tmp_path / "other.png"
        with pytest.raises(OSError, match="space") as told:
            write(place, b"new", replace=replace)
        assert told.value.filename == str(place)
    assert contents(tmp_path) == {"000.png": b"old"}


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told:
        write(tmp_path / "gone" / "page.html", b"new")
    assert told.value.filename == str(tmp_path / "gone" / "page.html")


def test_a_file_system_without_links_is_written_to_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    write(tmp_path / "000.png", b"first")
    with pytest.raises(FileExistsError):
        write(tmp_path / "000.png", b"second")
    assert contents(tmp_path) == {"000.png": b"first"}


def test_a_path_is_shown_from_here_where_there_is_a_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "out" / "000.png") == str(Path("out", "000.png"))

    def other_drive(path: Path) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(files.os.path, "relpath", other_drive)
    assert shown(tmp_path / "000.png") == str(tmp_path / "000.png")


def test_a_path_is_shown_though_the_working_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert shown(tmp_path / "000.png") == str(tmp_path / "000.png")
    with pytest.raises(FileNotFoundError, match="working directory"):
        PictureFolder(Path("out")).check()
    PictureFolder(tmp_path / "out").check()
