"""The processes of a run: which one this is, how they are started, and how they end together."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from rich.console import Console

from qsdformer.errors import UserError, one_line
from qsdformer.recipes.dense import DenseRecipe
from qsdformer.recipes.learning import TrainConfig
from qsdformer.terminal import say

# How long processes wait for one another, at the start and in a step.
PATIENCE = timedelta(minutes=10)
GRACE = 10.0  # seconds for a process to notice by itself that another has ended
POLL = 0.3  # seconds
STARTED_BY = "QSD_STARTED_BY"  # in a process that rank 0 of its machine started: whose child it is
# What torch.distributed says of a process that it has lost, in errors of no type of their own.
LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")


def environment() -> ClusterEnvironment:
    """What starts the processes: torchrun, SLURM's srun, LSF, MPI, or we ourselves.

    `UserError` for a SLURM job that Lightning cannot use.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        try:
            return SLURMEnvironment(auto_requeue=False)  # SIGTERM saves; the script requeues
        except RuntimeError as error:
            raise UserError(f"cannot train under SLURM: {one_line(error, None)}") from error
    for kind in (LSFEnvironment, MPIEnvironment):
        if kind.detect():
            return kind()
    return LightningEnvironment()


def started_here() -> bool:
    """Whether rank 0 of this machine has started this process."""
    return STARTED_BY in os.environ


def global_rank(config: TrainConfig) -> int:
    """This process's number among all those of the run; needs no process group.

    Raises `UserError` if something has started another number of processes than the recipe says.
    """
    found, processes = environment(), config.devices * config.num_nodes
    if isinstance(found, LightningEnvironment):
        return found.node_rank() * config.devices + found.local_rank() if processes > 1 else 0
    started = found.world_size()
    if started != processes:
        by = type(found).__name__.removesuffix("Environment")
        raise UserError(
            f"{by} has started {started} processes, but train.devices x train.num_nodes is "
            f"{config.devices} x {config.num_nodes}: set --devices and --num_nodes to match, or "
            "start one process and no more"
        )
    return found.global_rank()


def check_processes(config: TrainConfig, *, cuda: bool, dense: DenseRecipe | None = None) -> None:
    """`UserError` for processes that this machine cannot feed, or that would never meet.

    `dense` is the dense task's section: its norms may be synchronised, which takes GPUs.
    """
    cores = os.cpu_count() or 1
    if not cuda and config.devices > max(2, cores):
        raise UserError(
            f"train.devices={config.devices}: without a GPU that is as many processes on "
            f"{cores} CPU cores, which would only slow one another down; set --devices {cores} or "
            "fewer"
        )
    several = config.devices * config.num_nodes > 1
    if several and not cuda and dense is not None and dense.fields.get("norm") == "sync":
        key = f"{dense.task}.norm"
        raise UserError(
            f"{key}=sync: only GPUs can take batch norms' statistics over several processes; set "
            f"--{key} batch, or --devices 1 --num_nodes 1"
        )
    if config.num_nodes == 1 or not isinstance(environment(), LightningEnvironment):
        return
    missing = [n for n in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(n)]
    if missing:
        raise UserError(
            f"train.num_nodes={config.num_nodes}: start this command on every machine, with "
            "MASTER_ADDR (the first machine's address) and MASTER_PORT (a free port there) the "
            f"same everywhere and NODE_RANK counting from 0; not set here: {', '.join(missing)}"
        )


class Processes(DDPStrategy):
    """DDP whose processes say what they wait for, and of which none outlives the others."""

    def __init__(self, console: Console, patience: timedelta = PATIENCE) -> None:
        super().__init__(timeout=patience)
        self.console = console

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Meet the other processes; `UserError` if some do not come."""
        met = torch.distributed.is_initialized()  # a second run in the same processes
        cluster = self.cluster_environment
        assert cluster is not None
        where = f"{cluster.main_address}:{cluster.main_port}"
        minutes = self._timeout.total_seconds() / 60 if self._timeout else 0
        waiting = f"{self.num_nodes} machine(s) at {where}"
        if self.num_nodes > 1 and self.local_rank == 0 and not met:
            say(
                self.console,
                f"machine {self.node_rank} of 0 to {self.num_nodes - 1}: waiting for {waiting}, "
                f"at most {minutes:g} minutes",
            )
        try:
            super().setup_distributed()
        except torch.distributed.DistError as error:
            raise UserError(
                f"waited {minutes:g} minutes for {waiting}, in vain: start the command on every "
                "machine, with the same MASTER_ADDR and MASTER_PORT, and NODE_RANK from 0 to "
                f"{self.num_nodes - 1}; a firewall may be in the way"
            ) from error


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, with `FAMILY` in place of an observer that kills without a word."""

    def launch(self, function: Any, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        FAMILY.follow_parent()
        return super().launch(function, *args, trainer=trainer, **kwargs)

    def _call_children_scripts(self) -> None:
        os.environ[STARTED_BY] = str(os.getpid())
        try:
            super()._call_children_scripts()
        finally:
            del os.environ[STARTED_BY]
        FAMILY.adopt(self.procs)
        self.procs = []

    def kill(self, signum: Any) -> None:
        FAMILY.kill(signum)


class Family:
    """The processes that this one has started, or the one that started it.

    They live as long as the command, over several runs (a teacher's, then its student's).
    """

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[Any]] = []
        self._training = False
        self._following = False

    def adopt(self, children: list[subprocess.Popen[Any]]) -> None:
        """Watch over processes just started; they end with this one."""
        self.children = children
        atexit.register(self.end)
        threading.Thread(target=self._watch, daemon=True, name="qsd-children").start()

    def follow_parent(self) -> None:
        """End with the process that started this one, if one did."""
        parent = os.environ.get(STARTED_BY)
        if parent is not None and not self._following:
            self._following = True
            follow = threading.Thread(target=_follow, args=(int(parent),), daemon=True)
            follow.start()

    def failure(self) -> str | None:
        """What became of the first child that ended badly, in words."""
        for rank, child in enumerate(self.children, start=1):
            code = child.poll()
            if code:
                how = f"ended with status {code}; its own message is above"
                if code < 0:
                    how = f"was ended by {signal.Signals(-code).name}"
                    how += ", perhaps for want of memory" if code == -signal.SIGKILL else ""
                return f"process {rank} of 0 to {len(self.children)} {how}"
        return None

    def kill(self, signum: int) -> None:
        """Send a signal to the children that are left."""
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signum)

    def end(self) -> None:
        """Let the children end, and end those that do not."""
        deadline = time.monotonic() + GRACE
        while any(c.poll() is None for c in self.children) and time.monotonic() < deadline:
            time.sleep(POLL / 10)
        self.kill(signal.SIGKILL)

    @contextlib.contextmanager
    def training(self, advice: str) -> Iterator[None]:
        """While inside, the loss of a process ends the run with one line; `advice` closes it."""
        self._advice, self._training = advice, True
        try:
            yield
        except RuntimeError as error:
            if not any(word in str(error) for word in LOST):
                raise
            if self._following:
                raise SystemExit(1) from error  # rank 0 tells, or has been killed
            reason = self._failure_soon() or "a process of the run has been lost"
            raise UserError(f"{reason}; {advice}") from error
        finally:
            self._training = False

    def _failure_soon(self) -> str | None:
        deadline = time.monotonic() + GRACE if self.children else 0.0
        while (reason := self.failure()) is None and time.monotonic() < deadline:
            time.sleep(POLL / 10)
        return reason

    def _watch(self) -> None:
        while self.failure() is None:
            time.sleep(POLL)
        time.sleep(GRACE)
        while not self._training:
            time.sleep(POLL)
        # Still in a step, or waiting for a process that will never come: nothing else can end it.
        self.kill(signal.SIGKILL)
        _leave(f"{self.failure()}; {self._advice}")


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    time.sleep(GRACE / 10)  # where the parent has said why, this process ends by itself
    _leave("the process that started this one has ended, so it ends too")


def _leave(line: str) -> None:
    """Say so and end, whatever the main thread waits for."""
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
    print(f"{cursor}qsd: error: {line}", file=sys.stderr, flush=True)
    os._exit(2)


FAMILY = Family()
