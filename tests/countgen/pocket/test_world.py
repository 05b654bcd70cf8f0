"""Scenes hold exactly what their spec says, and captions say exactly what scenes hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from countgen import parse_prompt
from countgen.pocket import unknown_words
from countgen.pocket.captions import caption, vocabulary, words
from countgen.pocket.scenes import SceneSpec, SceneStyle, compose, sample_spec
from countgen.pocket.suites import SUITES, hard_ids, suite
from countgen.pocket.world import BACKGROUNDS, MAX_OBJECTS, NAMES, NOUNS, PocketError, noun_index
from countgen.seeds import image_seed

seeds = st.integers(0, 2**62)


@st.composite
def specs(draw: st.DrawFn) -> SceneSpec:
    """One to three kinds, at most 20 objects in all."""
    nouns = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    left, counts = MAX_OBJECTS, []
    for _ in nouns:
        counts.append(draw(st.integers(0, left)))
        left -= counts[-1]
    ground = draw(st.none() | st.sampled_from(list(BACKGROUNDS)))
    return SceneSpec(tuple(zip(nouns, counts, strict=True)), ground)


@given(specs(), seeds)
@settings(max_examples=60, deadline=None)
def test_scene_holds_exactly_the_objects_of_its_spec(spec: SceneSpec, seed: int) -> None:
    scene = compose(spec, seed)
    found = {noun: int((scene.labels == noun_index(noun)).sum()) for noun, _ in spec.counts}
    assert found == dict(spec.counts)
    assert scene.boxes.shape == (spec.total, 4)
    assert (scene.boxes >= 0).all() and (scene.boxes <= scene.image.shape[0]).all()
    assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 3).all()


@given(specs(), seeds)
@settings(max_examples=30, deadline=None)
def test_objects_cover_one_another_no_more_than_the_style_allows(
    spec: SceneSpec, seed: int
) -> None:
    boxes = compose(spec, seed).boxes
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0)
            smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
            assert sides.prod() / smaller <= SceneStyle().max_overlap + 1e-6


def test_pixels_change_inside_the_boxes_and_nowhere_else() -> None:
    """The same seed with and without objects: backgrounds agree outside the boxes, sprites show inside."""
    style = SceneStyle(contrast=0.0)
    empty = compose(SceneSpec((("cat", 0),), "paper"), 5, style).image.astype(int)
    for noun in NAMES:
        scene = compose(SceneSpec(((noun, 3),), "paper"), 5, style)
        changed = np.abs(scene.image.astype(int) - empty).max(-1) > 24
        inside = np.zeros_like(changed)
        for x0, y0, x1, y1 in scene.boxes.astype(int):
            inside[y0:y1, x0:x1] = True
            assert changed[y0:y1, x0:x1].mean() > 0.2, noun
        assert not changed[~inside].any(), noun


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    spec = SceneSpec((("dog", 4), ("cup", 3)))
    first, again, other = compose(spec, 1), compose(spec, 1), compose(spec, 2)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SceneSpec((("cat", 200),)), "cannot hold 200 objects"),
        (SceneSpec((("cat", -1),)), "counts start at 0"),
        (SceneSpec((("unicorn", 2),)), "no 'unicorn'"),
        (SceneSpec((("apple", 2),)), "red apple"),
        (SceneSpec((("cat", 2),), "moon"), "no background 'moon'"),
    ],
)
def test_impossible_scenes_say_why(spec: SceneSpec, message: str) -> None:
    with pytest.raises(PocketError, match=message):
        compose(spec, 0)


def test_objects_that_do_not_fit_are_refused_rather_than_dropped() -> None:
    with pytest.raises(PocketError, match="do not fit"):
        compose(SceneSpec((("cat", 58),)), 0, SceneStyle(size=32, max_overlap=0.0))


def test_fragments_add_no_object_and_cover_none() -> None:
    spec = SceneSpec((("ball", 5),), "grass")
    style = SceneStyle(fragments=6)
    scene = compose(spec, 3, style)
    assert len(scene.labels) == 5
    plain = compose(spec, 3)
    assert not np.array_equal(scene.image, plain.image)


@given(specs(), seeds)
@settings(max_examples=150, deadline=None)
def test_captions_parse_back_to_the_counts_of_their_scene(spec: SceneSpec, seed: int) -> None:
    text = caption(spec, np.random.default_rng(seed))
    found = {target.noun: target.count for target in parse_prompt(text).targets}
    asked = dict(spec.counts)
    if set(asked.values()) == {1}:  # "a photo of a cat" names no count, by the article rule
        assert all(found.get(noun, 1) == 1 for noun in asked), text
    else:
        assert found == asked, text


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_captions_use_only_the_vocabulary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert set(words(caption(sample_spec(rng), rng))) <= set(vocabulary())


def test_sampled_scenes_reach_every_count_and_every_number_of_kinds() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_spec(rng) for _ in range(1500)]
    assert {spec.total for spec in drawn} == set(range(MAX_OBJECTS + 1))
    assert {len(spec.counts) for spec in drawn} == {1, 2, 3}
    assert {noun for spec in drawn for noun, _ in spec.counts} == set(NAMES)


def test_unknown_words_are_named_once_in_order() -> None:
    assert unknown_words("seven violet cats and violet dogs by night") == ("violet", "by", "night")
    assert unknown_words("seven red apples on a table") == ()


def test_nouns_are_found_in_singular_plural_and_any_case() -> None:
    for i, noun in enumerate(NOUNS):
        assert noun_index(noun.name) == noun_index(f"  {noun.plural.upper()} ") == i
        assert noun.sprite.is_file()


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_fixed_and_their_prompts_parse_to_their_targets(name: str) -> None:
    prompts = suite(name)
    assert prompts == suite(name)
    assert len({p.id for p in prompts}) == len(prompts)
    for prompt in prompts:
        found = tuple((t.noun, t.count) for t in parse_prompt(prompt.prompt).targets)
        assert found == prompt.targets, prompt.prompt
        assert not unknown_words(prompt.prompt)


def test_suites_hold_what_their_names_say() -> None:
    totals = {name: [sum(c for _, c in p.targets) for p in suite(name)] for name in SUITES}
    kinds = {name: {len(p.targets) for p in suite(name)} for name in SUITES}
    assert set(totals["pocket-small"]) == set(range(1, 11)) and kinds["pocket-small"] == {1}
    assert set(totals["pocket-dense"]) == set(range(11, 21)) and kinds["pocket-dense"] == {1}
    assert kinds["pocket-multi"] == {2, 3} and max(totals["pocket-multi"]) <= MAX_OBJECTS
    assert kinds["pocket-dev"] == {1, 2, 3}
    dev = {p.prompt for p in suite("pocket-dev")}
    assert not dev & {p.prompt for name in SUITES[1:] for p in suite(name)}


def test_the_hard_third_is_part_of_the_reported_suites_and_not_empty() -> None:
    hard = suite("pocket-hard")
    assert [p.id for p in hard] == list(hard_ids()) and hard
    assert not any(p.id.startswith("pocket-dev") for p in hard)


def test_unknown_suites_are_refused_with_the_list() -> None:
    with pytest.raises(PocketError, match="pocket-dense"):
        suite("pocket-huge")


def test_image_seeds_depend_on_every_part_and_fit_a_generator() -> None:
    import torch

    base = image_seed(0, "a", 0, 0)
    others = [
        image_seed(1, "a"),
        image_seed(0, "b"),
        image_seed(0, "a", 1),
        image_seed(0, "a", 0, 1),
    ]
    assert len({base, *others}) == 5
    assert image_seed(0, "a") == base
    torch.Generator().manual_seed(max(base, *others))
