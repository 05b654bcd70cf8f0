"""``countgen token fit|apply``: a count token is fitted on prompts, and used in others as it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from countgen.cli.generate import Generate
from countgen.errors import UsageError
from countgen.options import DEFAULT_MODEL, CounterOptions, LoadOptions

if TYPE_CHECKING:
    from countgen.guidance.tokens import FitState, LearnedToken


@dataclass(frozen=True)
class Fit:
    """Fit the embedding of a count token on one prompt or several, and save it.

    Diffusers' own load_textual_inversion reads the file.

    Example: countgen token fit "a photo of seven cats" "a photo of seven cups" --out seven.safetensors
    """

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Prompts that ask for a number."""
    out: Path
    """Where the token is saved, a .safetensors file."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to count, in place of what the prompts say, such as --target "cat=7"; may be repeated."""
    token: str = "<count>"
    """How the token is written in a prompt."""
    place: Literal["before", "instead"] = "before"
    """Where it stands: before the number, or instead of it."""
    steps: int = 50
    """Gradient steps over the batch."""
    lr: float = 0.01
    """Learning rate."""
    num_images: int = 4
    """Noises of each prompt in the batch."""
    seed: int = 0
    """The same seed and prompts give the same token."""
    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        with messages.status("loading the model and its counters") as status:

            def progress(state: FitState) -> None:
                off = sum(
                    abs(a - b)
                    for row, want in zip(state.hard, state.wanted, strict=True)
                    for a, b in zip(row, want, strict=True)
                )
                mean = off / len(state.hard)
                status.update(
                    f"step {state.step + 1} of {self.steps}: loss {state.loss:.3f}, off by {mean:.2f}"
                )

            learned = fit(self, progress)
        document = {"path": str(self.out), "token": learned.token, **learned.about}
        print(json.dumps(document) if self.json else f"{self.out}  {learned.token}")
        return 0


@dataclass(frozen=True)
class Apply:
    """Draw a prompt with a count token, without optimising anything.

    Example: countgen token apply seven.safetensors "seven dogs on grass" --out pictures
    """

    token: Annotated[Path, tyro.conf.Positional]
    """What ``countgen token fit`` saved."""
    draw: tyro.conf.OmitArgPrefixes[Generate]

    def run(self, messages: Console) -> int:
        from countgen.guidance.tokens import LearnedToken

        return self.draw.run(messages, LearnedToken.load(self.token))


@dataclass(frozen=True)
class Token:
    """Count tokens: fit one, or draw with one."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Fit, tyro.conf.subcommand("fit")]
        | Annotated[Apply, tyro.conf.subcommand("apply")]
    ]

    def run(self, messages: Console) -> int:
        return self.command.run(messages)


def fit(options: Fit, progress: Any = lambda state: None) -> LearnedToken:
    """Fit a token and save it.

    Raises:
        UsageError: a prompt without a number, numbers out of range, or a pipeline without text encoder.
        OSError: the file cannot be written.
    """
    from dataclasses import replace

    from countgen import presets

    if options.steps < 1 or options.num_images < 1 or not options.lr > 0:
        raise UsageError("steps and images must be at least 1, and the learning rate positive")
    preset = presets.find_preset(options.model)
    targets = presets.read_targets(options.target)
    prompts = [presets.read_prompt(text, targets, preset) for text in options.prompts]
    if not prompts or not all(prompt.targets for prompt in prompts):
        raise UsageError('name prompts that ask for a number, such as "a photo of seven cats"')
    folder = options.out.parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} to save the token in")
    if options.out.is_dir():
        raise UsageError(f"{options.out} is a folder; name a file in it to save the token in")
    device = presets.check_device(options.load.device or preset.default_device)
    from countgen.guidance.tokens import OPTIMIZER, VARIABLE, fit_token
    from countgen.pipeline import CountGuidedPipeline

    pipeline = CountGuidedPipeline.from_pretrained(
        options.model,
        critic=options.counters.critic,
        verifier=options.counters.verifier,
        guidance="none",
        **asdict(options.load) | {"device": device},
    )
    learned = fit_token(
        pipeline,
        prompts,
        token=options.token,
        variable=replace(VARIABLE, place=options.place),
        optimizer=replace(OPTIMIZER, lr=options.lr),
        steps=options.steps,
        num_images_per_prompt=options.num_images,
        seed=options.seed,
        progress=progress,
    )
    learned.save(options.out)
    return learned
