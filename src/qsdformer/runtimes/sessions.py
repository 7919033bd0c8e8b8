"""ONNX Runtime and OpenVINO: sessions, and which kernels they choose for a model.

Neither PyTorch nor the package onnx is needed here.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qsdformer.errors import UserError, one_line
from qsdformer.graph.ops import Array

# Named outputs of pixels (B, C, H, W) uint8; None asks for all of them.
Infer = Callable[[Array, list[str] | None], dict[str, Array]]

# How an ONNX file is laid out: for the speed of a runtime, or "float", the same network with
# float32 weights and counts, to compare speed with.
Arrangement = Literal["onnxruntime", "openvino", "float"]

EXTRAS = {"onnxruntime": "runtime", "onnxscript": "export", "openvino": "export"}
# Kernels of ONNX Runtime that multiply.
INTEGER_KERNELS = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
REAL_KERNELS = {"Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"}
OPENVINO_LAYERS = {"Convolution", "FullyConnected", "GroupConvolution", "MatMul"}


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """How many convolutions and matrix products a runtime gives to which kernels."""

    integer: Counter[str]
    real: Counter[str]


def require(package: str) -> Any:
    """The module `package`; a `UserError` that says how to install it if it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"the package {package} is missing: pip install 'qsdformer[{EXTRAS[package]}]'"
        ) from error


def onnxruntime_session(
    model: bytes | str, threads: int, profile: str | None = None, name: str = "the model"
) -> Any:
    """A session of ONNX Runtime on the CPU; `profile` begins the name of a profile to write.

    `name` is what messages call a model that is given as bytes.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Waiting threads sleep: spinning takes the cores from everything else on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no other base
        name = model if isinstance(model, str) else name
        reason = one_line(error)
        raise UserError(f"ONNX Runtime cannot load {name}: {reason}; export it again") from error


def onnxruntime_infer(model: bytes | str, threads: int = 1) -> Infer:
    """Runs `model`, a file's content or its path, in ONNX Runtime."""
    session = onnxruntime_session(model, threads)
    names = [output.name for output in session.get_outputs()]
    pixels = session.get_inputs()[0].name

    def infer(images: Array, outputs: list[str] | None) -> dict[str, Array]:
        chosen = names if outputs is None else outputs
        return dict(zip(chosen, session.run(chosen, {pixels: images}), strict=True))

    return infer


def openvino_compiled(model: bytes | str, threads: int) -> Any:
    """A compiled model of OpenVINO on the CPU, computing real numbers in 32 bits.

    By default OpenVINO rounds real numbers to bfloat16 where the processor has it, and to 8 bits
    the inputs of matrix products with 8-bit weights; both would move spike counts.
    """
    core = _openvino_core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        return core.compile_model(core.read_model(model), "CPU", settings)
    except RuntimeError as error:
        reason = one_line(error)
        raise UserError(f"OpenVINO cannot load the model: {reason}; export it again") from error


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO's plugins, loaded once and never unloaded.

    Loading the one for CPUs gives the thread another stack for signal handlers, and unloading it
    puts back the one before. Of two that are loaded, the first to be unloaded frees the stack that
    the second puts back: the next signal with a handler, such as that of a data loader's process
    which ends, would kill this one.
    """
    return require("openvino").Core()


def openvino_infer(model: bytes | str, threads: int = 1) -> Infer:
    """Runs `model`, a file's content or its path, in OpenVINO."""
    compiled = openvino_compiled(model, threads)
    request = compiled.create_infer_request()
    names = {name: port for port in compiled.outputs for name in port.get_names()}

    def infer(images: Array, outputs: list[str] | None) -> dict[str, Array]:
        found = request.infer({0: images})
        chosen = list(names) if outputs is None else outputs
        return {name: np.array(found[names[name]]) for name in chosen}

    return infer


# The name of each runtime, its package, for which a graph is arranged, and what starts it.
RUNTIMES: dict[str, tuple[Arrangement, Callable[[bytes | str, int], Infer]]] = {
    "ONNX Runtime": ("onnxruntime", onnxruntime_infer),
    "OpenVINO": ("openvino", openvino_infer),
}
PACKAGES = tuple(package for package, _ in RUNTIMES.values())


def onnxruntime_kernels(model: bytes | str, image: Array) -> Kernels:
    """The kernels that ran for `image`, from ONNX Runtime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime_session(model, 1, profile=os.path.join(folder, "profile"))
        session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = Counter(
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )
    return Kernels(
        integer=Counter({name: n for name, n in ran.items() if name in INTEGER_KERNELS}),
        real=Counter({name: n for name, n in ran.items() if name in REAL_KERNELS}),
    )


def openvino_kernels(model: bytes | str, image: Array) -> Kernels:
    """The kernels that OpenVINO chose, from its execution graph after running `image`."""
    compiled = openvino_compiled(model, 1)
    compiled.create_infer_request().infer({0: image})
    integer: Counter[str] = Counter()
    real: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" not in info or "primitiveType" not in info:
            continue
        layer, primitive = (str(info[key].astype(str)) for key in ("layerType", "primitiveType"))
        if layer.startswith(tuple(OPENVINO_LAYERS)):
            # The suffix is the type that the kernel reads.
            counter = integer if primitive.lower().endswith(("i8", "u8")) else real
            counter[f"{layer} {primitive}"] += 1
    return Kernels(integer=integer, real=real)
