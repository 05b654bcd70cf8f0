"""Published protocols, one file each: prompts, models, methods, counters and seeds, and what differs.

``load_recipe`` reads the file; ``Recipe.settings`` says what ``countgen evaluate`` is to run for each of its
models; ``Recipe.stand_in`` is the same on the embedded model, for machines without a hub or a GPU.
"""

from __future__ import annotations

import difflib
import itertools
import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from countgen.errors import UsageError
from countgen.evaluation.formats import ListedPrompt
from countgen.evaluation.suites import PromptList
from countgen.options import CounterOptions, DrawOptions, LoadOptions
from countgen.prompts import CountTarget, number_word, pluralise

if TYPE_CHECKING:
    from countgen.evaluation.runner import Settings

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PromptRule:
    """How the prompts of a protocol are made; equal rules make equal prompts.

    Attributes:
        template: with {number}, {nouns} and, where there are scenes, {scene}.
        number: whether numbers are words or digits.
        plural: "s" puts an s behind every noun but those in ``plurals``, as some lists do.
        plurals: noun -> how a prompt says several of it.
        nouns, counts: every noun with every count, unless ``pairs`` names them.
        pairs: count, as text -> nouns.
        scenes: what follows -> how many of the prompts have it; these are drawn by ``seed``.
        take: how many are drawn of all, each count equally often; 0 for all.
        published_list: where the published list is, which ``--prompts FILE`` takes in place of the rule.
    """

    template: str
    number: Literal["word", "digit"] = "word"
    plural: Literal["english", "s"] = "english"
    plurals: Mapping[str, str] = field(default_factory=dict)
    nouns: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    pairs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scenes: Mapping[str, int] = field(default_factory=dict)
    take: int = 0
    seed: int = 0
    published_list: str = ""

    def __iter__(self) -> Iterator[ListedPrompt]:
        """The prompts, numbered in their order."""
        draw = random.Random(self.seed)
        deck: list[str] = []
        said: set[str] = set()
        for index, (noun, count) in enumerate(self._wanted(draw)):
            if not deck:
                deck = [scene for scene, n in self.scenes.items() for _ in range(n)] or [""]
                draw.shuffle(deck)
            texts = [self._text(noun, count, scene) for scene in deck]
            # What was said already is said with another scene, where there is one left.
            place = next((k for k, text in enumerate(texts) if text not in said), 0)
            deck.pop(place)
            said.add(texts[place])
            yield ListedPrompt(f"{index:05d}", texts[place], (CountTarget(noun, count),))

    def on(self, nouns: Sequence[str], most: int) -> PromptRule:
        """The same rule with other nouns, as many as are needed, and counts up to ``most``."""
        if self.pairs:
            endless = itertools.cycle(nouns)
            pairs = {
                count: tuple(dict.fromkeys(next(endless) for _ in each))
                for count, each in self.pairs.items()
                if int(count) <= most
            }
            return replace(self, pairs=pairs, plurals={})
        counts = tuple(count for count in self.counts if count <= most)
        return replace(self, nouns=tuple(nouns), counts=counts, plurals={})

    def _wanted(self, draw: random.Random) -> list[tuple[str, int]]:
        if self.pairs:
            return [(noun, int(count)) for count, nouns in self.pairs.items() for noun in nouns]
        if not self.take:
            return list(itertools.product(self.nouns, self.counts))
        nouns: list[str] = []
        while len(nouns) < self.take:  # every noun equally often
            nouns += draw.sample(self.nouns, len(self.nouns))
        return [(nouns[k], self.counts[k % len(self.counts)]) for k in range(self.take)]

    def _text(self, noun: str, count: int, scene: str) -> str:
        number = number_word(count) if self.number == "word" else str(count)
        return self.template.format(number=number, nouns=self._plural(noun, count), scene=scene)

    def _plural(self, noun: str, count: int) -> str:
        if noun in self.plurals:
            return self.plurals[noun]
        return f"{noun}s" if self.plural == "s" else pluralise(noun, count)


@dataclass(frozen=True)
class RecipeModel:
    """A generator as the protocol runs it; None takes what the preset was made for."""

    name: str
    steps: int | None = None
    guidance_scale: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Published:
    """A number of the source, to compare with."""

    model: str
    method: str
    metric: str
    value: float
    source: str = ""


@dataclass(frozen=True)
class Recipe:
    """A protocol.

    Attributes:
        critic, verifier: names; None for the model's own.
        judges: names; the first one has the last word, the others see the finished pictures.
        images: pictures a prompt.
        metrics: what the source reports.
        differs: sentences on what is not as published.
    """

    name: str
    summary: str
    source: str
    rule: PromptRule
    models: tuple[RecipeModel, ...]
    methods: tuple[str, ...]
    critic: str | None
    verifier: str | None
    judges: tuple[str, ...]
    metrics: tuple[str, ...]
    differs: tuple[str, ...]
    images: int = 1
    seed: int = 0
    budget: float = 64.0
    published: tuple[Published, ...] = ()

    def prompts(self) -> PromptList:
        """Its prompts, which can be read again and again."""
        return PromptList(self.name, lambda: iter(self.rule))

    def stand_in(self) -> Recipe:
        """The same on pocket: its nouns, its counters, and numbers of objects that it can draw."""
        from countgen.pocket.world import MAX_OBJECTS, NAMES

        return replace(
            self,
            rule=self.rule.on(NAMES, MAX_OBJECTS),
            models=(RecipeModel("pocket"),),
            critic=None,
            verifier=None,
            judges=(),
            published=(),
        )

    def on(self, model: str | None) -> Recipe:
        """The recipe for one model: pocket's stand-in, one of its own models as it is run there, or another.

        Args:
            model: None leaves the recipe as it is.
        """
        if model is None:
            return self
        if model == "pocket":
            return self.stand_in()
        own = tuple(each for each in self.models if each.name == model)
        return replace(self, models=own or (RecipeModel(model),))

    def write_prompts(self, path: Path) -> None:
        """The prompts as a list that ``countgen evaluate --prompts`` reads.

        Raises:
            OSError: the file cannot be written.
        """
        from countgen.files import write

        lines = [
            json.dumps(
                {
                    "id": prompt.id,
                    "prompt": prompt.prompt,
                    "targets": [{"noun": noun, "count": count} for noun, count in prompt.wanted],
                }
            )
            for prompt in self.rule
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, ("\n".join(lines) + "\n").encode(), replace=True)

    def settings(
        self,
        out: Path,
        prompts: str | None = None,
        limit: int | None = None,
        load: LoadOptions | None = None,
    ) -> Iterator[Settings]:
        """What to evaluate, a run folder of its own for each model: ``out/MODEL``.

        Args:
            out: folder of all runs; the rule's prompts are written to ``prompts.jsonl`` in it.
            prompts: a published list, or a suite, in place of the rule.
            limit: most prompts.
        """
        from countgen.evaluation.runner import Settings

        if prompts is None:
            self.write_prompts(out / "prompts.jsonl")
        for model in self.models:
            yield Settings(
                prompts or str(out / "prompts.jsonl"),
                out / model.name.replace("/", "--"),
                self.methods,
                model.name,
                CounterOptions(self.critic, self.verifier),
                self.judges[0] if self.judges else None,
                limit,
                load or LoadOptions(),
                DrawOptions(
                    seed=self.seed,
                    num_images_per_prompt=self.images,
                    budget=self.budget,
                    height=model.size,
                    width=model.size,
                    num_inference_steps=model.steps,
                    guidance_scale=model.guidance_scale,
                ),
            )


def recipe_names() -> list[str]:
    """All there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UsageError: unknown name, with the nearest ones.
    """
    names = recipe_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"did you mean {near[0]}? There are" if near else "there are"
        raise UsageError(f"there is no recipe {name!r}; {hint} {', '.join(names)}")
    data = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    data["rule"] = _made(PromptRule, data.pop("prompts"))
    data["models"] = tuple(_made(RecipeModel, each) for each in data["models"])
    data["published"] = tuple(_made(Published, each) for each in data.get("published", ()))
    optional = {"critic": None, "verifier": None}
    recipe: Recipe = _made(Recipe, {"name": name} | optional | data)
    return recipe


def card(name: str) -> dict[str, Any]:
    """What ``countgen list recipes`` tells of a recipe."""
    recipe = load_recipe(name)
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "source": recipe.source,
        "prompts": sum(1 for _ in recipe.rule),
        "list": recipe.rule.published_list,
        "models": [model.name for model in recipe.models],
        "methods": list(recipe.methods),
        "critic": recipe.critic or "",
        "verifier": recipe.verifier or "",
        "judges": list(recipe.judges),
        "images": recipe.images,
        "seed": recipe.seed,
        "metrics": list(recipe.metrics),
        "differs": list(recipe.differs),
    }


def _made(kind: type, data: Mapping[str, Any]) -> Any:
    """A dataclass of a table, lists in it as tuples.

    Raises:
        ValueError: a key that the dataclass does not have.
    """
    strangers = set(data) - {each.name for each in fields(kind)}
    if strangers:
        raise ValueError(f"a {kind.__name__} has no {', '.join(sorted(strangers))}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return kind(**values)
