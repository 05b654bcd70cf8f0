"""Nouns to the token ids of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from critics.base import UnknownNounError


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    nouns: Sequence[str],
    length: int,
    device: torch.device,
    *,
    full: bool = False,
) -> tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"]]:
    """Token ids and attention mask of texts, padded to the longest.

    Nothing is cut off: a text without its end would count something else.

    Args:
        nouns: what the user named in each text, for messages.
        length: most tokens that the text encoder reads; what the tokenizer's own files say of it is ignored.
        full: pad to that length.

    Raises:
        UnknownNounError: a noun whose text is longer.
    """
    padding = "max_length" if full else "longest"
    tokens = tokenizer(list(texts), padding=padding, max_length=length)
    ids, attended = tokens["input_ids"], tokens["attention_mask"]
    for noun, mask in zip(nouns, attended, strict=True):
        if sum(mask) > length:
            raise UnknownNounError(
                f"{noun!r} is too long: its text has {sum(mask)} tokens, but the text encoder reads "
                f"{length}; say it in fewer words"
            )
    return torch.tensor(ids, device=device), torch.tensor(attended, device=device)
