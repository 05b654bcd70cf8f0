"""The loss that generators are trained with, for any pipeline that an adapter wraps.

Of a flow the denoiser learns the velocity (noise - picture, arXiv 2209.03003), else whatever its scheduler
says that it predicts: noise (arXiv 2006.11239), velocity (2202.00512) or picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.errors import UsageError
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Conditioning, Plan


@dataclass(frozen=True)
class Noised:
    """Clean latents on their way to noise: ``keep * clean + mix * noise``.

    Attributes:
        time: (b,) as the scheduler counts it.
    """

    latents: Float[Tensor, "b c h w"]
    time: Float[Tensor, " b"]
    keep: Float[Tensor, "b 1 1 1"]
    mix: Float[Tensor, "b 1 1 1"]


class Diffusion:
    """How one adapter's generator is trained: noising, the prediction, what it should be, and the loss."""

    def __init__(self, adapter: DiffusersAdapter, plan: Plan) -> None:
        """For unguided pictures: a plan whose guidance scale doubles nothing.

        Raises:
            UsageError: a scheduler whose noising is not known, or a plan with guidance.
        """
        if adapter.family.uses_cfg(adapter.pipeline, plan):
            raise UsageError("training is unguided; make the plan with a guidance scale of 1")
        self._adapter, self._plan = adapter, plan
        scheduler: Any = adapter.pipeline.scheduler
        config, name = scheduler.config, type(scheduler).__name__
        self._kind = str(config.get("prediction_type", "epsilon"))
        self._times = int(config.get("num_train_timesteps", 1000))
        self._alphas: Tensor | None = None
        if name.startswith("FlowMatch") or self._kind == "flow_prediction":
            dynamic = config.get("use_dynamic_shifting", False)
            shift = config.get("shift") or config.get("flow_shift") or 1.0
            self._kind, self._shift = "flow", 1.0 if dynamic else float(shift)
        elif hasattr(scheduler, "alphas_cumprod") and name != "SCMScheduler":
            self._alphas = scheduler.alphas_cumprod.detach().float().cpu()
        else:
            raise UsageError(
                f"how the scheduler {name} noises pictures in training is not known here; give the pipeline "
                "the scheduler that it was trained with, such as DDPMScheduler or "
                "FlowMatchEulerDiscreteScheduler"
            )

    def latents_of(self, images: Float[Tensor, "b 3 hh ww"]) -> Float[Tensor, "b c h w"]:
        """Pictures in [0, 1] as clean latents, in the denoiser's scale, without gradient."""
        vae = self._adapter.networks.vae
        weight = next(vae.parameters())
        with torch.no_grad():
            pixels = (images * 2 - 1).to(weight.device, weight.dtype)
            encoded = vae.encode(pixels)
            raw = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
            # What the decoder undoes is a factor and a shift a channel.
            back = self._adapter.family.denormalize_latents
            like = raw.new_zeros(1, raw.shape[1], 1, 1)
            shift = back(vae, like)
            return ((raw - shift) / (back(vae, like + 1) - shift)).float()

    def noised(
        self, clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], share: Tensor
    ) -> Noised:
        """Latents that are noise to a share, (b,) in [0, 1)."""
        if self._alphas is None:
            level = self._shift * share / (1 + (self._shift - 1) * share)
            time, keep, mix = level * self._times, 1 - level, level
        else:
            index = (share * len(self._alphas)).long().clamp(0, len(self._alphas) - 1)
            alpha = self._alphas.to(share.device)[index]
            time, keep, mix = index.float(), alpha.sqrt(), (1 - alpha).sqrt()
        rows = (-1, 1, 1, 1)
        keep, mix = keep.reshape(rows), mix.reshape(rows)
        return Noised(keep * clean + mix * noise, time, keep, mix)

    def predict(self, at: Noised, told: Conditioning) -> Float[Tensor, "b c h w"]:
        """The denoiser's output, with gradient to its weights."""
        networks = self._adapter.networks
        rows = networks.denoiser_rows(told, self._plan, len(at.latents))
        return networks.predict(at.latents, at.time, rows, self._plan).float()

    def target(
        self, clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], at: Noised
    ) -> Float[Tensor, "b c h w"]:
        """What the denoiser should say."""
        if self._kind == "flow":
            return noise - clean
        if self._kind == "sample":
            return clean
        return noise if self._kind == "epsilon" else at.keep * noise - at.mix * clean

    def clean(self, prediction: Float[Tensor, "b c h w"], at: Noised) -> Float[Tensor, "b c h w"]:
        """The clean latents that a prediction stands for."""
        if self._kind == "flow":
            return at.latents - at.mix * prediction
        if self._kind == "sample":
            return prediction
        if self._kind == "epsilon":
            return (at.latents - at.mix * prediction) / at.keep
        return at.keep * at.latents - at.mix * prediction


def noise_shares(number: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """How noisy the latents of a batch are: half logit-normal (arXiv 2403.03206), half uniform, since
    sampling in few steps leans on the ends of the path too."""
    normal = torch.sigmoid(torch.randn(number, generator=generator))
    uniform = torch.rand(number, generator=generator)
    return torch.where(torch.rand(number, generator=generator) < 0.5, normal, uniform)
