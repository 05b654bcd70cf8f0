"""Damaged folders: one file deleted, truncated, swapped with another, or given other types."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

JUNK: tuple[Any, ...] = (None, 3, -1, 10**12, 0.5, "", "x", [], {}, [None], {"a": 1}, True, "NaN")


def damage(random: Random, folder: Path) -> str:
    """Change one file of a folder; in words, what was changed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = random.choice(files)
    name = str(path.relative_to(folder))
    data = path.read_bytes()
    path.unlink()  # it may be a link to the original
    kind = random.choice(("delete", "truncate", "swap", "types", "types", "flip", "junk"))
    if kind == "delete":
        return f"{name} deleted"
    if kind == "truncate":
        kept = random.choice((0, 1, len(data) // 2, max(0, len(data) - 1)))
        path.write_bytes(data[:kept])
        return f"{name} cut to {kept} bytes"
    if kind == "swap":
        other = random.choice(files)
        path.write_bytes(data if other == path else other.read_bytes())
        return f"{name} holds {other.relative_to(folder)}"
    if kind == "types" and path.suffix == ".json":
        document = json.loads(data)
        where, value = _change(random, document)
        path.write_text(json.dumps(value if where == "" else document))
        return f"{name}{where} is {value!r}"
    if kind == "flip" and data:
        place = random.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        return f"{name} has another byte at {place}"
    junk = random.choice((b"null", b"3", b"[]", b"{}", b"\xff\xfe", b"\x80\x04K\x01.", b'{"a":'))
    path.write_bytes(junk)
    return f"{name} is {junk!r}"


def _change(random: Random, document: Any) -> tuple[str, Any]:
    """Put junk somewhere into a JSON document; where (empty for all of it), and what."""
    value, trail, here = random.choice(JUNK), "", document
    if random.random() < 0.1 or not isinstance(document, dict) or not document:
        return "", value
    while True:
        key = random.choice(sorted(here))
        trail += f".{key}"
        below = here[key]
        if isinstance(below, dict) and below and random.random() < 0.7:
            here = below
            continue
        if random.random() < 0.2:
            del here[key]
            return trail, "missing"
        here[key] = value
        return trail, value
