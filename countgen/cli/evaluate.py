"""``countgen evaluate``: prompt lists through several methods, judged and summed up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from countgen.errors import UsageError
from countgen.evaluation.runner import METHODS, Outcome, Settings, default_draw, evaluate
from countgen.options import DEFAULT_MODEL, CounterOptions, DrawOptions, LoadOptions


@dataclass(frozen=True)
class Evaluate:
    """Draw a list of prompts by several methods, count everything with a judge, and sum it up.

    All methods get the same prompts and noises, and the same budget. The judge is a counter of a third family
    that takes no part in making the pictures. A run that was stopped goes on when the same command is given
    again; torchrun and accelerate launch start several processes, which share the work.

    Example: countgen evaluate --prompts pocket-small --limit 20 --methods none best-of-n engine --out run
    """

    out: Path
    """The run folder: results, pictures, summary and report."""
    prompts: str | None = None
    """A suite (see: countgen list suites), or a list of prompts: txt, csv, jsonl, json or parquet."""
    limit: int | None = None
    """Most prompts to take, every number of kinds and objects by its share in the list."""
    methods: tuple[str, ...] = METHODS
    """What is compared (see: countgen list methods)."""
    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    judge: str | None = None
    """Counter of a third family that has the last word, and no part in making the pictures."""
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    draw: tyro.conf.OmitArgPrefixes[DrawOptions] = field(default_factory=default_draw)
    layout: Literal["countgen", "geneval"] = "countgen"
    """geneval: add the folders that GenEval's own scorer reads."""
    seconds: Annotated[str | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Not taken: a budget in seconds depends on the machine and its load; give --budget."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self, messages: Console) -> int:
        """Evaluate, and print the numbers."""
        if self.seconds is not None:
            raise UsageError(
                "a budget in seconds cannot be reproduced, since it depends on the machine and its load; "
                "give --budget in plain renders"
            )
        if self.prompts is None:
            raise UsageError("--prompts is missing: a suite, such as pocket-small, or a file")
        outcome = evaluate(self._settings(self.prompts), messages, _note(messages))
        return _told(outcome, self.json, messages)

    def _settings(self, prompts: str) -> Settings:
        methods = [name for part in self.methods for name in part.split(",") if name]
        return Settings(
            prompts,
            self.out,
            methods,
            self.model,
            self.counters,
            self.judge,
            self.limit,
            self.load,
            self.draw,
            self.layout,
        )


def _note(messages: Console) -> Any:
    def note(text: str) -> None:
        messages.print(f"note: {text}", markup=False, soft_wrap=True)

    return note


def _told(outcome: Outcome, as_json: bool, messages: Console) -> int:
    """Print what this process has to say; the exit code."""
    if outcome.document is not None:
        print(json.dumps(outcome.document) if as_json else "\n".join(table(outcome.document)))
    if outcome.failed:
        messages.print(
            f"countgen: {outcome.failed} pictures failed and are missing; the same command again draws "
            "them",
            soft_wrap=True,
        )
        return 1
    return 0


def table(document: dict[str, Any]) -> list[str]:
    """The document for people: shares of exact pictures with 95% intervals, and what they cost."""
    lines = [
        f"{document['suite']}: {document['n_prompts']} prompts, {document['n_images']} pictures",
        f"{'method':<18}{'judge exact':>22}{'critic':>9}{'verifier':>9}{'verified':>9}"
        f"{'of these exact':>16}{'PRE':>8}{'PAR-2':>8}",
    ]
    for name, found in document["methods"].items():
        judge, cost, sure = found["judge"], found["cost"], found["verified"]
        low, high = judge["exact_ci95"]
        exact = f"{100 * judge['exact']:.1f}% ({100 * low:.0f} to {100 * high:.0f})"
        right = f"{100 * sure['judge_exact']:.1f}%" if "judge_exact" in sure else "-"
        lines.append(
            f"{name:<18}{exact:>22}"
            f"{100 * found['critic']['exact']:>8.1f}%{100 * found['verifier']['exact']:>8.1f}%"
            f"{100 * sure['share']:>8.1f}%{right:>16}{cost['pre_mean']:>8.1f}{cost['par2']:>8.1f}"
        )
    return lines
