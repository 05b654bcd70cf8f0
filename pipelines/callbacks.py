"""Diffusers' own callbacks, called after every step of sampling as the wrapped pipeline calls them.

Each is called for one picture at a time, so that what it does depends on no neighbour; what it is handed has
the shapes of a call for one picture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.base import Conditioning, Plan
from pipelines.family import Family

_HIDDEN, _POOLED = "prompt_embeds", ("pooled_prompt_embeds", "add_text_embeds")


class Moment(NamedTuple):
    """Where sampling stands after a step.

    Attributes:
        latents: (b, c, h, w).
        rows: what the denoiser is told, b rows, or twice as many with classifier-free guidance.
        plan: with the guidance scale of the moment.
        stopped: (b,) which pictures stay as they are from here on.
    """

    latents: Tensor
    rows: Conditioning
    plan: Plan
    stopped: tuple[bool, ...]


def check_callbacks(pipeline: Any, family: Family, plan: Plan) -> None:
    """Refuse what a callback cannot be handed.

    Raises:
        ValueError: names it, and what there is.
    """
    asked, known = _inputs(plan), _known(pipeline, family, plan)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"callback_on_step_end can be handed {', '.join(known)} of this pipeline, not {unknown[0]}"
        )


class StepCallbacks:
    """The callbacks of one trajectory."""

    def __init__(self, pipeline: Any, family: Family, plan: Plan) -> None:
        given = plan.arguments
        self._at_end, self._plain = given.get("callback_on_step_end"), given.get("callback")
        self._every, self._names = given.get("callback_steps", 1), _inputs(plan)
        self._family, self._pipeline = family, pipeline
        # Callbacks write to the pipeline: a copy for each picture, so that the user's stays as it is.
        self._views: dict[int, Any] = {}
        self._shown = family.callback_inputs(pipeline, plan, torch.zeros(1))

    def __call__(self, index: int, time: Tensor, clean: Tensor, moment: Moment) -> Moment:
        """What the callbacks made of a step.

        Args:
            clean: (b, c, h, w) the step's predicted clean latents.

        Raises:
            ValueError: a callback that returns what cannot be gone on with.
        """
        if self._plain is not None and index % self._every == 0:
            order = getattr(self._pipeline.scheduler, "order", 1)
            for latents in moment.latents.split(1):
                self._plain(index // order, time, self._family.pack(self._pipeline, latents))
        if self._at_end is None:
            return moment
        parts = [self._told(index, time, clean, moment, i) for i in range(len(moment.latents))]
        scales = {part.plan.guidance_scale for part in parts}
        if len(scales) > 1 or len({len(part.rows) for part in parts}) > 1:
            raise ValueError("callback_on_step_end must do the same for every picture of a batch")
        # Unconditional halves first, those of all pictures.
        halves = [part.rows.pick([k]) for k in range(len(parts[0].rows)) for part in parts]
        return Moment(
            torch.cat([part.latents for part in parts]),
            Conditioning.join(halves),
            parts[0].plan,
            tuple(stopped for part in parts for stopped in part.stopped),
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these pictures alone, in this order."""
        views = [self._views.get(row) for row in rows]
        self._views = {i: view for i, view in enumerate(views) if view is not None}

    def _told(self, index: int, time: Tensor, clean: Tensor, moment: Moment, i: int) -> Moment:
        count = len(moment.latents)
        rows = moment.rows.pick(range(i, len(moment.rows), count))
        if moment.stopped[i]:
            return Moment(moment.latents[i : i + 1], rows, moment.plan, (True,))
        view = self._view(i, moment.plan)
        told = self._inputs_of(moment.latents[i : i + 1], clean[i : i + 1], rows, moment.plan)
        handed = {name: told[name] for name in self._names}
        assert self._at_end is not None
        found = self._at_end(view, index, time, dict(handed))
        if not isinstance(found, dict):
            raise ValueError(
                f"callback_on_step_end must return its dictionary of tensors, not {type(found).__name__}"
            )
        changed = {n: v for n, v in found.items() if n in handed and v is not handed[n]}
        latents = moment.latents[i : i + 1]
        if "latents" in changed:
            latents = self._family.unpack(self._pipeline, changed["latents"], moment.plan)
            latents = latents.to(moment.latents)
        elif "denoised" in changed and index == moment.plan.evaluations - 1:
            latents = self._family.unpack(self._pipeline, changed["denoised"], moment.plan)
        own: dict[
            str, Any
        ] = {}  # set together: a callback may take the halves off one after another
        for name, value in changed.items():
            if name in self._shown and not torch.equal(value, handed[name][-len(value) :]):
                raise ValueError(
                    f"callback_on_step_end cannot change {name}; give it back as it was"
                )
            if name == _HIDDEN:
                mask = None if rows.mask is None else rows.mask[-len(value) :]
                own |= {"hidden": value, "mask": mask}
            elif name in _POOLED:
                own["pooled"] = value
        rows = replace(rows, **own) if own else rows
        plan = replace(moment.plan, guidance_scale=float(view._guidance_scale))
        return Moment(latents, rows, plan, (bool(view._interrupt),))

    def _view(self, i: int, plan: Plan) -> Any:
        if i not in self._views:
            view = copy.copy(self._pipeline)
            given = plan.arguments
            state = {
                "_guidance_scale": plan.guidance_scale,
                "_guidance_rescale": given.get("guidance_rescale", 0.0),
                "_clip_skip": given.get("clip_skip"),
                "_num_timesteps": plan.evaluations,
                "_interrupt": False,
            }
            view.__dict__.update(state)
            self._views[i] = view
        return self._views[i]

    def _inputs_of(
        self, latents: Tensor, clean: Tensor, rows: Conditioning, plan: Plan
    ) -> dict[str, Any]:
        pack = self._family.pack
        halves = len(rows) > 1
        return {
            "latents": pack(self._pipeline, latents),
            "denoised": pack(self._pipeline, clean),
            _HIDDEN: rows.hidden,
            "negative_prompt_embeds": rows.hidden[:1] if halves else None,
            **dict.fromkeys(_POOLED, rows.pooled),
            **self._family.callback_inputs(self._pipeline, plan, rows.hidden),
        }


def _inputs(plan: Plan) -> Sequence[str]:
    callback = plan.arguments.get("callback_on_step_end")
    names = plan.arguments.get("callback_on_step_end_tensor_inputs", ["latents"])
    # Diffusers' own callbacks say what they need.
    return list(getattr(callback, "tensor_inputs", names)) if callback is not None else []


def _known(pipeline: Any, family: Family, plan: Plan) -> list[str]:
    own = getattr(pipeline, "_callback_tensor_inputs", None) or []
    can = ["latents", "denoised", *family.callback_inputs(pipeline, plan, torch.zeros(1))]
    if not family.lists_prompts:
        can += ["negative_prompt_embeds", _HIDDEN, *_POOLED]
    return [name for name in own if name in can]
