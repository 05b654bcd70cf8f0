"""The end of a run: summary.json, results.parquet, the report, and other tools' layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from countgen.evaluation import metrics
from countgen.evaluation.folder import SCHEMA, RunFolder, picture_key
from countgen.evaluation.geneval import class_of
from countgen.evaluation.runs import Row
from countgen.evaluation.suites import hard_ids
from countgen.files import write

if TYPE_CHECKING:
    from countgen.evaluation.formats import ListedPrompt
    from countgen.evaluation.runner import Checked

BESIDES = ("boxes", "more")
"""What of a row the numbers do not need."""
_PART = 1000


def sum_up(checked: Checked, folder: RunFolder, messages: Console) -> tuple[dict[str, Any], int]:
    """Write what stands at the end of a run; the document, and how many pictures are missing.

    Raises:
        OSError: the disk is full; the results themselves are there.
    """
    settings = checked.settings
    asked = {
        picture_key(method, prompt.id, image)
        for method in settings.methods
        for prompt in checked.listed
        for image in range(settings.draw.num_images_per_prompt)
    }
    rows = [
        {name: value for name, value in row.items() if name not in BESIDES}
        for row in folder.rows()
        if picture_key(row["method"], row["id"], row["image"]) in asked
    ]
    order = {method: place for place, method in enumerate(settings.methods)}
    rows.sort(key=lambda row: order[row["method"]])
    document = {
        "suite": checked.listed.name,
        **metrics.evaluation(rows, settings.draw.budget, hard_ids(settings.prompts)),
    }
    for method, found in document["methods"].items():
        own = [row for row in rows if row["method"] == method]
        found["cost"]["seconds_mean"] = round(sum(row["seconds"] for row in own) / len(own), 4)
        found["cost"]["peak_bytes"] = max(row["peak_bytes"] for row in own)
    looks = _quality(checked, rows, folder.path)
    for method, found in document["methods"].items():
        found["quality"] = looks.get(method) if isinstance(looks, dict) else None
    text = json.dumps({"schema": SCHEMA, **document}, indent=1)
    write(folder.path / "summary.json", text.encode() + b"\n", replace=True)
    if not write_parquet(folder.rows(), folder.path / "results.parquet"):
        messages.print(
            'note: results.parquet needs pyarrow: pip install "countgen[eval]"', markup=False
        )
    if settings.layout == "geneval":
        write_geneval(checked, folder, messages)
    if rows:
        from countgen.evaluation.report import write_report

        write_report(folder.path, looks)
    return document, len(asked) - len(rows)


def _quality(checked: Checked, rows: list[Row], run: Path) -> dict[str, Any] | str:
    from countgen.evaluation.quality import measured

    settings = checked.settings
    if any(row.get("judge") is None for row in rows):
        return "Not measured: some pictures are not judged."
    return measured(rows, run, settings.model, settings.clip)


def write_parquet(rows: Iterable[Row], path: Path) -> bool:
    """Write rows as one table; whether pyarrow is there to do it.

    What is no plain value or list of them, as boxes and the columns of a prompt list, is JSON in its cell.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return False
    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    counts = pyarrow.list_(whole)
    schema = pyarrow.schema(
        {
            **{name: text for name in ("method", "id", "prompt", "outcome", "picture", "config")},
            **{name: whole for name in ("image", "seed", "steps", "tries", "peak_bytes")},
            **{name: real for name in ("pre", "seconds")},
            "nouns": pyarrow.list_(text),
            **{name: counts for name in ("wanted", *metrics.ROLES)},
            "verified": pyarrow.bool_(),
            "confidence_critic": real,
            "confidence_verifier": real,
            "boxes": text,
            "more": text,
        }
    )
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Opened here, for pyarrow takes no path that is not UTF-8.
        with partial.open("wb") as sink, parquet.ParquetWriter(sink, schema) as file:
            for part in _parts(rows):
                cells = [{name: _cell(row, name) for name in schema.names} for row in part]
                file.write_table(pyarrow.Table.from_pylist(cells, schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _cell(row: Row, name: str) -> Any:
    if name.startswith("confidence_"):
        return row.get("confidence", {}).get(name.removeprefix("confidence_"))
    value = row.get(name)
    return json.dumps(value) if isinstance(value, Mapping) else value


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == _PART:
            yield part
            part = []
    yield part


def write_geneval(checked: Checked, folder: RunFolder, messages: Console) -> None:
    """The folders that GenEval's scorer reads, one set a method, with the same files where links can be made.

    ``geneval/METHOD/00000/metadata.jsonl`` has the prompt as GenEval writes it, ``samples/00000.png`` and so
    on its pictures. A prompt with a noun that GenEval has no class for, which its scorer would never find,
    is left out, and a note says so.
    """
    settings = checked.settings
    from countgen.evaluation.folder import picture_name

    unknown: dict[str, None] = {}
    left_out = 0
    for number, prompt in enumerate(checked.listed):
        metadata = geneval_record(prompt)
        if metadata is None:
            left_out += 1
            unknown |= {noun: None for noun, _ in prompt.wanted if class_of(noun) is None}
            continue
        line = json.dumps(metadata).encode() + b"\n"
        for method in settings.methods:
            place = folder.path / "geneval" / method / f"{number:05d}"
            (place / "samples").mkdir(parents=True, exist_ok=True)
            write(place / "metadata.jsonl", line, replace=True)
            for image in range(settings.draw.num_images_per_prompt):
                source = folder.path / picture_name(method, prompt.id, image)
                if source.is_file():
                    _same_file(source, place / "samples" / f"{image:05d}.png")
    if left_out:
        named = ", ".join([*unknown][:8]) + (", ..." if len(unknown) > 8 else "")
        messages.print(
            f"note: {left_out} of {number + 1} prompts are not in the folders for GenEval's scorer, which "
            f"looks for COCO's 80 classes and has none for {named}",
            markup=False,
            soft_wrap=True,
        )


def geneval_record(prompt: ListedPrompt) -> dict[str, Any] | None:
    """A prompt as GenEval writes it, or as its list had it; None where GenEval has no class for a noun."""
    kept = {key: prompt.more[key] for key in ("include", "exclude") if key in prompt.more}
    if "include" not in kept:
        wanted = [(class_of(noun), count) for noun, count in prompt.wanted]
        if any(name is None for name, _ in wanted):
            return None
        kept = {
            "include": [{"class": name, "count": count} for name, count in wanted if count],
            "exclude": [{"class": name, "count": count + 1} for name, count in wanted],
        }
    return {"tag": prompt.more.get("tag", "counting"), **kept, "prompt": prompt.prompt}


def _same_file(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
