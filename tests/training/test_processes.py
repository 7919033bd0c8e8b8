"""Runs of several processes on gloo: who writes, who stops whom, and what is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

import qsdformer
from qsdformer.errors import UserError
from qsdformer.recipes.learning import TrainConfig
from qsdformer.recipes.recipe import Recipe, load_recipe
from qsdformer.training import train
from qsdformer.training.processes import Processes, check_processes, global_rank

ENDLESS = {
    "dims": "[4,6,8,8]",
    "depth": "2",
    "heads": "2",
    "image_size": "16",
    "train_limit": "64",
    "batch_size": "16",
    "epochs": "10000",
    "ema": "0.9",
    "devices": "2",
    "accelerator": "cpu",
}
RANK_NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables from around the tests."""
    for name in list(os.environ):
        if name in (*RANK_NAMES, "MASTER_PORT") or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def slurm(rank: int, port: str = "1") -> dict[str, str]:
    """What srun sets in process `rank` of two on one machine."""
    values = {"JOB_ID": "1234", "JOB_NAME": "train", "NTASKS": "2", "PROCID": str(rank)}
    values |= {"LOCALID": str(rank), "NODEID": "0", "NNODES": "1", "NTASKS_PER_NODE": "2"}
    names = {f"SLURM_{name}": value for name, value in values.items()}
    return {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


class Command:
    """`qsd train digits` in a process of its own."""

    def __init__(self, output: Path, **environment: str) -> None:
        self.output = output
        keys = [f"--{k}={v}" for k, v in {**ENDLESS, "output": str(output)}.items()]
        source = str(Path(qsdformer.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qsdformer", "train", "digits", *keys],
            env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_trained(self) -> None:
        """Until the first epoch is over."""
        while self.process.poll() is None and not (self.output / "last.ckpt").exists():
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit status and everything printed."""
        text, _ = self.process.communicate()
        return self.process.returncode, text


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """Commands that are ended with the test."""
    started: list[Command] = []
    yield started
    for command in started:
        if command.process.poll() is None:
            command.process.kill()


@pytest.mark.slow
def test_sigterm_to_one_rank_under_slurm_ends_both_and_only_rank_0_writes_and_prints(
    tmp_path: Path, commands: list[Command]
) -> None:
    port = free_port()
    commands += [Command(tmp_path / "run", **slurm(rank, port)) for rank in (0, 1)]
    first, second = commands
    first.wait_until_trained()
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == (143, "")
    status, text = first.end()
    assert status == 143
    assert text.splitlines()[-1].startswith("stopped by SIGTERM ")
    assert text.count("stopped") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_one_line(
    tmp_path: Path, commands: list[Command]
) -> None:
    command = Command(tmp_path / "run")
    commands.append(command)
    command.wait_until_trained()
    children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children")
    if not children.exists():
        pytest.skip("needs Linux to find the child")
    child = int(children.read_text().split()[0])
    os.kill(child, signal.SIGKILL)
    status, text = command.end()
    assert status == 2
    line = text.splitlines()[-1]
    assert "Traceback" not in text
    assert line.startswith("qsd: error: process 1 of 0 to 1 was ended by SIGKILL")
    assert line.count("--resume") == 1


def test_the_rank_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(devices=2)
    assert global_rank(config) == 0
    for name, value in slurm(1).items():
        monkeypatch.setenv(name, value)
    assert global_rank(config) == 1
    with pytest.raises(UserError, match=r"SLURM has started 2 processes, but .* is 1 x 1"):
        global_rank(TrainConfig())
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=r"cannot train under SLURM: .*--ntasks-per-node=2"):
        global_rank(config)


def test_the_rank_counts_machines_started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    assert global_rank(TrainConfig(devices=2, num_nodes=2)) == 2
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert global_rank(TrainConfig(devices=2, num_nodes=2)) == 3
    assert global_rank(TrainConfig()) == 0  # nothing of ours


def small(folder: Path, **overrides: str) -> Recipe:
    keys = {**ENDLESS, "devices": "1", "output": str(folder), **overrides}
    return load_recipe("digits", keys)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"devices": "9999"}, "devices=9999: without a GPU .* CPU cores"),
        ({"num_nodes": "2"}, "not set here: MASTER_ADDR, MASTER_PORT, NODE_RANK"),
    ],
)
def test_processes_that_cannot_work_are_refused_before_anything_is_written(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(small(tmp_path / "run", **overrides), console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot train with these devices") as caught:
        train(small(tmp_path / "run", accelerator="gpu"), console=Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_machines_that_do_not_come_are_waited_for_aloud_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NODE_RANK", "0")
    check_processes(TrainConfig(num_nodes=2), cuda=False)
    console = Console(record=True, quiet=False, width=300)
    strategy = Processes(console, timedelta(seconds=1))
    Trainer(accelerator="cpu", devices=1, num_nodes=2, strategy=strategy, logger=False)
    with pytest.raises(UserError, match="in vain: start the command on every machine"):
        strategy.setup_distributed()
    assert "machine 0 of 0 to 1: waiting for" in console.export_text()
