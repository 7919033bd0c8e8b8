from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.segmentation.mask_files import save, write_ade20k, write_camvid
from qsdformer.data import DataModule
from qsdformer.data.base import DataError
from qsdformer.data.segmentation.config import SegmentationData
from qsdformer.data.segmentation.dataset import MaskDataset, load, same_proportions
from qsdformer.data.segmentation.labels import IGNORE, Labels, read_labels
from qsdformer.data.segmentation.overlay import coloured, overlaid, palette, with_legend
from qsdformer.data.segmentation.vary import largest_share, photometric, random_crop
from qsdformer.errors import UserError

LABELS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


@pytest.mark.parametrize(
    "values",
    [
        LABELS,
        LABELS.astype(np.uint16),
        np.repeat(LABELS[..., None], 3, axis=2),
    ],
)
def test_masks_are_read_from_grey_files_of_any_depth(tmp_path: Path, values: np.ndarray) -> None:
    assert (read_labels(str(save(values, tmp_path / "mask.png"))) == LABELS).all()


def test_masks_with_a_palette_hold_indices_and_not_colours(tmp_path: Path) -> None:
    image = Image.fromarray(LABELS, mode="P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(tmp_path / "mask.png")
    assert (read_labels(str(tmp_path / "mask.png")) == LABELS).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_a_mask_is_turned_as_its_exif_data_say(
    tmp_path: Path, dtype: type, orientation: int, turns: int
) -> None:
    labels = np.array([[0, 1, 2], [0, 0, 1]], dtype)
    path = save(labels, tmp_path / "mask.png", exif=turned(orientation))
    assert np.array_equal(read_labels(str(path)), np.rot90(labels, turns))


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_and_masks_fit_whether_both_are_stored_turned_or_only_the_image(
    tmp_path: Path, orientation: int
) -> None:
    write_camvid(tmp_path, count=2)
    config = SegmentationData(name="camvid", root=str(tmp_path), image_size=(36, 48))
    upright = load(config, 0).test.__getitems__([0])
    # What turns the stored pixels upright again is the opposite turn of them.
    back = {3: 2, 6: 1}[orientation]
    for kind in ("images", "masks"):
        path = tmp_path / "val" / kind / "0.png"
        stored = np.rot90(np.asarray(Image.open(path)), back)
        save(np.ascontiguousarray(stored), path, exif=turned(orientation))
        # First the image alone, whose mask was drawn on the upright picture, then both.
        found = load(config, 0).test.__getitems__([0])
        assert all(torch.equal(a, b) for a, b in zip(found, upright, strict=True))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("label", "words"), [(65537, "above 65535"), (2**31 - 1, "above"), (-1, "below 0")]
)
def test_labels_that_do_not_fit_into_16_bits_are_named_and_not_wrapped(
    tmp_path: Path, label: int, words: str
) -> None:
    path = save(np.array([[0, label]], np.int32), tmp_path / "mask.tif")
    labels = Labels(classes=("a", "b"), ignored=255)
    with pytest.raises(DataError, match=rf"mask .*mask\.tif has label {label}, {words}") as caught:
        labels.read(str(path))
    assert "\n" not in str(caught.value)
    fine = save(np.array([[0, 1]], np.int32), tmp_path / "fine.tif")
    assert labels.read(str(fine)).tolist() == [[0, 1]]


def test_what_is_no_mask_is_refused_in_one_line(tmp_path: Path) -> None:
    colours = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    with pytest.raises(DataError, match="of mode RGB: a mask has one label"):
        read_labels(str(save(colours, tmp_path / "mask.png")))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cannot read mask .*broken\.png"):
        read_labels(str(tmp_path / "broken.png"))
    with pytest.raises(UserError, match="at most 255"):
        Labels(classes=tuple(map(str, range(256))), ignored=255)


def test_labels_become_classes_and_none(tmp_path: Path) -> None:
    path = str(save(np.array([[0, 1, 2, 255]], np.uint8), tmp_path / "mask.png"))
    three = ("a", "b", "c")
    assert Labels(classes=three, ignored=255).read(path).tolist() == [[0, 1, 2, IGNORE]]
    reduced = Labels(classes=three, ignored=255, reduces_zero=True).read(path)
    assert reduced.tolist() == [[IGNORE, 0, 1, IGNORE]]
    # A label among the classes that is ignored: nothing is ever of that class.
    amid = Labels(classes=three, ignored=1)
    assert "class b and ignored" in amid.notes[0]
    amid_path = str(save(np.array([[0, 1, 2]], np.uint8), tmp_path / "amid.png"))
    assert amid.read(amid_path).tolist() == [[0, IGNORE, 2]]
    with pytest.raises(DataError, match=r"label 2, but the 2 classes are labels 0 to 1"):
        Labels(classes=("a", "b"), ignored=255).read(path)
    deep = str(save(np.array([[0, 300]], np.uint16), tmp_path / "deep.png"))
    with pytest.raises(DataError, match="label 300"):
        Labels(classes=three, ignored=255).read(deep)


def camvid(root: Path, **keys: object) -> MaskDataset:
    config = SegmentationData(name="camvid", root=str(root), **keys)  # type: ignore[arg-type]
    dataset = load(config, 7).train()
    assert isinstance(dataset, MaskDataset)
    return dataset


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny CamVid: 36 x 48 pixels, in which grey is 20 times the label, plus noise below 10."""
    return write_camvid(tmp_path_factory.mktemp("camvid"), count=6)


def labels_seen(image: torch.Tensor, dataset: MaskDataset) -> torch.Tensor:
    """The labels that the greys of a normalised image stand for."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (dataset.info.mean, dataset.info.std))
    return ((image * std + mean).mean(0) * 255 / 20).floor().long()


def test_evaluation_images_and_masks_fit_together(files: Path) -> None:
    dataset = camvid(files, image_size=(18, 24)).without_augmentation()
    images, masks = dataset.__getitems__([0, 1, 2])
    assert (images.shape, masks.shape) == ((3, 3, 18, 24), (3, 18, 24))
    assert masks.dtype == torch.int64
    for image, mask in zip(images, masks, strict=True):
        seen = labels_seen(image, dataset)
        inner = (mask != IGNORE) & (seen == mask)
        # All but the edges of blocks, where greys are mixed.
        assert inner.sum() > 0.6 * (mask != IGNORE).sum()
        assert ((seen == 11) & (mask == IGNORE)).any() == (mask == IGNORE).any()


def test_training_pairs_are_varied_together_and_as_seed_epoch_and_index_say(files: Path) -> None:
    dataset = camvid(files, image_size=(24, 32), scale=(0.5, 2.0), hflip=True, in_memory=True)
    first, again = dataset.__getitems__([0, 1, 4]), dataset.__getitems__([4, 0])
    assert torch.equal(first[0][2], again[0][0])
    assert torch.equal(first[1][0], again[1][1])
    other_epoch = dataset.__getitems__([0 + len(dataset)])
    assert not torch.equal(other_epoch[0][0], first[0][0])
    for image, mask in zip(*first, strict=True):
        assert (image.shape, mask.shape) == ((3, 24, 32), (24, 32))
        known = mask != IGNORE
        assert (labels_seen(image, dataset) == mask)[known].float().mean() > 0.6


def test_images_keep_their_proportions_and_masks_their_size_where_the_recipe_says_so(
    tmp_path: Path,
) -> None:
    root = write_ade20k(tmp_path, count=4)
    keys = {"name": "ade20k", "root": str(root), "image_size": 16, "shorter_side": 20}
    config = SegmentationData(**keys, longest_side=26, full_size=True)  # type: ignore[arg-type]
    images, masks = load(config, 0).test.__getitems__([0, 1])
    assert [tuple(image.shape) for image in images] == [(3, 25, 20), (3, 19, 26)]
    assert [tuple(mask.shape) for mask in masks] == [(50, 40), (40, 56)]
    module = DataModule(config, batch_size=2)
    images, masks = next(iter(module.train_dataloader()))
    assert (images.shape, masks.shape) == ((2, 3, 16, 16), (2, 16, 16))


def test_a_mask_of_other_proportions_than_its_image_is_named(tmp_path: Path) -> None:
    write_camvid(tmp_path, count=2)
    save(np.zeros((48, 36), np.uint8), tmp_path / "val/masks/1.png")
    config = SegmentationData(name="camvid", root=str(tmp_path), image_size=16)
    with pytest.raises(DataError, match=r"1\.png is 36x48 pixels, its image 48x36"):
        load(config, 0).test.__getitems__([0, 1])
    save(np.zeros((18, 24), np.uint8), tmp_path / "val/masks/1.png")  # half the size: as good
    assert load(config, 0).test.__getitems__([1])[1].shape == (1, 16, 16)
    assert same_proportions((333, 500), (166, 250))
    assert not same_proportions((333, 500), (160, 250))


def test_files_kept_in_memory_are_read_once_and_bad_ones_counted(tmp_path: Path) -> None:
    write_camvid(tmp_path, count=3)
    kept = camvid(tmp_path, image_size=16, in_memory=True)
    assert kept.unread == []
    for file in (tmp_path / "train/images").iterdir():
        file.unlink()
    assert kept.__getitems__([0, 1, 2])[0].shape == (3, 3, 16, 16)
    for name in ("0", "1"):
        (tmp_path / f"val/masks/{name}.png").write_bytes(b"none")
    config = SegmentationData(name="camvid", root=str(tmp_path), in_memory=True)
    with pytest.raises(UserError, match="2 of 6 images cannot be read"):
        load(config, 0)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((36, 48), 77, np.uint8), "has label 77"),
        (np.arange(36 * 48 * 3, dtype=np.uint8).reshape(36, 48, 3), "of mode RGB"),
        (np.zeros((36, 36), np.uint8), "the same proportions"),
    ],
)
def test_masks_to_evaluate_on_are_read_before_training(
    tmp_path: Path, mask: np.ndarray, words: str
) -> None:
    config = SegmentationData(name="camvid", root=str(write_camvid(tmp_path, count=3)))
    data = DataModule(config, batch_size=2)
    data.check()
    save(mask, tmp_path / "val/masks/1.png")
    with pytest.raises(DataError, match=words):
        data.check()


def test_a_folder_that_names_other_classes_is_no_published_set(tmp_path: Path) -> None:
    config = SegmentationData(name="camvid", root=str(write_camvid(tmp_path, count=2)))
    names = list(load(config, 0).info.class_names)
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert load(config, 0).info.class_names == tuple(names)
    for wrong, words in (
        (["cat", *names[1:]], f"class {names[0]!r} of camvid is 'cat' there"),
        (names[:-1], "it has 10 classes, camvid 11"),
    ):
        (tmp_path / "classes.txt").write_text("\n".join(wrong))
        with pytest.raises(UserError, match=words):
            load(config, 0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_mode_are_read_in_colour(tmp_path: Path, mode: str) -> None:
    write_camvid(tmp_path, count=2)
    ending = "tif" if mode == "CMYK" else "png"
    (tmp_path / "val/images/1.png").unlink()
    Image.new(mode, (48, 36)).save(tmp_path / f"val/images/1.{ending}")
    config = SegmentationData(name="camvid", root=str(tmp_path), image_size=16)
    assert load(config, 0).test.__getitems__([1])[0].shape == (1, 3, 16, 16)


def test_an_image_turned_by_exif_is_upright_beside_its_mask(tmp_path: Path) -> None:
    write_camvid(tmp_path, count=2)
    left = np.zeros((36, 48, 3), np.uint8)
    left[:, :24] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "val/images/1.png").unlink()
    save(left, tmp_path / "val/images/1.jpg", exif=exif)
    config = SegmentationData(name="camvid", root=str(tmp_path), image_size=16)
    image = load(config, 0).test.__getitems__([1])[0][0]
    assert image[0, :, 12:].mean() > image[0, :, :4].mean()


def test_crops_in_which_one_class_rules_are_drawn_again() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[30:, 30:] = 1
    image = np.repeat(mask[..., None], 3, axis=2)
    shares = []
    for most in (1.0, 0.9):
        rng = np.random.default_rng(0)
        crops = [
            random_crop(image, mask, (12, 12), rng, most=most, fill=(0, 0, 0)) for _ in range(50)
        ]
        assert all((shown[..., 0] == labels).all() for shown, labels in crops)
        shares.append(np.mean([largest_share(labels) > 0.9 for _, labels in crops]))
    assert shares[1] < 0.5 * shares[0]
    assert largest_share(np.full((2, 2), IGNORE, np.uint8)) == 1


def test_what_is_smaller_than_the_crop_is_padded_with_grey_and_nothing() -> None:
    mask = np.ones((4, 6), np.uint8)
    image = np.full((4, 6, 3), 9, np.uint8)
    shown, labels = random_crop(
        image, mask, (8, 5), np.random.default_rng(0), most=0.5, fill=(1, 2, 3)
    )
    assert (labels.shape, shown.shape) == ((8, 5), (8, 5, 3))
    assert (labels == 1).sum() == 4 * 5
    assert (labels == IGNORE).sum() == 4 * 5
    assert (shown[labels == IGNORE] == (1, 2, 3)).all()
    assert (shown[labels == 1] == 9).all()


def test_photometric_distortion_varies_images_and_keeps_them_images() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    varied = [photometric(noise, np.random.default_rng(seed)) for seed in range(40)]
    assert all(v.dtype == np.uint8 and v.shape == noise.shape for v in varied)
    assert len({v.tobytes() for v in varied}) > 30
    assert abs(np.mean(varied) - noise.mean()) < 20


class Draws:
    """A generator whose draws between 0 and 1 are given, and whose ranges give their `share`."""

    def __init__(self, *draws: float, share: float = 1.0) -> None:
        self.draws, self.share = [*draws], share

    def random(self) -> float:
        return self.draws.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.share


NO, YES = 0.9, 0.1  # brightness, contrast before colours, contrast, saturation, hue


@pytest.mark.parametrize(
    ("draws", "colour", "expected"),
    [
        ((NO, NO, NO, NO, NO), (100, 50, 0), (100, 50, 0)),
        ((YES, NO, NO, NO, NO), (100, 50, 240), (132, 82, 255)),  # 32 brighter
        ((NO, YES, YES, NO, NO), (100, 50, 240), (150, 75, 255)),  # times 1.5
        ((YES, NO, YES, NO, NO), (100, 50, 0), (198, 123, 48)),
        ((NO, NO, NO, YES, NO), (100, 80, 80), (100, 70, 70)),  # saturation times 1.5
        ((NO, NO, NO, NO, YES), (255, 0, 0), (255, 153, 0)),  # 36 degrees
    ],
)
def test_each_photometric_distortion_does_what_it_says(
    draws: tuple[float, ...], colour: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    image = np.full((2, 2, 3), colour, np.uint8)
    varied = photometric(image, Draws(*draws))  # type: ignore[arg-type]
    assert np.abs(varied.astype(int) - expected).max() <= 3  # HSV has 256 steps
    assert (varied == varied[0, 0]).all()


def test_contrast_comes_before_the_colours_or_after_them() -> None:
    # More saturation of a colour that contrast has clipped is less than contrast after it.
    image = np.full((1, 1, 3), (210, 100, 100), np.uint8)
    first, last = (photometric(image, Draws(NO, order, YES, YES, NO)) for order in (YES, NO))  # type: ignore[arg-type]
    assert np.abs(first[0, 0].astype(int) - (255, 98, 98)).max() <= 3
    assert np.abs(last[0, 0].astype(int) - (255, 68, 68)).max() <= 3


def test_images_are_mirrored_half_of_the_time_where_the_recipe_says_so(files: Path) -> None:
    shares = []
    for hflip in (True, False):
        dataset = camvid(files, image_size=(36, 48), scale=(1.0, 1.0), hflip=hflip, in_memory=True)
        plain = camvid(files, image_size=(36, 48), scale=(1.0, 1.0), in_memory=True)
        (before,), (labels,) = plain.__getitems__([0])
        count = 0
        for epoch in range(40):
            (image,), (mask,) = dataset.__getitems__([epoch * len(dataset)])
            if torch.equal(image, before.flip(2)):
                assert torch.equal(mask, labels.flip(1))
                count += 1
            else:
                assert torch.equal(image, before)
                assert torch.equal(mask, labels)
        shares.append(count)
    assert 10 <= shares[0] <= 30
    assert shares[1] == 0


def test_pixels_of_each_class_are_counted_over_the_training_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_camvid(tmp_path, count=2)
    save(np.full((36, 48), 0, np.uint8), tmp_path / "train/masks/0.png")
    half = np.full((36, 48), 11, np.uint8)
    half[:18] = 2
    half[0] = 0
    save(half, tmp_path / "train/masks/1.png")
    monkeypatch.setattr(MaskDataset, "_read", None)  # no image is decoded for it
    pixels, around = camvid(tmp_path).class_pixels()
    assert pixels.tolist()[:3] == [36 * 48 + 48, 0, 17 * 48]
    assert around.tolist()[:3] == [36 * 48 + 18 * 48, 0, 18 * 48]


def test_a_palette_has_as_many_colours_as_there_are_classes() -> None:
    colours = palette(255)
    assert len({tuple(colour) for colour in colours.tolist()}) == 255
    assert colours[:3].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    mask = np.array([[0, 1], [IGNORE, 2]], np.uint8)
    assert coloured(mask, 3)[1, 0].tolist() == [0, 0, 0]
    image = np.full((2, 2, 3), 100, np.uint8)
    laid = overlaid(image, mask, 3)
    assert (laid[1, 0] == 100).all()
    assert laid[0, 0].tolist() == [round(0.55 * 128 + 45), 45, 45]


def test_a_legend_names_what_is_there_beside_the_picture() -> None:
    mask = np.array([[0, 0, 2]], np.uint8).repeat(40, axis=0)
    drawn = with_legend(np.zeros((40, 3, 3), np.uint8), mask, ("sky", "car", "tree"))
    assert drawn.size[0] > 40
    assert drawn.size[1] == 40
    colours = {colour for _, colour in drawn.getcolors(10_000) or []}
    first, second, third = (tuple(int(v) for v in row) for row in palette(3))
    assert first in colours
    assert third in colours
    assert second not in colours
    broken = with_legend(np.zeros((40, 3, 3), np.uint8), mask, ("the\nsky", "car", "tree"))
    spaced = with_legend(np.zeros((40, 3, 3), np.uint8), mask, ("the sky", "car", "tree"))
    assert np.array_equal(np.asarray(broken), np.asarray(spaced))
