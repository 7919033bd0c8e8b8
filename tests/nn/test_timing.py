"""Time steps keep the memory format of images: convolutions are slow in a mixture of two."""

from __future__ import annotations

import pytest
import torch

from qsdformer.nn.neurons import IELIF, LIF
from qsdformer.nn.timing import TimeInput, TimeRepeat

SHAPE = (2, 3, 5, 7)
FORMATS = [torch.channels_last, torch.contiguous_format]


def _images(memory_format: torch.memory_format) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_repeated_images_and_their_gradient_keep_the_memory_format(memory_format):
    x = _images(memory_format).requires_grad_()
    for repeated in (TimeInput(steps=4)(x), TimeRepeat(4)(x, x)):
        assert repeated.is_contiguous(memory_format=memory_format)
        assert torch.equal(repeated, x.repeat(4, 1, 1, 1))
    weights = torch.randn_like(repeated)
    repeated.backward(weights)
    assert x.grad.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(x.grad, weights.unflatten(0, (4, -1)).sum(0))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("neuron", [LIF(4), IELIF(4, time_steps=4)], ids=["lif", "ielif"])
def test_a_neuron_of_several_steps_keeps_the_memory_format(neuron, memory_format):
    x = TimeRepeat(4)(images := _images(memory_format), images).requires_grad_()
    values = neuron(x)
    assert values.is_contiguous(memory_format=memory_format)
    values.backward(torch.randn_like(values))
    assert x.grad.is_contiguous(memory_format=memory_format)
