"""The report of one run or several: a page that needs nothing else, and its figures as csv and parquet."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from countgen import __version__, presets
from countgen.errors import UsageError
from countgen.evaluation import charts
from countgen.evaluation.galleries import GALLERIES, samples
from countgen.evaluation.metrics import evaluation, gap_beyond_plain, is_exact
from countgen.evaluation.quality import PLAIN, measured
from countgen.evaluation.reading import RunData, read_run
from countgen.evaluation.runs import Row, group
from countgen.evaluation.trust import BINS, calibration, find_trust, with_trust
from countgen.files import write

SAMPLES = 8
"""Pictures of one gallery."""
MISSING, MINUS = "–", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Series:
    """One line of every table and chart: a method of a run.

    Attributes:
        numbers: as ``metrics.evaluation`` gives them.
    """

    label: str
    number: int
    numbers: dict[str, Any]

    @property
    def key(self) -> str:
        return charts.key(self.number)


def write_report(run: Path, quality: dict[str, Any] | str | None = None) -> Path:
    """Write ``report.html``, ``report.csv`` and ``report.parquet`` into a run folder; where the page is.

    Args:
        quality: of ``quality.measured``, where it is known already.

    Raises:
        UsageError: no run folder, or a damaged one.
        OSError: the folder cannot be written to.
    """
    return write_reports([run], run / "report.html", quality=quality)


def write_reports(
    runs: Sequence[Path],
    page: Path,
    clip: str | None = None,
    quality: dict[str, Any] | str | None = None,
) -> Path:
    """Compare runs in one page; csv and parquet get its name with their endings.

    Raises:
        UsageError, OSError: as ``write_report``.
    """
    read = [read_run(path) for path in runs]
    rows = _labelled(read)
    document = evaluation(rows, max(run.cap for run in read), _hard(rows))
    _add_gaps(document, rows)
    looks = quality if quality is not None else _quality(read, rows, clip)
    html = render(read, rows, document, looks)
    table = figures(document)
    # The name of a list of prompts may be no UTF-8.
    write(page, html.encode("utf-8", "replace"), replace=True)
    write(page.with_suffix(".csv"), safe_csv(table).encode(), replace=True)
    packed = _parquet(table)
    if packed is not None:
        write(page.with_suffix(".parquet"), packed, replace=True)
    return page


def render(
    runs: Sequence[RunData],
    rows: Sequence[Row],
    document: dict[str, Any],
    quality: dict[str, Any] | str,
) -> str:
    """The page.

    Args:
        rows: of all runs, with "run" and "label".
        document: of ``metrics.evaluation`` of these rows, by label.
        quality: of ``quality.measured``, by label.
    """
    import jinja2
    from markupsafe import Markup

    series = [
        Series(label, number, found)
        for number, (label, found) in enumerate(document["methods"].items())
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "share": _share,
        "figure": _figure,
        "between": _between,
        "signed": _signed,
        "svg": Markup,  # made here, from numbers and escaped words
    }
    source = files("countgen.evaluation").joinpath("templates/report.html").read_text("utf-8")
    paths = _names(runs)
    return environment.from_string(source).render(
        title=", ".join(paths),
        runs=list(zip(paths, runs, strict=True)),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
        document=document,
        budgets=[f"{cap:g}" for cap in sorted({run.cap for run in runs})],
        series=series,
        hard=[one for one in series if one.numbers["hard"]],
        charts=_charts(series) + _reliability(series, rows),
        baseline=_baseline(series),
        quality=quality,
        confusion=[
            (one, charts.heatmap(f"confusion of {one.label}", one.numbers["judge"]["confusion"]))
            for one in series
            if one.numbers["judge"]
        ],
        nouns=sorted(
            {n for one in series for n in (one.numbers["judge"] or {}).get("by_noun", ())}
        ),
        galleries=[
            (
                name,
                told,
                samples(
                    choose(rows), dict(zip(paths, (r.path for r in runs), strict=True)), SAMPLES
                ),
            )
            for name, told, choose in GALLERIES
        ],
        missing=MISSING,
    )


# -- rows -----------------------------------------------------------------------------------------


def _names(runs: Sequence[RunData]) -> list[str]:
    """A name of each run that no other one has."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    ]


def _labelled(runs: Sequence[RunData]) -> list[Row]:
    """The rows of all runs; the method of each is what its line is called."""
    out: list[Row] = []
    for name, run in zip(_names(runs), runs, strict=True):
        for row in _trusted(run):
            label = row["method"] if len(runs) == 1 else f"{row['method']} ({name})"
            out.append(row | {"run": name, "label": label, "plain": row["method"], "method": label})
    return out


def _trusted(run: RunData) -> list[Row]:
    """The rows of a run; verified ones with what is promised of them, where there is a fit."""
    try:
        own = presets.roles(run.model)
    except UsageError:  # a model of another version, or of another machine
        own = {}
    named = {role: run.config.get(role) or own.get(role) for role in ("critic", "verifier")}
    fit = find_trust(run.model, str(named["critic"]), named["verifier"])
    return run.rows if fit is None else with_trust(fit, run.rows)


def _hard(rows: Sequence[Row]) -> set[str]:
    """Ids of the hard third, where these are pocket's prompts."""
    if not any(str(row["id"]).startswith("pocket-") for row in rows):
        return set()
    from countgen.pocket.suites import hard_ids

    return set(hard_ids())


def _add_gaps(document: dict[str, Any], rows: Sequence[Row]) -> None:
    """The gap beyond plain pictures of every line, each against the plain ones of its own run."""
    for own in group(rows, [row["run"] for row in rows]).values():
        labels = {row["plain"]: row["label"] for row in own}
        plain = next((labels[name] for name in reversed(PLAIN) if name in labels), None)
        for label in labels.values():
            if plain not in (None, label):
                document["methods"][label]["gap_beyond_plain"] = {
                    role: gap_beyond_plain(own, label, role, plain)
                    for role in ("critic", "verifier")
                }


def _baseline(series: Sequence[Series]) -> str | None:
    """What the others are compared with: drawing again, else one plain picture, else the first."""
    for method in PLAIN:
        for one in series:
            if one.label == method or one.label.startswith(f"{method} ("):
                return one.label
    return series[0].label if len(series) > 1 else None


def _quality(
    runs: Sequence[RunData], rows: Sequence[Row], clip: str | None
) -> dict[str, Any] | str:
    """Pictures against exact plain ones, or why there is nothing to say."""
    out: dict[str, Any] = {}
    for name, run in zip(_names(runs), runs, strict=True):
        own = [row | {"method": row["plain"]} for row in rows if row["run"] == name]
        if any(row.get("judge") is None for row in own):
            return "Not measured: some pictures are not judged."
        found = measured(own, run.path, run.model, clip)
        if isinstance(found, str):
            return found
        labels = {row["method"]: row["label"] for row in own}
        out |= {labels[method]: value for method, value in found.items()}
    return out


# -- charts ---------------------------------------------------------------------------------------


def _charts(series: Sequence[Series]) -> list[tuple[str, str, str]]:
    """Title, what it shows, and the chart."""
    Point = charts.Point
    judged = [one for one in series if one.numbers["judge"]]
    out = []
    curves = [
        [Point(float(cap), share) for cap, share in one.numbers["success_by_cap"].items()]
        for one in series
    ]
    caps = charts.powers("budget of a picture, in plain renders (PRE)", [p.x for p in curves[0]])
    out.append(
        (
            "Success against budget",
            "Share of pictures that are verified and exact for the judge within a budget.",
            charts.chart("success against budget", curves, caps, charts.shares()),
        )
    )
    if not judged:
        return out
    counts = [
        [
            # Side by side, so that no interval hides another.
            Point(
                int(n) + 0.5 * (place + 0.5) / len(judged) - 0.25,
                value,
                tuple(one.numbers["judge"]["by_count_ci95"][n]),
            )
            for n, value in one.numbers["judge"]["by_count"].items()
        ]
        for place, one in enumerate(judged)
    ]
    every = [round(p.x) for points in counts for p in points]
    out.append(
        (
            "By count",
            "Share that is exact for the judge, by how many objects were wanted in all.",
            charts.chart(
                "exact by count", counts, charts.numbers("objects wanted", every), charts.shares()
            ),
        )
    )
    costs = [
        [
            Point(
                one.numbers["cost"]["pre_mean"],
                one.numbers["judge"]["exact"],
                tuple(one.numbers["judge"]["exact_ci95"]),
            )
        ]
        for one in judged
    ]
    spent = charts.powers("mean cost of a picture (PRE)", [points[0].x for points in costs])
    out.append(
        (
            "Cost against accuracy",
            "Higher is more often exact for the judge, further left is cheaper.",
            charts.chart("cost against accuracy", costs, spent, charts.shares(), joined=False),
        )
    )
    return out


def _reliability(series: Sequence[Series], rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """What was promised of verified pictures, against what the judge confirms; nothing where too few were."""
    import numpy as np

    curves: list[list[charts.Point]] = []
    told = []
    for one in series:
        own = [r for r in rows if r["method"] == one.label and "trust" in r and r.get("judge")]
        curves.append([])
        if len(own) < 2 * BINS:
            continue
        promised, agreed = np.array([r["trust"] for r in own]), np.array([is_exact(r) for r in own])
        found = calibration(promised, agreed)
        told.append(f"{one.label} {100 * found['calibration_error']:.1f}")
        curves[-1] = [
            charts.Point(part["promised"], part["confirmed"], tuple(part["confirmed_ci95"]))
            for part in found["curve"]
        ]
    if not told:
        return []
    lowest = min(point.x for points in curves for point in points)
    x = charts.percents("promised that a judge confirms", math.floor(20 * lowest) / 20)
    picture = charts.chart("reliability", curves, x, charts.shares(), diagonal=True)
    said = (
        "How sure countgen said that verified pictures are, in groups of equally many, and the share that "
        "the judge confirms; on the dashed line promises are kept. Mean distance from it, in points: "
    )
    return [("Reliability", f"{said}{', '.join(told)}.", picture)]


# -- figures as a table ---------------------------------------------------------------------------


def figures(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a figure: method, prompts ("all" or "hard"), role, measure, value and its 95% interval."""
    table = []
    for method, numbers in document["methods"].items():
        for prompts, part in (("all", numbers), ("hard", numbers["hard"])):
            for role in ("critic", "verifier", "judge", "verified", "cost"):
                for measure, value in ((part or {}).get(role) or {}).items():
                    if isinstance(value, (int, float)):
                        low, high = part[role].get(f"{measure}_ci95", (None, None))
                        table.append(
                            {
                                "method": method,
                                "prompts": prompts,
                                "role": role,
                                "measure": measure,
                                "value": float(value),
                                "ci95_low": low,
                                "ci95_high": high,
                            }
                        )
    return table


def safe_csv(table: Sequence[dict[str, Any]]) -> str:
    """Rows as csv in which no text is taken for a formula by a spreadsheet."""
    out = StringIO()
    names = list(table[0]) if table else []
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_cell(row[name]) for name in names] for row in table])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip(" \t\r\n")[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return value


def _parquet(table: Sequence[dict[str, Any]]) -> bytes | None:
    """The same as parquet; None where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None
    buffer = BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(table)), buffer)
    return buffer.getvalue()


# -- numbers as they are read ---------------------------------------------------------------------


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}%"


def _figure(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", MINUS)


def _between(interval: Sequence[float] | None, scale: float = 100, digits: int = 0) -> str:
    """An interval as it stands behind its value."""
    if interval is None:
        return ""
    low, high = (f"{scale * x:.{digits}f}".replace("-", MINUS) for x in interval)
    return f"{low} to {high}"
