from __future__ import annotations

import pytest

from qsdformer.analysis.energy import (
    COST_MODELS,
    DRAM_PJ_PER_BIT,
    E_AC_PJ,
    E_MAC_PJ,
    ON_CHIP_BITS,
    SRAM_PJ_PER_BIT,
    Row,
    add_energy,
    cost_model,
    mult_energy,
)
from qsdformer.errors import UserError


@pytest.mark.parametrize(
    ("bits", "pj"), [(8, 0.03), (32, 0.1), (4, 0.015), (20, 0.065), (None, 0.9)]
)
def test_additions_cost_horowitz_values_and_straight_lines_between(
    bits: int | None, pj: float
) -> None:
    assert add_energy(bits) == pytest.approx(pj)


@pytest.mark.parametrize(
    ("bits", "pj"),
    [((8, 8), 0.2), ((32, 32), 3.1), ((4, 3), 0.2 * 12 / 64), ((4, 16), 0.2), (None, 3.7)],
)
def test_multiplications_cost_by_the_product_of_their_operands_bits(
    bits: tuple[int, int] | None, pj: float
) -> None:
    assert mult_energy(bits) == pytest.approx(pj)


def test_an_fp32_mac_of_the_papers_is_a_multiplication_and_an_addition() -> None:
    assert pytest.approx(mult_energy(None) + add_energy(None)) == E_MAC_PJ
    assert add_energy(None) == E_AC_PJ


ROWS = [
    Row(name="stem", kind="mac", role="stem", estimate=10, count=8),
    Row(name="inner", kind="mac", role="inner", estimate=100, count=90),
    Row(name="layer", kind="ac", estimate=1000, count=900, additions=900, add_bits=8),
    Row(name="kv", kind="attention", estimate=10000, count=1, additions=1, add_bits=8),
    Row(name="neuron", kind="neuron", count=5, additions=20, add_bits=16),
]


def test_papers_charge_estimates_and_leave_out_inner_convolutions_and_neurons() -> None:
    assert cost_model("papers").energies(ROWS) == pytest.approx([46, 0, 900, 9000, 0])
    assert cost_model("papers-inner").energies(ROWS) == pytest.approx([46, 460, 900, 9000, 0])


def test_the_bit_aware_model_charges_exact_counts() -> None:
    energies = cost_model("bit-aware").energies(ROWS)
    assert energies[2:4] == pytest.approx([900 * 0.03, 0.03])
    assert energies[4] == pytest.approx(20 * add_energy(16))


def test_weights_are_read_from_dram_once_they_outgrow_the_chip() -> None:
    row = Row(name="layer", kind="ac", weights_read=ON_CHIP_BITS, moved=10)
    larger = Row(name="layer", kind="ac", weights_read=ON_CHIP_BITS + 1, moved=10)
    model = cost_model("memory")
    assert model.energies([row]) == pytest.approx([(ON_CHIP_BITS + 10) * SRAM_PJ_PER_BIT])
    expected = (ON_CHIP_BITS + 1) * DRAM_PJ_PER_BIT + 10 * SRAM_PJ_PER_BIT
    assert model.energies([larger]) == pytest.approx([expected])


def test_deviation_compares_the_estimate_with_the_exact_count() -> None:
    assert ROWS[2].deviation == pytest.approx(1000 / 900 - 1)
    assert ROWS[4].deviation is None


def test_an_unknown_cost_model_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UserError, match=r"'watts'.*" + ", ".join(COST_MODELS)):
        cost_model("watts")
