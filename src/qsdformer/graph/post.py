"""What is done with the outputs of a dense network after the integer graph: the section `post`.

Post-processing is floating-point arithmetic on the real outputs: it is no part of the graph. The
section says all that is needed for it, so that an artifact alone segments or detects. Nothing but
plain values is here; `runtimes/post.py` carries them out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qsdformer.data.base import LARGEST_IMAGE

MOST_NAMES = 2**16
MOST_STRIDE = 1024
BOX, MASK = "box", "mask"  # graphs for regions, and what their outputs are called
SCORES, DELTAS, MASKS = "scores", "deltas", "masks"


@dataclass(frozen=True, kw_only=True)
class SegmentationPost:
    """The class of each pixel: that of the largest channel of `output`, a map of 1 / `stride`.

    The map is scaled up, bilinear with half-pixel centres, to the image's own size first. With
    `shorter_side` an image keeps its proportions, as in `SegmentationData`, and the network looks
    at it in windows.
    """

    task: ClassVar[str] = "segmentation"
    kind: ClassVar[str] = "largest"
    heads: ClassVar[tuple[str, ...]] = ()
    class_names: tuple[str, ...]
    output: str
    stride: int
    shorter_side: int | None = None
    longest_side: int | None = None

    def __post_init__(self) -> None:
        _check_names(self.class_names)
        _require(1 <= self.stride <= MOST_STRIDE, f"stride={self.stride}")
        for name in ("shorter_side", "longest_side"):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= LARGEST_IMAGE, f"{name}={value}")

    @property
    def channels(self) -> dict[str, int]:
        """The channels that each output must have."""
        return {self.output: len(self.class_names)}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image from one place of each output to the next."""
        return {self.output: self.stride}


@dataclass(frozen=True, kw_only=True)
class Level:
    """One map of a detector's pyramid: its two outputs, and the anchors of each of its places.

    `scores` has a channel for each anchor and class, anchors slowest, `boxes` four for each
    anchor: dx, dy, dw, dh. Anchors are `sizes` x `aspect_ratios` (height by width), in pixels;
    ratios slowest.
    """

    scores: str
    boxes: str
    stride: int
    sizes: tuple[float, ...]
    aspect_ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        _require(1 <= self.stride <= MOST_STRIDE, f"stride={self.stride}")
        for values in (self.sizes, self.aspect_ratios):
            fine = 1 <= len(values) <= 64 and all(math.isfinite(v) and v > 0 for v in values)
            _require(fine, f"anchors of {values}")

    @property
    def anchors(self) -> int:
        """Anchors at each place."""
        return len(self.sizes) * len(self.aspect_ratios)


@dataclass(frozen=True, kw_only=True)
class DetectionPost:
    """Boxes from anchors, scores and offsets, as RetinaNet makes them.

    `category_ids` are the numbers that the data set gives to the classes. Of every level the
    `candidates` best scores above `score_threshold` are decoded, then non-maximum suppression at
    `nms_threshold` within each class leaves at most `detections` boxes.
    """

    task: ClassVar[str] = "detection"
    kind: ClassVar[str] = "anchors"
    heads: ClassVar[tuple[str, ...]] = ()
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    levels: tuple[Level, ...]
    score_threshold: float
    nms_threshold: float
    candidates: int
    detections: int
    classes: int  # channels for each anchor: as many as class names, or one more for background

    def __post_init__(self) -> None:
        count = len(self.class_names)
        _check_detector(self)
        _require(self.classes in (count, count + 1), f"classes={self.classes}")

    @property
    def has_masks(self) -> bool:
        """Whether it finds a mask for each object."""
        return False

    @property
    def has_background(self) -> bool:
        """Whether class 0 of each anchor is none of the names."""
        return self.classes > len(self.class_names)

    @property
    def channels(self) -> dict[str, int]:
        """The channels that each output must have."""
        scores = {level.scores: level.anchors * self.classes for level in self.levels}
        return {**scores, **{level.boxes: 4 * level.anchors for level in self.levels}}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image from one place of each output to the next."""
        return {name: x.stride for x in self.levels for name in (x.scores, x.boxes)}


@dataclass(frozen=True, kw_only=True)
class RegionPost:
    """Boxes, and masks if `mask_size` is not 0, from regions, as R-CNNs make them.

    Regions: of every level the `candidates` best objectness scores are decoded from their anchors;
    non-maximum suppression at `region_threshold` leaves at most `regions`. RoIAlign reads each from
    one of `maps`, on a grid of `box_size`, that of the detections left on one of `mask_size`. What
    it reads goes through the graphs `box` and `mask` (`IntegerGraph.heads`), which take the spike
    counts that their first neurons make of it. A region of `canonical_scale` pixels is read from
    the map of stride 2^`canonical_level`. A box is decoded with `box_weights` for dx, dy, dw, dh.
    """

    task: ClassVar[str] = "detection"
    kind: ClassVar[str] = "regions"
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    levels: tuple[Level, ...]
    maps: tuple[str, ...]
    map_strides: tuple[int, ...]
    candidates: int
    regions: int
    region_threshold: float
    box_size: int
    mask_size: int
    sampling: int  # points of a cell along each side, whose mean it is
    canonical_scale: int
    canonical_level: int
    box_weights: tuple[float, ...]
    score_threshold: float
    nms_threshold: float
    detections: int

    def __post_init__(self) -> None:
        _check_detector(self)
        same = 1 <= len(self.maps) == len(self.map_strides) <= 16
        rising = same and list(self.map_strides) == sorted(set(self.map_strides))
        _require(rising and min(self.map_strides) >= 1, f"maps of strides {self.map_strides}")
        _require(0 <= self.region_threshold <= 1, f"region_threshold={self.region_threshold}")
        for name in ("regions", "canonical_scale"):
            _require(1 <= getattr(self, name) <= 10**6, f"{name}={getattr(self, name)}")
        for name in ("box_size", "sampling"):
            _require(1 <= getattr(self, name) <= 256, f"{name}={getattr(self, name)}")
        _require(0 <= self.mask_size <= 256, f"mask_size={self.mask_size}")
        _require(0 <= self.canonical_level <= 16, f"canonical_level={self.canonical_level}")
        fine = len(self.box_weights) == 4 and min(self.box_weights) > 0
        _require(fine, f"box_weights={self.box_weights}")

    @property
    def has_masks(self) -> bool:
        """Whether it finds a mask for each object."""
        return self.mask_size > 0

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of its graphs for regions."""
        return (BOX, MASK) if self.has_masks else (BOX,)

    @property
    def channels(self) -> dict[str, int]:
        """The channels that each output must have."""
        scores = {level.scores: level.anchors for level in self.levels}
        return {**scores, **{level.boxes: 4 * level.anchors for level in self.levels}}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image from one place of each output to the next."""
        maps = dict(zip(self.maps, self.map_strides, strict=True))
        return {**maps, **{name: x.stride for x in self.levels for name in (x.scores, x.boxes)}}

    def head_shapes(self, name: str) -> tuple[int, dict[str, tuple[int, int, int]]]:
        """The side of what a graph for regions takes, and the shapes (C, H, W) of its outputs."""
        classes = len(self.class_names) + 1  # and the background
        if name == BOX:
            return self.box_size, {SCORES: (classes, 1, 1), DELTAS: (4 * classes, 1, 1)}
        side = 2 * self.mask_size
        return self.mask_size, {MASKS: (classes, side, side)}


Post = SegmentationPost | DetectionPost | RegionPost
POSTS: dict[tuple[str, str], type[Post]] = {
    (post.task, post.kind): post for post in (SegmentationPost, DetectionPost, RegionPost)
}


def post_values(post: Post) -> dict[str, Any]:
    """The section as plain values; what is None is left out."""
    values = {k: _plain(v) for k, v in dataclasses.asdict(post).items() if v is not None}
    return {"task": post.task, "kind": post.kind, **values}


def read_post(values: Any) -> Post:
    """The inverse of `post_values`; ValueError for what is not such a section."""
    key = _item(values, "task", str), _item(values, "kind", str)
    if key not in POSTS:
        raise ValueError(f"post-processing for {' '.join(key)[:40]!r}, which is not known")
    rest = {name: value for name, value in values.items() if name not in ("task", "kind")}
    found: Post = _built(POSTS[key], rest)
    return found


def check_post(
    post: Post, shapes: Mapping[str, tuple[int, int, int]], image: tuple[int, int]
) -> None:
    """ValueError unless outputs of these shapes (C, H, W) are what `post` reads of an `image`."""
    for name, stride in post.strides.items():
        if name not in shapes:
            raise ValueError(f"post-processing reads output {name!r}, which does not exist")
        channels = post.channels.get(name, shapes[name][0])
        if shapes[name][0] != channels:
            raise ValueError(f"output {name!r} has {shapes[name][0]} channels, not {channels}")
        grid = tuple(-(-side // stride) for side in image)
        if shapes[name][1:] != grid:
            raise ValueError(f"output {name!r} is not of stride {stride}")


def check_head(
    post: RegionPost, name: str, size: tuple[int, int, int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """ValueError unless a graph for regions takes values of `size` (C, H, W) and gives `shapes`."""
    side, expected = post.head_shapes(name)
    if size[1:] != (side, side):
        raise ValueError(f"the graph {name!r} takes {size[1]}x{size[2]} values, not {side}x{side}")
    if dict(shapes) != expected:
        raise ValueError(f"the graph {name!r} gives {dict(shapes)}, not {expected}")


def _check_detector(post: DetectionPost | RegionPost) -> None:
    _check_names(post.class_names)
    count = len(post.class_names)
    _require(len(post.category_ids) == count, f"{len(post.category_ids)} category ids")
    _require(1 <= len(post.levels) <= 16, f"{len(post.levels)} levels")
    for name in ("score_threshold", "nms_threshold"):
        _require(0 <= getattr(post, name) <= 1, f"{name}={getattr(post, name)}")
    for name in ("candidates", "detections"):
        _require(1 <= getattr(post, name) <= 10**6, f"{name}={getattr(post, name)}")


def _check_names(names: tuple[str, ...]) -> None:
    _require(1 <= len(names) <= MOST_NAMES, f"{len(names)} class names")


def _require(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"post-processing with {what}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _item(values: Any, name: str, kind: type) -> Any:
    found = values[name] if type(values) is dict and name in values else None
    if type(found) is not kind:
        raise ValueError(f"post-processing has no {name}")
    return found


def _built(kind: type, values: Any) -> Any:
    """A dataclass of these fields and no others, each of the type that it must have."""
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if type(values) is not dict or not needed <= set(values) <= set(names):
        raise ValueError(f"post-processing has other fields than {', '.join(names)}")
    return kind(**{name: READ[name](value) for name, value in values.items()})


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"found {str(value)[:40]!r} where a number was expected")
    return float(value)


def _of(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"found {str(value)[:40]!r} where {kind.__name__} was expected")
        return value

    return read


def _several(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(read(v) for v in _of(list)(value))


def _level(value: Any) -> Level:
    found: Level = _built(Level, value)
    return found


READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("output", "scores", "boxes"), _of(str)),
    **dict.fromkeys(("stride", "candidates", "detections", "classes", "regions"), _of(int)),
    **dict.fromkeys(("box_size", "mask_size", "sampling"), _of(int)),
    **dict.fromkeys(("canonical_scale", "canonical_level"), _of(int)),
    **dict.fromkeys(("shorter_side", "longest_side"), _of(int)),
    **dict.fromkeys(("score_threshold", "nms_threshold", "region_threshold"), _number),
    **dict.fromkeys(("sizes", "aspect_ratios", "box_weights"), _several(_number)),
    **dict.fromkeys(("class_names", "maps"), _several(_of(str))),
    **dict.fromkeys(("category_ids", "map_strides"), _several(_of(int))),
    "levels": _several(_level),
}
