"""Prompt lists as they come: txt, csv, jsonl, json and parquet, in our columns and in those of benchmarks.

Every list is streamed: a reader yields one prompt after the other and holds none of them. What a record means
is told by its columns, whatever file it stands in:

- ``prompt`` alone: the prompt is parsed (txt files, T2I-CompBench's numeracy lists);
- ``prompt, noun, count[, seed, id]``: a row for each target; rows of one id follow each other;
- ``prompt, targets[, seed, id]`` with targets ``[{"noun", "count"}]``;
- ``include`` (GenEval), ``entities`` (GeckoNum), ``object, int_number`` (CoCoCount, ATHENA).
"""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from countgen.errors import UsageError
from countgen.evaluation.records import ListError, Place, Record, records_of
from countgen.options import MAX_SEED
from countgen.prompts import CountTarget, parse_prompt

__all__ = ["ListError", "ListedPrompt", "read_list"]

LONGEST_ID = 200
"""Most characters of an id."""
INEXACT = "its numbers are no whole counts"
NO_COUNT = "it names no count"


@dataclass(frozen=True, slots=True)
class ListedPrompt:
    """One prompt of a list.

    Attributes:
        id: the list's own, or the number of the prompt, counted from 00000.
        targets: what is to be counted; empty where ``lack`` says why there is none.
        seed: takes the place of the run's seed for this prompt.
        more: columns that have no meaning here, as they came.
        place: file and line, for messages.
    """

    id: str
    prompt: str
    targets: tuple[CountTarget, ...]
    seed: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    lack: str = ""

    @property
    def wanted(self) -> tuple[tuple[str, int], ...]:
        """The targets as pairs of noun and count."""
        return tuple((target.noun, target.count) for target in self.targets)


def read_list(path: Path) -> Iterator[ListedPrompt]:
    """The prompts of a file, one after the other.

    Raises:
        ListError: what cannot be read, with file and line; what stands before it has been yielded.
        OSError: the file cannot be opened.
    """
    records = records_of(path)
    first = next(records, None)
    if first is None:
        raise ListError(f"{path} holds no prompts")
    read = _reader(first)
    prompts = _joined(_numbered(itertools.chain([first], records), read))
    yield from _checked(prompts) if read(*first).id else prompts


# -- what a record means --------------------------------------------------------------------------

Reader = Callable[[Place, Record], ListedPrompt]


def _reader(first: tuple[Place, Record]) -> Reader:
    """How the records of a list are read, told by the columns of the first.

    Raises:
        ListError: no known columns.
    """
    place, record = first
    columns = set(record)
    if "prompt" not in columns:
        raise place.error(
            "the column prompt is missing; a list has prompt,noun,count[,seed,id], or is in one of the "
            "formats of GenEval, T2I-CompBench, CoCoCount and GeckoNum"
        )
    for telling, reader in (
        ({"include"}, _geneval),
        ({"entities"}, _geckonum),
        ({"int_number"}, _object),
        ({"targets"}, _targets),
        ({"noun"}, _flat),
        ({"count"}, _flat),
    ):
        if telling <= columns:
            return reader
    if place.tabular and columns > {"prompt"}:
        return _flat  # which names the columns that are missing
    return _parsed


def _parsed(place: Place, record: Record) -> ListedPrompt:
    text = _prompt(place, record)
    targets = parse_prompt(text).targets
    return _made(place, record, text, targets, (), NO_COUNT)


def _flat(place: Place, record: Record) -> ListedPrompt:
    for column in ("noun", "count"):
        if column not in record:
            raise place.error(
                f"the column {column} is missing; the columns are prompt,noun,count and, if wanted, seed,id"
            )
    target = _target(place, record["noun"], record["count"])
    return _made(place, record, _prompt(place, record), (target,), ("noun", "count"))


def _targets(place: Place, record: Record) -> ListedPrompt:
    given = record.get("targets")
    if given is None:
        return _parsed(place, record)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise place.error('targets must be a list, as in [{"noun": "apple", "count": 7}]')
    targets = []
    for one in given:
        if not isinstance(one, Mapping) or not {"noun", "count"} <= set(one):
            raise place.error(f'a target is written {{"noun": "apple", "count": 7}}, not {one!r}')
        targets.append(_target(place, one["noun"], one["count"]))
    return _made(place, record, _prompt(place, record), targets, ("targets",), NO_COUNT)


def _geneval(place: Place, record: Record) -> ListedPrompt:
    """GenEval: a class that has a colour is looked for by both, the relations of places are not."""
    included = record["include"]
    if not isinstance(included, Sequence) or isinstance(included, str):
        raise place.error('include must be a list, as in [{"class": "clock", "count": 2}]')
    targets = []
    for one in included:
        if not isinstance(one, Mapping) or not {"class", "count"} <= set(one):
            raise place.error(
                f'an entry of include is written {{"class": "clock", "count": 2}}, not {one!r}'
            )
        noun = f"{one.get('color') or ''} {one['class']}"
        targets.append(_target(place, noun, one["count"]))
    return _made(place, record, _prompt(place, record), _added(targets), ())


def _geckonum(place: Place, record: Record) -> ListedPrompt:
    """GeckoNum: ``entities`` is "dog:3, coconut:5"; "no" is 0; fractions, "many", "fewer" are no counts."""
    targets = []
    for entity in str(record["entities"]).split(","):
        noun, colon, number = entity.strip().rpartition(":")
        if not colon or not noun:
            raise place.error(f"entities are written noun:number, not {entity.strip()!r}")
        number = "0" if number == "no" else number
        if not number.isdecimal():
            return _made(place, record, _prompt(place, record), (), (), INEXACT, "dataset_id")
        targets.append(_target(place, noun, number))
    return _made(place, record, _prompt(place, record), _added(targets), (), "", "dataset_id")


def _object(place: Place, record: Record) -> ListedPrompt:
    if "object" not in record:
        raise place.error("the column object is missing beside int_number")
    target = _target(place, record["object"], record["int_number"])
    return _made(place, record, _prompt(place, record), (target,), ())


def _made(
    place: Place,
    record: Record,
    prompt: str,
    targets: Sequence[CountTarget],
    used: Sequence[str],
    lack: str = "",
    id_column: str = "id",
) -> ListedPrompt:
    nouns = [target.noun for target in targets]
    for noun in nouns:
        if nouns.count(noun) > 1:
            raise place.error(f"the targets name {noun!r} twice")
    more = {k: v for k, v in record.items() if k not in ("prompt", "seed", id_column, *used)}
    return ListedPrompt(
        _id(place, record.get(id_column)),
        prompt,
        tuple(targets),
        _seed(place, record.get("seed")),
        more,
        str(place),
        "" if targets else lack or NO_COUNT,
    )


def _added(targets: Sequence[CountTarget]) -> list[CountTarget]:
    """Entries of one noun taken together, as benchmarks write them."""
    totals: dict[str, int] = {}
    for target in targets:
        totals[target.noun] = totals.get(target.noun, 0) + target.count
    return [CountTarget(noun, count) for noun, count in totals.items()]


# -- single values --------------------------------------------------------------------------------


def _prompt(place: Place, record: Record) -> str:
    text = record.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise place.error("the prompt is empty" if not text else f"the prompt is no text: {text!r}")
    return text.strip()


def _target(place: Place, noun: Any, count: Any) -> CountTarget:
    number = _whole(count)
    if number is None:
        raise place.error(
            f"the count is {count!r}, and must be a whole number"
            if not _is_blank(count)
            else "the count is empty"
        )
    try:
        return CountTarget(noun, number)
    except (TypeError, ValueError) as error:
        raise place.error(str(error).rstrip(".")) from None


def _id(place: Place, given: Any) -> str:
    if _is_blank(given):
        return ""
    text = str(given).strip()
    if len(text) > LONGEST_ID:
        raise place.error(f"the id has {len(text)} characters; at most {LONGEST_ID} are taken")
    return text


def _seed(place: Place, given: Any) -> int | None:
    if _is_blank(given):
        return None
    number = _whole(given)
    if number is None or abs(number) > MAX_SEED:
        raise place.error(f"the seed is {given!r}, and must be a whole number of at most 63 bits")
    return number


def _whole(value: Any) -> int | None:
    """A whole number, as number or as text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def _is_blank(value: Any) -> bool:
    """Nothing there: also what a table without integers for missing values makes of it."""
    empty = isinstance(value, str) and not value.strip()
    return value is None or empty or (isinstance(value, float) and math.isnan(value))


# -- ids ------------------------------------------------------------------------------------------


def _numbered(records: Iterator[tuple[Place, Record]], read: Reader) -> Iterator[ListedPrompt]:
    """Prompts with an id each: the list's, or the number in it."""
    own: bool | None = None
    for number, (place, record) in enumerate(records):
        prompt = read(place, record)
        own = bool(prompt.id) if own is None else own
        if own is not bool(prompt.id):
            raise place.error(
                f"the prompt has {'no ' if own else 'an '}id, and those before it have "
                f"{'one' if own else 'none'}; give an id to all or to none"
            )
        yield prompt if own else replace(prompt, id=f"{number:05d}")


def _joined(prompts: Iterator[ListedPrompt]) -> Iterator[ListedPrompt]:
    """Rows of one id that follow each other are targets of one prompt."""
    last: ListedPrompt | None = None
    for prompt in prompts:
        if last is None or last.id != prompt.id or last.prompt != prompt.prompt:
            if last is not None:
                yield last
            last = prompt
            continue
        nouns = {target.noun for target in last.targets}
        twice = next((t.noun for t in prompt.targets if t.noun in nouns), None)
        if twice is not None or not prompt.targets:
            again = "is there" if twice is None else f"has {twice!r}"
            raise ListError(f"{prompt.place}: the id {prompt.id!r} {again} a second time")
        last = replace(last, targets=(*last.targets, *prompt.targets))
    if last is not None:
        yield last


def _checked(prompts: Iterator[ListedPrompt]) -> Iterator[ListedPrompt]:
    """The same prompts; an id that has been there is refused.

    The ids lie in a temporary file of the database's, so that a list of any length fits.
    """
    seen = sqlite3.connect("")
    try:
        seen.execute("PRAGMA journal_mode = OFF")
        seen.execute("PRAGMA synchronous = OFF")
        seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, text BLOB, place TEXT) WITHOUT ROWID")
        for prompt in prompts:
            digest = blake2b(prompt.prompt.encode("utf-8", "replace"), digest_size=8).digest()
            key = prompt.id.encode("utf-8", "replace").decode()
            try:
                seen.execute("INSERT INTO seen VALUES (?, ?, ?)", (key, digest, prompt.place))
            except sqlite3.IntegrityError:
                ((text, place),) = seen.execute("SELECT text, place FROM seen WHERE id = ?", (key,))
                where = place.rpartition(", ")[2]
                raise ListError(
                    f"{prompt.place}: the id {prompt.id!r} stands for another prompt on {where}; "
                    "take another id"
                    if text != digest
                    else f"{prompt.place}: the id {prompt.id!r} was on {where} already; rows of one prompt "
                    "follow each other, and an id stands for one prompt"
                ) from None
            yield prompt
    except sqlite3.Error as error:
        raise UsageError(
            f"ids cannot be compared in the folder for temporary files: {error}"
        ) from None
    finally:
        seen.close()
