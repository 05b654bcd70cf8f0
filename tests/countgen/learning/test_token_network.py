"""One network for all count tokens: what it begins with, learns, keeps and changes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_pipelines import sd3_folder, sd_folder, tiny

from countgen import CountGuidedPipeline
from countgen.cli import main
from countgen.errors import UsageError
from countgen.guidance.methods import find_method
from countgen.guidance.tokens import LearnedToken
from countgen.guidance.variables import embeddings_of
from countgen.learning.draws import pocket_prompt
from countgen.learning.loop import TrainConfig
from countgen.learning.token_network import (
    NUMBERS,
    TokenNetwork,
    TokenNetworkConfig,
    TokenWords,
    encoders_of,
    told_numbers,
    train_token_network,
)
from countgen.pocket import load_critic
from countgen.prompts import CountPrompt, CountTarget
from critics.base import Critic
from pipelines.adapter import DiffusersAdapter

TRAIN = TrainConfig(steps=4, batch=2, learning_rate=1e-2, warmup=1, ema=0.5)
CONFIG = TokenNetworkConfig(TRAIN, objective="soft", hidden=8)
CATS = CountPrompt("three cats", (CountTarget("cat", 3),))
GRASS = CountPrompt("grass", ())


@pytest.fixture(scope="module")
def critic() -> Critic:
    return load_critic("pocket-detector-a")


def fresh(adapter: DiffusersAdapter) -> TokenWords:
    encoders = encoders_of(adapter)
    return TokenWords("tiny", encoders, TokenNetwork(sum(encoders.values()), 8))


def test_numbers_are_told_apart() -> None:
    told = told_numbers(torch.arange(21))
    assert told.shape == (21, NUMBERS)
    assert torch.cdist(told, told).add(torch.eye(21)).min() > 0.05


@pytest.mark.parametrize("family", ["sd-turbo", "sd3.5-large-turbo"])
def test_it_begins_as_the_word_and_depends_on_noun_and_number(tmp_path: Path, family: str) -> None:
    """One encoder and three; what has no number is told as it is."""
    adapter = tiny(family, (sd_folder if family == "sd-turbo" else sd3_folder)(tmp_path))
    words, plan = fresh(adapter), adapter.plan()
    start = {
        name: vector
        for name, vector in zip(
            words.encoders, embeddings_of(adapter.pipeline, "some"), strict=True
        )
    }
    same = LearnedToken("<count>", start).encode(adapter, [CATS], plan)
    found = words.encode(adapter, [CATS, GRASS], plan)
    torch.testing.assert_close(found.hidden[:1], same.hidden)
    torch.testing.assert_close(found.hidden[1:], adapter.encode(["grass"], plan).hidden)

    torch.nn.init.normal_(words.network.out.weight)
    four = CountPrompt("three cats", (CountTarget("cat", 4),))
    dogs = CountPrompt("three cats", (CountTarget("dog", 3),))
    rows = words.encode(adapter, [CATS, four, dogs, CATS], plan).hidden
    assert not rows.requires_grad
    torch.testing.assert_close(rows[0], rows[3])
    assert not torch.allclose(rows[0], rows[1]) and not torch.allclose(rows[0], rows[2])
    # A picture keeps its own token, with which alone it is drawn again.
    kept = words.token_for(adapter, four)
    assert kept is not None and words.token_for(adapter, GRASS) is None
    torch.testing.assert_close(kept.encode(adapter, [four], plan).hidden[0], rows[1])


def test_it_learns_resumes_is_read_again_and_changes_pictures(
    tmp_path: Path, critic: Critic
) -> None:
    sd_folder(tmp_path / "model")

    def train(out: str, config: TokenNetworkConfig = CONFIG, **options: object) -> TokenWords:
        adapter, prompts = tiny("sd-turbo", tmp_path / "model"), partial(pocket_prompt, 0)
        return train_token_network(adapter, critic, prompts, config, tmp_path / out, **options)

    whole = train("whole").network.state_dict()
    train("cut", stop_after=2)
    again = train("cut").network.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert whole["out.weight"].any()  # it has learnt something
    path = tmp_path / "cut" / "token-network.safetensors"
    read = TokenWords.load(path)
    assert all(torch.equal(whole[name], own) for name, own in read.network.state_dict().items())
    with pytest.raises(UsageError, match=r"keep 0\.01, now 0\.1"):
        train("cut", replace(CONFIG, keep=0.1))

    pipeline = CountGuidedPipeline(tiny("sd-turbo", tmp_path / "model"), critic)
    options = {"budget": 0.0, "seed": 4, "output_type": "pt"}
    plain = pipeline([CATS], guidance="none", **options)
    found = pipeline([CATS], guidance=f"token-network={path}", **options)
    assert torch.equal(found.noise.latents, plain.noise.latents)
    assert not torch.equal(found.images, plain.images)
    engine = pipeline([CATS], guidance=f"engine+token-network={path}", **options)
    assert torch.equal(engine.images, found.images)
    token = LearnedToken("<count>", {"text_encoder": torch.zeros(1, 16)})
    with pytest.raises(UsageError, match="leave the count token out"):
        pipeline([CATS], guidance=f"token-network={path}", token=token, **options)


def test_what_cannot_be_learnt_or_used_is_refused_in_a_sentence(
    tmp_path: Path, critic: Critic
) -> None:
    adapter = tiny("sd-turbo", sd_folder(tmp_path / "sd"))
    path = tmp_path / "token-network.safetensors"
    fresh(adapter).save(path)
    other = tiny("sd3.5-large-turbo", sd3_folder(tmp_path / "sd3"))
    with pytest.raises(UsageError, match="was learnt for tiny"):
        TokenWords.load(path).encode(other, [CATS], other.plan())
    with pytest.raises(UsageError, match="cannot begin with those of a network"):
        find_method(f"count-token+token-network={path}")
    with pytest.raises(UsageError, match="countgen learn token-network has written"):
        find_method("token-network")
    with pytest.raises(UsageError, match="no numbers"):
        train_token_network(adapter, critic, lambda number: GRASS, CONFIG, tmp_path / "out")
    with pytest.raises(UsageError, match="no counting loss 'best'"):
        replace(CONFIG, objective="best")
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        TokenWords.load(path)


def test_the_command_learns_what_a_method_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["learn", "token-network", "--steps", "1", "--batch", "1", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert find_method(f"token-network={path}").words is not None
