"""Folders of finished pictures judged, and counters judged where the truth is known; no generator needed.

What ``countgen evaluate --images DIR`` runs: ``evaluate_images`` with the flags of ``ImageOptions``.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError
from countgen.evaluation.folders import KnownPicture, PictureFolder, find_pictures
from countgen.prompts import pluralise

if TYPE_CHECKING:
    from countgen.evaluation.counters import Reading
    from countgen.evaluation.counting import Answer, Counters, Question, Seen
    from critics.base import Critic

Row = dict[str, Any]
GENEVAL_JUDGE = "mask2former"
"""The judge that GenEval's thresholds belong to; others count by the threshold on their own card."""
DEFAULT_JUDGE = "sam3"
ROWS, SUMMARY = "pictures.jsonl", "summary.json"
NEEDED = {"method", "picture", "stamp", "nouns", "judges"}
"""What every row of an earlier run must have."""


@dataclass(frozen=True)
class ImageOptions:
    """Which pictures are judged, and by whom."""

    images: Path
    """Folder of finished pictures: in GenEval's layout, with a pictures.csv (picture,noun,count), or a
    run."""
    truth: Path | None = None
    """Table or annotations (COCO, FSC-147, CountBench, GeckoNum) that say what is in the pictures."""
    split: str | None = None
    """Of FSC-147: train, val or test."""
    judges: tuple[str, ...] = ()
    """Counters (see: countgen list critics), or NAME=SOURCE; by default GenEval's own for its layout, else
    sam3."""
    absent: int = 1
    """Nouns a picture that are not in it, for which counters are tested where the truth is known."""
    limit: int | None = None
    """Most pictures, drawn at random."""
    seed: int = 0
    """Of that draw, and of the absent nouns."""
    batch_size: int = 16
    """Most pictures looked at together."""
    device: str | None = None
    """cuda, mps or cpu; by default the best there is."""
    out: Path | None = None
    """Folder for a row of each picture and the summary; what is there already is not counted again."""


def evaluate_images(
    options: ImageOptions,
    critics: Mapping[str, Critic] | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Count the pictures of a folder, and sum up what the counts amount to.

    Pictures that cannot be read or counted are named under ``failed``; the others go on.

    Args:
        critics: loaded counters by name, in place of the options' judges.
        progress: told how many pictures are done, and of how many.

    Returns:
        ``layout``, ``n_images``, ``n_prompts``, ``failed``; ``methods`` -> ``judge`` (the first) and
        ``judges`` against what was asked for; ``geneval`` -> judge -> its score; ``counters`` -> name ->
        scores against the truth, ``trusted`` -> noun -> the nearest counter; and ``agreement`` of any two.

    Raises:
        UsageError: nothing to be counted, an unknown counter, a noun that no counter can look for, or a
            folder of results that holds something else.
        OSError: the folder of results cannot be written to.
        critics.loading.checkpoint.CheckpointError: weights that cannot be loaded.
    """
    from countgen import presets

    _check(options)
    names = list(critics) if critics is not None else list(options.judges)
    for name in names if critics is None else ():
        presets.check_counter_name(name)
    found = find_pictures(options.images, options.truth, options.split)
    if options.out is not None:
        _check_out(options.out, options.images)
    if not names:
        names = [GENEVAL_JUDGE if found.layout == "geneval" else DEFAULT_JUDGE]
    for remark in found.notes:
        note(f"left out: {remark}")
    pictures = _limited(found.pictures, options.limit, options.seed)
    device = presets.check_device(options.device or ("cpu" if critics else presets.best_device()))
    if critics is None:
        critics = {name: presets.load_critic(name) for name in names}

    from countgen.evaluation.counting import Counters
    from countgen.evaluation.geneval import COCO_NAMES

    counters = Counters(critics, device, COCO_NAMES if found.layout == "geneval" else None)
    absent = _absent_nouns(found, pictures, options)
    store = _Store(options.out, options.images, names)
    rows: list[Row] = []
    failed: list[dict[str, str]] = []
    for done, row in enumerate(_rows(pictures, absent, counters, store, options), 1):
        if "error" in row:
            note(row["error"])
            failed.append({"picture": row["picture"], "error": row["error"]})
        else:
            rows.append(row)
        progress(done, len(pictures))
    if rows and not any(
        count is not None for row in rows for c in row["judges"].values() for count in c
    ):
        unseen = next(reason for nouns in counters.unseen.values() for reason in nouns.values())
        raise UsageError(f"no counter can look for any of the nouns: {unseen}")
    document = _summed(found.layout, rows, failed, counters)
    store.close(document)
    return document


def _check(options: ImageOptions) -> None:
    for name, low in (("absent", 0), ("batch_size", 1), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise UsageError(f"{name.replace('_', ' ')} must be at least {low}, not {value}")
    for name in options.judges:
        if options.judges.count(name) > 1:
            raise UsageError(f"the judge {name} is named twice")


def _limited(
    pictures: Sequence[KnownPicture], limit: int | None, seed: int
) -> Sequence[KnownPicture]:
    if limit is None or limit >= len(pictures):
        return pictures
    return [pictures[k] for k in sorted(random.Random(seed).sample(range(len(pictures)), limit))]


def _absent_nouns(
    found: PictureFolder, pictures: Sequence[KnownPicture], options: ImageOptions
) -> list[tuple[str, ...]]:
    """For each picture nouns of the other ones that are not in it, the same in every run."""
    if not (found.only_these and options.absent):
        return [() for _ in pictures]
    pool = sorted({known.noun for picture in found.pictures for known in picture.nouns})
    chosen = []
    for picture in pictures:
        there = {known.noun for known in picture.nouns} | set(picture.unclear)
        others = [noun for noun in pool if noun not in there]
        draw = random.Random(f"{options.seed}/{picture.path.name}")
        chosen.append(tuple(draw.sample(others, min(options.absent, len(others)))))
    return chosen


# -- rows -----------------------------------------------------------------------------------------


def _rows(
    pictures: Sequence[KnownPicture],
    absent: Sequence[tuple[str, ...]],
    counters: Counters,
    store: _Store,
    options: ImageOptions,
) -> Iterator[Row]:
    """A row for each picture, counted now or in an earlier run into the same folder."""
    from countgen.evaluation.counting import Question

    waiting: list[Row] = []

    def questions() -> Iterator[Question]:
        for key, (picture, more) in enumerate(zip(pictures, absent, strict=True)):
            nouns = tuple(known.noun for known in picture.nouns) + more
            kept = store.kept(picture, nouns)
            if kept is None:
                yield Question(picture.path, nouns, key)
            else:
                waiting.append(kept)

    for answer in counters.count(questions(), options.batch_size):
        yield from waiting
        waiting.clear()
        picture = pictures[answer.question.key]
        row = _row(picture, absent[answer.question.key], answer, counters, options.images)
        store.add(row)
        yield row
    yield from waiting


def _row(
    picture: KnownPicture,
    absent: Sequence[str],
    answer: Answer,
    counters: Counters,
    folder: Path,
) -> Row:
    nouns = list(answer.question.nouns)
    row: Row = {
        "method": picture.method,
        "id": picture.id,
        "image": picture.image,
        "prompt": picture.prompt,
        "picture": _relative(picture.path, folder),
        "stamp": _stamp(picture.path),
        "nouns": nouns,
        "wanted": [known.wanted for known in picture.nouns] + [None for _ in absent],
        "true": [known.true for known in picture.nouns] + [0 for _ in absent],
    }
    if answer.error:
        return row | {"error": answer.error}
    row["judges"] = {
        name: [found[noun].count if noun in found else None for noun in nouns]
        for name, found in answer.seen.items()
    }
    row["confidences"] = {
        name: [round(found[noun].confidence, 4) if noun in found else None for noun in nouns]
        for name, found in answer.seen.items()
    }
    first = next(iter(counters.critics))
    row["judge"] = row["judges"][first]
    row["boxes"] = {
        noun: [[round(x, 1) for x in box] for box in seen.boxes]
        for noun, seen in answer.seen[first].items()
        if seen.boxes is not None
    }
    if picture.geneval is not None:
        row["geneval"] = dict(picture.geneval)
        row["geneval_counts"] = {
            name: _geneval_counts(name, found, counters, picture.geneval)
            for name, found in answer.seen.items()
        }
    return row


def _geneval_counts(
    name: str, found: Mapping[str, Seen], counters: Counters, metadata: Mapping[str, Any]
) -> dict[str, int]:
    """What GenEval's rules count: by its thresholds for its own judge, else as the judge itself counts."""
    import numpy as np

    from countgen.evaluation.geneval import Rules

    critic = counters.critics[name]
    read_out = getattr(critic, "read_out", None)
    if critic.card.family != GENEVAL_JUDGE or read_out is None:
        return {noun: seen.count for noun, seen in found.items()}
    counts = {}
    for noun, seen in found.items():
        assert seen.candidates is not None
        logits = seen.candidates[:, 4].astype(np.float64) + read_out.level
        scores = 1 / (1 + np.exp(-logits))
        counts[noun] = len(Rules().select(seen.candidates[:, :4], scores, str(metadata.get("tag"))))
    return counts


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _stamp(path: Path) -> list[int]:
    """By which a picture that was replaced is told from the one that was counted."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return []
    return [about.st_size, about.st_mtime_ns]


class _Store:
    """Rows in a folder, appended as they come, so that a run that was stopped goes on."""

    def __init__(self, out: Path | None, images: Path, names: Sequence[str]) -> None:
        self.out, self.images, self.names = out, images, list(names)
        self._rows: dict[tuple[str, str], Row] = {}
        self._file = None
        if out is None:
            return
        from countgen.evaluation.runs import read_rows

        out.mkdir(parents=True, exist_ok=True)
        for row in read_rows(out / ROWS):
            self._rows[row["method"], row["picture"]] = row
        self._file = (out / ROWS).open("a", encoding="utf-8")

    def kept(self, picture: KnownPicture, nouns: Sequence[str]) -> Row | None:
        """The row of an earlier run, if the same counters counted the same nouns in the same file."""
        row = self._rows.get((picture.method, _relative(picture.path, self.images)))
        if row is None or row["nouns"] != list(nouns) or list(row["judges"]) != self.names:
            return None
        return row if row["stamp"] == _stamp(picture.path) else None

    def add(self, row: Row) -> None:
        """Append a row, at once; pictures that failed are tried again by the next run."""
        if self._file is not None and "error" not in row:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self, document: Mapping[str, Any]) -> None:
        """Write the summary beside the rows."""
        if self.out is None or self._file is None:
            return
        from countgen.files import write

        self._file.close()
        text = json.dumps(document, indent=1) + "\n"
        write(self.out / SUMMARY, text.encode(), replace=True)


def _check_out(out: Path, images: Path) -> None:
    """Refuse a folder whose files would be lost, or taken for ours; before anything is written.

    Raises:
        UsageError: the pictures' own folder, a run folder, or one with other rows.
    """
    if (out / "run.json").is_file():
        raise UsageError(
            f"{out} is a run folder, whose {SUMMARY} would be lost; give --out another folder"
        )
    if out.resolve() == images.resolve():
        raise UsageError(
            f"--out is the folder of the pictures, where {ROWS} would be read as their table; give another "
            "folder"
        )
    if not (out / ROWS).exists():
        return
    *whole, last = (out / ROWS).read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate([*whole, last], 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number > len(whole):  # cut off, and to be dropped
                return
            row = None
        if not isinstance(row, dict) or not row.keys() >= NEEDED:
            raise UsageError(
                f"{out / ROWS}, line {number} is no row of judged pictures; give --out another folder"
            )


# -- sums -----------------------------------------------------------------------------------------


def _summed(
    layout: str, rows: Sequence[Row], failed: Sequence[dict[str, str]], counters: Counters
) -> dict[str, Any]:
    from countgen.evaluation.counters import absent_score, agreement, scores, trusted

    names = list(counters.critics)
    document: dict[str, Any] = {
        "layout": layout,
        "n_images": len(rows),
        "n_prompts": len({row["id"] for row in rows}),
        "failed": list(failed),
        "unseen": {name: nouns for name, nouns in counters.unseen.items() if nouns},
        "methods": {},
        "agreement": agreement({name: _readings(rows, name, None) for name in names}),
    }
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    for method, part in by_method.items():
        wanted = {name: _readings(part, name, "wanted") for name in names}
        if any(wanted.values()):
            judges = {
                name: scores(readings) | _whole(part, name) for name, readings in wanted.items()
            }
            document["methods"][method] = {"judge": judges[names[0]], "judges": judges}
    true = {name: _readings(rows, name, "true") for name in names}
    if any(true.values()):
        document["counters"] = {
            name: scores([r for r in readings if r.expected]) | {"absent": absent_score(readings)}
            for name, readings in true.items()
        }
        document["trusted"] = trusted(true)
    if layout == "geneval":
        document["geneval"] = {name: _geneval_score(rows, name) for name in names}
    return document


def _readings(rows: Sequence[Row], name: str, against: str | None) -> list[Reading]:
    """A counter's counts of all nouns that it can see, beside what was asked for or is there."""
    from countgen.evaluation.counters import Reading

    readings = []
    for row in rows:
        expected = row[against] if against else [0 for _ in row["nouns"]]
        for noun, count, number in zip(row["nouns"], row["judges"][name], expected, strict=True):
            if count is not None and number is not None:
                picture = f"{row['method']}/{row['picture']}"
                readings.append(Reading(row["id"], picture, noun, count, number))
    return readings


def _whole(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """Share of pictures in which every noun that was asked for has its number."""
    right = []
    for row in rows:
        pairs = [
            (count, wanted)
            for count, wanted in zip(row["judges"][name], row["wanted"], strict=True)
            if wanted is not None
        ]
        if pairs and all(count is not None for count, _ in pairs):
            right.append(all(count == wanted for count, wanted in pairs))
    return {
        "pictures": len(right),
        "pictures_exact": round(sum(right) / len(right), 4) if right else None,
    }


def _geneval_score(rows: Sequence[Row], name: str) -> dict[str, Any]:
    from countgen.evaluation.geneval import is_scored, summary, verdict

    judged = []
    for row in rows:
        seen = row["geneval_counts"][name]
        scored = is_scored(row["geneval"]) and set(row["nouns"]) <= set(seen)
        judged.append((row["geneval"], verdict(seen, row["geneval"]).correct if scored else None))
    return summary(judged)


def table(document: Mapping[str, Any]) -> list[str]:
    """The document for people: judges against what was asked for, and counters against what is there."""
    pictures, prompts = document["n_images"], document["n_prompts"]
    lines = [
        f"{pictures} {pluralise('picture', pictures)} of {prompts} {pluralise('prompt', prompts)}"
    ]
    if document["failed"]:
        lines[0] += f"; {len(document['failed'])} could not be counted"
    head = f"{'n':>7}{'exact':>20}{'within 1':>10}{'MAE':>7}{'RMSE':>7}{'bias':>7}"
    for method, found in document["methods"].items():
        lines.append(f"{'asked for, ' + method:<28}{head}")
        lines += [f"{name:<28}{_numbers(each)}" for name, each in found["judges"].items()]
    if "counters" in document:
        lines.append(f"{'there':<28}{head}{'none where absent':>19}")
        for name, each in document["counters"].items():
            absent = each["absent"]
            told = f"{100 * absent['none_counted']:.1f}%" if absent["n"] else "-"
            lines.append(f"{name:<28}{_numbers(each)}{told:>19}")
        for noun, best in document["trusted"].items():
            sure = "" if best.get("sure", True) else ", within chance of the next"
            lines.append(
                f"for {noun} trust {best['counter']} (MAE {best['mae']:.2f} on {best['n']}{sure})"
            )
    for pair in document["agreement"]:
        if pair["n"]:
            names = " and ".join(pair["counters"])
            lines.append(f"{names} count the same in {100 * pair['same']:.1f}% of {pair['n']}")
    for name, found in document.get("geneval", {}).items():
        tags = ", ".join(
            f"{tag} {100 * each['correct']:.1f}%" for tag, each in found["tags"].items()
        )
        left = sum(found["left_out"].values())
        lines.append(
            f"GenEval by {name}: {tags or 'nothing'}"
            + (
                f"; {left} pictures with a colour, a place or an unknown class left out"
                if left
                else ""
            )
        )
    return lines


def _numbers(found: Mapping[str, Any]) -> str:
    if not found["n"]:
        return f"{0:>7}"
    low, high = found["exact_ci95"]
    exact = f"{100 * found['exact']:.1f}% ({100 * low:.0f} to {100 * high:.0f})"
    errors = "".join(f"{found[key]:>7.2f}" for key in ("mae", "rmse", "bias"))
    return f"{found['n']:>7}{exact:>20}{100 * found['within_one']:>9.1f}%{errors}"
