"""`benchmarks/found_figure.py`: the first pictures by name, row by row."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from shell import benchmark

SCRIPT = "found_figure.py"


def test_the_first_pictures_by_name_lie_row_by_row(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (9, 9, 9)]
    for index, colour in enumerate(colours):
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{index}.png")
    figure = tmp_path / "figures.png"
    assert benchmark(SCRIPT, tmp_path, figure, "--rows", 2, "--columns", 2).code == 0
    drawn = Image.open(figure).convert("RGB")
    assert drawn.size == (12, 8)
    assert [drawn.getpixel((x, y)) for y in (1, 5) for x in (1, 7)] == colours[:4]


def test_too_few_pictures_are_one_line(tmp_path: Path) -> None:
    done = benchmark(SCRIPT, tmp_path, tmp_path / "figure.png")
    assert done.code == 2
    assert "has 0 pictures: predict more images" in done.stderr
