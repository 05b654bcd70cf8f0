"""Side-by-sides for any prompt, boxes that are easy to follow, and settings that other programs read."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from PIL import Image, ImageFont

from countgen.drawing import (
    COLOURS,
    Panel,
    fitted,
    outlined,
    parameters,
    png,
    reading_order,
    side_by_side,
)

FONT = ImageFont.load_default(16)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "seven red apples " * 30,
        "七只红苹果" * 100,
        "\U0001f34e" * 3,
        "a\nb\r\n\tc",
        "\x00\x1b[31m\u202e\ud800",
        "",
        "   ",
    ],
)
def test_any_text_is_one_line_that_fits(text: str) -> None:
    line = fitted(text, FONT, 300)
    assert FONT.getlength(line) <= 300 and line.isprintable()
    assert line == line.strip()


def test_a_short_text_is_left_as_it_is_and_a_long_one_is_shortened() -> None:
    assert fitted("seven red apples", FONT, 300) == "seven red apples"
    assert fitted("a\n b", FONT, 300) == "a b"
    assert fitted("two 猫", FONT, 300) == "two ?"
    line = fitted("word " * 50, FONT, 300)
    assert line.startswith("word word") and line.endswith("...")
    assert FONT.getlength(line + " word") > 300


def test_a_side_by_side_has_two_pictures_and_numbered_boxes() -> None:
    plain, guided = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black")
    boxes = [[(4.0, 4.0, 20.0, 20.0)], [(30.0, 30.0, 60.0, 60.0)]]
    page = side_by_side("two", (Panel("plain", plain), Panel("guided", guided, boxes)), side=128)
    assert page.size == (2 * 128 + 8, 128 + 52)
    colours = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLOURS[:2]]
    right = page.crop((136, 52, 264, 180))
    assert right.getpixel((8, 30)) == colours[0] and right.getpixel((119, 100)) == colours[1]
    assert page.getpixel((64, 116)) == (255, 255, 255) and right.getpixel((50, 40)) == (0, 0, 0)
    assert (
        side_by_side("x", (None, Panel("guided", guided)), side=64).getpixel((30, 80)) == (255,) * 3
    )


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
def test_pictures_of_any_shape_are_outlined(size: tuple[int, int]) -> None:
    found = outlined(Image.new("RGB", size), [[(-5.0, -5.0, 9e3, 9e3)]], 64)
    assert max(found.size) == 64 and min(found.size) >= 1


def test_boxes_are_numbered_as_one_reads() -> None:
    row = [(x, y, x + 10, y + 10) for y in (0, 30) for x in (40, 0, 20)]
    assert reading_order(row) == [(x, y, x + 10, y + 10) for y in (0, 30) for x in (0, 20, 40)]
    assert reading_order([]) == []


def test_a_png_carries_its_settings_twice() -> None:
    settings = {
        "prompt": "sieben Äpfel, 七",
        "seed": 2**62,
        "steps": 8,
        "size": "64x64",
        "model": "a, b",
    }
    with Image.open(BytesIO(png(Image.new("RGB", (2, 2)), settings))) as image:
        text: dict[str, str] = image.text  # type: ignore[attr-defined]
    assert json.loads(text["countgen"]) == settings
    assert text["parameters"] == parameters(settings)
    prompt, line = text["parameters"].split("\n")
    assert prompt == settings["prompt"]
    assert line == f'Steps: 8, Seed: {2**62}, Size: 64x64, Model: "a, b"'
