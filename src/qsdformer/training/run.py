"""One training run, from recipe, data and teacher to checkpoints."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from qsdformer.data.base import size_text
from qsdformer.data.lightning import LightningData
from qsdformer.errors import UserError, one_line
from qsdformer.files import write_json, write_text
from qsdformer.models import checkpoint
from qsdformer.nn.config import NetworkConfig, bits_text
from qsdformer.recipes.recipe import AnyConfig, Recipe, parse_saved
from qsdformer.recipes.tasks import Measures
from qsdformer.tasks.base import NetworkTask
from qsdformer.tasks.choice import TaskData, make_task
from qsdformer.tasks.optimisation import schedule_notes, step_size_notes
from qsdformer.tasks.teachers import Teacher
from qsdformer.terminal import say
from qsdformer.training.checkpointing import NonFiniteGuard, RunCheckpoints, SafeCheckpointIO
from qsdformer.training.folder import RESULT, Point, clear
from qsdformer.training.processes import FAMILY, Processes, environment, global_rank
from qsdformer.training.progress import Clock, Metrics, Report
from qsdformer.training.stopping import StopOnSigterm


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run has to show.

    `best` and `last` are what the task monitors, named `metric`: for classification accuracy, a
    fraction of the evaluation set.
    """

    metric: str
    best: float
    best_epoch: int
    last: float
    best_path: Path
    last_path: Path
    seconds: float  # without its teacher's training; of all its sessions, see `Clock`
    cpu_seconds: float  # of this process, all threads
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as result.json has them: best_accuracy, best_epoch, and so on."""
        values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        metric = values.pop("metric")
        names = {"best": f"best_{metric}", "last": f"last_{metric}"}
        return {names.get(name, name): value for name, value in values.items()}


def fit(
    recipe: Recipe,
    data: TaskData,
    *,
    teacher: Teacher | None = None,
    start: Point | None = None,
    console: Console,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train on `data` as `recipe` says, into its run folder, which is this process's already.

    `teacher` is for a recipe that distils; `start` is a checkpoint to go on from. A new run that
    fails before its first step leaves nothing in the folder. After SIGTERM: SystemExit(143), with
    last.ckpt saved in mid-epoch.
    """
    clock = Clock()
    folder = Path(recipe.output)
    task = make_task(recipe, data, teacher)
    measures = recipe.measures
    if start is not None:
        check_resume(start, recipe, task.model.config, console)
        start.drop_tensors()
    elif (weights := _first_weights(recipe, teacher)) is not None:
        for line in task.start_from(weights):
            say(console, line)
    metrics = Metrics(folder / "metrics.csv", measures, every=recipe.train.log_every)
    saver = RunCheckpoints(folder, measures, save_every=recipe.train.save_every)
    guard = NonFiniteGuard(saver.last_path, every=recipe.train.log_every)
    stop = StopOnSigterm(saver.last_path, console, guard, recipe.train.save_minutes)
    own = [guard, clock, metrics, Report(console, metrics), saver, stop]
    with _quiet_lightning():  # before anything is written: devices may be missing
        trainer = make_trainer(recipe, [*own, *callbacks], console)
    first = not is_worker(recipe)
    if first:
        if start is None or start.is_elsewhere(folder):
            clear(folder)
        (folder / RESULT).unlink(missing_ok=True)  # of fewer epochs
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        notes = (
            *data.notes,
            *schedule_notes(recipe.train, data.train_size),
            *step_size_notes(recipe.train, task.model),
        )
        for line in (_heading(recipe, task, data), *(f"note: {note}" for note in notes)):
            say(console, line)
    advice = f"go on with --resume from {saver.last_path}, if there is one by now"
    with _quiet_lightning(), _plain_interrupts(), _plain_errors(), FAMILY.training(advice), stop:
        try:
            path = None if start is None else start.path
            trainer.fit(task, datamodule=LightningData(data), ckpt_path=path, weights_only=True)
        except Exception:
            if trainer.global_step == 0 and first and start is None:
                clear(folder)
            raise
    result = TrainResult(
        metric=measures.name,
        best=saver.best,
        best_epoch=saver.best_epoch,
        last=float(trainer.callback_metrics.get(measures.monitored, saver.best)),
        best_path=saver.best_path,
        last_path=saver.last_path,
        **clock.times(),
        parameters=sum(p.numel() for p in task.model.parameters()),
    )
    if first:
        finish(result, measures, folder, console)
    return result


def _first_weights(recipe: Recipe, teacher: Teacher | None) -> str | None:
    """The checkpoint whose weights a run begins with, if any."""
    if recipe.starts_from_teacher:
        assert teacher is not None  # `parse_recipe` wants one that teaches
        return teacher.checkpoint
    return recipe.model.start_from


def make_trainer(
    recipe: Recipe, callbacks: list[Callback], console: Console | None = None
) -> Trainer:
    """Lightning's trainer as the recipe wants it."""
    config = recipe.train
    processes = config.devices * config.num_nodes
    folder = Path(recipe.output)
    try:
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=Processes(console or Console()) if processes > 1 else "auto",
            precision=_precision(recipe),
            max_epochs=config.epochs,
            gradient_clip_val=config.clip_grad,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO(), environment()],
            logger=_tensorboard(folder),
            use_distributed_sampler=False,  # the data module's samplers split by process
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            default_root_dir=folder,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = one_line(error, None)
        raise UserError(f"cannot train with these devices: {reason}") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    # Its handler of SIGTERM sends to other processes in mid-step; `StopOnSigterm` has its own.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    # What its handler would have noted is sent round before every step, for which a GPU is waited.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _tensorboard(folder: Path) -> TensorBoardLogger | bool:
    """TensorBoard's log, where it is installed; metrics.csv has the same values."""
    installed = importlib.util.find_spec("tensorboard") is not None
    return TensorBoardLogger(folder, name="tensorboard", version="") if installed else False


def check_resume(start: Point, recipe: Recipe, config: AnyConfig, console: Console) -> None:
    """Refuse a checkpoint of another model; say in which other keys the recipe has changed."""
    path = start.path
    checkpoint.check_same_model(start.header.get("model_config", {}), config, path)
    if not {"optimizer_states", "loops"} <= set(start.content):
        raise UserError(f"cannot resume from {path}: it has weights only, no training state")
    trained = parse_saved(start.header["extra"].get("recipe", {}))
    old = trained.to_dict()
    if start.epochs >= recipe.train.epochs:
        raise UserError(
            f"nothing to resume: {path} has been trained for {start.epochs} of "
            f"{recipe.train.epochs} epochs"
        )
    if start.in_epoch and (key := _another_epoch(trained, recipe)):
        raise UserError(
            f"cannot resume from {path}: it was left within an epoch, whose other images {key} "
            "decides; set that as it was there"
        )
    if (old["train"]["ema"] is None) != (recipe.train.ema is None):
        raise UserError(f"cannot resume from {path}: train.ema was {old['train']['ema']} there")
    if old["train"]["optimizer"] != recipe.train.optimizer:
        raise UserError(f"cannot resume from {path}: it was trained with another optimizer")
    for key, before, now in _changes(old, recipe.to_dict()):
        if key != "output":
            say(console, f"note: {key} was {before} in {path}, and is {now} now")


def _another_epoch(before: Recipe, now: Recipe) -> str | None:
    """The first key by which an epoch has other steps now; None if there is none."""
    if before.train.global_batch != now.train.global_batch:
        return "train.batch_size (or the number of processes)"
    if before.seed != now.seed:
        return "seed"
    # Not where images are (`root`), which may have another name on another machine.
    keys = (
        "name",
        "train_split",
        "train_limit",
        "evaluate_on",
        "skip_bad",
        "skip_empty",
        "min_size",
    )
    changed = (k for k in keys if getattr(before.data, k, None) != getattr(now.data, k, None))
    return next((f"data.{key}" for key in changed), None)


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in {**new, **old}:
        before, now = old.get(key), new.get(key)
        if isinstance(now, dict) and isinstance(before, dict):
            yield from _changes(before, now, f"{prefix}{key}.")
        elif before != now:
            yield prefix + key, before, now


def on_cuda(recipe: Recipe) -> bool:
    """Whether a run of this recipe computes on a GPU here."""
    return CUDAAccelerator.is_available() and recipe.train.accelerator != "cpu"


def _precision(recipe: Recipe) -> Any:
    wanted = recipe.train.precision
    cuda = on_cuda(recipe)
    if wanted == "auto":
        # Emulated it would be slower than float32.
        fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if fast else "32-true"
    if wanted == "16-mixed" and not cuda:
        raise UserError("train.precision=16-mixed needs a CUDA device: use 32-true or bf16-mixed")
    return wanted


def _heading(recipe: Recipe, task: NetworkTask, data: TaskData) -> str:
    whole: Any = task.model.config
    config: NetworkConfig = getattr(whole, "backbone", whole)
    size = sum(p.numel() for p in task.model.parameters()) / 1e6
    bits = bits_text(config.weight_bits)
    kind = f"D={config.levels} T={config.time_steps}" if config.is_spiking else "ANN"
    own = recipe.model.start_from is None or recipe.starts_from_teacher
    name = recipe.model.name if own else "fine-tuned model"
    if recipe.dense is not None:
        neck = bits_text(whole.bits)
        name += f" with {neck} {'spiking' if whole.heads.is_spiking else 'ANN'} neck and heads"
    return (
        f"{name} ({bits} weights, {config.neuron} {kind}, {size:.2f} M parameters) on "
        f"{recipe.data.name}: {data.train_size:,} training and {data.eval_size:,} evaluation "
        f"images of {size_text(data.info.image_size)} px, seed {recipe.seed}, into {recipe.output}"
    )


def finish(result: TrainResult, measures: Measures, folder: Path, console: Console) -> None:
    """Write result.json and say what came out."""
    write_json(folder / RESULT, result.to_dict())
    say(
        console,
        f"best {measures.word} {result.best:.2%} in epoch {result.best_epoch}, last "
        f"{result.last:.2%}, {result.seconds:,.0f} s: {result.best_path}",
    )


def is_worker(recipe: Recipe) -> bool:
    """Whether this process has a rank other than 0: it writes and prints nothing."""
    return global_rank(recipe.train) > 0


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's banners and its advice to developers; errors stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Ctrl-C as KeyboardInterrupt again, which Lightning turns into SystemExit(1).

    And heard again afterwards: Lightning leaves it ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


# What errors of PyTorch say, and what that means for a user.
REMEDIES = {
    "Expected more than 1 value per channel": "a batch norm has one value a channel to learn from, "
    "of a batch of one image with a map of one pixel: set --batch_size 2 or a larger --image_size",
    "DataLoader worker": "a process that loads images was killed, most likely for want of memory "
    "or of shared memory (/dev/shm): set --data.workers lower, 0 for none",
}
COMPILERS = ("torch._inductor", "torch._dynamo")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Some errors of PyTorch as a `UserError` that says what to do."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        for said, remedy in REMEDIES.items():
            if said in str(error):
                raise UserError(remedy) from error
        if type(error).__module__.startswith(COMPILERS):
            raise UserError(
                f"train.compile=true: cannot compile here: {one_line(error, None)}; install a C++ "
                "compiler and Python's headers (g++, python3-dev), or set --compile false"
            ) from error
        raise
