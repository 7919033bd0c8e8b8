"""`qsd report` on runs of dense networks."""

from __future__ import annotations

import json
import re

from analysis.test_report import PARETO, Page

from qsdformer.cli import run


def values_of(path, capsys, *more):
    """What `qsd eval` measures."""
    capsys.readouterr()
    assert run(["eval", str(path), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def report(tmp_path, *words):
    out = tmp_path / "report.html"
    assert run(["report", *map(str, words), "--output", str(out)]) == 0
    return out.read_text()


def cards(page):
    """Values by what the cards call them."""
    pattern = r'<div class="card"><b>([^<]*)</b><span>([^<]*)</span>'
    return {name: value for value, name in re.findall(pattern, page)}


def rows(page, number=0):
    """Cells by heading of each row of a table."""
    table = re.findall(r"<table>.*?</table>", page, re.DOTALL)[number]
    headings = re.findall(r"<button>([^<]*)</button>", table)
    lines = re.findall(r"<tr>(<td.*?)</tr>", table)
    cells = (re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in lines)
    return [dict(zip(headings, line, strict=True)) for line in cells]


def charts(page):
    return set(re.findall(r'aria-label="([^"]*) against ', page))


def test_runs_of_two_measures_share_no_axis(dense_runs, tmp_path, capsys):
    segmenter, retinanet = dense_runs / "segmenter", dense_runs / "retinanet"
    page = report(tmp_path, segmenter, retinanet, "--limit", "1")
    figures = set(Page(page).figures)
    assert not figures & (PARETO | {"accuracy"})
    assert {"loss", "miou", "map50", "twins"} <= figures
    limit = ("--limit", "1")
    miou = f"{values_of(segmenter / 'last.ckpt', capsys, *limit)['miou']:.2%}"
    ap50 = f"{values_of(retinanet / 'last.ckpt', capsys, *limit)['box_ap50']:.2%}"
    assert (cards(page)["mIoU"], cards(page)["of images"]) == (miou, "1")
    assert [(row["mIoU"], row["box AP50"]) for row in rows(page)] == [(miou, "–"), ("–", ap50)]
    assert "top-1" not in page


def test_only_runs_of_one_measure_are_compared(dense_runs, tmp_path):
    names = ("segmenter", "retinanet", "float_heads")
    page = report(tmp_path, *(dense_runs / name for name in names), "--limit", "1")
    assert set(Page(page).figures) > PARETO
    assert charts(page) == {"mIoU (%)"}
    assert [row["run"] for row in rows(page) if row["mIoU"] != "–"] == ["segmenter", "float_heads"]
    assert [row["bit-aware"].endswith(" *") for row in rows(page)] == [False, False, True]
    note = "of float_heads are without its full-precision neck and heads"
    assert page.count(note) == 2  # below the table and below the plot of energies


def test_a_report_says_that_energies_are_of_a_part(dense_runs, tmp_path):
    page = report(tmp_path, dense_runs / "float_heads", "--limit", "1")
    note = "Energies, operations and rates of float_heads are without its full-precision neck and"
    assert page.count(note) == 4  # head, table of runs, energy by kind, twins
    head, _, _ = page.partition('<div class="cards">')
    assert note in head


def test_a_mask_rcnn_has_its_masks_and_its_heads_for_regions_in_the_report(
    dense_runs, tmp_path, capsys
):
    rcnn, retinanet = dense_runs / "mask_rcnn", dense_runs / "retinanet"
    page = report(tmp_path, rcnn, retinanet, "--design", "dense-int")
    assert "without: box head for each region, mask head for each region.</p>" in page
    values = values_of(rcnn / "last.ckpt", capsys)
    assert values["box_ap50"] > 0
    for kind in ("box", "mask"):
        assert cards(page)[f"{kind} AP50"] == f"{values[f'{kind}_ap50']:.2%}"
    assert [row["mask AP50"] == "–" for row in rows(page)] == [False, True]
    assert charts(page) == {"box AP50 (%)"}
    figures = set(Page(page).figures)
    assert figures > PARETO
    assert "twins" not in figures
    operations = {row["operation"] for row in rows(page, 1)}
    assert {"box_head.fc1.linear", "mask_predictor.masks", "post-processing"} <= operations
    parts = [row["part"] for row in rows(page, 2)]
    assert parts == ["backbone", "neck", "heads", "post-processing"]
    assert "images of coco in val; weights: last.ckpt" in page


def test_an_ann_with_boxes_is_one_line(dense_runs, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert run(["report", str(dense_runs / "ann"), "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert "ann is an ANN for detection: the report shows spiking ones" in error
    assert error.count("\n") == 1
    assert not out.exists()
