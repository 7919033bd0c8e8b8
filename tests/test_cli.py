import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense.networks import detection_config, info_of, segmentation_config, settled
from PIL import Image

from qsdformer import __version__
from qsdformer.cli import COMMANDS, run
from qsdformer.data import DataConfig, DataModule
from qsdformer.models.checkpoint import load_checkpoint, save_checkpoint
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.recipes import packaged_grids, packaged_recipes

SMALL = [
    "--dims=[8,16,16,16]",
    "--depth=2",
    "--heads=2",
    "--image_size=16",
    "--train_limit=320",
    "--epochs=2",
    "--accelerator=cpu",
]


def command(*words: str, preexec: Callable[[], None] | None = None) -> subprocess.CompletedProcess:
    """The installed command's process, with its allocator restart and single-threaded."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "qsdformer", *words],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=preexec,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small training on digits through the command."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = command("train", "digits", *SMALL, "--output", str(folder), "--lr", "8e-3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert "M parameters) on digits: 320 training and 360 evaluation images" in lines[0]
    assert [line.split()[1] for line in lines[1:3]] == ["1/2", "2/2"]
    assert lines[3].startswith("best accuracy")
    return folder


@pytest.fixture
def digit_png(tmp_path: Path) -> Path:
    from sklearn.datasets import load_digits

    path = tmp_path / "digit.png"
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(path)
    return path


def test_eval_needs_only_the_checkpoint(trained: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = str(trained / "best.ckpt")
    assert run(["eval", checkpoint, "--json", "--batch-size", "100"]) == 0
    values = json.loads(capsys.readouterr().out)
    stored = load_checkpoint(checkpoint).extra["val_accuracy"]
    assert values["top1"] == pytest.approx(stored)
    assert values["images"] == 360
    assert values["top5"] >= values["top1"]
    assert run(["eval", checkpoint]) == 0
    assert f"top-1 {stored:.2%}" in capsys.readouterr().out


def test_predict_names_classes(
    trained: Path, digit_png: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["predict", str(trained / "best.ckpt"), str(digit_png), str(digit_png)]
    assert run([*words, "--json", "--top", "3"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    assert first["image"] == str(digit_png)
    shares = [entry["probability"] for entry in first["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert {entry["class"] for entry in first["classes"]} <= set("0123456789")
    assert run(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("command", ["eval {}", "predict {} a.png", "simulate {} --design {}"])
def test_a_name_that_is_too_long_for_a_file_is_one_line(
    command: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(command.format("x" * 300 + ".qsd", "x" * 300).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("qsd: error: ")
    assert error.count("\n") == 1


def test_predict_holds_few_large_images_at_a_time(
    trained: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["predict", str(trained / "best.ckpt"), *[str(digit_png)] * 5]
    held: list[int] = []

    def noted(model: Any, info: Any) -> Any:
        def predict(opened: Any) -> Any:
            held.append(len(opened))
            return []

        return predict

    monkeypatch.setattr("qsdformer.commands.predict._classes", lambda classify: noted(0, 0))
    assert run(words) == 0
    monkeypatch.setattr("qsdformer.commands.predict.MOST_PIXELS", 100)  # of 8x8 pixels each
    assert run(words) == 0
    assert held == [5, 2, 2, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--min-score", "0.5"], "--min-score is for detection models: leave it out"),
        (["--output", "x"], "--output is for segmentation and detection models: leave it out"),
    ],
)
def test_predict_refuses_options_of_other_tasks(
    given: list[str], said: str, trained: Path, digit_png: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(["predict", str(trained / "best.ckpt"), str(digit_png), *given]) == 2
    assert capsys.readouterr().err == f"qsd: error: {said}\n"


def test_predict_takes_folders_and_goes_on_after_a_bad_file(
    trained: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(digit_png.read_bytes())
    (folder / "b.png").write_text("no image")
    words = ["predict", str(trained / "best.ckpt"), str(folder.parent), str(digit_png)]
    assert run(words) == 2
    out, err = capsys.readouterr()
    named = [line.partition(": ")[0] for line in out.splitlines()]
    assert named == [str(folder / "a.png"), str(folder / "c.png"), str(digit_png)]
    assert err.startswith(f"qsd: error: cannot read image {folder / 'b.png'}: not an image")
    assert len(err.splitlines()) == 1
    assert run([*words, "--json"]) == 2
    assert [entry["image"] for entry in json.loads(capsys.readouterr().out)] == named
    (tmp_path / "empty").mkdir()
    assert run([*words[:2], str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_through_the_command_goes_on_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    last = trained / "last.ckpt"
    words = ["train", "digits", *SMALL, "--epochs", "3", "--lr", "8e-3", "--resume", str(last)]
    done = command(*words, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "note: train.epochs was 2" in done.stdout
    assert "epoch   3/3" in done.stdout
    assert "epoch   2/3" not in done.stdout


BAD = {
    "train digits --epoch 3": "did you mean --epochs?",
    "train digits --train.batch-size 3": "did you mean --train.batch_size?",
    "train digits --levels 0": "model.levels=0",
    "train digits --weight_bits 9": "model.weight_bits=9",
    "train digits --heads 5": "does not divide",
    "train digits --image_size 1000000": "data.image_size=1000000: must be 1 to 8192 pixels",
    "train digits --depth 10000000": "depth=10000000: must be at most 1024",
    "train digits --output {file}/run": "cannot write to {file}/run",
    "train digits --output {trained}": "is not empty",
    "train digits --resume {tmp}/none.ckpt --output {tmp}/none": "nothing to resume",
    "train digits --resume --overwrite --output {tmp}/none": "one of --resume and --overwrite",
    "train digits --resume --output {tmp}": "is not empty",
    "train digits --resume {best} --output {tmp}/none": "its model has",
    "train digits spare": "unexpected argument 'spare'",
    "train fashion-mnist-tiny --root {tmp}": "{tmp}",
    "train nowhere.yaml": "no recipe 'nowhere.yaml'",
    "eval {tmp}/absent.ckpt": "no checkpoint",
    "eval {file}": "not a checkpoint",
    "eval {trained}": "did you mean {best}?",
    "eval {best} --lr 3": "is for qsd train",
    "eval {best} --image_size 4": "this model needs",
    "eval {three}": "does not say which images it was trained on",
    "eval {three} --data.name digits": "has 3 classes, but the dataset has 10",
    "predict {best} {file}": "cannot read image {file}",
    "predict {best} {tmp}/absent.png": "absent.png",
    "predict {three} {file}": "does not say what its images look like",
    "import-reference {tmp}/absent.pth {tmp}/out": "absent.pth",
    "ablate {best}": "cannot read ablation {best}",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line_and_exit_status_2(
    words: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file, three = tmp_path / "file", tmp_path / "three.ckpt"
    file.write_text("not an image\n")
    model = load_checkpoint(trained / "best.ckpt").model
    model.reset_classifier(3)
    save_checkpoint(three, model)
    before = sorted(tmp_path.iterdir())
    names = {"file": file, "tmp": tmp_path, "three": three, "trained": trained}
    names["best"] = trained / "best.ckpt"
    assert run(words.format(**names).split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("qsd: error: ")
    assert captured.err.count("\n") == 1
    assert BAD[words].format(**names) in captured.err
    assert sorted(tmp_path.iterdir()) == before


OF_TASK = {
    "classification": ["--activity"],
    "segmentation": ["--inference", "slide"],
    "detection": ["--results", "{tmp}/found.json"],
}


@pytest.mark.parametrize("task", OF_TASK)
def test_eval_refuses_options_of_other_tasks(
    task: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint, exported = tmp_path / "model.ckpt", tmp_path / "model.qsd"
    if task == "classification":
        checkpoint = trained / "best.ckpt"
    else:
        config = detection_config() if task == "detection" else segmentation_config()
        save_checkpoint(checkpoint, settled(config), info_of(32))
    assert run(["export", str(checkpoint), str(exported)]) == 0
    capsys.readouterr()
    for other in set(OF_TASK) - {task}:
        words = [word.format(tmp=tmp_path) for word in OF_TASK[other]]
        for file in (checkpoint, exported):
            assert run(["eval", str(file), *words]) == 2
            wanted = f"qsd: error: {words[0]} is for {other} models: leave it out\n"
            assert capsys.readouterr().err == wanted
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian digits", "'trian' is not a command: did you mean train?"),
        ("digit", "'digit' is not a command: did you mean digits?"),
        ("nonsense", "'nonsense' is not a command; qsd --help lists the commands"),
        ("eval", "the following arguments are required: MODEL; qsd eval --help says more"),
        ("eval x --lmit 3", "unknown option --lmit: did you mean --limit?"),
        ("eval x --limit", "argument --limit: expected one argument; qsd eval --help says more"),
        ("predict x.qsd a.png --tpo 3", "qsd predict does not take --tpo: did you mean --top?"),
        ("recipes x", "qsd recipes does not take x; qsd recipes --help lists what it does"),
    ],
)
def test_what_is_mistyped_is_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words.split()) == 2
    assert capsys.readouterr().err == f"qsd: error: {said}\n"


def test_a_grid_is_told_from_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bits.yaml").write_text("recipe: digits\nvariants:\n  - {name: one}\n")
    said = {
        "bits.yaml": "bits.yaml is a recipe, not a command: qsd ablate bits.yaml",
        "train ablation-activity": "ablation-activity is a grid, not a recipe: qsd ablate "
        "ablation-activity",
        "train digits --schedule cosine": "option --schedule may mean train.schedule or "
        "distill.schedule: give the full name",
        "train fashion-scenes --train.label_smoothing 0.1": "train.label_smoothing: detectors' "
        "losses have none, leave it out",
    }
    for words, line in said.items():
        assert run(words.split()) == 2
        assert capsys.readouterr().err == f"qsd: error: {line}\n"
    assert run(["train", "x" * 300]) == 2
    assert "no recipe 'xxx" in capsys.readouterr().err


def test_recipes_lists_those_to_train_before_the_grids(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    grids = lines.index("qsd ablate GRID:")
    assert lines[0] == "qsd train RECIPE:"
    assert [line.split()[0] for line in lines[1:grids]] == list(packaged_recipes())
    assert [line.split()[0] for line in lines[grids + 1 :]] == list(packaged_grids())


def test_what_only_training_uses_is_no_option_of_other_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("eval", "analyze", "report", "export", "verify", "simulate"):
        options = shown(name, "--help", capsys=capsys)
        assert "--data.root" in options
        assert "--data.mixup" not in options
    assert "--data.mixup" in shown("train", "--help", capsys=capsys)
    assert run(["eval", "x.ckpt", "--mixup", "0.5"]) == 2
    wanted = "qsd: error: option --mixup is for qsd train, not for this command\n"
    assert capsys.readouterr().err == wanted


# Runs each of several commands and tells whether any of the packages had to be imported for one.
WITHOUT = """
import sys
from qsdformer.cli import run
packages, *commands = sys.argv[1:]
for words in commands:
    try:
        run(words.split())
    except SystemExit:
        pass
    assert not {*packages.split()} & {*sys.modules}, words
"""


def run_without(packages: str, *commands: str) -> subprocess.CompletedProcess[str]:
    """Commands run in one process that fails where they import any of some packages."""
    words = [sys.executable, "-c", WITHOUT, packages, *commands]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_help_recipes_and_bad_keys_need_no_pytorch() -> None:
    words = [f"{name} --help" for name, *_ in COMMANDS]
    words += ["recipes", "train digits --help", "train digits --levels 0", "digits --help"]
    done = run_without("torch", *words)
    assert "fashion-mnist-tiny-distilled Fashion-MNIST: " in " ".join(done.stdout.split())
    assert "model.levels=0" in done.stderr


def test_a_classifier_is_exported_and_measured_without_what_takes_seconds_to_import(
    make_model: Callable[..., MetaSpikeFormer], tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    info = DataModule(DataConfig(name="digits"), batch_size=1).info
    save_checkpoint(path, make_model(in_channels=1, num_classes=10), info)
    done = run_without(
        "timm torchvision lightning torchmetrics",
        f"export {path} {tmp_path}/a.qsd",
        f"eval {path} --data.name digits",
        f"eval {tmp_path}/a.qsd --data.name digits",
    )
    assert [line.count("top-1") for line in done.stdout.splitlines()] == [0, 1, 1]


def shown(*words: str, capsys: pytest.CaptureFixture) -> str:
    """The help that a command prints, on one line where there is room for it."""
    with pytest.raises(SystemExit) as caught:
        run(words)
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_of_a_recipe_shows_its_values(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # or it is broken inside of names
    text = shown("train", "digits-lif", "--help", capsys=capsys)
    assert "passes over the training set; a whole number (digits-lif: 15)" in text
    assert "one of ielif, lif, relu, gelu (digits-lif: lif)" in text
    assert "a whole number or none (digits-lif: none)" in text
    assert "run folder; text (digits-lif: runs/digits-lif)" in text
    assert "of the fine-grained loss; a number (default: 1.0)" in text  # it has no such section
    assert shown("digits-lif", "--help", capsys=capsys) == text
    assert "(default: 10)" in shown("train", "--help", capsys=capsys)
    (tmp_path / "mine.yaml").write_text("recipe: digits\ntrain: {epochs: 77}\n")
    monkeypatch.chdir(tmp_path)
    assert "(mine.yaml: 77)" in shown("mine.yaml", "-h", capsys=capsys)


def test_a_bare_command_shows_the_help_and_a_recipe_alone_what_to_type(
    capsys: pytest.CaptureFixture,
) -> None:
    assert run([]) == 0
    assert "COMMAND" in capsys.readouterr().out
    assert run(["digits"]) == 2
    assert "qsd train digits" in capsys.readouterr().err
    assert run(["ablation-fashion-mnist"]) == 2
    assert "qsd ablate ablation-fashion-mnist" in capsys.readouterr().err


def test_help_shows_every_command() -> None:
    done = command("--help")
    shown_help = " ".join(done.stdout.split())  # lines are broken
    for name, _, summary in COMMANDS:
        assert f" {name} {summary}" in shown_help
    assert command("--version").stdout.strip() == f"qsd {__version__}"


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS])
def test_every_command_has_help_with_defaults(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        run([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: qsd {name}")
    assert "default" in text or name == "recipes"  # which has no options with one


@pytest.mark.slow
def test_full_disk_is_one_line_and_the_old_checkpoint_survives(
    trained: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes

    old = (trained / "last.ckpt").read_bytes()
    assert len(old) > 100_000
    last = tmp_path / "last.ckpt"
    last.write_bytes(old)
    words = ["train", "digits", *SMALL, "--epochs=3", "--resume", "--output", str(tmp_path)]
    done = command(*words, preexec=limit)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert done.stderr.count("\n") == 1
    assert last.read_bytes() == old
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") or p.name == "best.ckpt"]


@pytest.mark.slow
def test_two_processes_train_as_well_as_one(tmp_path: Path) -> None:
    accuracy = {}
    for devices, batch in ((1, 32), (2, 16)):
        folder = tmp_path / str(devices)
        words = f"--epochs 3 --image_size 16 --devices {devices} --batch_size {batch}".split()
        done = command("train", "digits", *words, "--accelerator=cpu", "--output", str(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch   3/3") == 1
        accuracy[devices] = json.loads((folder / "result.json").read_text())["best_accuracy"]
    assert min(accuracy.values()) > 0.8
    # 360 images: three standard deviations of a difference at 90 % are 0.07.
    assert abs(accuracy[1] - accuracy[2]) < 0.07


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_output_that_is_not_utf_8_gets_what_it_can_show(
    trained: Path, tmp_path: Path, settings: dict[str, str], digit_png: Path
) -> None:
    image, artifact = tmp_path / "sept-décès.png", tmp_path / "model.qsd"
    digit_png.rename(image)
    assert run(["export", str(trained / "best.ckpt"), str(artifact)]) == 0
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **settings}
    for name, status in ((str(image), 0), (f"{image}.absent", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "qsdformer", "predict", str(artifact), name],
            capture_output=True,
            env=environment,
            timeout=240,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr
        assert (done.stdout + done.stderr).isascii()


def test_running_out_of_memory_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        MemoryError("Unable to allocate 3. TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried 1 bytes"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("qsdformer.tasks.evaluation.evaluate_logits", fail)
        assert run(["eval", str(trained / "best.ckpt")]) == 2
        message = capsys.readouterr().err
        assert message.startswith("qsd: error: out of memory: choose a smaller batch")
        assert message.count("\n") == 1


def test_a_class_whose_name_is_not_utf_8_is_trained_exported_and_reported(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in (b"caf\xe9", b"dog"):
            folder = os.path.join(os.fsencode(tmp_path), b"images", part.encode(), name)
            try:
                os.makedirs(folder)
            except OSError:
                pytest.skip("this file system has names of text only")
            for i in range(2):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                with open(os.path.join(folder, b"%d.png" % i), "wb") as file:
                    Image.fromarray(pixels).save(file, "PNG")
    last = tmp_path / "run" / "last.ckpt"
    words = f"train imagenet --model.name metaspikeformer_tiny --root {tmp_path}/images --epochs 1"
    words += " --dims=[8,16,16,16] --depth=2 --heads=2 --image_size 32 --batch_size 2 --devices 1"
    words += f" --accelerator cpu --workers 0 --output {tmp_path}/run"
    assert run(words.split()) == 0
    assert load_checkpoint(last).info.class_names == ("caf\\xe9", "dog")  # type: ignore[union-attr]
    assert run(["export", str(last), str(tmp_path / "model.qsd")]) == 0
    assert run(["report", str(last), "--output", str(tmp_path / "report.html")]) == 0
    assert run(["eval", str(last)]) == 0
    assert run(["eval", str(tmp_path / "model.qsd"), "--root", f"{tmp_path}/images"]) == 0


@pytest.mark.slow
def test_imagenet_recipe_runs_on_a_small_image_folder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog", "eel"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (80, 96, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    words = f"--model.name metaspikeformer_tiny --root {tmp_path}/images --image_size 64 --epochs 1"
    rest = "--batch_size 4 --devices 1 --workers 1 --accelerator cpu"
    done = command(
        "train", "imagenet", *words.split(), *rest.split(), "--output", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    loaded = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert loaded.info is not None
    assert loaded.info.class_names == ("cat", "dog", "eel")
    assert loaded.extra["recipe"]["train"]["optimizer"] == "lamb"
