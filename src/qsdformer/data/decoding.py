"""Finding and opening image files, once for training and for prediction; needs Pillow only."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import zlib
from collections.abc import Container
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from qsdformer.errors import UserError
from qsdformer.files import is_special

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
# What damaged EXIF data raise beside those.
EXIF_ERRORS = (*DECODE_ERRORS, ArithmeticError, LookupError, TypeError, AttributeError)

# How the names of image files end, in lower case.
_ENDINGS = ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pgm .png .ppm .tga .tif .tiff .webp"
EXTENSIONS = tuple(_ENDINGS.split())
# What files may hold, whatever their names: Pillow has formats whose reading runs programs.
_FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TGA TIFF WEBP"
FORMATS = tuple(_FORMATS.split())
# A centre crop is square; this leaves its borders what they would be in the whole image.
WIDEST = 16  # longer by shorter side


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def opened(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """The header of an image file in one of `FORMATS`, as Pillow opens it."""
    return Image.open(file, formats=_formats())


def open_image(path: str | os.PathLike[str], *, upright: bool = True) -> Image.Image:
    """The decoded image, upright and of 8 bits a channel; the first one of an animation.

    Not `upright`: as it is stored, whatever its EXIF data say. Raises `UserError` naming the file
    if it is missing, damaged or not a regular file.
    """
    try:
        if is_special(path):
            raise OSError("not a regular file")  # which might be waited for without end
        with opened(path) as image:
            image.load()
            return as_shown(image) if upright else _eight_bits(image).copy()
    except DECODE_ERRORS as error:
        missing = isinstance(error, FileNotFoundError)
        advice = "check the path" if missing else "replace or remove the file"
        raise UserError(
            f"cannot read image {os.fspath(path)}: {reason_of(error)}; {advice}"
        ) from error


def as_shown(image: Image.Image) -> Image.Image:
    """An image upright and of 8 bits a channel; ValueError for numbers of 32 bits."""
    return upright_image(_eight_bits(image))


def reason_of(error: BaseException) -> str:
    """Why an image could not be decoded, on one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def middle(image: Image.Image) -> Image.Image:
    """The middle of an image with extreme sides, which a centre crop cannot tell from the whole.

    Resized whole, an image of one pixel by 200,000 would need gigabytes.
    """
    width, height = image.size
    longest = WIDEST * min(width, height)
    if max(width, height) <= longest:
        return image
    # As many pixels off one end as off the other, so that the centre stays where it is.
    left, top = (max(0, (side - longest) // 2) for side in (width, height))
    return image.crop((left, top, width - left, height - top))


def find_images(
    folder: str | os.PathLike[str], visited: Container[str] = ()
) -> tuple[list[str], list[str]]:
    """Paths of the image files below a folder, and of the files left out, both sorted.

    Hidden files and folders are passed over. Links are followed, but to no folder twice, nor to
    one that holds `folder`, nor to the real paths in `visited`. What is not a regular file, such
    as a pipe, is left out, as are names with other endings than `EXTENSIONS`.
    """
    images: list[tuple[str, str]] = []
    left_out: list[str] = []
    seen = {os.path.realpath(folder)}
    above = os.path.realpath(folder)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        seen.add(above)
    waiting = [os.fspath(folder)]
    while waiting:
        current = waiting.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    real = os.path.realpath(entry.path)
                    if real not in seen and real not in visited:
                        seen.add(real)
                        waiting.append(entry.path)
                elif entry.name.lower().endswith(EXTENSIONS) and _may_be_image(entry):
                    images.append((current, entry.name))
                else:
                    left_out.append(entry.path)
    return [os.path.join(*pair) for pair in sorted(images)], sorted(left_out)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_be_image(entry: os.DirEntry[str]) -> bool:
    """A regular file, or a broken link, about which opening it will tell."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey images scaled down, which Pillow's own conversion would clip to white.

    A `ValueError` for numbers of 32 bits, which say nothing of what is white.
    """
    sixteen = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if not sixteen:
        if image.mode in ("I", "F"):
            raise ValueError("it has numbers of 32 bits: convert it to 8 or 16")
        return image
    shallow = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    shallow.info = image.info
    return shallow


def upright_image(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF data say nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except EXIF_ERRORS:
        return image.copy()


def upright_size(path: str) -> tuple[int, int] | None:
    """Height and width of an image file as its EXIF data turn it; None where it cannot be read.

    Pixels are decoded only where EXIF data turn them, or something is wrong.
    """
    with contextlib.suppress(*EXIF_ERRORS), opened(path) as image:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image.height, image.width
    try:
        turned = open_image(path)
    except UserError:
        return None
    return turned.height, turned.width


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """A grey (1) or colour (3) image; `UserError` for what image files do not have."""
    if channels not in (1, 3):
        raise UserError(f"the model takes {channels} channels, which image files do not have")
    try:
        return image.convert("L" if channels == 1 else "RGB")
    except ValueError as error:
        raise UserError(f"cannot make {image.mode} grey or RGB: convert the image") from error
