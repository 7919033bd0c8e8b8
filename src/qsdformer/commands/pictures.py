"""Where `qsd predict` writes what it has drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsdformer.errors import UserError
from qsdformer.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image


class Pictures:
    """A folder of pictures of the images at `paths`, each under its name, no name twice.

    Raises `UserError` if one of the images lies in the folder: pictures could take the place of
    what lies beside it.
    """

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        self.folder = folder
        self.position = 0  # among all paths, from 1, of the image that got names last
        self._order = enumerate(paths, 1)
        self._taken: set[str] = set()
        for path in map(Path, paths):
            places = path.parent.resolve(), path.resolve().parent  # a link, and what it leads to
            if folder.resolve() in places:
                raise UserError(
                    f"{path} lies in {folder}, where pictures could overwrite images: choose "
                    "another folder with --output"
                )

    def names_for(self, path: str, *endings: str) -> list[Path]:
        """The files for what is drawn of the image at `path`: its name with each ending.

        Images come in the order of the paths, some of which may be left out.
        """
        stem, number = Path(path).stem, 1
        names = [f"{stem}{ending}" for ending in endings]
        while self._taken & set(names):
            number += 1
            names = [f"{stem}-{number}{ending}" for ending in endings]
        self._taken.update(names)
        self.position = next(place for place, given in self._order if given == path)
        return [self.folder / f"{name}.png" for name in names]

    def save(self, picture: Image.Image, path: Path) -> None:
        """Write a picture, whole or not at all; `UserError` if that cannot be done."""
        with atomic_path(path, "choose another folder with --output") as temporary:
            picture.save(temporary, format="PNG")
