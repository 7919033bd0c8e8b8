"""The native engine gives the integers of the reference, on every instruction set."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from graph.random_graphs import random_frames, random_graph
from variants import LIF, VARIANTS, info_for, random_pixels

from qsdformer.errors import UserError
from qsdformer.graph.artifact import export
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.lowering import lower
from qsdformer.runtimes import native
from qsdformer.runtimes.verify import Report, verify
from runtimes.wide_graph import SIZE, wide_graph

# QSD_NATIVE_GRAPHS=1000 compares more random graphs.
GRAPHS = int(os.environ.get("QSD_NATIVE_GRAPHS", "250"))

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine was not built")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def assert_same(graph: IntegerGraph, pixels: np.ndarray, threads: int = 1) -> None:
    """Logits, outputs and spike counts are those of the reference."""
    model = native.of_graph(graph, threads)
    expected = graph.run_outputs(pixels)
    found = model.run_outputs(pixels)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    if graph.class_names:
        assert np.array_equal(model(pixels), graph.run(pixels))
        logits, counts = model.run_with_counts(pixels)
        expected_logits, expected_counts = graph.run_with_counts(pixels)
        assert np.array_equal(logits, expected_logits)
        assert list(counts) == list(expected_counts)
        for name, count in expected_counts.items():
            assert np.array_equal(counts[name], count), name


def assert_same_of_frames(graph: IntegerGraph, batch: int, seed: int) -> None:
    """A network of images has the reference's results of frames, too, or both refuse them."""
    pre = graph.preprocessing
    shape = (graph.time_steps, batch, pre.channels, *pre.sides)
    frames = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    try:
        graph.check_images(frames)
    except UserError:
        with pytest.raises(UserError, match="a frame for each time step"):
            native.of_graph(graph).run_outputs(frames)
    else:
        assert_same(graph, frames)


def test_random_graphs_give_the_integers_of_the_reference(isa: str):
    for seed in range(GRAPHS):
        graph = random_graph(seed)
        threads = 1 + seed % 3
        # Small images of many go several at a time.
        batch = 1 + seed % 4 if seed % 5 else 9 * threads
        try:
            assert_same(graph, random_frames(graph, batch=batch, seed=seed), threads)
            if graph.time_steps > 1 and not graph.takes_frames:
                assert_same_of_frames(graph, batch, seed)
        except AssertionError as error:
            raise AssertionError(f"random_graph({seed}): {error}") from error


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gives_the_integers_of_the_reference(name: str, lively):
    model = lively(**VARIANTS[name])
    assert_same(lower(model, info_for(model)), random_pixels(model, 3).numpy(), threads=2)


@pytest.mark.parametrize("fields", [{}, {"fully_spiking": True}, {**LIF, "time_steps": 4}])
@pytest.mark.parametrize("size", [32, 40, 56])
def test_sizes_and_instruction_sets_do_not_matter(isa: str, fields, size: int, make_model, settle):
    model = settle(make_model(**fields), size)
    graph = lower(model, info_for(model, size))
    assert_same(graph, np.random.default_rng(0).integers(0, 256, (2, 3, size, size), np.uint8))


@pytest.fixture(
    scope="module",
    params=[{"fully_spiking": True}, {**LIF, "time_steps": 4}],
    ids=["one step", "four steps"],
)
def wide_network(request: pytest.FixtureRequest, make_model, settle):
    """A graph with images, and with frames where it has time steps: each with what they give."""
    model = make_model(dims=(64, 96, 128, 160), heads=8, stem_kernel=7, **request.param)
    graph = lower(settle(model, 56), info_for(model, 56))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 56, 56), np.uint8)
    inputs = [images]
    if graph.time_steps > 1:
        inputs.append(np.stack([images, 255 - images, images // 2, images])[:, :1])
    return graph, [(x, *graph.run_with_counts(x)) for x in inputs]


@pytest.mark.parametrize("threads", [1, 3])
def test_wide_networks(isa: str, wide_network, threads: int):
    """Wide enough for whole tiles and blocks, in byte planes and time steps too."""
    graph, cases = wide_network
    model = native.of_graph(graph, threads)
    for pixels, expected, expected_counts in cases:
        logits, counts = model.run_with_counts(pixels)
        assert np.array_equal(logits, expected)
        for name, count in expected_counts.items():
            assert np.array_equal(counts[name], count), name


@pytest.mark.parametrize("fully_spiking", [False, True])
@pytest.mark.parametrize("bits", [16, 32])
def test_membranes_of_either_width_give_the_integers_of_the_reference(
    isa: str, bits: int, fully_spiking: bool, lively
):
    model = lively(dims=(16, 32, 48, 64), heads=4, fully_spiking=fully_spiking)
    graph = lower(model, info_for(model), membrane_bits=bits)
    assert_same(graph, random_pixels(model).numpy())


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.8])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("way", ["always", "tiles"])
def test_silent_pixels_and_rows_are_skipped_exactly(
    way: str, share: float, kernel: int, monkeypatch
):
    monkeypatch.setenv("QSD_NATIVE_EVENTS", way)
    graph = wide_graph(kernel)
    if way == "always" and native.of_graph(graph).isa not in ("avx512vnni", "amx"):
        pytest.skip("these kernels know no events")
    pixels = np.zeros((2, 1, SIZE, SIZE), np.uint8)
    pixels[:, :, 5:20] = 255 * (np.random.default_rng(0).random((2, 1, 15, SIZE)) < share)
    if share:
        assert graph.run_outputs(pixels)["spikes"].any()
    assert_same(graph, pixels, threads=2)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5, 19])
def test_threads_and_batches_do_not_matter(small_graph: IntegerGraph, threads: int, batch: int):
    size = small_graph.preprocessing.image_size
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, size, size), np.uint8)
    assert_same(small_graph, pixels, threads)


def test_frames_for_each_time_step_are_taken(lively):
    model = lively(time_steps=4)
    graph = lower(model, info_for(model))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 32, 32), np.uint8)
    assert np.array_equal(native.of_graph(graph)(pixels), graph.run(pixels))


def test_a_file_is_loaded_and_called(small_graph: IntegerGraph, tmp_path: Path):
    export(small_graph, tmp_path / "model.qsd")
    size = small_graph.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), np.uint8)
    logits = native.load(tmp_path / "model.qsd", threads=1)(pixels)
    assert logits.dtype == np.int32
    assert np.array_equal(logits, small_graph.run(pixels))


def test_statistics_count_the_spikes_of_the_runs_since_they_were_reset(small_graph: IntegerGraph):
    size = small_graph.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, size, size), np.uint8)
    model = native.of_graph(small_graph, threads=2)
    model(pixels)
    model.reset_statistics()
    model(pixels)
    _, counts = small_graph.run_with_counts(pixels)
    found = model.statistics()
    assert list(found) == list(counts)
    for name, count in counts.items():
        batch, channels, *_ = count.shape
        padded = np.pad(count, ((0, 0), (0, -channels % 4), (0, 0), (0, 0)))
        groups = padded.reshape(batch, -1, 4, *count.shape[2:]).any(axis=2)
        assert found[name] == native.Activity(
            elements=count.size,
            active=int((count > 0).sum()),
            spikes=int(count.sum()),
            groups=groups.size,
            active_groups=int(groups.sum()),
        )


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 3, 31, 32), np.uint8), ((0, 3, 32, 32), np.uint8), ((1, 3, 32, 32), int)],
)
def test_wrong_images_are_refused_in_one_line(small_graph: IntegerGraph, shape, kind):
    with pytest.raises(UserError, match="images"):
        native.of_graph(small_graph)(np.zeros(shape, kind))


def test_a_batch_beyond_all_memory_is_refused(small_graph: IntegerGraph):
    image = np.zeros((1, 3, 32, 32), np.uint8)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        native.of_graph(small_graph)(np.broadcast_to(image, (2**42, 3, 32, 32)))


def test_a_model_is_not_copied(small_graph: IntegerGraph):
    model = native.of_graph(small_graph)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="load the file again"):
            attempt(model)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_load_again(small_graph: IntegerGraph):
    pixels = np.zeros((2, 3, 32, 32), np.uint8)
    models = [native.of_graph(small_graph, threads) for threads in (1, 2)]
    expected = models[0](pixels)
    child = os.fork()
    if child == 0:  # leaves by a status alone, whatever happens
        status = 1
        try:
            if np.array_equal(models[0](pixels), expected):
                models[1](pixels)
        except UserError as error:
            status = 0 if "load the file again" in str(error) else 2
        finally:
            models.clear()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(models[1](pixels), expected)


@pytest.mark.parametrize("threads", [-1, 1000])
def test_an_absurd_number_of_threads_is_refused(small_graph: IntegerGraph, threads: int):
    with pytest.raises(UserError, match="threads"):
        native.of_graph(small_graph, threads)


def test_a_damaged_file_is_refused_by_name(small_graph: IntegerGraph, tmp_path: Path):
    path = tmp_path / "model.qsd"
    export(small_graph, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"model\.qsd: .*checksum"):
        native.load(path)
    with pytest.raises(UserError, match="cannot read"):
        native.load(tmp_path / "none.qsd")


def test_verify_has_it_among_the_executors(small_graph: IntegerGraph):
    size = small_graph.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), np.uint8)
    report = verify(small_graph, torch.from_numpy(pixels), executors=["native"])
    assert [row.name for row in report.rows] == ["integer", "native"]
    assert report.rows[1].differing == 0
    assert report.rows[1].logit_difference == 0


@pytest.mark.parametrize("wrong", ["logits", "counts"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_verify_fails_for_one_wrong_integer_of_one_image(
    small_graph: IntegerGraph, lively, monkeypatch, wrong: str, checkpoint: bool
):
    """Also where the executor `integer` is not among those that are asked for."""
    model = lively()
    subject = model if checkpoint else small_graph
    info = info_for(model) if checkpoint else None

    def report() -> Report:
        return verify(subject, random_pixels(model, 2), info, executors=["native"])

    fine = report()
    names = ["multi-bit" if checkpoint else "integer", "native"]
    assert [row.name for row in fine.rows] == names
    assert fine.ok
    right = native.NativeModel.run_results

    def slightly_wrong(self, images, collect=True):
        values, counts = right(self, images, collect)
        array = values["logits"] if wrong == "logits" else next(iter(counts.values()), np.zeros(1))
        array.flat[-1] += 1
        return values, counts

    monkeypatch.setattr(native.NativeModel, "run_results", slightly_wrong)
    broken = report()
    assert [row.name for row in broken.rows] == names
    assert broken.rows[1].broken == "broken: not the integers of the reference"
    assert not broken.ok


def test_an_unknown_way_of_skipping_is_one_line(monkeypatch):
    monkeypatch.setenv("QSD_NATIVE_EVENTS", "allways")
    with pytest.raises(UserError, match="QSD_NATIVE_EVENTS must be never, always or tiles"):
        native.of_graph(wide_graph(1))
