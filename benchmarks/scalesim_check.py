"""The dense array's cycles beside those of SCALE-Sim v3, layer by layer (optional).

SCALE-Sim (MIT, `pip install scalesim "numpy<2.4"`) simulates a systolic array, output stationary,
that fills and drains for every tile; here one tile follows the other without a gap. So

    SCALE-Sim = tiles * (fan-in + rows + columns - 2) - 1
    here = tiles * fan-in + rows + columns - 2

and what is compared is that both have the same tiles and the same fan-in.

    python benchmarks/scalesim_check.py
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

from scalesim.scale_sim import scalesim

# Pixels, outputs, fan-in of layers: q, MLPs and 3x3 convolutions of tiny and larger networks.
LAYERS = {
    "q": (16, 96, 96),
    "fc1": (196, 384, 96),
    "fc2": (196, 96, 384),
    "conv 3x3": (256, 64, 288),
    "head": (1, 10, 96),
}
ROWS, COLUMNS = 24, 64  # of dense-int
CONFIG = f"""
[general]
run_name = check
[architecture_presets]
ArrayHeight: {ROWS}
ArrayWidth: {COLUMNS}
IfmapSramSzkB: 256
FilterSramSzkB: 1024
OfmapSramSzkB: 256
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: os
Bandwidth: 64
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
SparseRep: ellpack_block
OptimizedMapping: false
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""


def scale_sim_cycles(folder: Path) -> list[int]:
    """Cycles of every layer, without the prefetch of operands."""
    rows = [f"{name}, {m}, {n}, {k}," for name, (m, n, k) in LAYERS.items()]
    files = {
        "scale.cfg": CONFIG,
        "layers.csv": "\n".join(["Layer, M, N, K,", *rows, ""]),
        "layout.csv": "Layer, x,\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    simulator = scalesim(
        save_disk_space=True,
        verbose=False,
        config=str(folder / "scale.cfg"),
        topology=str(folder / "layers.csv"),
        layout=str(folder / "layout.csv"),
        input_type_gemm=True,
    )
    simulator.run_scale(top_path=str(folder / "out"))
    [report] = folder.glob("out/**/COMPUTE_REPORT.csv")
    with report.open(newline="") as file:
        return [int(float(row[" Total Cycles"])) for row in csv.DictReader(file)]


def main() -> None:
    """Print both, and whether they differ by the fill of tiles alone."""
    with tempfile.TemporaryDirectory() as name:
        theirs = scale_sim_cycles(Path(name))
    skew = ROWS + COLUMNS - 2
    for (layer, (pixels, outputs, fan_in)), found in zip(LAYERS.items(), theirs, strict=True):
        tiles = -(-pixels // ROWS) * -(-outputs // COLUMNS)
        expected = tiles * (fan_in + skew) - 1
        same = "as expected" if found == expected else f"{expected:,} EXPECTED"
        print(f"{layer:10} SCALE-Sim {found:8,} ({same}), here {tiles * fan_in + skew:8,}")


if __name__ == "__main__":
    main()
