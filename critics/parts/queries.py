"""Batches of queries with different numbers of nouns, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from critics.base import Query


def noun_mask(queries: Sequence[Query], device: torch.device) -> Bool[Tensor, "b k"]:
    """True where an image's query really has a k-th noun."""
    counts = torch.tensor([len(query.nouns) for query in queries], device=device)
    width = max((len(query.nouns) for query in queries), default=0)
    return torch.arange(width, device=device) < counts[:, None]


def stack_classes(
    queries: Sequence[Query], device: torch.device
) -> tuple[Int64[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Class indices of a batch of queries, padded with 0 to the longest, and where they are real.

    Raises:
        ValueError: a query that another critic prepared.
    """
    width = max((len(query.nouns) for query in queries), default=0)
    classes = torch.zeros(len(queries), width, dtype=torch.int64)
    for row, query in zip(classes, queries, strict=True):
        if len(query.classes) != len(query.nouns):
            raise foreign_query(query)
        row[: len(query.nouns)] = query.classes
    return classes.to(device), noun_mask(queries, device)


def stack_text(queries: Sequence[Query], key: str, device: torch.device) -> Float[Tensor, "b k *d"]:
    """What the text encoder made of each query's nouns, padded with zeros to the longest query.

    Raises:
        ValueError: a query that another critic prepared.
    """
    check_text(queries, key)
    texts = [query.text[key] for query in queries]
    longest = max(texts, key=len)
    stacked = longest.new_zeros(len(texts), *longest.shape)
    for row, text in zip(stacked, texts, strict=True):
        if len(text):
            row[: len(text)] = text
    return stacked.to(device)


def check_text(queries: Sequence[Query], key: str) -> None:
    """Refuse queries without a text of that name for each of their nouns.

    Raises:
        ValueError: a query that another critic prepared.
    """
    for query in queries:
        if key not in query.text or len(query.text[key]) != len(query.nouns):
            raise foreign_query(query)


def foreign_query(query: Query) -> ValueError:
    """The error for a query that lacks what this critic would have put into it."""
    return ValueError(
        f"the query for {', '.join(query.nouns) or 'no noun'} was prepared by another critic; prepare the "
        "nouns with the critic that counts them"
    )
