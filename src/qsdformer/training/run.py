"""A training run from recipe to checkpoints."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from qsdformer.data import DataInfo, DataModule
from qsdformer.errors import UserError, one_line
from qsdformer.files import write_json, write_text
from qsdformer.models import checkpoint
from qsdformer.models.base import SpikingTransformer
from qsdformer.recipes.recipe import Recipe
from qsdformer.tasks.classification import Classification
from qsdformer.training.checkpointing import (
    BEST,
    LAST,
    NonFiniteGuard,
    RunCheckpoints,
    SafeCheckpointIO,
)
from qsdformer.training.progress import Metrics, Report

TEACHER = "teacher"  # folder, in the student's, of a teacher that had to be trained
# What a run writes, and all that --overwrite may remove.
RUN_FILES = (BEST, LAST, "recipe.yaml", "metrics.csv", "result.json", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run has to show. Accuracies are fractions of the evaluation set."""

    best_accuracy: float
    best_epoch: int
    last_accuracy: float
    best_path: Path
    last_path: Path
    seconds: float
    cpu_seconds: float  # of this process, all threads
    parameters: int


def train(
    recipe: Recipe,
    *,
    resume: str | os.PathLike[str] | bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train as `recipe` says, into the folder `recipe.output`.

    `resume` is a checkpoint to go on from, or True for last.ckpt of the run folder. Raises
    `UserError` for anything the user can put right, KeyboardInterrupt if interrupted.
    """
    begin, cpu_begin = time.perf_counter(), time.process_time()
    console = console or Console()
    folder = Path(recipe.output)
    if not _is_worker():
        check_folder(folder, resume=resume is not False, overwrite=overwrite)
    resume_path = _resume_path(folder, resume)
    data = DataModule(
        recipe.data,
        batch_size=recipe.train.batch_size,
        eval_batch_size=recipe.train.eval_batch_size,
        seed=recipe.seed,
    )
    task = _make_task(recipe, data.info, console, overwrite=overwrite)
    if resume_path is not None:
        _check_resume(resume_path, recipe, task, console)
    if not _is_worker():
        make_folder(folder, remove_old=overwrite and resume is False)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        console.print(_heading(recipe, task.model, data), highlight=False, soft_wrap=True)
    metrics = Metrics(folder / "metrics.csv", every=recipe.train.log_every)
    saver = RunCheckpoints(folder, save_every=recipe.train.save_every)
    guard = NonFiniteGuard(saver.last_path, every=recipe.train.log_every)
    own = [guard, metrics, Report(console, metrics), saver]
    with _quiet_lightning(), _plain_interrupts():
        trainer = make_trainer(recipe, [*own, *callbacks])
        trainer.fit(task, datamodule=data, ckpt_path=resume_path, weights_only=True)
    result = TrainResult(
        best_accuracy=saver.best_accuracy,
        best_epoch=saver.best_epoch,
        last_accuracy=float(trainer.callback_metrics.get("val_accuracy", saver.best_accuracy)),
        best_path=saver.best_path,
        last_path=saver.last_path,
        seconds=time.perf_counter() - begin,
        cpu_seconds=time.process_time() - cpu_begin,
        parameters=sum(p.numel() for p in task.model.parameters()),
    )
    if trainer.is_global_zero:
        _finish(result, folder, console)
    return result


def _make_task(
    recipe: Recipe, info: DataInfo, console: Console, *, overwrite: bool
) -> Classification:
    if recipe.distill is None:
        return Classification(recipe, info)
    # Not at the top: a teacher may have to be trained first, by `train` above.
    from qsdformer.tasks.distillation import Distillation
    from qsdformer.training.teaching import obtain_teacher

    folder = Path(recipe.output) / TEACHER
    teacher = obtain_teacher(recipe, info, folder, console, overwrite=overwrite)
    return Distillation(recipe, info, teacher)


def make_trainer(recipe: Recipe, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer as the recipe wants it."""
    config = recipe.train
    processes = config.devices * config.num_nodes
    folder = Path(recipe.output)
    try:
        return Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp" if processes > 1 else "auto",
            precision=_precision(recipe),
            max_epochs=config.epochs,
            gradient_clip_val=config.clip_grad,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO()],
            logger=TensorBoardLogger(folder, name="tensorboard", version=""),
            use_distributed_sampler=False,  # the data module's samplers split by process
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            default_root_dir=folder,
        )
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, None)
        raise UserError(f"cannot train with these devices: {reason}") from error
    except OSError as error:
        raise _cannot_use(folder, error) from error


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """`UserError` for a run folder that is in use, unless told what to do with what is in it."""
    try:
        used = folder.exists() and any(folder.iterdir())
    except OSError as error:
        raise _cannot_use(folder, error) from error
    if used and not (resume or overwrite):
        raise UserError(
            f"the run folder {folder} is not empty: go on with --resume, start over with "
            "--overwrite, or choose another with --output"
        )


def make_folder(folder: Path, *, remove_old: bool) -> None:
    """Make the run folder; `remove_old` removes an earlier run's files, and no others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES if remove_old else ():
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_use(folder, error) from error


def _cannot_use(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot write to {folder}: {reason}; choose another folder with --output")


def _resume_path(folder: Path, resume: str | os.PathLike[str] | bool) -> Path | None:
    if resume is False:
        return None
    path = folder / LAST if resume is True else Path(resume)
    if not path.exists():
        raise UserError(f"nothing to resume: there is no {path}; start over with --overwrite")
    return path


def _check_resume(path: Path, recipe: Recipe, task: Classification, console: Console) -> None:
    """Refuse a checkpoint of another model; say in which other keys the recipe has changed."""
    content = checkpoint.read(path)
    saved = content[checkpoint.KEY]
    checkpoint.check_same_model(saved.get("model_config", {}), task.model.config, path)
    if "optimizer_states" not in content:
        raise UserError(f"cannot resume from {path}: it has weights only, no training state")
    old = saved["extra"].get("recipe", {})
    if content.get("epoch", 0) + 1 >= recipe.train.epochs:
        raise UserError(
            f"nothing to resume: {path} has been trained for {content['epoch'] + 1} of "
            f"{recipe.train.epochs} epochs"
        )
    if (old.get("train", {}).get("ema") is None) != (recipe.train.ema is None):
        raise UserError(f"cannot resume from {path}: train.ema was {old['train']['ema']} there")
    if old.get("train", {}).get("optimizer") != recipe.train.optimizer:
        raise UserError(f"cannot resume from {path}: it was trained with another optimizer")
    for key, before, now in _changes(old, recipe.to_dict()):
        if key != "output" and not _is_worker():
            console.print(
                f"note: {key} was {before} in {path}, and is {now} now",
                highlight=False,
                soft_wrap=True,
            )


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in new:
        before, now = old.get(key), new[key]
        if isinstance(now, dict) and isinstance(before, dict):
            yield from _changes(before, now, f"{prefix}{key}.")
        elif before != now:
            yield prefix + key, before, now


def _precision(recipe: Recipe) -> Any:
    wanted = recipe.train.precision
    cuda = torch.cuda.is_available() and recipe.train.accelerator != "cpu"
    if wanted == "auto":
        return "bf16-mixed" if cuda else "32-true"
    if wanted == "16-mixed" and not cuda:
        raise UserError("train.precision=16-mixed needs a CUDA device: use 32-true or bf16-mixed")
    return wanted


def _heading(recipe: Recipe, model: SpikingTransformer, data: DataModule) -> str:
    config = model.config
    size = sum(p.numel() for p in model.parameters()) / 1e6
    bits = "fp32" if config.weight_bits is None else f"{config.weight_bits}-bit"
    kind = f"D={config.levels} T={config.time_steps}" if config.is_spiking else "ANN"
    return (
        f"{recipe.model.name} ({bits} weights, {config.neuron} {kind}, {size:.2f} M parameters) on "
        f"{recipe.data.name}: {data.train_size:,} training and {data.eval_size:,} evaluation "
        f"images of {data.info.image_size} px, seed {recipe.seed}, into {recipe.output}"
    )


def _finish(result: TrainResult, folder: Path, console: Console) -> None:
    values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}
    write_json(folder / "result.json", values)
    console.print(
        f"best accuracy {result.best_accuracy:.2%} in epoch {result.best_epoch}, last "
        f"{result.last_accuracy:.2%}, {result.seconds:,.0f} s: {result.best_path}",
        highlight=False,
        soft_wrap=True,
    )


def _is_worker() -> bool:
    """Whether this process was started for a rank other than 0."""
    return any(int(os.environ.get(n, 0)) > 0 for n in ("RANK", "LOCAL_RANK", "NODE_RANK"))


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
    """Ctrl-C as KeyboardInterrupt again, which Lightning turns into SystemExit(1)."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
