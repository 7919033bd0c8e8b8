"""Random small integer graphs over all operations, for comparisons of ways to execute them.

`random_graph(seed)` is valid, and every real number that it stands for is exact in float32: factors
are small multiples of powers of two and bounds stay below 2^24 units, so that a runtime that
computes in float32 must give equal counts and outputs. Neurons whose thresholds runtimes round to
(the k - 1/2 of IE-LIF) read values that never lie on a threshold, where roundings differ; others
compare, and are exact anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qsdformer.data.preprocessing import Preprocessing
from qsdformer.graph.check import Shape, check_graph, result_shape
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import (
    IELIF,
    INT32_MAX,
    LIF,
    Add,
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    CountAdd,
    Frames,
    MaxPool,
    Multiply,
    Normalise,
    Op,
    Repeat,
    Rescale,
    Reshape,
    SpatialMean,
    SpatialSum,
    TimeSum,
    Upsample,
)

FRACTION = 16  # of membrane potentials
GRAIN = 4096  # membrane potentials are BIAS modulo GRAIN, and so on no threshold
BIAS = 128
FLOAT32 = 2**24


@dataclass(frozen=True, kw_only=True)
class Made:
    """A value of the graph under construction; all its integers are `rest` modulo `grain`."""

    name: str
    shape: Shape
    grain: int = 1
    rest: int = 0

    @property
    def unit(self) -> int:
        """A power of two that divides all the integers."""
        return math.gcd(self.grain, self.rest)

    @property
    def is_membrane(self) -> bool:
        return self.shape.fraction == FRACTION


@dataclass
class Builder:
    """Appends random operations to those it has; one that would not be valid is left out."""

    rng: np.random.Generator
    pre: Preprocessing
    steps: int
    ops: list[Op] = field(default_factory=list)
    values: list[Made] = field(default_factory=list)

    def emit(self, kind: type[Op], *inputs: Made, grain: int = 1, rest: int = 0, **fields) -> Made:
        """The result of a new operation; ValueError if it leaves the range that is exact."""
        name = f"{kind.__name__.lower()}_{len(self.ops)}"
        op = kind(name=name, inputs=tuple(x.name for x in inputs), **fields)
        shape = result_shape(op, [x.shape for x in inputs], self.pre)
        made = Made(name=name, shape=shape, grain=grain, rest=rest % grain)
        small = shape.channels <= 24 and shape.height * shape.width <= 400
        if not small or shape.bound.max() >= min(FLOAT32 * made.unit, INT32_MAX):
            raise ValueError("too large for this purpose")
        self.ops.append(op)
        self.values.append(made)
        return made

    def integer(self, low: int, high: int) -> int:
        """low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, accept: Callable[[Made], bool] = lambda x: True) -> Made:
        """A random value so far, rather a late one; ValueError if there is none."""
        found = [x for x in self.values if accept(x)]
        if not found:
            raise ValueError("no such value")
        return found[-1 - int(len(found) * self.rng.random() ** 2)]

    def like(self, x: Made, same: Callable[[Shape], object]) -> Made:
        return self.pick(lambda y: y.name != x.name and same(y.shape) == same(x.shape))

    def codes(self, *shape: int) -> dict[str, object]:
        bits = self.integer(2, 8)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        codes = self.rng.integers(low, high + 1, shape).astype(np.int8)
        return {"codes": codes, "bits": bits}

    def conv(self, x: Made, kernel: int, channels: int) -> Made:
        depthwise = self.rng.random() < 0.2
        groups = x.shape.channels if depthwise else 1
        out = x.shape.channels if depthwise else channels
        per_group = 1 if depthwise else x.shape.channels
        return self.emit(
            Conv,
            x,
            **self.codes(out, per_group, kernel, kernel),
            stride=self.integer(1, 2) if kernel > 1 else 1,
            padding=self.integer(0, kernel // 2),
            groups=groups,
            grain=x.unit,
        )

    def rescale(self, x: Made) -> Made:
        """To a membrane potential, with factors that need no rounding."""
        count = x.shape.channels
        shift = self.rng.integers(0, 9, count)
        factor = self.rng.choice((-3, -2, -1, 1, 2, 3), count)
        multiplier = (factor * GRAIN << shift).astype(np.int64) // x.unit
        bias = self.rng.integers(-20, 40, count) * GRAIN + BIAS
        return self.emit(
            Rescale,
            x,
            multiplier=multiplier,
            shift=shift.astype(np.int8),
            bias=bias.astype(np.int64),
            limit=INT32_MAX,
            fraction=FRACTION,
            grain=GRAIN,
            rest=BIAS,
        )

    def neuron(self, x: Made) -> Made:
        steps = x.shape.steps
        carried = {"steps": steps, "limit": INT32_MAX}
        whole = x.shape.fraction == 0  # then rounding is done everywhere
        if self.rng.random() < 0.3 and (steps == 1 or whole or x.unit >= 2**steps):
            top = max(1, min(1 << x.shape.fraction, int(x.shape.bound.max())))
            leak = 2**15 if steps > 1 else int(self.rng.choice((2**15, 2**16, 21845)))
            return self.emit(LIF, x, threshold=self.integer(1, top), leak=leak, **carried)
        if steps > 1 and not whole and x.unit < 4**steps // 2:
            raise ValueError("decay would round")
        levels = int(self.rng.choice((1, 2, 4, 8) if steps > 1 else (1, 2, 3, 4, 6, 8)))
        decay = int(self.rng.choice((0, 2**14))) if steps > 1 else 2**14
        standard = standard_neuron(x.shape.fraction, levels)
        if self.rng.random() < 0.8 and _never_on_threshold(x, standard[0], steps, decay):
            thresholds, resets = standard
        else:
            top = max(4, int(x.shape.bound.max()))
            thresholds = tuple(sorted(self.integer(-top // 4, top // 2) for _ in range(levels)))
            resets = tuple(x.unit * self.integer(-9, 99) for _ in range(levels + 1))
        return self.emit(IELIF, x, thresholds=thresholds, resets=resets, decay=decay, **carried)

    def spikes(self, x: Made, channels: int) -> Made:
        """Convolution, norm and neuron: the commonest sequence."""
        return self.neuron(self.rescale(self.conv(x, self.integer(1, 3), channels)))

    # The random choices.

    def more_spikes(self) -> None:
        self.spikes(self.pick(), self.integer(1, 8))

    def more_membranes(self) -> None:
        self.rescale(self.conv(self.pick(), self.integer(1, 3), self.integer(1, 6)))

    def another_neuron(self) -> None:
        self.neuron(self.pick())

    def another_rescale(self) -> None:
        self.rescale(self.pick())

    def add(self) -> None:
        a = self.pick(lambda x: x.is_membrane)
        b = self.like(a, lambda s: (s.size, s.steps, s.fraction))
        grain = math.gcd(a.grain, b.grain)
        self.emit(Add, a, b, limit=INT32_MAX, grain=grain, rest=a.rest + b.rest)

    def count_add(self) -> None:
        a = self.pick(lambda x: not x.is_membrane)
        b = self.like(a, lambda s: (s.size, s.steps, s.fraction))
        self.emit(CountAdd, a, b)

    def multiply(self) -> None:
        a = self.pick()
        b = self.like(a, lambda s: (s.channels, s.steps))
        self.emit(Multiply, *((a, b) if self.rng.random() < 0.5 else (b, a)))

    def mask(self) -> None:
        """The attention of Spike-driven Transformer v1: OR over tokens, then AND."""
        q = self.pick(lambda x: x.shape.fraction == 0 and x.shape.bound.max() <= 1)
        k = self.pick(lambda x: x.shape.size == q.shape.size and x.shape.steps == q.shape.steps)
        sums = self.emit(SpatialSum, self.emit(Multiply, q, k))
        steps = sums.shape.steps
        mask = self.emit(LIF, sums, threshold=1, leak=2**15, steps=steps, limit=INT32_MAX)
        self.emit(Multiply, q, mask)

    def attention(self) -> None:
        x, heads = self.pick(), self.integer(1, 2)
        depth, wide = self.integer(1, 3), self.integer(1, 3)
        parts = []
        for channels in (heads * depth, heads * depth, heads * depth * wide):
            conv = self.emit(
                Conv,
                x,
                **self.codes(channels, x.shape.channels, 1, 1),
                stride=1,
                padding=0,
                groups=1,
                grain=x.unit,
            )
            parts.append(self.neuron(self.rescale(conv)))
        self.emit(Attention, *parts, heads=heads)

    def max_pool(self) -> None:
        x, kernel = self.pick(), self.integer(1, 3)
        stride, padding = self.integer(1, 2), self.integer(0, kernel // 2)
        same = {"grain": x.grain, "rest": x.rest}
        self.emit(MaxPool, x, kernel=kernel, stride=stride, padding=padding, **same)

    def upsample(self) -> None:
        x, bilinear = self.pick(), self.rng.random() < 0.5
        if bilinear:
            self.emit(Upsample, x, mode="bilinear", grain=x.grain, rest=16 * x.rest)
        else:
            self.emit(Upsample, x, mode="nearest", grain=x.grain, rest=x.rest)

    def conv_transpose(self) -> None:
        x = self.pick()
        y = self.emit(
            ConvTranspose,
            x,
            **self.codes(x.shape.channels, self.integer(1, 4), 2, 2),
            grain=x.unit,
        )
        if self.rng.random() < 0.8:
            y = self.rescale(y)
            if self.rng.random() < 0.7:
                self.neuron(y)

    def concat(self) -> None:
        a = self.pick()
        b = self.like(a, lambda s: (s.height, s.width, s.steps, s.fraction))
        grain = math.gcd(a.grain, b.grain, a.rest - b.rest)
        parts = (a, b, a) if self.rng.random() < 0.2 else (a, b)
        self.emit(Concat, *parts, grain=grain, rest=a.rest)

    def reshape(self) -> None:
        x = self.pick()
        channels, height, width = x.shape.size
        heads = next(h for h in (3, 2, 1) if channels % h == 0)
        size = (heads, channels // heads, height * width)
        if self.rng.random() < 0.5:
            size = (channels, width, height)
        fields = dict(zip(("channels", "height", "width"), size, strict=True))
        self.emit(Reshape, x, **fields, grain=x.grain, rest=x.rest)

    def spatial_sum(self) -> None:
        x = self.pick()
        self.emit(SpatialSum, x, grain=x.grain, rest=x.rest * x.shape.height * x.shape.width)

    def spatial_mean(self) -> None:
        x = self.pick(lambda x: x.grain % (x.shape.height * x.shape.width) == 0)
        n = x.shape.height * x.shape.width
        self.emit(SpatialMean, x, grain=x.grain // n, rest=x.rest)

    def time_sum(self) -> None:
        x = self.pick(lambda x: x.shape.steps > 1)
        steps = x.shape.steps
        self.emit(TimeSum, x, steps=steps, grain=x.grain, rest=steps * x.rest)

    def head(self) -> Made:
        """Logits of whatever there is."""
        x = self.pick(lambda x: x.shape.fraction == 0)
        if x.shape.height * x.shape.width > 1:
            x = self.emit(SpatialSum, x)
        if x.shape.steps > 1:
            x = self.emit(TimeSum, x, steps=x.shape.steps)
        conv = self.emit(
            Conv, x, **self.codes(3, x.shape.channels, 1, 1), stride=1, padding=0, groups=1
        )
        return self.rescale(conv)


CHOICES: tuple[tuple[Callable[[Builder], None], int], ...] = (
    (Builder.more_spikes, 5),
    (Builder.more_membranes, 3),
    (Builder.another_neuron, 2),
    (Builder.another_rescale, 2),
    (Builder.add, 3),
    (Builder.count_add, 3),
    (Builder.multiply, 2),
    (Builder.mask, 2),
    (Builder.attention, 2),
    (Builder.max_pool, 3),
    (Builder.upsample, 3),
    (Builder.conv_transpose, 2),
    (Builder.concat, 3),
    (Builder.reshape, 1),
    (Builder.spatial_sum, 1),
    (Builder.spatial_mean, 1),
    (Builder.time_sum, 1),
)


def standard_neuron(fraction: int, levels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Thresholds and resets of an IE-LIF neuron of `levels` levels: those of lowering."""
    one = 1 << fraction
    thresholds = tuple(-((1 - 2 * k) * one // (2 * levels)) for k in range(1, levels + 1))
    return thresholds, tuple((2 * k * one + levels) // (2 * levels) for k in range(levels + 1))


def _never_on_threshold(x: Made, thresholds: tuple[int, ...], steps: int, decay: int) -> bool:
    grain, rest = x.grain, x.rest
    for _ in range(steps):
        if any(t % grain == rest % grain for t in thresholds):
            return False
        if decay:
            grain, rest = max(grain // 4, 1), x.rest + rest // 4
    return True


def random_graph(seed: int, choices: int = 10) -> IntegerGraph:
    """A valid graph of about `choices` random pieces; the same one for the same seed."""
    rng = np.random.default_rng(seed)
    channels, size = int(rng.integers(1, 4)), int(rng.choice((4, 5, 8)))
    pre = Preprocessing(
        image_size=size,
        channels=channels,
        mean=(128 / 255,) * channels,  # pixel / 64 - 2
        std=(64 / 255,) * channels,
    )
    steps = int(rng.choice((1, 1, 2, 4)))
    builder = Builder(rng=rng, pre=pre, steps=steps)
    while not _tried(builder, _start):
        pass
    weights = np.array([weight for _, weight in CHOICES], float)
    made = 0
    while made < choices:
        choice = CHOICES[rng.choice(len(CHOICES), p=weights / weights.sum())][0]
        made += _tried(builder, choice)
    with_logits = rng.random() < 0.7 and any(_tried(builder, lambda b: b.head()) for _ in range(20))
    graph = IntegerGraph(
        ops=tuple(builder.ops),
        preprocessing=pre,
        class_names=("cat", "dog", "owl") if with_logits else (),
        config={},
        membrane_bits=32,
        membrane_fraction=FRACTION,
        outputs=_outputs(builder, least=0 if with_logits else 1),
    )
    check_graph(graph)
    return graph


def random_frames(graph: IntegerGraph, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Pixels for `graph`, with a time axis where it takes frames."""
    pre = graph.preprocessing
    shape = (batch, pre.channels, pre.image_size, pre.image_size)
    if graph.takes_frames:
        shape = (graph.time_steps, *shape)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def _start(builder: Builder) -> None:
    """The table, the stem, and the time axis before or after it."""
    rng, pre, steps = builder.rng, builder.pre, builder.steps
    if rng.random() < 0.5:
        table = np.arange(256)[None].repeat(pre.channels, axis=0) - 128
    else:
        table = rng.integers(-128, 129, (pre.channels, 256))
    x = builder.emit(Normalise, table=table.astype(np.int32), fraction=6)
    frames = rng.random() < 0.4
    if frames:
        x = builder.emit(Frames, x, steps=steps)
    early = rng.random() < 0.5
    if steps > 1 and early and not frames:
        x = builder.emit(Repeat, x, steps=steps)
    kernel = builder.integer(1, 3)
    x = builder.rescale(builder.conv(x, kernel, builder.integer(2, 6)))
    if steps > 1 and not early and not frames:
        x = builder.emit(Repeat, x, steps=steps, grain=x.grain, rest=x.rest)
    builder.values = [x]
    builder.neuron(x)


def _tried(builder: Builder, choice: Callable[[Builder], object]) -> bool:
    """Whether the choice was possible; if not, nothing is left of it."""
    ops, values = list(builder.ops), list(builder.values)
    try:
        choice(builder)
    except ValueError:
        builder.ops, builder.values = ops, values
        return False
    return True


def _outputs(builder: Builder, least: int) -> tuple[Output, ...]:
    outputs = []
    for number in range(builder.integer(least, 3)):
        x = builder.pick()
        count = int(builder.rng.choice((1, x.shape.channels)))
        scale = 2.0 ** builder.rng.integers(-8, 3, count)
        outputs.append(Output(name=f"map{number}", op=x.name, scale=tuple(map(float, scale))))
    return tuple(outputs)
