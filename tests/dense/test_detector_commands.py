"""`qsd verify`, `analyze` and `bench` on detectors and on what `qsd export` makes of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from dense.conftest import DETECTORS, SIZE
from dense.networks import info_of
from qsdformer.analysis.energy import COST_MODELS
from qsdformer.cli import run
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.graph.post import MASKS
from qsdformer.runtimes import native
from qsdformer.runtimes.executors import EXECUTORS, Executor
from qsdformer.tasks.network_images import network_batches

HEADS = {"retinanet": (), "mask_rcnn": ("box", "mask")}


@pytest.fixture(scope="module")
def exported(dense_runs):
    """The detectors as .qsd files, by name."""
    files = {name: dense_runs / f"{name}.qsd" for name in DETECTORS}
    for name, path in files.items():
        assert run(["export", str(dense_runs / name / "last.ckpt"), str(path)]) == 0
    return files


def test_a_simulation_says_which_parts_it_leaves_out(dense_runs, exported, tmp_path, capsys):
    heads = ["box head for each region", "mask head for each region"]
    expected = {
        dense_runs / "mask_rcnn" / "last.ckpt": heads,
        exported["mask_rcnn"]: heads,
        dense_runs / "retinanet" / "last.ckpt": [],
        dense_runs / "float_heads" / "last.ckpt": ["full-precision neck and heads"],
    }
    out = tmp_path / "all.json"
    for path, left_out in expected.items():
        words = [str(path), "--images", "1", "--design", "dense-int", "--design", "mint"]
        if path.suffix == ".qsd":
            words += ["--data.root", str(dense_runs / "data" / "coco")]
        assert run(["simulate", *words, "--json", str(out)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert (f"without its {', '.join(left_out)}" in shown) == bool(left_out)
        simulated, estimated = json.loads(out.read_text())
        assert simulated["left_out"] == left_out
        assert estimated["left_out"][: len(left_out)] == left_out


def verified(path, *keys):
    only = ["--executor", "integer", *(["--executor", "native"] * native.available())]
    return run(["verify", str(path), *map(str, keys), *only])


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_and_its_file_are_verified_with_their_heads(name, dense_runs, exported, capsys):
    folder = ("--data.root", dense_runs / "data" / "coco")
    for path, keys in ((dense_runs / name / "last.ckpt", ()), (exported[name], folder)):
        assert verified(path, *keys) == 0
        shown = capsys.readouterr().out
        assert f"{path} on coco" in shown
        assert "2 images" in shown
        assert "broken" not in shown
        for head in ("box", "mask"):
            title = f"the head {head!r}, on the regions of the images"
            assert (title in shown) == (head in HEADS[name])


def test_a_head_that_breaks_a_promise_fails_the_whole(exported, dense_runs, capsys, monkeypatch):
    def factory(model, graph):
        right = EXECUTORS["integer"].factory(model, graph)

        def run(pixels, collect):
            results, counts = right(pixels, collect)
            if collect and MASKS in results:
                counts = {name: values + 1 for name, values in counts.items()}
            return results, counts

        return run

    wrong = Executor(name="wrong", factory=factory, equal_counts=True, of_graph=True)
    monkeypatch.setitem(EXECUTORS, "wrong", wrong)
    words = ["--data.root", str(dense_runs / "data" / "coco"), "--executor", "wrong"]
    assert run(["verify", str(exported["mask_rcnn"]), *words]) == 1
    before, _, after = capsys.readouterr().out.partition("the head 'mask'")
    assert "the head 'box'" in before
    assert "broken" not in before
    assert "broken" in after


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_analyzed_with_its_heads(name, dense_runs, tmp_path, capsys):
    out, twins = tmp_path / "analysis.json", [] if HEADS[name] else ["--twins"]
    words = [str(dense_runs / name / "last.ckpt"), "--json", str(out)]
    assert run(["analyze", *words, *twins]) == 0
    assert "2 images" in capsys.readouterr().out
    values = json.loads(out.read_text())
    (model,), (ledger, *others) = values["models"], values["ledgers"]
    assert len(others) == 3 * len(twins)
    parts = model["parts"]
    assert list(parts) == ["backbone", "neck", "heads", "post-processing"]
    for key in ("parameters", "packed_bytes"):
        assert sum(part[key] for part in parts.values()) == ledger[key]
    for cost in COST_MODELS:
        total = sum(part["energy_pj"][cost] for part in parts.values())
        assert total == pytest.approx(ledger["energy_pj"][cost]["total"])
    counts = {row["name"]: row["count"] for row in ledger["rows"]}
    for head in ("box", "mask"):
        own = [value for row, value in counts.items() if row.startswith(f"{head}_head.")]
        assert (sum(own) > 0) == (head in HEADS[name])
    if HEADS[name]:
        assert run(["analyze", *words, "--twins"]) == 2
        assert "has heads for regions, whose twins are not known" in capsys.readouterr().err


def test_an_analysis_of_a_part_says_so_beside_every_energy(dense_runs, tmp_path, capsys):
    out, lacking = tmp_path / "all.json", "full-precision neck and heads"
    whole, part = (dense_runs / name / "last.ckpt" for name in ("segmenter", "float_heads"))
    words = [str(whole), str(part), "--twins", "--limit", "1", "--json", str(out)]
    assert run(["analyze", *words]) == 0
    values = json.loads(out.read_text())
    assert [model["left_out"] for model in values["models"]] == [None, lacking]
    left_out = [ledger["left_out"] for ledger in values["ledgers"]]
    assert left_out == [None] * 4 + [lacking] * 4
    assert len({ledger["parameters"] for ledger in values["ledgers"][4:]}) == 1
    _, _, table = capsys.readouterr().out.partition("Side by side")
    assert "(energy" in table


def test_a_detector_and_its_file_are_timed_without_heads(dense_runs, exported, capsys, monkeypatch):
    monkeypatch.setattr("qsdformer.runtimes.bench.peak_memory", lambda *words: 0.0)
    monkeypatch.setattr("qsdformer.runtimes.bench._installed", lambda: ["ONNX Runtime"])
    few = ["--runs", "1", "--batch-size", "1", "--threads", "1"]
    for path in (dense_runs / "mask_rcnn" / "last.ckpt", *exported.values()):
        capsys.readouterr()
        assert run(["bench", str(path), *few]) == 0
        shown = capsys.readouterr().out
        assert ("PyTorch" in shown) == (path.suffix == ".ckpt")
        assert "ONNX Runtime" in shown
        assert ("all but the heads for its regions" in shown) == ("mask_rcnn" in str(path))


def test_images_of_many_sizes_become_those_of_a_detectors_network():
    pre = dataclasses.replace(Preprocessing.of(info_of(SIZE), 32), fit="stretch")
    images = [torch.rand(3, 32, 48), torch.rand(3, 40, 30), torch.rand(3, 32, 48)]
    ((batch, labels),) = network_batches([(images, [1, 2, 3])], 2, pre, "detection")
    assert pre.sides == (32, 64)
    assert batch.shape == (2, 3, 32, 64)
    assert labels == [1, 2]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pre.mean, pre.std))
    torch.testing.assert_close(batch[0, :, :, :48], (images[0] - mean) / std)
    assert not batch[..., 48:].any()
    assert batch[1, :, :, :48].all()
