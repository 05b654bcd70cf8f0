"""The page holds everything, runs nothing that a prompt or a folder's name says, and its csv is safe."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from countgen.errors import UsageError
from countgen.evaluation.reading import read_run
from countgen.evaluation.report import safe_csv, write_report, write_reports
from countgen.evaluation.summing import write_parquet

EVIL = '<script>alert("x")</script>'


def run_folder(path: Path, method: str = "edit", prompt: str = "two cats", **more: Any) -> Path:
    """A run of two methods and three prompts, judged."""
    path.mkdir()
    rows = []
    for name in ("best-of-n", method):
        for number in range(3):
            picture = f"{'plain' if name == 'best-of-n' else 'own'}-{number}.png"
            Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(path / picture)
            found = 2 + (number == 2)
            rows.append(
                {
                    "method": name, "id": f"p{number}", "image": 0, "nouns": ["cat"], "wanted": [2],
                    "critic": [2], "verifier": [2], "judge": [found], "verified": True,
                    "outcome": "exact", "pre": 2.0 + number, "steps": 0, "prompt": prompt,
                    "tries": 2, "confidence": {"critic": 0.9, "verifier": 0.9},
                    "boxes": {"cat": [[3, 3, 20, 20], [30, 30, 60, 60]]}, "picture": picture,
                }
                | more
            )  # fmt: skip
    (path / "results.rank0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"schema": 1, "config": {"model": "some/model", "budget": 32.0}, "versions": {}}
    (path / "run.json").write_text(json.dumps(record))
    return path


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run")).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    for words in (
        "best-of-n",
        "edit",
        "66.7%",
        "PAR-2",
        "prefers-color-scheme: dark",
        "some/model",
    ):
        assert words in page
    assert page.count("data:image/webp") == 2 + 1 + 1  # best two, the worst, the disputed
    assert page.count("<svg viewBox") == 3 and page.count('class="heat"') == 2


def test_nothing_of_a_run_is_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", EVIL.replace("/", ""), EVIL, outcome=EVIL)
    page = write_report(run).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_csv_cells_are_no_formulas(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "=1+1")
    write_report(run)
    cells = [row[0] for row in csv.reader(io.StringIO((run / "report.csv").read_text()))]
    assert "'=1+1" in cells and "=1+1" not in cells
    assert safe_csv([{"a": " @x", "b": -2.0}]) == "a,b\n' @x,-2.0\n"


def test_the_figures_are_beside_it(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = run_folder(tmp_path / "run")
    write_report(run)
    table = parquet.read_table(run / "report.parquet").to_pylist()
    exact = [
        r for r in table if (r["method"], r["role"], r["measure"]) == ("edit", "judge", "exact")
    ]
    assert [round(row["value"], 3) for row in exact] == [0.667] and exact[0]["ci95_high"] == 1.0


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    runs = [run_folder(tmp_path / "run"), run_folder(tmp_path / "a" / "run")]
    page = write_reports(runs, tmp_path / "both.html").read_text()
    assert "edit (run (1))" in page and "edit (run (2))" in page and "Against best-of-n" in page


def test_failures_cost_the_same_in_runs_of_other_budgets_and_the_page_says_so(
    tmp_path: Path,
) -> None:
    runs = [run_folder(tmp_path / name) for name in ("a", "b")]
    assert "largest of all runs" not in write_reports(runs, tmp_path / "both.html").read_text()
    settings = json.loads((runs[1] / "run.json").read_text())
    settings["config"]["budget"] = 8.0
    (runs[1] / "run.json").write_text(json.dumps(settings))
    page = write_reports(runs, tmp_path / "both.html").read_text()
    assert "the largest of all runs for every one of them (8, 32)" in page


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems take no file name that is not UTF-8"
)
def test_folders_and_lists_whose_names_are_no_utf8_are_reported(tmp_path: Path) -> None:
    name = os.fsdecode(b"run\xff")
    run = run_folder(tmp_path / name)
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(settings | {"suite": f"{name}.csv"}))
    assert "run?" in write_report(run).read_text()
    found = [json.loads(line) for line in (run / "results.rank0.jsonl").read_text().splitlines()]
    assert write_parquet(found, run / "results.parquet")
    (tmp_path / "b").mkdir()
    runs = [run, run_folder(tmp_path / "b" / "run")]
    page = write_reports(runs, tmp_path / "both.html")
    assert "run?" in page.read_text() and "run?" in page.with_suffix(".csv").read_text()


def test_every_run_has_its_own_plain_pictures(tmp_path: Path) -> None:
    """The critic finds all exact, the judge two of three, in plain pictures as well: no gap beyond theirs."""
    runs = [run_folder(tmp_path / name) for name in ("a", "b")]
    page = write_reports(runs, tmp_path / "both.html").read_text()
    gaps = page.split("Three counters side by side")[1].split("</table>")[0]
    lines = re.findall(r"<th>(\S+ \(\w\))</th>(.*?)</tr>", gaps, re.DOTALL)
    assert [name for name, _ in lines] == ["best-of-n (a)", "edit (a)", "best-of-n (b)", "edit (b)"]
    assert ["+0.0" in cells for _, cells in lines] == [False, True, False, True]


def test_promises_are_held_against_the_judge_where_there_is_a_fit(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert "Reliability" not in write_report(run).read_text()  # no fit for some/model
    names = {"critic": "pocket-detector-a", "verifier": "pocket-density"}
    (run / "run.json").write_text(json.dumps({"config": {"model": "pocket", **names}}))
    file = run / "results.rank0.jsonl"
    lines = file.read_text().splitlines()
    more = [line.replace('"id": "p', f'"id": "{n}-p') for n in range(4) for line in lines]
    file.write_text("\n".join(more) + "\n")
    page = write_report(run).read_text()
    assert "Reliability" in page and page.count("% sure") >= 4
    # Two of three are confirmed, and more was promised of all of them.
    distance = float(re.findall(r"in points: best-of-n ([\d.]+)", page)[0])
    assert 20 < distance < 34


def test_a_run_that_is_still_going_on_is_read_and_left_alone(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    file = run / "results.rank0.jsonl"
    text = file.read_text() + '{"method": "ed'
    file.write_text(text)
    assert len(read_run(run).rows) == 6 and file.read_text() == text


def test_pictures_outside_of_the_run_are_not_shown(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = run_folder(tmp_path / "run", picture="../secret.png")
    assert "data:image" not in write_report(run).read_text()


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        write_report(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UsageError, match="not finished a picture"):
        write_report(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UsageError, match="line 1 is no row"):
        write_report(tmp_path)
