"""Networks as users write them, from layers of `qsdformer.nn` and ordinary torch operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsdformer.data.base import DataInfo
from qsdformer.nn import (
    IELIF,
    LIF,
    QuantConv2d,
    QuantLinear,
    SpikeAttention,
    TimeInput,
    TimeMean,
)
from qsdformer.nn.blocks import border_conv

INFO = DataInfo(
    image_size=16, channels=3, class_names=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3
)


def conv(width_in: int, width_out: int, kernel: int = 3, stride: int = 1) -> QuantConv2d:
    return QuantConv2d(
        width_in, width_out, kernel, stride=stride, padding=kernel // 2, bias=False, bits=4
    )


class Residual(nn.Module):
    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.neuron1, self.neuron2 = LIF(steps, threshold=0.3), LIF(steps, threshold=0.3)
        self.conv1, self.conv2 = conv(width, width), conv(width, width)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(self.neuron1(x)))
        return x + self.norm2(self.conv2(self.neuron2(y)))


class ResNet(nn.Module):
    """A spiking ResNet that repeats its images and takes the mean of its logits itself."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.stem, self.norm = conv(3, 6), nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(Residual(6, steps), Residual(6, steps))
        self.neuron = LIF(steps, threshold=0.3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = QuantLinear(6, 5, bits=8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(self.steps, 1, 1, 1)
        x = self.blocks(self.norm(self.stem(x)))
        x = torch.flatten(self.pool(self.neuron(x)), 1)
        return self.head(x).view(self.steps, -1, 5).mean(0)


class Unsqueezed(nn.Module):
    """(T, B, C, H, W) between layers, as other spiking libraries have it."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.steps = steps
        self.conv, self.neuron = QuantConv2d(3, 6, 3, bits=4), LIF(steps, threshold=0.2)
        self.head = QuantLinear(6, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        x = self.neuron(self.conv(x.flatten(0, 1)))
        x = F.avg_pool2d(x, x.shape[-1]).flatten(1)
        return self.head(x).reshape(self.steps, x.shape[0] // self.steps, -1).mean(dim=0)


class Pooled(nn.Sequential):
    """Pools of counts and of membranes, and a linear layer on the flattened map."""

    def __init__(self) -> None:
        super().__init__(
            conv(3, 6),
            nn.BatchNorm2d(6),
            IELIF(4),
            nn.AdaptiveMaxPool2d(8),
            QuantConv2d(6, 6, 3, padding="same", bits=4),
            nn.MaxPool2d(3, 2, 1),
            nn.BatchNorm2d(6),
            IELIF(4),
            nn.AvgPool2d(2),
            conv(6, 6, 1),
            IELIF(4),
            nn.Dropout(0.1),
            nn.Flatten(),
            QuantLinear(24, 5, bits=4),
        )


class Attentive(nn.Module):
    """Attention with a v twice as wide, a layer scale of its own, leaves for time."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.input, self.mean = TimeInput(steps, 3), TimeMean(steps)
        self.stem, self.norm = conv(3, 8, 5, 4), nn.BatchNorm2d(8)
        for name, width in (("q", 8), ("k", 8), ("v", 16)):
            layers = (conv(8, width, 1), nn.BatchNorm2d(width), IELIF(4, steps))
            self.add_module(name, nn.Sequential(*layers))
        self.neuron, self.product = IELIF(4, steps), SpikeAttention(2)
        self.attended = nn.Sequential(nn.BatchNorm2d(16), IELIF(4, steps), conv(16, 8, 1))
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.last, self.head = IELIF(4, steps), QuantLinear(8, 5, bits=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(self.input(x)))
        y = self.neuron(x)
        y = self.attended(self.product(self.q(y), self.k(y), self.v(y)))
        x = x + y * self.gamma.view(1, -1, 1, 1)
        return self.head(self.mean(self.last(x.mean((2, 3)))))


class Shared(nn.Module):
    """One neuron, one convolution and one norm called several times; norms of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = IELIF(4)
        self.stem, self.conv, self.norm = conv(3, 6), conv(6, 6), nn.BatchNorm2d(6)
        self.fc1, self.norm1 = QuantLinear(6, 8, bits=4), nn.BatchNorm1d(8)
        self.fc2 = QuantLinear(8, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.norm(self.conv(self.neuron(x)))
        x = self.neuron(F.adaptive_avg_pool2d(x, 1)).squeeze(-1).squeeze(-1)
        return self.fc2(self.neuron(self.norm1(self.fc1(x))))


class Plain(nn.Module):
    """No norm, convolutions in a row with bias, binary neurons without time, a mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(3, 6, 3, 2, 1, bits=4)
        self.neuron1 = LIF(time_steps=1, threshold=0.1)
        self.conv2 = QuantConv2d(6, 6, 3, 2, 1, bits=4)
        self.conv3 = QuantConv2d(6, 6, 3, 1, 1, bits=4)
        self.neuron2 = LIF(time_steps=1, threshold=0.05)
        self.head = QuantLinear(6, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron2(self.conv3(self.conv2(self.neuron1(self.conv1(2 * x - 1)))))
        return self.head(x.flatten(2).mean(-1))


class Counting(nn.Module):
    """Sums, products and concatenations of spike counts, and a mask of whole channels."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.steps = steps
        self.convs = nn.ModuleList([conv(3, 6), conv(6, 6), conv(12, 6), conv(6, 6, 1)])
        self.neurons = nn.ModuleList(LIF(steps, threshold=0.2) for _ in range(4))
        self.mask = LIF(steps, threshold=0.3)
        self.head = QuantLinear(6, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x] * self.steps).flatten(0, 1)
        x = F.max_pool2d(self.neurons[0](self.convs[0](x)), 3, 2, 1)
        x = x + self.neurons[1](self.convs[1](x))
        y = torch.cat([x, self.neurons[1](self.convs[1](x))], dim=1)
        y = self.neurons[2](self.convs[2](y))
        mask = self.mask((x * y).sum((2, 3), keepdim=True))
        y = self.neurons[3](self.convs[3](y * mask))
        return self.head(y.mean((2, 3)).view(self.steps, -1, 6).mean(0))


class Tokens(nn.Module):
    """Linear layers on tokens, (B, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = QuantConv2d(3, 8, 4, 4, bits=4)
        self.neuron1, self.neuron2 = IELIF(4), IELIF(4)
        self.fc, self.head = QuantLinear(8, 8, bits=4), QuantLinear(8, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.patches(x)).flatten(2).transpose(1, 2)
        x = self.neuron2(x + self.fc(x))
        return self.head(x.mean(1))


class Pyramid(nn.Module):
    """Feature maps in place of logits, with upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6, stride=2), conv(6, 6, stride=2)
        self.neuron1, self.neuron2, self.neuron3 = IELIF(4), IELIF(4), IELIF(4)
        self.lateral1, self.lateral2 = (QuantConv2d(6, 4, 1, bits=4) for _ in range(2))
        self.out = conv(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.neuron1(self.conv1(x))
        coarse = self.lateral2(self.neuron2(self.conv2(fine)))
        up = F.interpolate(coarse, scale_factor=2, mode="nearest")
        smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return {
            "p1": self.out(self.neuron3(self.lateral1(fine) + up)),
            "p2": coarse,
            "smooth": smooth,
        }


class Bordered(nn.Module):
    """A biased 1x1 convolution before a depthwise one whose border is that of its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = conv(3, 6), IELIF(4)
        self.conv, self.norm = QuantConv2d(6, 6, 1, bits=4), nn.BatchNorm2d(6)
        self.depthwise = QuantConv2d(6, 6, 3, padding=1, groups=6, bias=False, bits=4)
        self.last, self.head = IELIF(4), QuantLinear(6, 5, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        x = border_conv(self.conv(self.neuron(self.stem(x))), self.norm, self.depthwise)
        return self.head(self.last(x).mean((2, 3)))


class Net(nn.Module):
    """A small network with something of the user's between convolution and neuron."""

    def __init__(self, inside: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.conv, self.neuron = QuantConv2d(3, 6, 3, padding=1, bits=4), IELIF(4)
        self.head, self.inside = QuantLinear(6, 5, bits=4), inside
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neuron(self.inside(self, self.conv(x))).mean((2, 3)))


def through(module: nn.Module) -> Net:
    return Net(lambda net, x: net.own(x), own=module)


def by(function: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda net, x: function(x))


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "ResNet, T = 4": ResNet,
    "time axis apart": Unsqueezed,
    "pools and a flattened map": Pooled,
    "attention": Attentive,
    "shared modules": Shared,
    "no norms": Plain,
    "sums and products of counts": Counting,
    "tokens": Tokens,
    "a border of the norm's": Bordered,
}


def settled(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in eval mode with statistics of random images."""
    torch.manual_seed(0)
    model = make().train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 16, 16))
    return model.eval()


def pixels(count: int = 3) -> Tensor:
    """(count, 3, 16, 16) uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
