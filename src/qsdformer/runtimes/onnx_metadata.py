"""What an exported ONNX file says about itself: JSON under one key of its metadata, and a checksum.

A detector's networks for regions are files beside it, which it names by their checksums.

The checksum is the SHA-256 of the file with 64 zeros in place of its own hexadecimal digits, as in
artifacts. Neither PyTorch nor the package onnx is needed to check it; other runtimes ignore it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qsdformer.data.base import as_image_size
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.post import Post, post_values, read_post

METADATA_KEY = "qsdformer"
CHECKSUM_KEY = "qsdformer_sha256"
DIGITS = 64
# The entry as protobuf writes it: field 1, the key, then field 2, the digits, each with its length.
ENTRY = b"\x0a" + bytes([len(CHECKSUM_KEY)]) + CHECKSUM_KEY.encode() + b"\x12" + bytes([DIGITS])
INPUT = "pixels: uint8 (batch, channels, height, width), 0..255; the model normalises them"
FRAMES = "pixels: uint8 (time steps, batch, channels, height, width); the model scales them"
NOT_OURS = (
    "was not exported by qsd export --format onnx, or by an older version: its metadata are "
    "missing or damaged; export it again"
)


class HeadFile(NamedTuple):
    """A network for regions, in a file of its own.

    `sha256` is that of the whole file. Its pixels are the spike counts of a region: how many of the
    `thresholds` a value of the map has reached.
    """

    sha256: str
    thresholds: tuple[float, ...]


class Description(NamedTuple):
    """What a file says of its network."""

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    post: Post | None
    heads: dict[str, HeadFile]


def head_path(path: str | os.PathLike[str], name: str) -> Path:
    """The file of a network for regions: model.box.onnx beside model.onnx."""
    whole = Path(path)
    return whole.with_name(f"{whole.name.removesuffix('.onnx')}.{name}.onnx")


def metadata(graph: IntegerGraph, heads: Mapping[str, HeadFile] | None = None) -> dict[str, str]:
    """The metadata of `graph`: class names, preprocessing, configuration, input, checksum.

    `heads` are the files of its networks for regions by name.
    """
    description = {
        "class_names": list(graph.class_names),
        "preprocessing": graph.preprocessing.to_dict(),
        "config": graph.config,
        "input": FRAMES if graph.takes_frames else INPUT,
    }
    if graph.post is not None:
        description["post"] = post_values(graph.post)
    if heads:
        description["heads"] = {name: head._asdict() for name, head in heads.items()}
    return {
        METADATA_KEY: json.dumps(description, ensure_ascii=False),
        CHECKSUM_KEY: "0" * DIGITS,  # a file gets the real one, see `sign`
    }


def sign(data: bytes) -> bytes:
    """The bytes of a model with its checksum filled in."""
    place = _digits(data)
    return data[: place.start] + _digest(data, place) + data[place.stop :]


def check(data: bytes, name: str) -> None:
    """`UserError` if the file `name` is not one of ours or not as it was exported."""
    try:
        place = _digits(data)
    except ValueError as error:
        raise UserError(f"{name} {NOT_OURS}") from error
    if data[place] != _digest(data, place):
        raise UserError(
            f"{name}: the checksum is wrong: the file is damaged or was changed after qsd export; "
            "copy or export it again"
        )


def _digits(data: bytes) -> slice:
    """Where the checksum's digits are; ValueError unless there is exactly one such place."""
    start = data.index(ENTRY) + len(ENTRY)
    if ENTRY in data[start:] or len(data) < start + DIGITS:
        raise ValueError("more than one checksum, or part of one")
    return slice(start, start + DIGITS)


def _digest(data: bytes, place: slice) -> bytes:
    view = memoryview(data)
    total = hashlib.sha256(view[: place.start])
    total.update(b"0" * DIGITS)
    total.update(view[place.stop :])
    return total.hexdigest().encode()


def read_metadata(found: Mapping[str, str]) -> Description:
    """What a file says of its network; KeyError, TypeError or ValueError if it does not."""
    description = json.loads(found[METADATA_KEY])
    pre = description["preprocessing"]
    lists: dict[str, Any] = {name: tuple(map(float, pre[name])) for name in ("mean", "std")}
    lists["image_size"] = as_image_size(pre["image_size"])
    if "placed" in pre:
        lists["placed"] = tuple(map(int, pre["placed"]))
    post = None if description.get("post") is None else read_post(description["post"])
    heads = {
        name: HeadFile(str(head["sha256"]), tuple(map(float, head["thresholds"])))
        for name, head in description.get("heads", {}).items()
    }
    if tuple(heads) != (() if post is None else post.heads):
        raise ValueError(f"networks for regions are {list(heads)}")
    preprocessing = Preprocessing(**{**pre, **lists})
    preprocessing.require_possible()
    return Description(tuple(map(str, description["class_names"])), preprocessing, post, heads)
