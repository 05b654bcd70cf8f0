"""Numbers and articles with their nouns, and a note for each number that was seen and not understood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from countgen.prompts.lexicon import is_ing_verb, may_be_noun
from countgen.prompts.measures import YEAR, is_no_count, is_no_object
from countgen.prompts.nouns import SOLD_IN_PAIRS, pluralise, singular_of, singularise
from countgen.prompts.numbers import NEGATIVE, Number, as_written, find_numbers
from countgen.prompts.phrases import Phrase, PhraseReader
from countgen.prompts.tokens import Tokens
from countgen.prompts.words import (
    ABBREVIATED_UNITS,
    AND,
    ARTICLES,
    COLLECTIVES,
    DEFINITE,
    DEPICTIONS,
    EACH,
    FILLERS,
    FUNCTION_WORDS,
    LABELS,
    NOT_AFTER_NO,
    NUMBER_SIGNS,
    PORTIONS,
    PREPOSITIONS,
    PRONOUN_BEFORE_ONE,
    READING,
    SAYING,
    SENTENCE_ENDS,
    STRONG_UNITS,
    VAGUE,
    WEAK_UNITS,
    words_of,
)
from critics.targets import MAX_COUNT

TOO_MANY = "is too many for"
"""How the note on a count above the limit can be told from the other notes."""

_OPENS_LIST = words_of("with between like of")
_LIST_OF = DEPICTIONS | words_of("consisting made full composed")
_BESIDE = words_of("left right top front back")
_QUANTIFIERS = words_of("some most any none half which last another each")
_OR_SO = words_of("more fewer less so")
_SETS = words_of("set pack lot group box")
_OPENING = words_of("( [")
_CLOSING = words_of(") ]")


@dataclass
class Mention:
    """A number or an article with the noun phrase behind it; without words it names nothing."""

    start: int
    end: int
    count: int
    words: list[str] = field(default_factory=list)
    article: bool = False

    @property
    def noun(self) -> str:
        """The noun phrase in the singular."""
        if "of" in self.words:  # "bunches of bananas"
            cut = self.words.index("of")
            return " ".join([singularise(" ".join(self.words[:cut])), *self.words[cut:]])
        return singularise(" ".join(self.words))


class MentionReader:
    """Walks over the tokens once and yields every number or article that has a noun."""

    def __init__(self, tokens: Tokens, notes: list[str]) -> None:
        self.tokens = tokens
        self.numbers = find_numbers(tokens)
        self.number_ends = {n.end for n in self.numbers.values()}
        self.phrases = PhraseReader(tokens, self.numbers)
        self.notes = notes
        self.counted = False  # whether this sentence has counted several of something
        self.labelled = -1  # where the last number that is a name ended

    def mentions(self) -> Iterator[Mention]:
        """Yield the mentions in order."""
        i = 0
        per_group = -1  # "three boxes of four donuts": the four is not a total
        while i < len(self.tokens):
            number = self.numbers.get(i)
            if number is None:
                word = self.tokens.word(i)
                if word in SENTENCE_ENDS:
                    self.counted = False
                article = word in ARTICLES and i + 1 not in self.numbers
                mention = self._article(i) if article else None
                i += 1
            else:
                mention = self._number(number, in_group=i == per_group)
                i = max(i + 1, number.end)
            if mention is None:
                continue
            if mention.words:
                i = max(i, mention.end)
                self.counted = self.counted or (not mention.article and mention.count > 1)
                inner = self._number_after_of(mention.end)
                if inner and mention.count != 1:
                    per_group = inner
                head = singularise(mention.words[-1])
                if inner and (
                    head in PORTIONS or (mention.count == 1 and head in DEPICTIONS | COLLECTIVES)
                ):
                    continue  # "a group of five people"
                mention.end = self._over_contents(mention)
            yield mention
            if mention.count == 0 and mention.words:
                for also in self._none_of_these_either(mention):
                    i = max(i, also.end)
                    yield also

    def _number_after_of(self, i: int) -> int:
        """Return where a number stands that follows "of" or "of the" at ``i``, else 0."""
        if self.tokens.word(i) != "of":
            return 0
        i += 2 if self.tokens.word(i + 1) in DEFINITE else 1
        return i if i in self.numbers else 0

    def _over_contents(self, mention: Mention) -> int:
        """Return the end of a mention with what it is full of: "a cup of cocoa", then "and two cookies"."""
        contents = self.phrases.complement(Phrase(mention.words, mention.end))
        return contents.end if contents.words else mention.end

    def _none_of_these_either(self, none: Mention) -> Iterator[Mention]:
        """Yield the rest of "no cats, dogs or birds"."""
        rest: list[Mention] = []
        end, closed = none.end, False
        while self.tokens.word(end) in ("or", "nor", ","):
            start = end + 1
            if self.tokens.word(start) in ("or", "nor"):
                closed, start = True, start + 1
            closed = closed or self.tokens.word(end) != ","
            phrase = self.phrases.read(start, 2)
            if not phrase.words or is_no_object(self.tokens, phrase) or start in self.numbers:
                break
            rest.append(Mention(start, phrase.end, 0, phrase.words))
            end = phrase.end
            if closed:
                break
        if closed:
            yield from rest

    def _article(self, i: int) -> Mention | None:
        # "two cats, each with a hat"; "cats on a mat and two dogs", where the mat is a place
        before = self.tokens.word(i - 1)
        if before in PREPOSITIONS - _OPENS_LIST or self._after_each(i):
            return None
        phrase = self.phrases.read(i + 1, 1)
        words = phrase.words
        if words and words[0] in ("few", "lot", "number", "couple"):
            return None
        if before == "of" and singularise(self.tokens.word(i - 2)) not in _LIST_OF:
            # "at the edge of a forest and two bears", but "to the left of a car, and two bears"
            beside = self.tokens.word(i - 2) in _BESIDE and self.tokens.word(phrase.end) == ","
            if not beside:
                return None
        # "two chairs and a painting of a ship": in a list even a picture is an object
        shown = 2 if before in AND else 1
        if not words or is_no_object(self.tokens, phrase, shown) or words[0] in FILLERS:
            return None
        if singularise(words[-1]) in WEAK_UNITS or words[0] in STRONG_UNITS:
            return None
        followed = "of" in words or self.tokens.word(phrase.end) == "of"
        if phrase.head in VAGUE and (followed or phrase.head in ("lot", "few")):
            return None
        return Mention(i, phrase.end, 1, words, article=True)

    def _number(self, number: Number, *, in_group: bool) -> Mention | None:
        """Return the mention that a number makes; note it where a user would expect one."""
        if self._is_name(number):
            self.labelled = number.end
            return None
        if self._is_partitive(number):
            return None
        if self.tokens.word(number.end) in ('"', "″", "′") and self.tokens.touch(number.end - 1):
            return None  # inches
        count = number.value
        start = number.end
        if self.tokens.word(start) in _CLOSING and self.tokens.word(number.start - 1) in _OPENING:
            start += 1  # "(seven) red apples"
        if self.tokens.word(start) == "x" and not self.phrases._ends(start + 1):
            start += 1  # "3 x cats"
        phrase = self.phrases.read(
            start, 2 if count is None else count, collective=self._is_collective(number)
        )
        if not phrase.words:
            mention = self._behind_its_noun(number)
            if mention is None:
                self._note_without_noun(number)
            return mention
        if is_no_object(self.tokens, phrase, count) or is_no_count(self.tokens, phrase, number):
            return None
        if count is None:
            self._note_problem(number, singularise(" ".join(phrase.words)))
            return None
        return self._mention(number, phrase, count, in_group)

    def _mention(
        self, number: Number, phrase: Phrase, count: int, in_group: bool
    ) -> Mention | None:
        article = False
        if number.group.startswith("pair") and phrase.words[-1] in SOLD_IN_PAIRS:
            count //= 2  # "a pair of scissors" is as much a count as "a knife"
            article = self.tokens.word(number.start) in ARTICLES
        start = number.start
        if self.tokens.word(start - 1) in DEFINITE:
            start -= 1
        mention = Mention(start, phrase.end, count, phrase.words, article)
        problem = self._distributive(mention, number, in_group)
        if count > MAX_COUNT:
            problem = self._too_many(mention, number)
        elif self.tokens.word(phrase.end) == "or" and self.tokens.word(phrase.end + 1) in _OR_SO:
            said = self.tokens.said(number.start, phrase.end + 2)
            problem = f"'{said}' is not an exact count; write one number before the noun."
        if problem:
            self.notes.append(problem)
            return None
        return mention

    # Before the number

    def _is_name(self, number: Number) -> bool:
        """Say whether a number is part of a name or an idiom: "room 7", "no one", "a 7 series"."""
        tokens, start = self.tokens, number.start
        before = tokens.word(start - 1)
        if number.value == 0 and tokens.word(start) == "no":
            after = tokens.word(start + 1)
            return start + 1 in self.numbers or after in NOT_AFTER_NO or is_ing_verb(after)
        if before in ("no", "not"):
            return True  # "no two alike"
        if before == "." and tokens.word(start - 2) in ("no", "nr", "vol"):
            return True
        if before in NUMBER_SIGNS or before in ARTICLES:
            return True
        if before in SAYING:  # "a sign reads 12", but "two bears reading two books"
            return before not in READING or not self.phrases.read(number.end, 2).is_plural
        if before in ("and", "&", ",") and self.labelled == start - 1 and self.labelled > 0:
            return not self.phrases.read(
                number.end, number.value or 2
            ).is_plural  # "number 9 and 14"
        if before in LABELS and tokens.word(start - 2) not in ARTICLES | DEFINITE:
            return True  # "room 7", but "in a room seven cats"
        if number.value == 1 and before in PRONOUN_BEFORE_ONE:
            return True
        if not number.digits:
            return False
        # "Boeing 747 planes": a name with a number, unless the capital is the sentence's
        name, after_number = tokens.at(start - 1), tokens.at(number.end)
        return (
            name.raw[:1].isupper()
            and name.word not in FUNCTION_WORDS
            and tokens.at(start - 2).is_word
            and not after_number.raw[:1].isupper()
        )

    def _is_partitive(self, number: Number) -> bool:
        """Say whether a number is part of a whole: "three of them", "one of the three kings"."""
        if self.tokens.word(number.end) == "of":
            return True
        i = number.start - 1
        if self.tokens.word(i) in DEFINITE:
            i -= 1
        if self.tokens.word(i) != "of":
            return False
        part = self.tokens.word(i - 1)
        if part == "out":  # "none out of seven", but "peeking out of two boxes"
            before = self.tokens.at(i - 2)
            return not before.is_word or i - 1 in self.number_ends or before.word in _QUANTIFIERS
        if part == "each":
            return False
        return i in self.number_ends or part in _QUANTIFIERS

    def _is_collective(self, number: Number) -> bool:
        """Say whether a singular stands for the many: "a pair of swans", "a group of four hikers"."""
        if number.group:
            return not number.group.endswith("s") and not number.group.startswith("dozen")
        of = number.start - 1
        if self.tokens.word(of) in ("about", "around", "some"):
            of -= 1
        return self.tokens.word(of) == "of" and self.tokens.word(of - 1) in COLLECTIVES

    # Behind the number

    def _behind_its_noun(self, number: Number) -> Mention | None:
        """Return the mention of "cats x 3", "apples: 5", "napkins, set of four", if it is one of these."""
        tokens, start, count = self.tokens, number.start, number.value
        if count is None or tokens.word(start) == "no":
            return None
        sign, end = tokens.word(start - 1), start - 1
        if sign == "of" and tokens.word(start - 2) in _SETS:
            end -= 2 if tokens.word(start - 3) in (",", "(", "-") else 1
        elif sign not in ("x", ":", "("):
            return None
        first, words = self.phrases.before(end)
        opened = sign in ("x", "of") or not tokens.at(first - 1).is_word
        if not words or not opened or LABELS & {words[0], words[-1]} or not may_be_noun(words[-1]):
            return None
        if count != 1 and singular_of(words[-1]) is None:
            return None
        mention = Mention(first, number.end, count, words)
        if count <= MAX_COUNT:
            return mention
        self.notes.append(self._too_many(mention, number))
        return None

    def _too_many(self, mention: Mention, number: Number) -> str:
        said = as_written(self.tokens, number)
        return f"{said} {TOO_MANY} {mention.noun!r}: a count goes up to {MAX_COUNT}."

    def _note_problem(self, number: Number, noun: str) -> None:
        if NEGATIVE in number.problem:
            self.notes.append(number.problem)
        elif number.problem:
            how = f"write one whole number before {pluralise(noun)!r}"
            self.notes.append(f"{number.problem.removesuffix('.')}; {how}.")

    def _note_without_noun(self, number: Number) -> None:
        tokens, start = self.tokens, number.start
        before = tokens.at(start - 1)
        if number.value is None or number.separate or tokens.word(start) in ("no", "one", "zero"):
            return
        if tokens.word(number.end) in ABBREVIATED_UNITS | STRONG_UNITS | WEAK_UNITS:
            return
        if self.counted:
            return  # "two robots, one holding a lamp": part of what is counted already
        if number.digits and before.is_word and before.word not in FUNCTION_WORDS:
            return  # "porsche 911"
        if number.digits and YEAR.fullmatch(tokens.word(start)):
            return  # "in 1984"
        if not before.is_word and not tokens.at(number.end).is_word and before.word not in "\n.":
            return
        said = tokens.said(start, number.end)
        self.notes.append(
            f"'{said}' counts nothing here, as no noun follows it; write them together, as in '{said} cats'."
        )

    def _distributive(self, mention: Mention, number: Number, in_group: bool) -> str:
        """Return a note when the number is one per something, so that the total is unknown."""
        tokens, end = self.tokens, mention.end
        behind = tokens.word(end) in ("each", "apiece") and not (
            tokens.at(end + 1).is_word and tokens.word(end + 1) not in AND
        )
        per = tokens.word(end) == "per" or (
            tokens.word(end) in PREPOSITIONS and tokens.word(end + 1) in EACH
        )
        if not (behind or per or in_group or self._after_each(number.start)):
            return ""
        said = f"{mention.count} {pluralise(mention.noun, mention.count)}"
        return f"'{said}' is a number for each of several; ask for the total."

    def _after_each(self, start: int) -> bool:
        """Say whether "each" or "every", a little before in the same clause, governs ``start``."""
        for i in range(start - 1, max(start - 13, -1), -1):
            word = self.tokens.word(i)
            if word in SENTENCE_ENDS or word in (",", "while", "whereas", "but", "as"):
                return False
            if word in ("each", "every"):
                return self.tokens.word(i + 1) != "of"
        return False
