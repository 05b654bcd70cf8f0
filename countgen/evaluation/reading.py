"""Run folders as reports and fits read them; nothing is changed, so that a run may still be going on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from countgen.errors import UsageError
from countgen.evaluation.runs import Row, judged

NEEDED = {"method", "id", "image", "nouns", "wanted", "verified", "outcome", "pre"}
"""What every row must have."""


@dataclass(frozen=True)
class RunData:
    """A run folder.

    Attributes:
        rows: judged where a judge could be had.
        settings: run.json; empty for folders without.
    """

    path: Path
    rows: list[Row]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the folder; what is no UTF-8 in it is replaced, for tables and pages hold none."""
        return self.path.resolve().name.encode("utf-8", "replace").decode("utf-8")

    @property
    def config(self) -> dict[str, Any]:
        """What changed its pictures: model, counters, seed, budget."""
        config = self.settings.get("config", {})
        return config if isinstance(config, dict) else {}

    @property
    def model(self) -> str:
        """The generator; folders without run.json are of ``benchmarks.pocket_methods``."""
        return str(self.config.get("model", "pocket"))

    @property
    def cap(self) -> float:
        """Budget of a picture in plain render equivalents."""
        return float(self.config.get("budget") or 64.0)


def read_run(path: Path) -> RunData:
    """The rows of ``results.rank*.jsonl``, or of ``rows.jsonl``; a last line that is cut off is passed over.

    Pocket's pictures that nobody has judged yet are judged now, unless its judge took part in drawing them.

    Raises:
        UsageError: no run folder, an empty one, or a line that is no row, with its file and number.
        OSError: a picture that is to be judged is missing.
    """
    files = sorted(path.glob("results.rank*.jsonl")) or sorted(path.glob("rows.jsonl"))
    if not files:
        raise UsageError(f"{path} is no run folder: it holds no results.rank*.jsonl")
    rows = [row for file in files for row in _rows(file)]
    if not rows:
        raise UsageError(f"the run in {path} has not finished a picture yet")
    settings: Any = {}
    if (path / "run.json").is_file():
        try:
            settings = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path / 'run.json'} is damaged: {error}") from None
    run = RunData(path, rows, settings if isinstance(settings, dict) else {})
    missing = [row for row in rows if row.get("judge") is None]
    if not missing or run.model != "pocket":
        return run
    from countgen.pocket import ROLES, load_critic

    if ROLES["judge"] in (run.config.get("critic"), run.config.get("verifier")):
        return run  # who took part is no judge

    found = iter(judged(missing, load_critic(ROLES["judge"]), path))
    return RunData(
        path, [next(found) if row.get("judge") is None else row for row in rows], settings
    )


def _rows(file: Path) -> Sequence[Row]:
    rows: list[Row] = []
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not row.keys() >= NEEDED:
            raise UsageError(f"{file}, line {number} is no row of a run")
        rows.append(row)
    return rows
