"""torchvision's detectors with our parts: losses, detections, gradients and their integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.dense.small import (
    DETECTORS,
    HEADS,
    INFO,
    SIZE,
    backbone,
    detection,
    made,
    no_objects,
    normalised,
    objects,
    pixels,
    settled,
)
from models.dense.test_segmentation import counts_of
from qsdformer.errors import UserError
from qsdformer.graph.lowering import lower
from qsdformer.models.dense.backbone import check_strides
from qsdformer.models.dense.detection import anchor_generator
from qsdformer.models.dense.heads import by_anchor
from qsdformer.models.dense.layers import NeuronConv
from qsdformer.models.dense.maps import convolutional_part, with_maps
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.quantizers import QuantLayer

KINDS = {**HEADS, "ann": {"backbone": backbone().ann(), "bits": None}}
LOSSES = {
    "retinanet": {"classification", "bbox_regression"},
    "faster_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
}
LOSSES["mask_rcnn"] = {*LOSSES["faster_rcnn"], "loss_mask"}


def images_of(count: int = 2) -> list[torch.Tensor]:
    return list(pixels(count).float() / 255)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_parameter_gets_a_finite_gradient(detector: str, kind: str) -> None:
    network = made(detection(detector=detector, **KINDS[kind]))
    losses = network(images_of(), objects(2))
    assert set(losses) == LOSSES[detector]
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", list(HEADS))
@pytest.mark.parametrize("detector", DETECTORS)
def test_images_without_objects_train_and_images_of_many_sizes_are_found_in(
    detector: str, kind: str
) -> None:
    network = settled(detection(detector=detector, **HEADS[kind])).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    losses = network(images_of(), [no_objects(), no_objects()])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    network.load_state_dict(before)
    sizes = [(SIZE, SIZE), (50, 90), (33, 40)]
    with torch.no_grad():
        found = network.eval()([torch.rand(3, *size) for size in sizes])
    for (height, width), one in zip(sizes, found, strict=True):
        assert len(one["boxes"]) == len(one["labels"]) == len(one["scores"]) <= 10
        assert one["boxes"].min() >= 0
        assert one["boxes"][:, 2].max() <= width
        assert one["boxes"][:, 3].max() <= height
        assert set(one["labels"].tolist()) <= set(range(1, 6))
        if detector == "mask_rcnn":
            assert one["masks"].shape == (len(one["boxes"]), height, width)


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_is_found_in_an_image_does_not_depend_on_those_beside_it(detector: str) -> None:
    network = settled(detection(detector=detector)).eval()
    sides = [(SIZE, SIZE), (50, 90), (33, 40), (SIZE, SIZE - 3)]
    images = [torch.rand(3, *side) for side in sides]
    sizes = [(2 * height, 2 * width) for height, width in sides]
    with torch.no_grad():
        together = network.detect(images, sizes)
        alone = [network.detect([i], [size])[0] for i, size in zip(images, sizes, strict=True)]
    assert sum(len(one["boxes"]) for one in alone) > 4
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("detector", DETECTORS)
def test_one_image_whose_last_map_is_a_pixel_is_trained_on(detector: str) -> None:
    network = made(detection(detector=detector))
    target = {"boxes": torch.tensor([[2.0, 3.0, 20.0, 24.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 32, 32, dtype=torch.uint8)
    losses = network([torch.rand(3, 32, 32)], [target])
    assert set(losses) == LOSSES[detector]
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn"])
def test_one_region_alone_is_trained_on_by_running_statistics(detector: str) -> None:
    network = settled(detection(detector=detector)).train()
    head, predictor = network.roi_heads.box_head, network.roi_heads.box_predictor
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm1d)]
    before = [norm.running_var.clone() for norm in norms]
    scores, deltas = predictor(head(torch.randn(1, 6, 7, 7)))
    assert (scores.shape, deltas.shape) == ((1, 6), (1, 24))
    assert all(torch.equal(norm.running_var, b) for norm, b in zip(norms, before, strict=True))
    head(torch.randn(2, 6, 7, 7))
    assert not any(torch.equal(n.running_var, b) for n, b in zip(norms, before, strict=True))


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_neuron_stands_before_every_layer_with_weights_and_every_map_has_its_norms(
    detector: str,
) -> None:
    network = made(detection(detector=detector))
    heads = [m for top in (*network.part("neck"), *network.part("heads")) for m in top.modules()]
    inputs: dict[int, torch.Tensor] = {}
    for module in heads:
        if isinstance(module, QuantLayer):
            module.register_forward_pre_hook(lambda m, x: inputs.update({id(m): x[0].detach()}))
    network(images_of(), objects(2))
    layers = [m for m in heads if isinstance(m, QuantLayer)]
    assert set(inputs) == set(map(id, layers))
    for x in inputs.values():  # counts / 4
        assert torch.equal(4 * x, (4 * x).round())
    shared = [m for m in heads if isinstance(m, NeuronConv) and len(m.norms) > 1]
    assert shared
    assert all(len(m.norms) == 4 for m in shared)
    tracked = [[int(norm.num_batches_tracked) for norm in m.norms] for m in shared]
    assert tracked == [[1, 1, 1, 1]] * len(shared)


def test_float_twins_are_of_the_same_classes() -> None:
    spiking, float_ = (made(detection(**kind)) for kind in HEADS.values())
    kinds = [
        [type(m) for m in network.modules() if not isinstance(m, (SpikingNeuron, nn.ReLU))]
        for network in (spiking, float_)
    ]
    assert kinds[0] == kinds[1]
    shapes = [
        {n: p.shape for n, p in network.named_parameters() if not n.endswith("log_step_size")}
        for network in (spiking, float_)
    ]
    assert shapes[0] == shapes[1]


def test_anchors_are_one_size_a_map_and_those_of_its_octave() -> None:
    generator = anchor_generator(detection(anchor_octaves=3))
    assert generator.sizes[1] == (16, 20, 25)
    assert generator.num_anchors_per_location() == [9] * 4


def test_maps_have_increasing_strides_and_regions_are_never_read_from_the_pooled_one() -> None:
    network = made(detection())
    assert network.backbone.strides == (4, 8, 16, 32)
    maps = network.backbone(torch.zeros(2, 3, SIZE, 2 * SIZE))
    assert [(k, tuple(x.shape[1:])) for k, x in maps.items()] == [
        ("0", (6, 16, 32)),
        ("1", (6, 8, 16)),
        ("2", (6, 4, 8)),
        ("pool", (6, 2, 4)),
    ]
    assert torch.equal(maps["pool"], maps["2"][:, :, ::2, ::2])
    pools = (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool)
    assert all(pool.featmap_names == ["0", "1", "2"] for pool in pools)


def test_a_region_of_the_canonical_scale_is_read_at_stride_16() -> None:
    network = made(detection())
    maps = {
        name: torch.full((1, 6, s, s), float(s)) for name, s in zip("012", (16, 8, 4), strict=True)
    }
    boxes = [torch.tensor([[0.0, 0, 63, 63], [0, 0, 33, 33], [0, 0, 17, 17], [0, 0, 9, 9]])]
    read = network.roi_heads.box_roi_pool(maps, boxes, [(SIZE, SIZE)])
    # canonical_scale is 32: such a box and larger ones from stride 16, half of it from stride 8.
    assert read[:, 0, 0, 0].tolist() == [4.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("strides", [(4, 8, 16, 16), (8, 4)])
def test_strides_that_do_not_increase_are_refused_in_one_line(strides: tuple[int, ...]) -> None:
    check_strides((4, 8, 16), "RoIAlign")
    with pytest.raises(UserError, match=r"feature maps at strides .*: RoIAlign needs strides that"):
        check_strides(strides, "RoIAlign")


def test_images_are_normalised_as_our_data_are() -> None:
    network = made(detection())
    batch, _ = network.transform(images_of(2))
    assert torch.allclose(batch.tensors, normalised(pixels(2)), atol=1e-6)


def test_maps_in_the_order_of_anchors_are_torchvisions() -> None:
    maps = [torch.randn(2, 6, 4, 4), torch.randn(2, 6, 2, 2)]
    expected = [
        x.view(2, -1, 3, *x.shape[2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 3) for x in maps
    ]
    assert torch.equal(by_anchor(maps, 3), torch.cat(expected, dim=1))


@pytest.mark.parametrize("kind", list(HEADS))
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_convolutional_part_becomes_integers_with_the_same_counts_and_detections(
    detector: str, kind: str
) -> None:
    network = settled(detection(detector=detector, **HEADS[kind]))
    images, part = pixels(seed=3), convolutional_part(network)
    graph = lower(part, INFO)
    _, found = graph.run_values(images.numpy(), (), collect=True)
    expected = counts_of(part, normalised(images))
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], counts) for name, counts in expected.items())
    with torch.no_grad():
        maps = part(normalised(images))
        real = {
            k: torch.from_numpy(v).float() for k, v in graph.real_outputs(images.numpy()).items()
        }
        assert {k: v.shape for k, v in real.items()} == {k: v.shape for k, v in maps.items()}
        assert all((real[k] - x).abs().max() < 1e-5 for k, x in maps.items())  # float32
        whole = network(list(images.float() / 255))
        rest = with_maps(network, maps)(list(images.float() / 255))
        from_integers = with_maps(network, real)(list(images.float() / 255))
    assert sum(len(one["boxes"]) for one in whole) > 0
    for a, b, c in zip(whole, rest, from_integers, strict=True):
        assert torch.equal(a["labels"], c["labels"])
        assert all(torch.allclose(a[key].float(), b[key].float(), atol=1e-4) for key in a)
        assert all(torch.allclose(a[key].float(), c[key].float(), atol=1e-2) for key in a)


def test_the_names_of_maps_say_what_they_are() -> None:
    levels = ("0", "1", "2", "pool")
    names = {
        d: set(convolutional_part(settled(detection(detector=d)))(torch.zeros(1, 3, SIZE, SIZE)))
        for d in ("faster_rcnn", "retinanet")
    }
    assert names["retinanet"] == {f"{k}_{n}" for k in ("classes", "boxes") for n in levels}
    both = {f"{k}_{n}" for k in ("objectness", "deltas") for n in levels}
    assert names["faster_rcnn"] == both | {"map_0", "map_1", "map_2"}


def test_what_is_given_leaves_the_network_as_it_was() -> None:
    network = settled(detection())
    before = dict(network.named_modules())
    with torch.no_grad():
        maps: dict[str, Any] = convolutional_part(network)(normalised(pixels()))
    with_maps(network, maps)
    assert dict(network.named_modules()) == before


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_detector_has_the_thresholds_and_numbers_of_its_configuration(detector: str) -> None:
    keys: dict[str, Any] = {"nms_threshold": 0.3, "score_threshold": 0.2}
    keys |= {"detections": 9, "proposals": 11, "rois": 7}
    network: Any = made(detection(detector=detector, **keys))
    top = network if detector == "retinanet" else network.roi_heads
    assert (top.nms_thresh, top.score_thresh, top.detections_per_img) == (0.3, 0.2, 9)
    if detector == "retinanet":
        assert network.topk_candidates == 11
        return
    assert top.fg_bg_sampler.batch_size_per_image == 7
    assert network.rpn._pre_nms_top_n == {"training": 22, "testing": 11}
    assert network.rpn._post_nms_top_n == {"training": 11, "testing": 11}
