"""From a prompt to what is to be counted: ``parse_prompt("seven red apples")``.

A prompt is cut into tokens; text2num finds the numbers; rules drop the numbers that count nothing
("room 7", "50 mm", "one of the three kings"); the noun phrase behind each other number is read up
to its head ("red apples", not "on a table"); and articles that stand in one list with a counted
noun become ones. There is no part-of-speech tagger: the head of a plural phrase is its first
plural, and a singular phrase ends at a function word or at what looks like a verb. Where this
guesses wrong, explicit targets always win.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final, NamedTuple

from countgen._english import (
    PREPOSITIONS,
    SOLD_IN_PAIRS,
    number_word,
    pluralize,
    singular_of,
    singularize,
    words_of,
)
from critics.targets import MAX_COUNT, CountTarget

__all__ = [
    "MAX_COUNT",
    "CountPrompt",
    "CountTarget",
    "number_word",
    "parse_prompt",
    "pluralize",
    "singularize",
]


@dataclass(frozen=True)
class CountPrompt:
    """A prompt with its targets, and notes (one sentence each) on numbers seen but not used."""

    text: str
    targets: tuple[CountTarget, ...]
    notes: tuple[str, ...] = ()


TOO_MANY = "is too many for"
"""How the note on a count above the limit can be told from the other notes."""
ExplicitTargets = Sequence[CountTarget | tuple[str, int]] | Mapping[str, int]


def parse_prompt(text: str, targets: ExplicitTargets | None = None) -> CountPrompt:
    """Find what a prompt asks to be counted, or take the ``targets`` given (even none) instead.

    Any text parses; one without a count has no targets. What a number means is decided so:

    - Adjectives belong to the noun; a prepositional phrase does not ("on a table"), except after
      portions ("slices of pizza"). Nouns come in lower case and in the singular.
    - A bare article counts as one only in a list with a counted noun, closed by "and"; one behind
      a preposition of place ("on a mat and ...") does not.
    - Mentions of one noun add up within a sentence. A mention that says nothing new (the same
      number again without an "and", "the two cats", a later sentence) does not; if it disagrees
      with the first, the first stands and a note says so.
    - Ranges, fractions, numbers "each" and counts above ``MAX_COUNT`` are left out with a note.

    Raises TypeError for a text that is no string, ValueError for explicit targets that are wrong.

    >>> parse_prompt("seven red apples and two cats").targets
    (CountTarget(noun='red apple', count=7), CountTarget(noun='cat', count=2))
    >>> parse_prompt("a cat on a table").targets
    ()
    >>> parse_prompt("an elephant and four bears").targets
    (CountTarget(noun='elephant', count=1), CountTarget(noun='bear', count=4))
    >>> parse_prompt("10,000 balloons").notes
    ("10000 is too many for 'balloon': a count goes up to 1000.",)
    >>> parse_prompt("my birthday", {"candle": 9}).targets
    (CountTarget(noun='candle', count=9),)
    """
    if not isinstance(text, str):
        raise TypeError(f"A prompt must be a string, not {type(text).__name__}.")
    if targets is not None:
        return CountPrompt(text, _explicit(targets))
    notes: list[str] = []
    tokens = _tokenize(text, notes)
    mentions = _elliptic_nouns(tokens, list(_Reader(tokens, notes).mentions()))
    counted = [m for m in _listed_articles(tokens, mentions) if m.words]
    return CountPrompt(text, _merge(tokens, counted, notes), tuple(dict.fromkeys(notes)))


def _explicit(targets: ExplicitTargets) -> tuple[CountTarget, ...]:
    if isinstance(targets, str) or not isinstance(targets, Mapping | Sequence):
        raise TypeError(
            "Targets must be a mapping of noun to count or a sequence of (noun, count), "
            f"not {type(targets).__name__}."
        )
    pairs = targets.items() if isinstance(targets, Mapping) else targets
    result: list[CountTarget] = []
    for pair in pairs:
        if not isinstance(pair, CountTarget):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise TypeError(f"A target must be a CountTarget or (noun, count), not {pair!r}.")
            pair = CountTarget(*pair)
        if any(pair.noun == other.noun for other in result):
            raise ValueError(f"The targets name {pair.noun!r} twice.")
        result.append(pair)
    return tuple(result)


# --- words -------------------------------------------------------------------------------------

_ARTICLES: Final = words_of("a an")
_DEFINITE: Final = words_of("the these those all both his her their my our your its")
_PRONOUN_BEFORE_ONE: Final = words_of("this that each every any another which some no")
# What ends a noun phrase, together with punctuation and the next number.
_FUNCTION_WORDS: Final = (
    PREPOSITIONS
    | _ARTICLES
    | _DEFINITE
    | _PRONOUN_BEFORE_ONE
    | words_of(
        """and or but nor plus while where when whereas who whom whose what how why if so then
        though although because is are was were be been being am has have had having do does did
        can could will would shall should may might must not no he she it they them him we us you i
        me himself herself themselves itself there here too also only just even together alone
        apart away left-hand right-hand around back down forward up off always sometimes often
        never again now afterwards towards besides outdoors indoors upstairs downstairs overseas
        upwards downwards sideways others ours yours theirs neither either none x"""
    )
)
_BEFORE_LISTS: Final = words_of("of with between like")  # "a photo of a cat and two dogs"
_AND: Final = words_of("and & plus")
_SENTENCE_ENDS: Final = frozenset(".!?;\n")

# Adjectives matter only where a noun cannot be told from one: in "two black and white cats" or
# "two red and three blue balls", and before what looks like a verb ("one small flying bird").
_ADJECTIVES: Final = words_of(
    """red green blue yellow orange purple violet pink brown black white gray grey beige tan golden
    gold silver bronze turquoise teal cyan magenta maroon colorful colourful dark bright light pale
    small little tiny mini miniature large big huge giant enormous tall short long wide thin thick
    fat round square oval flat old young new ancient modern vintage antique wooden metal metallic
    plastic ceramic porcelain leather paper stone marble woollen shiny glossy matte transparent
    fluffy furry fuzzy striped spotted dotted cute adorable happy sad angry beautiful pretty ugly
    fresh ripe juicy rotten delicious tasty fried baked broken open closed empty full wild clean
    dirty hot cold very realistic cartoon friendly"""
)
# Nouns (and first halves of compounds) with the ending of a verb form.
_NOT_VERBS: Final = words_of(
    """building string spring painting ceiling earring wedding pudding clothing evening morning
    lightning dumpling duckling gosling seedling sibling sapling crossing sterling herring starling
    yearling bearing awning railing icing fitting dining parking swimming sewing washing rocking
    fishing hunting sailing boxing bowling baking cooking frying racing skiing walking-stick
    steering shopping sleeping-bag moped biped quadruped watershed seabed flatbed"""
)

# Words that make a number a measure, a time or an order of things that no picture holds.
_UNITS: Final = words_of(
    """year years month months week weeks day days hour hours minute minutes second seconds century
    centuries decade decades night nights time times o'clock am pm a.m p.m noon midnight bc ad bce
    ce mm cm m km nm um mi ft inch inches meter meters metre metres centimeter centimeters
    centimetre centimetres millimeter millimeters millimetre millimetres kilometer kilometers
    kilometre kilometres mile miles yard yards acre acres kg g mg lb lbs oz kilo kilos kilogram
    kilograms gram grams pound pounds ounce ounces ton tons tonne tonnes liter liters litre litres
    ml gallon gallons watt watts volt volts kw hp hz khz mhz ghz kb mb gb tb dpi ppi px pixel
    pixels megapixel megapixels mp fps bpm mph kph kmh iso percent percentage pct degree degrees
    celsius fahrenheit dollar dollars usd euro euros eur gbp yen rupees cent cents penny pence bucks
    half halves third thirds quarter quarters fourths fifths sixths eighths tenths step steps
    iterations way ways bit bits side dimension dimensions dimensional thing things"""
)
_LENGTH_UNITS: Final = words_of("foot feet")  # only before one of these:
_EXTENTS: Final = words_of("tall high long wide deep away above below apart off across")
# "four leaf clover", "five star hotel": the number belongs to the modifier.
_MODIFIERS: Final = words_of(
    """piece star leaf wheel door story storey course layer tier lane seat seater seasons string
    panel player man person point tone speed stroke cylinder room bedroom finger legged part ply"""
)
# A number after one of these is a name.
_NUMBER_SIGNS: Final = words_of("number numbers no nr #")
_LABELS: Final = words_of(
    """room route interstate avenue chapter page volume vol part episode season scene act level step
    phase version ver v model type class grade rank tier size age aged year section apartment apt
    suite terminal flight apollo formula district studio catch player exhibit world war seed cfg iso
    top"""
)
# A count of these is none of objects in the picture.
_ABSTRACT: Final = words_of(
    """background foreground sky sunset sunrise style view angle perspective version color colour
    shade tone lighting shadow text watermark signature logo border blur noise makeup gravity
    dimension part way time size direction idea matter doubt problem need reason wonder
    composition atmosphere mood weather resolution quality detail caption depth longer effect"""
)
_DEPICTIONS: Final = words_of(
    """photo photograph picture image drawing painting sketch render rendering illustration portrait
    depiction shot closeup close-up collage poster print view scene snapshot"""
)
# "slices of pizza": the noun means little without its complement.
_PORTIONS: Final = words_of(
    """slice piece bunch group row pile stack loaf herd flock crowd set bouquet bundle heap
    team pack school swarm column line"""
)
_VAGUE: Final = words_of(
    """lot few number variety couple bit range series ton plenty host handful little half pair group
    bunch crowd herd flock row pile set"""
)
# Before the noun, but not part of it ("three more cats").
_FILLERS: Final = words_of(
    "more other additional extra different identical separate distinct individual total single"
)
_NOT_AFTER_NO: Final = words_of(
    "one longer more matter doubt way idea wonder sign trace entry exit evidence particular"
)
_SCALES: Final = words_of("hundred thousand million billion")
_GROUPS: Final = {
    "dozen": 12,
    "dozens": 12,
    "pair": 2,
    "pairs": 2,
    "couple": 2,
    "duo": 2,
    "trio": 3,
    "quartet": 4,
}

# --- tokens ------------------------------------------------------------------------------------

_MAX_CHARS: Final = 20_000  # text encoders read a few hundred words; this bounds the work
_MAX_PHRASE: Final = 8

# Typographic signs to their plain forms; a dash that stands for a comma must not join two words.
_PLAIN_SIGNS: Final = str.maketrans(
    {"\u2019": "'", "\u2010": "-", "\u2013": "-", "\u2014": " - ", "\u2044": "/", "\u00d7": " x "}
)
_TOKEN: Final = re.compile(
    r"""
    [$€£¥₹]?\d\w*(?:[.,:/-]\w+)*[%°$€£¥₹]?     # 7  1,000  1.5  16:9  3-legged  50mm  7-8
    | [^\W\d_]\w*(?:[-']\w+)*                  # cat  t-shirt  men's  twenty-one
    | [^\w\s] | _ | \n
    """,
    re.VERBOSE,
)
_VULGAR_FRACTION: Final = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_INTEGER: Final = re.compile(r"\d+|\d{1,3}(?:,\d{3})+")
_OTHER_NUMBER: Final = re.compile(r"[$€£¥₹]?\d+(?:[.,:/-]\d+)*[%°$€£¥₹]?")
_RANGE: Final = re.compile(r"\d+-\d+")
_FRACTION: Final = re.compile(r"\d+[./]\d+")


class _Token(NamedTuple):
    word: str  # lower case
    raw: str

    @property
    def is_word(self) -> bool:
        return self.word[0].isalnum()


_END: Final = _Token("\n", "\n")


class _Tokens(list[_Token]):
    """Tokens that may be asked beyond their ends, where a sentence ends."""

    def at(self, i: int) -> _Token:
        return self[i] if 0 <= i < len(self) else _END

    def word(self, i: int) -> str:
        return self.at(i).word


def _tokenize(text: str, notes: list[str]) -> _Tokens:
    if len(text) > _MAX_CHARS:
        notes.append(f"Only the first {_MAX_CHARS:,} characters were searched for counts.")
        text = text[:_MAX_CHARS]
        text = text[: text.rfind(" ")]  # not "10 cat|erpillars"; -1 drops one character
    # NFKC: full-width and other forms of letters and digits become plain, and a vulgar fraction
    # becomes two numbers with a fraction slash.
    text = _VULGAR_FRACTION.sub(r" \g<0>", text)
    text = unicodedata.normalize("NFKC", text).translate(_PLAIN_SIGNS)
    return _Tokens(_Token(raw.lower(), raw) for raw in _TOKEN.findall(text))


# --- numbers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Number:
    """A number and the tokens that it takes up; without a value it counts nothing."""

    start: int
    end: int
    value: int | None
    digits: bool = False
    separate: bool = False  # may stand beside another number: "the first three dogs"
    group: str = ""  # "pair" in "a pair of"
    problem: str = ""  # why there is no value, where a user should hear of it


class _SpokenToken:
    """What text2num reads. It panics, past ``except Exception``, on what is no UTF-8 text."""

    def __init__(self, word: str) -> None:
        # Plural numbers ("hundreds of birds") are vague, and text2num takes "o" for zero.
        sayable = re.fullmatch(r"[a-z]+(-[a-z]+)*", word) and word not in ("o", "oh")
        self._text = word if sayable and not word.endswith("s") else ","

    def text(self) -> str:
        return self._text

    def nt_separated(self, previous: object) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return False


def _spoken_numbers(tokens: _Tokens) -> Iterator[_Number]:
    from text_to_num import find_numbers

    for found in find_numbers([_SpokenToken(t.word) for t in tokens], "en", threshold=0):
        whole = float(found.value).is_integer() and not re.match(r"0\d", found.text)
        start = found.start
        if tokens.word(start) in _SCALES and tokens.word(start - 1) in _ARTICLES:
            start -= 1  # "a hundred"
        if found.is_ordinal or not whole:
            problem = "" if found.is_ordinal else f"{found.text} is not a whole number."
            yield _Number(start, found.end, None, separate=found.is_ordinal, problem=problem)
        else:
            yield _Number(start, found.end, int(found.value))


def _written_numbers(tokens: _Tokens) -> Iterator[_Number]:
    for i, token in enumerate(tokens):
        word = token.word
        if _INTEGER.fullmatch(word) and not (len(word) > 1 and word.startswith("0")):
            # int() refuses thousands of digits, and nobody needs them
            value = int(word.replace(",", "")) if len(word) <= 18 else 10**18
            yield _Number(i, i + 1, value, digits=True)
        elif _OTHER_NUMBER.fullmatch(word):
            problem = ""
            if _RANGE.fullmatch(word):
                problem = f"'{word}' is a range; one number is needed."
            elif _FRACTION.fullmatch(word):
                problem = f"{word} is not a whole number."
            date_or_time = not problem and word[0].isdigit()
            yield _Number(i, i + 1, None, digits=True, separate=date_or_time, problem=problem)


def _find_numbers(tokens: _Tokens) -> dict[int, _Number]:
    """Return all numbers by their first token, in order."""
    by_end = {n.end: n for n in (*_spoken_numbers(tokens), *_written_numbers(tokens))}
    for i, token in enumerate(tokens):
        word = token.word
        if word in _GROUPS:
            number = _group(tokens, i, by_end)
        elif word == "no":
            number = _Number(i, i + 1, 0)
        elif word in ("single", "lone") and tokens.word(i - 1) == "a":
            number = _Number(i - 1, i + 1, 1)
        else:
            continue
        if number is not None:
            by_end.pop(i, None)  # now part of the group
            by_end[number.end] = number
    numbers = sorted(by_end.values(), key=lambda n: n.start)
    return {n.start: n for n in _join_neighbours(tokens, numbers)}


def _group(tokens: _Tokens, i: int, by_end: Mapping[int, _Number]) -> _Number | None:
    """Read "a dozen", "half a dozen", "two pairs of" around the group word at ``i``."""
    word = tokens.word(i)
    size = _GROUPS[word]
    end = i + 1
    if tokens.word(end) == "of":
        end += 1
    elif not word.startswith("dozen"):
        return None  # "a couple kissing"
    if (number := by_end.get(i)) is not None:
        value = None if number.value is None else number.value * size
        return _Number(number.start, end, value, group=word)
    before = (tokens.word(i - 2), tokens.word(i - 1))
    if size == 12 and (before[1] == "half" or before == ("half", "a")):
        start = i - 2 if before[0] in ("half", "a") else i - 1
        return _Number(start, end, 6, group=word)
    if word.endswith("s"):
        return None  # "dozens of eggs" is vague
    return _Number(i - 1 if before[1] in _ARTICLES else i, end, size, group=word)


def _join_neighbours(tokens: _Tokens, numbers: Sequence[_Number]) -> list[_Number]:
    """Settle numbers that touch: "7 hundred", "3 to 5", "2 x 4", "nineteen eighty four"."""
    joined: list[_Number] = []
    for number in numbers:
        if joined and not joined[-1].separate:
            before = joined[-1]
            gap = [tokens.word(i) for i in range(before.end, min(number.start, before.end + 2))]
            scale = number.end - number.start == 1 and tokens.word(number.start) in _SCALES
            if scale and not gap and before.value is not None and number.value is not None:
                value = before.value * number.value
                joined[-1] = replace(before, end=number.end, value=value, digits=False)
                continue
            apart = number.start - before.end
            ranged = gap in (["to"], ["or"], ["-"], ["~"], ["/"]) or (
                gap == ["and"] and tokens.word(before.start - 1) == "between"
            )
            if apart <= 1 and (not gap or ranged or gap in (["x"], ["by"])):
                said = " ".join(t.raw for t in tokens[before.start : number.end])
                problem = f"'{said}' is a range; one number is needed." if ranged else ""
                joined[-1] = replace(before, value=None, problem=problem)
                number = replace(number, value=None, problem=problem or number.problem)
        if [tokens.word(number.end + k) for k in range(3)] == ["and", "a", "half"]:
            number = replace(number, end=number.end + 3, value=None)
            said = " ".join(t.raw for t in tokens[number.start : number.end])
            number = replace(number, problem=f"'{said}' is not a whole number.")
        joined.append(number)
    return joined


# --- mentions ----------------------------------------------------------------------------------


@dataclass
class _Mention:
    """A number or an article with the noun phrase behind it."""

    start: int
    end: int
    count: int
    words: list[str] = field(default_factory=list)
    article: bool = False

    @property
    def noun(self) -> str:
        return singularize(" ".join(self.words))


def _only_adjectives(words: Sequence[str]) -> bool:
    return all(word in _ADJECTIVES or word == "and" for word in words)


def _looks_like_verb(word: str) -> bool:
    return len(word) > 4 and word.endswith(("ing", "ed")) and word not in _NOT_VERBS


class _Reader:
    """Walks over the tokens once and yields every number or article that has a noun."""

    def __init__(self, tokens: _Tokens, notes: list[str]) -> None:
        self.tokens = tokens
        self.numbers = _find_numbers(tokens)
        self.number_ends = {n.end for n in self.numbers.values()}
        self.notes = notes

    def mentions(self) -> Iterator[_Mention]:
        i = 0
        per_group = -1  # "three boxes of four donuts": the four is not a total
        while i < len(self.tokens):
            number = self.numbers.get(i)
            if number is None:
                word = self.tokens.word(i)
                article = word in _ARTICLES and i + 1 not in self.numbers
                mention = self._article(i) if article else None
                i += 1
            else:
                mention = self._number(number, in_group=i == per_group)
                i = max(i + 1, number.end)
            if mention is None:
                continue
            if mention.words:
                i = max(i, mention.end)
                inner = self._number_after_of(mention.end)
                if inner and mention.count != 1:
                    per_group = inner
                if inner and singularize(mention.words[-1]) in _PORTIONS | _DEPICTIONS:
                    continue  # "a group of five people"
            yield mention

    def _number_after_of(self, i: int) -> int:
        """Return where a number stands that follows "of" or "of the" at ``i``, else 0."""
        if self.tokens.word(i) != "of":
            return 0
        i += 2 if self.tokens.word(i + 1) in _DEFINITE else 1
        return i if i in self.numbers else 0

    def _article(self, i: int) -> _Mention | None:
        # "two cats, each with a hat"; "cats on a mat and two dogs", where the mat is a place
        if self._after_each(i) or self.tokens.word(i - 1) in PREPOSITIONS - _BEFORE_LISTS:
            return None
        words, end = self._phrase(i + 1, 1)
        if not words or self._is_no_object(words, end) or words[0] in _UNITS | _FILLERS:
            return None
        head = words[: words.index("of")][-1] if "of" in words else words[-1]
        followed = "of" in words or self.tokens.word(end) == "of"
        if head in _VAGUE and (followed or head in ("lot", "few")):
            return None
        return _Mention(i, end, 1, words, article=True)

    def _number(self, number: _Number, *, in_group: bool) -> _Mention | None:
        """Return the mention that a number makes; note it where a user would expect one."""
        if self._is_name(number) or self._is_partitive(number):
            return None
        count = number.value
        words, end = self._phrase(number.end, 2 if count is None else count)
        if not words or self._is_measure(words, end, number) or self._is_no_object(words, end):
            return None
        if count is None:
            if number.problem:
                self.notes.append(number.problem)
            return None
        article = False
        if number.group.startswith("pair") and words[-1] in SOLD_IN_PAIRS:
            count //= 2  # "a pair of scissors" is as much a count as "a knife"
            article = self.tokens.word(number.start) in _ARTICLES
        mention = _Mention(number.start, end, count, words, article)
        problem = self._distributive(mention, in_group) or self._comparative(number)
        if count > MAX_COUNT:
            if number.digits and count <= 2100 and self.tokens.word(number.start - 1) == "the":
                return None  # "the 1984 Olympics"
            problem = f"{count} {TOO_MANY} {mention.noun!r}: a count goes up to {MAX_COUNT}."
        if problem:
            self.notes.append(problem)
            return None
        return mention

    # Before the number

    def _is_name(self, number: _Number) -> bool:
        """Say whether a number is part of a name or an idiom: "room 7", "no one", "a 7 series"."""
        tokens, start = self.tokens, number.start
        before = tokens.word(start - 1)
        if number.value == 0 and tokens.word(start) == "no":
            after = tokens.word(start + 1)
            return start + 1 in self.numbers or after in _NOT_AFTER_NO or _looks_like_verb(after)
        if before in ("no", "not") or (
            before == "." and tokens.word(start - 2) in ("no", "nr", "vol")
        ):
            return True  # "no two alike", "no. 5"
        if before in _NUMBER_SIGNS or before in _ARTICLES:
            return True
        if before in _LABELS and tokens.word(start - 2) not in _ARTICLES | _DEFINITE:
            return True  # "room 7", but "in a room seven cats"
        if number.value == 1 and before in _PRONOUN_BEFORE_ONE:
            return True
        if not number.digits:
            return False
        # "Boeing 747 planes": a name with a number, unless the capital is the sentence's
        name, after_number = tokens.at(start - 1), tokens.at(number.end)
        return (
            name.raw[0].isupper()
            and name.word not in _FUNCTION_WORDS
            and tokens.at(start - 2).is_word
            and not after_number.raw[0].isupper()
        )

    def _is_partitive(self, number: _Number) -> bool:
        """Say whether a number is part of a whole: "three of them", "one of the three kings"."""
        if self.tokens.word(number.end) == "of":
            return True
        i = number.start - 1
        if self.tokens.word(i) in _DEFINITE:
            i -= 1
        if self.tokens.word(i) != "of":
            return False
        part = self.tokens.word(i - 1)
        quantifiers = ("some", "most", "any", "none", "half", "out", "which", "last", "another")
        return i in self.number_ends or part in quantifiers

    def _comparative(self, number: _Number) -> str:
        if self.tokens.word(number.start - 1) != "than":
            return ""
        if self.tokens.word(number.start - 2) not in ("more", "less", "fewer", "other", "greater"):
            return ""
        said = " ".join(t.raw for t in self.tokens[number.start - 2 : number.end])
        return f"'{said}' is not an exact count."

    # Behind the number

    def _ends_phrase(self, i: int) -> bool:
        token = self.tokens.at(i)
        return not token.is_word or token.word in _FUNCTION_WORDS or i in self.numbers

    def _span(self, start: int) -> list[int]:
        """Return the tokens up to the end of the phrase, over "and" and commas of adjectives."""
        tokens, span, i = self.tokens, list[int](), start
        while len(span) < _MAX_PHRASE:
            if not self._ends_phrase(i):
                span.append(i)
            else:
                listing = tokens.word(i) in ("and", "&", ",") and tokens.word(i + 1) in _ADJECTIVES
                if not (listing and span and _only_adjectives([tokens.word(k) for k in span])):
                    break
                if tokens.word(i) != ",":
                    span.append(i)
            i += 1
        return span

    def _phrase(self, start: int, count: int) -> tuple[list[str], int]:
        """Return the words of the noun phrase at ``start`` and its end; no words if none is there.

        It ends at its head, or after "of" and one more phrase when the head is a portion.
        """
        while self.tokens.word(start) in _FILLERS:
            start += 1
        words, end = self._words_to_head(start, count)
        if words and singularize(words[-1]) in _PORTIONS and self.tokens.word(end) == "of":
            complement, complement_end = self._words_to_head(end + 1, 2)
            if complement:
                return [*words, "of", *complement], complement_end
        return words, end

    def _words_to_head(self, start: int, count: int) -> tuple[list[str], int]:
        span = self._span(start)
        if not span:
            return [], start
        cut = self._plural_cut(span) if count != 1 else 0
        if not cut:
            if len(span) == _MAX_PHRASE:
                return [], start  # a run of words without an end in sight is no noun
            cut = self._singular_cut(span)
        words = ["and" if self.tokens.word(i) == "&" else self.tokens.word(i) for i in span[:cut]]
        return words, span[cut - 1] + 1

    def _plural_cut(self, span: Sequence[int]) -> int:
        """Return how many tokens of the span end with its first run of plurals, else 0."""
        is_plural = [singular_of(self.tokens.word(i)) is not None for i in span]
        if True not in is_plural:
            return 0
        cut = is_plural.index(True) + 1
        while cut < len(span) and is_plural[cut]:  # "sports balls"
            cut += 1
        return cut

    def _singular_cut(self, span: Sequence[int]) -> int:
        """Return how many tokens of the span come before its verb: "cat sleeping", "cat sits"."""
        words = [self.tokens.word(i) for i in span]
        for k in range(1, len(words)):
            verb = _looks_like_verb(words[k]) or singular_of(words[k]) not in (None, words[k])
            if verb and not _only_adjectives(words[:k]):
                return k
        return len(words)

    def _is_measure(self, words: Sequence[str], end: int, number: _Number) -> bool:
        first = words[0]
        if first in _LENGTH_UNITS:
            return self.tokens.word(end) in _EXTENTS or (len(words) > 1 and words[1] in _EXTENTS)
        if first in _UNITS and not number.group:
            return True
        return (
            first in _MODIFIERS and len(words) > 1 and number.value != 1 and self._singular(words)
        )

    @staticmethod
    def _singular(words: Sequence[str]) -> bool:
        return "of" not in words and singular_of(words[-1]) is None

    def _is_no_object(self, words: Sequence[str], end: int) -> bool:
        head = singularize(words[-1])
        return head in _ABSTRACT or (head in _DEPICTIONS and self.tokens.word(end) == "of")

    def _distributive(self, mention: _Mention, in_group: bool) -> str:
        """Return a note when the number is one per something, so that the total is unknown."""
        tokens, end = self.tokens, mention.end
        behind = tokens.word(end) in ("each", "apiece") and not (
            tokens.at(end + 1).is_word and tokens.word(end + 1) not in _AND
        )
        if not (behind or in_group or self._after_each(mention.start)):
            return ""
        said = f"{mention.count} {pluralize(mention.noun, mention.count)}"
        return f"'{said}' is a number for each of several; ask for the total."

    def _after_each(self, start: int) -> bool:
        """Say whether "each" or "every", a little before in the same clause, governs ``start``."""
        for i in range(start - 1, max(start - 13, -1), -1):
            word = self.tokens.word(i)
            if word in _SENTENCE_ENDS or word == ",":
                return False
            if word in ("each", "every"):
                return self.tokens.word(i + 1) != "of"
        return False


# --- from mentions to targets ------------------------------------------------------------------


def _gap(tokens: _Tokens, left: _Mention, right: _Mention) -> str:
    """Return what joins neighbours in a list: "and", a comma, or nothing when they are none."""
    between = [tokens.word(i) for i in range(left.end, min(right.start, left.end + 3))]
    if right.start - left.end > 2 or not between:
        return ""
    if between[-1] in _AND and between[:-1] in ([], [","]):
        return "and"
    return "," if between == [","] else ""


def _elliptic_nouns(tokens: _Tokens, mentions: list[_Mention]) -> list[_Mention]:
    """Give "two red and three blue balls" its first noun; drop adjectives that find none."""
    for k in range(len(mentions) - 1, -1, -1):
        mention = mentions[k]
        if not _only_adjectives(mention.words) or mention.words[-1:] == ["orange"]:
            continue
        adjectives, mention.words = mention.words, []
        if k + 1 < len(mentions) and _gap(tokens, mention, mentions[k + 1]):
            shared = list(mentions[k + 1].words)
            while shared and _only_adjectives(shared[:1]):
                shared.pop(0)
            mention.words = [*adjectives, *shared] if shared else []
    return mentions


def _listed_articles(tokens: _Tokens, mentions: Sequence[_Mention]) -> Iterator[_Mention]:
    """Yield the numbers, and the articles of every list that holds a number and an "and"."""
    chain: list[_Mention] = []
    last_and = 0  # a list goes as far as its last "and": a comma alone joins no article to it
    for mention in mentions:
        joint = _gap(tokens, chain[-1], mention) if chain else ""
        if not joint:
            yield from _counted(chain, last_and)
            chain, last_and = [], 0
        chain.append(mention)
        if joint == "and":
            last_and = len(chain) - 1
    yield from _counted(chain, last_and)


def _counted(chain: Sequence[_Mention], last_and: int) -> Iterator[_Mention]:
    listed = last_and > 0 and not all(m.article for m in chain[: last_and + 1])
    for k, mention in enumerate(chain):
        if not mention.article or (listed and k <= last_and):
            yield mention


def _merge(
    tokens: _Tokens, mentions: Sequence[_Mention], notes: list[str]
) -> tuple[CountTarget, ...]:
    """Make one target of each noun; see ``parse_prompt`` for what repeated nouns mean."""
    sentence = [0, *accumulate(token.word in _SENTENCE_ENDS for token in tokens)]
    ands = [0, *accumulate(token.word in _AND for token in tokens)]
    last: dict[str, _Mention] = {}
    totals: dict[str, int] = {}
    for mention in mentions:
        noun, start = mention.noun, mention.start
        before = last.setdefault(noun, mention)
        if before is mention:
            totals[noun] = mention.count
        elif sentence[start] != sentence[before.end] or tokens.word(start - 1) in _DEFINITE:
            if mention.count != totals[noun]:
                notes.append(
                    f"{noun!r} is counted more than once; {totals[noun]} stands, "
                    f"{mention.count} was left out."
                )
        elif mention.count != before.count or ands[start] != ands[before.end]:
            totals[noun] += mention.count
            last[noun] = mention
    for noun, total in totals.items():
        if total > MAX_COUNT:
            notes.append(f"{total} {TOO_MANY} {noun!r}: a count goes up to {MAX_COUNT}.")
    return tuple(CountTarget(noun, total) for noun, total in totals.items() if total <= MAX_COUNT)
