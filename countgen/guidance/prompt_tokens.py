"""Where a new word stands in a prompt."""

from __future__ import annotations

import re
from typing import Literal

from countgen.prompts import CountPrompt, number_word


def place_token(
    prompt: CountPrompt, token: str, place: Literal["before", "instead"]
) -> tuple[str, str]:
    """The prompt with a token before or instead of the number of its first target, and that number.

    Where the number does not stand in the text (targets that were given), the token comes first, and the
    number is empty.

    >>> from countgen import parse_prompt
    >>> place_token(parse_prompt("a photo of seven cats"), "<count>", "before")
    ('a photo of <count> seven cats', 'seven')
    """
    if prompt.targets:
        count = prompt.targets[0].count
        words = [str(count), number_word(count)]
        found = re.search(rf"\b(?:{'|'.join(map(re.escape, words))})\b", prompt.text, re.IGNORECASE)
        if found:
            number = found.group()
            put = token if place == "instead" else f"{token} {number}"
            return prompt.text[: found.start()] + put + prompt.text[found.end() :], number
    return f"{token} {prompt.text}", ""
