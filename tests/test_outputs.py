"""No command writes over what it reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from variants import info_for

from qsdformer.cli import run
from qsdformer.models.checkpoint import save_checkpoint

COMMANDS = {
    "export": ("export", "RUN/last.ckpt", "RUN/last.ckpt"),
    "export through a link": ("export", "RUN/last.ckpt", "LINK"),
    "import": ("import-reference", "RUN/last.ckpt", "RUN/last.ckpt", "--heads", "2"),
    "report": ("report", "RUN", "--output", "RUN/last.ckpt"),
    "report on a file": ("report", "RUN/last.ckpt", "--output", "RUN/last.ckpt"),
    "report on metrics": ("report", "RUN", "--output", "RUN/metrics.csv"),
    "bench": ("bench", "RUN/last.ckpt", "--csv", "RUN/last.ckpt"),
    "analyze": ("analyze", "RUN/last.ckpt", "--json", "RUN/last.ckpt"),
    "simulate": ("simulate", "RUN/last.ckpt", "--csv", "RUN/last.ckpt"),
    "simulate a design": ("simulate", "RUN/last.ckpt", "--design", "MINE", "--csv", "MINE"),
    "report on a design": ("report", "RUN", "--design", "MINE", "--output", "MINE"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_is_an_input_is_one_line_and_nothing_is_lost(
    name: str, lively, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    save_checkpoint(folder / "last.ckpt", lively())
    (folder / "metrics.csv").write_text("epoch\n")
    (folder / "recipe.yaml").write_text("name: mine\n")
    (tmp_path / "link.qsd").symlink_to(folder / "last.ckpt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    places = {"RUN": str(folder), "LINK": str(tmp_path / "link.qsd")}
    places["MINE"] = str(folder / "recipe.yaml")  # any file that a design may be in
    words = list(COMMANDS[name])
    for key, place in places.items():
        words = [word.replace(key, place) for word in words]
    assert run(words) == 2
    error = capsys.readouterr().err
    assert "is what is read and would be overwritten: choose another" in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_goes_to_standard_output_is_the_file_alone(lively, tmp_path: Path) -> None:
    model = lively()
    save_checkpoint(tmp_path / "a.ckpt", model, info_for(model))
    words = [sys.executable, "-m", "qsdformer", "export", str(tmp_path / "a.ckpt")]
    assert run([*words[3:], str(tmp_path / "a.qsd")]) == 0
    expected = (tmp_path / "a.qsd").read_bytes()
    words += ["/dev/stdout", "--format", "qsd"]
    piped = subprocess.run(words, check=True, capture_output=True)
    assert piped.stdout == expected
    assert b"/dev/stdout: written, for the checkpoint's" in piped.stderr
    with (tmp_path / "b.qsd").open("wb") as file:
        subprocess.run(words, check=True, stdout=file, stderr=subprocess.DEVNULL)
    assert (tmp_path / "b.qsd").read_bytes() == expected


def test_a_file_is_written_where_standard_output_is_closed(lively, tmp_path: Path) -> None:
    model = lively()
    save_checkpoint(tmp_path / "a.ckpt", model, info_for(model))
    words = f"{sys.executable} -m qsdformer export {tmp_path}/a.ckpt {tmp_path}/a.qsd >&-"
    done = subprocess.run(["bash", "-c", words], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "a.qsd").stat().st_size > 0


def test_two_outputs_in_one_file_and_ones_that_cannot_be_written_are_said_before_the_work(
    lively, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "a.ckpt", lively())
    (tmp_path / "file").write_text("mine")
    both = str(tmp_path / "out")
    for words, said in (
        (["--csv", both, "--json", both], "is given for two outputs: choose another for one"),
        (["--json", str(tmp_path)], "cannot write"),
        (["--json", str(tmp_path / "file" / "x.json")], "cannot write"),
        (["--json", "/proc/none/x.json"], "cannot write"),
    ):
        assert run(["analyze", str(tmp_path / "a.ckpt"), *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "file"]
