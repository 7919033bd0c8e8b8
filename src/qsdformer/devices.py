"""Where models run."""

from __future__ import annotations

import torch

from qsdformer.errors import UserError, one_line


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto is CUDA where available, else the CPU.

    Raises `UserError` for one that does not exist here, or has no memory left for anything.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(RuntimeError(str(error).partition("\n")[0]))
        raise UserError(f"cannot use device {name!r}: {reason}; try --device cpu") from error
    return device
