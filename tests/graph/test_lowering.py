from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from variants import VARIANTS, info_for, random_pixels

from graph.user_networks import INFO, Bordered, pixels, settled
from qsdformer import create_model
from qsdformer.errors import UserError
from qsdformer.graph import reference
from qsdformer.graph.check import check_graph
from qsdformer.graph.formats import fixed_point, thresholds
from qsdformer.graph.lowering import lower
from qsdformer.graph.ops import IELIF, INT32_MAX, Conv, Normalise, Rescale
from qsdformer.nn import IELIF as Neuron
from qsdformer.nn import LIF, QuantConv2d, QuantLinear, SpikingNeuron
from qsdformer.nn.neurons import spike_count
from qsdformer.runtimes.binary import multi_bit
from qsdformer.runtimes.executors import normalised
from qsdformer.runtimes.verify import count_differences


@pytest.mark.parametrize("variant", VARIANTS)
def test_integer_counts_are_those_of_the_float_model(lively, variant):
    model = lively(**VARIANTS[variant])
    graph = lower(model, info_for(model))
    differing = total = 0
    for seed in range(2):
        pixels = random_pixels(model, count=4, seed=seed).numpy()
        logits, counts = multi_bit(model, normalised(pixels, graph.preprocessing))
        integer_logits, integer_counts = graph.run_with_counts(pixels)
        some, of = count_differences(integer_counts, {n: c.numpy() for n, c in counts.items()})
        differing, total = differing + some, total + of
        if some == 0:  # then logits differ by their own rounding alone
            np.testing.assert_allclose(
                integer_logits * graph.logit_scale, logits.numpy(), atol=3 * graph.logit_scale
            )
    # A membrane within rounding distance of a threshold may fall on its other side.
    assert differing <= 2e-4 * total


def test_frames_for_every_time_step_run_too(lively):
    model = lively(time_steps=4)
    graph = lower(model, info_for(model))
    frames = np.stack([random_pixels(model, seed=seed).numpy() for seed in range(4)])
    images = torch.stack([normalised(f, graph.preprocessing) for f in frames])
    logits, _ = multi_bit(model, images)
    np.testing.assert_allclose(graph.run(frames) * graph.logit_scale, logits.numpy(), atol=1e-3)
    still = np.stack([frames[0]] * 4)
    assert np.array_equal(graph.run(still), graph.run(frames[0]))


def test_16_bit_membranes_stay_near_the_float_model_and_in_16_bits(lively):
    model = lively()
    graph = lower(model, info_for(model), membrane_bits=16)
    assert max(op.limit for op in graph.neurons()) == 2**15 - 1
    pixels = random_pixels(model, count=8).numpy()
    _, counts = multi_bit(model, normalised(pixels, graph.preprocessing))
    differing, total = count_differences(
        graph.run_with_counts(pixels)[1], {n: c.numpy() for n, c in counts.items()}
    )
    assert 0 < differing < 0.05 * total


def test_lowering_twice_gives_the_same_graph(lively):
    model = lively()
    assert lower(model, info_for(model)) == lower(model, info_for(model))
    with torch.no_grad():
        model.stages[0].downsample.norm.bias += 0.01
    assert lower(model, info_for(model)) != lower(lively(), info_for(model))


def test_a_batch_gives_the_logits_of_its_images_alone(lively):
    model = lively(time_steps=4)
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, count=3).numpy()
    alone = np.concatenate([graph.run(pixels[i : i + 1]) for i in range(3)])
    assert np.array_equal(graph.run(pixels), alone)


def test_every_value_on_the_way_is_an_integer(lively, monkeypatch):
    model = lively()
    graph = lower(model, info_for(model))
    seen = set()

    def watched(function):
        def call(op, *inputs):
            result = function(op, *inputs)
            seen.add(result.dtype.name)
            return result

        return call

    watching = {kind: watched(function) for kind, function in reference.EXECUTE.items()}
    monkeypatch.setattr(reference, "EXECUTE", watching)
    assert graph.run(random_pixels(model).numpy()).dtype == np.int32
    assert seen == {"int32"}


def test_the_executor_has_no_float_literal_and_no_division_of_arrays():
    """Floating-point types stand in one function only: it picks one wide enough to be exact."""
    tree = ast.parse(inspect.getsource(reference))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Div)]
    constants = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert not [value for value in constants if isinstance(value, float)]
    floats = {
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any("float" in n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute))
    }
    assert floats == {"_exact_type"}


def test_products_are_taken_in_a_type_that_holds_every_sum_exactly():
    for largest, kind in ((2**24 - 1, np.float32), (2**24, np.float64), (2**31 - 1, np.float64)):
        assert reference._exact_type(np.array([0, largest]), np.array([1])) is kind
        assert reference._exact_type(np.array([-largest, 0]), np.array([1])) is kind
    # A bound of |x| times the sum of |codes|: neither one alone is large here.
    assert reference._exact_type(np.array([1 << 12]), np.array([1 << 12])) is np.float64


def test_all_sums_fit_32_bits_at_worst(lively):
    for variant in ("published-D8-T4", "8-bit", "fully-D8-T4"):
        model = lively(**VARIANTS[variant])
        shapes = check_graph(lower(model, info_for(model)))
        assert max(shape.bound.max() for shape in shapes.values()) <= INT32_MAX


def test_a_black_border_is_what_padding_adds(lively):
    model = lively()
    graph = lower(model, info_for(model))
    normalise = graph.ops[0]
    assert isinstance(normalise, Normalise)
    assert normalise.table.shape == (3, 256)
    expected = (np.arange(256) / 255 - 0.4) / 0.3
    np.testing.assert_allclose(
        normalise.table[1] * 2.0**-normalise.fraction, expected, atol=2.0**-normalise.fraction
    )


@pytest.mark.parametrize("rounding", ["up", "even"])
@pytest.mark.parametrize("levels", [1, 3, 4])
def test_thresholds_are_the_counts_of_the_neuron(levels, rounding):
    neuron, one = Neuron(levels=levels, rounding=rounding), 1 << 22
    found = thresholds(neuron, one)
    assert len(found) == levels
    for k, threshold in enumerate(found, start=1):
        potentials = torch.tensor([threshold, threshold - 1], dtype=torch.float64) / one
        assert spike_count(potentials, levels, 1.0, rounding).tolist() == [k, k - 1]


def test_graphs_name_neurons_and_layers_as_the_model(lively):
    model = lively()
    graph = lower(model, info_for(model))
    modules = dict(model.named_modules())
    for op in graph.ops:
        if isinstance(op, (Conv, IELIF)):
            assert op.name in modules
    conv = next(op for op in graph.ops if op.name == "stages.1.blocks.0.conv1")
    assert isinstance(conv, Conv)
    assert np.array_equal(conv.codes, modules[conv.name].codes().numpy())


def test_graph_operations_cannot_be_changed(small_graph):
    with pytest.raises(AttributeError):
        small_graph.ops[0].fraction = 3
    with pytest.raises(AttributeError):
        small_graph.ops = ()


@pytest.mark.parametrize("bits", [8, 16, 22])
def test_fixed_point_factors_are_within_half_a_unit(bits):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=1000) * 2.0 ** rng.integers(-8, bits - 3, size=1000)
    factors[:3] = 0.0, 1 - 2**-40, -(1 - 2**-40)
    multiplier, shift = fixed_point(factors, bits)
    assert np.abs(multiplier).max() < 2 ** (bits - 1)
    assert shift.min() >= 0
    np.testing.assert_array_less(np.abs(multiplier / 2.0**shift - factors), 0.51 / 2.0**shift)


def test_large_factors_take_more_bits_and_impossible_ones_are_refused():
    multiplier, shift = fixed_point(np.array([2.0**27 + 1]), 22)
    assert (multiplier[0], shift[0]) == (2**27 + 1, 0)
    with pytest.raises(ValueError, match="leaves 62 bits"):
        fixed_point(np.array([2.0**70]), 22)
    with pytest.raises(ValueError, match="not finite"):
        fixed_point(np.array([np.nan]), 22)


def test_rescale_rounds_to_nearest_halves_up_and_saturates():
    op = Rescale(
        name="r",
        inputs=("x",),
        multiplier=np.array([1], np.int64),
        shift=np.array([1], np.int8),
        bias=np.array([10], np.int64),
        limit=12,
        fraction=0,
    )
    x = np.array([-40, -3, -2, -1, 0, 1, 2, 3, 40], np.int32).reshape(1, 1, 1, -1)
    expected = [-10, 9, 9, 10, 10, 11, 11, 12, 12]
    assert reference.EXECUTE[Rescale](op, x).ravel().tolist() == expected


def test_models_and_images_that_do_not_fit_are_refused(lively, make_model):
    model = lively()
    info = info_for(model)
    with pytest.raises(UserError, match="give info="):
        lower(model)
    with pytest.raises(UserError, match="class names for a model of 7"):
        lower(lively(num_classes=7), info)
    with pytest.raises(UserError, match="3 channels, but the model takes 1"):
        lower(lively(in_channels=1), info)
    with pytest.raises(ValueError, match="must be 16 or 32"):
        lower(model, info, membrane_bits=8)
    with pytest.raises(UserError, match="makes no spikes"):
        lower(make_model(neuron="relu").eval(), info)
    graph = lower(model, info)
    for bad in (np.zeros((1, 3, 32, 32)), np.zeros((1, 3, 28, 28), np.uint8)):
        with pytest.raises(UserError, match="takes uint8 pixels of shape"):
            graph.run(bad)
    with pytest.raises(UserError, match="no images"):
        graph.run(np.zeros((0, 3, 32, 32), np.uint8))


def test_channels_without_variance_keep_their_counts(lively):
    model = lively()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("sepconv.norm1", "q.conv.norm2", "q.norm")):
                module.running_var[0] = 0.0
    graph = lower(model, info_for(model))
    pixels = random_pixels(model, count=4).numpy()
    _, counts = multi_bit(model, normalised(pixels, graph.preprocessing))
    differing, total = count_differences(
        graph.run_with_counts(pixels)[1], {n: c.numpy() for n, c in counts.items()}
    )
    assert differing <= 2e-4 * total


def test_wide_shortcuts_get_more_range(lively):
    model = lively()
    assert lower(model, info_for(model)).membrane_fraction == 24
    with torch.no_grad():
        model.stages[2].downsample.norm.bias[0] = 1000.0
    assert lower(model, info_for(model)).membrane_fraction == 21


@pytest.mark.parametrize(("levels", "fraction"), [(4, 12), (8, 11), (16, 10)])
def test_16_bits_hold_the_window_of_neurons_that_count_in_units(levels, fraction):
    model = create_model("e_spikeformer_tiny", levels=levels, num_classes=5).eval()
    graph = lower(model, INFO, membrane_bits=16)
    assert graph.membrane_fraction == fraction
    for op in graph.neurons():
        assert isinstance(op, IELIF)
        assert op.resets[-1] < op.limit  # what the largest count takes is the window


class Firing(nn.Module):
    """A neuron whose potentials are constants, one for each channel."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        self.conv, self.neuron = QuantConv2d(3, 5, 1, bits=8), neuron
        self.head = QuantLinear(5, 5, bits=8)
        nn.init.constant_(self.conv.weight, 0.0)
        with torch.no_grad():
            self.conv.bias.copy_(torch.tensor([0.5, 1.9, 3.9, 6.0, 9.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neuron(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("neuron", "fraction", "counts"),
    [
        (Neuron(8, window=8.0), 11, [1, 2, 4, 6, 8]),
        (Neuron(4, window=1.0), 14, [2, 4, 4, 4, 4]),
        (Neuron(8, window=30.0), 10, [0, 1, 1, 2, 2]),
        (LIF(1, threshold=0.5), 14, [0, 1, 1, 1, 1]),
        (LIF(1, threshold=2.0), 12, [0, 0, 0, 1, 1]),
        (LIF(1, tau=3.0, threshold=2.0), 12, [0, 0, 0, 1, 1]),
    ],
)
def test_neurons_that_fire_far_above_1_fire_in_16_bits_too(neuron, fraction, counts):
    graph = lower(Firing(neuron).eval(), INFO, membrane_bits=16)
    assert graph.membrane_fraction == fraction
    _, found = graph.run_with_counts(np.zeros((1, 3, 16, 16), np.uint8))
    assert found["neuron"][0, :, 0, 0].tolist() == counts


def test_a_neuron_beyond_all_potentials_is_refused():
    with pytest.raises(UserError, match=r"neuron: its largest count takes a potential of 39375"):
        lower(Firing(Neuron(32, window=4e4)).eval(), INFO, membrane_bits=16)
    model = Firing(LIF(1, threshold=2.0)).eval()
    with pytest.raises(UserError, match=r"of 16 bits with 14 fractional ones end at 1.99994"):
        lower(model, INFO, membrane_bits=16, membrane_fraction=14)


def test_a_constant_before_a_border_reaches_it_too():
    model = settled(Bordered)
    graph = lower(model, INFO)
    with torch.no_grad():
        expected = model(normalised(pixels().numpy(), graph.preprocessing))
    np.testing.assert_allclose(graph.logits(pixels().numpy()), expected.numpy(), atol=1e-4)


def test_a_model_with_nan_weights_is_refused(lively):
    model = lively()
    with torch.no_grad():
        model.stages[0].downsample.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"downsample\.norm: its weight holds NaN"):
        lower(model, info_for(model))


def test_ternary_weights_are_signs_and_zeros_in_two_bits(lively):
    model = lively(weight_bits="ternary")
    graph = lower(model, info_for(model))
    codes = [op.codes for op in graph.ops if isinstance(op, Conv) and op.bits == 2]
    assert len(codes) > 10
    assert set(np.unique(np.concatenate([c.ravel() for c in codes]))) == {-1, 0, 1}
