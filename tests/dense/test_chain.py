from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from graph import numpy_executor, numpy_reader
from PIL import Image

from dense.networks import (
    CLASSES,
    SIZES,
    detection_config,
    info_of,
    pixels_of,
    segmentation_config,
    settled,
)
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.data.preprocessing import pixels as prepared
from qsdformer.errors import UserError
from qsdformer.graph.artifact import from_bytes, load_artifact, to_bytes
from qsdformer.graph.post import post_values
from qsdformer.models.dense.maps import with_maps
from qsdformer.runtimes import native
from qsdformer.runtimes.dense import ExportedDetector, ExportedSegmenter
from qsdformer.runtimes.executors import normalised
from qsdformer.runtimes.exporting import export
from qsdformer.runtimes.loading import load
from qsdformer.runtimes.onnx_predict import load_onnx
from qsdformer.runtimes.post import detections
from qsdformer.runtimes.runnable import runnable
from qsdformer.runtimes.verify import verify
from qsdformer.tasks.deployment import deployable, require_whole
from qsdformer.tasks.deployment import lowered as lower_all
from qsdformer.tasks.detecting import detections as plain

CONFIGS = {
    "segmenter": segmentation_config,
    "segmenter, nearest": lambda: segmentation_config(upsampling="nearest"),
    "RetinaNet": detection_config,
    "Faster R-CNN": lambda: detection_config(detector="faster_rcnn"),
    "Mask R-CNN": lambda: detection_config(detector="mask_rcnn"),
}


def pixels_in(image: Image.Image, pre: Preprocessing) -> np.ndarray:
    (found,) = prepared([image], pre)
    return found


def lowered(name, size):
    """The network, what of it lowers, and its integer graph."""
    network = settled(CONFIGS[name](), size)
    found = deployable(network, info_of(size))
    return network, found, lower_all(found, info_of(size))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("segmenter", 32),
        ("segmenter", (32, 48)),
        ("segmenter, nearest", 32),
        ("RetinaNet", 32),
        ("RetinaNet", (32, 48)),
        ("Faster R-CNN", (32, 48)),
    ],
    ids=str,
)
def test_a_dense_network_gives_the_same_counts_and_maps_in_every_way(name, size):
    _, found, graph = lowered(name, size)
    pixels = pixels_of(graph.preprocessing.sides)
    report = verify(found.part, torch.from_numpy(pixels), info_of(size), multiple=found.multiple)
    assert report.ok
    rows = {row.name: row for row in report.rows}
    assert rows["binary spikes"].differing == rows["integer"].differing == 0
    assert rows["integer"].counts > 10_000
    assert rows["integer"].logit_difference < 1e-4
    for row in report.rows:
        assert row.agreement > 0.999
        assert row.accuracy is None
    assert graph.class_names == ()
    grids = {o.name: graph.run_outputs(pixels)[o.name].shape[2:] for o in graph.outputs}
    height, width = graph.preprocessing.sides
    first = "mask" if name.startswith("segmenter") else next(iter(grids))
    stride = 2 if first == "mask" else 4
    assert grids[first] == (height // stride, width // stride)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["segmenter", "RetinaNet", "Mask R-CNN"])
def test_the_artifact_of_a_dense_network_runs_alone(name, size, tmp_path):
    _, found, graph = lowered(name, size)
    path = tmp_path / "model.qsd"
    export(graph, path)
    assert load_artifact(path) == graph
    assert load_artifact(path).post == found.post
    pixels = pixels_of(graph.preprocessing.sides, 2)
    expected, counts = graph.run_results(pixels)
    runnable = load(path)
    assert all(np.array_equal(expected[k], v) for k, v in runnable.run_outputs(pixels).items())
    if native.available():
        values, mine = native.load(path).run_results(pixels)
        assert all(np.array_equal(values[k], v) for k, v in expected.items())
        assert all(np.array_equal(mine[k], v) for k, v in counts.items())
    with pytest.raises(UserError, match="has no logits"):
        runnable.run(pixels)


def test_a_plain_reader_finds_sides_and_post_processing(tmp_path):
    _, found, graph = lowered("segmenter", (32, 48))
    path = tmp_path / "model.qsd"
    export(graph, path)
    content = numpy_reader.read(path)
    assert content["format_version"] == 3
    assert content["preprocessing"]["image_size"] == [32, 48]
    assert content["preprocessing"]["fit"] == "stretch"
    assert content["post"] == json.loads(json.dumps(post_values(found.post)))
    pixels = pixels_of((32, 48), 1)
    values = numpy_executor.run(content, pixels)
    (output,) = content["outputs"]
    assert np.array_equal(values[output["op"]], graph.run_outputs(pixels)["mask"])


def test_an_onnx_file_of_a_dense_network_gives_the_maps_of_the_graph(tmp_path):
    from qsdformer.runtimes.onnx_predict import load_onnx

    _, found, graph = lowered("RetinaNet", (32, 48))
    path = tmp_path / "model.onnx"
    export(graph, path)
    model = load_onnx(path)
    assert model.preprocessing == graph.preprocessing
    assert model.post == found.post
    pixels = pixels_of(graph.preprocessing.sides)
    outputs = model.outputs(pixels)
    for name, value in graph.real_outputs(pixels).items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_from_an_artifact_are_those_that_the_detector_itself_makes_of_its_maps(size):
    network, found, graph = lowered("RetinaNet", size)
    pre, sides = graph.preprocessing, info_of(size).sides
    pixels = pixels_of(size)
    filled = [pixels_in(Image.fromarray(image.transpose(1, 2, 0)), pre) for image in pixels]
    real = graph.real_outputs(np.stack(filled))
    mine = detections(found.post, real, pre.sides, [sides] * 3, [sides] * 3)
    images = [torch.from_numpy(image) / 255 for image in pixels]
    maps = {name: torch.from_numpy(value).float() for name, value in real.items()}
    with torch.no_grad():
        given, whole = with_maps(network, maps)(images), network(images)
    assert sum(len(d["boxes"]) for d in mine) > 10
    for a, b, c in zip(mine, given, whole, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["boxes"], b["boxes"])
        torch.testing.assert_close(a["scores"], b["scores"])
        torch.testing.assert_close(a["scores"], c["scores"], atol=1e-3, rtol=0)


def assert_same_objects(found, expected):
    """The same objects in every image, but for what rounding moves."""
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-3, rtol=0)
        if "masks" in b:
            assert a["masks"].shape == b["masks"].shape
            assert (a["masks"] == b["masks"]).float().mean() > 0.99


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["Faster R-CNN", "Mask R-CNN"])
def test_regions_go_through_graphs_of_their_own_as_through_the_detectors_heads(name, size):
    network, _, graph = lowered(name, size)
    assert tuple(graph.heads) == (("box", "mask") if name == "Mask R-CNN" else ("box",))
    images = [torch.from_numpy(image) / 255 for image in pixels_of(size)]
    sizes = [(64, 90)] * len(images)
    with torch.no_grad():
        expected = [plain(found) for found in network.detect(images, sizes)]
    assert sum(len(found["boxes"]) for found in expected) > 10
    again = from_bytes(to_bytes(graph))
    for model in (graph, runnable(again)):
        mine = ExportedDetector(model=model, post=graph.post).detect(images, sizes)
        assert_same_objects(mine, expected)


def test_the_heads_for_regions_agree_in_every_way():
    network = settled(CONFIGS["Mask R-CNN"]())
    for head in deployable(network, info_of(32)).heads.values():
        size = (20, head.info.channels, head.info.image_size, head.info.image_size)
        counts = np.random.default_rng(0).integers(0, 5, size).astype(np.uint8)
        report = verify(head.part, torch.from_numpy(counts), head.info)
        assert report.ok
        assert all(not row.differing and row.agreement == 1 for row in report.rows)
        assert all(row.logit_difference < 1e-5 for row in report.rows)


def test_graphs_for_regions_are_those_that_post_processing_needs():
    from graph.test_artifact import joined, parts

    _, _, graph = lowered("Mask R-CNN", 32)
    box, mask = graph.heads["box"], graph.heads["mask"]
    wrong = {
        "graphs for regions are": {"box": box},
        "takes 4x4|gives": {"box": mask, "mask": box},
        "is one for images": {"box": graph, "mask": mask},
    }
    for message, heads in wrong.items():
        with pytest.raises(UserError, match=message):
            from_bytes(to_bytes(dataclasses.replace(graph, heads=heads)))
    for name in ("mask", "box"):
        header, description, body = parts(to_bytes(graph))
        description["heads"].remove(name)
        with pytest.raises(UserError, match="damaged"):
            from_bytes(joined(header, description, body))


@pytest.mark.parametrize("name", ["Faster R-CNN", "Mask R-CNN"])
def test_an_onnx_file_finds_its_networks_for_regions_beside_it(name, tmp_path):
    _, _, graph = lowered(name, 32)
    export(graph, tmp_path / "model.onnx")
    heads = {f"model.{head}.onnx" for head in graph.heads}
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"} | heads
    model = load_onnx(tmp_path / "model.onnx", 1)
    images = [torch.from_numpy(image) / 255 for image in pixels_of(32)]
    sizes = [(64, 90)] * len(images)
    expected = ExportedDetector(model=graph, post=graph.post).detect(images, sizes)
    found = ExportedDetector(model=model, post=model.post).detect(images, sizes)
    assert sum(len(one["boxes"]) for one in expected) > 10
    assert_same_objects(found, expected)


def test_networks_for_regions_that_are_missing_or_others_are_one_line(tmp_path):
    for name in ("Faster R-CNN", "Mask R-CNN"):
        export(lowered(name, 32)[2], tmp_path / f"{name[0]}.onnx")
    boxes, other = tmp_path / "F.box.onnx", tmp_path / "M.box.onnx"
    boxes.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"F\.box\.onnx is not the one that .*F\.onnx was exported"):
        load_onnx(tmp_path / "F.onnx")
    boxes.unlink()
    with pytest.raises(UserError, match=r"F\.onnx needs .*F\.box\.onnx beside it"):
        load_onnx(tmp_path / "F.onnx")


def test_boxes_are_in_the_pixels_of_each_image():
    _, found, graph = lowered("RetinaNet", 32)
    real = graph.real_outputs(pixels_of(32, 1))
    (small,) = detections(found.post, real, (32, 32), [(32, 32)], [(32, 32)])
    (large,) = detections(found.post, real, (32, 32), [(32, 32)], [(64, 128)])
    torch.testing.assert_close(large["boxes"], small["boxes"] * torch.tensor([4.0, 2, 4, 2]))


def test_the_classes_of_pixels_are_those_of_the_network():
    size = (32, 48)
    network, found, graph = lowered("segmenter", size)
    pixels = pixels_of(size)
    images = normalised(pixels, graph.preprocessing)
    maps = ExportedSegmenter(model=graph, post=found.post).forward(images)["mask"].argmax(1)
    with torch.no_grad():
        logits = network(images)["mask"]
    scaled = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")
    assert (maps == scaled.argmax(1)).float().mean() > 0.999


def test_square_graphs_without_post_processing_are_still_of_version_2(small_graph):
    assert b'\\"format_version\\":2' in to_bytes(small_graph)
    wide = dataclasses.replace(
        small_graph.preprocessing, image_size=small_graph.preprocessing.image_size, fit="stretch"
    )
    again = dataclasses.replace(small_graph, preprocessing=wide)
    assert b'\\"format_version\\":3' in to_bytes(again)
    assert from_bytes(to_bytes(again)) == again


FORGED = {
    "an unknown task": ("task", "sorting", "not known"),
    "an output that is not there": ("output", "masks", "does not exist"),
    "classes that do not fit": ("class_names", ["a"], "has 3 channels, not 1"),
    "another stride": ("stride", 4, "not of stride 4"),
    "a stride of text": ("stride", "2", "int was expected"),
    "a field too many": ("x", 1, "other fields"),
    "no classes": ("class_names", [], "0 class names"),
}


@pytest.mark.parametrize("case", FORGED)
def test_post_processing_that_does_not_fit_is_refused(case):
    from graph.test_artifact import joined, parts

    key, value, message = FORGED[case]
    _, _, graph = lowered("segmenter", 32)
    header, description, body = parts(to_bytes(graph))
    description["post"][key] = value
    with pytest.raises(UserError, match=f"^model.qsd: .*damaged.*{message}") as error:
        from_bytes(joined(header, description, body), "model.qsd")
    assert "\n" not in str(error.value)


def test_sides_that_are_no_two_numbers_are_refused_by_both_readers():
    from graph.test_artifact import joined, parts

    _, _, graph = lowered("segmenter", (32, 48))
    header, description, body = parts(to_bytes(graph))
    for size in ([32, 32], [32], [32, 48, 3], [0, 48], [32, 48.0], [True, 48], "32x48", [48, 32]):
        description["preprocessing"]["image_size"] = size
        data = joined(header, description, body)
        if size != [48, 32]:
            with pytest.raises(UserError, match="damaged"):
                from_bytes(data)
        if native.available() and size != [48, 32]:
            with pytest.raises(UserError, match="damaged"):
                native.NativeModel(data)
    graph = from_bytes(data)  # the other way round is another network
    assert graph.preprocessing.sides == (48, 32)


def test_what_does_not_lower_is_named():
    floating = deployable(settled(segmentation_config(bits=None)), info_of(32))
    with pytest.raises(UserError, match=r"^x.ckpt: its full-precision neck and heads cannot"):
        require_whole(floating, "x.ckpt")
    require_whole(deployable(settled(segmentation_config()), info_of(32)), "x.ckpt")
    with pytest.raises(UserError, match="2 class names for a model of 3 classes"):
        deployable(
            settled(segmentation_config()),
            dataclasses.replace(info_of(32), class_names=CLASSES[:2]),
        )
