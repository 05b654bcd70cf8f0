"""The benchmark of prompts: public lists in their publishers' formats, and a count of what was read right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.prompts import Row, figures, read_list

GENEVAL = [
    {
        "tag": "counting",
        "include": [{"class": "knife", "count": 4}],
        "prompt": "a photo of four knifes",
    },
    {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a red cup"},
]
GENEVAL2 = [
    {
        "prompt": "a pig and two green lions",
        "vqa_list": [
            ["How many pigs are in the image?", "one"],
            ["How many lions are in the image?", "two"],
            ["Are the lions green?", "Yes"],
        ],
    },
    {"prompt": "a pig", "vqa_list": [["How many pigs are in the image?", "one"]]},
]
COCOCOUNT = [{"prompt": "A photo of two ties", "object": "tie", "int_number": 2, "scene": ""}]
GECKONUM = (
    "index,prompt,entities,prompt_type\n"
    '0,"2 parsnips and three pizzas.","parsnip:2,pizza:3",2-additive\n'
    "1,many apples.,apple:X,vague\n"
)
HRS = "synthetic_prompt,n1,obj1,n2,obj2\ntwo cups on a table.,2,cup,0,\n"
DSG = "item_id,text,tuple\na,three owls,x\na,three owls,y\n"
PARTI = 'Prompt\tCategory\na sign says "two\tWorld\n'


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        (
            "geneval.jsonl",
            "\n".join(map(json.dumps, GENEVAL)),
            [Row("a photo of four knifes", [("knife", 4)]), Row("a photo of a red cup", [])],
        ),
        (
            "geneval2.jsonl",
            "\n".join(map(json.dumps, GENEVAL2)),
            [Row("a pig and two green lions", [("pigs", 1), ("lions", 2)]), Row("a pig", [])],
        ),
        ("cococount.json", json.dumps(COCOCOUNT), [Row("A photo of two ties", [("tie", 2)])]),
        (
            "geckonum.csv",
            GECKONUM,
            [
                Row("2 parsnips and three pizzas.", [("parsnip", 2), ("pizza", 3)]),
                Row("many apples."),
            ],
        ),
        ("hrs.csv", HRS, [Row("two cups on a table.", [("cup", 2)])]),
        ("dsg.csv", DSG, [Row("three owls")]),
        ("tifa.json", json.dumps([{"caption": "two owls"}]), [Row("two owls")]),
        ("parti.tsv", PARTI, [Row('a sign says "two')]),
        ("list.txt", "two owls\n\none cat\n", [Row("two owls"), Row("one cat")]),
    ],
)
def test_lists_are_read_as_published(tmp_path: Path, name: str, text: str, rows: list[Row]) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_list(path) == rows


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", '{"prompt": "x", "targets": []}\n{"prompt": 1'), ("a.json", '[{"x": 1}]')],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}, row {2 if name == 'a.jsonl' else 1}"):
        read_list(path)


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.xml"):
        read_list(tmp_path / "list.xml")


def test_right_is_every_true_count_under_a_noun_with_the_same_head() -> None:
    rows = [
        Row("two red apples", [("apple", 2)]),
        Row("two red apples", [("apple", 3)]),
        Row("two red apples", [("pear", 2)]),
        Row("two knives and three owls", [("knife", 2)]),
        Row("a cat on a mat", []),
        Row("five posing"),
    ]
    assert figures(rows) == {
        "prompts": 6,
        "with_targets": 4,
        "with_notes": 1,
        "known": 5,
        "right": 3,
        "extra": 1,
    }
