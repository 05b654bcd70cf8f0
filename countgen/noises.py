"""Where the noises of a run come from: seeds, the user's generators, or given latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from countgen.errors import UsageError
from countgen.seeds import image_seed
from pipelines.base import ImageSource, Noise, Plan


def draws(
    source: ImageSource,
    ids: list[str],
    each: int,
    seed: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: Noise | Tensor | None,
    plan: Plan,
) -> list[Callable[[int], Noise]]:
    """Of every picture the function that draws the noise of its candidates, by their numbers.

    Args:
        ids: of the prompts.
        each: pictures of a prompt.
        generator, latents: as for ``CountGuidedPipeline.stream``.

    Raises:
        UsageError: latents of another shape or number, or generators that are none.
    """

    def seeded(prompt_id: str, image: int) -> Callable[[int], Noise]:
        def draw(candidate: int) -> Noise:
            own = torch.Generator().manual_seed(image_seed(seed, prompt_id, image, candidate))
            return source.noise([own], plan)

        return draw

    def continued(own: torch.Generator) -> Callable[[int], Noise]:
        return lambda candidate: source.noise([own], plan)

    if generator is not None:
        several = list(generator) if isinstance(generator, Sequence) else [generator]
        for one in several:
            if not isinstance(one, torch.Generator):
                raise UsageError(
                    f"generator is a torch.Generator, or one for each picture, not {one!r}; numbers go "
                    "to seed"
                )
        draws = [continued(own) for own in several]
    else:
        draws = [seeded(prompt_id, image) for prompt_id in ids for image in range(each)]
    if latents is None:
        return draws
    if isinstance(latents, Tensor) and latents.ndim == 3:  # as the wrapped pipeline packs them
        try:
            latents = source.unpacked(latents, plan)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None
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
            row_of = given.pick(row)
            latents, steps, states = row_of.latents.float(), row_of.step_noise, row_of.states
            if steps is None and states is None:
                drawn = draw(0)
                steps, states = drawn.step_noise, drawn.states
            return Noise(latents, steps, states)

        return own

    return [first(row, draw) for row, draw in enumerate(draws)]
