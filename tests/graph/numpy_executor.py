"""Runs what `numpy_reader` read, slowly and plainly, from docs/artifact.md: for comparison.

Values are int64 arrays (B, C, H, W), written as the page defines them, pixel by pixel.
"""

import numpy as np

from graph.numpy_reader import field


def run(content, pixels):
    """The values of all operations, in order; pixels are (B, C, H, W) or (T, B, C, H, W)."""
    kinds = [op["op"] for op in content["ops"]]
    time_axis = pixels.ndim == 5
    assert time_axis or "frames" not in kinds
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).astype(np.int64)
    values = []
    for op in content["ops"]:
        kind, x = op["op"], [values[i] for i in op["inputs"]]

        def get(name, op=op):
            return op[name] if isinstance(op.get(name), np.ndarray) else field(content, op, name)

        if kind == "normalise":
            x = [pixels]
        if kind == "repeat" and time_axis:
            kind = "frames"
        values.append(RULES[kind](get, *x))
    return values


def normalise(get, x):
    table = get("table")
    return np.stack([table[c][x[:, c]] for c in range(x.shape[1])], axis=1)


def windows(x, kernel, stride, padding, fill):
    """Of every output pixel (i, j) its window (B, C, k, k), with `fill` outside the map."""
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x = np.pad(x, around, constant_values=fill)
    height, width = ((n - kernel) // stride + 1 for n in x.shape[2:])
    for i in range(height):
        for j in range(width):
            a, b = i * stride, j * stride
            yield i, j, (height, width), x[:, :, a : a + kernel, b : b + kernel]


def conv(get, x):
    codes, groups = get("codes"), get("groups")
    y, each_in, each_out = None, x.shape[1] // groups, len(codes) // groups
    for i, j, size, w in windows(x, codes.shape[-1], get("stride"), get("padding"), 0):
        y = np.zeros((len(x), len(codes), *size), np.int64) if y is None else y
        for o in range(len(codes)):
            first = (o // each_out) * each_in
            y[:, o, i, j] = (w[:, first : first + each_in] * codes[o]).sum(axis=(1, 2, 3))
    return y


def maxpool(get, x):
    y = None
    for i, j, size, w in windows(x, get("kernel"), get("stride"), get("padding"), -(2**62)):
        y = np.zeros((*x.shape[:2], *size), np.int64) if y is None else y
        y[:, :, i, j] = w.max(axis=(2, 3))
    return y


def convtranspose(get, x):
    codes = get("codes")
    batch, _, height, width = x.shape
    y = np.zeros((batch, codes.shape[1], 2 * height, 2 * width), np.int64)
    for i in range(2 * height):
        for j in range(2 * width):
            y[:, :, i, j] = x[:, :, i // 2, j // 2] @ codes[:, :, i % 2, j % 2]
    return y


def rescale(get, x):
    m, s, b = (get(n).reshape(-1, 1, 1).astype(object) for n in ("multiplier", "shift", "bias"))
    y = ((x * m + (2**s // 2)) // 2**s) + b
    return np.clip(y, -get("limit"), get("limit")).astype(np.int64)


def add(get, a, b):
    return np.clip(a + b, -get("limit"), get("limit"))


def ielif(get, x):
    thresholds, resets, limit = get("thresholds"), get("resets"), get("limit")
    out, v = [], None
    for u in np.split(x, get("steps")):
        h = u
        if v is not None:
            h = np.clip(u + (get("decay") * v + 2**15) // 2**16, -limit, limit)
        counts = sum((h >= t).astype(np.int64) for t in thresholds)
        v = h - np.array(resets)[counts]
        out.append(counts)
    return np.concatenate(out)


def lif(get, x):
    out, v = [], 0
    for u in np.split(x, get("steps")):
        h = v + ((u - v) * get("leak") + 2**15) // 2**16
        spikes = (h >= get("threshold")).astype(np.int64)
        v = h * (1 - spikes)
        out.append(spikes)
    return np.concatenate(out)


def attention(get, q, k, v):
    y = np.zeros_like(v)
    each, wide = q.shape[1] // get("heads"), v.shape[1] // get("heads")
    for j in range(v.shape[1]):
        for c in range((j // wide) * each, (j // wide + 1) * each):
            y[:, j] += q[:, c] * (k[:, c] * v[:, j]).sum(axis=(1, 2), keepdims=True)
    return y


def upsample(get, x):
    if get("mode") == "nearest":
        return np.kron(x, np.ones((2, 2), np.int64))
    for axis in (2, 3):
        x = np.moveaxis(x, axis, 0)
        rows = []
        for i in range(len(x)):
            rows.append(x[max(i - 1, 0)] + 3 * x[i])
            rows.append(3 * x[i] + x[min(i + 1, len(x) - 1)])
        x = np.moveaxis(np.stack(rows), 0, axis)
    return x


def spatialmean(get, x):
    n = x.shape[2] * x.shape[3]
    return (x.sum(axis=(2, 3), keepdims=True) + n // 2) // n


RULES = {
    "normalise": normalise,
    "conv": conv,
    "convtranspose": convtranspose,
    "rescale": rescale,
    "add": add,
    "countadd": lambda get, a, b: a + b,
    "multiply": lambda get, a, b: a * b,
    "ielif": ielif,
    "lif": lif,
    "attention": attention,
    "repeat": lambda get, x: np.concatenate([x] * get("steps")),
    "frames": lambda get, x: x,
    "maxpool": maxpool,
    "upsample": upsample,
    "concat": lambda get, *x: np.concatenate(x, axis=1),
    "reshape": lambda get, x: x.reshape(len(x), get("channels"), get("height"), get("width")),
    "spatialsum": lambda get, x: x.sum(axis=(2, 3), keepdims=True),
    "spatialmean": spatialmean,
    "timesum": lambda get, x: sum(np.split(x, get("steps"))),
}
