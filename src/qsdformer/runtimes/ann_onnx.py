"""The same-topology ANN as ONNX, in fp32 and post-training int8: what a vision engineer has today.

Only speed is compared, so weights are untrained and calibration images are noise.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qsdformer.graph.ops import Array
from qsdformer.nn.config import NetworkConfig
from qsdformer.runtimes.onnx_nodes import OPSET
from qsdformer.runtimes.sessions import require

CALIBRATION_IMAGES = 4


def has_ann(model: nn.Module) -> bool:
    """Whether a model is a classifier of this package, which has a counterpart ANN."""
    return isinstance(getattr(model, "config", None), NetworkConfig)


def ann_model(model: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> bytes:
    """The counterpart ANN of `model` in fp32, untrained.

    It takes normalised `pixels` (B, C, H, W); `shape` is theirs, (C, H, W).
    """
    config: Any = model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ann = type(model)(config.ann())
    require("onnxscript")
    images = torch.zeros(2, *shape)
    program = torch.onnx.export(
        ann.eval(),
        (images,),
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # it is where no file is named
    return program.model_proto.SerializeToString()


def quantised_ann(model: bytes, shape: tuple[int, int, int]) -> bytes:
    """`model` after ONNX Runtime's static quantisation: QDQ, int8 weights per channel."""
    require("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Noise(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            generator = np.random.default_rng(0)
            size = (1, *shape)
            images = [
                generator.standard_normal(size, np.float32) for _ in range(CALIBRATION_IMAGES)
            ]
            self.images = iter(images)

        def get_next(self) -> dict[str, Array] | None:
            image = next(self.images, None)
            return None if image is None else {"pixels": image}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (str(Path(folder) / f"{i}.onnx") for i in range(3))
        Path(source).write_bytes(model)
        logging.disable(logging.WARNING)
        try:
            shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
            options: dict[str, Any] = {
                "quant_format": quantization.QuantFormat.QDQ,
                "per_channel": True,
                "activation_type": quantization.QuantType.QUInt8,
                "weight_type": quantization.QuantType.QInt8,
            }
            quantization.quantize_static(prepared, result, Noise(), **options)
        finally:
            logging.disable(logging.NOTSET)
        return Path(result).read_bytes()
