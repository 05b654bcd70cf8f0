"""Seeds that depend on what is drawn, never on batch size or on the number of processes."""

from __future__ import annotations

from hashlib import blake2b


def image_seed(run_seed: int, prompt_id: str, image: int = 0, candidate: int = 0) -> int:
    """A 63-bit seed: the hash of run seed, prompt id, image index and candidate index."""
    text = "\x1f".join((str(run_seed), prompt_id, str(image), str(candidate)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derived_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed of another chance than ``seed`` itself, such as that of one edit of a picture."""
    text = "\x1e".join((str(seed), *map(str, parts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
