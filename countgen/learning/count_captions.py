"""Captions that count one thing, and what they would say of another number.

"Teaching CLIP to Count to Ten" (Paiss et al., arXiv 2302.12066) learns from captions with a spelled number
and from their counterfactuals, the same captions with the number exchanged. There the numbers are the words
two to ten. Here any number that ``countgen.prompts`` understands may be exchanged, digits for digits and
words for words, down to "no cats" and "one cat", where the noun follows the number into the singular.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from countgen.prompts import number_word, parse_prompt, pluralise
from countgen.prompts.numbers import find_numbers
from countgen.prompts.tokens import tokenise


@dataclass(frozen=True)
class CountCaption:
    """A caption with exactly one count.

    Attributes:
        noun: what is counted, in the singular.
        number: how many the caption says there are.
        before, after: the text around the number and, where it follows at once, its noun.
        written: the number as it stands there.
        inflects: whether the noun follows the number at once, so that it can be put into the singular;
        without
            it the caption can only say other numbers from two on.
    """

    text: str
    noun: str
    number: int
    before: str
    written: str
    after: str
    inflects: bool

    def say(self, number: int) -> str:
        """The caption with another number.

        >>> caption = count_caption("Five dogs in the snow")
        >>> caption.say(2), caption.say(1), caption.say(0)
        ('Two dogs in the snow', 'One dog in the snow', 'No dogs in the snow')
        >>> count_caption("a photo of 1 red apple").say(3)
        'a photo of 3 red apples'

        Raises:
            ValueError: zero or one of a noun that does not stand behind the number.
        """
        if number == self.number:
            return self.text
        if number < 2 and not self.inflects:
            raise ValueError(
                f"{self.text!r} cannot say {number}: its noun does not follow the number"
            )
        words = str(number)
        if not self.written.isdecimal():
            words = number_word(number) if number else "no"
            if self.written.isupper():
                words = words.upper()
            elif self.written[:1].isupper():
                words = words.capitalize()
        thing = ""
        if self.inflects:
            thing = f" {self.noun if number == 1 else pluralise(self.noun)}"
        return f"{self.before}{words}{thing}{self.after}"


def count_caption(text: str) -> CountCaption | None:
    """The caption as one that counts, or None: it has no count, several, or one that cannot be exchanged.

    >>> count_caption("two cats and three dogs"), count_caption("a cat"), count_caption("room 7")
    (None, None, None)
    """
    targets = parse_prompt(text).targets
    if len(targets) != 1:
        return None
    noun, count = targets[0].noun, targets[0].count
    tokens = tokenise(text, [])
    numbers = [found for found in find_numbers(tokens).values() if found.value is not None]
    if len(numbers) != 1 or numbers[0].value != count:
        return None
    said = tokens.said(numbers[0].start, numbers[0].end)
    places = list(re.finditer(rf"(?<![\w-]){re.escape(said)}(?![\w-])", text))
    if len(places) != 1:
        return None
    before, after = text[: places[0].start()], text[places[0].end() :]
    named = "|".join(re.escape(name) for name in (pluralise(noun), noun))
    thing = re.match(rf"\s+(?:{named})(?![\w-])", after, re.IGNORECASE)
    if thing is None and count < 2:
        return None
    rest = after[thing.end() :] if thing else after
    return CountCaption(text, noun, count, before, places[0].group(), rest, thing is not None)
