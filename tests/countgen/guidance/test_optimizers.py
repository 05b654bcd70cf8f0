"""Optimizers: each picture alone, equal to torch's own where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.base import Optimizer, Rows, join, pick, row_norms
from countgen.guidance.optimizers import SGD, Adam, Polyak, clipped

STEPS = 6


def rows(batch: int, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    return {"a": tensor(3, 4), "b": tensor(5)}


def gradients(batch: int) -> list[Rows]:
    """One for every step; some longer and some shorter than the clip of 1."""
    return [
        {name: t * scale for name, t in rows(batch, seed=10 + i).items()}
        for i, scale in enumerate((2.0, 0.05, 0.7, 3.0, 0.01, 1.0))
    ]


def run(optimizer: Optimizer, begin: Rows, grads: Sequence[Rows], loss: Tensor) -> Rows:
    state, now = optimizer.init(begin), begin
    for grad in grads:
        now, state = optimizer.update(grad, state, now, loss)
    return now


def torchs(
    kind: Any, begin: Rows, grads: Sequence[Rows], clip: float | None, **options: Any
) -> Rows:
    """The same by torch, on one picture."""
    leaves = {name: t.clone().requires_grad_() for name, t in begin.items()}
    theirs = kind(leaves.values(), **options)
    for grad in grads:
        for name, leaf in leaves.items():
            leaf.grad = grad[name].clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(leaves.values()), clip)
        theirs.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.3}),
        (SGD, torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}),
        (SGD, torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "nesterov": True}),
        (Adam, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}),
        (
            Adam,
            torch.optim.AdamW,
            {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2},
        ),
    ],
)
def test_one_picture_goes_as_torchs_own_takes_it(
    ours: Any, theirs: Any, options: dict[str, Any], clip: float | None
) -> None:
    begin, grads = rows(1), gradients(1)
    found = run(ours(clip=clip, **options), begin, grads, torch.ones(1))
    expected = torchs(theirs, begin, grads, clip, **options)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)
        assert not torch.allclose(tensor, begin[name])


def test_the_defaults_are_those_of_torchs_adam() -> None:
    begin, grads = rows(1), gradients(1)
    found = run(Adam(0.1), begin, grads, torch.ones(1))
    expected = torchs(torch.optim.AdamW, begin, grads, None, lr=0.1, weight_decay=0.0)
    torch.testing.assert_close(found["a"], expected["a"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "optimizer",
    [Polyak(), SGD(0.3, 0.9, nesterov=True, clip=1.0), Adam(0.1, weight_decay=0.1, clip=1.0)],
)
def test_a_batch_is_its_pictures_alone(optimizer: Optimizer) -> None:
    begin, grads, loss = rows(3), gradients(3), torch.tensor([2.0, 0.01, 0.5])
    together = run(optimizer, begin, grads, loss)
    alone = join(
        [
            run(optimizer, pick(begin, i), [pick(g, i) for g in grads], loss[i : i + 1])
            for i in range(3)
        ]
    )
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-12, atol=1e-12)


def test_states_are_rows_that_can_be_joined_at_different_ages() -> None:
    optimizer, begin, grads = Adam(0.1), rows(2), gradients(2)
    old, state = pick(begin, 0), Adam(0.1).init(pick(begin, 0))
    for grad in grads[:3]:
        old, state = optimizer.update(pick(grad, 0), state, old, torch.ones(1))
    young = pick(begin, 1)
    both, _ = optimizer.update(
        grads[3], join([state, optimizer.init(young)]), join([old, young]), torch.ones(2)
    )
    expected = run(optimizer, young, [pick(grads[3], 1)], torch.ones(1))
    torch.testing.assert_close(pick(both, 1)["a"], expected["a"])
    expected = run(optimizer, pick(begin, 0), [pick(g, 0) for g in grads[:4]], torch.ones(1))
    torch.testing.assert_close(pick(both, 0)["a"], expected["a"])


def test_polyaks_step_is_loss_over_gradient_norm_as_far_as_it_reaches() -> None:
    begin, grad = rows(2), gradients(2)[0]
    length, radius = row_norms(grad), row_norms(begin)
    loss = torch.stack([0.01 * length[0] * radius[0], 50 * length[1] * radius[1]])
    found = run(Polyak(0.05, momentum=0.0), begin, [grad], loss)
    moved = {name: found[name] - tensor for name, tensor in begin.items()}
    # Loss / norm of the first lies within its reach of 0.05 radii, that of the second does not.
    expected = torch.stack([0.01 * radius[0], 0.05 * radius[1]])
    torch.testing.assert_close(row_norms(moved), expected)
    for name, tensor in moved.items():
        along = tensor * length.reshape(-1, *[1] * (tensor.ndim - 1))
        expected_way = -grad[name] * expected.reshape(-1, *[1] * (tensor.ndim - 1))
        torch.testing.assert_close(along, expected_way)


def test_polyaks_momentum_carries_a_part_of_every_step_on() -> None:
    begin, (first, second) = rows(1), gradients(1)[:2]
    loss = torch.tensor([1e9])
    optimizer, plain = Polyak(0.05, momentum=0.7), Polyak(0.05, momentum=0.0)
    state, one = optimizer.init(begin), begin
    one, state = optimizer.update(first, state, one, loss)
    two, _ = optimizer.update(second, state, one, loss)
    alone = run(plain, one, [second], loss)
    for name in begin:
        carried = 0.7 * (one[name] - begin[name])
        torch.testing.assert_close(two[name] - one[name], alone[name] - one[name] + carried)
        assert carried.abs().max() > 0


def test_rows_of_zeros_step_as_far_as_a_noise_of_their_size() -> None:
    begin = {"mean": torch.zeros(1, 4, 5)}
    found = run(Polyak(0.05, 0.0), begin, [{"mean": torch.ones(1, 4, 5)}], torch.tensor([1e9]))
    assert row_norms(found).item() == pytest.approx(0.05 * 20**0.5)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    begin = rows(1)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in begin.items()}
    for optimizer in (Polyak(), SGD(0.3, clip=1.0), Adam(0.1)):
        found = run(optimizer, begin, [zeros], torch.tensor([3.0]))
        for name, tensor in begin.items():
            assert torch.equal(found[name], tensor)


def test_clipping_shortens_every_pictures_own_gradient() -> None:
    grad = gradients(2)[0]
    grad = {name: torch.cat([tensor[:1], 1e-3 * tensor[1:]]) for name, tensor in grad.items()}
    found = row_norms(clipped(grad, 1.0))
    assert row_norms(grad)[0] > 2 and found[0].item() == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(found[1], row_norms(grad)[1])
    assert clipped(grad, None) is grad


@pytest.mark.parametrize("kind", [Polyak, SGD, Adam])
@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
def test_steps_must_be_positive(kind: Any, step: float) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        kind(step)
