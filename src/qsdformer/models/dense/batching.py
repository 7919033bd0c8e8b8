"""Images of several sizes as one batch of a detector, and what it finds at the sizes of files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

Size = tuple[int, int]  # height, width
MASK_THRESHOLD = 0.5  # of the probability that a pixel is the object's


class Batching(GeneralizedRCNNTransform):
    """Normalises and pads a list of images (C, h, w); resizing them is the data's affair.

    With `sizes`, the heights and widths of the files that images were resized from, boxes and
    masks are given for those.
    """

    sizes: Sequence[Size] | None = None

    def __init__(self, mean: Sequence[float], std: Sequence[float], multiple: int) -> None:
        super().__init__(
            min_size=1,
            max_size=1,
            image_mean=list(mean),
            image_std=list(std),
            size_divisible=multiple,
        )

    def padded(self, size: Sequence[int]) -> Size:
        """The height and width that an image of a size has when it is padded by itself."""
        height, width = (-(-side // self.size_divisible) * self.size_divisible for side in size)
        return height, width

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As they are."""
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[Size],
        original_image_sizes: list[Size],
    ) -> list[dict[str, Tensor]]:
        """Boxes and masks (K, H, W) bool of images of `image_shapes`, for images of `sizes`."""
        if self.training:
            return result
        sizes = original_image_sizes if self.sizes is None else list(self.sizes)
        small = [one.get("masks") for one in result]
        rest = [{key: one[key] for key in one if key != "masks"} for one in result]
        found: list[dict[str, Tensor]] = super().postprocess(rest, image_shapes, sizes)
        for one, masks, size in zip(found, small, sizes, strict=True):
            if masks is not None:
                one["masks"] = pasted(masks, one["boxes"], size)
        return found


def pasted(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Masks (K, H, W) bool of an image of a size, of probabilities (K, 1, M, M) in `boxes`.

    One after the other: in floating point all those of a photo would be gigabytes.
    """
    whole = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    for index, mask in enumerate(whole):
        own = slice(index, index + 1)
        mask.copy_(paste_masks_in_image(masks[own], boxes[own], size)[0, 0] > MASK_THRESHOLD)
    return whole
