"""Folders of captioned pictures: which file has which caption, and what else is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countgen.errors import UsageError
from countgen.evaluation.folders import find_pictures
from countgen.evaluation.pictures import SUFFIXES
from countgen.evaluation.records import Place, records_of

_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PICTURE_COLUMNS = ("file_name", "image", "picture", "path", "filename")
_TEXT_COLUMNS = ("text", "caption", "prompt", "description")
_WAYS = (
    "a metadata.jsonl or metadata.csv with the columns file_name,text, a .txt beside every picture, or "
    "CountBench.json"
)


@dataclass(frozen=True)
class CaptionFile:
    """A picture that nobody has opened, and its caption.

    Attributes:
        told: the other columns of a table's row.
        place: of that row; None where the caption stands elsewhere.
    """

    path: Path
    text: str
    told: Mapping[str, Any] = field(default_factory=dict)
    place: Place | None = None


def captioned_files(folder: Path) -> list[CaptionFile]:
    """The captioned pictures of a folder, in the order of its table or of the files' names.

    Read are CountBench.json, the tables of image folders (metadata.jsonl, .csv or .parquet: a picture's
    file and its caption in every row), or else the .txt files beside pictures, in folders within too.

    Raises:
        UsageError: no folder, no captions in it, or a row without picture or caption.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} with pictures to learn from")
    bench = next(iter(sorted(folder.glob("*ountBench*.json"))), None)
    table = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if bench is not None:
        known = find_pictures(folder, bench).pictures
        files = [CaptionFile(one.path, one.prompt) for one in known]
    elif table is not None:
        files = [_of_row(folder, place, row) for place, row in records_of(table)]
    else:
        files = _beside(folder)
    if not files:
        raise UsageError(f"{folder} has no captions; it needs {_WAYS}")
    return files


def _of_row(folder: Path, place: Place, row: Mapping[str, Any]) -> CaptionFile:
    name = next((row[key] for key in _PICTURE_COLUMNS if row.get(key)), None)
    text = next((row[key] for key in _TEXT_COLUMNS if row.get(key)), None)
    if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
        missing = "picture (file_name)" if not isinstance(name, str) else "caption (text)"
        raise place.error(f"it names no {missing}")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise place.error(f"{name} does not lie in the folder {folder}")
    return CaptionFile(folder / name, " ".join(text.split()), row, place)


def _beside(folder: Path) -> list[CaptionFile]:
    found = []
    for path in sorted(folder.rglob("*")):
        caption = path.with_suffix(".txt")
        if path.suffix.lower() in SUFFIXES and caption.is_file():
            text = " ".join(caption.read_text(encoding="utf-8", errors="replace").split())
            if text:
                found.append(CaptionFile(path, text))
    return found
