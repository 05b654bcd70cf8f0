"""What is counted beyond the text encoder's limit is noted, by the truncation of real tokenizers."""

from __future__ import annotations

import pytest
from letter_tokenizer import letters
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from countgen.pocket.world import FOLDER
from countgen.prompts import CountTarget, beyond_limit, kept_text, parse_prompt


@pytest.fixture(scope="module")
def pocket() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER / "generator" / "tokenizer_2")


def test_nothing_is_noted_of_a_prompt_that_fits(pocket: PreTrainedTokenizerBase) -> None:
    prompt = parse_prompt("seven red apples on a table")
    assert kept_text(pocket, prompt.text) == prompt.text
    assert beyond_limit(prompt, kept_text(pocket, prompt.text)) == ()


def test_a_counted_noun_beyond_the_limit_is_noted_once(pocket: PreTrainedTokenizerBase) -> None:
    text = "seven red apples on a table " * 20 + "and two cats and three dogs"
    prompt = parse_prompt(text)
    (note,) = beyond_limit(prompt, kept_text(pocket, text))
    assert "'2 cats' and '3 dogs'" in note
    assert "red apples'" not in note.partition("so ")[2]


def test_words_that_pocket_does_not_know_are_no_shift(pocket: PreTrainedTokenizerBase) -> None:
    text = "xylophones zithers " * 4 + "two cats"
    kept = kept_text(pocket, text, limit=9)
    assert text.startswith(kept)
    assert (beyond_limit(parse_prompt(text), kept) == ()) == ("two cats" in kept)


@pytest.mark.parametrize("limit", range(2, 30))
def test_the_note_comes_exactly_when_the_noun_is_cut(limit: int) -> None:
    text = "two Cats and one dog"
    kept = kept_text(letters(), text, limit)  # a token a letter, and two special ones
    read = text.replace(" ", "")[: limit - 2]
    assert kept.replace(" ", "") == read
    (note,) = beyond_limit(parse_prompt(text), kept) or ("",)
    assert ("'2 cats'" in note) == (len(read) < len("twoCats"))
    assert ("'1 dog'" in note) == (len(read) < len("twoCatsandonedog"))


def test_decoded_text_serves_too() -> None:
    prompt = parse_prompt("Two  Cats, and THREE dogs")
    assert beyond_limit(prompt, "two cats , and three dogs") == ()
    (note,) = beyond_limit(prompt, "two cats , and")
    assert "'3 dogs'" in note


def test_targets_that_the_user_gave_are_noted_only_where_the_prompt_names_them() -> None:
    text = "my birthday with a cake and candles"
    prompt = parse_prompt(text, {"candle": 9, "balloon": 3})
    (note,) = beyond_limit(prompt, "my birthday with a cake")
    assert "'9 candles'" in note
    assert "balloon" not in note
    assert (
        beyond_limit(parse_prompt(text, [CountTarget("cake", 1)]), "my birthday with a cake") == ()
    )


def test_a_prompt_without_counts_has_no_note() -> None:
    assert beyond_limit(parse_prompt("a very long prompt"), "a very") == ()
