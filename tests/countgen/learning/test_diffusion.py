"""The training loss of any scheduler: what is noised, what is predicted, and what both stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from tiny_families import sana_folder
from tiny_pipelines import sd3_folder, sd_folder, tiny

from countgen.errors import UsageError
from countgen.learning.diffusion import Diffusion, noise_shares
from countgen.learning.lora import unguided_plan
from pipelines.adapter import DiffusersAdapter

SHARES = torch.tensor([0.05, 0.5, 0.9])


def pieces(adapter: DiffusersAdapter) -> tuple[Diffusion, torch.Tensor, torch.Tensor]:
    plan = unguided_plan(adapter)
    clean, noise = torch.randn(2, 3, *plan.latent_shape, generator=torch.manual_seed(1))
    return Diffusion(adapter, plan), clean, noise


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_scheduler_itself_makes_of_noise_and_picture(
    tmp_path: Path, kind: str
) -> None:
    adapter = tiny("sd-turbo", sd_folder(tmp_path))
    reference = DDPMScheduler.from_config(adapter.pipeline.scheduler.config, prediction_type=kind)
    adapter.pipeline.scheduler = EulerDiscreteScheduler.from_config(reference.config)
    diffusion, clean, noise = pieces(adapter)
    at = diffusion.noised(clean, noise, SHARES)
    times = at.time.long()
    torch.testing.assert_close(at.latents, reference.add_noise(clean, noise, times))
    target = diffusion.target(clean, noise, at)
    velocity = reference.get_velocity(clean, noise, times)
    wanted = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]
    torch.testing.assert_close(target, wanted)
    torch.testing.assert_close(diffusion.clean(target, at), clean, atol=1e-4, rtol=1e-4)


def test_a_flow_goes_straight_and_is_shifted_as_its_scheduler_shifts(tmp_path: Path) -> None:
    adapter = tiny("sd3.5-large-turbo", sd3_folder(tmp_path, shift=3.0))
    diffusion, clean, noise = pieces(adapter)
    at = diffusion.noised(clean, noise, SHARES)
    level = 3 * SHARES / (1 + 2 * SHARES)
    torch.testing.assert_close(at.time, 1000 * level)
    mix = level[:, None, None, None]
    torch.testing.assert_close(at.latents, (1 - mix) * clean + mix * noise)
    target = diffusion.target(clean, noise, at)
    torch.testing.assert_close(target, noise - clean)
    torch.testing.assert_close(diffusion.clean(target, at), clean, atol=1e-4, rtol=1e-4)
    # The scheduler's own steps see the same: its times are those levels.
    sampler = adapter.sampler(adapter.plan(4, guidance_scale=1.0))
    sigmas = sampler._scheduler.sigmas[:-1]
    torch.testing.assert_close(sampler.timesteps, 1000 * sigmas)


def test_each_row_has_its_own_time(tmp_path: Path) -> None:
    for name, folder in (("sd-turbo", sd_folder), ("sd3.5-large-turbo", sd3_folder)):
        adapter = tiny(name, folder(tmp_path / name))
        diffusion, clean, noise = pieces(adapter)
        told = adapter.encode(["two cats"] * 3, unguided_plan(adapter))
        at = diffusion.noised(clean, noise, SHARES)
        with torch.no_grad():
            together = diffusion.predict(at, told)
            for i in range(3):
                one = diffusion.noised(clean[i : i + 1], noise[i : i + 1], SHARES[i : i + 1])
                alone = diffusion.predict(one, told.pick([i]))
                torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_latents_of_a_picture_decode_to_it(tmp_path: Path) -> None:
    import numpy as np

    from countgen.learning.prompted import pocket_scenes
    from countgen.pocket import load_adapter

    adapter = load_adapter()
    images = torch.stack([one.image for one in pocket_scenes(np.random.default_rng(0), 4)])
    diffusion = Diffusion(adapter, unguided_plan(adapter))
    with torch.no_grad():
        again = adapter.decode(diffusion.latents_of(images))
    assert float((again - images).square().mean()) < 3e-3
    # Scaling factors and shifts of other decoders are undone too.
    shifted = tiny("sd3.5-large-turbo", sd3_folder(tmp_path))
    own = Diffusion(shifted, unguided_plan(shifted))
    vae = shifted.pipeline.vae
    pixels = images[..., :16, :16]
    raw = vae.encode(pixels * 2 - 1).latent_dist.mode()
    wanted = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(own.latents_of(pixels), wanted, atol=1e-5, rtol=1e-5)


def test_shares_reach_both_ends() -> None:
    shares = noise_shares(4000, torch.manual_seed(0))
    assert 0 <= float(shares.min()) < 0.01 and 0.99 < float(shares.max()) <= 1
    assert abs(float(shares.mean()) - 0.5) < 0.02


def test_a_noising_that_is_not_known_is_refused(tmp_path: Path) -> None:
    adapter = tiny("sana-sprint", sana_folder(tmp_path), size=32)
    with pytest.raises(UsageError, match="SCMScheduler noises"):
        Diffusion(adapter, unguided_plan(adapter))
