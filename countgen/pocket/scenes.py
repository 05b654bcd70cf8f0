"""Compose emoji scenes with exact counts and boxes.

A scene is a function of its spec, its style and its seed: the same three give the same pixels.
Composition is plain NumPy on cached sprite variants, well under a millisecond a picture, so that
training never waits for data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from countgen.pocket.world import BACKGROUNDS, MAX_KINDS, NAMES, NOUNS, PocketError, noun_index

Array = np.ndarray
HARD_LIMIT = 60
"""More objects than this never fit a picture as separate things."""


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """What a scene shows: ``counts`` as (noun, count) pairs, and a background (None: any)."""

    counts: tuple[tuple[str, int], ...]
    background: str | None = None

    @property
    def total(self) -> int:
        return sum(count for _, count in self.counts)


@dataclass(frozen=True, slots=True)
class SceneStyle:
    """How scenes are laid out. Detector B is trained with another style than the generator.

    Attributes:
        size: side of the picture in pixels.
        max_overlap: largest share of an object's box that another box may cover, in [0, 1].
        huddle: share of the objects that are put where they overlap another one most.
        coverage: share of the picture that objects' boxes cover when there are many, in (0, 0.6].
        largest: largest object side as a share of the picture's.
        jitter: objects of one scene differ in side by up to this share.
        stretch: three objects in ten are drawn out, broader or taller, by up to this share.
        rotation: largest rotation in degrees.
        mirror: half of the sprites are mirrored.
        grid: objects start at multiples of this many pixels, and their longer sides are such multiples.
        contrast: brightness and contrast change by up to this share.
        fragments: most pieces of sprites (cut, faint or merged from two kinds) strewn as negatives.
    """

    size: int = 64
    max_overlap: float = 0.08
    huddle: float = 0.0
    coverage: float = 0.58
    largest: float = 0.40
    jitter: float = 0.15
    stretch: float = 0.0
    rotation: float = 15.0
    mirror: bool = True
    grid: int = 1
    contrast: float = 0.06
    fragments: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A composed picture.

    Attributes:
        image: uint8 (size, size, 3), RGB.
        boxes: float32 (n, 4), x0 y0 x1 y1 in pixels, tight around the visible sprite.
        labels: int64 (n,), index into ``world.NAMES``.
        background: the background's name.
    """

    image: Array
    boxes: Array
    labels: Array
    background: str


def sample_spec(
    rng: np.random.Generator, max_objects: int = 20, max_kinds: int = MAX_KINDS
) -> SceneSpec:
    """Draw what a training scene shows: 0 to ``max_objects`` objects of one to three kinds."""
    kinds = 1 + int(rng.choice(3, p=(0.55, 0.27, 0.18)))
    kinds = min(kinds, max_kinds)
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:kinds]]
    if kinds == 1:
        low, high = ((0, 0), (1, 10), (11, max_objects))[int(rng.choice(3, p=(0.03, 0.57, 0.40)))]
        counts = [int(rng.integers(low, high + 1))]
    else:
        total = int(rng.integers(kinds, max_objects + 1))
        cuts = np.sort(rng.choice(np.arange(1, total), size=kinds - 1, replace=False))
        counts = np.diff(np.concatenate([[0], cuts, [total]])).tolist()
        if rng.random() < 0.04:
            counts[int(rng.integers(kinds))] = 0
    background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.7 else None
    return SceneSpec(tuple(zip(names, (int(c) for c in counts), strict=True)), background)


def compose(spec: SceneSpec, seed: int, style: SceneStyle | None = None) -> Scene:
    """Compose one scene.

    Raises:
        PocketError: unknown noun or background, negative count, or more objects than fit.
    """
    style = style or SceneStyle()
    labels = _check(spec)
    rng = np.random.default_rng(seed)
    background = spec.background or str(rng.choice(list(BACKGROUNDS)))
    canvas = _background(background, style.size, rng)
    labels = labels[rng.permutation(len(labels))]
    sprites, boxes = _place(labels, rng, style)
    for _ in range(int(rng.integers(style.fragments + 1)) if style.fragments else 0):
        _strew_fragment(canvas, boxes, rng, style)
    for sprite, box in zip(sprites, boxes, strict=True):
        tint = 1.0 + rng.uniform(-style.contrast, style.contrast)
        _paste(canvas, sprite, int(box[0]), int(box[1]), tint)
    if style.contrast:
        gain = 1.0 + rng.uniform(-style.contrast, style.contrast)
        canvas = (canvas - 0.5) * gain + 0.5 + rng.uniform(-style.contrast, style.contrast) / 2
    image = (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(image, boxes.astype(np.float32), labels.astype(np.int64), background)


def _check(spec: SceneSpec) -> Array:
    """Labels of all objects of a spec, after the checks that a user's mistake can fail."""
    if spec.background is not None and spec.background not in BACKGROUNDS:
        raise PocketError(
            f"the pocket world has no background {spec.background!r}; known: {', '.join(BACKGROUNDS)}"
        )
    for noun, count in spec.counts:
        if count < 0:
            raise PocketError(f"a scene cannot hold {count} of {noun!r}: counts start at 0")
    if spec.total > HARD_LIMIT:
        raise PocketError(
            f"a pocket scene cannot hold {spec.total} objects: at most {HARD_LIMIT} fit as separate things"
        )
    labels = [noun_index(noun) for noun, count in spec.counts for _ in range(count)]
    return np.array(labels, dtype=np.int64)


def _place(labels: Array, rng: np.random.Generator, style: SceneStyle) -> tuple[list[Array], Array]:
    """Choose a sprite variant and a box for every object; smaller objects each time it gets too tight."""
    n = len(labels)
    if n == 0:
        return [], np.zeros((0, 4))
    side = style.size * min(style.largest, (style.coverage / n) ** 0.5)
    side *= rng.uniform(0.84, 1.04) if n > 3 else rng.uniform(0.65, 1.0)
    while side >= 0.08 * style.size:
        sides = side * rng.uniform(1 - style.jitter, 1 + style.jitter, n)
        rolls = rng.uniform(-style.rotation, style.rotation, n)
        flips = rng.random(n) < 0.5
        draws = _draws(n, rng, style)
        sprites = [
            _variant(int(k), _side(s, style.grid), round(r / 5) * 5, bool(f and style.mirror), d)
            for k, s, r, f, d in zip(labels, sides, rolls, flips, draws, strict=True)
        ]
        boxes = _lay_out(sprites, rng, style)
        if boxes is not None:
            return sprites, boxes
        side *= 0.96
    raise PocketError(
        f"{n} objects do not fit a picture of {style.size} pixels with at most "
        f"{style.max_overlap:.0%} overlap; ask for fewer or allow more overlap"
    )


def _draws(n: int, rng: np.random.Generator, style: SceneStyle) -> list[int]:
    """How far each object is drawn out, in tenths: negative ones are taller."""
    if not style.stretch:
        return [0] * n
    far = rng.uniform(-style.stretch, style.stretch, n)
    return [round(10 * d) if mine else 0 for d, mine in zip(far, rng.random(n) < 0.3, strict=True)]


def _side(side: float, grid: int) -> int:
    return max(5 if grid == 1 else 6, round(side / grid) * grid)


def _lay_out(sprites: list[Array], rng: np.random.Generator, style: SceneStyle) -> Array | None:
    """Put the largest first, each at the first of many random places that overlaps little enough."""
    heights = np.array([s.shape[0] for s in sprites])
    widths = np.array([s.shape[1] for s in sprites])
    boxes = np.zeros((len(sprites), 4))
    done: list[int] = []
    for i in np.argsort(-heights * widths):
        h, w = heights[i], widths[i]
        x = rng.integers(0, style.size - w + 1, 96) // style.grid * style.grid
        y = rng.integers(0, style.size - h + 1, 96) // style.grid * style.grid
        tries = np.stack([x, y, x + w, y + h], 1).astype(float)
        if done:
            placed = boxes[done]
            low = np.maximum(tries[:, None, :2], placed[None, :, :2])
            high = np.minimum(tries[:, None, 2:], placed[None, :, 2:])
            cover = (high - low).clip(0).prod(-1)
            area = np.minimum(h * w, (placed[:, 2] - placed[:, 0]) * (placed[:, 3] - placed[:, 1]))
            overlap = (cover / area).max(1)
            good = np.flatnonzero(overlap <= style.max_overlap)
            if not len(good):
                return None
            huddled = style.huddle and rng.random() < style.huddle
            boxes[i] = tries[good[overlap[good].argmax()] if huddled else good[0]]
        else:
            boxes[i] = tries[0]
        done.append(int(i))
    return boxes


def _strew_fragment(
    canvas: Array, boxes: Array, rng: np.random.Generator, style: SceneStyle
) -> None:
    """Put a thing that is not an object where it hides none: a piece, a ghost, or two kinds in one."""
    kind, other = rng.integers(len(NAMES), size=2)
    side = int(style.size * rng.uniform(0.10, 0.24))
    sprite = _variant(int(kind), side, 0, bool(rng.random() < 0.5)).copy()
    h, w = sprite.shape[:2]
    fate = rng.random()
    if fate < 0.55:  # a piece of at most two fifths
        keep = rng.uniform(0.2, 0.4)
        if rng.random() < 0.5:
            cut = max(2, int(w * keep))
            sprite = sprite[:, :cut] if rng.random() < 0.5 else sprite[:, w - cut :]
        else:
            cut = max(2, int(h * keep))
            sprite = sprite[:cut] if rng.random() < 0.5 else sprite[h - cut :]
    elif fate < 0.75:  # a ghost
        sprite *= rng.uniform(0.1, 0.3)
    elif kind != other:  # an average of two kinds, which is neither
        second = _variant(int(other), side, 0, False)
        hh, ww = min(h, second.shape[0]), min(w, second.shape[1])
        sprite = 0.5 * sprite[:hh, :ww] + 0.5 * second[:hh, :ww]
    h, w = sprite.shape[:2]
    for _ in range(8):
        x, y = int(rng.integers(0, style.size - w + 1)), int(rng.integers(0, style.size - h + 1))
        low = np.maximum([x, y], boxes[:, :2])
        high = np.minimum([x + w, y + h], boxes[:, 2:])
        if (high - low).clip(0).prod(-1).max(initial=0.0) <= 2:
            return _paste(canvas, sprite, x, y, 1.0)


def _paste(canvas: Array, sprite: Array, x: int, y: int, tint: float) -> None:
    """Lay a premultiplied RGBA sprite over the canvas, in place."""
    h, w = sprite.shape[:2]
    patch = canvas[y : y + h, x : x + w]
    patch *= 1 - sprite[..., 3:]
    patch += sprite[..., :3] * tint


@cache
def _sprite(label: int) -> Image.Image:
    with Image.open(NOUNS[label].sprite) as file:
        return file.convert("RGBA")


@lru_cache(maxsize=60_000)
def _variant(label: int, side: int, degrees: int, flip: bool, draw: int = 0) -> Array:
    """Float32 (h, w, 4) premultiplied sprite, its longer side about ``side``, cut to its visible box.

    ``draw`` tenths make it broader where positive, taller where negative, at about the same area.
    """
    sprite = _sprite(label)
    if flip:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if degrees:
        sprite = sprite.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    alpha = np.asarray(sprite)[..., 3] > 80
    rows, columns = np.where(alpha)
    sprite = sprite.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    scale = side / max(sprite.size)
    aspect = (1 + abs(draw) / 10) ** (0.5 if draw > 0 else -0.5)
    width, height = sprite.width * scale * aspect, sprite.height * scale / aspect
    size = (max(3, round(width)), max(3, round(height)))
    small = sprite.resize(size, Image.Resampling.LANCZOS)
    variant = np.asarray(small, dtype=np.float32) / 255
    variant[..., :3] *= variant[..., 3:]
    variant.setflags(write=False)
    return variant


# -- backgrounds ----------------------------------------------------------------------------------

_PALETTE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "table": ((176, 124, 76), (150, 100, 60), (196, 146, 98)),
    "grass": ((104, 160, 74), (84, 142, 62), (128, 176, 92)),
    "sky": ((132, 190, 236), (108, 172, 228), (160, 206, 240)),
    "sand": ((226, 202, 152), (214, 188, 136), (236, 214, 170)),
    "snow": ((232, 238, 246), (222, 230, 242), (240, 244, 250)),
    "road": ((112, 112, 118), (96, 96, 102), (132, 132, 136)),
    "carpet": ((140, 96, 150), (124, 82, 138), (156, 112, 166)),
    "paper": ((246, 244, 240), (250, 250, 250), (240, 238, 232)),
}


def _background(name: str, size: int, rng: np.random.Generator) -> Array:
    """Float32 (size, size, 3) picture of a background: a jittered colour and a soft texture."""
    palette = _PALETTE[name]
    colour = np.array(palette[int(rng.integers(len(palette)))], dtype=np.float32) / 255
    colour = colour + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    bank = _textures(name, size)
    texture = bank[int(rng.integers(len(bank)))]
    if rng.random() < 0.5:
        texture = texture[:, ::-1]
    return colour + texture


@lru_cache(maxsize=64)
def _textures(name: str, size: int, variants: int = 48) -> Array:
    """Float32 (variants, size, size, 3) textures with mean about zero, made once per size."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return np.stack([_texture(name, size, rng) for _ in range(variants)])


def _texture(name: str, size: int, rng: np.random.Generator) -> Array:
    def clouds(cells: int | tuple[int, int], strength: float) -> Array:
        cells_y, cells_x = (cells, cells) if isinstance(cells, int) else cells
        grid = Image.fromarray(rng.normal(size=(cells_y, cells_x)).astype(np.float32), "F")
        return strength * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))[..., None]

    flat = np.zeros((size, size, 3), np.float32)
    if name == "table":  # boards and grain
        board = clouds((5, 1), 0.035) + clouds((20, 3), 0.02)
        return flat + board * np.array([1.0, 0.85, 0.65], np.float32)
    if name == "grass":
        return (
            flat + clouds(5, 0.02) + clouds((16, 24), 0.025) * np.array([0.7, 1.0, 0.5], np.float32)
        )
    if name == "sky":
        slope = np.linspace(-0.06, 0.08, size, dtype=np.float32)[:, None, None]
        puff = np.clip(clouds((5, 3), 0.11), 0, None) * np.array([1.0, 0.7, 0.4], np.float32)
        return flat + slope * np.array([1.0, 0.6, 0.2], np.float32) + puff
    if name == "sand":
        return flat + clouds((7, 3), 0.02) + clouds(20, 0.012)
    if name == "snow":
        return flat + clouds(4, 0.015) * np.array([1.0, 0.8, 0.4], np.float32)
    if name == "road":
        return flat + clouds(4, 0.015) + clouds(22, 0.015)
    if name == "carpet":
        rows = np.sin(np.arange(size) * (2 * np.pi / 8)).astype(np.float32)
        weave = 0.012 * (rows[:, None] + rows[None, :])[..., None]
        return flat + weave + clouds(4, 0.012)
    return flat + clouds(3, 0.006)
