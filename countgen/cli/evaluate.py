"""``countgen evaluate``: prompt lists through several methods, or finished pictures, judged and summed up."""

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
from countgen.prompts import pluralise


@dataclass(frozen=True)
class Evaluate:
    """Draw a list of prompts by several methods, or take finished pictures; judge all, and sum it up.

    All methods get the same prompts and noises, and the same budget. The judge is a counter of a third family
    that takes no part in making the pictures. A run that was stopped goes on when the same command is given
    again; torchrun and accelerate launch start several processes, which share the work.

    With --images nothing is drawn: one or several judges count the pictures of a folder that any tool has
    made, and are scored themselves where the true counts are given.

    Example: countgen evaluate --prompts pocket-small --limit 20 --methods none best-of-n engine --out run
    """

    out: Path | None = None
    """The run folder: results, pictures, summary and report. With --images for its results, if wanted."""
    prompts: str | None = None
    """A suite (see: countgen list suites), or a list of prompts: txt, csv, jsonl, json or parquet."""
    images: Path | None = None
    """In place of --prompts: finished pictures, in GenEval's layout, with a pictures.csv, or a run."""
    truth: Path | None = None
    """With --images: table or annotations (COCO, FSC-147, CountBench, GeckoNum) of what is in them."""
    split: str | None = None
    """With --images, of FSC-147: train, val or test."""
    judges: tuple[str, ...] = ()
    """With --images: the counters that judge (see: countgen list critics)."""
    absent: int = 1
    """With --images and --truth: nouns a picture that are not in it, for which counters are tested."""
    limit: int | None = None
    """Most prompts, every number of kinds and objects by its share in the list; or most pictures."""
    methods: tuple[str, ...] = METHODS
    """What is compared (see: countgen list methods)."""
    recipe: str | None = None
    """A published protocol, with its own prompts, models and methods (see: countgen list recipes)."""
    model: str | None = None
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder; by default pocket, or
    what the recipe names."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    judge: str | None = None
    """Counter of a third family that has the last word, and no part in making the pictures."""
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    draw: tyro.conf.OmitArgPrefixes[DrawOptions] = field(default_factory=default_draw)
    layout: Literal["countgen", "geneval"] = "countgen"
    """geneval: add the folders that GenEval's own scorer reads."""
    clip: str | None = None
    """A CLIP, by hub id or folder, that measures how pictures look and fit (CLIPScore, kernel distance,
    diversity); pocket has its own, and for other models there is no measure without one."""
    seconds: Annotated[str | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Not taken: a budget in seconds depends on the machine and its load; give --budget."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self, messages: Console) -> int:
        """Evaluate, and print the numbers; 1 where a picture failed."""
        if [self.prompts, self.images, self.recipe].count(None) != 2 and not (
            self.recipe and self.images is None
        ):
            raise UsageError(
                "give one of --prompts, a suite such as pocket-small or a file; --images, a folder of "
                "finished pictures; or --recipe, a published protocol"
            )
        if self.images is not None:
            return self._run_images(self.images, messages)
        if self.truth or self.split or self.judges:
            raise UsageError(
                "--truth, --split and --judges go with --images; --prompts has one --judge"
            )
        if self.seconds is not None:
            raise UsageError(
                "a budget in seconds cannot be reproduced, since it depends on the machine and its load; "
                "give --budget in plain renders"
            )
        if self.out is None:
            raise UsageError("--out is missing: the folder for results and pictures")
        if self.recipe is not None:
            return self._run_recipe(self.recipe, self.out, messages)
        outcome = evaluate(self._settings(str(self.prompts), self.out), messages, _note(messages))
        return _told(outcome, self.json, messages)

    def _run_recipe(self, name: str, out: Path, messages: Console) -> int:
        """Every model of a published protocol, each in a run folder of its own; the greatest exit code."""
        from countgen.evaluation.recipes import load_recipe

        code, documents = 0, dict[str, Any]()
        runs = load_recipe(name).on(self.model)
        for settings in runs.settings(out, self.prompts, self.limit, self.load):
            outcome = evaluate(settings, messages, _note(messages))
            documents[settings.model] = outcome.document
            code = max(code, _told(outcome, False, messages, silent=self.json))
        if self.json and any(documents.values()):
            print(json.dumps({"recipe": name, "models": documents}))
        return code

    def _run_images(self, folder: Path, messages: Console) -> int:
        from countgen.evaluation import images

        if self.judge and self.judges:
            raise UsageError("name every judge with --judges; --judge is one for --prompts")
        options = images.ImageOptions(
            folder,
            self.truth,
            self.split,
            self.judges or ((self.judge,) if self.judge else ()),
            self.absent,
            self.limit,
            self.draw.seed,
            self.draw.batch_size,
            self.load.device,
            self.out,
        )
        with messages.status("loading the judges") as status:
            document = images.evaluate_images(
                options,
                note=_note(messages),
                progress=lambda done, total: status.update(f"{done} of {total} pictures judged"),
            )
        print(json.dumps(document) if self.json else "\n".join(images.table(document)))
        return 1 if document["failed"] else 0

    def _settings(self, prompts: str, out: Path) -> Settings:
        methods = [name for part in self.methods for name in part.split(",") if name]
        return Settings(
            prompts,
            out,
            methods,
            self.model or DEFAULT_MODEL,
            self.counters,
            self.judge,
            self.limit,
            self.load,
            self.draw,
            self.layout,
            self.clip,
        )


def _note(messages: Console) -> Any:
    def note(text: str) -> None:
        messages.print(f"note: {text}", markup=False, soft_wrap=True)

    return note


def _told(outcome: Outcome, as_json: bool, messages: Console, silent: bool = False) -> int:
    """Print what this process has to say; the exit code."""
    if outcome.document is not None and not silent:
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
        f"{document['suite']}: {document['n_prompts']} {pluralise('prompt', document['n_prompts'])}, "
        f"{document['n_images']} {pluralise('picture', document['n_images'])}",
        f"{'method':<18}{'judge exact':>22}{'critic':>9}{'verifier':>9}{'verified':>9}"
        f"{'of these exact':>16}{'PRE':>8}{'PAR-2':>8}",
    ]
    for name, found in document["methods"].items():
        judge, cost, sure = found["judge"], found["cost"], found["verified"]
        low, high = judge["exact_ci95"]
        exact = f"{100 * judge['exact']:.1f}% ({100 * low:.0f} to {100 * high:.0f})"
        shares = (found["critic"]["exact"], found["verifier"]["exact"], sure["share"])
        right = f"{100 * sure['judge_exact']:.1f}%" if "judge_exact" in sure else "-"
        lines.append(
            f"{name:<18}{exact:>22}{''.join(f'{100 * share:>8.1f}%' for share in shares)}"
            f"{right:>16}{cost['pre_mean']:>8.1f}{cost['par2']:>8.1f}"
        )
    return lines
