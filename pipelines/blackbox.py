"""Any text-to-image pipeline, called as its users call it, and any function of prompt, latents and generator.

Nobody looks inside: there is no gradient, and a call is the smallest thing to be counted. What is drawn from
the generator that a call is given is watched once (``pipelines.draws``) and handed out from then on, so that
whoever chooses the noise decides the picture, whatever shape the pipeline packs its latents into.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipelines.arguments import Arguments
from pipelines.base import Flops, Noise, PipelineCard, Plan
from pipelines.calls import Caller, CallError, modules_of, set_up_elsewhere
from pipelines.devices import check_device
from pipelines.draws import Draw, Draws, Layout, latents_among, layout_of, roles_of
from pipelines.flops import CountedFlops
from pipelines.memory import MemoryPlan
from pipelines.pickling import picklable

log = logging.getLogger(__name__)
PROMPT = "a red apple"
"""Of the calls that show what a pipeline does."""
_AS_IT_IS = MemoryPlan("as it is", "the pipeline is offloaded and quantised as it was set up")
_SAME = 0.5
"""Mean difference of two pictures, in standard deviations, from which on they are not the same."""
_MOST_PROBES = 32


@dataclass(frozen=True)
class Probe:
    """What the first calls with some arguments showed.

    Attributes:
        height, width: of the picture.
        draws: of one picture's generator, in order; none where the call is given its latents.
        roles: of each draw: 0 the latents, from 1 on noise of the same shape, None anything else.
        alone: whether it takes one picture at a time.
        flops: of one picture; None where they cannot be counted.
        foreign: operators that could not be counted.
    """

    height: int
    width: int
    layout: Layout
    draws: tuple[Draw, ...]
    roles: tuple[int | None, ...]
    alone: bool
    flops: float | None
    foreign: tuple[str, ...]


class BlackBox:
    """An ``ImageSource`` around a pipeline or a function, which stays as it is.

    The first plan with new arguments costs two calls for one picture: one shows what is drawn, of what size
    the picture is and how many operations it takes, the other that the same noise gives the same picture.
    """

    def __init__(
        self,
        source: Any,
        card: PipelineCard | None = None,
        *,
        latent_shape: Sequence[int] | None = None,
        reason: str = "",
    ) -> None:
        """Wrap a loaded Diffusers pipeline, or a function (prompt, latents, generator) -> picture.

        Args:
            source: a function is called for one picture at a time, with a text, with ``latents`` None unless
                there is a ``latent_shape``, and with a ``torch.Generator`` of the CPU, from which it must
                draw its noise. It returns a PIL image, an array (height, width, 3) or a tensor (3, height,
                width) of values in [0, 1] or bytes, or a Diffusers output.
            card: for its steps, guidance scale and size; by default the pipeline's own defaults stand.
            latent_shape: of one picture's ``latents``, without the batch, which then are given to every call;
                for whatever draws its noise elsewhere.
            reason: why it is a black box.

        Raises:
            ValueError: no pipeline for pictures, or a function that takes something else.
        """
        self._caller = Caller(source)
        self.pipeline, self.reason = self._caller.pipeline, reason
        self._given_card, self._device = card, torch.device("cpu")
        self.card = card or self._own_card()
        self._latent_shape = None if latent_shape is None else tuple(map(int, latent_shape))
        if self._latent_shape is not None and not self._caller.takes("latents"):
            raise ValueError(f"{self._caller.name} takes no latents; leave latent_shape out")
        if self._latent_shape is not None and min(self._latent_shape, default=0) < 1:
            raise ValueError(f"latent_shape must be whole numbers above 0, not {latent_shape!r}")
        self._probes: dict[Arguments, Probe] = {}
        self._alone = False
        self._parts: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was made of; what calls showed is found out anew."""
        source = self._caller.source if self.pipeline is None else picklable(self.pipeline)
        return _unpickled, (source, self._given_card, self._latent_shape, self.reason)

    def _own_card(self) -> PipelineCard:
        steps, scale = self._caller.default("num_inference_steps"), self._guidance_scale({})
        source = str(getattr(self.pipeline, "name_or_path", "") or "")
        return PipelineCard(
            name=source or self._caller.name,
            family="black-box",
            summary="a pipeline of the user's own, called as it is",
            steps=steps if isinstance(steps, int) else 1,
            guidance_scale=scale,
            size=0,
            license_code="unknown",
            license_weights="unknown",
            commercial=False,
            hub_id=source,
        )

    # -- where it is ------------------------------------------------------------------------------

    @property
    def memory(self) -> MemoryPlan:
        return _AS_IT_IS

    @property
    def device(self) -> torch.device:
        """Where pictures are handed over."""
        if self.pipeline is None:
            return self._device
        for name in ("_execution_device", "device"):
            place = getattr(self.pipeline, name, None)
            if place is not None:
                return torch.device(place)
        weights = (weight for module in self.modules() for weight in module.parameters())
        return next((weight.device for weight in weights), self._device)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> BlackBox:
        """Move the pipeline, unless it is offloaded or quantised; of a function the pictures alone.

        Args:
            dtype: of the weights; None leaves it.

        Raises:
            ValueError: a device that is not there, or another one than an offloaded pipeline works on; a
                function that is to be cast.
        """
        place = self.device if device is None else check_device(device)
        if self.pipeline is None:
            if dtype is not None:
                raise ValueError(f"{self._caller.name} is a function; cast what it calls")
            self._device = place
            return self
        why = set_up_elsewhere(self.pipeline)
        if not why:
            self.pipeline.to(place, dtype)
            self.forget()
        elif place.type != self.device.type or dtype is not None:
            raise ValueError(
                f"{self._caller.name} {why}, and stays as it is on {self.device}; move or cast it before that"
            )
        return self

    def forget(self) -> None:
        """Try the pipeline anew: for changes inside of modules, such as loaded LoRAs."""
        self._probes.clear()
        self._alone = False

    def modules(self) -> tuple[nn.Module, ...]:
        """Whatever of the pipeline has weights; none of a function."""
        return modules_of(self.pipeline)

    def set_memory_plan(self, name: str) -> None:
        """Refuses.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{self._caller.name} takes no memory plan; call enable_model_cpu_offload() and the like on the "
            "pipeline itself"
        )

    def reduce_memory(self) -> None:
        """None: it is offloaded as it was set up."""
        return None

    # -- plan, noise, pictures --------------------------------------------------------------------

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        **arguments: Any,
    ) -> Plan:
        """What a call is told and what it makes of it; new arguments are tried at once.

        Args:
            arguments: any other ones of the call, handed on as they are. Whatever is not given is left to the
                pipeline.

        Raises:
            ValueError: an argument that the call does not take or lacks, or a call that fails, ignores its
                noise or returns no picture of the size that was asked for.
        """
        told = {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
        }
        named = {name: value for name, value in told.items() if value is not None}
        self._caller.check(named, arguments)
        call = Arguments({**self._defaults(), **named, **arguments})
        self._caller.check_needs(call)
        probe = self._probed(call)
        steps = call.get("num_inference_steps", self.card.steps)
        return Plan(
            steps if isinstance(steps, int) else 1,
            0,
            self._guidance_scale(call),
            probe.height,
            probe.width,
            probe.layout.shape,
            call,
            probe.layout.places,
        )

    def _defaults(self) -> dict[str, Any]:
        """What the user's card says of the call."""
        card = self._given_card
        if card is None:
            return {}
        told: dict[str, Any] = {
            "num_inference_steps": card.steps,
            "guidance_scale": card.guidance_scale,
            **({"height": card.size, "width": card.size} if card.size else {}),
            **({"timesteps": list(card.timesteps)} if card.timesteps else {}),
            **card.arguments,
        }
        return {name: value for name, value in told.items() if self._caller.takes(name)}

    def _guidance_scale(self, call: Mapping[str, Any]) -> float:
        scale = call.get("guidance_scale", self._caller.default("guidance_scale"))
        return float(scale) if isinstance(scale, int | float) else 0.0

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """What a call would draw from one CPU generator an image."""
        with torch.inference_mode(False):
            return self._noise(generators, self._probed(plan.arguments))

    def _noise(self, generators: Sequence[torch.Generator], probe: Probe) -> Noise:
        parts = []
        for generator in generators:
            if not probe.draws:
                drawn = torch.randn(probe.layout.drawn, generator=generator)
                state = generator.get_state()
                parts.append(Noise(probe.layout.kept(drawn), None, state[None]))
                continue
            state = generator.get_state()
            found = [draw.again(generator) for draw in probe.draws]
            noises = {
                role: probe.layout.kept(drawn).float()
                for role, drawn in zip(probe.roles, found, strict=True)
                if role is not None
            }
            latents = noises.pop(0)
            steps = torch.stack([noises[role] for role in sorted(noises)]) if noises else None
            parts.append(Noise(latents, steps, state[None] if None in probe.roles else None))
        return Noise.join(parts)

    def unpacked(self, latents: Tensor, plan: Plan) -> Float[Tensor, "b c h w"]:
        """Latents as the pipeline's users hold them, packed into rows of tokens as FLUX and Qwen-Image do.

        Raises:
            ValueError: they are of another shape.
        """
        channels, height, width = plan.latent_shape
        count, *shape = latents.shape
        if shape == [height * width, channels]:
            return latents.transpose(1, 2).reshape(count, *plan.latent_shape)
        if shape == [height // 2 * (width // 2), 4 * channels]:
            blocks = latents.reshape(count, height // 2, width // 2, channels, 2, 2)
            return blocks.permute(0, 3, 1, 4, 2, 5).reshape(count, *plan.latent_shape)
        raise ValueError(
            f"latents must have the shape {(count, *plan.latent_shape)}, not {tuple(latents.shape)}"
        )

    def images(
        self, noise: Noise, prompts: Sequence[str], plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, without gradient.

        A picture that a safety checker withheld, and one that is black all over, is not a number.

        Raises:
            CallError: the call fails, or returns something else than before.
            torch.OutOfMemoryError: too many pictures at once.
        """
        with torch.inference_mode(False), torch.no_grad():
            probe = self._probed(plan.arguments)
            pictures = self._images(noise, prompts, plan.arguments, probe)
        withheld = int(pictures.isnan().flatten(1).all(1).sum())
        if withheld:
            log.warning(
                "%s withheld %d pictures, flagged or black all over; they are not counted",
                self._caller.name,
                withheld,
            )
        return pictures.to(self.device)

    def _images(
        self, noise: Noise, prompts: Sequence[str], call: Arguments, probe: Probe
    ) -> Tensor:
        if len(noise) == 1:
            return self._called(noise, prompts, call, probe)
        if not (probe.alone or self._alone):
            try:
                return self._called(noise, prompts, call, probe)
            except CallError as error:
                log.debug("several pictures at once failed (%s); each is drawn alone", error)
        singly = [
            self._called(noise.pick(row), prompts[row : row + 1], call, probe)
            for row in range(len(noise))
        ]
        # It was no picture's own fault, and would fail again.
        self._alone = True
        return torch.cat(singly)

    def _called(
        self, noise: Noise, prompts: Sequence[str], call: Arguments, probe: Probe
    ) -> Tensor:
        """One call, in which the noise takes the place of what is drawn."""
        generators = [torch.Generator().manual_seed(0) for _ in prompts]
        if noise.states is not None:
            for generator, state in zip(generators, noise.states, strict=True):
                generator.set_state(state.cpu().clone())  # it crashes on unaligned memory
        if not probe.draws:
            latents = torch.stack([probe.layout.given(one) for one in noise.latents])
            pictures = self._caller(
                prompts, generators, latents.to(self.device), call, alone=probe.alone
            )
        else:

            def supply(picture: int, number: int, drawn: Tensor) -> Tensor | None:
                role = probe.roles[number] if number < len(probe.roles) else None
                if role is None or (role and noise.step_noise is None):
                    return None
                if drawn.numel() != math.prod(probe.layout.drawn):
                    raise CallError(
                        f"{self._caller.name} draws noise of the shape {tuple(drawn.shape)}, and of another "
                        "one when it was tried; take one picture at a time (batch_size=1)"
                    )
                steps = noise.step_noise
                own = noise.latents if not role or steps is None else steps[role - 1]
                return probe.layout.given(own[picture])

            with Draws(generators, supply) as watched:
                pictures = self._caller(prompts, generators, None, call, alone=probe.alone)
            if any(len(seen) <= probe.roles.index(0) for seen in watched.seen):
                raise CallError(
                    f"{self._caller.name} did not draw each picture's noise from its own generator"
                )
        if pictures.shape[-2:] != (probe.height, probe.width):
            raise CallError(
                f"{self._caller.name} returns pictures of {pictures.shape[-1]} x {pictures.shape[-2]}, and "
                f"returned {probe.width} x {probe.height} when it was tried; give it height and width"
            )
        return pictures

    # -- what a call does -------------------------------------------------------------------------

    def _probed(self, call: Arguments) -> Probe:
        own = {} if self.pipeline is None else vars(self.pipeline)
        parts = tuple(id(part) for name, part in own.items() if name[:1] != "_")
        if parts != self._parts:  # a scheduler or a module was exchanged
            self.forget()
            self._parts = parts
        if call not in self._probes:
            while len(self._probes) >= _MOST_PROBES:
                del self._probes[next(iter(self._probes))]
            with torch.inference_mode(False), torch.no_grad():
                self._probes[call] = self._tried(call)
        return self._probes[call]

    def _tried(self, call: Arguments) -> Probe:
        """Two calls, and what they show.

        Raises:
            ValueError: they fail, or the noise does not decide the picture.
        """
        function = self.pipeline is None
        try:
            probe, first = self._try(call, alone=function)
        except CallError as error:
            if function:
                raise
            try:
                probe, first = self._try(call, alone=True)
            except CallError:
                raise error from None
        asked = call.get("height", probe.height), call.get("width", probe.width)
        if asked != (probe.height, probe.width):
            raise CallError(
                f"{self._caller.name} returns pictures of {probe.width} x {probe.height} where "
                f"{asked[1]} x {asked[0]} was asked for; take a size that it can draw"
            )
        noise = self._noise([torch.Generator().manual_seed(0)], probe)
        if not probe.draws:  # other latents, and all else as in the first call
            other = self._noise([torch.Generator().manual_seed(1)], probe)
            noise = replace(other, states=noise.states)
        second = self._called(noise, [PROMPT], call, probe)
        gap = float((first - second).abs().mean() / first.std().clamp_min(1e-12))
        if probe.draws and gap > _SAME:
            raise CallError(
                f"{self._caller.name} draws another picture from the same noise: something in it draws from "
                "elsewhere than the generator that it is given; hand that on, or give latent_shape if it "
                "takes latents"
            )
        if not probe.draws and gap == 0:
            raise CallError(
                f"{self._caller.name} ignores the latents that it is given, and draws the same picture from "
                "any; hand them on, or leave latent_shape out if it draws from its generator"
            )
        return probe

    def _try(self, call: Arguments, *, alone: bool) -> tuple[Probe, Tensor]:
        generator, latents = torch.Generator().manual_seed(0), None
        if self._latent_shape is not None:
            latents = torch.randn((1, *self._latent_shape), generator=generator).to(self.device)
        with CountedFlops() as counted, Draws([generator]) as watched:
            picture = self._caller([PROMPT], [generator], latents, call, alone=alone)
        height, width = picture.shape[-2:]
        draws = () if latents is not None else tuple(watched.seen[0])
        shape = self._latent_shape
        roles: tuple[int | None, ...] = ()
        if shape is None:
            first = latents_among(draws)
            if first is None:
                raise CallError(
                    f"{self._caller.name} draws no noise from the generator that it is given; hand that on, "
                    "or give latent_shape if it takes latents"
                )
            roles = roles_of(draws, first)
            shape = draws[first].shape
            shape = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
        flops = counted.total if counted.total and not counted.foreign else None
        probe = Probe(
            height,
            width,
            layout_of(shape, height, width),
            draws,
            roles,
            alone,
            flops,
            tuple(sorted(counted.foreign)),
        )
        return probe, picture

    # -- prices and remarks -----------------------------------------------------------------------

    def flops(self, plan: Plan) -> dict[str, Flops] | None:
        """Operations of a call for one picture; None where not all of them could be counted."""
        counted = self._probed(plan.arguments).flops
        return None if counted is None else {"pipeline": Flops(counted, 0.0)}

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        """That there is no gradient, and why; how counters are priced; what edits would lack."""
        probe, name = self._probed(plan.arguments), self._caller.name
        found = [
            f"{name} is called as it is, without gradient"
            + (f": {self.reason}" * bool(self.reason))
        ]
        if probe.flops is None:
            which = f" ({', '.join(probe.foreign[:3])})" if probe.foreign else ""
            found.append(
                f"the operations of {name} cannot be counted{which}, so that counters are priced by time"
            )
        if not probe.layout.places:
            shape = tuple(probe.layout.drawn)
            found.append(
                f"where the noise of {name}, of the shape {shape}, lies in the picture cannot be told, so "
                "that it is drawn again but not edited"
            )
        return tuple(found)


def _unpickled(
    source: Any, card: PipelineCard | None, latent_shape: Sequence[int] | None, reason: str
) -> BlackBox:
    return BlackBox(source, card, latent_shape=latent_shape, reason=reason)
