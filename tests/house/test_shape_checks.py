"""Wrong shapes in a signature are caught while the tests run; wrong plain types are not."""

import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped
from shape_checks import checked
from torch import Tensor, zeros


@jaxtyped(typechecker=checked)
def paired(
    images: Float[Tensor, "batch 3"], count: int, more: list[Float[Tensor, " batch"]] | None = None
) -> Float[Tensor, " batch"]:
    return images[:, 0] if count else images[:1, 0]


def test_shapes_are_checked() -> None:
    assert paired(zeros(2, 3), 1, [zeros(2)]).shape == (2,)
    with pytest.raises(TypeCheckError, match="images"):
        paired(zeros(2, 4), 1)
    with pytest.raises(TypeCheckError, match="more"):
        paired(zeros(2, 3), 1, [zeros(3)])
    with pytest.raises(TypeCheckError, match="return value"):
        paired(zeros(2, 3), 0)


def test_plain_types_are_left_to_the_library() -> None:
    assert paired(zeros(2, 3), "one").shape == (2,)


def test_the_packages_are_under_check(pytestconfig: pytest.Config) -> None:
    *packages, checker = pytestconfig.getoption("--jaxtyping-packages").split(",")
    assert packages == ["countgen", "pipelines", "critics"]
    assert checker == f"{checked.__module__}.{checked.__name__}"
