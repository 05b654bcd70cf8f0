"""CountGuidedPipeline: a Diffusers pipeline that draws exactly as many objects as the prompt asks for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from countgen import presets
from countgen.engine.cost import Clock, Cost, peak_bytes
from countgen.engine.pool import Picture, Pool, StepState, frozen, prices_of
from countgen.errors import UsageError
from countgen.guidance.methods import Method, find_method
from countgen.prompts import CountPrompt, ExplicitTargets, parse_prompt
from countgen.seeds import image_seed
from critics.base import Critic
from critics.targets import CountTarget
from pipelines.base import Noise, PipelineAdapter, Plan

DEFAULT_BUDGET = 64.0
Callback = Callable[["CountGuidedPipeline", int, float, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class CountPipelineOutput:
    """Finished pictures and all that is known of them, one entry a picture.

    Attributes:
        images: PIL images, or for ``output_type`` "pt" and "np" an array in [0, 1]:
            (n, 3, h, w) and (n, h, w, 3).
        counts: role -> noun -> count, for critic and verifier.
        verified: critic and verifier both count exactly, and neither narrowly.
        outcomes: a key of ``countgen.engine.pool.OUTCOMES``, which has a sentence for each.
        history: a record for every time the picture was drawn.
        cost: of the whole call.
        noise: of each kept picture: (n, c, h, w) float32 latents, and what the sampler adds at its steps. A
            seed alone cannot reproduce a guided picture; ``pipeline(prompt, latents=noise,
            guidance="none")`` does.
        pictures: the full records, plain first draws and boxes included.
    """

    images: Any
    counts: list[dict[str, dict[str, int]]]
    verified: list[bool]
    outcomes: list[str]
    history: list[list[dict[str, float]]]
    cost: Cost
    noise: Noise
    pictures: list[Picture] = field(repr=False, default_factory=list)


class CountGuidedPipeline:
    """A generator, a critic that steers it, and a verifier of another family that checks the result."""

    def __init__(
        self,
        generator: PipelineAdapter | Any,
        critic: Critic,
        verifier: Critic | None = None,
        guidance: str | Method = "noise",
    ) -> None:
        """Put the parts together; ``from_pretrained`` does so by name.

        Args:
            generator: an adapter, or a Diffusers pipeline that is already loaded, which stays as it is.

        Raises:
            UsageError: unknown guidance, a pipeline that no adapter wraps, or critic and verifier of one
                family.
        """
        shared = verifier.card.families & critic.card.families if verifier is not None else ()
        if shared:
            raise UsageError(
                f"critic and verifier are both of the family {min(shared)}: what fools one fools the other; "
                "take a verifier of another family"
            )
        self.adapter, self.critic, self.verifier = _adapted(generator), critic, verifier
        self.guidance = guidance if isinstance(guidance, Method) else find_method(guidance)
        self._interrupt = False
        self._run: tuple[list[Picture], Cost] = ([], Cost())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "pocket",
        *,
        critic: str | Critic | None = None,
        verifier: str | Critic | None = None,
        guidance: str | Method = "noise",
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> CountGuidedPipeline:
        """A generator by name, hub id or folder, with its default counters unless others are given.

        Args:
            critic, verifier: names (``countgen list critics``), NAME=SOURCE with a hub id or folder of
                weights, or loaded critics.
            options: as for ``countgen.presets.load_generator``: dtype, memory, variant, revision,
                local_files_only, tiny_decoder.

        Raises:
            UsageError: unknown names.
            LoadError, CheckpointError, PocketError:
                weights that cannot be loaded.
        """
        defaults = presets.roles(str(model))
        critic, verifier = critic or defaults["critic"], verifier or defaults["verifier"]
        return cls(
            presets.load_generator(model, device=device, **options),
            presets.load_critic(critic) if isinstance(critic, str) else critic,
            presets.load_critic(verifier) if isinstance(verifier, str) else verifier,
            guidance,
        ).to(device)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        **options: Any,
    ) -> CountPipelineOutput:
        """Draw pictures with exactly the counts of their prompts.

        Args:
            prompt: one prompt or a list; a list may mix counts and nouns.
            output_type: "pil", "pt" or "np".
            callback_on_step_end: called as (pipeline, step, pre, {"state": StepState}) after every step;
                setting ``pipeline._interrupt = True`` in it stops the run and keeps what there is.
            options: as for ``stream``.

        Raises:
            UsageError: an impossible request.
            critics.base.UnknownNounError: a noun that critic or verifier cannot see.
        """
        if output_type not in ("pil", "pt", "np"):
            raise UsageError(f"output_type must be pil, pt or np, not {output_type!r}")
        self._interrupt = False
        steps = self.stream(prompt, **options)
        for state in steps:
            if callback_on_step_end:
                callback_on_step_end(self, state.step, state.pre, {"state": state})
            if self._interrupt:
                steps.close()
                break
        return self.output(output_type)

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        targets: ExplicitTargets | Sequence[ExplicitTargets] | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Noise | Float[Tensor, "n c h w"] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: str | Method | None = None,
        budget: float = DEFAULT_BUDGET,
        batch_size: int = 16,
        prompt_ids: Sequence[str] | None = None,
    ) -> Generator[StepState, None, None]:
        """The same as a call, step by step; afterwards (or when closed early) ``output()`` has the result.

        Args:
            targets: win over what the prompts say; CountTargets, pairs or a mapping, for all prompts or a
                list with an entry for each.
            num_images_per_prompt: pictures of each prompt, one after the other.
            seed: of the run; every noise has a generator seeded by the hash of (seed, prompt id, image,
                candidate). ``generator`` takes its place: one for each picture, for all its noises.
            latents: first noise of each picture, as from ``CountPipelineOutput.noise``; given a plain tensor,
                the sampler's own noise is drawn by seed.
            guidance: another method than the pipeline's own, for this call.
            budget: plain render equivalents a picture may cost; its first draw is always made.
            batch_size: most pictures drawn at once.
            prompt_ids: what seeds and records call the prompts, instead of their texts.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        parsed = _parse(prompts, targets)
        method = self._method(guidance)
        if num_images_per_prompt < 1 or batch_size < 1:
            raise UsageError("num_images_per_prompt and batch_size must be at least 1")
        if not budget > 0:
            raise UsageError(f"the budget must be a positive number of plain renders, not {budget}")
        try:
            plan = self.adapter.plan(num_inference_steps, guidance_scale, height, width)
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
        draws = self._draws(ids, num_images_per_prompt, seed, generator, latents, plan)
        if len(draws) != total:
            raise UsageError(
                f"{total} pictures need as many generators or latents, not {len(draws)}"
            )
        pictures = [
            Picture(i, parsed[row], row, queries[row], draws[i], budget)
            for i in range(total)
            for row in [i // num_images_per_prompt]
        ]
        return self._steps(prompts, pictures, plan, method, roles, batch_size)

    def _steps(
        self,
        prompts: list[str],
        pictures: list[Picture],
        plan: Plan,
        method: Method,
        roles: dict[str, Critic],
        batch_size: int,
    ) -> Generator[StepState, None, None]:
        cost, clock = Cost(), Clock()
        self._run = (pictures, cost)
        with frozen(self.adapter.modules()):
            counted = next((p for p in pictures if p.wanted), pictures[0])
            pairs = {role: (critic, counted.queries[role]) for role, critic in roles.items()}
            prices = prices_of(self.adapter, plan, pairs)
            conditioning = self.adapter.encode(prompts, plan)
            cost.charge(prices, "text_encoder", len(prompts))
            pool = Pool(
                self.adapter,
                plan,
                conditioning,
                self.critic,
                self.verifier,
                method,
                prices,
                cost,
                batch_size,
            )
            steps = pool.run(pictures)
            try:
                for state in steps:
                    cost.seconds = clock.seconds()
                    yield state
            finally:
                steps.close()
                cost.seconds = clock.seconds()
                cost.peak_bytes = peak_bytes(self.adapter.device)

    def output(self, output_type: str = "pil") -> CountPipelineOutput:
        """What the last ``stream`` has finished, or had of each picture when it was closed."""
        done = [p for p in self._run[0] if p.best is not None]
        looks = [p.best for p in done if p.best is not None]
        if looks:
            stack = torch.stack([look.image for look in looks])
            noise = Noise.join([look.noise for look in looks])
        else:
            stack, noise = torch.zeros(0, 3, 0, 0), Noise(torch.zeros(0, 0, 0, 0))
        images: Any = stack
        if output_type == "pil":
            images = [to_pil(image) for image in stack]
        elif output_type == "np":
            images = stack.permute(0, 2, 3, 1).numpy()
        return CountPipelineOutput(
            images,
            [counts(p) for p in done],
            [p.verified for p in done],
            [p.outcome for p in done],
            [p.history for p in done],
            self._run[1],
            noise,
            done,
        )

    def _method(self, guidance: str | Method | None) -> Method:
        if guidance is None:
            return self.guidance
        return guidance if isinstance(guidance, Method) else find_method(guidance)

    def _draws(
        self,
        ids: list[str],
        each: int,
        seed: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Noise | Tensor | None,
        plan: Plan,
    ) -> list[Callable[[int], Noise]]:
        def seeded(prompt_id: str, image: int) -> Callable[[int], Noise]:
            def draw(candidate: int) -> Noise:
                own = torch.Generator().manual_seed(image_seed(seed, prompt_id, image, candidate))
                return self.adapter.noise([own], plan)

            return draw

        def continued(own: torch.Generator) -> Callable[[int], Noise]:
            return lambda candidate: self.adapter.noise([own], plan)

        if generator is not None:
            several = [generator] if isinstance(generator, torch.Generator) else list(generator)
            draws = [continued(own) for own in several]
        else:
            draws = [seeded(prompt_id, image) for prompt_id in ids for image in range(each)]
        if latents is None:
            return draws
        given = latents if isinstance(latents, Noise) else Noise(latents)
        if given.latents.shape[1:] != plan.latent_shape or len(given) != len(draws):
            raise UsageError(
                f"latents must have the shape {(len(draws), *plan.latent_shape)}, "
                f"not {tuple(given.latents.shape)}"
            )

        def first(row: int, draw: Callable[[int], Noise]) -> Callable[[int], Noise]:
            def own(candidate: int) -> Noise:
                if candidate:
                    return draw(candidate)
                steps = given.step_noise
                steps = draw(0).step_noise if steps is None else steps[:, row : row + 1]
                return Noise(given.latents[row : row + 1].float(), steps)

            return own

        return [first(row, draw) for row, draw in enumerate(draws)]

    def to(self, device: str | torch.device) -> CountGuidedPipeline:
        """Move generator and counters."""
        self.adapter.to(device)
        for critic in (self.critic, self.verifier):
            if critic is not None:
                critic.to(device)  # type: ignore[attr-defined]
        return self


def _adapted(generator: Any) -> PipelineAdapter:
    if isinstance(generator, PipelineAdapter):
        return generator
    from pipelines.registry import wrap

    try:
        return wrap(generator)
    except ValueError as error:
        raise UsageError(str(error)) from None


def counts(picture: Picture) -> dict[str, dict[str, int]]:
    """Role -> noun -> count of a picture's best look."""
    nouns = [target.noun for target in picture.prompt.targets]
    found: dict[str, dict[str, int]] = {}
    if picture.best is None:
        return found
    for role in picture.queries:
        numbers = getattr(picture.best, role)
        if numbers is not None:
            found[role] = dict(zip(nouns, numbers, strict=True))
    return found


def to_pil(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    """An RGB picture from values in [0, 1]."""
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy(), "RGB")


def _parse(
    prompts: list[str], targets: ExplicitTargets | Sequence[ExplicitTargets] | None
) -> list[CountPrompt]:
    """Prompts with their targets; given ones win.

    Raises:
        UsageError: no prompt, an empty one, or a list of targets that does not fit.
    """
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise UsageError('the prompt is empty; try "seven red apples on a table"')
    if targets is None:
        return [parse_prompt(prompt) for prompt in prompts]
    single = isinstance(targets, Mapping) or all(_is_target(target) for target in targets)
    rows: list[Any] = [targets] * len(prompts) if single else list(targets)
    if len(rows) != len(prompts):
        raise UsageError(f"{len(prompts)} prompts need as many lists of targets, not {len(rows)}")
    try:
        return [parse_prompt(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def _is_target(target: Any) -> bool:
    return isinstance(target, CountTarget) or (
        isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], str)
    )
