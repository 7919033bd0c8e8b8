"""Arguments of recorded calls: each is honoured or refused, by position and by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qsdformer as qsd
from graph.user_networks import INFO, Net, by, pixels, settled, through
from qsdformer.errors import UserError
from qsdformer.nn import IELIF, QuantConv2d, QuantLinear
from qsdformer.runtimes.executors import normalised

HONOURED: dict[str, Callable[[Tensor], Tensor]] = {
    "an average pool": lambda x: F.avg_pool2d(x, 3, 1, 1, False, True),
    "an average pool, no padding": lambda x: F.avg_pool2d(x, 2, 2, 0, False, False, None),
    "a maximum pool": lambda x: torch.max_pool2d(x, 3, 1, 1, 1, False),
    "an adaptive maximum pool": lambda x: F.adaptive_max_pool2d(x, (4, 4)),
    "the largest of the map": lambda x: F.adaptive_max_pool2d(x, 1, False),
    "a product": lambda x: torch.div(input=x, other=2.0, rounding_mode=None),
    "a sum": lambda x: torch.add(input=x, other=0.25, alpha=1),
    "a dropout": lambda x: F.dropout(torch.dropout(x, 0.5, False), 0.5, False),
    "slices": lambda x: x[:, 0:6, ..., ::1],
    "upsampling": lambda x: F.interpolate(x, None, 2.0, "bilinear", False),
    "upsampling to a size": lambda x: F.interpolate(x, (32, 32)),
    "upsampling by the size": lambda x: F.interpolate(
        x, scale_factor=2.01, mode="bilinear", recompute_scale_factor=True
    ),
}


@pytest.mark.parametrize("case", HONOURED)
def test_arguments_that_are_understood_give_the_logits_of_the_model(case):
    model = settled(lambda: by(HONOURED[case]))
    graph = qsd.lower(model, INFO)
    with torch.no_grad():
        expected = model(normalised(pixels().numpy(), graph.preprocessing))
    np.testing.assert_allclose(graph.logits(pixels().numpy()), expected.numpy(), atol=1e-3)


class Grid(nn.Module):
    """Ends in a reduction of the user's own."""

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.neuron = QuantConv2d(3, 6, 3, padding=1, bits=4), IELIF(4)
        self.head, self.reduce = QuantLinear(6, 5, bits=4), reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reduce(self.neuron(self.conv(x))))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding not counted": (
        lambda: by(lambda x: F.avg_pool2d(x, 3, 1, 1, False, False)),
        r"the model \(Net\): an average pool must count its padding",
    ),
    "an average pool rounded up": (
        lambda: by(lambda x: F.avg_pool2d(x, 3, 2, 0, True)),
        "a pool with ceil_mode",
    ),
    "another divisor": (
        lambda: by(lambda x: F.avg_pool2d(x, 3, 1, 1, False, True, 2)),
        "a pool with divisor_override",
    ),
    "a dilated pool": (
        lambda: by(lambda x: torch.max_pool2d(x, 3, 1, 1, 2)),
        "a pool with dilation",
    ),
    "an adaptive maximum pool of unequal windows": (
        lambda: by(lambda x: F.adaptive_max_pool2d(x, 3)),
        "an adaptive pool must divide the map into equal squares",
    ),
    "an adaptive maximum pool that tells where": (
        lambda: by(lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0]),
        "adaptive_max_pool2d_with_indices is not supported",
    ),
    "a module that tells where": (
        lambda: Net(lambda net, x: net.p(x)[0], p=nn.AdaptiveMaxPool2d(2, return_indices=True)),
        "a pool with return_indices is not supported",
    ),
    "a maximum pool rounded up": (
        lambda: by(lambda x: torch.max_pool2d(x, 3, 2, 0, 1, True)),
        "a pool with ceil_mode",
    ),
    "a rounded quotient": (
        lambda: by(lambda x: torch.div(x * 4, 3, rounding_mode="floor")),
        r"the model \(Net\): div with rounding_mode is not supported",
    ),
    "alpha": (lambda: by(lambda x: torch.add(x, 1, alpha=2)), "a sum with alpha"),
    "a sum elsewhere": (
        lambda: by(lambda x: torch.add(x, 1, out=x + 1)),
        "add with out is not supported",
    ),
    "a sum of whole numbers": (
        lambda: Grid(lambda x: x.sum((2, 3), dtype=torch.int64)),
        "a sum with dtype=torch.int64 is not supported",
    ),
    "a mean by another name": (
        lambda: Grid(lambda x: torch.mean(x, axis=(2, 3))),
        "mean with axis is not supported",
    ),
    "a dropout in evaluation": (
        lambda: by(lambda x: F.dropout(x, 0.5)),
        "a dropout is on in evaluation too: give it training=self.training",
    ),
    "a dropout by position": (
        lambda: by(lambda x: torch.dropout(x, 0.5, True)),
        "a dropout is on in evaluation",
    ),
    "channels in another order": (
        lambda: by(lambda x: x[:, [5, 4, 3, 2, 1, 0]]),
        "a choice of entries is not supported",
    ),
    "copies in the batch": (
        lambda: by(lambda x: torch.stack([x, x], 1).flatten(0, 1)),
        "copies must be stacked along a new first axis",
    ),
    "not quite the double": (
        lambda: by(lambda x: F.interpolate(x, scale_factor=2.01, mode="bilinear")),
        "upsampling must be by 2",
    ),
    "not quite the double, as a layer": (
        lambda: through(nn.Upsample(scale_factor=2.01, mode="bilinear")),
        r"own \(Upsample\): upsampling must be by 2",
    ),
    "antialiasing": (
        lambda: by(lambda x: F.interpolate(x, (32, 32), mode="bilinear", antialias=True)),
        "without align_corners and antialias",
    ),
    "axes by name": (
        lambda: by(lambda x: x.flatten(2).transpose(1, dim1=2).transpose(1, 2).view(x.shape)),
        "must be given by their places",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_would_be_ignored_are_refused_in_one_line(case):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        qsd.lower(make().eval(), INFO)
    assert "\n" not in str(error.value)
