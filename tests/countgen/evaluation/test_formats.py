"""Prompt lists: what every format means, and what is said of broken ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from countgen.evaluation.formats import ListedPrompt, ListError, read_list
from countgen.prompts import number_word, pluralise

NOUNS = (
    "apple",
    "dog",
    "teddy bear",
    "wine glass",
    "sheep",
    "knife",
    "bench",
    "bus",
    "candle",
    "fish",
)
Targets = tuple[tuple[str, int], ...]


def sample(kinds: int = 1) -> list[tuple[str, Targets]]:
    """A hundred prompts with what they ask for: every noun with 1 to 10 of it, or several nouns at once."""
    prompts = []
    for number in range(100):
        counts = [(number + 3 * k) % 10 + 1 for k in range(kinds)]
        nouns = [NOUNS[(number // 10 + 7 * k) % 10] for k in range(kinds)]
        targets = tuple(zip(nouns, counts, strict=True))
        parts = [
            f"{number_word(n) if number % 2 else n} {pluralise(noun, n)}" for noun, n in targets
        ]
        text = parts[0] if kinds == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        prompts.append((f"a photo of {text}", targets))
    return prompts


def txt(path: Path) -> list[Targets]:
    prompts = sample(2)
    path.write_text("".join(f"{text}\n" for text, _ in prompts), encoding="utf-8")
    return [targets for _, targets in prompts]


def numeracy(path: Path) -> list[Targets]:
    """T2I-CompBench: one to five kinds, number words, no ids; blank lines and Windows ends do no harm."""
    prompts = [
        prompt for kinds in range(1, 6) for prompt in sample(kinds)[1::2][kinds - 1 :: 2][:20]
    ]
    lines = [text.removeprefix("a photo of ") for text, _ in prompts]
    path.write_bytes("\r\n".join([*lines, "", ""]).encode())
    return [targets for _, targets in prompts]


def rows(path: Path) -> list[Targets]:
    """Our csv: a row for each target."""
    prompts = sample(3)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "noun", "count", "seed", "place"])
        for number, (text, targets) in enumerate(prompts):
            for noun, count in targets:
                writer.writerow([f"p{number}", text, noun, count, number, "here, there"])
    return [targets for _, targets in prompts]


def jsonl(path: Path) -> list[Targets]:
    prompts = sample(2)
    with path.open("w", encoding="utf-8") as file:
        for number, (text, targets) in enumerate(prompts):
            record = {
                "id": f"p{number}",
                "prompt": text,
                "targets": [{"noun": noun, "count": count} for noun, count in targets],
                "seed": number,
                "place": {"any": ["thing"]},
            }
            file.write(json.dumps(record) + "\n")
    return [targets for _, targets in prompts]


def geneval(path: Path) -> list[Targets]:
    """GenEval: counting, and the other tags with colours and positions."""
    prompts: list[tuple[dict[str, Any], Targets]] = []
    for text, ((noun, count),) in sample()[:60]:
        record = {
            "tag": "counting",
            "include": [{"class": noun, "count": count}],
            "exclude": [{"class": noun, "count": count + 1}],
            "prompt": text,
        }
        prompts.append((record, ((noun, count),)))
    for number in range(40):
        first, second = NOUNS[number % 10], NOUNS[(number + 3) % 10]
        include: list[dict[str, Any]] = [
            {"class": first, "count": 1},
            {"class": second, "count": 1},
        ]
        targets: Targets = ((first, 1), (second, 1))
        if number % 2:
            include[0]["color"] = "red"
            targets = ((f"red {first}", 1), (second, 1))
        else:
            include[1]["position"] = ["left of", 0]
        tag = "color_attr" if number % 2 else "position"
        prompts.append(({"tag": tag, "include": include, "prompt": f"{first}, {second}"}, targets))
    path.write_text("".join(json.dumps(record) + "\n" for record, _ in prompts))
    return [targets for _, targets in prompts]


def cococount(path: Path) -> list[Targets]:
    """CoCoCount: a JSON list, indented, without ids."""
    prompts = sample()
    records = [
        {
            "prompt": text,
            "object": noun,
            "object_plural": pluralise(noun, 2),
            "object_id": 7,
            "scene": "",
            "number": number_word(count),
            "int_number": count,
            "seed": 90_000 + place,
        }
        for place, (text, ((noun, count),)) in enumerate(prompts)
    ]
    path.write_text(json.dumps(records, indent=4))
    return [targets for _, targets in prompts]


def geckonum(path: Path) -> list[Targets]:
    """GeckoNum: entities with and without spaces, none of a thing, and what is no whole count."""
    lines = ["index,prompt,has_numeral,is_frequent,entities,prompt_type,dataset_id"]
    wanted: list[Targets] = []

    def add(text: str, entities: str, targets: Targets) -> None:
        number = len(wanted)
        lines.append(f'{number},"{text}.",0,1,"{entities}",kind,geckonum_{number:05d}')
        wanted.append(targets)

    for kinds, joint in ((1, ","), (2, ","), (3, ", ")):
        for text, targets in sample(kinds)[: 30 if kinds > 1 else 34]:
            add(text, joint.join(f"{noun}:{count}" for noun, count in targets), targets)
    add("A table without plates", "plate:no,table:1", (("plate", 0), ("table", 1)))
    for entities in (
        "pizza:1.5",
        "dog:fewer,cat:X",
        "candle:many,cake:1",
        "banana:1/3+2/3",
        "a:thirds",
    ):
        add("something else", entities, ())
    path.write_text("\n".join(lines) + "\n")
    return wanted


def flat_parquet(path: Path) -> list[Targets]:
    """As other tools write tables: a seed that is missing makes the column real."""
    pyarrow = pytest.importorskip("pyarrow")
    prompts = sample(2)
    records = [
        {
            "id": number,
            "prompt": text,
            "noun": noun,
            "count": float(count),
            "seed": None if number % 2 else float(number),
            "place": "here",
        }
        for number, (text, targets) in enumerate(prompts)
        for noun, count in targets
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return [targets for _, targets in prompts]


def nested_parquet(path: Path) -> list[Targets]:
    pyarrow = pytest.importorskip("pyarrow")
    prompts = sample(2)
    records = [
        {"prompt": text, "targets": [{"noun": noun, "count": n} for noun, n in targets]}
        for text, targets in prompts
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return [targets for _, targets in prompts]


@pytest.fixture(autouse=True)
def _parquet() -> None:
    pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("list.txt", txt),
        ("numeracy_val.txt", numeracy),
        ("list.csv", rows),
        ("list.jsonl", jsonl),
        ("evaluation_metadata.jsonl", geneval),
        ("CoCoCount.json", cococount),
        ("prompts.csv", geckonum),
        ("flat.parquet", flat_parquet),
        ("nested.parquet", nested_parquet),
    ],
)
def test_every_target_of_a_hundred_prompts_comes_out_right(
    name: str, write: Callable[[Path], list[Targets]], tmp_path: Path
) -> None:
    wanted = write(tmp_path / name)
    found = list(read_list(tmp_path / name))
    assert len(wanted) == 100
    assert [prompt.wanted for prompt in found] == wanted
    assert len({prompt.id for prompt in found}) == 100
    assert all(bool(prompt.lack) == (not prompt.targets) for prompt in found)


def first(path: Path) -> ListedPrompt:
    return next(iter(read_list(path)))


def test_ids_seeds_and_unknown_columns_are_kept(tmp_path: Path) -> None:
    rows(tmp_path / "a.csv")
    found = list(read_list(tmp_path / "a.csv"))[7]
    assert (found.id, found.seed, dict(found.more)) == ("p7", 7, {"place": "here, there"})
    jsonl(tmp_path / "a.jsonl")
    found = list(read_list(tmp_path / "a.jsonl"))[7]
    assert (found.id, found.seed, dict(found.more)) == ("p7", 7, {"place": {"any": ["thing"]}})
    cococount(tmp_path / "a.json")
    coco = list(read_list(tmp_path / "a.json"))[7]
    assert (coco.id, coco.seed, coco.more["object_id"]) == ("00007", 90_007, 7)
    geckonum(tmp_path / "gecko.csv")
    assert first(tmp_path / "gecko.csv").id == "geckonum_00000"
    geneval(tmp_path / "geneval.jsonl")
    assert first(tmp_path / "geneval.jsonl").more["exclude"] == [{"class": "apple", "count": 2}]
    flat_parquet(tmp_path / "a.parquet")
    assert [p.seed for p in read_list(tmp_path / "a.parquet")][:3] == [0, None, 2]


def test_cells_of_a_parquet_file_can_be_written_as_json(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    record = {
        "prompt": "two cats \U0001f408",
        "noun": "cat",
        "count": Decimal(2),
        "made": datetime(2026, 1, 2, 3),
        "picture": b"\x89PNG",
        "source": {"name": b"caf\xc3\xa9", "days": [date(2026, 1, 2)]},
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    found = first(tmp_path / "a.parquet")
    assert found.wanted == (("cat", 2),)
    assert json.loads(json.dumps(dict(found.more))) == {
        "made": "2026-01-02 03:00:00",
        "picture": "4 bytes",
        "source": {"name": "caf\u00e9", "days": ["2026-01-02"]},
    }


def test_emoji_written_as_two_halves_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "two cats \U0001f408", "id": "a"}))
    assert first(tmp_path / "a.jsonl").prompt == "two cats \U0001f408"


def test_a_json_list_in_one_line_is_streamed(tmp_path: Path) -> None:
    wanted = cococount(tmp_path / "a.json")
    records = json.loads((tmp_path / "a.json").read_text()) * 40  # more than one chunk
    (tmp_path / "b.json").write_text(json.dumps(records, ensure_ascii=False))
    assert [prompt.wanted for prompt in read_list(tmp_path / "b.json")] == wanted * 40


BROKEN: Sequence[tuple[str, str | bytes, tuple[str, ...]]] = (
    ("a.csv", "prompt,noun\ntwo cats,cat\n", ("line 2", "count", "missing")),
    ("a.csv", "noun,count\ncat,2\n", ("line 2", "prompt", "missing")),
    ("a.csv", "prompt;noun;count\ntwo cats;cat;2\n", ("line 1", "commas")),
    ("a.csv", "prompt,noun,count\ntwo cats,cat,2\nthree dogs,dog\n", ("line 3", "2 cells", "3")),
    ("a.csv", "prompt,noun,count\ntwo cats,cat,many\n", ("line 2", "'many'", "whole")),
    ("a.csv", "prompt,noun,count\ntwo cats,cat,\n", ("line 2", "count is empty")),
    ("a.csv", "prompt,noun,count\ntwo cats,cat,2.5\n", ("line 2", "2.5")),
    ("a.csv", "prompt,noun,count\ntwo cats,cat,-2\n", ("line 2", "between 0 and 1000")),
    ("a.csv", "prompt,noun,count\ntwo cats,,2\n", ("line 2", "noun")),
    ("a.csv", "prompt,noun,count\n,cat,2\n", ("line 2", "prompt is empty")),
    ("a.csv", "prompt,noun,count,count\n", ("line 1", "'count' twice")),
    ("a.csv", 'prompt,noun,count\n"two cats,cat,2\n', ("line 2", "csv")),
    ("a.csv", "prompt,noun,count,seed\ntwo cats,cat,2,soon\n", ("line 2", "seed", "'soon'")),
    (
        "a.csv",
        "id,prompt,noun,count\na,two cats,cat,2\na,three dogs,dog,3\n",
        ("line 3", "'a'", "another prompt", "line 2"),
    ),
    (
        "a.csv",
        "id,prompt,noun,count\na,two cats,cat,2\nb,x,x,1\na,two cats,dog,3\n",
        ("line 4", "'a'", "follow each other", "line 2"),
    ),
    ("a.csv", "id,prompt,noun,count\na,two cats,cat,2\na,two cats,cat,3\n", ("line 3", "'cat'")),
    ("a.csv", "id,prompt,noun,count\na,two cats,cat,2\n,two dogs,dog,2\n", ("line 3", "no id")),
    ("a.jsonl", '{"prompt": "two cats"}\n{"prompt": \n', ("line 2", "not JSON")),
    ("a.jsonl", '{"prompt": "two cats"}\n[1]\n', ("line 2", "object")),
    ("a.jsonl", '{"prompt": "two cats", "targets": [{"noun": "cat"}]}\n', ("line 1", "target")),
    ("a.jsonl", '{"prompt": "two cats", "targets": "cats"}\n', ("line 1", "list")),
    ("a.jsonl", '{"prompt": 7}\n', ("line 1", "no text")),
    ("a.jsonl", '{"id": "a", "prompt": "two cats"}\n' * 2, ("line 2", "'a'")),
    ("a.jsonl", '{"prompt": "p", "include": [{"class": "cat"}]}\n', ("line 1", "count")),
    ("a.jsonl", '{"id": "\\ud83c", "prompt": "two cats"}\n', ("line 1", "\\ud83c", "half")),
    ("a.jsonl", '{"prompt": "two cats", "x": ["\\uDE00"]}\n', ("line 1", "\\ude00", "half")),
    ("a.json", '[\n{"prompt": "two \\udc00 cats"}]', ("line 2", "\\udc00", "half")),
    ("a.jsonl", "[" * 100_000 + "\n", ("line 1", "nested")),
    ("a.json", '{"prompt": "two cats"}', ("line 1", "JSON list")),
    ("a.json", '[\n{"prompt": "two cats"},\n{"prompt": "two', ("line 3", "not JSON")),
    ("a.json", '[\n{"prompt": "two cats"}\n{"prompt": "x"}]', ("line 3", "comma")),
    ("a.json", '[\n{"prompt": "two cats"}\n', ("line 3", "]")),
    ("a.txt", "two cats\n".encode("utf-16"), ("line 1", "UTF-16")),
    ("a.txt", "two cats\ntwo caf\u00e9s\n".encode("latin-1"), ("line 2", "0xe9", "UTF-8")),
    (
        "a.txt",
        "two caf\u00e9s\n".encode() + "two caf\u00e9s\n".encode("latin-1"),
        ("line 2", "UTF-8"),
    ),
    ("a.json", '[\n{"prompt": "two caf\u00e9s"}]'.encode("latin-1"), ("line 2", "UTF-8")),
    ("a.txt", "x" * (1 << 20) + "yz\n", ("line 1", "longer")),
    ("a.txt", "\n \n", ("no prompts",)),
    ("a.parquet", b"PAR1 and then nothing of the kind", ("row 1", "cannot be read")),
    ("a.yaml", "two cats", (".txt, .csv",)),
)


@pytest.mark.parametrize(("name", "text", "words"), BROKEN)
def test_what_is_broken_is_told_with_file_and_line(
    name: str, text: str | bytes, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ListError) as told:
        list(read_list(path))
    message = str(told.value)
    assert name in message and "\n" not in message
    for word in words:
        assert word in message, message
