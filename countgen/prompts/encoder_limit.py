"""Counted nouns that the text encoder never reads, because the prompt is longer than it takes.

Text encoders read so many tokens (CLIP: 77) and drop the rest. What is counted there is optimised and checked
nevertheless, but the generator has not heard of it: the user should know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from countgen.prompts.nouns import pluralise, singularise
from countgen.prompts.parsing import CountPrompt, parse_prompt
from critics.targets import CountTarget


def kept_text(tokenizer: Any, text: str, limit: int | None = None) -> str:
    """Return the beginning of a text that a tokenizer keeps when it truncates.

    Args:
        tokenizer: a tokenizer of transformers.
        limit: most tokens, special ones included; the tokenizer's own ``model_max_length`` if None.
    """
    arguments: dict[str, Any] = {"truncation": True}
    if limit is not None:
        arguments["max_length"] = limit
    if getattr(tokenizer, "is_fast", False):
        spans = tokenizer(text, return_offsets_mapping=True, **arguments)["offset_mapping"]
        return text[: max((end for _, end in spans), default=0)]
    tokens = tokenizer(text, **arguments)["input_ids"]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def beyond_limit(prompt: CountPrompt, kept: str) -> tuple[str, ...]:
    """Return one note, if targets of a prompt are named only in the part that the encoder does not read.

    Args:
        kept: what the encoder reads of ``prompt.text`` (``kept_text``); of several encoders, the longest.
            Letter case and spaces may differ from the prompt's, as tokenizers decode them.

    >>> prompt = parse_prompt("two cats on a long sofa and three dogs")
    >>> beyond_limit(prompt, "two cats on a long sofa")[0].partition(";")[0]
    "The text encoder reads only up to 'a long sofa', so '3 dogs' will hardly be drawn"
    """
    end = _end_of(prompt.text, kept)
    if not prompt.text[end:].strip():
        return ()
    lost = list(_lost(prompt, end))
    if not lost:
        return ()
    said = " and ".join(f"'{t.count} {pluralise(t.noun, t.count)}'" for t in lost)
    last = " ".join(prompt.text[:end].split()[-3:])
    return (
        f"The text encoder reads only up to {last!r}, so {said} will hardly be drawn; "
        "shorten the prompt, or name what is counted at its beginning.",
    )


def _end_of(text: str, kept: str) -> int:
    """Return where in ``text`` the letters and digits of ``kept`` are used up, back at the end of a word."""
    left = sum(map(str.isalnum, kept))
    end = 0
    while end < len(text) and left >= text[end].isalnum():
        left -= text[end].isalnum()
        end += 1
    while 0 < end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end -= 1  # half a word is not read as that word
    return end


def _lost(prompt: CountPrompt, end: int) -> Iterator[CountTarget]:
    if prompt.targets == parse_prompt(prompt.text).targets:
        read = parse_prompt(prompt.text[:end]).targets
        yield from (target for target in prompt.targets if target not in read)
        return
    for target in prompt.targets:  # given by the user, so that the prompt may not name them at all
        said = [match.start() for match in _spoken(target.noun).finditer(prompt.text)]
        if said and min(said) >= end:
            yield target


def _spoken(noun: str) -> re.Pattern[str]:
    forms = sorted({noun.lower(), singularise(noun), pluralise(noun)}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b", re.IGNORECASE)
