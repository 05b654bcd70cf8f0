"""``countgen dataset``: verified pictures with boxes and counts, to train detectors and generators on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from countgen.learning.dataset import FORMATS, DatasetSettings, Made, make_dataset
from countgen.options import DEFAULT_METHOD, DEFAULT_MODEL, CounterOptions, DrawOptions, LoadOptions


@dataclass(frozen=True)
class Dataset:
    """Draw a list of prompts, and keep the verified pictures with their boxes as a dataset.

    Several kinds a picture where the prompts name several. Written as COCO (annotations.json), for YOLO
    trainers (dataset.yaml, labels/), and as an image folder (metadata.jsonl). A run that was stopped goes on
    when the same command is given again.

    Example: countgen dataset --prompts pocket-multi --num-images 10 --out dataset
    """

    prompts: str
    """A suite (see: countgen list suites), or a list of prompts: txt, csv, jsonl, json or parquet."""
    out: Path
    """The dataset's folder; made if it does not exist."""
    formats: tuple[Literal["coco", "yolo", "imagefolder"], ...] = FORMATS
    """What is written beside the pictures."""
    limit: int | None = None
    """Most prompts, every number of kinds and objects by its share in the list."""
    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    method: str = DEFAULT_METHOD
    """How a picture is made exact (see: countgen list methods)."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    draw: tyro.conf.OmitArgPrefixes[DrawOptions] = field(default_factory=DrawOptions)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        settings = DatasetSettings(
            self.prompts,
            self.out,
            self.model,
            self.method,
            self.counters,
            self.limit,
            self.load,
            self.draw,
            self.formats,
        )

        def note(text: str) -> None:
            messages.print(f"note: {text}", markup=False, soft_wrap=True)

        with messages.status("loading the model and its counters") as status:

            def progress(made: Made) -> None:
                status.update(
                    f"{made.tried} of {made.wanted} tried, {made.verified} verified, "
                    f"{made.pre / max(made.tried, 1):.1f} plain renders each"
                )

            document = make_dataset(settings, note, progress)
        if self.json:
            print(json.dumps(document))
            return 0
        print(
            f"{document['path']}  {document['verified']} verified pictures of {document['wanted']}, "
            f"{sum(document['objects'].values())} objects of {len(document['objects'])} kinds"
        )
        return 0
