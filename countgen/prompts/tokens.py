"""From a prompt to tokens: markup that image generators know is taken off, signs become plain."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

from countgen.prompts.lexicon import noun_bases
from countgen.prompts.nouns import singular_of
from countgen.prompts.words import ABBREVIATED_UNITS, SAYING, STRONG_UNITS, words_of

MAX_CHARS: Final = 20_000
"""How much of a prompt is read: text encoders take a few hundred words, and this bounds the work."""

# Typographic signs to their plain forms; a dash that stands for a comma must not join two words.
_PLAIN_SIGNS: Final = str.maketrans(
    {
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "‐": "-",
        "–": "-",
        "—": " - ",
        "−": "-",
        "⁄": "/",
        "×": " x ",
        "️": None,  # how an emoji is drawn
        "⃣": None,  # keycaps
        "‍": None,
        **{chr(code): None for code in range(0x1F3FB, 0x1F400)},  # skin tones
    }
)
_VULGAR_FRACTION: Final = re.compile("[¼-¾⅐-⅞]")

# Markup. Every repetition that could run over the same text twice is bounded, so that all are linear.
_TAG: Final = re.compile(r"<[\w:.+ -]{1,80}>")  # <lora:name:0.8>
_OPTION: Final = re.compile(
    r"(?<![\w-])--(?!no\b)[a-z]{1,20}(?:[ =]{1,3}[\d:.]{1,12})?"
)  # --ar 3:2
_WEIGHT: Final = re.compile(
    r"[(\[]([^()\[\]:\n]{1,80}):\s{0,3}\d{1,3}(?:\.\d{1,3})?[)\]]"
)  # (cats:1.3)
_DOUBLE_QUOTED: Final = re.compile(r'"([^"\n]{0,200})"')
_SINGLE_QUOTED: Final = re.compile(r"(?<!\w)'([^'\n]{1,80})'(?!\w)")
_LAST_WORD: Final = re.compile(r"([a-z]{1,12})\W{0,3}$")
_QUOTING: Final = SAYING | words_of(
    "word words letter letters text phrase quote writing written writes slogan sign caption inscription"
)

_TOKEN: Final = re.compile(
    r"""
    (?i:dr|mr|mrs|ms|prof|sgt|capt|mt|st|no|nr|vol)\.(?=\s)   # Dr. Seuss, no. 5
    | (?i:[a-z]\.){2,5}(?![^\W_])                 # U.S.  p.m.
    | [$€£¥₹]?\d\w*(?:[.,:/-]\w+)*[%°$€£¥₹]?     # 7  1,000  1.5  16:9  3-legged  50mm  7-8
    | [^\W\d_]\w*(?:(?:-|'-|')\w+)*(?:(?<=s)'(?!\w))?    # cat  t-shirt  men's  twenty-one  girls'
    | [^\w\s] | _ | \n
    """,
    re.VERBOSE,
)
_COUNTED_TAG: Final = re.compile(r"(\d{1,18})([a-z]{3,24})")  # 2girls
_TIMES_BEHIND: Final = re.compile(r"(\d{1,18})x")  # 3x cats
_TIMES_BEFORE: Final = re.compile(r"x(\d{1,18})")  # cats x3
_SAID_NUMBERS: Final = words_of(
    "one two three four five six seven eight nine ten eleven twelve twenty thirty fifty dozen no zero"
)
_EMOJI_NOISE: Final = words_of("face medium-sized white medium black heavy sign symbol with")


class Token(NamedTuple):
    """A word, a number or a sign, and where it stood in the cleaned text."""

    word: str  # lower case
    raw: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        """Whether it is a word or a number."""
        return self.word[0].isalnum()


_END: Final = Token("\n", "\n", -1, -1)


class Tokens(list[Token]):
    """Tokens that may be asked beyond their ends, where a sentence ends."""

    def at(self, i: int) -> Token:
        """Return a token, a line end beyond the ends."""
        return self[i] if 0 <= i < len(self) else _END

    def word(self, i: int) -> str:
        """Return a token in lower case."""
        return self.at(i).word

    def said(self, start: int, end: int) -> str:
        """Return tokens as the user wrote them, for a note."""
        pieces: list[str] = []
        for i in range(max(start, 0), min(end, len(self))):
            glued = bool(pieces) and self[i - 1].end == self[i].start
            pieces.append(("" if glued or not pieces else " ") + self[i].raw)
        said = "".join(pieces)
        return said if len(said) <= 80 else said[:77] + "..."

    def touch(self, i: int) -> bool:
        """Say whether a token and the next stand together without a space."""
        return 0 <= i < len(self) - 1 and self[i].end == self[i + 1].start


def tokenise(text: str, notes: list[str]) -> Tokens:
    """Return the tokens of a prompt; what lies beyond ``MAX_CHARS`` is left out with a note."""
    if len(text) > MAX_CHARS:
        notes.append(f"Only the first {MAX_CHARS:,} characters were searched for counts.")
        text = text[:MAX_CHARS]
        text = text[: text.rfind(" ")]  # not "10 cat|erpillars"; -1 drops one character
    tokens = Tokens(_split(_clean(text)))
    for i in range(1, len(tokens)):  # pronouns of two words, which are neither "each" nor "one"
        if (tokens[i - 1].word, tokens[i].word) in (("each", "other"), ("one", "another")):
            for k in (i - 1, i):
                tokens[k] = tokens[k]._replace(word="each-other")
    return tokens


def _clean(text: str) -> str:
    # NFKC: full-width and other forms of letters and digits become plain, and a vulgar fraction
    # becomes two numbers with a fraction slash.
    text = _VULGAR_FRACTION.sub(r" \g<0>", text)
    text = unicodedata.normalize("NFKC", text)[:MAX_CHARS].translate(_PLAIN_SIGNS)
    text = _TAG.sub(" , ", text)
    text = _OPTION.sub(" , ", text)
    text = _WEIGHT.sub(r"\1", text)
    text = _DOUBLE_QUOTED.sub(_unquoted, text)
    return _SINGLE_QUOTED.sub(_unquoted, text)


def _unquoted(match: re.Match[str]) -> str:
    """Words in quotes stay, unless they are what a sign says."""
    before = match.string[max(0, match.start() - 24) : match.start()].lower()
    word = _LAST_WORD.search(before)
    return " " if word and word[1] in _QUOTING else f" {match[1]} "


def _split(text: str) -> Iterator[Token]:
    before = _END
    for match in _TOKEN.finditer(text):
        for token in _parts(match[0], match.start(), before):
            yield token
            before = token


def _parts(raw: str, start: int, before: Token) -> Iterator[Token]:
    """One token, or two written as one: "2girls", "3x", "x4"; an emoji behind a number is a noun."""
    word, end = raw.lower(), start + len(raw)
    if tag := _COUNTED_TAG.fullmatch(word):
        noun = tag[2]
        known = noun_bases(noun) or noun_bases(singular_of(noun) or "")
        if known and noun not in ABBREVIATED_UNITS | STRONG_UNITS:
            cut = start + len(tag[1])
            yield Token(tag[1], raw[: len(tag[1])], start, cut)
            yield Token(noun, raw[len(tag[1]) :], cut, end)
            return
    if times := _TIMES_BEHIND.fullmatch(word):
        yield Token(times[1], raw, start, end - 1)
        yield Token("x", "", end - 1, end)
        return
    if (times := _TIMES_BEFORE.fullmatch(word)) and before.is_word:
        yield Token("x", "", start, start + 1)
        yield Token(times[1], raw, start + 1, end)
        return
    if len(raw) == 1 and raw > "⌀" and (before.word.isdigit() or before.word in _SAID_NUMBERS):
        name = unicodedata.name(raw, "").lower().split()
        name = [part for part in name if part not in _EMOJI_NOISE]
        if name and unicodedata.category(raw) == "So":
            for part in name:
                yield Token(part, raw, start, end)
            return
    yield Token(word, raw, start, end)
