"""Generators and counters by name: the embedded ones, presets of the hub, and local folders.

What differs between them stands in ``Preset``; nothing else asks for a model by its name.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from countgen._collector import paused_collector
from countgen._torchvision import hidden_torchvision
from countgen.errors import UsageError
from countgen.options import LoadOptions
from countgen.prompts import (
    NEGATIVE,
    TOO_MANY,
    CountPrompt,
    CountTarget,
    ExplicitTargets,
    parse_prompt,
    parse_target,
)

if TYPE_CHECKING:
    import torch

    from countgen.engine.rates import Rates
    from critics.base import Critic, CriticCard
    from pipelines.base import ImageSource, PipelineCard


class Preset(Protocol):
    """A generator by name, with all that goes with it."""

    @property
    def name(self) -> str: ...
    @property
    def default_device(self) -> str: ...

    def card(self) -> PipelineCard | None:
        """Without loading it; None for folders and hub ids, whose card is made when they are loaded."""

    def roles(self, nouns: Sequence[str] = ()) -> dict[str, str]:
        """Default counters: role -> name, chosen among those that see the nouns."""

    def check_prompt(self, prompt: CountPrompt) -> tuple[str, ...]:
        """Notes on what the generator will make of a prompt.

        Raises:
            UsageError: it cannot draw that.
        """

    def check_nouns(self, nouns: Sequence[str]) -> None:
        """What its own counters cannot see, without loading anything.

        Raises:
            UsageError: a noun outside a closed vocabulary, with the nearest ones.
        """

    def load_generator(self, options: LoadOptions, device: str | torch.device) -> ImageSource: ...


@dataclass(frozen=True)
class PocketPreset:
    """The embedded world (``countgen.pocket``), which brings counters of its own."""

    name: str = "pocket"
    default_device: str = "cpu"

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the counters that come with it."""
        return tuple(self.roles().values())

    def card(self) -> PipelineCard:
        from countgen.pocket import card

        return card()

    def roles(self, nouns: Sequence[str] = ()) -> dict[str, str]:
        from countgen.pocket import ROLES

        return dict(ROLES)

    def check_prompt(self, prompt: CountPrompt) -> tuple[str, ...]:
        from countgen.pocket import unknown_words
        from countgen.pocket.world import MAX_OBJECTS

        total = sum(target.count for target in prompt.targets)
        if total > MAX_OBJECTS:
            raise UsageError(
                f"{total} objects are more than the pocket generator was trained for; "
                f"ask for at most {MAX_OBJECTS} in all"
            )
        strangers = unknown_words(prompt.text)
        if not strangers:
            return ()
        more = f" and {len(strangers) - 10} more" if len(strangers) > 10 else ""
        told = ", ".join(word[:40] for word in strangers[:10])
        return (f"words the pocket generator does not know and reads as <unk>: {told}{more}",)

    def check_nouns(self, nouns: Sequence[str]) -> None:
        from countgen.pocket.world import PocketError, noun_index

        for noun in nouns:
            try:
                noun_index(noun)
            except PocketError as error:
                raise UsageError(f"pocket's counters cannot see {noun!r}: {error}") from None

    def rates(self) -> Rates:
        """Where moves lead in its pictures, as measured on pocket-dev."""
        from countgen.engine.rates import read_rates
        from countgen.pocket.world import FOLDER

        return read_rates(FOLDER / "moves.json")

    def load_generator(self, options: LoadOptions, device: str | torch.device) -> ImageSource:
        from countgen.pocket import load_adapter

        for option in ("dtype", "variant", "revision", "tiny_decoder", "text_encoder", "compile"):
            if getattr(options, option):
                raise UsageError(
                    f"pocket, which comes with countgen, takes no {option}; leave it out"
                )
        adapter = load_adapter().to(device)
        if options.memory != "auto":
            adapter.set_memory_plan(options.memory)
        return adapter

    def counter_card(self, name: str) -> CriticCard:
        import json

        from countgen.pocket import CURE
        from countgen.pocket.world import FOLDER, PocketError
        from critics.base import CriticCard

        path = FOLDER / name.removeprefix("pocket-") / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return CriticCard(**config["card"] | {"vocabulary": tuple(config["vocabulary"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PocketError(f"{path} cannot be read ({error!r}). {CURE}") from None

    def load_counter(self, name: str) -> Critic:
        from countgen.pocket import load_critic

        return load_critic(name)


@dataclass(frozen=True)
class HubPreset:
    """A preset of ``pipelines.registry``, a hub id or a local folder."""

    name: str

    @property
    def default_device(self) -> str:
        return best_device()

    def card(self) -> PipelineCard | None:
        from pipelines.registry import cards

        return next((card for card in cards() if card.name == self.name), None)

    def roles(self, nouns: Sequence[str] = ()) -> dict[str, str]:
        """Three families; the verifier is RT-DETRv2 where its closed vocabulary has every noun."""
        from critics.registry import card

        known = card("rt-detrv2").vocabulary or ()
        closed = bool(nouns) and all(noun in known for noun in nouns)
        verifier = "rt-detrv2" if closed else "mm-grounding-dino"
        return {"critic": "owlv2", "verifier": verifier, "judge": "sam3"}

    def check_prompt(self, prompt: CountPrompt) -> tuple[str, ...]:
        return ()

    def check_nouns(self, nouns: Sequence[str]) -> None:
        """Open vocabularies see anything; closed ones are asked by their cards."""

    def load_generator(self, options: LoadOptions, device: str | torch.device) -> ImageSource:
        import torch

        from pipelines.loading import LoadError
        from pipelines.registry import load_adapter

        try:
            return load_adapter(
                self.name,
                dtype=getattr(torch, options.dtype) if options.dtype else None,
                device=device,
                variant=options.variant,
                revision=options.revision,
                local_files_only=options.local_files_only,
                memory_plan=options.memory,
                tiny_decoder=options.tiny_decoder,
                text_encoder=options.text_encoder,
                compile=options.compile,
            )
        except LoadError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from None


EMBEDDED: Mapping[str, PocketPreset] = {preset.name: preset for preset in (PocketPreset(),)}
"""Presets that come with the package."""


def presets() -> list[Preset]:
    """All that have a name."""
    from pipelines.names import PRESET_NAMES

    return [*EMBEDDED.values(), *map(HubPreset, PRESET_NAMES)]


def find_preset(model: str | Path) -> Preset:
    """The preset that a name, a hub id or a folder means; nothing of it is loaded.

    Raises:
        UsageError: a name that none has; the message has the nearest.
    """
    name = str(model)
    if name in EMBEDDED:
        return EMBEDDED[name]
    if re.match(r"[/.~]", name) and not Path(name).is_dir():
        raise UsageError(f"there is no folder {name}")
    if name and (re.search(r"[/\\]", name) or Path(name).is_dir()):
        return HubPreset(name)
    names = [preset.name for preset in presets()]
    if name in names:
        return HubPreset(name)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise UsageError(
        f"there is no model {name!r}; {hint} {', '.join(names)}, and any local folder or hub id of "
        "their families"
    )


# -- requests -------------------------------------------------------------------------------------


def read_targets(written: Sequence[str]) -> tuple[CountTarget, ...] | None:
    """Targets as ``--target`` takes them; None when there are none, so that the prompt is read.

    Raises:
        UsageError: one that is not written NOUN=NUMBER, or a noun named twice.
    """
    try:
        targets = tuple(map(parse_target, written))
    except ValueError as error:
        raise UsageError(f"--target: {error}") from error
    nouns = [target.noun for target in targets]
    for noun in nouns:
        if nouns.count(noun) > 1:
            raise UsageError(f"--target names {noun!r} twice")
    return targets or None


def read_prompt(
    text: str, targets: ExplicitTargets | None = None, preset: Preset | None = None
) -> CountPrompt:
    """Parse and check a prompt, once on its way; the notes say what will be ignored.

    Args:
        targets: win over what the text says.
        preset: of the generator that will draw it.

    Raises:
        UsageError: an empty or unreadable prompt, a negative count, wrong targets, or more than the generator
            can draw.
    """
    if not isinstance(text, str) or not text.strip():
        raise UsageError('the prompt is empty; try "seven red apples on a table"')
    try:  # a terminal that says it has ASCII only hands over the bytes of UTF-8
        text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UsageError("the prompt is not valid text; write it in UTF-8") from None
    try:
        prompt = parse_prompt(text, targets)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    impossible = [remark for remark in prompt.notes if TOO_MANY in remark or NEGATIVE in remark]
    if impossible:
        raise UsageError(impossible[0])
    notes = list(prompt.notes)
    if not prompt.targets:
        notes.append("the prompt names no count, so the picture is drawn as it comes")
    if preset is not None:
        notes += preset.check_prompt(prompt)
    return replace(prompt, notes=tuple(notes))


# -- counters -------------------------------------------------------------------------------------


@paused_collector()
@hidden_torchvision()
def load_critic(name: str, source: str | Path | None = None, **options: Any) -> Critic:
    """A counter by name: of a preset, of the registry, or NAME=SOURCE with a hub id or folder of weights.

    Args:
        source: another hub id, or a local folder in the hub's layout, as after "=".
        options: of the family's ``load``, for counters of the registry.

    Raises:
        UsageError: unknown name, with the nearest ones.
        CheckpointError: its weights cannot be loaded.
    """
    from critics import registry

    for preset in EMBEDDED.values():
        if name in preset.counters and source is None:
            return preset.load_counter(name)
    counter_card(name)  # refuses an unknown name
    name, _, place = name.partition("=")
    return registry.load_critic(name, source or place or None, **options)


def counter_card(name: str) -> CriticCard:
    """The card of a counter, without loading it; for NAME=SOURCE that of NAME, with an open vocabulary.

    Raises:
        UsageError: unknown name, with the nearest ones.
    """
    from critics.registry import card

    check_counter_name(name)
    for preset in EMBEDDED.values():
        if name in preset.counters:
            return preset.counter_card(name)
    name, _, source = name.partition("=")
    found = card(name)
    return replace(found, vocabulary=None) if source or not found.vocabulary else found


def check_counter_name(name: str) -> None:
    """Refuse a name, or NAME=SOURCE, that no counter has, before torch is loaded.

    Raises:
        UsageError: with the nearest ones.
    """
    from critics.registry import FAMILIES

    own = [name for preset in EMBEDDED.values() for name in preset.counters]
    name = name if name in own else name.partition("=")[0]
    if name in own or name in FAMILIES:
        return
    near = difflib.get_close_matches(name.lower().replace("_", "-"), [*own, *FAMILIES], 3, 0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"there is no critic {name!r}; {hint}countgen list critics has them all")


def check_counters(names: Mapping[str, str], nouns: Sequence[str], method: str) -> None:
    """Refuse, by their cards and before anything is loaded, counters that cannot do what is asked of them.

    Args:
        names: role -> name.
        method: name of a method that the critic must serve.

    Raises:
        UsageError: an unknown name, two of one family, or a critic without what the method's objective needs.
        critics.base.UnknownNounError: a noun outside a counter's closed vocabulary.
    """
    for name in names.values():
        check_counter_name(name)
    from countgen.guidance.methods import METHODS, find_method
    from critics.base import look_up

    cards = {role: counter_card(name) for role, name in names.items()}
    for card in cards.values():
        if card.vocabulary is not None:
            look_up(nouns, card.vocabulary, card.name)
    critic = cards["critic"]
    chosen = find_method(method)
    if chosen.needs_candidates and counter_output(names["critic"]) != "candidates":
        others = [m.name for m in METHODS.values() if not m.needs_candidates]
        raise UsageError(
            f"{critic.name} counts without boxes, and the method {method} moves boxes; take a detector "
            f"as the critic, or one of the methods {', '.join(others)}"
        )
    check_families(cards)


def check_families(cards: Mapping[str, CriticCard]) -> None:
    """Refuse counters of which two share a family: what fools one fools the other.

    Args:
        cards: role -> card, of critic, verifier and every judge.

    Raises:
        UsageError: the two roles, and the family.
    """
    for (first, ours), (second, theirs) in itertools.combinations(cards.items(), 2):
        shared = ours.families & theirs.families
        if shared:
            raise UsageError(
                f"{first} and {second} are both of the family {min(shared)}: what fools one fools the "
                f"other; take a {second} of another family"
            )


def counter_output(name: str) -> Literal["candidates", "density", "other"]:
    """What a counter's counts come from."""
    from critics.registry import FAMILIES

    name = name.partition("=")[0]
    if name in FAMILIES:
        kind = FAMILIES[name].split(".")[1]
    else:
        kind = "density" if "density" in name else "detectors"
    if kind == "detectors":
        return "candidates"
    return "density" if kind == "density" else "other"


# -- devices --------------------------------------------------------------------------------------


def check_device(device: str | torch.device) -> str:
    """The device, if there is one of that name.

    Raises:
        UsageError: a name that is none, or a device that this machine or this torch does not have.
    """
    from pipelines import devices

    try:
        return str(devices.check_device(device))
    except ValueError as error:
        raise UsageError(str(error)) from None


def best_device() -> str:
    """cuda, then mps, then cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


# -- loading --------------------------------------------------------------------------------------


@paused_collector()
@hidden_torchvision()
def load_generator(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> ImageSource:
    """A generator by name: ``pocket``, a preset, a hub id, or a local folder.

    Args:
        device: None takes the preset's own.
        options: fields of ``countgen.options.LoadOptions``.

    Raises:
        UsageError: unknown name, unsupported class, or an impossible option.
        pipelines.loading.LoadError: what is there cannot be loaded.
        countgen.pocket.PocketError: missing or damaged files of pocket.
    """
    preset = find_preset(model)
    place = check_device(device if device is not None else preset.default_device)
    if dtype is not None:
        options["dtype"] = str(dtype).removeprefix("torch.")
    try:
        chosen = LoadOptions(**options)
    except TypeError as error:
        raise UsageError(f"an option that loading does not have: {error}") from None
    return preset.load_generator(chosen, place)


def roles(model: str | Path, nouns: Sequence[str] = ()) -> dict[str, str]:
    """Default counters of a generator: role -> name, chosen among those that see the nouns."""
    return find_preset(model).roles(nouns)
