"""Published accelerators: what is derived here beside what was published with Prosperity.

    python benchmarks/published_accelerators.py

Times of MINT and Eyeriss follow from the shapes of our networks and the published density of
spikes; traffic to DRAM from the shapes; energies from traffic and time, the published time where
none is derived. SATO's time with equal loads and Prosperity's with nothing but the additions that
product sparsity leaves are what remains without the traces of spikes, which were not read.
"""

from __future__ import annotations

from qsdformer.accelerator.published.design import estimate, load_published
from qsdformer.accelerator.published.formulas import Prosperity
from qsdformer.accelerator.published.reference import Reference, peaks, references
from qsdformer.accelerator.published.workload import Workload

ROW = "{:<26} {:<11} {:>9} {:>9} {:>8} {:>9} {:>9} {:>8}"


def main() -> None:
    """Print the tables."""
    print(ROW.format("workload", "design", "ms", "published", "", "mJ", "published", ""))
    for reference in references():
        workload = reference.workload()
        for name in ("mint", "eyeriss", "sato", "ptb", "prosperity"):
            print(row(reference, workload, name))
    print("\n~ less than a derivation: SATO with equal loads, Prosperity's additions alone")
    print("\npeak rate, GSOP/s: lanes * operations * clock, published; W implied by the efficiency")
    for peak in peaks():
        print(f"{peak.name}: {peak.derived:g}, {peak.gsops:g}; {peak.watts:.3g} W")


def row(reference: Reference, workload: Workload, name: str) -> str:
    """One line of the table."""
    design = load_published(name)
    milliseconds, millijoules = reference.results[name]
    derived, about = None, ""
    if name in ("mint", "eyeriss", "sato"):
        derived, about = estimate(design, workload).milliseconds, "~" if name == "sato" else ""
    if isinstance(design.formula, Prosperity):
        additions = sum(
            x.rows * x.inputs * -(-x.outputs // design.formula.adders) for x in workload.layers
        )
        derived, about = design.milliseconds(additions * reference.product_density), "~"
    time = milliseconds if derived is None or about else derived
    dram = estimate(load_published("mint"), workload).prosperity_dram_bits
    energy = design.millijoules(time, dram)
    return ROW.format(
        reference.name,
        name,
        "-" if derived is None else f"{about}{derived:.2f}",
        f"{milliseconds:.2f}",
        "" if derived is None else f"{derived / milliseconds - 1:+.2%}",
        f"{energy:.3f}",
        f"{millijoules:.3f}",
        f"{energy / millijoules - 1:+.2%}",
    ).rstrip()


if __name__ == "__main__":
    main()
