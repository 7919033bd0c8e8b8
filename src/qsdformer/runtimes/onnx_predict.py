"""Predictions of an exported ONNX file with ONNX Runtime, NumPy and Pillow alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qsdformer.data.preprocessing import Preprocessing, pixels
from qsdformer.errors import UserError
from qsdformer.files import exported_kind
from qsdformer.graph.classes import top_classes
from qsdformer.graph.ops import Array
from qsdformer.graph.post import Post
from qsdformer.runtimes.onnx_metadata import (
    NOT_OURS,
    HeadFile,
    check,
    head_path,
    read_metadata,
)
from qsdformer.runtimes.sessions import onnxruntime_session

FRAMES_RANK = 5  # (T, B, C, H, W)


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An exported model, ready to run; `heads` are a detector's networks for regions by name."""

    session: Any
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    post: Post | None = None
    heads: dict[str, OnnxHead] = field(default_factory=dict)

    def logits(self, images: Array) -> Array:
        """Logits (B, classes) float32 of uint8 pixels (B, C, H, W), or frames (T, B, C, H, W)."""
        if not self.class_names:
            names = ", ".join(output.name for output in self.session.get_outputs())
            raise UserError(f"this network has no logits; its outputs are {names}")
        found: Array = self.session.run(["logits"], {"pixels": self._checked(images)})[0]
        return found

    def outputs(self, pixels: Array) -> dict[str, Array]:
        """All outputs by name, float32; the logits of a classifier are among them."""
        names = [output.name for output in self.session.get_outputs()]
        found = self.session.run(names, {"pixels": self._checked(pixels)})
        return dict(zip(names, found, strict=True))

    def predict(self, images: Sequence[Image.Image], top: int = 5) -> list[list[tuple[str, float]]]:
        """The `top` (class name, probability) pairs of each image, likeliest first."""
        logits = self.logits(pixels(images, self.preprocessing)).astype(np.float64)
        return top_classes(logits, self.class_names, top)

    @property
    def takes_frames(self) -> bool:
        """Whether the network takes frames for its time steps, not images."""
        return len(self._input_shape) == FRAMES_RANK

    @property
    def _input_shape(self) -> list[int | str]:
        """Sizes of the input, with a name in place of the batch."""
        shape: list[int | str] = self.session.get_inputs()[0].shape
        return shape

    def _checked(self, images: Array) -> Array:
        """`images`; `UserError` for those that the network does not take."""
        *leading, channels, height, width = self._input_shape
        steps = leading[:-1]  # none, or their number
        fits = images.ndim == len(self._input_shape) and list(images.shape[:-4]) == steps
        if images.dtype != np.uint8 or images.shape[-3:] != (channels, height, width) or not fits:
            first = f"{steps[0]} time steps, B" if steps else "B"
            raise UserError(
                f"images of shape {images.shape} and type {images.dtype}: this model takes uint8 "
                f"pixels of shape ({first}, {channels}, {height}, {width})"
            )
        return images


class OnnxHead(NamedTuple):
    """A network for regions, and the thresholds that make its pixels of real values."""

    thresholds: tuple[float, ...]
    model: OnnxModel


def load_onnx(path: str | os.PathLike[str], threads: int = 0) -> OnnxModel:
    """An exported ONNX file; 0 threads leaves their number to ONNX Runtime.

    Raises `UserError` for a file that is missing, cannot be loaded, is not one of ours, or was
    damaged or changed since it was exported. A detector's networks for regions are read from the
    files beside it.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"no ONNX file {name}: make one with qsd export --format onnx")
    if exported_kind(path) == ".qsd":
        raise UserError(f"{name}: a .qsd file of qsd export, not ONNX; name it .qsd")
    return _loaded(path, _read(path), threads)


def _loaded(path: str | os.PathLike[str], data: bytes, threads: int) -> OnnxModel:
    """The model in the file at `path`, whose content is `data`."""
    name = os.fspath(path)
    check(data, name)
    session = onnxruntime_session(data, threads, name=name)
    try:
        found = read_metadata(session.get_modelmeta().custom_metadata_map)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name} {NOT_OURS}") from error
    return OnnxModel(
        session=session,
        class_names=found.class_names,
        preprocessing=found.preprocessing,
        post=found.post,
        heads={
            head: OnnxHead(file.thresholds, _load_head(path, head, file, threads))
            for head, file in found.heads.items()
        },
    )


def _load_head(path: str | os.PathLike[str], name: str, file: HeadFile, threads: int) -> OnnxModel:
    beside = head_path(path, name)
    if not beside.is_file():
        raise UserError(
            f"{os.fspath(path)} needs {beside} beside it, its network for regions: keep the files "
            "of an export together"
        )
    data = _read(beside)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(
            f"{beside} is not the one that {os.fspath(path)} was exported with: export both again"
        )
    return _loaded(beside, data, threads)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read ONNX file {os.fspath(path)}: {reason}") from error
