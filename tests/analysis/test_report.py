from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from qsdformer import create_model
from qsdformer.analysis.report.collect import collect, membranes, read_curves
from qsdformer.analysis.report.sections import membrane_figures
from qsdformer.analysis.report.svg import Axes
from qsdformer.cli import run
from qsdformer.models.checkpoint import load_checkpoint, save_checkpoint

ALWAYS = {"loss", "accuracy", "membrane-q", "membrane-k", "membrane-v", "counts", "entropy"}
ALWAYS |= {"rates", "raster", "attention", "ledger", "twins"}
PARETO = {"pareto-size", "pareto-energy"}
VOID = {"meta", "link", "img", "br"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Checks that elements nest, and collects figures, table sizes and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures: dict[str, int] = {}  # drawings in each
        self.tables: list[int] = []  # body rows of each
        self.addresses: list[str] = []
        self.figure = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self.figure = values["data-figure"] or ""
            self.figures[self.figure] = 0
        if tag in ("svg", "img") and "figure" in self.open:
            self.figures[self.figure] += 1
        if tag == "table":
            self.tables.append(0)
        if tag == "tr" and "tbody" in self.open:
            self.tables[-1] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on three runs, one of them an ANN."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    names = [str(runs / name) for name in ("spiking", "plain", "ann")]
    assert run(["report", *names, "--limit", "32", "--output", str(path)]) == 0
    return path


def test_the_page_has_every_figure_and_a_row_for_every_operation(report: Path) -> None:
    page = Page(report.read_text())
    assert set(page.figures) == ALWAYS | PARETO
    assert min(page.figures.values()) >= 1
    assert page.tables[0] == 3
    assert page.tables[1] > 100


def test_the_page_needs_no_network(report: Path) -> None:
    text = report.read_text()
    assert all(address.startswith("data:") for address in Page(text).addresses)
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize("name", ["spiking", "lif"])
def test_a_single_run_has_no_pareto_plot(name: str, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.html"
    checkpoint = str(runs / name / "best.ckpt")
    assert run(["report", checkpoint, "--limit", "8", "--output", str(out)]) == 0
    assert set(Page(out.read_text()).figures) == ALWAYS


@pytest.mark.parametrize(
    ("names", "message"),
    [(["ann"], "no spiking neurons"), (["."], "has no last.ckpt"), (["missing"], "no checkpoint")],
)
def test_bad_input_gives_one_line_and_no_page(
    runs: Path, names: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert run(["report", *(str(runs / n) for n in names), "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


def test_curves_are_the_epoch_rows_of_the_metrics(runs: Path, tmp_path: Path) -> None:
    curves = read_curves(runs / "spiking" / "metrics.csv")
    assert curves["score"] == [(1.0, 0.45), (2.0, 0.65)]
    assert curves["train_loss"] == [(1.0, 2.0), (2.0, 1.2)]
    assert read_curves(tmp_path / "metrics.csv")["train_loss"] == []


@pytest.fixture(scope="module")
def window_of_counts() -> torch.nn.Module:
    """A settled E-SpikeFormer, whose neurons fire between 0 and D = 4."""
    torch.manual_seed(0)
    sizes = {"dims": (4, 6, 8, 8), "depth": 2, "heads": 2, "num_classes": 10, "in_channels": 1}
    model = create_model("e_spikeformer_tiny", **sizes)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 1, 32, 32))
    return model.eval()


def test_potentials_are_drawn_over_five_windows_of_their_neurons(
    window_of_counts: torch.nn.Module,
) -> None:
    images = torch.randn(4, 1, 32, 32)
    seen: list[torch.Tensor] = []
    neurons = [m for n, m in window_of_counts.named_modules() if n.endswith("q_neuron")]
    hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for m in neurons]
    with torch.no_grad():
        window_of_counts(images)
    for hook in hooks:
        hook.remove()
    found = membranes(window_of_counts, images)["q"]
    assert (found.window, found.range) == ((0, 4), (-8, 12))
    counts = sum(torch.histc(u, len(found.after), -8, 12) for u in seen)
    assert (found.after - counts / counts.sum()).abs().max() < 1e-4  # at borders of bins
    axes = Axes((-8, 12), (0, 1))
    left, width = axes.px(0), axes.px(4) - axes.px(0)
    page = membrane_figures({"q": found}, None)
    assert f'<rect class="window" x="{left:.1f}"' in page
    assert f' width="{width:.1f}" ' in page


def test_a_run_of_another_window_is_drawn_in_units_of_its_own(
    window_of_counts: torch.nn.Module, runs: Path
) -> None:
    images = torch.randn(4, 1, 32, 32)
    wide = membranes(window_of_counts, images)
    narrow = membranes(load_checkpoint(runs / "spiking" / "best.ckpt").model.eval(), images)
    assert (narrow["q"].window, narrow["q"].range) == ((0, 1), (-2, 3))
    assert "it, trained, × 0.25<" in membrane_figures(narrow, ("it", wide))
    assert "it, trained, × 4<" in membrane_figures(wide, ("it", narrow))
    assert "it, trained<" in membrane_figures(narrow, ("it", narrow))


@pytest.mark.parametrize(("name", "window"), [("plain", (0, 1)), ("lif", (0.3, math.inf))])
def test_the_window_shown_is_that_of_the_neurons(
    name: str, window: tuple[float, float], runs: Path
) -> None:
    model = load_checkpoint(runs / name / "best.ckpt").model.eval()
    found = membranes(model, torch.randn(2, 1, 32, 32))
    assert {one.window for one in found.values()} == {window}
    assert {one.range for one in found.values()} == {(-2, 3)}


@pytest.fixture
def both(runs: Path, tmp_path: Path) -> Path:
    """A run folder whose best and last checkpoints differ."""
    folder = tmp_path / "spiking"
    folder.mkdir()
    shutil.copy(runs / "spiking" / "best.ckpt", folder / "last.ckpt")
    shutil.copy(runs / "plain" / "best.ckpt", folder / "best.ckpt")
    return folder


def text_of(*words: str, tmp_path: Path) -> str:
    out = tmp_path / "report.html"
    assert run(["report", *words, "--limit", "32", "--output", str(out)]) == 0
    return re.sub(r"<[^>]*>", " ", out.read_text())


def test_the_report_of_a_run_is_on_weights_that_nothing_has_chosen(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_of(str(both), tmp_path=tmp_path)
    assert "test images of digits; weights: last.ckpt, of the last epoch: chosen on no" in text
    capsys.readouterr()
    assert run(["eval", str(both / "last.ckpt"), "--limit", "32", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    assert f"{top1:.2%} top-1 accuracy" in " ".join(text.split())


@pytest.mark.parametrize("given", [".", "last.ckpt"])
def test_a_run_seen_from_inside_its_folder_has_the_folders_name(
    given: str, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(both)
    assert collect(given, {}, limit=4, batch_size=4).name == "spiking"


def test_best_weights_say_on_which_images_they_were_chosen(both: Path, tmp_path: Path) -> None:
    best = str(both / "best.ckpt")
    text = text_of(best, tmp_path=tmp_path)
    assert "weights: best.ckpt, of the epoch that was most accurate on these very images" in text
    text = text_of(best, "--data.evaluate_on", "holdout", tmp_path=tmp_path)
    assert "on held-out training images of digits; weights: best.ckpt" in text
    assert "most accurate on test images of digits" in text


def test_runs_of_one_name_and_of_several_data_sets_are_told_apart(
    runs: Path, both: Path, tmp_path: Path
) -> None:
    other = tmp_path / "holdout.ckpt"
    loaded = load_checkpoint(runs / "spiking" / "best.ckpt")
    recipe = {"data": {"name": "digits", "evaluate_on": "holdout"}, "seed": 0}
    save_checkpoint(other, loaded.model, loaded.info, {"recipe": recipe})
    words = (str(runs / "spiking"), str(both), str(other))
    text = text_of(*words, tmp_path=tmp_path)
    assert f" {runs / 'spiking'} " in text
    assert f" {both} " in text
    rows = " ".join(text.split())
    assert f"{both} test images of digits last.ckpt" in rows
    assert "holdout held-out training images of digits holdout.ckpt" in rows


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_figure_sorts_every_table_and_reports_no_error(
    report: Path, width: int, tmp_path: Path
) -> None:
    # In a frame, because a headless window is at least 500 pixels wide.
    frame = tmp_path / "frame.html"
    page = html.escape(report.read_text(), quote=True)
    frame.write_text(
        f'<body style="margin:0"><iframe name="self-test" width={width} height=900 '
        f'style="border:0" srcdoc="{page}"></iframe><script>'
        "addEventListener('load', () => setTimeout(() => { document.documentElement.dataset.found"
        " = frames[0].document.documentElement.dataset.selfTest; }, 50));</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    options += ["--window-size=1300,900", "--virtual-time-budget=3000", "--dump-dom"]
    shown = subprocess.run(
        [str(CHROMIUM), *options, frame.as_uri()], capture_output=True, text=True, timeout=600
    )
    match = re.search(r'data-found="([^"]*)"', shown.stdout)
    assert match is not None, shown.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["failures"] == []
    assert found["width"] == width
    assert found["figures"] == len(ALWAYS | PARETO)
    assert found["sorted"] == 2 * (12 + 12)
    assert "CONSOLE" not in shown.stderr
