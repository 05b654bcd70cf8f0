"""``countgen learn lora|screening|noise|token-network|variation``: what a generator learns, or what stands
beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console

from countgen.errors import UsageError
from countgen.options import DEFAULT_MODEL, LoadOptions

if TYPE_CHECKING:
    from countgen.learning.draws import Prompts
    from countgen.learning.prompted import Pictures
    from critics.base import Critic
    from pipelines.adapter import DiffusersAdapter


@dataclass(frozen=True)
class Fit:
    """How long is trained, and how fast; what is not given is the preset's."""

    steps: int | None = None
    """Training steps, in place of the preset's."""
    batch: int | None = None
    """Pictures or noises a step."""
    lr: float | None = None
    """Learning rate."""

    def changed(self, train: Any, seed: int | None) -> Any:
        """A training with what was given.

        Raises:
            UsageError: no steps, no pictures, or no learning rate.
        """
        given = {"steps": self.steps, "batch": self.batch, "learning_rate": self.lr, "seed": seed}
        return _checked(replace(train, **_given(given)))


@dataclass(frozen=True)
class Parts:
    """What is taught, and by whom."""

    model: str = DEFAULT_MODEL
    """Which generator: a name (see: countgen list pipelines), a hub id, or a folder."""
    critic: str | None = None
    """Counter that is learnt from (see: countgen list critics); where boxes are learnt, a detector."""
    load: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)


@dataclass(frozen=True)
class Lora:
    """Fine-tune a generator by a counting reward, as a LoRA that Diffusers loads without countgen.

    The diffusion loss on captioned pictures, and beside it a counting loss by any critic with gradient: on
    the predicted clean picture, as published (prompt-free multi-object augmentation, arXiv 2507.06146), or
    through the last steps of a whole sampling. The same command goes on where it was stopped.

    Example: countgen learn lora --out lora
    """

    out: Path
    """Folder for the LoRA, the losses, samples on the way and the checkpoint."""
    data: str = "pocket"
    """"pocket": composed scenes without end; or a folder of captioned pictures, such as countgen dataset
    makes."""
    preset: Literal["pocket", "pfcd"] = "pocket"
    """Settings: found on pocket, or as published."""
    fit: tyro.conf.OmitArgPrefixes[Fit] = field(default_factory=Fit)
    rank: int | None = None
    """Of the LoRA."""
    objective: str | None = None
    """Counting loss: hinge (two-sided), counting-reward (one-sided, as published), soft, scaled, density; or
    none, for the diffusion loss alone."""
    weight: float | None = None
    """Of the counting loss."""
    grad_steps: int | None = None
    """Last sampling steps that the counting loss goes back through; 0 counts in the predicted picture."""
    count_batch: int | None = None
    """Pictures of a step that are counted."""
    samples: int = 16
    """Pictures of the sheet that is drawn and counted on the way; 0 for none."""
    seed: int | None = None
    """Of weights, data and noise."""
    of: tyro.conf.OmitArgPrefixes[Parts] = field(default_factory=Parts)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen.learning.lora import PRESETS, train_lora

        config = PRESETS[self.preset]
        changes = _given(
            {"rank": self.rank, "weight": self.weight, "grad_steps": self.grad_steps}
            | {"count_batch": self.count_batch}
        )
        if self.objective is not None:
            changes["objective"] = None if self.objective == "none" else self.objective
        counted = changes.get("count_batch", config.count_batch)
        if self.fit.batch is not None and self.count_batch is None:
            changes["count_batch"] = min(counted, self.fit.batch)
        config = replace(config, train=self.fit.changed(config.train, self.seed), **changes)
        pictures = _pictures(self.data, config.objective is not None, self.of)
        adapter, critic = loaded(self.of.model, self.of.critic, self.of.load)
        plan = adapter.plan()
        data = pictures(plan.height, plan.width)
        source, samples = {"data": self.data}, max(self.samples, 0)
        result = train_lora(adapter, critic, data, config, self.out, samples=samples, source=source)
        document = {"path": str(result.path), "parameters": result.parameters, **asdict(config)}
        print(json.dumps(document) if self.json else str(result.path))
        return 0


@dataclass(frozen=True)
class Screening:
    """Learn to tell from a noise how many objects it will become, so that the best of many is drawn.

    Plain draws are made first, with the critic's boxes (draws.jsonl in the folder), then the network is
    trained on them. It is the method screening=FILE, and the first draw of others: engine+screening=FILE.

    Example: countgen learn screening --out screening
    """

    out: Path
    """Folder for draws, network, losses and checkpoint."""
    draws: int = 20_000
    """Plain draws to learn from, at least 20."""
    prompts: str | None = None
    """A suite or a list of prompts; by default captions of random pocket scenes."""
    steps: int | None = None
    """Training steps."""
    batch: int = 16
    """Pictures drawn at once."""
    seed: int = 0
    """Of the draws, the weights and the order."""
    of: tyro.conf.OmitArgPrefixes[Parts] = field(default_factory=Parts)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen.learning.draws import check_critic, draw
        from countgen.learning.screening import CONFIG, check_draws, train_screening
        from countgen.learning.settings import keep_settings

        config = _checked(replace(CONFIG, **_given({"steps": self.steps}), seed=self.seed))
        if min(self.draws, self.batch) < 1:
            raise UsageError("draws and batch must be at least 1")
        check_draws(self.draws)
        prompts = _prompts(self.prompts, self.of, self.seed)
        adapter, critic = loaded(self.of.model, self.of.critic, self.of.load)
        check_critic(critic)
        # Before the first draw: draws of other settings must not stand among those that are there.
        keep_settings(
            self.out,
            "source",
            {"prompts": self.prompts, "draws": self.draws, "seed": self.seed}
            | {"generator": adapter.card.name, "critic": critic.card.name},
        )
        with messages.status("drawing") as status:
            rows = draw(
                adapter,
                critic,
                prompts,
                self.draws,
                self.out / "draws.jsonl",
                seed=self.seed,
                batch=self.batch,
                progress=lambda done: status.update(f"{done} of {self.draws} drawn"),
            )
        train_screening(adapter, rows[: self.draws], self.out, config)
        path = self.out / "screening.safetensors"
        document = {"path": str(path), "draws": len(rows), **asdict(config)}
        print(json.dumps(document) if self.json else str(path))
        return 0


@dataclass(frozen=True)
class Noise:
    """Learn a network that changes a noise once, as guidance would in many steps (HyperNoise, 2508.09968).

    From a critic's gradient through all sampling steps; or from successes, pictures that the engine has made
    exact. It is the method amortised=FILE, and the first draw of others: engine+amortised=FILE.

    Example: countgen learn noise --out noise
    """

    out: Path
    """Folder for the network, losses and checkpoint."""
    source: Literal["critic", "successes"] = "critic"
    """What is learnt from."""
    successes: int = 200
    """Pictures that the engine is asked for, with the source successes."""
    budget: float = 16.0
    """Most that each of them may cost, in plain renders."""
    preset: Literal["pocket", "hypernoise"] = "pocket"
    """Settings: for pocket, or as published."""
    fit: tyro.conf.OmitArgPrefixes[Fit] = field(default_factory=Fit)
    rank: int | None = None
    """Of the LoRAs."""
    objective: str | None = None
    """Counting loss: hinge (two-sided), counting-reward (one-sided), soft, scaled or density."""
    prompts: str | None = None
    """A suite or a list of prompts; by default captions of random pocket scenes."""
    seed: int = 0
    """Of the prompts, the weights and the noises."""
    of: tyro.conf.OmitArgPrefixes[Parts] = field(default_factory=Parts)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen.learning.noise import PRESETS, gather_successes, train_noise

        config = PRESETS[self.preset]
        changes = _given({"rank": self.rank, "objective": self.objective})
        train = self.fit.changed(config.train, self.seed)
        config = replace(config, train=train, source=self.source, **changes)
        prompts = _prompts(self.prompts, self.of, self.seed)
        adapter, critic = loaded(self.of.model, self.of.critic, self.of.load)
        source: dict[str, Any] = {"prompts": self.prompts}
        if self.source == "successes":
            source |= {"successes": self.successes, "budget": self.budget}
        found = None
        if self.source == "successes":
            from countgen import presets
            from countgen.pipeline import CountGuidedPipeline

            verifier = presets.load_critic(presets.find_preset(self.of.model).roles()["verifier"])
            pipeline = CountGuidedPipeline(adapter, critic, verifier.to(adapter.device))
            with messages.status("making pictures exact") as status:
                found = gather_successes(
                    pipeline,
                    prompts,
                    self.successes,
                    budget=self.budget,
                    seed=self.seed,
                    progress=lambda done: status.update(
                        f"making pictures exact: {done} of {self.successes}"
                    ),
                )
            messages.print(f"{len(found.seeds)} of {self.successes} pictures were made exact")
        train_noise(adapter, critic, prompts, config, self.out, successes=found, source=source)
        path = self.out / "noise.safetensors"
        document = {"path": str(path), **asdict(config)}
        print(json.dumps(document) if self.json else str(path))
        return 0


@dataclass(frozen=True)
class TokenNetwork:
    """Learn a network that gives the count token of any noun and number, in place of a fit for each prompt.

    From a critic's gradient through the generator and its text encoders, as one token is fitted
    (arXiv 2408.11721). It is the method token-network=FILE, and of others: engine+token-network=FILE.

    Example: countgen learn token-network --out token-network
    """

    out: Path
    """Folder for the network, losses and checkpoint."""
    fit: tyro.conf.OmitArgPrefixes[Fit] = field(default_factory=Fit)
    objective: str | None = None
    """Counting loss: hinge (two-sided), counting-reward (one-sided), soft, scaled or density."""
    place: Literal["before", "instead"] = "before"
    """Where the token stands: before the number, or instead of it."""
    prompts: str | None = None
    """A suite or a list of prompts; by default captions of random pocket scenes."""
    seed: int = 0
    """Of the prompts, the weights and the noises."""
    of: tyro.conf.OmitArgPrefixes[Parts] = field(default_factory=Parts)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen.learning.token_network import CONFIG, train_token_network

        train, changes = (
            self.fit.changed(CONFIG.train, self.seed),
            _given({"objective": self.objective}),
        )
        config = replace(CONFIG, train=train, place=self.place, **changes)
        prompts = _prompts(self.prompts, self.of, self.seed)
        adapter, critic = loaded(self.of.model, self.of.critic, self.of.load)
        source = {"prompts": self.prompts}
        train_token_network(adapter, critic, prompts, config, self.out, source=source)
        path = self.out / "token-network.safetensors"
        document = {"path": str(path), **asdict(config)}
        print(json.dumps(document) if self.json else str(path))
        return 0


@dataclass(frozen=True)
class Variation:
    """Learn to be told by a picture what to draw, instead of by a text (PFCD, arXiv 2507.06146).

    The embeddings of the whole picture and of its objects take the place of token states; a LoRA learns to
    read them, by the diffusion loss and a counting loss. countgen vary draws with it. The same command goes
    on where it was stopped.

    Example: countgen learn variation --out variation
    """

    out: Path
    """Folder for the result, the losses, samples on the way and the checkpoint."""
    data: str = "pocket"
    """"pocket": composed scenes without end; or a folder of captioned pictures, such as countgen dataset
    makes."""
    preset: Literal["pocket", "pfcd"] = "pocket"
    """Settings: for pocket, or as published."""
    encoder: str = "pocket"
    """CLIP whose image half embeds pictures: pocket, or a hub id or folder."""
    fit: tyro.conf.OmitArgPrefixes[Fit] = field(default_factory=Fit)
    rank: int | None = None
    """Of the LoRA."""
    objective: str | None = None
    """Counting loss: hinge (two-sided), counting-reward (one-sided, as published), soft, scaled; or none, for
    the diffusion loss alone."""
    weight: float | None = None
    """Of the counting loss."""
    count_from: int | None = None
    """First step with the counting loss."""
    slots: int | None = None
    """Most objects of a picture."""
    bank: int | None = None
    """Different pictures that are learnt from."""
    samples: int = 16
    """Pictures of the sheet that is drawn and counted on the way; 0 for none."""
    seed: int | None = None
    """Of weights, data and noise."""
    of: tyro.conf.OmitArgPrefixes[Parts] = field(default_factory=Parts)
    json: bool = False
    """Print one JSON document instead of text."""

    def run(self, messages: Console) -> int:
        from countgen.learning.references import load_encoder
        from countgen.learning.variation import PRESETS, train_variation

        config = PRESETS[self.preset]
        changes = _given({"rank": self.rank, "weight": self.weight, "count_from": self.count_from})
        if self.objective is not None:
            changes["objective"] = None if self.objective == "none" else self.objective
        if self.fit.batch is not None:
            changes["count_batch"] = min(config.lora.count_batch, self.fit.batch)
        lora = replace(config.lora, train=self.fit.changed(config.lora.train, self.seed), **changes)
        config = replace(config, lora=lora, **_given({"slots": self.slots, "bank": self.bank}))
        pictures = _pictures(self.data, config.lora.objective is not None, self.of)
        adapter, critic = loaded(self.of.model, self.of.critic, self.of.load)
        encoder, plan = load_encoder(self.encoder, adapter.device), adapter.plan()
        data = pictures(plan.height, plan.width)
        source, samples = {"data": self.data}, max(self.samples, 0)
        train_variation(
            adapter, critic, data, encoder, config, self.out, samples=samples, source=source
        )
        path = self.out / "variation.safetensors"
        document = {"path": str(path), **asdict(config)}
        print(json.dumps(document) if self.json else str(path))
        return 0


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _checked(train: Any) -> Any:
    """A training that can be run.

    Raises:
        UsageError: no steps, no pictures, or no learning rate.
    """
    if train.steps < 1 or train.batch < 1 or not train.learning_rate > 0:
        raise UsageError("steps and batch must be at least 1, and the learning rate positive")
    warmup = min(train.warmup, train.steps // 10)
    return replace(train, warmup=warmup)


def _check_nouns(nouns: Iterable[str], of: Parts) -> None:
    """Refuse what the critic cannot see now, and not at the step that comes upon it.

    Raises:
        critics.base.UnknownNounError: a noun outside its closed vocabulary.
    """
    from countgen import presets
    from critics.base import look_up

    name = of.critic or presets.find_preset(of.model).roles()["critic"]
    card = presets.counter_card(name)
    if card.vocabulary is not None:
        look_up(list(dict.fromkeys(nouns)), card.vocabulary, card.name)


def _pictures(data: str, counted: bool, of: Parts) -> Any:
    """(height, width) -> pictures of that size; what is wrong with a folder is told before anything loads."""
    from countgen.learning import prompted

    if data == "pocket":
        return lambda height, width: prompted.pocket_scenes
    files = prompted.read_folder(Path(data))
    if counted:
        prompted.check_counts(files, Path(data))
        _check_nouns((t.noun for file in files for t in file.prompt.targets), of)

    def sized(height: int, width: int) -> Pictures:
        return prompted.folder_pictures(files, height, width)

    return sized


def _prompts(name: str | None, of: Parts, seed: int) -> Prompts:
    """Number of a draw -> prompt: of a list, round and round, or of random pocket scenes.

    Raises:
        UsageError: no list, for another generator than pocket.
        critics.base.UnknownNounError: a prompt with something that the critic cannot see.
    """
    from functools import partial

    from countgen.evaluation.suites import find_prompts
    from countgen.learning.draws import pocket_prompt
    from countgen.prompts import CountPrompt

    if name is None:
        if of.model != DEFAULT_MODEL:
            raise UsageError(
                f"name a list of prompts for {of.model} (--prompts), with counts in them"
            )
        return partial(pocket_prompt, seed)
    listed = find_prompts(name)
    _check_nouns(listed.survey().nouns, of)
    every = [CountPrompt(one.prompt, one.targets) for one in listed]
    return lambda number: every[number % len(every)]


def loaded(model: str, critic: str | None, load: LoadOptions) -> tuple[DiffusersAdapter, Critic]:
    """A generator that can be looked into, and the counter that is learnt from.

    Raises:
        UsageError: unknown names, or a generator that is called as it is.
    """
    from countgen import presets
    from pipelines.adapter import DiffusersAdapter

    preset = presets.find_preset(model)
    device = presets.check_device(load.device or preset.default_device)
    counter = presets.load_critic(critic or preset.roles()["critic"])
    adapter = preset.load_generator(load, device)
    if not isinstance(adapter, DiffusersAdapter):
        raise UsageError(
            f"{model} is called as it is, and nothing can be learnt through it; take a generator of the "
            "families that countgen list pipelines tells"
        )
    return adapter, counter.to(device)
