"""Verified pictures with boxes and counts, as detectors and generators are trained on.

Only pictures that critic and verifier both find exact are kept. ``rows.jsonl`` is what resuming reads: a line
for every picture that was tried, written when its file lies under its final name; the three formats are made
of it again whenever the command ends.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from countgen import presets
from countgen.errors import UsageError
from countgen.evaluation.formats import ListedPrompt
from countgen.evaluation.suites import PromptList, Survey, find_prompts
from countgen.files import write
from countgen.learning.settings import check_boxes, keep_settings
from countgen.options import DEFAULT_METHOD, DEFAULT_MODEL, CounterOptions, DrawOptions, LoadOptions
from countgen.prompts import CountPrompt

if TYPE_CHECKING:
    from countgen.evaluation.feed import Finished, Wanted

Format = Literal["coco", "yolo", "imagefolder"]
FORMATS: tuple[Format, ...] = ("coco", "yolo", "imagefolder")
ROWS = "rows.jsonl"
Row = dict[str, Any]
"""Of one picture that was tried: ``position`` and ``id`` of its prompt, ``image``, ``verified``, ``pre``; of
a kept one also ``file``, ``prompt``, ``targets``, ``width``, ``height`` and ``boxes`` (noun -> x0 y0 x1 y1 in
pixels)."""


@dataclass(frozen=True)
class DatasetSettings:
    """What is made.

    Attributes:
        prompts: a suite or a file.
        limit: most prompts, in the list's shares of counts.
    """

    prompts: str
    out: Path
    model: str = DEFAULT_MODEL
    method: str = DEFAULT_METHOD
    counters: CounterOptions = field(default_factory=CounterOptions)
    limit: int | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    draw: DrawOptions = field(default_factory=DrawOptions)
    formats: tuple[Format, ...] = FORMATS


@dataclass(frozen=True)
class Made:
    """How far a dataset is: pictures wanted, tried and verified, and plain render equivalents spent."""

    wanted: int
    tried: int
    verified: int
    pre: float


def make_dataset(
    settings: DatasetSettings,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[Made], None] = lambda made: None,
) -> dict[str, Any]:
    """Draw what is not there yet, and write the formats; the summary that ``--json`` prints.

    Raises:
        UsageError: an impossible request, refused before anything is loaded; a folder of other settings.
        OSError: the folder cannot be written to, or the disk is full; what is finished stays.
        MemoryShortage, LoadError, CheckpointError, PocketError: as ``CountGuidedPipeline``.
    """
    listed, survey, names, device = _checked(settings, note)
    out, draw = settings.out, settings.draw
    keep_settings(out, "dataset", _about(settings, names))
    rows = read_rows(out)
    _check_rows(rows, survey.nouns, settings)
    done = {(row["id"], row["image"]) for row in rows}
    prompts = survey.prompts if settings.limit is None else min(settings.limit, survey.prompts)
    total = prompts * draw.num_images_per_prompt
    categories = sorted(survey.nouns)

    def missing() -> Iterator[tuple[int, ListedPrompt, int]]:
        for position, prompt in enumerate(listed):
            for image in range(draw.num_images_per_prompt):
                if (prompt.id, image) not in done:
                    yield position, prompt, image

    def tell() -> None:
        kept = sum(row["verified"] for row in rows)
        progress(Made(total, len(rows), kept, sum(row["pre"] for row in rows)))

    from countgen.cli import interrupts_raise

    left = missing()
    first = next(left, None)
    try:
        with interrupts_raise():
            if first is not None:
                (out / "images").mkdir(exist_ok=True)
                finished = _drawn(settings, names, device, itertools.chain([first], left))
                with closing(finished), (out / ROWS).open("ab") as file:
                    for position, one in finished:
                        row = _kept(position, one, out)
                        file.write(json.dumps(row).encode() + b"\n")
                        file.flush()
                        rows.append(row)
                        tell()
    finally:
        files = export(out, rows, categories, settings.formats)
    return _summary(settings, rows, total, files)


def _drawn(
    settings: DatasetSettings,
    names: dict[str, str],
    device: str,
    missing: Iterator[tuple[int, ListedPrompt, int]],
) -> Generator[tuple[int, Finished], None, None]:
    from countgen.evaluation.feed import Feed, Wanted
    from countgen.pipeline import CountGuidedPipeline

    pipeline = CountGuidedPipeline.from_pretrained(
        settings.model,
        critic=names["critic"],
        verifier=names["verifier"],
        guidance=settings.method,
        **asdict(settings.load) | {"device": device},
    )
    places: dict[tuple[str, int], int] = {}

    def wanted() -> Iterator[Wanted]:
        for position, prompt, image in missing:
            places[prompt.id, image] = position
            seed = settings.draw.seed if prompt.seed is None else prompt.seed
            yield Wanted(prompt, image, seed)

    for several in Feed(pipeline, settings.method, settings.draw)(wanted()):
        for one in several:
            if one.job.error is not None:
                raise one.job.error
            yield places.pop((one.wanted.prompt.id, one.wanted.image)), one


def _kept(position: int, one: Finished, out: Path) -> Row:
    """The row of a finished picture, whose file is written first where it is verified."""
    from countgen.engine.run import to_pil
    from countgen.evaluation.folder import picture_name

    job, prompt = one.job, one.wanted.prompt
    row: Row = {
        "position": position,
        "id": prompt.id,
        "image": one.wanted.image,
        "verified": job.verified,
        "outcome": job.outcome,
        "pre": round(job.spent, 3),
    }
    if not job.verified or job.best is None or job.best.boxes is None:
        return row
    picture = to_pil(job.best.image)
    name = picture_name("", prompt.id, one.wanted.image).rpartition("/")[2]
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write(out / "images" / name, data.getvalue(), replace=True)
    width, height = picture.size
    limits = (width, height, width, height)
    return row | {
        "file": f"images/{name}",
        "prompt": prompt.prompt,
        "targets": [{"noun": noun, "count": count} for noun, count in prompt.wanted],
        "width": width,
        "height": height,
        "boxes": {
            noun: [
                [round(min(max(x, 0.0), most), 2) for x, most in zip(box, limits, strict=True)]
                for box in found.tolist()
            ]
            for noun, found in zip(job.request.nouns, job.best.boxes, strict=True)
        },
    }


def read_rows(out: Path) -> list[Row]:
    """What was tried so far; a last line that was cut off is dropped from the file.

    Raises:
        UsageError: a line that is no row.
    """
    from countgen.evaluation.folder import cut_tail

    path = out / ROWS
    if not path.exists():
        return []
    cut_tail(path)
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            whole = not row["verified"] or (out / row["file"]).is_file()
            if whole and {"id", "image", "position", "pre"} <= row.keys():
                rows.append(row)
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"line {number} of {path} is no row of a dataset; give another folder"
            ) from None
    return rows


# -- formats -----------------------------------------------------------------------------------------


def export(
    out: Path, rows: Sequence[Row], categories: Sequence[str], formats: Sequence[Format]
) -> list[str]:
    """Write the formats of all verified pictures, each file all or nothing; their names.

    ``annotations.json``: COCO's detection format. ``labels/`` and ``dataset.yaml``: a .txt of class, centre
    and size for every picture, as the YOLO trainers read it. ``metadata.jsonl``: an image folder of the
    datasets library, with caption, targets and objects.
    """
    kept = sorted(
        (row for row in rows if row["verified"]), key=lambda row: (row["position"], row["image"])
    )
    files: dict[str, bytes] = {}
    if "coco" in formats:
        files["annotations.json"] = json.dumps(coco(kept, categories)).encode() + b"\n"
    if "imagefolder" in formats:
        lines = [json.dumps(metadata(row, categories), ensure_ascii=False) for row in kept]
        files["metadata.jsonl"] = "".join(f"{line}\n" for line in lines).encode()
    if "yolo" in formats:
        names = "".join(f"  {i}: {json.dumps(noun)}\n" for i, noun in enumerate(categories))
        files["dataset.yaml"] = f"train: images\nval: images\nnames:\n{names}".encode()
        (out / "labels").mkdir(parents=True, exist_ok=True)
        for row in kept:
            name = Path(row["file"]).stem
            write(out / "labels" / f"{name}.txt", yolo(row, categories).encode(), replace=True)
    for name, data in files.items():
        write(out / name, data, replace=True)
    return [*files, *(["labels/"] if "yolo" in formats else [])]


def coco(rows: Sequence[Row], categories: Sequence[str]) -> dict[str, Any]:
    """COCO's detection format; boxes are x, y, width and height in pixels."""
    images, annotations = [], list[dict[str, Any]]()
    for number, row in enumerate(rows, 1):
        images.append(
            {
                "id": number,
                "file_name": row["file"],
                "width": row["width"],
                "height": row["height"],
                "caption": row["prompt"],
            }
        )
        for category, (x0, y0, x1, y1) in _objects(row, categories):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category + 1,
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": round((x1 - x0) * (y1 - y0), 2),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "pictures drawn and verified by countgen"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": noun} for i, noun in enumerate(categories, 1)],
    }


def yolo(row: Row, categories: Sequence[str]) -> str:
    """A line an object: class, centre x, centre y, width and height, in shares of the picture."""
    w, h = row["width"], row["height"]
    return "".join(
        f"{category} {(x0 + x1) / 2 / w:.6f} {(y0 + y1) / 2 / h:.6f} {(x1 - x0) / w:.6f} "
        f"{(y1 - y0) / h:.6f}\n"
        for category, (x0, y0, x1, y1) in _objects(row, categories)
    )


def metadata(row: Row, categories: Sequence[str]) -> dict[str, Any]:
    """A line of an image folder: caption, targets, and objects with boxes as x, y, width and height."""
    objects = list(_objects(row, categories))
    return {
        "file_name": row["file"],
        "text": row["prompt"],
        "targets": row["targets"],
        "width": row["width"],
        "height": row["height"],
        "objects": {
            "bbox": [[a, b, round(c - a, 2), round(d - b, 2)] for _, (a, b, c, d) in objects],
            "category": [categories[category] for category, _ in objects],
        },
    }


def _objects(row: Row, categories: Sequence[str]) -> Iterator[tuple[int, list[float]]]:
    for noun, boxes in row["boxes"].items():
        for box in boxes:
            yield categories.index(noun), box


# -- checks ------------------------------------------------------------------------------------------


def _checked(
    settings: DatasetSettings, note: Callable[[str], None]
) -> tuple[PromptList, Survey, dict[str, str], str]:
    """The prompts, role -> counter, and the device; refuses what cannot be met before anything is loaded."""
    from countgen.guidance.names import check_method_name

    settings.draw.checked()
    check_method_name(settings.method)
    if not settings.formats:
        raise UsageError(f"name a format at least: {', '.join(FORMATS)}")
    if settings.limit is not None and settings.limit < 1:
        raise UsageError(f"the limit must be at least 1 prompt, not {settings.limit}")
    listed = find_prompts(settings.prompts)
    preset = presets.find_preset(settings.model)

    def look(prompt: ListedPrompt) -> None:
        try:
            preset.check_prompt(CountPrompt(prompt.prompt, prompt.targets))
        except UsageError as error:
            raise UsageError(f"{prompt.place}: {error}") from None

    survey = listed.survey(look)
    if survey.lacking:
        note(f"{survey.lacking} prompts have no count and are left out ({survey.first_lacking})")
    nouns = list(survey.nouns)
    own = preset.roles(nouns)
    names = {role: getattr(settings.counters, role) or own[role] for role in ("critic", "verifier")}
    presets.check_counters(names, nouns, settings.method)
    gives = presets.counter_output(names["critic"])
    check_boxes(names["critic"], gives, "a dataset has the boxes of its objects")
    device = presets.check_device(settings.load.device or preset.default_device)
    return listed.limited(settings.limit, survey), survey, names, device


def _check_rows(rows: Sequence[Row], nouns: Container[str], settings: DatasetSettings) -> None:
    """Refuse a folder whose pictures are of another list of that name.

    Raises:
        UsageError: one holds a noun that no prompt names.
    """
    for row in rows:
        for noun in row.get("boxes", ()):
            if noun not in nouns:
                raise UsageError(
                    f"{settings.out} has pictures of {noun!r}, which no prompt of {settings.prompts} names "
                    "any more; take another folder, or the prompts of before"
                )


def _about(settings: DatasetSettings, names: dict[str, str]) -> dict[str, Any]:
    """What changes a picture; how many there are may grow."""
    draw = asdict(settings.draw)
    return {
        "prompts": Path(settings.prompts).name,
        "model": settings.model,
        "method": settings.method,
        **names,
        **{k: v for k, v in draw.items() if k not in ("num_images_per_prompt", "batch_size")},
    }


def _summary(
    settings: DatasetSettings, rows: Sequence[Row], total: int, files: Sequence[str]
) -> dict[str, Any]:
    from countgen.files import shown

    kept = [row for row in rows if row["verified"]]
    objects = Counter[str]()
    for row in kept:
        objects.update({noun: len(boxes) for noun, boxes in row["boxes"].items()})
    return {
        "path": shown(settings.out),
        "wanted": total,
        "tried": len(rows),
        "verified": len(kept),
        "objects": dict(sorted(objects.items())),
        "pre": round(sum(row["pre"] for row in rows), 1),
        "files": list(files),
    }
