"""Reads a model.qsd with NumPy and the standard library alone, from docs/artifact.md."""

import hashlib
import json
import math

import numpy as np

PREFIX = b'{"__metadata__":{"sha256":"'
ARRAYS = ("table", "codes", "multiplier", "shift", "bias")


def unpack(data, count, width):
    """`count` integers of `width` bits, two's complement, lowest bit first."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
    places = 2 ** np.arange(width, dtype=np.int64)
    places[-1] = -places[-1]
    return bits.reshape(count, width).astype(np.int64) @ places


def read(path):
    """The description, its operations complete: defaults filled in, arrays unpacked."""
    with open(path, "rb") as file:
        data = file.read()
    first, last = 8 + len(PREFIX), 8 + len(PREFIX) + 64
    if data[8:first] != PREFIX:
        raise ValueError("not a qsdformer artifact")
    if (
        hashlib.sha256(data[:first] + b"0" * 64 + data[last:]).hexdigest()
        != data[first:last].decode()
    ):
        raise ValueError("checksum")
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    content = json.loads(header["__metadata__"]["qsdformer"])
    if content["format_version"] not in (1, 2, 3):
        raise ValueError("version")
    content.setdefault("outputs", [])
    for number, op in enumerate(content["ops"]):
        op.setdefault("op", content["defaults"]["op"])
        op.setdefault("name", f"#{number}")
        op.setdefault("inputs", [number - 1])
        tensor = header.get(str(op.pop("same", number)), {"data_offsets": [0]})
        here = start + tensor["data_offsets"][0]
        for name in ARRAYS:
            if name in op:
                width, *shape = op[name]
                size = (math.prod(shape) * width + 7) // 8
                op[name] = unpack(data[here : here + size], math.prod(shape), width).reshape(shape)
                here += size
    return content


def field(content, op, name):
    """A number or list of an operation, or the default of its name."""
    return op.get(name, content["defaults"][name])
