"""``countgen trust``: how sure verified pictures of a model are, fitted on its own runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

if TYPE_CHECKING:
    from countgen.evaluation.reading import RunData
    from countgen.evaluation.runs import Row


@dataclass(frozen=True)
class Trust:
    """Fit how sure a model's verified pictures are, on runs that a judge has counted.

    Take prompts that you do not report. Give other runs, of other seeds, to --check: what they say is how
    far the fit can be believed.

    Example: countgen trust runs/dev --check runs/fresh --out trust.json
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of countgen evaluate."""
    out: Path
    """Where the fit is saved; countgen generate --trust reads it."""
    check: tuple[Path, ...] = ()
    """Run folders of other seeds, on which promise and truth are compared."""
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        """Fit, save, check and print."""
        from countgen.errors import UsageError
        from countgen.evaluation.reading import read_run
        from countgen.evaluation.trust import fit, reliability
        from countgen.files import shown

        if not self.runs:
            raise UsageError("name at least one run folder")
        with messages.status("reading the runs"):
            rows, names, note = _together([read_run(path) for path in self.runs])
            _check_not_reported(rows)
            fitted = fit(rows, names, note)
            document: dict[str, Any] = {
                "file": shown(self.out),
                "fit": asdict(fitted),
                "check": None,
            }
            if self.check:
                fresh, others, _ = _together([read_run(path) for path in self.check])
                if others != names:
                    raise UsageError("the runs to --check are of another model or other counters")
                document["check"] = reliability(fitted, fresh)
        fitted.write(self.out)
        print(json.dumps(document) if self.json else "\n".join(_lines(document)))
        return 0


def _together(runs: Sequence[RunData]) -> tuple[list[Row], dict[str, str], str]:
    """Rows of several runs, the names of what made them, and where they came from.

    Raises:
        UsageError: runs of different models or counters.
    """
    from countgen.errors import UsageError

    names = [_names(run) for run in runs]
    for run, other in zip(runs, names, strict=True):
        if other != names[0]:
            raise UsageError(
                f"{run.path} is of another model or other counters than {runs[0].path}"
            )
    rows = [row for run in runs for row in run.rows]
    methods = ", ".join(dict.fromkeys(row["method"] for row in rows))
    prompts = len({row["id"] for row in rows})
    note = f"{len(rows)} pictures of {prompts} prompts, drawn by {methods}"
    return rows, names[0], note


def _check_not_reported(rows: Sequence[Row]) -> None:
    """Refuse to fit what is reported; a fit is checked on just that.

    Raises:
        UsageError: with the first such prompt.
    """
    from countgen.errors import UsageError

    reported = ("pocket-small", "pocket-dense", "pocket-multi")
    for row in rows:
        if str(row["id"]).startswith(reported):
            raise UsageError(
                f"{row['id']} is a prompt that is reported, and nothing may be fitted to those; evaluate "
                "pocket-dev"
            )


def _names(run: RunData) -> dict[str, str]:
    from countgen.presets import roles

    given = {role: run.config.get(role) for role in ("critic", "verifier", "judge")}
    defaults = roles(run.model) if not all(given.values()) else {}
    counters = {role: str(name or defaults[role]) for role, name in given.items()}
    return {"generator": run.model, **counters}


def _lines(document: dict[str, Any]) -> list[str]:
    fitted, check = document["fit"], document["check"]
    lines = [
        f"{document['file']}  fitted on {fitted['pictures']} verified pictures, of which the judge confirms "
        f"{100 * fitted['agreed']:.1f}%"
    ]
    if check is None:
        return [*lines, "not checked: give runs of other seeds to --check"]
    lines.append(
        f"on {check['pictures']} fresh ones: promised {100 * check['promised']:.1f}%, confirmed "
        f"{100 * check['confirmed']:.1f}%, calibration error {100 * check['calibration_error']:.1f} points"
    )
    for part in check["curve"]:
        low, high = part["confirmed_ci95"]
        lines.append(
            f"    promised {100 * part['promised']:5.1f}%  confirmed {100 * part['confirmed']:5.1f}% "
            f"({100 * low:.0f} to {100 * high:.0f}) of {part['pictures']}"
        )
    return lines
