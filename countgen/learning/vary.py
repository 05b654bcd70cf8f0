"""New pictures with the kinds and counts of a given one, by a generator that is told by pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.engine.sharing import using
from countgen.errors import UsageError
from countgen.evaluation.pictures import PictureError, read_picture, to_tensor
from countgen.learning.draws import noise_of
from countgen.learning.references import (
    PictureEncoder,
    check_critic,
    counts_of,
    find_objects,
    load_encoder,
)
from countgen.learning.variation import Variation
from countgen.seeds import image_seed
from critics.base import Critic
from pipelines.adapter import DiffusersAdapter

Counts = Mapping[str, int]
"""Noun -> how many."""


@dataclass(frozen=True)
class Varied:
    """Variations of a picture, and what they and the given one hold.

    Attributes:
        images: in [0, 1].
        seeds: of their noises.
        given: role ("critic", "verifier") -> counts of the given picture.
        counts: the same of each new one.
    """

    images: Float[Tensor, "b 3 h w"]
    seeds: tuple[int, ...]
    given: Mapping[str, Counts]
    counts: tuple[Mapping[str, Counts], ...]

    @property
    def same(self) -> tuple[bool, ...]:
        """Whether every counter counts in a new picture what the critic counts in the given one.

        The critic looks for all nouns that it was asked for, the verifier for those of the given picture.
        """
        wanted = self.given["critic"]
        return tuple(all(found == wanted for found in row.values()) for row in self.counts)


def vary(
    picture: Float[Tensor, "3 h w"] | str | Path,
    variation: Variation,
    adapter: DiffusersAdapter,
    critic: Critic,
    verifier: Critic | None = None,
    *,
    nouns: Sequence[str] = (),
    number: int = 4,
    seed: int = 0,
    batch: int = 16,
    encoder: PictureEncoder | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Varied:
    """Draw new pictures with the kinds and counts of a given one.

    Args:
        picture: in [0, 1], or a file.
        critic: with boxes, around which objects are cut out.
        verifier: counts too; None leaves it out.
        nouns: to look for; may be left out where the critic's vocabulary is closed, all of which is looked
            for then.
        number: of new pictures.
        encoder: that the variation was learnt with; None loads it.
        progress: told how many pictures are drawn.

    Raises:
        UsageError: a picture that cannot be read or without objects, no nouns for an open vocabulary, a
            critic without boxes, or a generator or CLIP that the variation was not learnt for.
        critics.base.UnknownNounError: a noun that critic or verifier cannot see.
    """
    check_critic(critic)
    if number < 1 or batch < 1:
        raise UsageError("at least one new picture is drawn, and one at once")
    asked = _nouns(critic, nouns)
    image = _read(picture)
    found = find_objects(critic, image, asked)
    if not found:
        shown = ", ".join(asked[:5]) + (" and others" if len(asked) > 5 else "")
        raise UsageError(
            f"the critic {critic.card.name} sees no object in the picture ({shown} were looked for), so "
            "there is nothing to vary; take another picture, or name other nouns"
        )
    encoder = encoder or load_encoder(variation.encoder, adapter.device)
    told = variation.on(adapter, encoder)
    reference = encoder(image, torch.cat(list(found.values())))
    seen = tuple(found)
    counters = {"critic": critic} | ({} if verifier is None else {"verifier": verifier})
    given = {"critic": counts_of(found)}
    if verifier is not None:
        given["verifier"] = _counts(verifier, image[None], seen)[0]
    seeds = tuple(image_seed(seed, "variation", i) for i in range(number))
    plan = told.plan()
    images: list[Tensor] = []
    with using(told.adapter, *counters.values()):
        for start in range(0, number, batch):
            noise = noise_of(told.adapter, plan, seeds[start : start + batch])
            images.append(told.images(noise, [reference] * len(noise), plan).float().cpu())
            progress(start + len(noise))
    drawn = torch.cat(images)
    rows = {"critic": [counts_of(find_objects(critic, image, asked)) for image in drawn]}
    if verifier is not None:
        rows["verifier"] = _counts(verifier, drawn, seen, batch)
    every = tuple({role: rows[role][i] for role in rows} for i in range(number))
    return Varied(drawn, seeds, given, every)


def _read(picture: Tensor | str | Path) -> Tensor:
    if isinstance(picture, Tensor):
        return picture
    try:
        return to_tensor(read_picture(Path(picture)))
    except PictureError as error:
        raise UsageError(str(error)) from None


def _nouns(critic: Critic, nouns: Sequence[str]) -> tuple[str, ...]:
    if nouns:
        return tuple(nouns)
    if critic.card.vocabulary is None:
        raise UsageError(
            f"{critic.card.name} can look for anything, so say what is in the picture, such as --noun cat"
        )
    return critic.card.vocabulary


def _counts(
    critic: Critic, images: Float[Tensor, "b 3 h w"], nouns: Sequence[str], batch: int = 16
) -> list[dict[str, int]]:
    query, device = critic.prepare(list(nouns)), next(critic.network.parameters()).device
    found = []
    with torch.no_grad():
        for part in images.split(batch):
            hard = critic(part.to(device), [query] * len(part)).hard.tolist()
            found += [dict(zip(nouns, row, strict=True)) for row in hard]
    return found
