from __future__ import annotations

import math

import pytest
import torch

from dense.networks import (
    CLASSES,
    detection_config,
    info_of,
    pixels_of,
    segmentation_config,
    settled,
)
from qsdformer.analysis.energy import COST_MODELS
from qsdformer.analysis.ledger import make_ledger
from qsdformer.analysis.measure import measure
from qsdformer.analysis.post import PostWork
from qsdformer.analysis.regions import add_regions
from qsdformer.analysis.shares import shares
from qsdformer.analysis.twins import twins
from qsdformer.runtimes.binary import run_binary
from qsdformer.tasks.deployment import deployable


def counted(rows):
    return {row.name: row.total for row in rows if row.kind in ("ac", "attention")}


@pytest.mark.parametrize(
    "config",
    [segmentation_config(), detection_config(), detection_config(detector="faster_rcnn")],
    ids=["segmenter", "RetinaNet", "Faster R-CNN"],
)
def test_exact_additions_are_those_of_binary_execution(config):
    found = deployable(settled(config), info_of(32))
    images = torch.randn(3, 3, 32, 32)
    measured = measure(found.part, [(images, None)], post=found.post)
    ledger = make_ledger("it", found.part, measured, found.network)
    assert counted(ledger.rows) == run_binary(found.part, images).additions
    assert ledger.accuracy is None
    assert [row.kind for row in ledger.rows].count("post") == 1


def test_heads_for_regions_have_rows_of_their_own_scaled_to_an_image():
    network = settled(detection_config(detector="mask_rcnn"))
    found = deployable(network, info_of(32))
    images = [torch.from_numpy(image) / 255 for image in pixels_of(32, 2)]
    kept: dict[str, list[torch.Tensor]] = {"box_head": [], "mask_head": []}
    hooks = []
    for name, values in kept.items():
        module = network.get_submodule(f"roi_heads.{name}")
        hook = module.register_forward_pre_hook(lambda _, x, values=values: values.append(x[0]))
        hooks.append(hook)
    proposals: list[int] = []
    counting = network.roi_heads.register_forward_pre_hook(
        lambda _, given: proposals.extend(len(boxes) for boxes in given[1])
    )
    with torch.no_grad():
        results = network.detect(images, [(32, 32)] * 2)
    for hook in [*hooks, counting]:
        hook.remove()
    measured = measure(found.part, [(torch.randn(2, 3, 32, 32), None)], post=found.post)
    before = measured.post.products
    rows = add_regions(found, [(images, None)], measured.post)
    expected = {}
    for name, head in zip(kept, found.heads.values(), strict=True):
        expected |= run_binary(head.part, torch.cat(kept[name])).additions
    assert counted(rows) == expected
    assert all(row.count == pytest.approx(row.total / 2) for row in rows)
    regions, size, sampling = len(kept["box_head"][0]), 8 * 4 * 4, 4
    masks = len(kept["mask_head"][0])
    assert regions > masks > 0
    pooled = 4 * sampling * size * (regions + masks)
    # Of a region a class and background to score, boxes to decode, and pairs of one class; of a
    # mask of 8 x 8 a sigmoid a value, and scaling to its box.
    classes, pairs = len(CLASSES), sum(math.comb(n, 2) for n in proposals)
    heads = regions * (2 * (classes + 1) + 8 * classes) + 2 * classes * pairs
    found_boxes = [result["boxes"] for result in results]
    areas = [int((boxes[:, 2:] - boxes[:, :2]).prod(1).sum()) for boxes in found_boxes]
    drawn = 2 * sum(map(len, found_boxes)) * 8 * 8 + 4 * sum(areas)
    assert sum(areas) > 0
    assert pairs > 0
    assert measured.post.products - before == pooled + heads + drawn
    ledger = make_ledger("it", found.part, measured, network, rows)
    by_part = {share.part: share for share in shares(network, ledger, [*COST_MODELS.values()])}
    assert by_part["heads"].additions > sum(expected.values()) / 2
    total = sum(share.energy["bit-aware"] for share in by_part.values())
    assert total == pytest.approx(ledger.total(COST_MODELS["bit-aware"]))


def test_work_for_regions_does_not_depend_on_the_batches():
    found = deployable(settled(detection_config(detector="mask_rcnn")), info_of(32))
    images = [torch.from_numpy(image) / 255 for image in pixels_of(32, 4)]
    images[1], images[2] = images[1][:, :, :16], images[2][:, :24]  # padded with their likes only
    by_size = []
    for size in (1, 2, 4):
        work = PostWork(images=4)
        batches = [(images[i : i + size], None) for i in range(0, 4, size)]
        counts = [row.count for row in add_regions(found, batches, work)]
        by_size.append((work.products, work.sums, *counts))
    assert by_size[0] == pytest.approx(by_size[1])
    assert by_size[0] == pytest.approx(by_size[2])


def test_weights_shared_by_levels_are_read_once():
    found = deployable(settled(detection_config()), info_of(32))
    measured = measure(found.part, [(torch.randn(1, 3, 32, 32), None)], post=found.post)
    spiking = make_ledger("it", found.part, measured, found.network)
    weights = {n: m.weight.numel() for n, m in found.part.named_modules() if hasattr(m, "bits")}
    for ledger in (spiking, *twins("it", found.part, measured)):
        bits = {row.name: row.weight_bits or 32 for row in ledger.rows}
        assert any(name.endswith("conv@4") for name in bits)
        read = {row.name: row.weights_read for row in ledger.rows if row.weights_read}
        assert read == {name: count * bits[name] for name, count in weights.items()}


def test_a_detectors_post_processing_is_counted_by_its_candidates():
    found = deployable(settled(detection_config(score_threshold=1.0)), info_of(32))
    measured = measure(found.part, [(torch.randn(2, 3, 32, 32), None)], post=found.post)
    places = 8 * 8 + 4 * 4 + 2 * 2 + 1
    scores = places * 6 * 4  # anchors (two octaves, three ratios) and classes with background
    assert measured.post.row().multiplications == 2 * scores  # and no candidate
    assert measured.post.row().additions == 4 * scores


def test_proposals_are_scored_decoded_and_compared_in_pairs():
    found = deployable(settled(detection_config(detector="faster_rcnn")), info_of(32))
    work = PostWork()
    outputs = {}
    for level, side in zip(found.post.levels, (8, 4, 2, 1), strict=False):
        outputs[level.scores] = torch.zeros(1, 6, side, side)
        outputs[level.boxes] = torch.zeros(1, 24, side, side)
    work.add(found.post, outputs, (32, 32))
    expected = 0
    for level in found.post.levels:
        values = outputs[level.scores].numel()
        kept = min(values, found.post.candidates)
        expected += 2 * values + 8 * kept + 2 * math.comb(kept, 2)
    assert work.row().multiplications == expected


def test_a_likely_background_is_no_candidate():
    found = deployable(settled(detection_config(score_threshold=0.5)), info_of(32))
    sides, anchors, classes = (8, 4, 2, 1), 6, len(CLASSES) + 1
    outputs = {}
    for level, side in zip(found.post.levels, sides, strict=True):
        scores = torch.full((1, anchors, classes, side, side), -9.0)
        scores[:, :, 0] = 9.0  # background
        scores[:, 0, 2] = 9.0  # one anchor of each place has an object besides
        outputs[level.scores] = scores.flatten(1, 2)
        outputs[level.boxes] = torch.zeros(1, anchors * 4, side, side)
    work = PostWork()
    work.add(found.post, outputs, (32, 32))
    places = sum(side**2 for side in sides)
    kept = sum(min(side**2, found.post.candidates) for side in sides)
    assert kept < places
    # Products: 2 a score, 8 a candidate, 2 a pair of one class.
    expected = 2 * places * anchors * classes + 8 * kept + 2 * math.comb(kept, 2)
    assert work.row().multiplications == expected


@pytest.mark.parametrize(
    "config",
    [
        segmentation_config(bits=None),
        detection_config(bits=None),
        detection_config(bits=None, detector="mask_rcnn"),
    ],
    ids=["segmenter", "RetinaNet", "Mask R-CNN"],
)
def test_work_of_a_network_with_float_neck_and_heads_is_its_backbones(config):
    network = settled(config)
    found = deployable(network, info_of(32))
    measured = measure(found.part, [(torch.randn(2, 3, 32, 32), None)], post=found.post)
    ledger = make_ledger("it", found.part, measured, network)
    for twin in twins("it", found.part, measured, network):
        assert twin.parameters == ledger.parameters
        assert twin.float_bytes == ledger.float_bytes
        assert twin.packed_bytes in (ledger.packed_bytes, ledger.float_bytes)
        assert ledger.packed_bytes <= twin.packed_bytes
    by_part = {share.part: share for share in shares(network, ledger, [*COST_MODELS.values()])}
    backbone = by_part["backbone"]
    assert backbone.additions > 0
    assert backbone.macs == ledger.macs > 0
    for name, model in COST_MODELS.items():
        assert backbone.energy[name] == pytest.approx(ledger.total(model))
    for part in ("neck", "heads"):
        assert by_part[part].parameters > 0
        assert by_part[part].additions == by_part[part].macs == 0
