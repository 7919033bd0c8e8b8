"""The packed artifact `model.qsd`: an integer graph in a `container`; see docs/artifact.md.

A reader must not trust the file: the checksum covers every byte, and every size is checked
against the file's length before anything is allocated. Nothing but JSON is parsed, no code runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from qsdformer.data.base import Fit, ImageSize
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError, one_line
from qsdformer.files import atomic_path, exported_kind
from qsdformer.graph.check import check_graph
from qsdformer.graph.container import (
    DAMAGED,
    assemble,
    checked_parts,
    from_json,
    real,
    to_json,
    typed,
)
from qsdformer.graph.integer import IntegerGraph, Output
from qsdformer.graph.ops import (
    IELIF,
    LIF,
    OP_INPUTS,
    Add,
    Array,
    Attention,
    Conv,
    ConvTranspose,
    Normalise,
    Op,
    Repeat,
    Rescale,
    SpatialMean,
    TimeSum,
)
from qsdformer.graph.packing import needed_width, pack, packed_size, unpack
from qsdformer.graph.post import post_values, read_post

if TYPE_CHECKING:
    from torch import nn

FORMAT_VERSION = 2  # what is written where it says everything
DENSE_VERSION = 3  # images that are not square or not cropped, and post-processing

OPS: dict[str, type[Op]] = {op.__name__.lower(): op for op in OP_INPUTS}
FIRST_OPS = (Normalise, Conv, Rescale, Add, IELIF, LIF, Attention, Repeat, SpatialMean, TimeSum)
KINDS: dict[int, dict[str, type[Op]]] = {
    1: {op.__name__.lower(): op for op in FIRST_OPS},
    FORMAT_VERSION: OPS,
    DENSE_VERSION: OPS,
}
SHARING = (Conv, ConvTranspose)  # operations that may have the codes of an earlier one
MOST_SHARED = 64  # operations that have those of one; maps of a detector are four
HEAD = "head."  # begins the names of tensors that are whole artifacts, of graphs for regions
ARRAY_TYPES = {
    "table": np.int32,
    "codes": np.int8,
    "multiplier": np.int64,
    "shift": np.int8,
    "bias": np.int64,
}
LISTS = ("thresholds", "resets")
WORDS = ("mode",)


def export(
    model: nn.Module | IntegerGraph, path: str | os.PathLike[str], **options: Any
) -> IntegerGraph:
    """Write `model` to `path` as a packed artifact, whole or not at all; returns its graph.

    `options` are those of `lower`. Raises `UserError` for a model that cannot be lowered and a
    file that cannot be written.
    """
    graph = graph_of(model, options)
    data = to_bytes(graph)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return graph


def graph_of(model: nn.Module | IntegerGraph, options: Mapping[str, Any]) -> IntegerGraph:
    """`model` lowered with `options`; of a graph, which has its own already, none may be given."""
    if not isinstance(model, IntegerGraph):
        from qsdformer.graph.lowering import lower

        return lower(model, **options)
    if options:
        given = ", ".join(sorted(options))
        raise UserError(f"{given}: an integer graph is lowered already; lower the model with it")
    return model


def to_bytes(graph: IntegerGraph) -> bytes:
    """The artifact of `graph`; the same bytes for the same graph, on any machine."""
    index = {op.name: i for i, op in enumerate(graph.ops)}
    defaults, version = _defaults(graph.ops), _version(graph)
    same = _same_codes(graph.ops) if version == DENSE_VERSION else {}
    tensors: dict[str, bytes] = {}
    description: dict[str, Any] = {
        "format_version": version,
        "config": graph.config,
        "preprocessing": graph.preprocessing.to_dict(),
        "class_names": list(graph.class_names),
        "membrane_bits": graph.membrane_bits,
        "membrane_fraction": graph.membrane_fraction,
        "defaults": defaults,
        "ops": [_describe(op, index, defaults, tensors, same) for op in graph.ops],
    }
    if graph.outputs:
        description["outputs"] = [
            {"name": o.name, "op": index[o.op], "scale": list(o.scale)} for o in graph.outputs
        ]
    if graph.post is not None:
        description["post"] = post_values(graph.post)
    if graph.heads:
        description["heads"] = list(graph.heads)
        tensors |= {f"{HEAD}{name}": to_bytes(head) for name, head in graph.heads.items()}
    return assemble(description, tensors)


def _version(graph: IntegerGraph) -> int:
    """The oldest version that has all that is in `graph`, of those that are written."""
    pre = graph.preprocessing
    plain = graph.post is None and isinstance(pre.image_size, int)
    plain = plain and pre.fit == "crop" and pre.placed is None
    if not graph.class_names:  # a classifier is written as it always was
        plain = plain and not _same_codes(graph.ops)
    return FORMAT_VERSION if plain else DENSE_VERSION


def load_artifact(path: str | os.PathLike[str]) -> IntegerGraph:
    """The graph of an artifact, equal to the one that was exported.

    Raises `UserError` for a file that is missing, not an artifact, of another version, damaged,
    or whose parts do not fit together.
    """
    file = Path(path)
    if file.is_dir() or not file.exists():
        what = f"{path} is a folder" if file.is_dir() else f"no artifact {path}"
        raise UserError(f"{what}: give a file made with qsd export")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read artifact {path}: {error.strerror or error}") from error
    return from_bytes(data, name=str(path))


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` begins as artifacts do; False if it cannot be read."""
    return exported_kind(path) == ".qsd"


def from_bytes(data: bytes, name: str = "artifact") -> IntegerGraph:
    """The inverse of `to_bytes`; `name` begins the messages of errors."""
    header, tensors = checked_parts(data, name)
    try:
        description = from_json(header["__metadata__"]["qsdformer"])
        version = typed(description["format_version"], int)
        if version not in KINDS:
            raise UserError(
                f"{name}: artifact format {version}, but this qsdformer reads formats 1 to "
                f"{DENSE_VERSION}: use the version that wrote it, or a newer one"
            )
        graph = _graph(description, tensors, name)
        check_graph(graph)
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{name}: {DAMAGED} ({reason})") from error
    return graph


def _graph(description: dict[str, Any], tensors: dict[str, memoryview], file: str) -> IntegerGraph:
    version = description["format_version"]
    names_of_heads = description.get("heads", []) if version == DENSE_VERSION else []
    unused = dict(tensors)
    heads: dict[str, IntegerGraph] = {}
    for name in typed(names_of_heads, list):
        part = unused.pop(f"{HEAD}{typed(name, str)}")
        heads[name] = from_bytes(bytes(part), f"{file}: the graph {name[:40]!r}")
    kinds = KINDS[version]
    defaults = typed(description["defaults"], dict)
    names: list[str] = []
    ops: list[Op] = []
    entries = typed(description["ops"], list)
    shared = Counter(str(e.get("same")) for e in entries if isinstance(e, dict) and "same" in e)
    if any(times > MOST_SHARED for times in shared.values()):  # each has its codes in memory
        raise ValueError(f"codes are shared by more than {MOST_SHARED} operations")
    for i, entry in enumerate(entries):
        ops.append(
            _op(i, _shared(i, entry, version, ops, tensors, unused), kinds, defaults, names, unused)
        )
        names.append(ops[-1].name)
    if unused:
        raise ValueError(f"{len(unused)} tensors belong to no operation")
    outputs = description.get("outputs", []) if kinds is OPS else []
    post = description.get("post") if version == DENSE_VERSION else None
    return IntegerGraph(
        ops=tuple(ops),
        preprocessing=_preprocessing(description["preprocessing"], version),
        class_names=tuple(typed(n, str) for n in typed(description["class_names"], list)),
        config=typed(description["config"], dict),  # information only
        membrane_bits=typed(description["membrane_bits"], int),
        membrane_fraction=typed(description["membrane_fraction"], int),
        outputs=tuple(_output(entry, names) for entry in typed(outputs, list)),
        post=None if post is None else read_post(post),
        heads=heads,
    )


def _output(entry: dict[str, Any], names: list[str]) -> Output:
    number = typed(typed(entry, dict)["op"], int)
    if not 0 <= number < len(names):
        raise ValueError(f"an output is the value of operation {number}, which does not exist")
    scale = tuple(real(v) for v in typed(entry["scale"], list))
    return Output(name=typed(entry["name"], str), op=names[number], scale=scale)


def _plain(op: Op) -> dict[str, Any]:
    """The fields of `op` that are not arrays."""
    fields = [f.name for f in dataclasses.fields(op) if f.name not in ("name", "inputs")]
    values = {name: getattr(op, name) for name in fields}
    plain = {n: v for n, v in values.items() if not isinstance(v, np.ndarray)}
    plain["op"] = type(op).__name__.lower()
    return {n: list(v) if isinstance(v, tuple) else v for n, v in plain.items()}


def _defaults(ops: Sequence[Op]) -> dict[str, Any]:
    """The commonest value of each plain field, which operations then need not repeat."""
    seen: dict[str, Counter[str]] = {}
    for op in ops:
        for name, value in _plain(op).items():
            seen.setdefault(name, Counter())[to_json(value)] += 1
    return {name: json.loads(counts.most_common(1)[0][0]) for name, counts in seen.items()}


def _same_codes(ops: Sequence[Op]) -> dict[int, int]:
    """Operations whose codes an earlier one has too, whose number is given.

    So it is where maps share a layer, as in the heads of detectors: the codes are stored once.
    """
    first: dict[tuple[Any, ...], int] = {}
    found: dict[int, int] = {}
    for number, op in enumerate(ops):
        if isinstance(op, SHARING):
            key = (op.bits, op.codes.shape, op.codes.tobytes())
            if first.setdefault(key, number) != number:
                found[number] = first[key]
    return found


def _describe(
    op: Op,
    index: dict[str, int],
    defaults: dict[str, Any],
    tensors: dict[str, bytes],
    same: Mapping[int, int],
) -> dict[str, Any]:
    """`op` as plain values; its arrays go to one tensor, only their width and shape stay here."""
    number = index[op.name]
    entry: dict[str, Any] = {} if op.name == f"#{number}" else {"name": op.name}
    inputs = [index[name] for name in op.inputs]
    if inputs != [number - 1]:
        entry["inputs"] = inputs
    entry |= {name: v for name, v in _plain(op).items() if v != defaults[name]}
    parts = []
    for name in _arrays(type(op)):
        value = getattr(op, name)
        width = op.bits if isinstance(op, (Conv, ConvTranspose)) else needed_width(value)
        entry[name] = [width, *value.shape]
        if number in same:
            entry["same"] = same[number]
        else:
            parts.append(pack(value, width))
    if parts:
        tensors[str(number)] = b"".join(parts)
    return entry


def _shared(
    number: int,
    entry: Any,
    version: int,
    ops: Sequence[Op],
    tensors: Mapping[str, memoryview],
    unused: dict[str, memoryview],
) -> Any:
    """`entry` without "same", the earlier operation whose tensor is then the one of this too."""
    if version != DENSE_VERSION or not isinstance(entry, dict) or "same" not in entry:
        return entry
    earlier, own = typed(entry["same"], int), str(number)
    known = 0 <= earlier < number and isinstance(ops[earlier], SHARING)
    if not known or str(earlier) not in tensors or own in tensors:
        raise ValueError(f"operation {number} shares codes that are not there")
    unused[own] = tensors[str(earlier)]
    return {name: value for name, value in entry.items() if name != "same"}


def _op(
    number: int,
    entry: dict[str, Any],
    kinds: Mapping[str, type[Op]],
    defaults: dict[str, Any],
    names: list[str],
    tensors: dict[str, memoryview],
) -> Op:
    kind = kinds[typed(typed(entry, dict).get("op", defaults["op"]), str)]
    expected = [f.name for f in dataclasses.fields(kind)]
    if not set(entry) <= {"op", *expected}:
        raise ValueError(f"operation {number} has unknown fields")
    inputs = [typed(i, int) for i in typed(entry.get("inputs", [number - 1]), list)]
    if any(not 0 <= i < number for i in inputs):
        raise ValueError(f"operation {number} reads one that is not before it")
    arrays = _arrays(kind)
    values: dict[str, Any] = {
        "name": typed(entry.get("name", f"#{number}"), str),
        "inputs": tuple(names[i] for i in inputs),
    }
    for name in expected:
        if name not in ("name", "inputs", *arrays):
            value = entry[name] if name in entry else defaults[name]
            values[name] = _plain_value(name, value)
    if arrays:
        data = tensors.pop(str(number), memoryview(b""))
        for name in arrays:
            values[name], data = _array(f"{name} of operation {number}", name, entry[name], data)
        if data:
            raise ValueError(f"operation {number} has {len(data)} bytes too many")
    return kind(**values)


def _plain_value(name: str, value: Any) -> Any:
    if name in LISTS:
        return tuple(typed(v, int) for v in typed(value, list))
    return typed(value, str if name in WORDS else int)


def _arrays(kind: type[Op]) -> list[str]:
    """Names of the array fields of an operation, in the order in which a file has them."""
    return [f.name for f in dataclasses.fields(kind) if f.name in ARRAY_TYPES]


def _array(what: str, name: str, entry: list[int], data: memoryview) -> tuple[Array, memoryview]:
    """The array at the start of `data`, and the rest; checked before anything is unpacked."""
    width, *shape = (typed(v, int) for v in typed(entry, list))
    kind = np.dtype(ARRAY_TYPES[name])
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or not 1 <= width <= 8 * kind.itemsize:
        raise ValueError(f"{what} has width {width} and shape {shape}")
    count = math.prod(shape)
    size = packed_size(count, width)
    if size > len(data):
        raise ValueError(f"{what} needs {size} bytes where there are {len(data)}")
    values = unpack(data[:size], count, width)
    return values.astype(kind, copy=False).reshape(shape), data[size:]


def _preprocessing(entry: dict[str, Any], version: int) -> Preprocessing:
    fields = {f.name for f in dataclasses.fields(Preprocessing)}
    needed = fields - {"fit", "placed"}
    allowed = fields if version == DENSE_VERSION else needed
    if not needed <= set(typed(entry, dict)) <= allowed:
        raise ValueError("preprocessing has other fields than it should")
    fit = entry.get("fit", "crop")
    if fit not in get_args(Fit):
        raise ValueError(f"images are fitted by {str(fit)[:40]!r}")
    return Preprocessing(
        image_size=_image_size(entry["image_size"], version),
        channels=typed(entry["channels"], int),
        mean=tuple(real(v) for v in entry["mean"]),
        std=tuple(real(v) for v in entry["std"]),
        interpolation=typed(entry["interpolation"], str),
        crop_pct=real(entry["crop_pct"]),
        fit=fit,
        placed=None if "placed" not in entry else _two_sides(entry["placed"]),
    )


def _image_size(value: Any, version: int) -> ImageSize:
    """A square's side, or from version 3 on a list of two different ones."""
    if version < DENSE_VERSION or type(value) is int:
        side: int = typed(value, int)
        return side
    height, width = _two_sides(value)
    if height == width:
        raise ValueError(f"image_size has {height} twice")
    return height, width


def _two_sides(value: Any) -> tuple[int, int]:
    height, width = (typed(v, int) for v in typed(value, list))
    return height, width
