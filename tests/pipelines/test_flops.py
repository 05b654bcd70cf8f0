"""Operations are counted as torch's own counter does, in one thread alone."""

from __future__ import annotations

import threading

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipelines.flops import CountedFlops


class Net(nn.Module):
    """A convolution, attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.convolution(images).flatten(2).transpose(1, 2)
        return self.linear(F.scaled_dot_product_attention(tokens, tokens, tokens)).square().sum()


def test_forward_and_backward_are_those_of_torchs_counter() -> None:
    net, images = Net(), torch.rand(2, 3, 9, 9, requires_grad=True)
    with FlopCounterMode(display=False) as theirs:
        loss = net(images)
    with FlopCounterMode(display=False) as theirs_back:
        loss.backward()
    with CountedFlops() as mine:
        loss = net(images)
    with CountedFlops() as mine_back:
        loss.backward()
    assert mine.total == theirs.get_total_flops() > 0
    assert mine_back.total == theirs_back.get_total_flops() > mine.total


def test_other_threads_go_on_undisturbed_and_uncounted() -> None:
    net = Net()
    failed: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                torch.autograd.grad(net(leaf := torch.rand(1, 3, 9, 9, requires_grad=True)), leaf)
        except BaseException as error:
            failed.append(error)

    images, totals = torch.rand(1, 3, 9, 9, requires_grad=True), set()
    other = threading.Thread(target=work)
    other.start()
    for _ in range(50):
        with CountedFlops() as counted:
            torch.autograd.grad(net(images), images)
        totals.add(counted.total)
    done.set()
    other.join()
    assert not failed and len(totals) == 1
