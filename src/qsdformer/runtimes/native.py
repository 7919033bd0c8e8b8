"""The native engine: artifacts in C, on the vector units of the processor; see docs/native.md.

`load(path)` gives a callable that takes uint8 pixels and gives the integer logits of `graph.run`.
The library is built with the package where there is a C compiler. QSD_NATIVE_LIBRARY names another
one, QSD_NATIVE_ISA the instruction set: avx512vnni, avxvnni, avx2, or portable.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qsdformer.data.preprocessing import pixels as prepare
from qsdformer.errors import UserError
from qsdformer.graph.artifact import from_bytes, to_bytes
from qsdformer.graph.integer import LOGITS, IntegerGraph
from qsdformer.graph.ops import Array

ABI = 1
MESSAGE_BYTES = 1024
ACTIVITY = ("elements", "active", "spikes", "groups", "active_groups")
MOST_THREADS = 16  # more share little work
NAMES = ("libqsd.so", "libqsd.dylib", "qsd.dll")
MISSING = (
    "the native engine was not built: install qsdformer where there is a C compiler (gcc or clang)"
)

Pointer = ctypes.c_void_p
Text = ctypes.c_char_p


class _Options(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int),
        ("isa", Text),
        ("max_memory", ctypes.c_uint64),
    ]


class _Info(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("channels", "image_size", "time_steps")),
        *((name, ctypes.c_int) for name in ("takes_frames", "classes", "fraction")),
        *((name, ctypes.c_int) for name in ("outputs", "neurons", "threads")),
        ("weight_bytes", ctypes.c_uint64),
        ("scratch_bytes", ctypes.c_uint64),
        ("isa", Text),
    ]


class _Activity(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ACTIVITY]


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a neuron did since the last reset: counts, those not zero, their sum; and groups of 4
    neighbouring channels of a pixel, and those not all zero.
    """

    elements: int
    active: int
    spikes: int
    groups: int
    active_groups: int


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None where it was not built."""
    given = os.environ.get("QSD_NATIVE_LIBRARY")
    folder = Path(__file__).parent
    places = [Path(given)] if given else [folder / name for name in NAMES]
    for place in places:
        if place.is_file():
            try:
                return _declared(ctypes.CDLL(os.fspath(place)))
            except (OSError, AttributeError) as error:
                raise UserError(f"cannot use the native engine {place}: {error}") from error
    if given:
        raise UserError(f"QSD_NATIVE_LIBRARY={given}: there is no such file")
    return None


def available() -> bool:
    """Whether the native engine can be used."""
    return library() is not None


def load(path: str | os.PathLike[str], threads: int = 1) -> NativeModel:
    """The artifact at `path`, ready to run; `UserError` where it cannot be read or run."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read artifact {path}: {error.strerror or error}") from error
    return NativeModel(data, threads=threads, name=str(path))


def of_graph(graph: IntegerGraph, threads: int = 1) -> NativeModel:
    """The native engine for `graph`."""
    return NativeModel(to_bytes(graph), threads=threads, graph=graph)


def fastest(graph: IntegerGraph, threads: int | None = None) -> IntegerGraph | NativeModel:
    """What runs `graph` soonest here: the native engine, or without it the reference.

    All cores that this process may use work on it, or as many `threads`.
    """
    if not available():
        return graph
    return of_graph(graph, threads or min(os.cpu_count() or 1, MOST_THREADS))


class NativeModel:
    """An artifact in the native engine. Call it with pixels, or use it as an `IntegerGraph`."""

    def __init__(
        self,
        data: bytes,
        *,
        threads: int = 1,
        name: str = "artifact",
        graph: IntegerGraph | None = None,
    ) -> None:
        found = library()
        if found is None:
            raise UserError(MISSING)
        self._library, self._data, self._name = found, data, name
        self._model = Pointer()
        isa = os.environ.get("QSD_NATIVE_ISA")
        options = _Options(threads, isa.encode() if isa else None, 0)
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        status = found.qsd_load(
            data, len(data), ctypes.byref(options), ctypes.byref(self._model), message, len(message)
        )
        if status:
            raise UserError(f"{name}: {message.value.decode(errors='replace')}")
        self._graph = graph
        self.info = _Info()
        found.qsd_describe(self._model, ctypes.byref(self.info))

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.qsd_free(self._model)
            self._model = Pointer()

    @property
    def graph(self) -> IntegerGraph:
        """The graph that the file holds, read when it is first asked for."""
        if self._graph is None:
            self._graph = from_bytes(self._data, self._name)
        return self._graph

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        return str(self.info.isa.decode())

    def __call__(self, pixels: Array) -> Array:
        """Integer logits (B, classes) int32 of uint8 pixels (B, C, H, W), or (T, B, C, H, W)."""
        return self.run(pixels)

    def run(self, images: Array) -> Array:
        """Integer logits (B, classes) int32; equal to `IntegerGraph.run`."""
        if not self.info.classes:
            self.graph.run(images)  # says which outputs there are
        flat, batch, frames = self._checked(images)
        logits = np.empty((batch, self.info.classes), np.int32)
        self._run(flat, batch, frames, logits=logits)
        return logits

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """`run`, and the spike counts (T*B, C, H, W) uint8 of every neuron by name."""
        if not collect:
            return self.run(images), {}
        if not self.info.classes:
            self.graph.run(images)
        flat, batch, frames = self._checked(images)
        logits = np.empty((batch, self.info.classes), np.int32)
        counts = self._arrays("neuron", self.info.neurons, batch, frames, np.uint8)
        self._run(flat, batch, frames, logits=logits, counts=list(counts.values()))
        return logits, counts

    def run_outputs(self, images: Array) -> dict[str, Array]:
        """The integers of all results by name, as `IntegerGraph.run_outputs` gives them."""
        flat, batch, frames = self._checked(images)
        found = self._arrays("output", self.info.outputs, batch, frames, np.int32)
        outputs = list(found.values())
        logits = None
        if self.info.classes:
            logits = np.empty((batch, self.info.classes), np.int32)
            found[LOGITS] = logits[:, :, None, None]
        self._run(flat, batch, frames, logits=logits, outputs=outputs)
        return found

    def logits(self, images: Array) -> Array:
        """Real logits (B, classes) float64."""
        return self.run(images).astype(np.float64) * 2.0**-self.info.fraction

    def predict(
        self, images: Sequence[Image.Image] | Array, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top` (class name, probability) pairs of each image, likeliest first."""
        from qsdformer.graph.classes import top_classes

        graph = self.graph
        given = images if isinstance(images, np.ndarray) else prepare(images, graph.preprocessing)
        return top_classes(self.logits(given), graph.class_names, top)

    def reset_statistics(self) -> None:
        """From now on activity is counted, from zero."""
        self._library.qsd_reset_statistics(self._model)

    def statistics(self) -> dict[str, Activity]:
        """The activity of every neuron by name since the last reset."""
        found = {}
        for number in range(self.info.neurons):
            activity, value = _Activity(), _Value()
            self._library.qsd_statistics(self._model, number, ctypes.byref(activity))
            self._library.qsd_neuron(self._model, number, 0, ctypes.byref(value))
            fields = {name: getattr(activity, name) for name in ACTIVITY}
            found[value.name.decode()] = Activity(**fields)
        return found

    def _checked(self, images: Array) -> tuple[Array, int, bool]:
        """Pixels in one run of memory, the batch, and whether there is a frame for each step."""
        info = self.info
        expected = (info.channels, info.image_size, info.image_size)
        frames = images.ndim == 5 and images.shape[0] == info.time_steps
        fits = frames or (images.ndim == 4 and not info.takes_frames)
        if images.dtype != np.uint8 or images.shape[-3:] != expected or not fits:
            leading = f"{info.time_steps} time steps, B" if info.takes_frames else "B"
            raise UserError(
                f"images of shape {images.shape} and type {images.dtype}: this model takes uint8 "
                f"pixels of shape ({leading}, {', '.join(map(str, expected))})"
            )
        if images.size == 0:
            raise UserError("no images: give at least one")
        return np.ascontiguousarray(images), images.shape[-4], frames

    def _arrays(
        self, kind: str, count: int, batch: int, frames: bool, dtype: type
    ) -> dict[str, Array]:
        """Empty arrays for the values of all outputs or neurons, by name."""
        found = {}
        for number in range(count):
            value = _Value()
            getattr(self._library, f"qsd_{kind}")(
                self._model, number, int(frames), ctypes.byref(value)
            )
            shape = (value.steps * batch, value.channels, value.height, value.width)
            found[value.name.decode()] = np.empty(shape, dtype)
        return found

    def _run(
        self,
        pixels: Array,
        batch: int,
        frames: bool,
        *,
        logits: Array | None = None,
        outputs: list[Array] | None = None,
        counts: list[Array] | None = None,
    ) -> None:
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        status = self._library.qsd_run(
            self._model,
            pixels.ctypes.data,
            batch,
            int(frames),
            None if logits is None else logits.ctypes.data,
            _pointers(outputs),
            _pointers(counts),
            message,
            len(message),
        )
        if status:
            raise UserError(message.value.decode(errors="replace"))


class _Value(ctypes.Structure):
    _fields_ = [
        ("name", Text),
        *((name, ctypes.c_int) for name in ("steps", "channels", "height", "width")),
    ]


def _pointers(arrays: list[Array] | None) -> Any:
    if not arrays:
        return None
    return (Pointer * len(arrays))(*(array.ctypes.data for array in arrays))


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions, after a look at its version."""
    size, integer = ctypes.c_size_t, ctypes.c_int
    if found.qsd_abi() != ABI:
        raise AttributeError(f"it has interface {found.qsd_abi()}, not {ABI}: install again")
    found.qsd_load.argtypes = [Text, size, Pointer, Pointer, Text, size]
    found.qsd_free.argtypes = [Pointer]
    found.qsd_free.restype = None
    found.qsd_describe.argtypes = [Pointer, Pointer]
    found.qsd_neuron.argtypes = [Pointer, integer, integer, Pointer]
    found.qsd_output.argtypes = [Pointer, integer, integer, Pointer]
    found.qsd_run.argtypes = [
        *(Pointer, Pointer, size, integer),
        *(Pointer, Pointer, Pointer, Text, size),
    ]
    found.qsd_reset_statistics.argtypes = [Pointer]
    found.qsd_statistics.argtypes = [Pointer, integer, Pointer]
    return found
