"""Requests that no honest visitor sends: 200 and more calls of the page's functions, and uploads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from gradio_client import handle_file
from PIL import Image

Call = tuple[str, dict[str, Any]]

NO_TEXTS: list[Any] = [3, 1.5, True, [], ["two cats"], {"a": 1}, {"path": "/etc/hosts"}]
NO_NUMBERS: list[Any] = ["64", "", "DROP TABLE", [], [1], {}, {"$gt": 0}, True, False]
NO_CHOICES: list[Any] = ["nope", "../../etc/passwd", "/etc", 3, True, ["pocket"], {}, "pocket\0"]
PROMPTS: list[Any] = [
    "",
    " \t\n ",
    "\0\0\0",
    "x" * 501,
    "two cats " * 10_000,
    "minus three cats",
    "-5 cats",
    "21 cats",
    "10000000000000000000000 cats",
    "999 cats",
    "two unicorns",
    "3 <script>alert(1)</script>s",
]


def hostile_calls() -> Iterator[Call]:
    """Wrong values for every parameter, one at a time."""
    for prompt in PROMPTS:
        yield "/generate", {"prompt": prompt, "method": "none"}
        yield "/compare", {"prompt": prompt, "methods": ["none"]}
    for name in ("/generate", "/compare"):
        right: dict[str, Any] = {"prompt": "two cats"}
        right |= {"method": "none"} if name == "/generate" else {"methods": ["none"]}
        wrong: dict[str, list[Any]] = {
            "prompt": NO_TEXTS,
            "seed": [*NO_NUMBERS, -1, 1.5, 2**53, 10**30, 1e300],
            "budget": [*NO_NUMBERS, -1, 257, 1e300],
            "model": NO_CHOICES,
            "critic": NO_CHOICES,
        }
        if name == "/generate":
            wrong["method"] = NO_CHOICES
            wrong["noun"] = [*NO_TEXTS, "x" * 61]
        else:
            wrong["methods"] = [
                [],
                "none",
                3,
                {},
                ["nope"],
                [["none"]],
                ["none", "edit", "noise", "engine", "best-of-n"],
            ]
        for parameter, values in wrong.items():
            for value in values:
                if value not in ([], {}, "") or parameter not in ("model", "critic", "method"):
                    if parameter == "noun" and value in ([], {}):
                        continue
                    yield name, {**right, parameter: value}
    for number in [*NO_NUMBERS, -1, 2.5, 51, 10**30]:
        yield "/generate", {"prompt": "", "noun": "cat", "number": number, "method": "none"}


def hostile_uploads(folder: Path) -> Iterator[Call]:
    """Files that are no pictures and no lists, or ones made to break what reads them."""
    good = _png(Image.new("RGB", (64, 64), "white"))
    pictures: dict[str, bytes] = {
        "empty.png": b"",
        "text.png": b"not a picture",
        "zeros.png": bytes(1000),
        "cut.png": good[:40],
        "flipped.png": good[:30] + bytes([good[30] ^ 255]) + good[31:],
        "bomb.png": _bomb(60_000, 60_000),
        "wide.png": _bomb(20_000, 1_000),
        "thin.png": _png(Image.new("RGB", (2000, 9))),
        "dot.png": _png(Image.new("RGB", (1, 1))),
        "gif.png": _as(Image.new("RGB", (64, 64)), "GIF"),
        "bmp.png": _as(Image.new("RGB", (64, 64)), "BMP"),
        "tiff.png": _as(Image.new("RGB", (64, 64)), "TIFF"),
        "ico.png": _as(Image.new("RGB", (64, 64)), "ICO"),
        "page.png": b"<html><script>alert(1)</script></html>",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "entity.svg": b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><svg>&b;</svg>",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "jpeg.jpg": b"\xff\xd8\xff\xe0" + bytes(100),
        "zip.png": b"PK\x03\x04" + bytes(100),
    }
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
        yield "/count", {"picture": handle_file(str(folder / name)), "noun": "cat"}
    right = folder / "right.png"
    right.write_bytes(good)
    for noun in ["", " ", "unicorn", "a,b,c,d", "x" * 201, *NO_TEXTS]:
        yield "/count", {"picture": handle_file(str(right)), "noun": noun}
    for counters in ([], ["nope"], "pocket-density", 3, [["pocket-density"]]):
        values = {"picture": handle_file(str(right)), "noun": "cat", "counters": counters}
        yield "/count", values
    lists: dict[str, bytes] = {
        "empty.txt": b"",
        "no-count.txt": b"a quiet sea\n",
        "long.txt": b"two cats\n" * 51,
        "line.txt": b"two cats " * 100,
        "binary.txt": bytes(range(256)) * 10,
        "utf16.txt": "two cats".encode("utf-16"),
        "many.txt": b"999 cats\n",
        "unicorn.txt": b"two unicorns\n",
        "columns.csv": b"a,b\n1,2\n",
        "count.csv": b"prompt,noun,count\ntwo cats,cat,two\n",
        "minus.csv": b"prompt,noun,count\ntwo cats,cat,-2\n",
        "short.csv": b"prompt,noun,count\ntwo cats,cat\n",
        "quote.csv": b'prompt,noun,count\n"two cats,cat,2\n',
        "broken.jsonl": b'{"prompt": "two cats"\n',
        "array.jsonl": b"[1, 2]\n",
        "deep.jsonl": b"[" * 10_000 + b"\n",
        "type.jsonl": b'{"prompt": 3}\n',
        "target.jsonl": b'{"prompt": "two cats", "targets": [{"noun": "cat", "count": 1e99}]}\n',
        "list.exe": b"MZ",
        "list": b"two cats\n",
        "large.txt": b"two cats\n" * 200_000,
    }
    for name, data in lists.items():
        (folder / name).write_bytes(data)
        yield "/batch", {"prompts": handle_file(str(folder / name)), "method": "none"}


def _png(image: Image.Image) -> bytes:
    return _as(image, "PNG")


def _as(image: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
