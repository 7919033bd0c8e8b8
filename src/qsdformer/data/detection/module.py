"""The data module for images with boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD, DataInfo
from qsdformer.data.decoding import EXTENSIONS
from qsdformer.data.detection.coco import read_coco
from qsdformer.data.detection.config import DetectionData
from qsdformer.data.detection.dataset import DetectionDataset, Preparation
from qsdformer.data.detection.records import DetectionSet, Record, check_sizes
from qsdformer.data.detection.vary import Variation
from qsdformer.data.detection.voc import class_names_of, read_voc
from qsdformer.data.loading import SplitModule
from qsdformer.errors import UserError
from qsdformer.files import at_home

# Of grey images: ImageNet's, averaged over its channels.
GREY_MEAN, GREY_STD = (0.449,), (0.226,)


class DetectionDataModule(SplitModule[DetectionDataset]):
    """Training and evaluation batches of images with boxes, and masks if `masks`.

    With `evaluate_as`, what a trained model wants of its images, no training images are read; the
    data must have its classes.
    `category_ids` are what the files call them. Raises `UserError` for data that cannot be used.
    """

    can_skip_bad = False  # an image belongs to the list that names it

    def __init__(
        self,
        config: DetectionData,
        *,
        masks: bool,
        batch_size: int,
        eval_batch_size: int | None = None,
        seed: int = 0,
        evaluate_as: DataInfo | None = None,
        training: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            workers=config.workers,
        )
        if masks and config.name == "voc":
            raise UserError(
                "data.name=voc has boxes only: masks cannot be learned from it, choose "
                "detection.detector faster_rcnn or retinanet"
            )
        self.config = config
        self.preparation = Preparation.of(config, evaluate_as)
        if config.root is None:
            raise UserError("data.root is missing: give the folder with images and annotations")
        known = None if evaluate_as is None else evaluate_as.class_names
        if known is None and config.name == "voc":
            known = class_names_of(config.root, (config.train_split, config.split))
        evaluated = _read(config, config.split, masks, known)
        if evaluate_as is not None:
            _check_fits(evaluated, evaluate_as, config)
        self._eval = DetectionDataset(
            records=evaluated.records, preparation=self.preparation, masks=masks
        )
        self._train = None
        notes = evaluated.notes
        if training and evaluate_as is None:
            trained = _read(config, config.train_split, masks, known)
            _check_same(trained, evaluated, config)
            self._train, more = self._training_set(trained, masks)
            notes = (*trained.notes, *more, *notes)
        self.notes: tuple[str, ...] = tuple(dict.fromkeys(notes))
        self.category_ids = evaluated.category_ids
        self.info = evaluate_as or described(config, evaluated.class_names)

    @property
    def files(self) -> Iterator[Path]:
        """The files of the set: annotations, lists, and all that lies beside its images."""
        assert self.config.root is not None
        root = at_home(self.config.root)
        for pattern in ("annotations/*.json", "ImageSets/Main/*.txt", "Annotations/*.xml"):
            yield from root.glob(pattern)
        for folder in sorted({Path(path).parent for path in self._eval.unread}):
            yield from (path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)

    def check(self) -> None:
        """As for other data, and `UserError` for images of other sizes than annotated."""
        super().check()
        check_sizes([*self.training_set.records, *self._eval.records])

    def _training_set(
        self, found: DetectionSet, masks: bool
    ) -> tuple[DetectionDataset, tuple[str, ...]]:
        config = self.config
        records, notes = _usable(found, config)
        if config.train_limit is not None:
            if config.train_limit > len(records):
                raise UserError(
                    f"train_limit={config.train_limit}: there are only {len(records)} training "
                    "images; lower it or leave it out"
                )
            records = records[: config.train_limit]
        if not any((~record.iscrowd).any() for record in records):
            raise UserError(f"no object to learn in the split {config.train_split}")
        variation = Variation(
            sizes=config.train_sizes or (),
            hflip=config.hflip,
            vflip=config.vflip,
            random_crop=config.random_crop,
        )
        dataset = DetectionDataset(
            records=records,
            preparation=self.preparation,
            masks=masks,
            seed=self.seed,
            variation=variation,
        )
        return dataset, notes


def described(config: DetectionData, class_names: Sequence[str]) -> DataInfo:
    """What a model needs to know of the images that a recipe's section says."""
    grey = config.channels == 1
    return DataInfo(
        image_size=config.image_size,
        channels=config.channels,
        class_names=tuple(class_names),
        mean=GREY_MEAN if grey else IMAGENET_MEAN,
        std=GREY_STD if grey else IMAGENET_STD,
        fit="pad" if config.keep_aspect else "stretch",
    )


def _read(
    config: DetectionData, split: str, masks: bool, known: Sequence[str] | None
) -> DetectionSet:
    assert config.root is not None
    if config.name == "voc":
        return read_voc(config.root, split, class_names=known)
    return read_coco(config.root, split, segments=masks)


def _check_same(train: DetectionSet, val: DetectionSet, config: DetectionData) -> None:
    """`UserError` unless both splits call the same ids the same."""
    mine = dict(zip(train.category_ids, train.class_names, strict=True))
    theirs = dict(zip(val.category_ids, val.class_names, strict=True))
    for number in sorted({*mine, *theirs}):
        if mine.get(number) != theirs.get(number):
            raise UserError(
                f"category {number} is {mine.get(number)!r} in {config.train_split} but "
                f"{theirs.get(number)!r} in {config.split}: both need the same categories"
            )


def _check_fits(found: DetectionSet, info: DataInfo, config: DetectionData) -> None:
    """`UserError` unless the data has the classes of a trained model."""
    if found.class_names == info.class_names:
        return
    pairs = zip(found.class_names, info.class_names, strict=False)
    differing = next(((a, b) for a, b in pairs if a != b), None)
    what = (
        f"it has {len(found.class_names)} classes, the model {len(info.class_names)}"
        if differing is None
        else f"the model's class {differing[1]!r} is {differing[0]!r} there"
    )
    raise UserError(f"{config.root} is not for this model: {what}")


def _usable(
    found: DetectionSet, config: DetectionData
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """The records to train on, and a note on those that are left out."""
    records, notes = found.records, []
    if config.skip_empty:
        kept = tuple(r for r in records if (~r.iscrowd).any())
        if len(kept) < len(records):
            count = len(records) - len(kept)
            notes.append(f"training images without objects, left out: {count:,}")
        records = kept
    large = tuple(r for r in records if r.size is None or min(r.size) >= config.min_size)
    if len(large) < len(records):
        count = len(records) - len(large)
        notes.append(f"training images smaller than {config.min_size} pixels, left out: {count:,}")
    if not large:
        raise UserError(f"no image to train on is left in the split {config.train_split}")
    return large, tuple(notes)
