"""What a user should know before pictures are drawn: of the prompts, and of the generator."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from countgen.familiar import longest_text, wrapped
from countgen.prompts import CountPrompt, beyond_limit, kept_text
from pipelines.base import ImageSource, Plan
from pipelines.tokens import text_encoders


def notes_on(adapter: ImageSource, prompts: Sequence[CountPrompt], plan: Plan) -> tuple[str, ...]:
    """What of the prompts was not understood, what no text encoder reads, and what the generator leaves out,
    each once."""
    pipeline = wrapped(adapter)
    tokenizers = [getattr(pipeline, name) for name, _ in text_encoders(pipeline)]
    notes = dict.fromkeys(adapter.remarks(plan))
    longest = longest_text(adapter, plan)
    for prompt in prompts:
        notes |= dict.fromkeys(prompt.notes)
        limits = [min(tokenizer.model_max_length, longest) for tokenizer in tokenizers]
        kept = [
            kept_text(tokenizer, prompt.text, limit)
            for tokenizer, limit in zip(tokenizers, limits, strict=True)
        ]
        if kept:
            notes |= dict.fromkeys(beyond_limit(prompt, max(kept, key=len)))
    return tuple(notes)


@contextmanager
def without_truncation_warning(adapter: ImageSource) -> Iterator[None]:
    """Spares the reader the libraries' remarks on long prompts: the run's notes say what of it counts."""
    tokenizers = "transformers.tokenization_utils_base"
    names = type(wrapped(adapter)).__module__, tokenizers
    loggers = [logging.getLogger(name) for name in names]

    def other(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "was truncated" not in said and "Token indices sequence length" not in said

    for logger in loggers:
        logger.addFilter(other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(other)
