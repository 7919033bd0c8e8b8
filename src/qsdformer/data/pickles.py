"""Reading published pickles of arrays as plain data: no code that a pickle names is ever run."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,  # also of text that does not decode
)


class _Type:
    """Stands for a NumPy data type; only the code matters, such as u1."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which single bytes do not have."""


class _Array:
    """Stands for a NumPy array: keeps what the pickle says of it."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def unpacked(self) -> npt.NDArray[np.uint8]:
        """The array; ValueError if it is not a plain one of bytes."""
        match self.state:
            case (_, tuple(shape), _Type(code="u1"), False, str() | bytes() as content):
                # Python 2 wrote bytes as text, which latin-1 turns back.
                raw = content.encode("latin-1") if isinstance(content, str) else content
                if len(raw) != math.prod(shape):
                    raise ValueError(f"{len(raw)} values where {math.prod(shape)} belong")
                return np.frombuffer(raw, np.uint8).reshape(shape)
        raise ValueError("an array in it is not one of bytes")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin-1")


# All that a pickle of a dictionary of byte arrays, lists and texts needs.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


# The interpreter in Python: the one in C allocates whatever a crafted memo index asks for.
class _Reader(pickle._Unpickler):  # type: ignore[misc,name-defined,unused-ignore]
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            reason = f"it asks for {module}.{name}, which is not data"
            raise pickle.UnpicklingError(reason) from None


def read_pickle(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle by Python 2 or 3; its arrays are NumPy's, of uint8.

    Raises one of `PICKLE_ERRORS` for anything else.
    """
    values = _Reader(io.BytesIO(content), encoding="latin-1").load()
    if not isinstance(values, dict):
        raise ValueError("it holds no dictionary")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): (
            value.unpacked() if isinstance(value, _Array) else value
        )
        for key, value in values.items()
    }
