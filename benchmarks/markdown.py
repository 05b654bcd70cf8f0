"""How numbers and tables are written in the documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def percent(share: float | None, interval: Sequence[float] | None = None, digits: int = 0) -> str:
    if share is None:
        return "-"
    shown = f"{100 * share:.{digits}f}%"
    if interval is None:
        return shown
    return f"{shown} ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"
