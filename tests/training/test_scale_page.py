"""The commands of docs/scale.md for batch systems, run as written, in two processes on CPUs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qsdformer
from qsdformer.models.checkpoint import load_checkpoint
from training.test_processes import free_port

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
RECIPE = """
recipe: digits
model: {dims: [4, 6, 8, 8], depth: 2, heads: 2}
data: {image_size: 16, train_limit: 64}
train: {epochs: %d, batch_size: 16, accelerator: cpu}
output: run
"""
# Starts two tasks with what SLURM tells them, and gives their worst status, as srun does.
SRUN = """#!{python}
import os, signal, subprocess, sys
tasks = []
for rank in range(2):
    names = dict(JOB_ID=7, JOB_NAME="job", NTASKS=2, NTASKS_PER_NODE=2, NNODES=1, NODEID=0)
    names |= dict(PROCID=rank, LOCALID=rank)
    own = {{f"SLURM_{{name}}": str(value) for name, value in names.items()}}
    own |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
    tasks.append(subprocess.Popen(sys.argv[1:], env={{**os.environ, **own}}))
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="batch systems run on Linux"),
]


def block(language: str, words: str) -> str:
    """The page's block of code with these words."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (one,) = [text for text in found if words in text]
    return one


def environment(tools: Path) -> dict[str, str]:
    """Programs of this Python and of `tools`, and no launcher's variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        kept.pop(name, None)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), kept["PATH"]])
    source = str(Path(qsdformer.__file__).parents[1])
    return {**kept, "PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_torchrun_starts_the_processes_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(RECIPE % 1)
    command = block("sh", "torchrun").strip()
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env=environment(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch   1/1") == 1
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").extra["epoch"] == 1


def test_two_machines_started_by_hand_meet(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(RECIPE % 1)
    line = block("sh", "NODE_RANK").strip()
    for old, new in (("10.0.0.1", "127.0.0.1"), ("29500", free_port()), ("devices 8", "devices 1")):
        assert line.count(old) == 1
        line = line.replace(old, new)
    lines = [line, line.replace("NODE_RANK=0", "NODE_RANK=1")]
    machines = [
        subprocess.Popen(
            one,
            shell=True,
            cwd=tmp_path,
            env=environment(tmp_path / "bin"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for one in lines
    ]
    texts = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert [text.count("epoch   1/1") for text in texts] == [1, 0]
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").extra["epoch"] == 1


def test_a_job_that_runs_out_of_time_is_put_into_the_queue_again_and_goes_on(
    tmp_path: Path,
) -> None:
    program(tmp_path / "bin/srun", SRUN.format(python=sys.executable, port=free_port()))
    program(tmp_path / "bin/scontrol", "#!/bin/sh\necho $* > requeued\n")
    program(tmp_path / "job", block("bash", "srun"))
    (tmp_path / "my.yaml").write_text(RECIPE % 100000)
    variables = {**environment(tmp_path / "bin"), "SLURM_JOB_ID": "7"}
    options = {"cwd": tmp_path, "env": variables, "text": True}
    job = subprocess.Popen(["./job"], start_new_session=True, stdout=subprocess.PIPE, **options)
    try:
        while job.poll() is None and not (tmp_path / "run/last.ckpt").exists():
            time.sleep(0.05)
        # The batch system signals the step, which is what srun has started, and not the script.
        (step,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(step), signal.SIGTERM)
        text, _ = job.communicate()
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, text
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    done = load_checkpoint(tmp_path / "run/last.ckpt").extra["epoch"]
    (tmp_path / "requeued").unlink()
    (tmp_path / "my.yaml").write_text(RECIPE % (done + 2))
    again = subprocess.run(["./job"], check=False, capture_output=True, **options)
    assert again.returncode == 0, again.stdout + again.stderr
    assert not (tmp_path / "requeued").exists()
    assert load_checkpoint(tmp_path / "run/last.ckpt").extra["epoch"] == done + 2
