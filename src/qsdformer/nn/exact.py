"""Arithmetic in full float32, for what is compared, counted or chosen by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# Where CUDA may round float32 operands to TF32 (10 bits of mantissa); convolutions do by default.
_cudnn: Any = torch.backends.cudnn
TF32_SWITCHES: tuple[Any, ...] = (torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn)


@contextlib.contextmanager
def exact_float32(device: torch.device | str) -> Iterator[None]:
    """No autocast and no TF32 on `device` inside the block, whatever holds outside.

    A spike count is a floor of a sum: a sum rounded to fewer bits is another count, and thus
    another network.
    """
    before = [switch.fp32_precision for switch in TF32_SWITCHES]
    for switch in TF32_SWITCHES:
        switch.fp32_precision = "ieee"
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for switch, precision in zip(TF32_SWITCHES, before, strict=True):
            switch.fp32_precision = precision
