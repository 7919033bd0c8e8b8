"""The images of docs/cifar10.md as class folders, from the published CIFAR-10.

    python benchmarks/cifar10_folders.py DATA FOLDER [--jpeg]

DATA is a published archive, or a folder that has it. FOLDER gets train/CLASS/NNNN.png of all
training images, val/CLASS/NNNN.png of every second test image of each class from the first on, and
test/CLASS/NNNN.png of the others, which the page keeps aside; numbers are those within the class in
the order of the archive. With --jpeg they are JPEG files of quality 75 with colours at half the
resolution, like those that the page's grids learned from.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from qsdformer.data.cifar import TEN, is_published, load_ten
from qsdformer.data.config import DataConfig
from qsdformer.data.memory import MemoryDataset
from qsdformer.errors import UserError

QUALITY, HALVED_COLOURS = 75, 2  # Pillow's number for colours of half the resolution
SPLITS = {"train": slice(None), "val": slice(0, None, 2), "test": slice(1, None, 2)}  # of a class


def write_split(folder: Path, dataset: MemoryDataset, chosen: slice, *, jpeg: bool) -> int:
    """Write the chosen ones of each class's images of `dataset`; how many that are."""
    images = dataset.images.permute(0, 2, 3, 1).numpy()
    written = 0
    for label, name in enumerate(dataset.info.class_names):
        of_class = images[(dataset.labels == label).numpy()]
        (folder / name).mkdir(parents=True)
        for number in range(len(of_class))[chosen]:
            image, file = Image.fromarray(of_class[number]), folder / name / f"{number:04}"
            if jpeg:
                image.save(file.with_suffix(".jpg"), quality=QUALITY, subsampling=HALVED_COLOURS)
            else:
                image.save(file.with_suffix(".png"))
            written += 1
    return written


def main() -> None:
    """Parse arguments and write all or nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--jpeg", action="store_true", help="as JPEG files of quality 75")
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists():
        parser.error(f"{folder} is there already: choose another folder")
    try:
        if not is_published(TEN, options.data):
            raise UserError(f"{options.data}: no published archive of CIFAR-10, nor a folder of it")
        source = load_ten(DataConfig(name="cifar10", root=options.data), 0)
        train = source.train()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
            whole = Path(made) / folder.name
            for split, chosen in SPLITS.items():
                dataset = train if split == "train" else source.test
                written = write_split(whole / split, dataset, chosen, jpeg=options.jpeg)
                print(f"{split}: {written:,} images")
            whole.rename(folder)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: cannot write {folder}: {error.strerror}; choose another folder\n")


if __name__ == "__main__":
    main()
