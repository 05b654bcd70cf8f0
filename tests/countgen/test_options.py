"""What can be asked for when something is drawn."""

from __future__ import annotations

import pytest

from countgen.errors import UsageError
from countgen.options import DrawOptions


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seed": [1, 2]}, r"the seed must be a whole number, not \[1, 2\]"),
        ({"seed": 1.5}, r"the seed must be a whole number, not 1\.5"),
        ({"num_images_per_prompt": 1.5}, "the number of images must be a whole number"),
        ({"budget": "many"}, "the budget must be a number of plain renders, not 'many'"),
    ],
)
def test_what_is_no_number_is_told(asked: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DrawOptions(**asked).checked()
