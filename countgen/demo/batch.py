"""The tab that draws a list of prompts, judges every picture and hands out the report; and its API."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import gradio as gr

from countgen import presets
from countgen.demo import limits as read
from countgen.demo import views
from countgen.demo.files import archive
from countgen.demo.page import DEVICE, HIDDEN, STOPPING, TO_RESULT, WATCHED, Page, told, visitor
from countgen.demo.report import report_files, told_row
from countgen.demo.running import Ticket, watched
from countgen.demo.watch import told_counts
from countgen.demo.wishes import Wish, read_wish
from countgen.errors import UsageError
from countgen.prompts import CountPrompt, CountTarget

if TYPE_CHECKING:
    from PIL import Image

    from countgen.engine.job import Job
    from countgen.evaluation.formats import ListedPrompt
    from countgen.evaluation.runs import Row
    from countgen.pipeline import CountGuidedPipeline

TAB = "batch"
NEWEST = 12
"""Finished pictures that are shown while a list is drawn, the last ones."""
EMPTY = (
    "Choose a list of prompts: a txt file with one prompt a line, a csv file with the columns "
    "prompt,noun,count, or jsonl. Every picture is counted by a third counter, which takes no part in "
    "drawing; what it says stands in the report."
)


@dataclass(frozen=True)
class Listing:
    """A checked list of prompts, and what is wished for beside them."""

    name: str
    prompts: list[ListedPrompt]
    lacking: int
    """Prompts without a count, which are left out."""
    wish: Wish

    @property
    def nouns(self) -> list[str]:
        return list(dict.fromkeys(t.noun for one in self.prompts for t in one.targets))

    def wish_for(self, one: ListedPrompt) -> Wish:
        return replace(
            self.wish,
            prompt=CountPrompt(one.prompt, one.targets),
            seed=self.wish.seed if one.seed is None else one.seed,
        )


@dataclass
class Batch:
    """A list that is being drawn, and what came of it."""

    listing: Listing
    config: Mapping[str, Any]
    """Model, counters, seed and budget, as a run folder names them."""
    rows: list[Row] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    """The picture of each row, as PNG."""
    shown: list[tuple[Image.Image, str]] = field(default_factory=list)
    """The last of them with everything numbered that was counted, and its caption."""
    seconds: float = 0.0

    @property
    def prompts(self) -> list[ListedPrompt]:
        return self.listing.prompts

    @property
    def judge(self) -> str | None:
        name: str | None = self.config["judge"]
        return name

    @property
    def verified(self) -> int:
        return sum(bool(row["verified"]) for row in self.rows)

    def told(self) -> str:
        """How it stands, in words."""
        said = f"{self.verified} of {len(self.rows)} pictures verified"
        if self.judge is not None and self.rows:
            right = sum(row["judge"] == row["wanted"] for row in self.rows)
            said += f", {right} exact for the judge {self.judge}"
        return said + "."

    def report(self) -> bytes:
        """The zip file with the report."""
        return archive(
            report_files(
                self.config, self.listing.name, list(zip(self.rows, self.files, strict=True))
            )
        )


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    limits = page.limits
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            upload = gr.File(
                label=f"List of prompts, at most {limits.batch}",
                file_types=[".txt", ".csv", ".jsonl", ".json"],
                height=150,
                elem_id="cg-list",
            )
            settings = page.settings()
            with gr.Row():
                go = gr.Button("Draw the list", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="secondary", min_width=100)
        with gr.Column(scale=6, min_width=300):
            shown = gr.HTML(views.waiting(EMPTY), elem_id="cg-batch")
            report = gr.DownloadButton(
                "Report, tables and pictures (zip)", visible=False, elem_id="cg-report"
            )
    results = [shown, report]

    def panel(batch: Batch) -> str:
        done = views.progress(len(batch.rows), len(batch.prompts), batch.told())
        return done + views.panels(batch.shown)

    def ended(batch: Batch) -> dict[Any, Any]:
        said = f"{len(batch.rows)} of {len(batch.prompts)} prompts drawn: {batch.told()}"
        if lacking := batch.listing.lacking:
            said += f" Prompts without a count, which were left out: {lacking}."
        table = views.table(list(map(told_row, batch.rows)), "All pictures of the list")
        return {
            shown: views.notice(said) + views.panels(batch.shown) + table,
            report: gr.update(
                value=page.shelf.keep("countgen-report.zip", batch.report()), visible=True
            )
            if batch.rows
            else gr.update(visible=False),
        }

    def on_batch(request: gr.Request, file: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        def updates(ticket: Ticket) -> Generator[dict[Any, Any], None, None]:
            yield {shown: views.in_line(0), report: gr.update(visible=False)}
            listing = read_listing(page, file, dict(zip(settings, values, strict=True)))
            for before in ticket.waiting():
                yield {shown: views.in_line(before)}
            if ticket.stopped:
                yield {shown: views.notice("Stopped before the first picture.")}
                return
            for batch in drawn(page, listing, ticket):
                yield {shown: panel(batch)}
            yield ended(batch)

        yield from page.shown(request, TAB, updates, lambda notice: {shown: notice})

    go.click(
        on_batch,
        [upload, *settings.values()],
        results,
        show_progress_on=shown,
        js=TO_RESULT % "cg-batch",
        **WATCHED,
        **HIDDEN,
    )
    stop.click(page.stopper(TAB), **STOPPING, **HIDDEN)
    _api(page, upload, settings)


def read_listing(page: Page, file: Any, values: Mapping[str, Any]) -> Listing:
    """An uploaded list, checked.

    Raises:
        UsageError: no list, a broken one (with its line), too long a one, or a prompt that cannot be drawn.
    """
    name, prompts, lacking = read_prompts(file, page)
    first = {**values, "prompt": prompts[0].prompt, "pictures": 1}
    wish = read_wish(first, page.studio, page.limits)
    preset = presets.find_preset(wish.model)
    for one in prompts:
        try:
            preset.check_prompt(CountPrompt(one.prompt, one.targets))
        except UsageError as error:
            raise UsageError(f"{one.prompt!r}: {error}") from None
    return Listing(name, prompts, lacking, wish)


def drawn(page: Page, listing: Listing, ticket: Ticket) -> Iterator[Batch]:
    """The batch after every finished picture, judged.

    Raises:
        UsageError, UnknownNounError: what generator or counters refuse.
    """
    wish = listing.wish
    parts = (wish.model, wish.critic, listing.nouns, wish.method)
    pipeline = page.studio.pipeline(*parts)
    verifier = pipeline.verifier
    config = {
        "model": wish.model,
        "critic": pipeline.critic.card.name,
        "verifier": verifier.card.name if verifier is not None else None,
        "judge": page.studio.judge(wish.model, pipeline, listing.nouns),
        "seed": wish.seed,
        "budget": wish.budget,
    }
    batch = Batch(listing, config)
    yield batch
    for one in listing.prompts:
        for _ in ticket.waiting():  # others have their turn between two prompts
            yield batch
        if ticket.stopped:
            return
        pipeline = page.studio.pipeline(*parts)  # its counters are back from another model's device
        for job, seconds in _finished(page, pipeline, listing.wish_for(one), ticket):
            batch.seconds += seconds
            if not ticket.stopped or job.verified:
                _add(page, batch, one, job)
        yield batch
        ticket.give_way()


def _finished(
    page: Page, pipeline: CountGuidedPipeline, wish: Wish, ticket: Ticket
) -> Iterator[tuple[Job, float]]:
    """The finished picture of one prompt, and the seconds that it took."""
    with closing(watched(pipeline, wish, ticket, page.limits.seconds)) as states:
        (run, _) = list(states)[-1]
    (job,) = run.jobs
    if job.error is not None:
        raise job.error
    if job.best is not None:
        yield job, run.cost.seconds


def read_prompts(file: Any, page: Page) -> tuple[str, list[ListedPrompt], int]:
    """The name of an uploaded list, its prompts that have a count, and how many have none.

    Raises:
        UsageError: no list, a broken one with the name and line, none with a count, or too many.
    """
    from countgen.evaluation.formats import ListError, read_list

    limits = page.limits
    path, name = read.uploaded(file, "the list", min(limits.upload, 1_000_000))
    prompts: list[ListedPrompt] = []
    lacking = 0
    try:
        for one in read_list(path):
            if not one.targets:
                lacking += 1
                if lacking > 10 * limits.batch:
                    raise UsageError(f"{name[:60]} is no list of prompts with counts")
                continue
            if len(prompts) == limits.batch:
                raise UsageError(
                    f"{name[:60]} has more than {limits.batch} prompts; this page draws no more at once: cut "
                    "the list, or run countgen evaluate on a machine of your own"
                )
            read.text(one.prompt, f"the prompt {one.id[:20]}", limits.prompt)
            for target in one.targets:
                _check_count(target, limits.count)
            prompts.append(one)
    except ListError as error:
        raise UsageError(str(error).replace(str(path), name[:60])) from None
    except OSError:
        raise UsageError(f"{name[:60]} cannot be read; choose the file again") from None
    if not prompts:
        raise UsageError(f"no prompt in {name[:60]} names a count")
    return name, prompts, lacking


def _check_count(target: CountTarget, most: int) -> None:
    if target.count > most:
        raise UsageError(
            f"{target.count} of {target.noun!r} are more than this page draws; ask for at most {most}"
        )


def _add(page: Page, batch: Batch, one: ListedPrompt, job: Job) -> None:
    """The row of a finished picture, judged, and its picture."""
    from countgen.drawing import outlined
    from countgen.engine.run import to_pil
    from countgen.evaluation.folder import picture_name
    from countgen.evaluation.runner import judge_counts
    from countgen.evaluation.runs import record

    best = job.best
    assert best is not None
    picture = to_pil(best.image)
    method = batch.listing.wish.method
    row = record(job, one.id, one.wanted, 0, method)
    row |= {"prompt": one.prompt, "picture": picture_name(method, one.id, 0), "judge": None}
    if batch.judge is not None:
        counter = page.studio.counter(batch.judge)
        place = str(next(counter.network.parameters()).device)
        (row["judge"],) = judge_counts(counter, [picture], [row["nouns"]], place)
    file = BytesIO()
    picture.save(file, format="PNG")
    batch.rows.append(row)
    batch.files.append(file.getvalue())
    boxes = [kind.tolist() for kind in best.boxes or ()]
    mark = "verified" if job.verified else job.outcome
    caption = f"{one.prompt}: {told_counts(best.record.counts, job.prompt)} ({mark})"
    batch.shown = [*batch.shown, (outlined(picture, boxes, 384), caption)][-NEWEST:]


def _api(page: Page, upload: gr.Component, settings: Mapping[str, gr.Component]) -> None:
    """The function of the API and the tool of MCP clients."""

    def batch(
        prompts: str,
        model: str = page.studio.models[0],
        critic: str = page.studio.critics[0],
        method: str = page.studio.default_method,
        seed: int = 0,
        budget: float = 64,
        request: gr.Request | None = None,
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """Draw every prompt of a list, count every picture with a third counter, and sum up.

        Args:
            prompts: A txt file with a prompt a line, a csv file with prompt,noun,count, or jsonl.
            model: Name of the generator, one of those that this page offers.
            critic: Name of the counter that steers.
            method: How the pictures are made exact.
            seed: The same seed draws the same pictures.
            budget: Most that one picture may cost, in plain renders.

        Returns:
            The report, a zip file with its page, its tables and all pictures; and how many pictures were
            drawn, verified and exact for the judge.
        """
        names = ("model", "critic", "method", "seed", "budget")
        values = dict(zip(names, (model, critic, method, seed, budget), strict=True))
        with told(), page.tickets.open(visitor(request), "api") as ticket:
            listing = read_listing(page, prompts, values)
            for before in ticket.waiting():
                yield None, {"state": "waiting", "before": before}
            for found in drawn(page, listing, ticket):
                yield None, _answer(found)
            yield page.shelf.keep("countgen-report.zip", found.report()), _answer(found)

    shown = [gr.File(visible=False, label="Report"), gr.JSON(visible=False, label="Summary")]
    names = ("model", "critic", "method", "seed", "budget")
    inputs = [upload, *(settings[name] for name in names)]
    gr.Button(visible=False).click(batch, inputs, shown, api_name="batch", **DEVICE)


def _answer(batch: Batch) -> dict[str, Any]:
    exact = sum(row.get("judge") == row["wanted"] for row in batch.rows)
    return {
        "prompts": len(batch.prompts),
        "drawn": len(batch.rows),
        "verified": batch.verified,
        "judge": batch.judge,
        "exact_for_judge": exact if batch.judge else None,
        "seconds": round(batch.seconds, 2),
    }
