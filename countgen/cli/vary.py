"""``countgen vary``: new pictures with the kinds and counts of a given one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from countgen.errors import UsageError
from countgen.options import DEFAULT_MODEL, CounterOptions, LoadOptions


@dataclass(frozen=True)
class Vary:
    """Draw new pictures with the kinds and counts of a given one, told by the picture and no text.

    --with is what countgen learn variation has written. What the critic sees in the given picture is cut out,
    and the generator is told of the whole and of each object. Counts of the given picture and of the new ones
    are printed, by critic and verifier.

    Example: countgen vary picture.png --with variation/variation.safetensors --out varied
    """

    picture: Annotated[Path, tyro.conf.Positional]
    """The given picture."""
    learnt: Annotated[Path, tyro.conf.arg(name="with")]
    """What countgen learn variation has written, a .safetensors file."""
    out: Path
    """Folder for the new pictures; what is there stays."""
    noun: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to look for in the given picture; may be repeated. By default all that the critic knows, where its
    vocabulary is closed."""
    num_images: int = 4
    """How many new pictures."""
    seed: int = 0
    """The same seed and picture give the same new pictures."""
    batch_size: int = 16
    """Most pictures drawn at once."""
    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    counters: tyro.conf.OmitArgPrefixes[CounterOptions] = field(default_factory=CounterOptions)
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        with messages.status("loading the model and its counters") as status:
            document = vary(
                self, lambda done: status.update(f"{done} of {self.num_images} pictures drawn")
            )
        if self.json:
            print(json.dumps(document))
            return 0
        rows = [document["given"], *document["images"]]
        for row in rows:
            told = "; ".join(
                f"{role} counts " + ", ".join(f"{noun}: {n}" for noun, n in found.items())
                for role, found in row["counts"].items()
            )
            same = {True: "  the same", False: "  others", None: "  given"}[row.get("same")]
            print(f"{row['path']}{same}  ({told})")
        return 0


def vary(options: Vary, progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
    """Draw, write and count; the JSON document of the command.

    Raises:
        UsageError: as ``countgen.learning.vary.vary``.
        OSError: the folder cannot be written to.
        LoadError, CheckpointError, PocketError: weights that cannot be loaded.
    """
    import io

    from countgen import presets
    from countgen.files import PictureFolder, shown
    from countgen.prompts import singularise

    if options.num_images < 1 or options.batch_size < 1:
        raise UsageError("images and batch size must be at least 1")
    nouns = tuple(singularise(noun) for noun in options.noun)
    preset = presets.find_preset(options.model)
    roles = preset.roles(nouns)
    names = {
        role: getattr(options.counters, role) or roles[role] for role in ("critic", "verifier")
    }
    presets.check_families({role: presets.counter_card(name) for role, name in names.items()})
    folder = PictureFolder(options.out)
    folder.check()
    from countgen.cli.learn_generator import loaded
    from countgen.engine.run import to_pil
    from countgen.learning import vary as varying
    from countgen.learning.variation import Variation

    learnt = Variation.load(options.learnt)
    adapter, critic = loaded(options.model, names["critic"], options.load)
    verifier = presets.load_critic(names["verifier"]).to(adapter.device)
    found = varying.vary(
        options.picture,
        learnt,
        adapter,
        critic,
        verifier,
        nouns=nouns,
        number=options.num_images,
        seed=options.seed,
        batch=options.batch_size,
        progress=progress,
    )
    images = []
    for i, image in enumerate(found.images):
        data = io.BytesIO()
        to_pil(image).save(data, format="PNG")
        path = folder.keep(i, data.getvalue())
        row = {"path": shown(path), "seed": found.seeds[i], "counts": dict(found.counts[i])}
        images.append(row | {"same": found.same[i]})
    given = {"path": shown(options.picture), "counts": dict(found.given)}
    return {"given": given, "images": images}
