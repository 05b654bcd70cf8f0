"""Where a noun phrase ends: "red apples", not "on a table"; "goat", not "goat stand".

There is no tagger. The lexicon says what each word can be, and the phrase decides: the head of a plural
phrase is its first plural (a verb agrees with it and so has no s), and a singular phrase ends at a function
word or at the first word that, behind a noun, is more likely a verb, an adverb or an adjective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from countgen.prompts.lexicon import (
    is_ing_verb,
    is_participle,
    may_be_noun,
    may_describe,
    only_adverb_or_adjective,
    only_describes,
    parts_of_speech,
)
from countgen.prompts.nouns import singular_of, singularise
from countgen.prompts.numbers import Number
from countgen.prompts.tokens import Tokens
from countgen.prompts.words import (
    ARTICLES,
    BEHIND_NOUN,
    CAN_OF,
    COLOURS_AND_MATERIALS,
    COMPOUNDING,
    DEFINITE,
    FILLERS,
    FUNCTION_WORDS,
    LABELS,
    PORTIONS,
    POSTURES,
    TRANSITIVE,
    words_of,
)

_MAX_PHRASE = 8
_JOINTS = words_of("and & ,")
_MISSPELT_POSSESSIVES = words_of("mens womens childrens")
_PERSONS = words_of("man woman child person boy girl lady guy kid")


class Phrase(NamedTuple):
    """The words of a noun phrase, none if there is none, and the token behind it."""

    words: list[str]
    end: int

    @property
    def head(self) -> str:
        """The last word, or the one before "of"."""
        words = self.words[: self.words.index("of")] if "of" in self.words else self.words
        return words[-1] if words else ""

    @property
    def is_plural(self) -> bool:
        """Whether the head is a plural."""
        return bool(self.words) and singular_of(self.head) is not None


def only_adjectives(words: Sequence[str]) -> bool:
    """Say whether words name nothing: "red", "black and white", "broken"."""
    return all(word in ("and", "&") or only_describes(word) for word in words)


def names_nothing(words: Sequence[str]) -> bool:
    """Say whether no word is a noun: "holding", "glowing brighter", "intact"."""
    return all(
        word in ("and", "&") or only_describes(word) or is_ing_verb(word) or not _nominal(word)
        for word in words
    )


def _nominal(word: str) -> bool:
    return may_be_noun(word) or singular_of(word) is not None


class PhraseReader:
    """Reads noun phrases out of tokens; ``numbers`` end them."""

    def __init__(self, tokens: Tokens, numbers: Mapping[int, Number]) -> None:
        self.tokens = tokens
        self.numbers = numbers
        self.number_ends = {number.end for number in numbers.values()}

    def read(self, start: int, count: int, *, collective: bool = False) -> Phrase:
        """Return the noun phrase at ``start``, to the end of its head.

        After a portion ("slices of pizza") what it is a portion of belongs to it. ``collective``: a verb in
        the singular may follow the plural ("a pair of swans glides").
        """
        while self.tokens.word(start) in FILLERS:
            start += 1
        phrase = self._to_head(start, count, collective)
        of_what = self.complement(phrase)
        if of_what.words and singularise(phrase.words[-1]) in PORTIONS:
            return Phrase([*phrase.words, "of", *of_what.words], of_what.end)
        return phrase

    def complement(self, phrase: Phrase) -> Phrase:
        """Return what follows "of" behind a phrase, if it has neither article nor number: "(cup) of tea"."""
        if not phrase.words or self.tokens.word(phrase.end) != "of":
            return Phrase([], phrase.end)
        return self._to_head(phrase.end + 1, 2, False)

    def before(self, end: int) -> tuple[int, list[str]]:
        """Return where the noun phrase starts that ends before token ``end``, and its words."""
        start = end
        while end - start < 4 and not self._ends(start - 1):
            start -= 1
        return start, [self.tokens.word(i) for i in range(start, end)]

    # ------------------------------------------------------------------------------------------

    def _ends(self, i: int) -> bool:
        token = self.tokens.at(i)
        if token.word == "can":  # "one trash can"
            return self.tokens.word(i - 1) not in CAN_OF and i not in self.number_ends
        return not token.is_word or token.word in FUNCTION_WORDS or i in self.numbers

    def _is_name_part(self, i: int) -> bool:
        """Say whether the number at ``i`` belongs to a name within a phrase: "four Formula 1 cars"."""
        number, name = self.numbers.get(i), self.tokens.at(i - 1)
        if number is None or not number.digits or number.end != i + 1 or self._ends(i + 1):
            return False
        return name.word in LABELS or not name.raw.islower()

    def _to_head(self, start: int, count: int, collective: bool) -> Phrase:
        span = self._span(start, count)
        if not span:
            return Phrase([], start)
        words = ["and" if self.tokens.word(i) == "&" else self.tokens.word(i) for i in span]
        if words[0] in TRANSITIVE and len(words) > 1 and words[0] != "playing":
            return Phrase([], start)  # "three wearing hats"
        cut = _plural_cut(words, collective) if count != 1 else 0
        if not cut:
            if len(span) == _MAX_PHRASE:
                return Phrase([], start)  # a run of words without an end in sight is no noun
            cut = self._singular_cut(span, words, start, count)
        if names_nothing(words[:cut]) and not only_adjectives(words[:cut]):
            return Phrase([], start)  # "five posing"
        return Phrase(words[:cut], span[cut - 1] + 1)

    def _span(self, start: int, count: int) -> list[int]:
        """Return the tokens up to the end of the phrase, over "and" and commas between adjectives."""
        span: list[int] = []
        i = start
        while len(span) < _MAX_PHRASE:
            if not self._ends(i) or (span and count != 1 and self._is_name_part(i)):
                span.append(i)
            elif span and self.tokens.word(i) in _JOINTS and self._goes_on(span, i, count):
                if self.tokens.word(i) == ",":
                    i += 1
                if self.tokens.word(i) in ("and", "&"):
                    span.append(i)
                else:
                    continue
            else:
                break
            i += 1
        return span

    def _goes_on(self, span: Sequence[int], joint: int, count: int) -> bool:
        """Say whether a comma or "and" stands between adjectives of one noun: "two sleek, modern lamps"."""
        words = [self.tokens.word(k) for k in span]
        after = joint + 1
        if self.tokens.word(joint) == "," and self.tokens.word(after) in ("and", "&"):
            after += 1
        if self._ends(after):
            return False
        run = [self.tokens.word(after)]
        while len(run) < _MAX_PHRASE and not self._ends(after + len(run)):
            run.append(self.tokens.word(after + len(run)))
        first_can = may_describe(run[0])
        if count == 1:
            colours = only_describes(run[0]) and all(may_describe(w) or w == "and" for w in words)
            strict = only_adjectives(words) or (colours and words == ["orange"])
            first_can = first_can and not is_ing_verb(run[0])
            if any(singular_of(word) is not None for word in run):
                return False  # "one green, two cars"
            return strict and first_can and (len(run) > 1 or self._more_adjectives(after + 1))
        if not all(may_describe(w) or w == "and" for w in words):
            return False
        if any(singular_of(w) is not None for w in words):
            return False
        has_head = any(singular_of(w) is not None for w in run)
        if has_head:
            return first_can or singular_of(run[0]) is None
        return (
            first_can
            and (only_adjectives(words) and only_adjectives(run))
            and (self._more_adjectives(after + len(run)) or len(run) > 1)
        )

    def _more_adjectives(self, i: int) -> bool:
        """Say whether at ``i`` another joint and describing word follow, so that the list has not ended."""
        if self.tokens.word(i) not in _JOINTS:
            return False
        i += 2 if self.tokens.word(i + 1) in _JOINTS else 1
        return not self._ends(i) and may_describe(self.tokens.word(i))

    def _singular_cut(
        self, span: Sequence[int], words: Sequence[str], start: int, count: int
    ) -> int:
        """Return how many words come before the verb: "cat sleeping", "cat sits", "cat asleep"."""
        # A verb without s needs several subjects: "one hen and one goat stand".
        several = count != 1 or self._closes_list(start)
        named = False
        for k, word in enumerate(words):
            if named and word not in ("and", "&") and self._is_no_noun(span, words, k, several):
                cut = k
                break
            named = named or (
                may_be_noun(word) and not only_describes(word) and not is_ing_verb(word)
            )
        else:
            cut = len(words)
        while cut > 1 and _stands_behind(words[cut - 1]) and not names_nothing(words[: cut - 1]):
            cut -= 1
        return cut

    def _closes_list(self, start: int) -> bool:
        """Say whether the phrase at ``start`` is the last of a list, so that its verb is a plural."""
        before = start - 1
        while self.tokens.word(before) in ARTICLES | DEFINITE or before in self.numbers:
            before -= 1
        return self.tokens.word(before) in ("and", "&", "plus")

    def _is_no_noun(self, span: Sequence[int], words: Sequence[str], k: int, several: bool) -> bool:
        """Say whether word ``k``, which stands behind a noun, is a verb or an adverb."""
        word = words[k]
        following = words[k + 1] if k + 1 < len(words) else ""
        parts = parts_of_speech(word)
        if is_ing_verb(word):
            return True
        if singular_of(word) not in (None, word):
            return True  # a singular has no plural head, so this is "sits"
        if is_participle(word):  # "one snow covered mountain", "one apple placed nearby"
            return not following or word not in COMPOUNDING or singular_of(following) is not None
        if "noun" not in parts:
            if "verb" in parts and "adj" not in parts:
                return True  # "flew", "sits"
            if "adj" not in parts:
                return True  # "gracefully"
            return not following
        if not several or "verb" not in parts or following:
            return False
        behind = self.tokens.word(span[k] + 1)
        takes_object = behind in ARTICLES | DEFINITE or span[k] + 1 in self.numbers
        return takes_object or word in POSTURES


def _stands_behind(word: str) -> bool:
    """Say whether a word at the end of a phrase describes the noun before it ("asleep", "full")."""
    return word in BEHIND_NOUN or (
        only_adverb_or_adjective(word) and word not in COLOURS_AND_MATERIALS
    )


def _plural_cut(words: Sequence[str], collective: bool) -> int:
    """Return how many words end with the plural that heads the phrase, else 0."""
    for k, word in enumerate(words):
        if k and is_ing_verb(word) and (words[k - 1] in _PERSONS or word in TRANSITIVE):
            return 0  # "two man playing cards", "two mantis wearing hats"
        if word in _MISSPELT_POSSESSIVES and any(singular_of(w) for w in words[k + 1 :]):
            continue  # "two mens wine glasses"
        if singular_of(word) is not None and not (k and is_participle(word)):
            return _over_compound(words, k + 1, collective)
    return 0


def _over_compound(words: Sequence[str], cut: int, collective: bool) -> int:
    """Go over further plurals ("sports balls", "girls dresses"), but not over a verb ("men fish")."""
    while cut < len(words):
        word = words[cut]
        singular = singular_of(word)
        if singular is None:
            break
        if "verb" in parts_of_speech(word) and (collective or singular == word):
            break
        cut += 1
    return cut
