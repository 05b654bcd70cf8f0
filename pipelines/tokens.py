"""New tokens for the text encoders of a pipeline, with gradient to their embeddings, and without changing it.

Diffusers' textual inversion resizes the user's encoder. Here the tokenizers are copies that know the new
words, and hooks hand their embeddings to the encoders while one prompt is encoded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Tokens = Mapping[str, Sequence[Tensor]]
"""Token text -> for every text encoder, in the pipeline's order, (n, d) embeddings or (d,) of one."""

_SUFFIXES = ("", "_2", "_3")


def text_encoders(pipeline: Any) -> list[tuple[str, str]]:
    """Names of the components (tokenizer, text encoder) that the pipeline has, in its order."""
    names = [(f"tokenizer{s}", f"text_encoder{s}") for s in _SUFFIXES]
    return [
        (t, e)
        for t, e in names
        if None not in (getattr(pipeline, t, None), getattr(pipeline, e, None))
    ]


def widths(pipeline: Any) -> list[int]:
    """Length of a token's embedding in every text encoder."""
    return [
        getattr(pipeline, e).get_input_embeddings().weight.shape[1]
        for _, e in text_encoders(pipeline)
    ]


@contextmanager
def with_tokens(pipeline: Any, tokens: Tokens) -> Iterator[tuple[Any, Callable[[str], str]]]:
    """A view of the pipeline that knows the tokens, and a function that writes them in its words into a text.

    The view is good for encoding inside this context only; the pipeline itself, its encoders' weights and
    its tokenizers stay as they are.

    Raises:
        ValueError: embeddings that do not fit the encoders.
    """
    names = text_encoders(pipeline)
    pieces: dict[str, list[str]] = {}
    vectors: list[list[Tensor]] = [[] for _ in names]
    for number, (token, embeddings) in enumerate(tokens.items()):
        rows = [e[None] if e.ndim == 1 else e for e in embeddings]
        if [r.shape[1] for r in rows] != widths(pipeline) or len({len(r) for r in rows}) != 1:
            raise ValueError(
                f"the token {token} needs as many embeddings for each text encoder, of the lengths "
                f"{widths(pipeline)}, not of the shapes {[tuple(e.shape) for e in embeddings]}"
            )
        # Names of our own, all lower case as some pipelines lower their prompts, and without the _1 that
        # Diffusers would expand once more.
        pieces[token] = [f"<|new {number} {i}|>" for i in range(len(rows[0]))]
        for own, row in zip(vectors, rows, strict=True):
            own.append(row)
    words = [word for several in pieces.values() for word in several]
    view = copy.copy(pipeline)
    with ExitStack() as stack:
        for (tokenizer_name, encoder_name), own in zip(names, vectors, strict=True):
            tokenizer = copy.deepcopy(getattr(pipeline, tokenizer_name))
            ids = _add(tokenizer, words)
            view.__dict__[tokenizer_name] = tokenizer
            stack.enter_context(_embed(getattr(pipeline, encoder_name), ids, torch.cat(own)))
        yield view, partial(_expand, pieces)


def _expand(pieces: Mapping[str, Sequence[str]], prompt: str) -> str:
    for token in sorted(pieces, key=len, reverse=True):
        prompt = prompt.replace(token, " ".join(pieces[token]))
    return prompt


def _add(tokenizer: Any, words: Sequence[str]) -> list[int]:
    from transformers import AddedToken

    # With the space before it, which tokenizers of whole texts would make a token of its own.
    tokenizer.add_tokens([AddedToken(word, normalized=False, lstrip=True) for word in words])
    return list(tokenizer.convert_tokens_to_ids(list(words)))


@contextmanager
def _embed(encoder: nn.Module, ids: Sequence[int], vectors: Tensor) -> Iterator[None]:
    """Hooks under which these ids have these embeddings.

    The ids are replaced before the encoder sees them: its table has no rows for them, and CLIP finds the
    end of the text as the greatest id.
    """
    where: list[Tensor] = []

    def take(module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        row = torch.full_like(given, -1)
        for number, one in enumerate(ids):
            row[given == one] = number
        where.append(row)
        plain = torch.where(row >= 0, torch.zeros_like(given), given)
        if "input_ids" in kwargs:
            return args, {**kwargs, "input_ids": plain}
        return (plain, *args[1:]), kwargs

    def give(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not where:
            return output
        row = where.pop()
        # Gemma's table multiplies what it looks up.
        found = vectors.to(output)[row.clamp_min(0)] * getattr(module, "embed_scale", 1)
        return torch.where(row[..., None] >= 0, found.to(output), output)

    table = encoder.get_input_embeddings()  # type: ignore[operator]
    # T5 looks up in a second module, which shares the weight.
    tables = [m for m in encoder.modules() if getattr(m, "weight", None) is table.weight]
    hooks = [
        encoder.register_forward_pre_hook(take, with_kwargs=True),
        *(module.register_forward_hook(give) for module in tables),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
