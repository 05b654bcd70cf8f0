"""CountGuidedPipeline: a Diffusers pipeline that draws exactly as many objects as the prompt asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from countgen import familiar, noises, presets
from countgen.engine.cost import Cost, Passes, PriceList
from countgen.engine.evaluate import Evaluator
from countgen.engine.job import Job, Request
from countgen.engine.pool import Pool, StepState, shortage
from countgen.engine.run import CountPipelineOutput, Run, counts_of, to_pil
from countgen.engine.sharing import using
from countgen.errors import UsageError
from countgen.evaluation.trust import find_trust
from countgen.guidance.base import Needs, Score
from countgen.guidance.methods import Method, find_method, without_gradient
from countgen.guidance.tokens import LearnedToken
from countgen.guidance.variables import check_text_encoders
from countgen.notes import notes_on, without_truncation_warning
from countgen.options import DEFAULT_METHOD, DEFAULT_MODEL, DrawOptions
from countgen.prompts import CountPrompt, ExplicitTargets
from countgen.seeds import image_seed
from critics.base import Critic
from critics.targets import CountTarget
from pipelines.base import ImageSource, Noise, Plan, has_gradient

__all__ = ["CountGuidedPipeline", "CountPipelineOutput", "Run", "counts_of", "to_pil"]

WIDEST = 8
"""Trials at once from one history, of methods whose width is "auto"."""
Callback = Callable[[Run, StepState], None]
Prompts = str | CountPrompt | Sequence[str | CountPrompt]


class CountGuidedPipeline:
    """A generator, a critic that steers it, and a verifier of another family that checks the result.

    What it does not have itself, components, ``enable_freeu`` or ``load_lora_weights`` say, is the
    wrapped Diffusers pipeline's; components can be exchanged on it too.
    """

    def __init__(
        self,
        generator: ImageSource | Any,
        critic: Critic,
        verifier: Critic | None = None,
        guidance: str | Method | None = None,
        score: Score | None = None,
        *,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        """Put the parts together; ``from_pretrained`` does so by name.

        Args:
            generator: an adapter; a Diffusers pipeline that is already loaded, which stays as it is; or a
                function (prompt, latents, generator) -> picture, see ``pipelines.blackbox.BlackBox``.
            guidance: a method or its name; None takes the default one, which makes the moves that critic and
                generator allow.
            score: of picture and text, for methods with a semantic term.
            latent_shape: of one picture's latents, for a function or pipeline that is given them and does not
                draw them from its generator.

        Raises:
            UsageError: unknown guidance, a pipeline that makes no pictures of text, or critic and verifier of
                one family.
        """
        roles = {"critic": critic} | ({"verifier": verifier} if verifier is not None else {})
        for role, counter in roles.items():
            _check_counter(role, counter)
        presets.check_families({role: counter.card for role, counter in roles.items()})
        self.adapter: ImageSource = _adapted(generator, latent_shape)
        self.critic, self.verifier, self.score = critic, verifier, score
        self.guidance = self._checked(DEFAULT_METHOD if guidance is None else guidance)
        self.trust = find_trust(
            self.adapter.card.name, critic.card.name, verifier.card.name if verifier else None
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        critic: str | Critic | None = None,
        verifier: str | Critic | None = None,
        guidance: str | Method | None = None,
        score: Score | None = None,
        device: str | torch.device | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> CountGuidedPipeline:
        """A generator by name, hub id or folder, with its default counters unless others are given.

        Args:
            critic, verifier: names (``countgen list critics``), NAME=SOURCE with a hub id or folder of
                weights, or loaded critics.
            device: None takes the model's own: the CPU for pocket, else the best there is.
            torch_dtype: another name of ``dtype``, which Diffusers users know.
            options: fields of ``countgen.options.LoadOptions``: dtype, memory, variant, revision,
                local_files_only, tiny_decoder, text_encoder, compile.

        Raises:
            UsageError: unknown names, or a device that is not there; before anything is loaded.
            LoadError, CheckpointError, PocketError: weights that cannot be loaded.
        """
        preset = presets.find_preset(model)
        place = presets.check_device(device if device is not None else preset.default_device)
        if torch_dtype is not None:
            options["dtype"] = torch_dtype
        defaults = preset.roles()
        critic, verifier = critic or defaults["critic"], verifier or defaults["verifier"]
        # The counters first: a name that is none is told before the generator's gigabytes.
        steering, checking = (
            presets.load_critic(one) if isinstance(one, str) else one for one in (critic, verifier)
        )
        generator = presets.load_generator(model, device=place, **options)
        return cls(generator, steering, checking, guidance, score).to(place)

    def __call__(
        self,
        prompt: Prompts | None = None,
        *positional: Any,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_move: Callback | None = None,
        **options: Any,
    ) -> CountPipelineOutput | Any:
        """Draw pictures with exactly the counts of their prompts.

        Args:
            prompt: one prompt or a list, texts or what ``parse_prompt`` made of them; a list may mix counts
                and nouns.
            positional: what follows the prompt in the wrapped pipeline's own call.
            output_type: "pil", "pt" or "np".
            return_dict: False gives the output's fields as a tuple, the pictures first.
            callback_on_move: called with the run and its state after every batch; ``run.cancel()`` in it
                stops the run and keeps what there is.
            options: as for ``stream``.

        Raises:
            UsageError: an impossible request.
            critics.base.UnknownNounError: a noun that critic or verifier cannot see.
        """
        if output_type not in ("pil", "pt", "np"):
            raise UsageError(f"output_type must be pil, pt or np, not {output_type!r}")
        run = self.stream(prompt, **familiar.named(self.adapter, positional, options))
        for state in run:
            if callback_on_move:
                callback_on_move(run, state)
        output = run.output(output_type)
        return output if return_dict else tuple(getattr(output, f.name) for f in fields(output))

    def stream(
        self,
        prompt: Prompts | None = None,
        *,
        targets: ExplicitTargets | Sequence[ExplicitTargets] | None = None,
        num_images_per_prompt: int = DrawOptions.num_images_per_prompt,
        seed: int = DrawOptions.seed,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Noise | Float[Tensor, "n c h w"] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: str | Method | None = None,
        budget: float = DrawOptions.budget,
        seconds: float | None = None,
        token: LearnedToken | None = None,
        batch_size: int = DrawOptions.batch_size,
        prompt_ids: Sequence[str] | None = None,
        **arguments: Any,
    ) -> Run:
        """The same as a call, batch by batch; the run's ``output()`` has the result, early too.

        Args:
            targets: win over what the prompts say; CountTargets, pairs or a mapping, for all prompts or a
                list with an entry for each.
            num_images_per_prompt: pictures of each prompt, one after the other.
            seed: of the run; every noise has a generator seeded by the hash of (seed, prompt id, image,
                candidate). ``generator`` takes its place: one for each picture, for all its noises.
            latents: first noise of each picture, as from ``CountPipelineOutput.noise``; given a plain tensor,
                the sampler's own noise is drawn by seed.
            guidance: another method than the pipeline's own, for this call.
            budget: plain render equivalents a picture may cost; its first draw is always made, so that a
                budget of 0 gives the plain picture.
            seconds: after which no more is tried, for people in a hurry; such a run cannot be reproduced.
            token: a count token that every prompt gets (``countgen.guidance.tokens``).
            batch_size: most pictures drawn at once.
            prompt_ids: what seeds and records call the prompts, instead of their texts.
            arguments: whatever else the wrapped pipeline's call takes, under its names there:
                negative_prompt, clip_skip, eta, sigmas, callback_on_step_end, ... What there may be of for
                each prompt is one for all, or a list.
        """
        DrawOptions(
            seed,
            num_images_per_prompt,
            budget,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            batch_size,
        ).checked()
        if prompt is None and "prompt_embeds" in arguments:
            raise UsageError("give the prompt beside prompt_embeds: it says what is counted")
        parsed = self._parsed(prompt or "", targets)
        prompts = [one.text for one in parsed]
        method = self.guidance if guidance is None else self._checked(guidance)
        if token is not None and method.words is not None:
            raise UsageError(
                f"{method.name} writes tokens of its own into the prompts; leave the count token out, or "
                "take another method"
            )
        try:
            with using(self.adapter):
                plan = self.adapter.plan(
                    num_inference_steps, guidance_scale, height, width, **arguments
                )
        except ValueError as error:
            raise UsageError(str(error)) from None
        ids = list(prompt_ids) if prompt_ids is not None else prompts
        if len(ids) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts need as many prompt_ids, not {len(ids)}")
        roles = {"critic": self.critic}
        if self.verifier is not None:
            roles["verifier"] = self.verifier
        queries = [
            {role: critic.prepare([t.noun for t in p.targets]) for role, critic in roles.items()}
            for p in parsed
        ]
        total = len(prompts) * num_images_per_prompt
        # Where the noise of a place is not known, there is nothing to edit: the engine draws again.
        method = method.fitted(boxes=plan.places, width=min(max(batch_size // total, 1), WIDEST))
        if method.places and not plan.places:
            raise UsageError(
                f"{method.name} edits the noise where something is seen, and where the noise of "
                f"{self.adapter.card.name} lies in the picture cannot be told; take best-of-n"
            )
        draws = noises.draws(
            self.adapter, ids, num_images_per_prompt, seed, generator, latents, plan
        )
        if len(draws) != total:
            raise UsageError(
                f"{total} pictures need as many generators or latents, not {len(draws)}"
            )
        jobs = [
            Job(
                Request(
                    i,
                    parsed[row],
                    row,
                    queries[row],
                    draws[i],
                    image_seed(seed, ids[row], i % num_images_per_prompt),
                    budget,
                    seconds,
                )
            )
            for i in range(total)
            for row in [i // num_images_per_prompt]
        ]

        def start(cost: Cost) -> Pool:
            look = self._evaluator(parsed, plan, method, roles, token)
            cost.priced_by = look.prices.by
            if look.conditioning is not None:
                cost.charge(look.prices.of({}), Passes(Counter({"text_encoder": len(prompts)})))
            return Pool(look, cost, batch_size)

        sure = self.trust.of_job if self.trust is not None else lambda job: None
        return Run(jobs, start, self.adapter.device, notes_on(self.adapter, parsed, plan), sure)

    def _evaluator(
        self,
        prompts: list[CountPrompt],
        plan: Plan,
        method: Method,
        roles: dict[str, Critic],
        token: LearnedToken | None,
    ) -> Evaluator:
        """Prices and encoded prompts of a run, with a more sparing memory plan where memory runs out.

        Raises:
            MemoryShortage: one picture is too much.
        """
        words = method.words if token is None else token
        try:
            with using(self.adapter):
                score = self.score if method.semantic else None
                texts = [score.prepare(p.text) for p in prompts] if score else []
                prices = PriceList(
                    self.adapter, plan, roles, score, texts[:1], self._first(plan, method)
                )
                if not has_gradient(self.adapter):
                    if token is not None:
                        raise UsageError(
                            f"a count token needs the text encoders of an adapter, and "
                            f"{self.adapter.card.name} is called as it is; leave the token out"
                        )
                    conditioning = None
                elif words is None:
                    with without_truncation_warning(self.adapter):
                        conditioning = self.adapter.encode([p.text for p in prompts], plan)
                else:
                    conditioning = words.encode(self.adapter, prompts, plan)
        except ValueError as error:
            raise UsageError(str(error)) from error
        except torch.OutOfMemoryError as error:
            if not self.adapter.reduce_memory():
                raise shortage(self.adapter, plan) from error
            return self._evaluator(prompts, plan, method, roles, token)
        return Evaluator(
            self.adapter,
            plan,
            self.critic,
            self.verifier,
            method,
            conditioning,
            prompts,
            prices,
            score,
            texts,
        )

    def _first(self, plan: Plan, method: Method) -> Callable[[int], float] | None:
        """Number of nouns -> operations of what makes a first noise better."""
        first, adapter = method.first, self.adapter
        if first is None or not has_gradient(adapter):
            return None
        return lambda kinds: first.flops(adapter, plan, kinds)

    def _parsed(
        self, prompt: Prompts, targets: ExplicitTargets | Sequence[ExplicitTargets] | None
    ) -> list[CountPrompt]:
        """Prompts with their targets, checked by what the generator's preset can draw; given ones win.

        Raises:
            UsageError: no prompt, an empty one, what cannot be drawn, or targets that do not fit.
        """
        given: list[Any] = [prompt]
        if isinstance(prompt, Iterable) and not isinstance(prompt, str):
            given = list(prompt)
        if not given:
            raise UsageError('the prompt is empty; try "seven red apples on a table"')
        for one in given:
            if not isinstance(one, str | CountPrompt):
                raise UsageError(f"a prompt is a text, or a list of texts, not {one!r}")
        preset = presets.EMBEDDED.get(self.adapter.card.name)
        rows: list[Any] = [None] * len(given)
        if targets is not None:
            single = isinstance(targets, Mapping) or all(_is_target(one) for one in targets)
            rows = [targets] * len(given) if single else list(targets)
        if len(rows) != len(given):
            raise UsageError(f"{len(given)} prompts need as many lists of targets, not {len(rows)}")
        return [
            one
            if isinstance(one, CountPrompt) and row is None
            else presets.read_prompt(one.text if isinstance(one, CountPrompt) else one, row, preset)
            for one, row in zip(given, rows, strict=True)
        ]

    def _checked(self, guidance: str | Method) -> Method:
        """A method that this pipeline can follow.

        Raises:
            UsageError: unknown, or in need of what the critic does not give.
        """
        method = guidance if isinstance(guidance, Method) else find_method(guidance)
        given, name = outputs_of(self.critic), self.critic.card.name
        preset = presets.EMBEDDED.get(self.adapter.card.name)
        method = method.fitted(
            boxes="candidates" in given,
            gradient=has_gradient(self.adapter),
            rates=preset.rates() if preset else None,
        )
        if method.looks_inside and not has_gradient(self.adapter):
            others = [name for name in without_gradient() if name != "none"]
            raise UsageError(
                f"{method.name} looks into the steps of a generator, and {self.adapter.card.name} is called "
                f"as it is, without gradient; take one of {', '.join(others)}"
            )
        needs: Needs | None = method.objective.needs if method.objective else None
        if method.places and "candidates" not in given:
            raise UsageError(
                f"{method.name} edits the noise under the critic's boxes, and {name} gives none; take a "
                "detector as the critic, or best-of-n"
            )
        if method.semantic and self.score is None:
            raise UsageError(
                f"{method.name} has a semantic term, and this pipeline no score; give it one, score=..., "
                "such as countgen.guidance.scores.clip_score()"
            )
        if "text_encoder" in method.variable.modules:
            check_text_encoders(getattr(self.adapter, "pipeline", None))
        if needs is not None and needs not in given:
            raise UsageError(
                f"{method.name} needs a critic that gives {needs}, and {name} gives "
                f"{' and '.join(sorted(given))}; take another critic, or another method"
            )
        return method

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self.adapter.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the generator's weights."""
        return getattr(familiar.wrapped(self.adapter), "dtype", torch.float32)

    @property
    def components(self) -> dict[str, Any]:
        """Of the wrapped pipeline, by name."""
        return getattr(familiar.wrapped(self.adapter), "components", {})

    def __getattr__(self, name: str) -> Any:
        if "adapter" not in self.__dict__:  # before it is there, as while it is unpickled
            raise AttributeError(name)
        return familiar.handed(self.adapter, name, self)

    def __setattr__(self, name: str, value: Any) -> None:
        source = self.__dict__.get("adapter")
        if source is not None and name in self.components:
            setattr(familiar.wrapped(source), name, value)
        else:
            super().__setattr__(name, value)

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> CountGuidedPipeline:
        """Move generator and counters; a dtype is the generator's.

        Args:
            places: a device, a dtype or both, as for Diffusers' pipelines.

        Raises:
            UsageError: a device that is not there.
        """
        device, dtype = familiar.device_and_dtype(*places, device, dtype)
        try:
            if dtype is not None:
                self.adapter.to(dtype=dtype)
            if device is None:
                return self
            self.adapter.to(device)
        except ValueError as error:
            raise UsageError(str(error)) from None
        for critic in (self.critic, self.verifier):
            if critic is not None:
                critic.to(device)
        if self.score is not None:
            self.score.to(device)
        return self


def outputs_of(critic: Critic) -> frozenset[str]:
    """What a critic's estimate holds: soft counts always, and what it says that it gives."""
    return frozenset({"soft", critic.gives})


def _adapted(generator: Any, latent_shape: Sequence[int] | None) -> ImageSource:
    if isinstance(generator, ImageSource):
        return generator
    from pipelines.registry import wrap

    try:
        return wrap(generator, latent_shape=latent_shape)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_counter(role: str, counter: Any) -> None:
    """Refuse what is no loaded counter.

    Raises:
        UsageError: a name, or something else.
    """
    if isinstance(counter, str):
        raise UsageError(
            f'the {role} is a loaded one here: load_critic("{counter}"), or name it to '
            "CountGuidedPipeline.from_pretrained"
        )
    if not (callable(counter) and hasattr(counter, "card") and hasattr(counter, "prepare")):
        raise UsageError(
            f"a {role} has a card, prepare() and a call (critics.base.Critic), and {counter!r} has not"
        )


def _is_target(target: Any) -> bool:
    return isinstance(target, CountTarget) or (
        isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], str)
    )
