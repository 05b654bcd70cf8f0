"""``countgen learn``: models that learn from counters, and counters themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from countgen.cli.learn_generator import Lora, Noise, Screening, TokenNetwork, Variation
from countgen.files import shown


@dataclass(frozen=True)
class Clip:
    """Teach CLIP to count, with captions and what they would say of other numbers (arXiv 2302.12066).

    It goes on learning as CLIP does, from pictures and their captions. Beside that, pictures whose caption
    counts one thing ("five dogs in the snow") are told from the same caption with a wrong number. The
    result loads as transformers.CLIPModel, finds "four cats" among pictures, and counts as the critic
    count-clip=OUT, down to zero.

    --data is "pocket", whose scenes never end, or a folder with captions: metadata.jsonl or metadata.csv
    with the columns file_name,text; a .txt beside every picture; or CountBench.json. --model is "pocket",
    or a hub id or folder of a CLIP. What was interrupted goes on when the same command is given again.

    Example: countgen learn clip --data pocket --model pocket --share 0.5 --loss all-wrong --steps 500 --out
    taught

    Then: countgen count picture.png --noun cat --critic count-clip=taught
    """

    out: Path
    """Folder for the result, and for its checkpoints, log and samples (work/)."""
    data: str = "pocket"
    """pocket, or a folder of captioned pictures."""
    model: str = "pocket"
    """pocket, or hub id or folder of a CLIP with its tokenizer."""
    loss: Literal["one-wrong", "all-wrong", "decoupled", "group-ordering", "regression-mixup"] = (
        "one-wrong"
    )
    """What is done with wrong numbers: one at random as published, or all of them, in one of four ways."""
    weight: float = 1.0
    """Of that loss beside CLIP's own; 0 leaves it out."""
    share: float = 1 / 32
    """Of the pictures in a batch whose captions count, as published; small batches want more."""
    lowest: int = 0
    """Lowest number that is learned (published: 2)."""
    highest: int = 10
    """Highest number that is learned."""
    filter: str | None = None
    """Keep only captions whose number this critic counts too (see: countgen list critics)."""
    steps: int = 1000
    """Steps of the optimiser."""
    batch: int = 64
    """Pictures a step."""
    learning_rate: float | None = None
    """Peak of AdamW; by default 3e-4 for pocket and 5e-6 for others."""
    seed: int = 0
    """Of data and losses."""
    device: str | None = None
    """cuda, mps or cpu; by default the best there is, and the CPU for pocket."""
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen import presets

        fallback = "cpu" if self.model == "pocket" else presets.best_device()
        device = presets.check_device(self.device or fallback)
        from pipelines.loading import unchanged_settings

        # Libraries remark on what they load at their import.
        with messages.status("loading"), unchanged_settings():
            from countgen.learning import clip

            settings = clip.ClipSettings(
                clip.default_train(
                    self.model, self.steps, self.batch, self.learning_rate, self.seed
                ),
                self.data,
                self.model,
                self.loss,
                self.weight,
                self.share,
                (self.lowest, self.highest),
                self.filter,
            )

        def say(line: str) -> None:
            messages.print(line, markup=False)

        results = clip.train(settings, self.out, device, say)
        _told(self.out, results, self.json)
        return 0


@dataclass(frozen=True)
class Counter:
    """Train a counter from scratch, as its paper trains it, on a small network.

    clip-ebc classifies blocks of the picture into whole counts; hmode blends density experts and orders
    regions by their counts; c-rex finds what an expression refers to ("dogs on the left"), its tokens
    contrasted with all others. --baseline trains the same without what is new in the family, to see what
    that gains.

    --data is "pocket", whose scenes never end, or a folder with COCO's annotations (boxes) or FSC-147's
    (points) beside its pictures. What was interrupted goes on when the same command is given again.

    Example: countgen learn counter --family hmode --data pocket --steps 1000 --out counter

    Then: countgen count picture.png --noun cat --critic hmode=counter
    """

    family: Literal["clip-ebc", "hmode", "c-rex"]
    """Which counter."""
    out: Path
    """Folder for the result, and for its checkpoints and log (work/)."""
    data: str = "pocket"
    """pocket, or a folder of annotated pictures."""
    baseline: bool = False
    """Leave out what is new in the family, for comparison."""
    side: int = 64
    """Of the pictures in pixels, to which they are squeezed; 64 suits pocket, and real pictures want more."""
    steps: int = 1000
    """Steps of the optimiser."""
    batch: int = 16
    """Pictures a step."""
    learning_rate: float = 2e-3
    """Peak of AdamW."""
    seed: int = 0
    """Of weights and data."""
    device: str = "cpu"
    """cuda, mps or cpu."""
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen import presets

        device = presets.check_device(self.device)
        from pipelines.loading import unchanged_settings

        with messages.status("loading"), unchanged_settings():
            from countgen.learning import counters

            settings = counters.CounterSettings(
                counters.default_train(self.steps, self.batch, self.learning_rate, self.seed),
                self.family,
                self.data,
                not self.baseline,
                self.side,
            )
        results = counters.train(settings, self.out, device)
        _told(self.out, results, self.json)
        return 0


@dataclass(frozen=True)
class Learn:
    """Teach a CLIP to count, train a counter, a generator, or what makes first noises better."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Clip, tyro.conf.subcommand("clip")]
        | Annotated[Counter, tyro.conf.subcommand("counter")]
        | Annotated[Lora, tyro.conf.subcommand("lora")]
        | Annotated[Screening, tyro.conf.subcommand("screening")]
        | Annotated[Noise, tyro.conf.subcommand("noise")]
        | Annotated[TokenNetwork, tyro.conf.subcommand("token-network")]
        | Annotated[Variation, tyro.conf.subcommand("variation")]
    ]

    def run(self, messages: Console) -> int:
        return self.command.run(messages)


def _told(out: Path, results: dict[str, Any], as_json: bool) -> None:
    """Where the result lies and its held-out scores, on stdout."""
    document = {"path": shown(out), "held_out": results}
    if as_json:
        print(json.dumps(document))
        return
    print(document["path"])
    for name, scores in results.items():
        numbers = ", ".join(
            f"{key} {value:.3f}" for key, value in scores.items() if isinstance(value, float)
        )
        print(f"  {name}: {numbers}")
