"""Batch evaluation: prompt lists through one or several methods, every picture judged, over many processes.

All methods draw the same prompts from the same noises. The judge sees a picture when it is finished, and
takes no part in making it.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from countgen import presets
from countgen.errors import UsageError
from countgen.evaluation.formats import ListedPrompt
from countgen.evaluation.suites import POCKET, PromptList, Survey, find_prompts
from countgen.guidance.names import check_method_name
from countgen.options import DEFAULT_MODEL, CounterOptions, DrawOptions, LoadOptions
from countgen.prompts import CountPrompt

if TYPE_CHECKING:
    from countgen.evaluation.feed import Feed, Finished, Wanted
    from countgen.evaluation.folder import Results, RunFolder
    from countgen.evaluation.processes import Process
    from countgen.evaluation.progress import Progress
    from countgen.evaluation.queue import Queue
    from critics.base import Critic

ROLES = ("critic", "verifier", "judge")
STALE = 20.0
"""Seconds that finished pictures may wait for a full batch of the judge."""
METHODS = ("none", "best-of-n", "engine")
"""What is compared unless told otherwise."""
Note = Callable[[str], None]


def default_draw() -> DrawOptions:
    """Five pictures a prompt."""
    return DrawOptions(num_images_per_prompt=5)


@dataclass(frozen=True)
class Settings:
    """What is evaluated.

    Attributes:
        prompts: a suite or a file.
        out: the run folder.
        judge: a counter's name, of a third family; None takes the model's own.
        limit: most prompts, in the list's shares of counts.
        layout: "geneval" adds the folders that GenEval's own scorer reads.
        clip: name or folder of the CLIP that the quality of pictures is measured with; pocket has its own.
    """

    prompts: str
    out: Path
    methods: Sequence[str] = METHODS
    model: str = DEFAULT_MODEL
    counters: CounterOptions = field(default_factory=CounterOptions)
    judge: str | None = None
    limit: int | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    draw: DrawOptions = field(default_factory=default_draw)
    layout: Literal["countgen", "geneval"] = "countgen"
    clip: str | None = None


@dataclass(frozen=True)
class Checked:
    """Settings that can be met, with what was found out for that.

    Attributes:
        listed: the prompts that are drawn, as many as the limit allows.
        prompts: how many these are.
        names: role -> counter.
    """

    settings: Settings
    listed: PromptList
    survey: Survey
    prompts: int
    names: Mapping[str, str]
    device: str

    @property
    def pictures(self) -> int:
        """How many there will be in all."""
        settings = self.settings
        return self.prompts * settings.draw.num_images_per_prompt * len(settings.methods)


@dataclass(frozen=True)
class Outcome:
    """What a process can tell at its end.

    Attributes:
        document: as ``--json`` prints it; None in all processes but one.
        failed: pictures for which generator or counters raised an error; drawn again by the same command.
    """

    document: dict[str, Any] | None
    failed: int = 0


def check(settings: Settings, note: Note = lambda text: None) -> Checked:
    """Refuse what cannot be met, before anything is loaded; reads the whole list once.

    Raises:
        UsageError: an impossible request, a broken list, roles of one family, or a noun that a counter cannot
            see; with file and line where it is in the list.
    """
    draw = settings.draw.checked()
    if not settings.methods:
        raise UsageError("no method is named; countgen list methods has them all")
    for method in settings.methods:
        check_method_name(method)
        if list(settings.methods).count(method) > 1:
            raise UsageError(f"the method {method} is named twice")
    if settings.limit is not None and settings.limit < 1:
        raise UsageError(f"the limit must be at least 1 prompt, not {settings.limit}")
    listed = find_prompts(settings.prompts)
    _check_seed(settings.prompts, draw.seed)
    preset = presets.find_preset(settings.model)
    notes: dict[str, None] = {}

    def look(prompt: ListedPrompt) -> None:
        try:
            remarks = preset.check_prompt(CountPrompt(prompt.prompt, prompt.targets))
        except UsageError as error:
            raise UsageError(f"{prompt.place}: {error}") from None
        if len(notes) < 3:
            notes.update(dict.fromkeys(f"{prompt.place}: {remark}" for remark in remarks))

    survey = listed.survey(look)
    nouns = list(survey.nouns)
    names = preset.roles(nouns)
    given = {**asdict(settings.counters), "judge": settings.judge}
    names = {role: given[role] or names[role] for role in ROLES}
    for name in names.values():
        presets.check_counter_name(name)
    _check_roles(names, survey, settings.methods)
    device = presets.check_device(settings.load.device or preset.default_device)
    if survey.lacking:
        note(
            f"{survey.lacking} of {survey.lacking + survey.prompts} prompts have no count and are left out; "
            f"the first is {survey.first_lacking}"
        )
    if survey.seeded and draw.seed != DrawOptions.seed:
        note(
            f"{survey.seeded} prompts bring seeds of their own, which --seed {draw.seed} does not change"
        )
    for remark in notes:
        note(remark)
    prompts = survey.prompts if settings.limit is None else min(settings.limit, survey.prompts)
    limited = listed.limited(settings.limit, survey)
    return Checked(settings, limited, survey, prompts, names, device)


def evaluate(
    settings: Settings, messages: Console | None = None, note: Note | None = None
) -> Outcome:
    """Draw, judge and sum up what is not there yet; started again, it goes on where it was stopped.

    Raises:
        UsageError: as ``check``; a folder with another run; another run at work in the folder.
        OSError: the folder cannot be written to, or the disk is full; what is finished stays.
        MemoryShortage, LoadError, CheckpointError, PocketError: as ``CountGuidedPipeline``.
    """
    messages = messages or Console(stderr=True, highlight=False)
    noted: list[str] = []
    checked = check(settings, noted.append)
    if settings.clip is not None:
        from countgen.guidance.scores import clip_score

        clip_score(settings.clip)  # a wrong name is told before the work, not after it
    from countgen.evaluation.folder import RunFolder
    from countgen.evaluation.processes import this_process
    from countgen.evaluation.queue import Queue

    folder = RunFolder(settings.out, _config(checked))
    folder.check()
    with this_process(checked.device) as process:
        if note is not None and process.is_main:
            for remark in noted:
                note(remark)
        place = folder.path / "queue"
        place.mkdir(parents=True, exist_ok=True)

        def prepare(alone: bool) -> None:
            folder.begin(_more(checked, process))
            if alone:
                folder.mend()
            folder.look()

        with Queue(place, process.rank, _plan(checked, folder)).joined(prepare) as queue:
            return _Rank(checked, process, folder, queue, messages).work()


class _Rank:
    """One process's part of a run."""

    def __init__(
        self,
        checked: Checked,
        process: Process,
        folder: RunFolder,
        queue: Queue,
        messages: Console,
    ) -> None:
        self.checked, self.process, self.messages = checked, process, messages
        self.settings, self.folder, self.queue = checked.settings, folder, queue
        self.failed: dict[str, str] = {}
        self.feeds: dict[str, Feed] | None = None

    def work(self) -> Outcome:
        from countgen.cli import interrupts_raise
        from countgen.evaluation.folder import Results
        from countgen.evaluation.progress import Progress

        results = Results(self.folder, self.process.rank)
        with interrupts_raise(), closing(results):
            progress = Progress(
                self.messages, self.folder.path, self.checked.pictures, self.process.is_main
            )
            with progress:
                self._draw(results, progress)
                while self.queue.goes_on():
                    self.folder.look()
                    self._draw(results, progress)
            for name, reason in list(self.failed.items())[:3]:
                self.messages.print(f"{name} failed: {reason}", markup=False, soft_wrap=True)
            if not self.queue.is_last():
                return Outcome(None, len(self.failed))
            from countgen.evaluation.summing import sum_up

            document, missing = sum_up(self.checked, self.folder, self.messages)
            return Outcome(document, missing)

    def _is_missing(self, method: str, prompt: ListedPrompt, image: int) -> bool:
        """Whether a picture is not there.

        Raises:
            RunError: it is there, of another prompt under the same id.
        """
        from countgen.evaluation.folder import RunError, picture_key, text_key

        if picture_key(method, prompt.id, image) not in self.folder.done:
            return True
        if text_key(prompt.id, prompt.prompt, prompt.wanted) not in self.folder.texts:
            raise RunError(
                f"{self.folder.path} has results of another prompt with the id {prompt.id!r}; give the list "
                "that it was made with, or another folder"
            )
        return False

    # -- drawing ------------------------------------------------------------------------------------

    def _load(self) -> dict[str, Feed]:
        """Generator and counters; every method's feed."""
        from countgen.evaluation.feed import Feed
        from countgen.pipeline import CountGuidedPipeline

        names, settings = self.checked.names, self.settings
        counters = {role: presets.load_critic(name) for role, name in names.items()}
        presets.check_families({role: counter.card for role, counter in counters.items()})
        self.judge: Critic = counters["judge"]
        self.judge.to(self.process.device)
        pipeline = CountGuidedPipeline.from_pretrained(
            settings.model,
            critic=counters["critic"],
            verifier=counters["verifier"],
            guidance=settings.methods[0],
            **asdict(settings.load) | {"device": self.process.device},
        )
        return {method: Feed(pipeline, method, settings.draw) for method in settings.methods}

    def _draw(self, results: Results, progress: Progress) -> None:
        """Draw what is handed to this process, method after method."""
        batch = self.settings.draw.batch_size
        for method in self.settings.methods:
            wanted = self._wanted(method)
            first = next(wanted, None)
            if first is None:
                continue
            if self.feeds is None:  # not before something is to be drawn
                self.feeds = self._load()
                progress.begin()
            waiting: list[Finished] = []
            since = time.monotonic()
            for finished in self.feeds[method](itertools.chain([first], wanted)):
                waiting += finished
                if len(waiting) >= batch or (waiting and time.monotonic() - since > STALE):
                    self._keep(waiting[:batch], method, results)
                    waiting, since = waiting[batch:], time.monotonic()
                    progress(method)
            while waiting:
                self._keep(waiting[:batch], method, results)
                waiting = waiting[batch:]
            progress(method)

    def _wanted(self, method: str) -> Iterator[Wanted]:
        """Pictures of the prompts that are handed to this process, as far as they are not there."""
        from countgen.evaluation.feed import Wanted

        draw = self.settings.draw
        prompts = enumerate(self.checked.listed)
        for position in self.queue.positions(method):
            prompt = next((one for number, one in prompts if number == position), None)
            if prompt is None:
                return
            seed = draw.seed if prompt.seed is None else prompt.seed
            for image in range(draw.num_images_per_prompt):
                if self._is_missing(method, prompt, image):
                    yield Wanted(prompt, image, seed)

    def _keep(self, finished: Sequence[Finished], method: str, results: Results) -> None:
        """Judge finished pictures, and write them down."""
        from countgen.engine.run import to_pil

        kept = []
        for one in finished:
            if one.job.best is None or one.job.error is not None:
                name = f"{method}, {one.wanted.prompt.id}, picture {one.wanted.image}"
                self.failed[name] = str(one.job.error or one.job.outcome)
            else:
                kept.append((one, to_pil(one.job.best.image)))
        counts = judge_counts(
            self.judge,
            [picture for _, picture in kept],
            [[target.noun for target in one.wanted.prompt.targets] for one, _ in kept],
            self.process.device,
        )
        for (one, picture), counted in zip(kept, counts, strict=True):
            file = io.BytesIO()
            picture.save(file, format="PNG", compress_level=1)
            results.append(self._row(one, method, counted), file.getvalue())

    def _row(self, one: Finished, method: str, judged: list[int]) -> dict[str, Any]:
        import torch

        from countgen.engine.cost import peak_bytes
        from countgen.evaluation.folder import picture_name
        from countgen.evaluation.runs import record

        wanted, prompt = one.wanted, one.wanted.prompt
        row = record(one.job, prompt.id, prompt.wanted, wanted.image, method)
        return {
            **row,
            "judge": judged,
            "seed": wanted.noise_seed(),
            "seconds": round(one.seconds, 4),
            "peak_bytes": peak_bytes(torch.device(self.process.device)),
            "picture": picture_name(method, prompt.id, wanted.image),
            **({"more": dict(prompt.more)} if prompt.more else {}),
        }


def judge_counts(
    judge: Critic, pictures: Sequence[Any], nouns: Sequence[Sequence[str]], device: str
) -> list[list[int]]:
    """What a judge counts in finished pictures, in parts where memory does not suffice for all.

    Args:
        pictures: PIL images of one size, as they are saved: with 8 bits.
    """
    import numpy as np
    import torch

    from pipelines.devices import out_of_memory_errors

    if not pictures:
        return []
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    images = pixels.to(device).permute(0, 3, 1, 2).float() / 255
    try:
        with torch.no_grad(), out_of_memory_errors():
            hard = judge(images, [judge.prepare(each) for each in nouns]).hard.tolist()
    except torch.OutOfMemoryError:
        if len(pictures) == 1:
            raise
        half = len(pictures) // 2
    else:
        return [row[: len(each)] for row, each in zip(hard, nouns, strict=True)]
    return [
        counts
        for part in (slice(None, half), slice(half, None))
        for counts in judge_counts(judge, pictures[part], nouns[part], device)
    ]


# -- checks ---------------------------------------------------------------------------------------


def _check_roles(names: Mapping[str, str], survey: Survey, methods: Sequence[str]) -> None:
    from critics.base import UnknownNounError, look_up

    cards = {role: presets.counter_card(name) for role, name in names.items()}
    presets.check_families(cards)
    for card in cards.values():
        if card.vocabulary is None:
            continue
        for noun, place in survey.nouns.items():
            try:
                look_up([noun], card.vocabulary, card.name)
            except UnknownNounError as error:
                raise UsageError(f"{place}: {error}") from None
    for method in methods:
        presets.check_counters({"critic": names["critic"]}, (), method)


def _check_seed(prompts: str, seed: int) -> None:
    from countgen.pocket.suites import SELECTION_SEED

    if prompts in POCKET and prompts != "pocket-dev" and seed == SELECTION_SEED:
        raise UsageError(
            f"seed {seed} chose the hard third of the pocket suites; evaluate on another one"
        )


def _config(checked: Checked) -> dict[str, Any]:
    """What changes a picture, or its counts."""
    settings = checked.settings
    draw, load = asdict(settings.draw), asdict(settings.load)
    for name in ("budget", "guidance_scale"):  # 4 is 4.0
        draw[name] = None if draw[name] is None else float(draw[name])
    return {
        "model": settings.model,
        **checked.names,
        **{k: v for k, v in draw.items() if k not in ("num_images_per_prompt", "batch_size")},
        **{k: v for k, v in load.items() if k in ("dtype", "variant", "revision", "tiny_decoder")},
        # Only where it is given, so that folders of runs without it go on.
        **({"text_encoder": load["text_encoder"]} if load["text_encoder"] else {}),
    }


def _more(checked: Checked, process: Process) -> dict[str, Any]:
    """What may change from start to start, as it is now."""
    settings = checked.settings
    return {
        "suite": checked.listed.name,
        "methods": list(settings.methods),
        "limit": settings.limit,
        "images_per_prompt": settings.draw.num_images_per_prompt,
        "device": process.device,
        "processes": process.count,
    }


def _plan(checked: Checked, folder: RunFolder) -> str:
    """What all processes of one start have in common."""
    settings = checked.settings
    strata = sorted(checked.survey.strata.items())
    return (
        f"{folder.digest} {checked.listed.name} {strata} {settings.limit} {','.join(settings.methods)} "
        f"{settings.draw.num_images_per_prompt}"
    )
