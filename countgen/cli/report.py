"""``countgen report``: the page of one run, or of several compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Report:
    """Write a page with the figures and samples of a run, or of several compared.

    The page needs no network and nothing beside it. Its figures are written as csv and parquet, too.

    Example: countgen report runs/first runs/second --out comparison.html
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of countgen evaluate."""
    out: Path | None = None
    """Where the page goes; report.html in the run's folder, or for several here, if not given."""
    clip: str | None = None
    """A CLIP, by hub id or folder, that measures how pictures look and fit; pocket has its own."""
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        """Write the page and print where it is."""
        from countgen.errors import UsageError
        from countgen.files import shown

        if not self.runs:
            raise UsageError("name at least one run folder")
        page = self.out or (self.runs[0] if len(self.runs) == 1 else Path()) / "report.html"
        if page.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out names the page, which ends in .html, not {page}")
        from countgen.evaluation.report import write_reports

        with messages.status("reading the runs"):
            write_reports(self.runs, page, self.clip)
        files = [page, page.with_suffix(".csv"), page.with_suffix(".parquet")]
        there = [shown(path) for path in files if path.is_file()]
        print(json.dumps({"files": there}) if self.json else "\n".join(there))
        return 0
