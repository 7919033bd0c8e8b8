"""Images of several sizes as one batch of a detector, and what it finds at the sizes of files."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

Size = tuple[int, int]  # height, width


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
        """Boxes and masks of images of `image_shapes`, for images of `sizes`."""
        sizes = original_image_sizes if self.sizes is None else list(self.sizes)
        found: list[dict[str, Tensor]] = super().postprocess(result, image_shapes, sizes)
        return found
