"""A tokenizer for tiny CLIP models."""

from transformers import CLIPTokenizer


def letters() -> CLIPTokenizer:
    """A real CLIP tokenizer whose words are single letters."""
    signs = [chr(code) for code in range(33, 127)]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    names = [*signs, *(f"{sign}</w>" for sign in signs), *marks]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
