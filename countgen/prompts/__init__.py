"""From text to nouns and counts: ``parse_prompt``; docs/prompts.md says how prompts are read."""

from countgen.prompts.encoder_limit import beyond_limit, kept_text
from countgen.prompts.mentions import TOO_MANY
from countgen.prompts.nouns import pluralise, singularise
from countgen.prompts.number_words import number_word
from countgen.prompts.numbers import NEGATIVE
from countgen.prompts.parsing import CountPrompt, parse_prompt
from countgen.prompts.targets import ExplicitTargets, parse_target
from critics.targets import MAX_COUNT, CountTarget

__all__ = [
    "MAX_COUNT",
    "NEGATIVE",
    "TOO_MANY",
    "CountPrompt",
    "CountTarget",
    "ExplicitTargets",
    "beyond_limit",
    "kept_text",
    "number_word",
    "parse_prompt",
    "parse_target",
    "pluralise",
    "singularise",
]
