"""Average precision against cases worked out by hand, and what is made of detections."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from qsdformer.errors import UserError
from qsdformer.models.dense.batching import Batching, pasted
from qsdformer.tasks.detecting import (
    BoxScores,
    DetectionScores,
    coco_results,
    evaluate_boxes,
)

SIZE = 100  # pixels of the images of the cases below


def boxes_of(*boxes: Sequence[float]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def masks_of(boxes: Tensor) -> Tensor:
    """Masks (K, H, W) bool that fill boxes of whole pixels."""
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def found(*entries: tuple[Sequence[float], int, float]) -> dict[str, Tensor]:
    """Detections from (box, label, score)."""
    boxes = boxes_of(*(box for box, _, _ in entries))
    return {
        "boxes": boxes,
        "labels": torch.tensor([label for _, label, _ in entries], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in entries]),
        "masks": masks_of(boxes),
    }


def there(
    *entries: tuple[Sequence[float], int], crowds: Sequence[int] = (), image_id: int = 1
) -> dict[str, Tensor]:
    """A target from (box, label); `crowds` are the places of those that are crowds."""
    boxes = boxes_of(*(box for box, _ in entries))
    size = boxes[:, 2:] - boxes[:, :2]
    iscrowd = torch.zeros(len(boxes), dtype=torch.int64)
    iscrowd[list(crowds)] = 1
    return {
        "boxes": boxes,
        "labels": torch.tensor([label for _, label in entries], dtype=torch.int64),
        "iscrowd": iscrowd,
        "area": size[:, 0] * size[:, 1],
        "masks": masks_of(boxes).to(torch.uint8),
        "image_id": torch.tensor(image_id),
        "size": torch.tensor([SIZE, SIZE]),
    }


def scores(
    *images: tuple[dict[str, Tensor], dict[str, Tensor]], classes: int = 1
) -> DetectionScores:
    measure = BoxScores(classes, masks=True)
    for one, target in images:
        measure.update([one], [target])
    return measure.compute()


LEFT, RIGHT, BELOW = (0, 0, 40, 50), (50, 0, 90, 50), (0, 60, 40, 100)


def test_objects_found_exactly_have_a_precision_of_one() -> None:
    result = scores((found((LEFT, 1, 0.9), (RIGHT, 1, 0.8)), there((LEFT, 1), (RIGHT, 1))))
    assert result.mask is not None
    for precision in (result.box, result.mask):
        assert precision.ap == precision.ap50 == precision.ap75 == 1
        assert precision.of_class == precision.of_class50 == (1,)


def test_an_overlap_of_82_percent_is_enough_for_seven_of_ten_thresholds() -> None:
    result = scores((found(((0, 0, 50, 82), 1, 0.9)), there(((0, 0, 50, 100), 1))))
    assert result.mask is not None
    for precision in (result.box, result.mask):
        assert precision.ap == pytest.approx(0.7)
        assert precision.ap50 == precision.ap75 == 1


def test_boxes_and_masks_are_measured_apart() -> None:
    one, target = found((LEFT, 1, 0.9)), there((LEFT, 1))
    one["masks"][0, 20:] = False  # 20 of 50 rows remain
    result = scores((one, target))
    assert result.mask is not None
    assert (result.box.ap50, result.mask.ap50) == (1, 0)


def test_a_wrong_box_between_two_right_ones_costs_precision_at_high_recall() -> None:
    one = found((LEFT, 1, 0.9), (BELOW, 1, 0.8), (RIGHT, 1, 0.7))
    result = scores((one, there((LEFT, 1), (RIGHT, 1))))
    # 51 of 101 recalls up to a half at precision 1, the others at 2 of 3.
    assert result.box.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_an_object_found_twice_is_a_mistake() -> None:
    one = found((LEFT, 1, 0.9), (LEFT, 1, 0.8), (RIGHT, 1, 0.7))
    result = scores((one, there((LEFT, 1), (RIGHT, 1))))
    assert result.box.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_an_object_that_is_not_found_costs_recall() -> None:
    result = scores((found((LEFT, 1, 0.9)), there((LEFT, 1), (RIGHT, 1))))
    assert result.box.ap50 == pytest.approx(51 / 101)


def test_what_is_found_in_a_crowd_is_no_mistake() -> None:
    one = found((RIGHT, 1, 0.9), ((55, 5, 75, 30), 1, 0.85), (LEFT, 1, 0.8))
    assert scores((one, there((LEFT, 1), (RIGHT, 1), crowds=[1]))).box.ap50 == 1
    alone = scores((one, there((LEFT, 1)))).box.ap50
    assert alone == pytest.approx(1 / 3)


def test_the_mean_is_over_the_classes_that_have_objects() -> None:
    one = found((LEFT, 1, 0.9), (BELOW, 3, 0.9))
    result = scores((one, there((LEFT, 1), (RIGHT, 2))), classes=4)
    assert result.box.of_class50[:2] == (1, 0)
    assert all(math.isnan(value) for value in result.box.of_class50[2:])
    assert result.box.ap50 == 0.5


def test_precision_is_of_the_whole_set_not_of_single_images() -> None:
    first = found((LEFT, 1, 0.5)), there((LEFT, 1))
    second = found((BELOW, 1, 0.9)), there()
    assert scores(first, second).box.ap50 == pytest.approx(0.5)
    assert scores((found((LEFT, 1, 0.95)), first[1]), second).box.ap50 == 1


def test_nothing_to_find_and_nothing_found_is_no_precision() -> None:
    assert scores((found(), there())).box.ap50 == 0
    assert scores((found(), there((LEFT, 1)))).box.ap50 == 0


def test_counting_again_forgets_what_was_counted() -> None:
    measure = BoxScores(1, masks=False)
    measure.update([found()], [there((LEFT, 1))])
    assert measure.compute().box.ap50 == 0
    measure.reset()
    measure.update([found((LEFT, 1, 0.9))], [there((LEFT, 1))])
    assert measure.compute().box.ap50 == 1
    assert measure.compute().mask is None


def test_processes_that_saw_different_numbers_of_images_count_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [
        (found((LEFT, 1, 0.5)), there((LEFT, 1))),
        (found((BELOW, 1, 0.9)), there((RIGHT, 1))),
        (found((RIGHT, 1, 0.7)), there((RIGHT, 1))),
    ]
    first, second = BoxScores(1, masks=True), BoxScores(1, masks=True)
    first.update(*zip(*pairs[:2], strict=True))
    second.update(*zip(*pairs[2:], strict=True))

    def gather(shares: list[Any], own: list[Any], group: Any) -> None:
        name = next(n for n in first.metric._defaults if getattr(first.metric, n) is own)
        shares[:] = [own, getattr(second.metric, name)]

    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    first.metric._sync_dist()
    assert first.compute() == scores(*pairs)
    assert 0 < first.compute().box.ap50 < 1


def test_results_have_the_ids_of_the_file_and_corners_become_sizes() -> None:
    from faster_coco_eval.core import mask as coco_masks

    one = found(((10, 20, 40, 90), 2, 0.75), (LEFT, 1, 0.5))
    first, second = coco_results(one, 17, (3, 90))
    assert (first["image_id"], first["category_id"], second["category_id"]) == (17, 90, 3)
    assert first["bbox"] == [10, 20, 30, 70]
    assert first["score"] == 0.75
    decoded = coco_masks.decode(first["segmentation"])
    assert np.array_equal(decoded.astype(bool), one["masks"][0].numpy())
    assert json.loads(json.dumps(first)) == first


def test_evaluation_needs_images() -> None:
    with pytest.raises(UserError, match="no images"):
        evaluate_boxes(lambda images, sizes: [], [], 1, masks=False)


def test_boxes_and_masks_come_back_at_the_size_of_the_file() -> None:
    batching = Batching((0.5,), (0.5,), 32).eval()
    batch, _ = batching([torch.rand(1, 20, 24), torch.rand(1, 10, 40)])
    assert batch.tensors.shape == (2, 1, 32, 64)
    assert batch.image_sizes == [(20, 24), (10, 40)]
    batching.sizes = [(40, 48), (10, 80)]
    results = [
        {"boxes": boxes_of((2, 3, 12, 8)), "masks": torch.ones(1, 1, 28, 28)} for _ in range(2)
    ]
    first, second = batching.postprocess(results, batch.image_sizes, batch.image_sizes)
    assert first["boxes"].tolist() == [[4, 6, 24, 16]]
    assert second["boxes"].tolist() == [[4, 3, 24, 8]]
    assert first["masks"].shape == (1, 40, 48)
    assert first["masks"].dtype == torch.bool
    assert first["masks"][0, 6:16, 4:24].all()
    assert not first["masks"][0, 20:].any()


def test_masks_are_torchvisions_and_take_a_byte_a_pixel() -> None:
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 1, 28, 28, generator=rng)
    boxes = boxes_of((2, 3, 30, 20), (0, 0, 48, 40), (40, 30, 41, 31))
    whole = pasted(masks, boxes, (40, 48))
    assert torch.equal(whole, paste_masks_in_image(masks, boxes, (40, 48))[:, 0] > 0.5)
    assert whole.element_size() == 1
    assert pasted(masks[:0], boxes[:0], (40, 48)).shape == (0, 40, 48)
