"""``countgen generate``: pictures with their settings, a side-by-side of each, and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from countgen._collector import paused_collector
from countgen.errors import UsageError
from countgen.options import (
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    CounterOptions,
    DrawOptions,
    LoadOptions,
)

if TYPE_CHECKING:
    from PIL import Image

    from countgen.engine.job import Job
    from countgen.engine.pool import StepState
    from countgen.evaluation.trust import Trust
    from countgen.files import PictureFolder
    from countgen.guidance.tokens import LearnedToken
    from countgen.pipeline import CountGuidedPipeline
    from countgen.prompts import CountPrompt

Note = Callable[[str], None]


@dataclass(frozen=True)
class Generate:
    """Draw pictures of a prompt that hold exactly the number of objects it asks for.

    A critic, a differentiable counter, steers the noise until it counts what the prompt asks for, and a
    second counter of another family checks the result: then the picture is verified. Beside every picture
    lies a comparison of the first draw and what was kept, counted objects outlined and numbered. The embedded
    model needs no download and no GPU.

    Example: countgen generate "seven red apples on a table" --out pictures
    """

    prompt: Annotated[str, tyro.conf.Positional]
    """What to draw, for instance "seven red apples on a table"."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to count, in place of what the prompt says, such as --target "red apple=7"; may be repeated."""
    out: Path = Path("outputs")
    """Folder for the pictures; made if it does not exist. What is there stays: numbers go on behind it."""
    overwrite: bool = False
    """Number the pictures from 000 again, and replace those that are there."""
    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    method: str = DEFAULT_METHOD
    """How a picture is made exact (see: countgen list methods)."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    draw: tyro.conf.OmitArgPrefixes[DrawOptions] = field(default_factory=DrawOptions)
    filmstrip: bool = False
    """Also write 000-moves.webp: an animation of every look at the picture, with what was counted."""
    trust: Path | None = None
    """A fit of countgen trust for this model and its counters; pocket has one of its own."""
    strict: bool = False
    """Exit with 3 when a picture is not verified exact."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self, messages: Console, token: LearnedToken | None = None) -> int:
        """Draw, with a count token if one is given, and print the report."""

        def note(text: str) -> None:
            messages.print(f"note: {text}", markup=False, soft_wrap=True)

        done, total = 0, self.draw.num_images_per_prompt
        with messages.status("loading the model and its counters") as status:

            def progress(state: StepState) -> None:
                nonlocal done
                done += len(state.finished)
                status.update(f"{done} of {total} finished; {_live(state)}")

            report = generate(self, note, progress, token)
        if self.json:
            print(json.dumps(report.document))
        else:
            print("\n".join(report.lines()))
            for sentence in report.sentences:
                messages.print(sentence, markup=False, soft_wrap=True)
        exact = all(row["verified"] for row in report.document["images"])
        return 3 if self.strict and not exact else 0


@dataclass(frozen=True)
class Report:
    """The command's JSON document, and a sentence for every outcome that occurred."""

    document: dict[str, Any]
    sentences: tuple[str, ...]

    def lines(self) -> list[str]:
        """The document for people."""
        from countgen.evaluation.trust import told

        lines = []
        for row in self.document["images"]:
            counts = "; ".join(
                f"{role} counts " + ", ".join(f"{noun}: {n}" for noun, n in found.items())
                for role, found in row["counts"].items()
                if found
            )
            sure = f", {told(row['trust'])}" if row["trust"] is not None else ""
            seen = f"  ({counts}{sure})" if counts else ""
            lines.append(f"{row['path']}  {row['outcome']}{seen}")
        return lines


def generate(
    options: Generate,
    note: Note = lambda text: None,
    progress: Callable[[StepState], None] = lambda state: None,
    token: LearnedToken | None = None,
) -> Report:
    """Draw pictures of a prompt into a folder and report them.

    Every picture is written as soon as it is finished, all or nothing, and carries its settings in its
    metadata; what was finished stays if a later one fails or the run is interrupted.

    Raises:
        UsageError: an impossible request, refused before anything is loaded.
        critics.base.UnknownNounError: a noun that critic or verifier cannot see, refused before anything is
            loaded where their cards tell, and before the generator is in any case.
        OSError: the folder cannot be written to, or the disk is full.
        MemoryShortage: the device is too small for one picture.
        LoadError, CheckpointError, PocketError:
            weights that cannot be loaded.
    """
    from countgen.cli import interrupts_raise
    from countgen.files import PictureFolder

    folder = PictureFolder(options.out, options.overwrite)
    prompt, pipeline = _prepared(options, folder, note)
    from countgen.guidance.diagnostics import film_of

    rows: dict[int, dict[str, Any]] = {}
    frames: dict[int, list[Image.Image]] = {}
    states = pipeline.stream(prompt, token=token, **asdict(options.draw))
    for remark in states.notes:
        if remark not in prompt.notes:
            note(remark)
    with interrupts_raise(), closing(states):
        for state in states:
            progress(state)
            if options.filmstrip:
                for index, shot in film_of(state):
                    frames.setdefault(index, []).append(shot)
            for job in state.finished:
                if job.best is not None:
                    film = frames.pop(job.index, [])
                    rows[job.index] = _keep(job, pipeline, folder, options, token, film)
    errors = {job.index: job.error for job in states.jobs if job.error is not None}
    if errors and not rows:
        raise next(iter(errors.values()))
    for index, error in errors.items():
        note(f"picture {index} failed: {error}")
    done = [rows[index] for index in sorted(rows)]
    document = {
        "prompt": prompt.text,
        "targets": [{"noun": t.noun, "count": t.count} for t in prompt.targets],
        "images": done,
        "cost": states.cost.report(),
    }
    outcomes = dict.fromkeys(row["outcome"] for row in done)
    return Report(document, tuple(sentence(outcome, options.method) for outcome in outcomes))


@paused_collector()
def _prepared(
    options: Generate, folder: PictureFolder, note: Note
) -> tuple[CountPrompt, CountGuidedPipeline]:
    """The prompt, and what draws it; what a user can get wrong is told before torch is loaded."""
    from countgen import presets
    from countgen.guidance.names import check_method_name

    options.draw.checked()
    check_method_name(options.method)
    preset = presets.find_preset(options.model)
    targets = presets.read_targets(options.target)
    prompt = presets.read_prompt(options.prompt, targets, preset)
    nouns = [target.noun for target in prompt.targets]
    names = preset.roles(nouns)
    names = {
        role: getattr(options.counters, role) or names[role] for role in ("critic", "verifier")
    }
    if set(names.values()) <= set(preset.roles(nouns).values()):
        preset.check_nouns(nouns)
    presets.check_counters(names, nouns, options.method)  # loads torch
    device = presets.check_device(options.load.device or preset.default_device)
    folder.check()
    for remark in prompt.notes:
        note(remark)
    counters = {role: presets.load_critic(name) for role, name in names.items()}
    for counter in counters.values():
        counter.prepare(nouns)
    from countgen.pipeline import CountGuidedPipeline

    pipeline = CountGuidedPipeline.from_pretrained(
        options.model,
        critic=counters["critic"],
        verifier=counters["verifier"],
        guidance=options.method,
        **asdict(options.load) | {"device": device},
    )
    memory = pipeline.adapter.memory
    if memory.name != "fast" or pipeline.adapter.device.type != "cpu":
        note(f"memory plan {memory.name}: {memory.summary}, on {pipeline.adapter.device}")
    if options.trust is not None:
        pipeline.trust = _trust(options.trust, names)
    elif pipeline.trust is None and nouns:
        note(
            "how sure verified pictures are is not told: there is no fit for this model and its counters"
        )
    return prompt, pipeline


def _trust(path: Path, names: Mapping[str, str]) -> Trust:
    """A fit from a file, if it is for these counters.

    Raises:
        UsageError: it is for others, or no fit.
    """
    from countgen.evaluation.trust import Trust

    found = Trust.read(path)
    if (found.critic, found.verifier) != (names["critic"], names["verifier"]):
        raise UsageError(
            f"{path} was fitted for the counters {found.critic} and {found.verifier}, not "
            f"{names['critic']} and {names['verifier']}; fit one for these with countgen trust"
        )
    return found


def sentence(outcome: str, method: str) -> str:
    """What an outcome means; a method that draws once is not advised to spend more."""
    from countgen.engine.job import BUDGET_SPENT, CLOSE_CALL, DISPUTED, OUTCOMES
    from countgen.engine.policy import BestOfN
    from countgen.guidance.methods import find_method

    drawn_once = find_method(method).policy == BestOfN(candidates=1)
    if outcome in (BUDGET_SPENT, CLOSE_CALL, DISPUTED) and drawn_once:
        clear = " beyond doubt" if outcome != BUDGET_SPENT else ""
        return (
            f"The one picture that the method {method} draws is not exact{clear}; take another method, or "
            "another seed."
        )
    return OUTCOMES[outcome]


# -- what is read off a finished picture -----------------------------------------------------------


def _keep(
    job: Job,
    pipeline: CountGuidedPipeline,
    folder: PictureFolder,
    options: Generate,
    token: LearnedToken | None,
    frames: list[Image.Image],
) -> dict[str, Any]:
    """Write a finished picture, its side-by-side and the film of its moves; its row of the report."""
    from countgen import drawing, provenance
    from countgen.files import shown, write
    from countgen.guidance.diagnostics import animation
    from countgen.guidance.methods import find_method
    from countgen.pipeline import counts_of, to_pil
    from countgen.seeds import image_seed

    best, draw = job.best, options.draw
    assert best is not None
    sure = pipeline.trust.of_job(job) if pipeline.trust is not None else None
    row: dict[str, Any] = {
        "seed": image_seed(draw.seed, job.prompt.text, job.index, best.record.candidate),
        "counts": counts_of(job),
        "verified": job.verified,
        "outcome": job.outcome,
        "trust": None if sure is None else round(sure, 4),
    }
    made = provenance.provenance_of(
        job,
        pipeline,
        pipeline.adapter.plan(
            draw.num_inference_steps, draw.guidance_scale, draw.height, draw.width
        ),
        find_method(options.method),
        model=options.model,
        run_seed=draw.seed,
        image=job.index,
        seed=row["seed"],
        load=options.load,
        token=token,
    )
    beside = None
    if job.prompt.targets:
        beside = drawing.png(drawing.comparison(job), made.settings)
    path = folder.keep(job.index, provenance.png(to_pil(best.image), made), beside)
    if frames:
        moves = path.with_name(f"{path.stem}-moves.webp")
        write(moves, animation(frames), replace=options.overwrite)
    return {"path": shown(path), **row}


def _live(state: StepState) -> str:
    """Where the first unfinished picture stands: counts found and asked for, and what it has cost."""
    from countgen.prompts import pluralise

    job = next((j for j in state.jobs if not j.outcome), state.jobs[0])
    row = state.hard[state.jobs.index(job)].tolist()
    found = ", ".join(
        f"{n} of {target.count} {pluralise(target.noun, target.count)}"
        for n, target in zip(row, job.prompt.targets, strict=False)
    )
    return f"picture {job.index}: {found or 'drawn'}; {job.spent:.0f} of {job.request.budget:.0f} renders"
