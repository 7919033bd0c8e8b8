"""Images with masks, read, varied and made into batches.

H rows, W columns. A batch is images (B, 3, H, W) float32 and masks (B, H, W) int64; where the
images or masks of one differ in size, a list of (3, H, W) or (H, W) in its place.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsdformer.data.augment import image_keys
from qsdformer.data.base import IMAGENET_MEAN, IMAGENET_STD, DataError, DataInfo, Source
from qsdformer.data.decoding import upright_size
from qsdformer.data.folders import check_images
from qsdformer.data.images import normalise, read_image
from qsdformer.data.segmentation.config import PUBLISHED, SegmentationData
from qsdformer.data.segmentation.files import Pair, Pairs, class_names_in, find_pairs
from qsdformer.data.segmentation.labels import IGNORE, Labels, read_labels
from qsdformer.data.segmentation.vary import (
    Array,
    Size,
    photometric,
    random_crop,
    resized,
    resized_image,
    resized_mask,
)
from qsdformer.errors import UserError

Read = tuple[Array, Array]  # an image (H, W, 3) uint8 and its mask (H, W) uint8


@dataclass(frozen=True, kw_only=True)
class MaskDataset:
    """Image files with masks, decoded when asked for; an `ImageDataset`.

    Training images are varied; what is drawn depends on (seed, epoch, file index) alone.
    """

    config: SegmentationData
    pairs: tuple[Pair, ...]
    labels_of: Labels
    info: DataInfo
    notes: tuple[str, ...] = ()
    seed: int = 0
    training: bool = False
    kept: dict[str, Read] = field(default_factory=dict, repr=False, compare=False)

    labels = None  # each pixel has its own

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, requests: Sequence[int]) -> tuple[Any, Any]:
        wanted = torch.as_tensor(requests, dtype=torch.int64)
        indices = wanted % len(self)
        keys = image_keys(self.seed, wanted // len(self), indices)
        found = [
            self._varied(self._read(self.pairs[index]), np.random.default_rng(key))
            if self.training
            else self._whole(self._read(self.pairs[index]))
            for index, key in zip(indices.tolist(), keys, strict=True)
        ]
        images = [normalise(_channels_first(image), self.info)[0] for image, _ in found]
        masks = [torch.from_numpy(mask.astype(np.int64)) for _, mask in found]
        return _stacked(images), _stacked(masks)

    def _read(self, pair: Pair) -> Read:
        """The decoded pair, kept in memory if the recipe wants that."""
        if pair.image in self.kept:
            return self.kept[pair.image]
        image = np.asarray(read_image(pair.image, self.info.channels))
        mask = self._mask(pair, image.shape)
        if self.config.in_memory:
            self.kept[pair.image] = image, mask
        return image, mask

    def _labels(self, pair: Pair) -> Array:
        """The classes in a pair's mask, without decoding its image."""
        size = None if self.config.in_memory else upright_size(pair.image)
        return self._read(pair)[1] if size is None else self._mask(pair, size)

    def _mask(self, pair: Pair, shape: Sequence[int]) -> Array:
        """The classes in a pair's mask, for an image of `shape` (H, W, ...)."""
        mask = self.labels_of.read(pair.mask)
        if not same_proportions(shape[:2], mask.shape):
            raise DataError(
                f"mask {pair.mask} is {_size_text(mask.shape)} pixels, its image "
                f"{_size_text(shape)}: they must have the same proportions"
            )
        return mask

    def check_masks(self) -> None:
        """`DataError` for a mask that does not fit its image or has labels of no class."""
        for pair in self.pairs:
            if pair.image not in self.kept:
                size = upright_size(pair.image)
                if size is not None:  # otherwise the image is what cannot be read
                    self._mask(pair, size)

    def _varied(self, read: Read, rng: np.random.Generator) -> Read:
        image, mask = read
        config = self.config
        scale = rng.uniform(*config.scale)
        image, mask = resized(image, mask, working_size(image.shape, config, self.info, scale))
        fill = tuple(round(255 * mean) for mean in self.info.mean)
        image, mask = random_crop(
            image, mask, self.info.sides, rng, most=config.max_class_share, fill=fill
        )
        if config.hflip and rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if config.photometric:
            image = photometric(np.ascontiguousarray(image), rng)
        return image, mask

    def _whole(self, read: Read) -> Read:
        image, mask = read
        size = working_size(image.shape, self.config, self.info)
        shown = resized_image(image, size)
        return shown, mask if self.config.full_size else resized_mask(mask, size)

    def read_all(self) -> None:
        """Decode all files now, before loader processes would each do it for themselves."""
        try:
            for pair in self.pairs:
                self._read(pair)
        except DataError:
            check_images(self.unread)  # names and counts all that are like it
            raise

    @property
    def unread(self) -> Sequence[str]:
        """The files that are decoded only when they are asked for."""
        waiting = [pair for pair in self.pairs if pair.image not in self.kept]
        return [path for pair in waiting for path in (pair.image, pair.mask)]

    def class_pixels(self) -> tuple[Tensor, Tensor]:
        """For each class (K,) its pixels in all masks, and those of all masks that show it."""
        classes = len(self.labels_of.classes)
        pixels, around = np.zeros(classes), np.zeros(classes)
        for pair in self.pairs:
            counts = np.bincount(self._labels(pair).ravel(), minlength=IGNORE + 1)[:IGNORE]
            pixels += counts[:classes]
            around += (counts[:classes] > 0) * counts.sum()
        return torch.from_numpy(pixels), torch.from_numpy(around)

    def select(self, indices: Tensor) -> MaskDataset:
        """The same dataset with only the images at `indices` (K,) int64, in that order."""
        pairs = tuple(self.pairs[index] for index in indices.tolist())
        return dataclasses.replace(self, pairs=pairs)

    def without_augmentation(self) -> MaskDataset:
        """The same images as evaluation sees them."""
        return dataclasses.replace(self, training=False)

    def prepared_as(self, info: DataInfo) -> MaskDataset:
        """The same images, in the size and normalisation that `info` says."""
        if info.channels != self.info.channels:
            return self
        own = dataclasses.replace(info, class_names=self.info.class_names)
        return dataclasses.replace(self, info=own)


def load(config: SegmentationData, seed: int) -> Source:
    """The images and masks of a recipe's data section; `UserError` for missing or unusable ones."""
    val = find_pairs(config.root, config.split, skip_bad=config.skip_bad)

    def read_train() -> Pairs:
        return find_pairs(config.root, config.train_split, skip_bad=config.skip_bad)

    labels = Labels(
        classes=_class_names(config, val),
        ignored=config.ignored,
        reduces_zero=config.reduces_zero,
    )
    info = DataInfo(
        image_size=config.image_size,
        channels=3,
        class_names=labels.classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        fit="stretch",
    )

    def dataset(found: Pairs, *, training: bool) -> MaskDataset:
        made = MaskDataset(
            config=config,
            pairs=found.pairs,
            labels_of=labels,
            info=info,
            notes=(*found.notes, *labels.notes),
            seed=seed,
            training=training,
        )
        if config.in_memory:
            made.read_all()
        return made

    return Source(
        info=info,
        train=lambda: dataset(read_train(), training=True),
        test=dataset(val, training=False),
    )


def working_size(
    shape: Sequence[int], config: SegmentationData, info: DataInfo, scale: float = 1.0
) -> Size:
    """Height and width that an image of `shape` (H, W, ...) gets, its size varied by `scale`."""
    height, width = shape[:2]
    if config.shorter_side is None:
        tall, wide = info.sides
        return max(1, round(tall * scale)), max(1, round(wide * scale))
    factor = config.shorter_side / min(height, width)
    if config.longest_side is not None:
        factor = min(factor, config.longest_side / max(height, width))
    return max(1, round(height * factor * scale)), max(1, round(width * factor * scale))


def same_proportions(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes (height, width) are the same but for scale and a pixel of rounding."""
    (height, width), (tall, wide) = one, other
    slack = max(height + tall, width + wide)
    return height == 0 or abs(height * wide - width * tall) <= slack


def _class_names(config: SegmentationData, val: Pairs) -> tuple[str, ...]:
    """As given, published or in the folder; otherwise numbers up to the largest label found."""
    if config.classes is not None:
        return config.classes
    named = class_names_in(config.root)
    if config.name in PUBLISHED:
        published = PUBLISHED[config.name][0]
        if named is not None:
            _check_names(config, published, named)
        return published
    if named is not None:
        return named
    train = find_pairs(config.root, config.train_split, skip_bad=config.skip_bad)
    largest = -1
    for pair in (*train.pairs, *val.pairs):
        found = read_labels(pair.mask)
        known = found[found != config.ignored].astype(np.int64)
        largest = max(largest, int(known.max(initial=-1)))
    count = largest + 1 - config.reduces_zero
    return tuple(map(str, range(max(2, count))))


def _check_names(config: SegmentationData, published: Sequence[str], named: Sequence[str]) -> None:
    """`UserError` where a folder names other classes than those of the published set."""
    for mine, theirs in itertools.zip_longest(published, named):
        if mine != theirs:
            what = f"class {mine!r} of {config.name} is {theirs!r} there"
            if mine is None or theirs is None:
                what = f"it has {len(named)} classes, {config.name} {len(published)}"
            raise UserError(
                f"{config.root}/classes.txt: {what}; is it another set (--data.name mask_folder)?"
            )


def _channels_first(image: Array) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def _stacked(tensors: list[Tensor]) -> Any:
    alike = all(tensor.shape == tensors[0].shape for tensor in tensors)
    return torch.stack(tensors) if alike else tensors


def _size_text(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
