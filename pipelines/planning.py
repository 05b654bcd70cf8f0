"""What is drawn: checked plans, and the schedulers that follow them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.arguments import Arguments, checked, parameters
from pipelines.base import PipelineCard, Plan
from pipelines.callbacks import check_callbacks
from pipelines.family import Family
from pipelines.folders import first_sentence
from pipelines.problems import one_line
from pipelines.sampler import Sampler, count_draws

MIN_LATENT_SIDE = 8


class SchedulerProblem(ValueError):
    """A scheduler that cannot be followed step by step."""


class Planner:
    """Plans for one pipeline, with the scheduler that it has at the moment: a user may exchange it."""

    def __init__(self, pipeline: Any, family: Family, card: PipelineCard) -> None:
        self.pipeline, self.family, self.card = pipeline, family, card
        self._draws: dict[tuple[Plan, type, Arguments], int] = {}

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> Plan:
        """As ``DiffusersAdapter.plan``, but for the memory."""
        given = self._arguments(steps, arguments)
        steps = self.card.steps if steps is None else _whole("num_inference_steps", steps)
        steps = _steps_told(self.pipeline, given) or steps
        most = int(self.pipeline.scheduler.config.get("num_train_timesteps", 1000))
        if not 1 <= steps <= most:
            raise ValueError(
                f"num_inference_steps must lie between 1 and {most}, not {steps}: "
                f"{self.card.name} is meant for {self.card.steps}"
            )
        scale = self.card.guidance_scale if guidance_scale is None else guidance_scale
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale must be a finite number, not {scale}")
        height = self.card.size if height is None else _whole("height", height)
        width = self.card.width or self.card.size if width is None else _whole("width", width)
        if min(height, width) < 1:
            raise ValueError(f"height and width must be at least 1, not {height} and {width}")
        drawn = self.family.drawn_size(self.pipeline, height, width, given)
        factor = self.family.size_multiple(self.pipeline)
        if any(side % factor or side < factor for side in drawn):
            raise ValueError(
                f"height and width must be multiples of {factor}, not {height} and {width}"
            )
        shape = self.family.latent_shape(self.pipeline, *drawn)
        if min(shape[1:]) < MIN_LATENT_SIDE:
            least = MIN_LATENT_SIDE * drawn[0] // shape[1]
            raise ValueError(f"height and width must be at least {least}, not {height} and {width}")
        plan = Plan(steps, steps, float(scale), height, width, shape, given)
        try:
            times = self.sampler(plan, torch.device("cpu")).timesteps
        except OverflowError:  # schedulers that shift their times by the size
            name = type(self.pipeline.scheduler).__name__
            raise ValueError(
                f"the scheduler {name} cannot be set for {height} x {width} pixels; "
                "take a smaller height and width"
            ) from None
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as error:
            name, reason = type(self.pipeline.scheduler).__name__, first_sentence(one_line(error))
            told = " and ".join(n for n in ("timesteps", "sigmas", "mu") if n in given)
            raise ValueError(
                f"the scheduler {name} takes no {told or f'num_inference_steps={steps}'} ({reason})"
            ) from error
        plan = replace(plan, evaluations=len(times))
        self.count_draws(plan)
        check_callbacks(self.pipeline, self.family, plan)
        return plan

    def _arguments(self, steps: int | None, further: Mapping[str, Any]) -> Arguments:
        """Those of the call, over those of the card.

        Raises:
            ValueError: one that cannot be taken, or steps that the model was not distilled for.
        """
        card, own = self.card, dict(self.card.arguments)
        if card.timesteps is not None and not {"timesteps", "sigmas"} & {*further}:
            if steps not in (None, len(card.timesteps)):
                raise ValueError(
                    f"{card.name} was distilled for num_inference_steps={len(card.timesteps)}, and takes no "
                    f"other number, not {steps}"
                )
            own["timesteps"] = list(card.timesteps)
        return checked(self.pipeline, self.family.arguments, own | dict(further))

    def check_scheduler(self) -> None:
        """As ``DiffusersAdapter.check_scheduler``.

        Raises:
            SchedulerProblem: it cannot be followed.
        """
        card = self.card
        height, width = card.size, card.width or card.size
        shape = self.family.latent_shape(self.pipeline, height, width)
        given, scale = self._arguments(None, {}), card.guidance_scale
        plan = Plan(card.steps, card.steps, scale, height, width, shape, given)
        try:
            self.sampler(plan, torch.device("cpu"))
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError):
            return  # which has to do with the steps that are asked for, and is told when they are planned
        self.count_draws(plan)

    def count_draws(self, plan: Plan) -> int:
        """How often the scheduler of the moment draws noise.

        Raises:
            SchedulerProblem: it cannot be followed.
        """
        scheduler = self.pipeline.scheduler
        key = plan.measured(), type(scheduler), Arguments(scheduler.config)
        if key not in self._draws:
            place = torch.device("cpu")
            options = self._step_options(plan)
            try:
                self._draws[key] = count_draws(scheduler, self._set_timesteps(plan, place), options)
            except Exception as error:  # whatever a scheduler that works in another way comes upon
                raise SchedulerProblem(
                    f"the scheduler {type(scheduler).__name__} cannot be followed step by step "
                    f"({first_sentence(one_line(error))}); exchange it on the pipeline, say for "
                    "DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)"
                ) from error
        return self._draws[key]

    def sampler(
        self,
        plan: Plan,
        device: torch.device,
        noise: Float[Tensor, "s b c h w"] | None = None,
    ) -> Sampler:
        """The scheduler of the moment, ready for a plan."""
        return Sampler(
            self.pipeline.scheduler,
            self._set_timesteps(plan, device),
            noise,
            self._step_options(plan),
        )

    def _set_timesteps(self, plan: Plan, place: torch.device) -> Callable[[Any], None]:
        return lambda scheduler: self.family.set_timesteps(self.pipeline, scheduler, plan, place)

    def _step_options(self, plan: Plan) -> dict[str, Any]:
        """Pipelines that know ``eta`` tell it to every scheduler that does."""
        call = parameters(type(self.pipeline), "__call__")
        if "eta" not in call or "eta" not in parameters(type(self.pipeline.scheduler), "step"):
            return {}
        return {"eta": plan.arguments.get("eta", call["eta"].default)}


def _whole(name: str, value: Any) -> int:
    """A whole number.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def _steps_told(pipeline: Any, given: Arguments) -> int | None:
    """How many steps the times or noise levels that were given are."""
    for name in ("timesteps", "sigmas"):
        if name in given:
            # Consistency models' scheduler is told the end too.
            return len(given[name]) - (type(pipeline.scheduler).__name__ == "SCMScheduler")
    return None
