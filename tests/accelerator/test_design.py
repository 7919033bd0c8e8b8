"""Design files: every number with its source, and one line for whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accelerator.networks import family_graph, pixels, plain_values, small_design
from qsdformer.accelerator.design import designs, load_design, parse_design
from qsdformer.accelerator.simulate import simulate
from qsdformer.analysis.energy import SRAM_PJ_PER_BIT, sram_energy
from qsdformer.errors import UserError


@pytest.mark.parametrize("name", ["sdt-sparse", "dense-int"])
def test_packaged_designs_have_a_source_for_every_number(name: str) -> None:
    design = load_design(name)
    assert name in designs()
    assert all(source.strip() for source in design.sources.values())
    assert len(design.sources) > 20


def test_the_peak_of_the_sparse_design_is_what_is_reported_of_it() -> None:
    assert load_design("sdt-sparse").peak_gsops == pytest.approx(307.2)


def test_the_dense_competitor_has_the_same_adders_memory_and_clock() -> None:
    sparse, dense = load_design("sdt-sparse"), load_design("dense-int")
    for what in ("adders", "kib", "clock_mhz", "dram_bits", "leakage_mw"):
        assert getattr(sparse, what) == getattr(dense, what)


def test_the_energy_of_a_memory_passes_through_the_table() -> None:
    assert sram_energy(8) * 64 == pytest.approx(10)
    assert sram_energy(32) * 64 == pytest.approx(20)
    assert sram_energy(1024) == pytest.approx(SRAM_PJ_PER_BIT)
    assert sram_energy(2) == pytest.approx(sram_energy(8) / 2)


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    values = plain_values()
    change(values)
    return values


def zero_lanes(values: dict[str, Any]) -> None:
    values["units"]["linear"]["lanes"]["value"] = 0


def unknown_encoding(values: dict[str, Any]) -> None:
    values["encoding"]["value"] = "adress"


def no_source(values: dict[str, Any]) -> None:
    del values["clock_mhz"]["source"]


def empty_source(values: dict[str, Any]) -> None:
    values["clock_mhz"]["source"] = " "


def text_for_number(values: dict[str, Any]) -> None:
    values["units"]["pool"]["engines"]["value"] = "many"


def endless(values: dict[str, Any]) -> None:
    values["buffers"]["weights"]["kib"]["value"] = float("inf")


def no_number(values: dict[str, Any]) -> None:
    values["clock_mhz"]["value"] = float("nan")


def beyond_floats(values: dict[str, Any]) -> None:
    values["clock_mhz"]["value"] = 10**400


def below_floats(values: dict[str, Any]) -> None:
    values["clock_mhz"]["value"] = -(10**400)


def two_lanes(values: dict[str, Any]) -> None:
    values["units"]["pool"]["lanes"]["value"] = 2


def misspelt(values: dict[str, Any]) -> None:
    values["units"]["lineer"] = values["units"].pop("linear")


def dense_kind(values: dict[str, Any]) -> None:
    values["kind"] = "dense"


def without_encoder(values: dict[str, Any]) -> None:
    values["units"]["encoder"] = "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["units"].pop("pool"), "units.pool is missing; none if the design has no"),
        (lambda v: v.pop("buffers"), "buffers is missing"),
        (lambda v: v.update(name="other"), "leave name out: a design has the name of its file"),
        (zero_lanes, "units.linear.lanes=0: must be above 0"),
        (unknown_encoding, "encoding='adress': must be one of bitmap, address, address+count"),
        (no_source, "clock_mhz must be {value: ..., source: ...}"),
        (empty_source, "clock_mhz has no source"),
        (text_for_number, "units.pool.engines='many': must be a whole number"),
        (endless, "buffers.weights.kib=inf: must be at most 1048576"),
        (no_number, "clock_mhz=nan: must be above 0"),
        (beyond_floats, "0: must be at most 1048576"),
        (below_floats, "0: must be above 0"),
        (two_lanes, "units.pool.lanes=2: must be 1, an engine takes an entry a cycle"),
        (misspelt, "unknown key units.lineer: did you mean units.linear?"),
        (dense_kind, "units.linear is of a sparse design, and kind is dense"),
        (without_encoder, "units.encoder: no network does without it"),
    ],
)
def test_a_design_that_is_not_right_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse_design(broken(change), "mine")
    assert message in str(caught.value)
    assert str(caught.value).startswith("design mine: ")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_design_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no design 'sdt-spars'.*did you mean sdt-sparse"):
        load_design("sdt-spars")


def test_a_published_design_is_no_design_to_load() -> None:
    with pytest.raises(UserError, match="'mint' is published, a formula without units"):
        load_design("mint")


def test_a_graph_that_needs_a_unit_the_design_has_not_is_refused() -> None:
    values = plain_values()
    values["units"]["attention"] = "none"
    design = parse_design(values, "mine")
    with pytest.raises(UserError, match=r"no unit for attention by q \(k\^T v\).*is none"):
        simulate(family_graph("e-spikeformer", levels=4), design, pixels())
    assert simulate(family_graph("sdt", levels=4), design, pixels()).differing == 0


@pytest.mark.parametrize(
    ("buffer", "kib", "message"),
    [
        ("weights", 0.01, r"stem\.\S+: buffers.weights of 0.01 KiB .* one output needs 0\.\d+ KiB"),
        ("spikes", 0.01, r"stem\.\S+: buffers.spikes of 0.01 KiB .* longest list needs 0\.\d+ KiB"),
        ("membranes", 0.01, r"buffers.membranes of 0.01 KiB .* one row of its map needs"),
        ("accumulators", 0.01, r"buffers.accumulators of 0.01 KiB .* one output needs"),
    ],
)
def test_a_buffer_too_small_for_a_layer_says_what_would_fit(
    buffer: str, kib: float, message: str
) -> None:
    changes = {f"buffers__{buffer}__kib": kib, "units__convolution__order": "scatter"}
    with pytest.raises(UserError, match=message):
        simulate(family_graph("sdt", levels=4), small_design(**changes), pixels())
