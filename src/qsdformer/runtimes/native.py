"""The native engine: artifacts in C, on the vector units of the processor; see docs/native.md.

`load(path)` gives a callable that takes uint8 pixels and gives the integer logits of `graph.run`.
The library is built with the package where there is a C compiler. QSD_NATIVE_LIBRARY names another
one, or is `none` to do without, QSD_NATIVE_ISA the instruction set: amx, avx512vnni, avxvnni, avx2,
or portable.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdformer.errors import UserError, one_line
from qsdformer.graph.ops import LOGITS, Array

if TYPE_CHECKING:
    from qsdformer.graph.integer import IntegerGraph

ABI = 2
LIBRARY, ISA = "QSD_NATIVE_LIBRARY", "QSD_NATIVE_ISA"
WITHOUT = "none"  # the value of QSD_NATIVE_LIBRARY that does without the engine
MESSAGE_BYTES = 1024
TOO_LARGE = 3  # the status QSD_TOO_LARGE
ACTIVITY = ("elements", "active", "spikes", "groups", "active_groups")
NAMES = ("libqsd.so", "libqsd.dylib", "qsd.dll")
MISSING = (
    "the native engine was not built: install qsdformer where there is a C compiler (gcc or clang)"
)

Pointer = ctypes.c_void_p
Text = ctypes.c_char_p


class TooLarge(UserError):
    """A network needs more memory than allowed or there is; fewer threads need less."""


class _Options(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int),
        ("isa", Text),
        ("max_memory", ctypes.c_uint64),
    ]


class _Info(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("channels", "height", "width", "time_steps")),
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


def library() -> ctypes.CDLL:
    """The library; `UserError` where it was not built, cannot be used or is not wanted."""
    given = os.environ.get(LIBRARY)
    if given == WITHOUT:
        raise UserError(f"the native engine is not wanted: {LIBRARY}={WITHOUT}")
    folder = os.path.dirname(os.path.abspath(__file__))
    for place in [os.path.abspath(given)] if given else [os.path.join(folder, n) for n in NAMES]:
        if os.path.isfile(place):
            return _opened(place)
    raise UserError(f"{LIBRARY}={given}: there is no such file" if given else MISSING)


def absence() -> str | None:
    """Why the native engine cannot be used, in one line; None where it can.

    `UserError` where QSD_NATIVE_LIBRARY names a library that cannot be used.
    """
    try:
        library()
    except UserError as error:
        if os.environ.get(LIBRARY) not in (None, "", WITHOUT):
            raise
        return str(error)
    return None


def available() -> bool:
    """Whether the native engine can be used."""
    return absence() is None


def load(path: str | os.PathLike[str], threads: int = 1) -> NativeModel:
    """The artifact at `path`, ready to run; `UserError` where it cannot be read or run."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"cannot read artifact {path}: {error.strerror or error}") from error
    return NativeModel(data, threads, str(path))


def of_graph(graph: IntegerGraph, threads: int = 1) -> NativeModel:
    """The native engine for `graph`."""
    from qsdformer.graph.artifact import to_bytes

    return NativeModel(to_bytes(graph), threads)


def of_graph_within_memory(graph: IntegerGraph, threads: int) -> NativeModel:
    """The native engine for `graph` on `threads`, halved until there is memory for all of them."""
    from qsdformer.graph.artifact import to_bytes

    data = to_bytes(graph)
    while True:
        try:
            return NativeModel(data, threads)
        except TooLarge:
            if threads == 1:
                raise
            threads //= 2


class NativeModel:
    """An artifact in the native engine: call it with pixels.

    `data` is the file's content, of which nothing is kept; `name` is what messages call it.
    """

    def __init__(self, data: bytes, threads: int = 1, name: str = "artifact") -> None:
        self._library = library()
        self._model, self._process = Pointer(), os.getpid()
        isa = os.environ.get(ISA)
        options = _Options(threads, isa.encode() if isa else None, 0)
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        status = self._library.qsd_load(
            data, len(data), ctypes.byref(options), ctypes.byref(self._model), message, len(message)
        )
        if status:
            reason = f"{name}: {message.value.decode(errors='replace')}"
            if status != TOO_LARGE:
                raise UserError(reason)
            fewer = "" if threads <= 1 else f", on {threads} threads: try fewer (--threads)"
            raise TooLarge(reason + fewer)
        self.info = _Info()
        self._library.qsd_describe(self._model, ctypes.byref(self.info))

    def __del__(self) -> None:
        # Threads do not pass into a forked process: there is nothing there that could be stopped.
        if getattr(self, "_model", None) and self._process == os.getpid():
            self._library.qsd_free(self._model)
            self._model = Pointer()

    def __reduce__(self) -> Any:
        raise TypeError("a model in the native engine cannot be copied: load the file again")

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        return str(self.info.isa.decode())

    def __call__(self, pixels: Array) -> Array | dict[str, Array]:
        """Integers of uint8 pixels (B, C, H, W), or (T, B, C, H, W): logits (B, classes) int32.

        Of a network without logits its outputs (T*B, C, H, W) by name.
        """
        return self.run(pixels) if self.info.classes else self.run_outputs(pixels)

    def run(self, images: Array) -> Array:
        """Integer logits (B, classes) int32; equal to `IntegerGraph.run`."""
        return self.run_with_counts(images, collect=False)[0]

    def run_with_counts(
        self, images: Array, collect: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """`run`, and the spike counts (T*B, C, H, W) uint8 of every neuron by name."""
        flat, batch, frames = self._checked(images)
        if not self.info.classes:
            names = (self._value("output", i).name.decode() for i in range(self.info.outputs))
            raise UserError(f"this network has no logits; its outputs are {', '.join(names)}")
        logits = np.empty((batch, self.info.classes), np.int32)
        neurons, counts = self._arrays("neuron", batch, frames, np.uint8) if collect else ([], [])
        self._run(flat, batch, frames, logits=logits, counts=counts)
        return logits, dict(zip(neurons, counts, strict=True))

    def run_outputs(self, images: Array) -> dict[str, Array]:
        """The integers of all results by name, as `IntegerGraph.run_outputs` gives them."""
        return self.run_results(images, collect=False)[0]

    def run_results(
        self, images: Array, collect: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """`run_outputs`, and the spike counts (T*B, C, H, W) uint8 of every neuron by name."""
        flat, batch, frames = self._checked(images)
        neurons, counts = self._arrays("neuron", batch, frames, np.uint8) if collect else ([], [])
        names, outputs = self._arrays("output", batch, frames, np.int32)
        found = dict(zip(names, outputs, strict=True))
        logits = None
        if self.info.classes:
            logits = np.empty((batch, self.info.classes), np.int32)
            found[LOGITS] = logits[:, :, None, None]
        self._run(flat, batch, frames, logits=logits, outputs=outputs, counts=counts)
        return found, dict(zip(neurons, counts, strict=True))

    def logits(self, images: Array) -> Array:
        """Real logits (B, classes) float64."""
        return self.run(images).astype(np.float64) * 2.0**-self.info.fraction

    def reset_statistics(self) -> None:
        """From now on activity is counted, from zero."""
        self._library.qsd_reset_statistics(self._model)

    def statistics(self) -> dict[str, Activity]:
        """The activity of every neuron by name since the last reset."""
        found = {}
        for number in range(self.info.neurons):
            activity = _Activity()
            self._library.qsd_statistics(self._model, number, ctypes.byref(activity))
            fields = {name: getattr(activity, name) for name in ACTIVITY}
            found[self._value("neuron", number).name.decode()] = Activity(**fields)
        return found

    def _checked(self, images: Array) -> tuple[Array, int, bool]:
        """Pixels in one run of memory, the batch, and whether there is a frame for each step."""
        info = self.info
        expected = (info.channels, info.height, info.width)
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
        if info.threads > 1 and self._process != os.getpid():
            raise UserError("the native engine's threads end at a fork: load the file again here")
        return np.ascontiguousarray(images), images.shape[-4], frames

    def _value(self, kind: str, number: int, frames: bool = False) -> _Value:
        """The description of an "output" or a "neuron"."""
        value = _Value()
        describe = getattr(self._library, f"qsd_{kind}")
        if describe(self._model, number, int(frames), ctypes.byref(value)):
            raise UserError("this network does not take a frame for each time step")
        return value

    def _arrays(
        self, kind: str, batch: int, frames: bool, dtype: type
    ) -> tuple[list[str], list[Array]]:
        """Names of all outputs or neurons, and an empty array for the values of each.

        The library writes to as many arrays as there are, whatever their names.
        """
        names, arrays = [], []
        for number in range(getattr(self.info, f"{kind}s")):
            value = self._value(kind, number, frames)
            shape = (value.steps * batch, value.channels, value.height, value.width)
            names.append(value.name.decode())
            arrays.append(np.empty(shape, dtype))
        return names, arrays

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


@functools.cache
def _opened(place: str) -> ctypes.CDLL:
    try:
        return _declared(ctypes.CDLL(place))
    except (OSError, AttributeError) as error:
        raise UserError(f"cannot use the native engine {place}: {one_line(error)}") from error


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
