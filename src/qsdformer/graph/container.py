"""The file of an artifact: a JSON description and packed tensors, with a checksum of every byte.

The layout is that of safetensors. Nothing here knows of graphs: what the description means is
`artifact`'s affair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from qsdformer.errors import UserError, one_line
from qsdformer.files import ARTIFACT_PREFIX as PREFIX
from qsdformer.files import ARTIFACT_PREFIX_AT as LENGTH_BYTES
from qsdformer.files import kind_of_bytes

# After the header's length and PREFIX, with which it begins, come 64 hexadecimal digits.
DIGEST = slice(LENGTH_BYTES + len(PREFIX), LENGTH_BYTES + len(PREFIX) + 64)
MAX_HEADER = 64 * 2**20  # bytes
DAMAGED = "the artifact is damaged or was changed; copy or export it again"


def assemble(description: dict[str, Any], tensors: dict[str, bytes]) -> bytes:
    """The file that holds `description` and packed `tensors`, with its checksum."""
    entries: dict[str, Any] = {
        "__metadata__": {"sha256": "0" * 64, "qsdformer": to_json(description)}
    }
    offset = 0
    for name, data in tensors.items():
        end = offset + len(data)
        entries[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, end]}
        offset = end
    header = to_json(entries).encode()
    header += b" " * (-len(header) % 8)
    return sign(len(header).to_bytes(LENGTH_BYTES, "little") + header + b"".join(tensors.values()))


def sign(data: bytes) -> bytes:
    """`data` with its checksum filled in."""
    return data[: DIGEST.start] + _digest(data).encode() + data[DIGEST.stop :]


def checked_parts(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, memoryview]]:
    """Header and packed tensors by name, after every check that needs no knowledge of graphs."""
    if kind_of_bytes(data[:64]) == ".onnx":
        raise UserError(f"{name}: an ONNX file of qsd export, not an artifact; give a .qsd file")
    for magic, kind in ((b"PK", "a zip archive"), (b"\x80", "a pickle")):
        if data.startswith(magic) and data[LENGTH_BYTES : DIGEST.start] != PREFIX:
            raise UserError(
                f"{name}: {kind}, not an artifact (checkpoints are such files); "
                "make an artifact of it with qsd export"
            )
    if data[LENGTH_BYTES : DIGEST.start] != PREFIX:
        raise UserError(f"{name}: not an artifact of qsdformer, or cut short; export it again")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    body = LENGTH_BYTES + length
    if body > len(data) or length > MAX_HEADER:
        raise UserError(f"{name}: the artifact is cut short; copy or export it again")
    if data[DIGEST] != _digest(data).encode():
        raise UserError(f"{name}: the checksum is wrong: {DAMAGED}")
    try:
        header = from_json(data[LENGTH_BYTES:body].decode())
        tensors = dict(_tensors(header, memoryview(data)[body:]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(f"{name}: {DAMAGED} ({reason})") from error
    return header, tensors


def _tensors(header: dict[str, Any], body: memoryview) -> Iterator[tuple[str, memoryview]]:
    expected = 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if entry["dtype"] != "U8":
            raise ValueError(f"tensor {key!r} has type {entry['dtype']!r}, not U8")
        start, end = (typed(v, int) for v in entry["data_offsets"])
        if start != expected or not start <= end <= len(body) or entry["shape"] != [end - start]:
            raise ValueError(f"tensor {key!r} does not lie inside the file in order")
        expected = end
        yield key, body[start:end]
    if expected != len(body):
        raise ValueError(f"{len(body) - expected} bytes after the last tensor")


def typed(value: Any, kind: type) -> Any:
    """`value`, if it is a `kind` and nothing derived from it; else ValueError."""
    if type(value) is not kind:
        raise ValueError(f"found {str(value)[:40]!r} where {kind.__name__} was expected")
    return value


def real(value: Any) -> float:
    """A number as a float; ValueError for anything else, truth values included."""
    if type(value) not in (int, float):
        raise ValueError(f"found {str(value)[:40]!r} where a number was expected")
    return float(value)


def _digest(data: bytes) -> str:
    """SHA-256 of the file with zeros in place of the checksum's digits."""
    view = memoryview(data)
    total = hashlib.sha256(view[: DIGEST.start])
    total.update(b"0" * 64)
    total.update(view[DIGEST.stop :])
    return total.hexdigest()


def to_json(value: Any) -> str:
    """The shortest JSON of plain values; ValueError for numbers that JSON does not have."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> dict[str, Any]:
    """The mapping that JSON holds; ValueError for anything else and for NaN and infinities."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a number")

    return typed(json.loads(typed(text, str), parse_constant=refuse), dict)
