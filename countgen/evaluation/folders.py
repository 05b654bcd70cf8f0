"""Folders of finished pictures, made by whatever tool: which pictures there are, and what is known of them.

Two things may be known of a noun: how many were *asked for*, by which pictures are scored, and how many
there *are*, by which counters are scored. Read as they come:

- the layout of GenEval: ``00000/metadata.jsonl`` and ``00000/samples/00000.png`` and so on;
- a table (csv, jsonl, parquet) with a row for each picture and noun: ``picture, noun, count`` with the count
  that was asked for, ``true`` with the one that is there, or both, and ``prompt, id`` if wanted;
- a run folder of ``countgen evaluate``;
- the annotations of COCO, FSC-147 and CountBench, and GeckoNum's human counts of generated pictures.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countgen.errors import UsageError
from countgen.evaluation.pictures import SUFFIXES
from countgen.evaluation.records import Place, Record, records_of
from countgen.prompts import parse_prompt, singularise

LARGEST_ANNOTATIONS = 2**30
"""Most bytes of an annotation file that is read as a whole."""
TABLES = ("pictures.csv", "metadata.csv", "pictures.jsonl", "metadata.jsonl", "metadata.parquet")
"""Names under which a table is found in the folder of pictures itself."""
_PICTURE_COLUMNS = ("picture", "file_name", "image", "path", "filename")
_HOW_MANY = re.compile(r"\s*how many (?P<noun>.+?)(?: are| is| do| can|\?|$)", re.IGNORECASE)
_NO_CLASSES = "ImageClasses_FSC147.txt, which names what is counted, is not beside it"


@dataclass(frozen=True, slots=True)
class KnownNoun:
    """What is known of one noun in one picture.

    Attributes:
        wanted: how many were asked for; None where that is not known.
        true: how many there are; None where that is not known.
    """

    noun: str
    wanted: int | None = None
    true: int | None = None


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """A picture and what is known of it.

    Attributes:
        id: of its prompt; pictures of one id are resampled together.
        image: which one of that prompt's.
        method: how it was made, as a run folder tells it.
        unclear: nouns that may be there without having been counted, which are never asked for as absent.
        geneval: GenEval's record of the prompt.
    """

    path: Path
    id: str
    nouns: tuple[KnownNoun, ...]
    image: int = 0
    prompt: str = ""
    method: str = "images"
    unclear: tuple[str, ...] = ()
    geneval: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PictureFolder:
    """What was found.

    Attributes:
        layout: of which kind it is.
        notes: what was left out, and why.
        only_these: whether a picture holds no object of the other nouns that the folder knows.
    """

    layout: str
    pictures: Sequence[KnownPicture]
    notes: Sequence[str] = field(default_factory=tuple)
    only_these: bool = False


def find_pictures(
    folder: Path, truth: Path | None = None, split: str | None = None
) -> PictureFolder:
    """The pictures of a folder and what is known of them; no picture is opened.

    Args:
        truth: a table or an annotation file; None looks in the folder itself.
        split: of FSC-147: train, val or test.

    Raises:
        UsageError: neither pictures nor what they should hold can be found, or a broken table, named with
            file and line.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    if truth is None:
        found = _by_itself(folder)
    elif not truth.is_file():
        raise UsageError(f"there is no file {truth}")
    else:
        found = _by_file(folder, truth, split)
    if split is not None and found.layout != "fsc-147":
        raise UsageError(
            f"--split is of FSC-147, and {truth or folder} is none of it; leave --split away"
        )
    if not found.pictures:
        told = f" ({found.notes[0]})" if found.notes else ""
        raise UsageError(f"{truth or folder} names no picture that could be counted{told}")
    return found


def _by_itself(folder: Path) -> PictureFolder:
    if any(_is_geneval(place) for place in folder.iterdir()):
        return _geneval(folder)
    if (folder / "run.json").is_file():
        return _run(folder)
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if tables:
        return _table(folder, tables[0])
    raise UsageError(
        f"{folder} has neither GenEval's layout (00000/metadata.jsonl and 00000/samples/) nor a "
        f"{TABLES[0]} with the columns picture,noun,count; name a table or annotations with --truth"
    )


def _by_file(folder: Path, truth: Path, split: str | None) -> PictureFolder:
    if truth.suffix.lower() != ".json":
        first = next(records_of(truth), None)
        if first is None:
            raise UsageError(f"{truth} is empty")
        if {"image_id", "question"} <= set(first[1]):
            return _geckonum(folder, truth)
        return _table(folder, truth)
    data = _json(truth)
    if isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data):
        return _coco(folder, truth, data)
    if isinstance(data, dict) and data and all(_has_points(v) for v in data.values()):
        return _fsc147(folder, truth, data, split)
    if isinstance(data, list) and data and all(isinstance(e, dict) and "number" in e for e in data):
        return _countbench(folder, truth, data)
    raise UsageError(
        f"{truth} is none of the annotations that are read: COCO's instances, FSC-147's "
        "annotation_FSC147_384.json, and CountBench.json"
    )


# -- layouts of pictures --------------------------------------------------------------------------


def _is_geneval(place: Path) -> bool:
    return place.name.isdecimal() and (place / "metadata.jsonl").is_file()


def _geneval(folder: Path) -> PictureFolder:
    """As GenEval's scorer reads it, but for samples of other kinds than PNG, which are taken as well."""
    pictures, notes = [], []
    for place in sorted(filter(_is_geneval, folder.iterdir()), key=lambda p: (int(p.name), p.name)):
        record = _json(place / "metadata.jsonl")
        where = Place(place / "metadata.jsonl", 1)
        nouns = _geneval_nouns(where, record)
        samples = place / "samples"
        files = [p for p in samples.iterdir() if _is_sample(p)] if samples.is_dir() else []
        if not files:
            notes.append(f"{place} has no samples")
        for path in sorted(files, key=lambda p: (int(p.stem), p.name)):
            text = str(record.get("prompt", ""))
            pictures.append(
                KnownPicture(path, place.name, nouns, int(path.stem), text, geneval=record)
            )
    return PictureFolder("geneval", pictures, notes)


def _is_sample(path: Path) -> bool:
    return path.stem.isdecimal() and path.suffix.lower() in SUFFIXES


def _geneval_nouns(where: Place, record: Any) -> tuple[KnownNoun, ...]:
    if not isinstance(record, dict):
        raise where.error("it is no object with include and tag")
    wanted: dict[str, int] = {}
    for clause in ("include", "exclude"):
        entries = record.get(clause, [])
        if not isinstance(entries, list):
            raise where.error(f'{clause} must be a list, as in [{{"class": "clock", "count": 2}}]')
        for entry in entries:
            known = isinstance(entry, dict) and isinstance(entry.get("class"), str)
            count = _whole(entry.get("count")) if known else None
            if count is None:
                raise where.error(
                    f'an entry of {clause} is written {{"class": "clock", "count": 2}}, not {entry!r}'
                )
            # What is only excluded below some number is wanted at none.
            if clause == "include":
                wanted[entry["class"]] = count
            else:
                wanted.setdefault(entry["class"], 0)
    if not wanted:
        raise where.error("it includes and excludes nothing")
    return tuple(KnownNoun(noun, count) for noun, count in wanted.items())


def _run(folder: Path) -> PictureFolder:
    """A run folder of ``countgen evaluate``, whose pictures other judges are to see."""
    from countgen.evaluation.folder import RunFolder, read_config

    pictures = []
    with _readable(folder):
        for row in RunFolder(folder, read_config(folder)["config"]).rows():
            nouns = tuple(map(KnownNoun, row["nouns"], row["wanted"]))
            path = _inside(Place(folder / "run.json", 1), folder, row["picture"])
            pictures.append(
                KnownPicture(path, row["id"], nouns, row["image"], row["prompt"], row["method"])
            )
    return PictureFolder("run", pictures)


# -- tables ---------------------------------------------------------------------------------------


def _table(folder: Path, table: Path) -> PictureFolder:
    """Rows of a table; those of one picture are its nouns."""
    rows: dict[str, list[tuple[Place, Record]]] = defaultdict(list)
    column = ""
    for place, record in records_of(table):
        column = column or _picture_column(place, record)
        name = record.get(column)
        if not isinstance(name, str) or not name.strip():
            raise place.error(f"the column {column} names no picture")
        rows[name.strip()].append((place, record))
    pictures, numbers = [], Counter[str]()
    for name, entries in rows.items():
        nouns: dict[str, KnownNoun] = {}
        for place, record in entries:
            for known in _nouns_of(place, record):
                if known.noun in nouns:
                    raise place.error(f"{name} has {known.noun!r} a second time")
                nouns[known.noun] = known
        first = entries[0][1]
        text, identity = str(first.get("prompt") or ""), str(first.get("id") or "")
        identity = identity or text or name
        pictures.append(
            KnownPicture(
                _inside(entries[0][0], folder, name),
                identity,
                tuple(nouns.values()),
                numbers[identity],
                text,
            )
        )
        numbers[identity] += 1
    return PictureFolder("table", pictures)


def _picture_column(place: Place, record: Record) -> str:
    found = next((name for name in _PICTURE_COLUMNS if name in record), None)
    if found is None or not ({"noun", "prompt"} & set(record)):
        missing = "picture" if found is None else "noun"
        raise place.error(
            f"the column {missing} is missing; the columns are picture,noun,count with the count that was "
            "asked for, and true with the one that is there, if known"
        )
    return found


def _nouns_of(place: Place, record: Record) -> list[KnownNoun]:
    if "noun" not in record:  # only the prompt, which is parsed
        targets = parse_prompt(str(record.get("prompt") or "")).targets
        if not targets:
            raise place.error(f"the prompt names no count: {record.get('prompt')!r}")
        return [KnownNoun(target.noun, target.count) for target in targets]
    noun = record["noun"]
    if not isinstance(noun, str) or not noun.strip():
        raise place.error("the noun is empty")
    counts = {}
    for column in ("count", "true"):
        value = record.get(column)
        blank = value is None or (isinstance(value, str) and not value.strip())
        counts[column] = None if blank else _whole(value)
        if not blank and counts[column] is None:
            raise place.error(f"{column} is {value!r}, and must be a whole number, at least 0")
    if counts["count"] is None and counts["true"] is None:
        raise place.error("neither count (asked for) nor true (there) has a number")
    return [KnownNoun(singularise(noun), counts["count"], counts["true"])]


def _inside(place: Place, folder: Path, name: str) -> Path:
    """The path of a picture, which must lie in the folder: a table may come from a stranger."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise place.error(f"{name} does not lie in the folder {folder}")
    return folder / path


# -- annotations ----------------------------------------------------------------------------------


def _coco(folder: Path, truth: Path, data: Mapping[str, Any]) -> PictureFolder:
    """COCO's instances: all 80 categories were looked for, so that what has no entry is absent."""
    with _readable(truth):
        names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        counts: dict[Any, Counter[str]] = defaultdict(Counter)
        crowds: dict[Any, set[str]] = defaultdict(set)
        for entry in data["annotations"]:
            noun = names[entry["category_id"]]
            if entry.get("iscrowd"):
                crowds[entry["image_id"]].add(noun)
            else:
                counts[entry["image_id"]][noun] += 1
        pictures, without = [], 0
        for entry in data["images"]:
            crowd = crowds[entry["id"]]
            nouns = [KnownNoun(n, true=c) for n, c in counts[entry["id"]].items() if n not in crowd]
            without += not nouns
            if nouns:
                path = _inside(Place(truth, 1), folder, str(entry["file_name"]))
                pictures.append(
                    KnownPicture(path, str(entry["id"]), tuple(nouns), unclear=tuple(sorted(crowd)))
                )
    notes = [f"{without} pictures without objects that were counted singly"] if without else []
    return PictureFolder("coco", pictures, notes, only_these=True)


def _fsc147(folder: Path, truth: Path, data: Mapping[str, Any], split: str | None) -> PictureFolder:
    """FSC-147: a point for each object of the one kind that a picture's class names."""
    classes = truth.with_name("ImageClasses_FSC147.txt")
    if not classes.is_file():
        raise UsageError(f"{truth}: {_NO_CLASSES}")
    lines = classes.read_text(encoding="utf-8").splitlines()
    nouns = dict(line.split("\t", 1) for line in lines if "\t" in line)
    chosen = set(data)
    if split is not None:
        splits = _json(truth.with_name("Train_Test_Val_FSC_147.json"))
        if not isinstance(splits, dict) or split not in splits:
            known = ", ".join(splits) if isinstance(splits, dict) else "none"
            raise UsageError(f"FSC-147 has no split {split!r}; there are {known}")
        chosen = set(splits[split])
    with _readable(truth):
        pictures = [
            KnownPicture(
                _inside(Place(truth, 1), folder, name),
                name,
                (KnownNoun(singularise(nouns[name]), true=len(entry["points"])),),
            )
            for name, entry in data.items()
            if name in chosen and name in nouns
        ]
    lacking = len(chosen & set(data)) - len(pictures)
    notes = [f"{lacking} pictures without a class"] if lacking else []
    # One kind is annotated; that the others are absent is how counters are tested on it (arXiv 2409.15953).
    return PictureFolder("fsc-147", pictures, notes, only_these=True)


def _has_points(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("points"), list)


def _countbench(folder: Path, truth: Path, data: Sequence[Record]) -> PictureFolder:
    """CountBench: the noun is what the question asks for, or else the one that the text counts so often.

    The list holds addresses of pictures and no files: a picture is found by the entry's ``file_name``, or by
    the entry's number, as in 0.jpg or 00000.jpg.
    """
    by_number = {
        int(path.stem): path
        for path in folder.iterdir()
        if path.stem.isdecimal() and path.suffix.lower() in SUFFIXES
    }
    pictures, unread, gone = [], 0, 0
    for index, entry in enumerate(data):
        count, text = _whole(entry["number"]), str(entry.get("text") or "")
        noun = _asked(str(entry.get("question") or "")) or _counted(text, count)
        name = next((str(entry[c]) for c in _PICTURE_COLUMNS[:2] if entry.get(c)), "")
        path = _inside(Place(truth, 1), folder, name) if name else by_number.get(index)
        if path is None:
            gone += 1
        elif noun is None or count is None:
            unread += 1
        else:
            pictures.append(KnownPicture(path, str(index), (KnownNoun(noun, true=count),), 0, text))
    notes = [f"{unread} entries whose text does not tell what is counted"] if unread else []
    notes += [f"{gone} entries without a picture in {folder}"] if gone else []
    return PictureFolder("countbench", pictures, notes)


def _asked(question: str) -> str | None:
    match = _HOW_MANY.match(question)
    return singularise(match["noun"].strip(" ?")) if match else None


def _counted(text: str, count: int | None) -> str | None:
    nouns = [target.noun for target in parse_prompt(text).targets if target.count == count]
    return nouns[0] if len(nouns) == 1 else None


def _geckonum(folder: Path, truth: Path) -> PictureFolder:
    """GeckoNum's first task: what most of the raters of a picture counted; ranges and parts are no counts."""
    answers: dict[tuple[str, str], list[int | None]] = defaultdict(list)
    prompts: dict[str, str] = {}
    models: dict[str, str] = {}
    for place, record in records_of(truth):
        noun = _asked(str(record.get("question") or ""))
        if noun is None or "answer" not in record:
            raise place.error(
                "it has no question that asks how many, or no answer; of GeckoNum's annotations the files of "
                "task 1 hold counts"
            )
        name = str(record["image_id"])
        answers[name, noun].append(_whole(record["answer"]))
        prompts[name] = str(record.get("prompt") or "")
        models[name] = str(record.get("model") or "")
    nouns: dict[str, list[KnownNoun]] = defaultdict(list)
    unclear: dict[str, list[str]] = defaultdict(list)
    for (name, noun), given in answers.items():
        (count, votes), *_ = Counter(given).most_common(1)
        if count is None or 2 * votes <= len(given):
            unclear[name].append(noun)
            continue
        asked = {t.noun: t.count for t in parse_prompt(prompts[name]).targets}
        nouns[name].append(KnownNoun(noun, asked.get(noun), count))
    pictures, gone = [], 0
    for name, known in nouns.items():
        path = _found(folder, models[name], name)
        gone += path is None
        if path is not None:
            prompt, _, number = name.rpartition("_")
            image = int(number) if number.isdecimal() else 0
            pictures.append(
                KnownPicture(
                    path, prompt, tuple(known), image, prompts[name], unclear=tuple(unclear[name])
                )
            )
    left = sum(map(len, unclear.values()))
    notes = (
        [f"{left} questions on which most raters do not agree in a whole number"] if left else []
    )
    notes += [f"{gone} pictures that are not in {folder}"] if gone else []
    return PictureFolder("geckonum", pictures, notes)


def _found(folder: Path, model: str, name: str) -> Path | None:
    if Path(name).name != name or Path(model).name != model:
        return None
    places = (folder / name, folder / model / name)
    tries = (place.with_name(place.name + suffix) for place in places for suffix in SUFFIXES)
    return next((path for path in tries if path.is_file()), None)


# -- files ----------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What an annotation file lacks or holds wrongly becomes one sentence."""
    try:
        yield
    except KeyError as error:
        raise UsageError(f"{path}: an entry has no {error}") from None
    except (TypeError, AttributeError):
        raise UsageError(f"{path}: an entry is not as its format has it") from None


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_ANNOTATIONS:
            raise UsageError(f"{path} is larger than {LARGEST_ANNOTATIONS // 2**20} MiB")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = (
            f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise UsageError(f"{path} is not JSON{': ' + reason if reason else ''}") from None


def _whole(value: Any) -> int | None:
    """A number of things, as number or text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 1e9 and value == int(value) else None
