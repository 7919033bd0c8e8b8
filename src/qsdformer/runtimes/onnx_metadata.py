"""What an exported ONNX file says about itself: JSON under one key of its metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.ops import Preprocessing

METADATA_KEY = "qsdformer"
INPUT = "pixels: uint8 (batch, channels, height, width), 0..255; the model normalises them"


def metadata(graph: IntegerGraph) -> dict[str, str]:
    """The metadata of the file of `graph`: class names, preprocessing, configuration, input."""
    description = {
        "class_names": list(graph.class_names),
        "preprocessing": dataclasses.asdict(graph.preprocessing),
        "config": graph.config,
        "input": INPUT,
    }
    return {METADATA_KEY: json.dumps(description, ensure_ascii=False)}


def read_metadata(found: Mapping[str, str]) -> tuple[tuple[str, ...], Preprocessing]:
    """Class names and preprocessing; KeyError, TypeError or ValueError if they are not there."""
    description = json.loads(found[METADATA_KEY])
    pre = description["preprocessing"]
    lists = {name: tuple(map(float, pre[name])) for name in ("mean", "std")}
    return tuple(map(str, description["class_names"])), Preprocessing(**{**pre, **lists})
