"""A list that was drawn on the page, to be taken along: a run folder with its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from countgen.evaluation.runs import Row


def report_files(
    config: Mapping[str, Any], name: str, pictures: Sequence[tuple[Row, bytes]]
) -> list[tuple[str, bytes]]:
    """Name and content of every file: a folder as ``countgen evaluate`` writes it, and a table for people.

    Args:
        config: what the pictures were drawn with, under the names of ``run.json``.
        name: of the list.
        pictures: the row of each, with the PNG file that its "picture" names.
    """
    from countgen.evaluation.folder import Results, RunFolder
    from countgen.evaluation.report import safe_csv, write_report

    with TemporaryDirectory(prefix="countgen-report-") as scratch:
        folder = RunFolder(Path(scratch) / Path(name).stem, config)
        folder.path.mkdir()
        folder.begin({"suite": name})
        with closing(Results(folder, 0)) as results:
            for row, picture in pictures:
                results.append(row, picture)
        write_report(folder.path)
        table = [told_row(row) | {"picture": row["picture"]} for row, _ in pictures]
        (folder.path / "pictures.csv").write_text(safe_csv(table), encoding="utf-8")
        files = sorted(path for path in folder.path.rglob("*") if path.is_file())
        return [(str(path.relative_to(scratch)), path.read_bytes()) for path in files]


def told_row(row: Row) -> dict[str, Any]:
    """A row of a table for people."""

    def counts(key: str) -> str:
        return ", ".join(map(str, row.get(key) or ())) or "-"

    return {
        "prompt": row["prompt"],
        "wanted": counts("wanted"),
        "critic": counts("critic"),
        "verifier": counts("verifier"),
        "judge": counts("judge"),
        "verified": "yes" if row["verified"] else "no",
        "outcome": row["outcome"],
        "cost": f"{row['pre']:.1f}",
    }
