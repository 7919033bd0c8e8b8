"""What can go wrong while an image file is decoded; needs Pillow only."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

# What Pillow's decoders raise on damaged files, beside OSError.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
