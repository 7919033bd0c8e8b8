"""Where `qsd predict` writes what it has drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qsdformer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class Pictures:
    """A folder of pictures: one for each image, under its name, no name twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0  # of names given so far
        self._taken: set[str] = set()

    def name_for(self, path: str) -> Path:
        """The file for the picture of the image at `path`."""
        stem, number = Path(path).stem, 1
        name = stem
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        self.count += 1
        return self.folder / f"{name}.png"

    def save(self, picture: Image.Image, path: Path) -> None:
        """Write a picture; `UserError` if that cannot be done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot write {path}: {reason}; choose another folder with --output"
            ) from error
