"""A counter of referring expressions, after C-REX: scenes whose expressions one attribute or place decides.

``critics.detectors.c_rex`` says what of it is published and what is reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from countgen.learning.loop import Losses
from countgen.pocket.scenes import Scene, SceneSpec, compose
from countgen.pocket.train.scenery import pixels, plain_style
from countgen.pocket.train.scoring import HELD_OUT
from countgen.pocket.world import BACKGROUNDS, NAMES, NOUNS, SIZE
from critics.base import Critic
from critics.detectors.c_rex import STRIDE, ReferNetwork, Referrer, supervised_contrastive_loss
from critics.detectors.c_rex import words as words_of
from critics.detectors.heatmap import heatmap_loss

PLACES: dict[str, tuple[int, bool]] = {
    "on the left": (0, True),
    "on the right": (0, False),
    "at the top": (1, True),
    "at the bottom": (1, False),
}
"""Place -> which half of the picture: the axis (0: x), and whether it is the lower half of its values."""
ATTRIBUTES = ("red apple", "green apple")
"""Kinds that one word alone tells apart."""
OPPOSITE = {
    "on the left": "on the right",
    "on the right": "on the left",
    "at the top": "at the bottom",
    "at the bottom": "at the top",
}
BACKGROUND_TOKENS = 24
"""Of empty cells, that each expression is contrasted with."""
SPREAD = 0.6
"""Deviation in cells of the bell around a centroid that the heatmap is trained towards."""


@dataclass(frozen=True)
class Expression:
    """What is referred to in a picture.

    Attributes:
        text: such as "the dogs on the left".
        key: the same for all ways to say it.
        chosen: (n,) which of the scene's objects are meant.
        decided_by: "attribute", "place", or "noun" where neither is needed.
    """

    text: str
    key: str
    chosen: Bool[np.ndarray, " n"]
    decided_by: str


def refer_to(scene: Scene, noun: str, place: str | None, text: str) -> Expression:
    """The objects of a kind, or those of them in one half of the picture."""
    middles = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 / scene.image.shape[0]
    chosen = scene.labels == NAMES.index(noun)
    kind = "attribute" if noun in ATTRIBUTES else "noun"
    if place is not None:
        axis, low = PLACES[place]
        chosen = chosen & ((middles[:, axis] < 0.5) == low)
        kind = "place"
    return Expression(text, f"{noun} {place or ''}".strip(), chosen, kind)


def draw_scene(rng: np.random.Generator) -> tuple[Scene, list[Expression]]:
    """A scene and two expressions that tell some of its objects from others of the same head noun.

    Two fifths are decided by an attribute alone: red and green apples; the others by a place alone: of one
    kind, those in one half and those in the other.
    """
    background = str(rng.choice(list(BACKGROUNDS)))
    if rng.random() < 0.4:
        counts = [(noun, int(rng.integers(0, 9))) for noun in ATTRIBUTES]
        asked: list[tuple[str, str | None]] = [(noun, None) for noun in ATTRIBUTES]
    else:
        noun, other = (NAMES[i] for i in rng.permutation(len(NAMES))[:2])
        counts = [(noun, int(rng.integers(1, 13))), (other, int(rng.integers(0, 5)))]
        place = str(rng.choice(list(PLACES)))
        asked = [(noun, place), (noun, OPPOSITE[place])]
    spec = SceneSpec(tuple(counts), background)
    scene = compose(spec, int(rng.integers(2**62)), plain_style(rng))
    return scene, [refer_to(scene, noun, place, say(noun, place, rng)) for noun, place in asked]


def say(noun: str, place: str | None, rng: np.random.Generator) -> str:
    """ "dog on the left", "dogs on the left", "the dogs on the left": one way to say it."""
    name = noun if rng.random() < 0.5 else NOUNS[NAMES.index(noun)].plural
    the = "the " if rng.random() < 0.3 else ""
    return f"{the}{name}{f' {place}' if place else ''}"


def known_words() -> tuple[str, ...]:
    """Every word that expressions use, sorted."""
    texts = ["the", *PLACES, *(text for noun in NOUNS for text in (noun.name, noun.plural))]
    return tuple(sorted({word for text in texts for word in words_of(text)}))


@dataclass(frozen=True)
class Referred:
    """A batch: every expression of every picture.

    Attributes:
        images: (b, 3, h, w) in [0, 1].
        rows: (p,) the picture of each expression.
        scenes: of each picture.
    """

    images: Float[Tensor, "b 3 h w"]
    rows: Int64[Tensor, " p"]
    expressions: list[Expression]
    scenes: list[Scene]


def draw(rng: np.random.Generator, size: int) -> Referred:
    """``size`` scenes with their expressions; every draw is new."""
    pairs = [draw_scene(rng) for _ in range(size)]
    rows = [row for row, (_, said) in enumerate(pairs) for _ in said]
    scenes = [scene for scene, _ in pairs]
    expressions = [one for _, said in pairs for one in said]
    return Referred(pixels(scenes, SIZE), torch.tensor(rows), expressions, scenes)


def held_out(count: int) -> Referred:
    """Scenes that no training draws."""
    return draw(np.random.default_rng(HELD_OUT + 3_000_000), count)


@dataclass(frozen=True)
class Targets:
    """What the network is trained towards, in cells.

    Attributes:
        peaks: (p, h, w) bells of height 1 around the centroids of what is meant.
        meant, others: (m, 3) expression, row and column of the cells that hold a centroid of what is meant,
            or only of other objects.
        offsets: (m, 2) x and y from the middle of those cells to the centroid.
    """

    peaks: Float[Tensor, "p h w"]
    meant: Int64[Tensor, "m 3"]
    offsets: Float[Tensor, "m 2"]
    others: Int64[Tensor, "n 3"]


def targets(batch: Referred) -> Targets:
    """Cells of ``critics.detectors.c_rex.STRIDE`` pixels."""
    side = batch.images.shape[-1] // STRIDE
    grid = np.arange(side, dtype=np.float32)
    peaks = np.zeros((len(batch.expressions), side, side), np.float32)
    meant, others, offsets = [], [], []
    for p, (row, said) in enumerate(zip(batch.rows.tolist(), batch.expressions, strict=True)):
        scene = batch.scenes[row]
        places = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 / scene.image.shape[0] * side
        taken = set()
        for (x, y), chosen in zip(places, said.chosen, strict=True):
            column, line = min(int(x), side - 1), min(int(y), side - 1)
            if chosen and (line, column) not in taken:
                bell_x = np.exp(-0.5 * ((grid - column) / SPREAD) ** 2)
                bell_y = np.exp(-0.5 * ((grid - line) / SPREAD) ** 2)
                np.maximum(peaks[p], bell_y[:, None] * bell_x, out=peaks[p])
                meant.append((p, line, column))
                offsets.append((x - column - 0.5, y - line - 0.5))
                taken.add((line, column))
        for x, y in places[~said.chosen]:
            column, line = min(int(x), side - 1), min(int(y), side - 1)
            if (line, column) not in taken:
                others.append((p, line, column))
    return Targets(
        torch.from_numpy(peaks),
        torch.tensor(meant, dtype=torch.int64).reshape(-1, 3),
        torch.tensor(np.array(offsets, np.float32)).reshape(-1, 2),
        torch.tensor(others, dtype=torch.int64).reshape(-1, 3),
    )


def objective(
    referrer: Referrer,
    batch: int,
    contrast: float,
    make: Callable[[np.random.Generator, int], Referred] = draw,
) -> Callable[[np.random.Generator, torch.Generator], Losses]:
    """Focal loss of the centroids, L1 of their offsets, and ``contrast`` times the contrastive loss."""
    network = referrer.network

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        drawn = make(rng, batch)
        device = network.order.device
        wanted = targets(drawn)
        said = network.read(referrer.numbered([one.text for one in drawn.expressions]).to(device))
        tokens = network.see(drawn.images.to(device))[drawn.rows.to(device)]
        tokens = network.refer(tokens, said)
        logits, offsets = network.detect(tokens)
        terms = {
            "focal": heatmap_loss(
                logits[:, None], wanted.peaks[:, None].to(device), len(wanted.meant)
            )
        }
        p, line, column = wanted.meant.to(device).unbind(1)
        off = (offsets[p, :, line, column] - wanted.offsets.to(device)).abs()
        terms["offset"] = off.sum() / max(1, len(off))
        total = terms["focal"] + 0.2 * terms["offset"]
        if contrast:
            terms["contrast"] = contrastive(network, tokens, drawn.expressions, wanted, noise)
            total = total + contrast * terms["contrast"]
        return {"loss": total, **terms}

    return loss


def contrastive(
    network: ReferNetwork,
    tokens: Float[Tensor, "p c h w"],
    expressions: Sequence[Expression],
    wanted: Targets,
    noise: torch.Generator,
) -> Float[Tensor, ""]:
    """Tokens on what is meant: positives where the expression is the same; negatives of the whole batch.

    Among the negatives are the tokens on other objects of each picture, and some on its empty ground.
    """
    keys = {key: i for i, key in enumerate(dict.fromkeys(one.key for one in expressions))}
    side = tokens.shape[-1]
    ground = torch.randint(side * side, (len(expressions), BACKGROUND_TOKENS), generator=noise)
    empty = torch.stack(
        [
            torch.arange(len(expressions))[:, None].expand_as(ground),
            ground // side,
            ground % side,
        ],
        -1,
    ).flatten(0, 1)
    empty = empty[wanted.peaks[tuple(empty.unbind(1))] < 0.1]
    labels = torch.tensor([keys[expressions[p].key] for p in wanted.meant[:, 0].tolist()])
    negative = torch.full((len(wanted.others) + len(empty),), -1)
    cells = torch.cat([wanted.meant, wanted.others, empty]).to(tokens.device)
    p, line, column = cells.unbind(1)
    every = torch.cat([labels.to(torch.int64), negative]).to(tokens.device)
    return supervised_contrastive_loss(network.contrasted(tokens[p, :, line, column]), every)


def errors(
    critic: Critic, batch: Referred, ask: Callable[[Expression], str], part: int = 32
) -> dict[str, dict[str, float]]:
    """Mean absolute and root mean square error and the exact share, of all and by what decides.

    Args:
        ask: what a critic is asked in place of an expression.
    """
    off: list[int] = []
    device = next(critic.network.parameters()).device
    for start in range(0, len(batch.expressions), part):
        said = batch.expressions[start : start + part]
        images = batch.images[batch.rows[start : start + part]].to(device)
        with torch.no_grad():
            found = critic(images, [critic.prepare([ask(one)]) for one in said]).hard[:, 0]
        off += [int(n) - int(one.chosen.sum()) for n, one in zip(found, said, strict=True)]
    every = np.array(off)
    kinds = np.array([one.decided_by for one in batch.expressions])
    groups = {"all": kinds == kinds} | {kind: kinds == kind for kind in dict.fromkeys(kinds)}
    return {
        str(name): {
            "mae": float(np.abs(every[rows]).mean()),
            "rmse": float(np.sqrt((every[rows] ** 2).mean())),
            "exact": float((every[rows] == 0).mean()),
            "expressions": int(rows.sum()),
        }
        for name, rows in groups.items()
    }


def said(expression: Expression) -> str:
    return expression.text


def head(expression: Expression) -> str:
    """The kind alone, for a counter that knows no places."""
    return next(
        noun for noun in sorted(NAMES, key=len, reverse=True) if expression.key.startswith(noun)
    )
