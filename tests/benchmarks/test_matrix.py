"""The committed table of families is what the command gives."""

from __future__ import annotations

import pytest

from benchmarks import matrix
from pipelines.registry import FAMILIES


def test_the_committed_page_is_what_cards_and_signatures_tell() -> None:
    text = matrix.PAGE.read_text(encoding="utf-8")
    rows = matrix.read(text)
    assert text == matrix.page(rows)
    assert [row["family"] for row in rows] == list(FAMILIES) == list(matrix.MEASURED)
    for row in rows:
        known = matrix.known(row["family"])
        assert {name: row[name] for name in matrix.KNOWN} == known


def test_every_family_has_a_gradient_takes_edits_and_equals_diffusers() -> None:
    for row in matrix.read(matrix.PAGE.read_text(encoding="utf-8")):
        assert row["gradient"].startswith("yes")
        assert float(row["edits"].split()[0]) > 1
        assert float(row["equality with Diffusers"]) <= 1e-5
        shares = [int(share.rstrip("%")) for share in row["memory plans"].split()]
        assert shares[0] == 100 > shares[1] >= shares[2]


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_what_is_measured_is_measured_again(name: str) -> None:
    (row,) = (r for r in matrix.read(matrix.PAGE.read_text("utf-8")) if r["family"] == name)
    found = matrix.found(name)
    assert float(found["equality with Diffusers"]) <= 1e-5
    assert found["gradient"] == row["gradient"] and found["memory plans"] == row["memory plans"]
