"""Records of a file, streamed, each with its place: what a line or an entry holds, not what it means."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countgen.errors import UsageError

Record = dict[str, Any]
LONGEST = 1 << 20
"""Most characters of one line or entry."""
_CHUNK = 1 << 16
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class ListError(UsageError):
    """A prompt list that cannot be read; the message says in which file and line, and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands.

    Attributes:
        unit: what is counted: lines, rows, or entries.
        tabular: whether all records of the file have the same columns.
    """

    path: Path
    number: int
    unit: str = "line"
    tabular: bool = False

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"

    def error(self, sentence: str) -> ListError:
        return ListError(f"{self}: {sentence}")


def records_of(path: Path) -> Iterator[tuple[Place, Record]]:
    """The records of a file, one after the other; the ending of its name says what it is.

    Raises:
        ListError: an ending that is none of these, or a record that cannot be read.
        OSError: the file cannot be opened.
    """
    readers = {
        ".txt": _lines_of_text,
        ".csv": _csv,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_array,
        ".parquet": _parquet,
    }
    ending = path.suffix.lower()
    if ending not in readers:
        raise ListError(
            f"{path} is no prompt list: its name must end in one of {', '.join(readers)}"
        )
    return readers[ending](path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of UTF-8 text with their ends, numbered from 1; of one at a time."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(4 * LONGEST + 1):
            number += 1
            place = Place(path, number)
            if number == 1:
                line = _without_mark(place, line)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(place, error) from None
            if len(text) > LONGEST:
                raise place.error(f"it is longer than {LONGEST:,} characters")
            yield number, text


def _without_mark(place: Place, start: bytes) -> bytes:
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            raise place.error(f"the file is in {name}; save it as UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)


def _not_utf8(place: Place, error: UnicodeDecodeError) -> ListError:
    return place.error(
        f"the byte 0x{error.object[error.start]:02x} is no UTF-8, so the text is in another encoding or in "
        "several; save the file as UTF-8"
    )


def _lines_of_text(path: Path) -> Iterator[tuple[Place, Record]]:
    for number, line in _lines(path):
        if line.strip():
            yield Place(path, number), {"prompt": line.strip()}


def _json_lines(path: Path) -> Iterator[tuple[Place, Record]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = Place(path, number)
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise place.error(f"it is not JSON: {_reason(error)}") from None
        yield place, _object(place, record, line)


def _csv(path: Path) -> Iterator[tuple[Place, Record]]:
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    while True:
        place = Place(path, rows.line_num + 1, tabular=True)
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise place.error(f"it is not csv: {error}") from None
        if row is None:
            return
        if not header:
            header = [name.strip() for name in row]
            _check_header(place, header)
        elif row:
            if len(row) != len(header):
                raise place.error(
                    f"it has {len(row)} cells, and the header has {len(header)}; texts with commas are "
                    'written in "quotes"'
                )
            yield place, dict(zip(header, row, strict=True))


def _check_header(place: Place, header: list[str]) -> None:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise place.error("the columns are not separated by commas; save the file with commas")
    for name in header:
        if header.count(name) > 1:
            raise place.error(f"the header has the column {name!r} twice")


def _json_array(path: Path) -> Iterator[tuple[Place, Record]]:
    """The entries of a JSON list, of which only one is held at a time."""
    decoder, chunks = json.JSONDecoder(), _chunks(path)
    text, line = next(chunks, ""), 1

    def error(sentence: str) -> ListError:
        return Place(path, line).error(sentence)

    def skipped(marks: str) -> str:
        """What follows white space and at most one of the marks, which is returned."""
        nonlocal text, line
        while True:
            rest = text.lstrip()
            line += text[: len(text) - len(rest)].count("\n")
            text = rest
            if text:
                break
            text = next(chunks, "")
            if not text:
                return ""
        mark = text[0] if text[0] in marks else ""
        text = text[len(mark) :]
        return mark

    if not skipped("["):
        raise error("it is no JSON list of prompts, which begins with [")
    first = True
    while True:
        mark = skipped(",]" if not first else "]")
        if mark == "]":
            return
        if not first and not mark:
            raise error("it is not JSON: a comma or ] is missing")
        skipped("")
        while True:
            try:
                entry, end = decoder.raw_decode(text)
                if end < len(text):
                    break
                reason = "it ends too early"
            except (json.JSONDecodeError, RecursionError) as fault:
                reason = _reason(fault)
            more = next(chunks, "") if len(text) <= LONGEST else ""
            if not more:
                raise error(f"the entry that begins here is not JSON: {reason}")
            text += more
        place = Place(path, line)
        yield place, _object(place, entry, text[:end])
        line += text[:end].count("\n")
        text, first = text[end:], False


def _chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, first = 1, True
    with path.open("rb") as file:
        while True:
            data = file.read(_CHUNK)
            if first:
                data, first = _without_mark(Place(path, 1), data), False
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise _not_utf8(Place(path, line), error) from None
            line += text.count("\n")
            if text:
                yield text
            if not data:
                return


def _parquet(path: Path) -> Iterator[tuple[Place, Record]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ListError(f'{path} needs pyarrow to be read: pip install "countgen[eval]"') from None
    number = 0
    with path.open("rb") as file:
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield Place(path, number, "row", tabular=True), _plain(record)
        except ArrowException as error:
            reason = str(error).splitlines()[0][:200]
            raise Place(path, number + 1, "row").error(f"it cannot be read: {reason}") from None


def _plain(value: Any) -> Any:
    """A cell of a table as JSON could hold it: what is no number and no list, as a date, becomes text."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:  # a picture, say, which no row of results should hold
        return f"{len(value)} bytes"


def _object(place: Place, record: Any, text: str) -> Record:
    """The record, if it is one.

    Args:
        text: what it was read from.
    """
    if not isinstance(record, dict):
        raise place.error(
            f'a prompt is an object, as {{"prompt": "two cats"}}, not {str(record)[:60]}'
        )
    if "\\ud" in text.lower():  # emoji are written so, too: as two halves
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise place.error(
                f"{half} is half a character, so the text was cut in the middle of one; write it again"
            ) from None
    return record


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
    return "it is nested too deeply"
