"""Screening: what it learns from draws, and the best of many noises as a method's first one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_pipelines import sd_folder, tiny

from countgen import CountGuidedPipeline
from countgen.errors import UsageError
from countgen.guidance.base import Start
from countgen.guidance.methods import find_method
from countgen.learning.draws import DrawnBoxes, draw, look, noise_of, pocket_prompt, read_draws
from countgen.learning.loop import TrainConfig
from countgen.learning.screening import (
    MOST,
    Examples,
    Screening,
    ScreeningNetwork,
    Shape,
    screening_loss,
    train_screening,
)
from countgen.pocket import load_adapter, load_critic
from countgen.prompts import CountPrompt, CountTarget

CONFIG = TrainConfig(steps=6, batch=8, learning_rate=1e-2, warmup=1, ema=0.5)
CATS = CountPrompt("three cats", (CountTarget("cat", 3),))
PAIR = CountPrompt("a dog and two cups", (CountTarget("dog", 1), CountTarget("cup", 2)))


@pytest.fixture(scope="module")
def adapter() -> object:
    return load_adapter()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, adapter: object) -> list[DrawnBoxes]:
    path = tmp_path_factory.mktemp("draws") / "draws.jsonl"
    critic = load_critic("pocket-detector-a")
    return draw(adapter, critic, partial(pocket_prompt, 0), 24, path, batch=12)


@pytest.fixture
def untrained() -> Screening:
    torch.manual_seed(0)
    network = ScreeningNetwork(Shape(8, 256, 2, width=16, blocks=1))
    torch.nn.init.normal_(network.blocks[0].second.weight)
    return Screening(network, "pocket", looks=6)


def test_draws_are_made_again_from_their_seeds_and_go_on(
    tmp_path: Path, adapter: object, drawn: list[DrawnBoxes]
) -> None:
    critic, prompts = load_critic("pocket-detector-a"), partial(pocket_prompt, 0)
    path = tmp_path / "draws.jsonl"
    draw(adapter, critic, prompts, 5, path, batch=4)
    with path.open("a") as file:
        file.write('{"seed": 1, "pro')  # as a kill leaves it
    assert draw(adapter, critic, prompts, 9, path, batch=4) == read_draws(path)
    assert [row.seed for row in read_draws(path)] == [row.seed for row in drawn[:9]]
    # The boxes are those of the picture that this noise becomes.
    row = next(row for row in drawn if row.boxes[0])
    prompt = CountPrompt(row.text, tuple(CountTarget(n, c) for n, c in row.targets))
    (again,) = look(adapter, critic, adapter.plan(), [prompt], [row.seed])
    assert [len(b) for b in again.boxes] == [len(b) for b in row.boxes]
    assert all(0 <= value <= 1 for box in row.boxes[0] for value in box)
    with pytest.raises(UsageError, match="gives none; take a detector"):
        draw(adapter, load_critic("pocket-density"), prompts, 3, tmp_path / "other.jsonl")
    path.write_text("nonsense\n")
    with pytest.raises(UsageError, match="line 1"):
        read_draws(path)


def test_examples_say_what_was_found(adapter: object, drawn: list[DrawnBoxes]) -> None:
    examples = Examples(adapter, drawn)
    batch = examples.batch([0, 1, 2], 2)
    rows = [(row, k) for row in drawn[:3] for k in range(len(row.targets))]
    assert batch["wanted"].tolist() == [row.targets[k][1] for row, k in rows]
    assert batch["found"].tolist() == [len(row.boxes[k]) for row, k in rows]
    assert batch["centres"].shape[1:] == (8, 8)
    assert (batch["centres"].sum((1, 2)) <= batch["found"]).all()
    noise = noise_of(adapter, adapter.plan(), [drawn[0].seed]).latents
    assert torch.equal(batch["noise"][0], noise[0])


def test_it_learns_resumes_and_is_read_again(
    tmp_path: Path, adapter: object, drawn: list[DrawnBoxes]
) -> None:
    whole = train_screening(adapter, drawn, tmp_path / "whole", CONFIG)
    train_screening(adapter, drawn, tmp_path / "cut", CONFIG, stop_after=3)
    again = train_screening(adapter, drawn, tmp_path / "cut", CONFIG)
    state = whole.network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in again.network.state_dict().items())
    read = Screening.load(tmp_path / "cut" / "screening.safetensors")
    assert all(torch.equal(state[k], v) for k, v in read.network.state_dict().items())
    with pytest.raises(UsageError, match="too few"):
        train_screening(adapter, drawn[:3], tmp_path / "few", CONFIG)


def test_the_loss_falls_on_what_is_learnt(adapter: object, drawn: list[DrawnBoxes]) -> None:
    torch.manual_seed(0)
    network = ScreeningNetwork(Shape(8, 256, 2, width=16, blocks=1))
    batch = Examples(adapter, drawn).batch(range(16), 2)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = screening_loss(network, batch)["loss"]
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


def test_the_likeliest_noise_is_chosen_whatever_the_batch(
    adapter: object, untrained: Screening
) -> None:
    plan = adapter.plan()
    first = noise_of(adapter, plan, [1, 2])
    told = adapter.encode([CATS.text, PAIR.text], plan)
    start = Start(first, told, (CATS, PAIR), (11, 12), adapter, plan)
    together = untrained(start, [0, 3])
    for row, (prompt, seed, number) in enumerate([(CATS, 11, 0), (PAIR, 12, 3)]):
        one = Start(first.pick(row), told.pick([row]), (prompt,), (seed,), adapter, plan)
        assert torch.equal(untrained(one, [number]).latents[0], together.latents[row])
        # It is no worse than its own first noise by the network's word.
        targets = [(t.noun, t.count) for t in prompt.targets]
        features = torch.cat([told.hidden[row].mean(0), told.pooled[row]])
        own = untrained.scores(first.pick(row), features, targets, adapter, plan)
        best = untrained.scores(together.pick(row), features, targets, adapter, plan)
        assert float(best) >= float(own)
    assert not torch.equal(together.latents, first.latents)
    assert torch.equal(untrained(start, [0, 4]).latents[0], together.latents[0])
    assert not torch.equal(untrained(start, [0, 4]).latents[1], together.latents[1])


def test_as_a_method_its_looks_are_priced(tmp_path: Path, untrained: Screening) -> None:
    path = tmp_path / "screening.safetensors"
    untrained.save(path)
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    draw = {"budget": 0.0, "seed": 4}
    plain = pipeline([CATS, PAIR], guidance="none", **draw)
    screened = pipeline([CATS, PAIR], guidance=f"screening={path}", **draw)
    flops = pipeline.adapter.flops(pipeline.adapter.plan())
    unit = 8 * flops["denoiser"].forward + flops["decoder"].forward
    for i, kinds in ((0, 1), (1, 2)):
        more = screened.history[i][0].pre - plain.history[i][0].pre
        price = untrained.flops(pipeline.adapter, pipeline.adapter.plan(), kinds) / unit
        assert more == pytest.approx(price, rel=1e-6) and more > 0
        assert screened.history[i][0].drift == 0  # the noise that it begins with is the chosen one
    assert screened.cost.forwards["first"] == 2
    assert not torch.equal(screened.noise.latents, plain.noise.latents)
    # The picture comes again from its noise, and the engine begins with the same.
    again = pipeline([CATS, PAIR], guidance="none", latents=screened.noise, budget=0.0)
    assert again.counts == screened.counts
    found = pipeline([CATS], guidance=f"engine+screening={path}", **draw)
    assert torch.equal(found.noise.latents[0], screened.noise.latents[0])


def test_what_is_wrong_is_told(tmp_path: Path, untrained: Screening) -> None:
    with pytest.raises(UsageError, match="screening=FILE"):
        find_method("screening")
    with pytest.raises(UsageError, match="there is no file"):
        find_method("engine+screening=nowhere")
    with pytest.raises(UsageError, match="no method 'reno2"):
        find_method("reno2+screening=nowhere")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(UsageError, match="cannot be read"):
        find_method(f"screening={broken}")
    path = tmp_path / "screening.safetensors"
    untrained.save(path)
    with pytest.raises(UsageError, match="of another kind; countgen learn noise"):
        find_method(f"amortised={path}")
    other = CountGuidedPipeline(
        tiny("sd-turbo", sd_folder(tmp_path / "sd")), load_critic("pocket-detector-a")
    )
    with pytest.raises(UsageError, match="learnt for pocket, and sd-turbo has other"):
        other(CATS, guidance=f"screening={path}", budget=0)
    with pytest.raises(UsageError, match="at least, not 0"):
        Screening(untrained.network, "pocket", looks=0)


def test_counts_beyond_the_largest_are_the_largest(adapter: object) -> None:
    torch.manual_seed(0)
    network = ScreeningNetwork(Shape(8, 256, 2, width=16, blocks=1))
    many = DrawnBoxes(1, "50 cats", (("cat", 50),), (tuple([(0.1, 0.1, 0.2, 0.2)] * 50),))
    batch = Examples(adapter, [many]).batch([0], 2)
    losses = screening_loss(network, batch)
    assert all(torch.isfinite(value) for value in losses.values())
    noise = noise_of(adapter, adapter.plan(), [1])
    scores = Screening(network, "pocket").scores(
        noise, torch.zeros(256), [("cat", MOST + 9)], adapter, adapter.plan()
    )
    assert torch.isfinite(scores).all()
    assert json.loads(json.dumps(many.targets)) == [["cat", 50]]
