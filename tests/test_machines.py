"""Every package's training on several machines: two launchers that meet over the network, here the loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resless import models, weights
from resless.testing import TIMEOUT_S, assert_same_run, environment, run, two_processes

LENET = ["--recipe", "smoke", "--epochs", "2"]
LOOPS = {
    "deephoyer.train": ["--recipe", "smoke_resnet", "--epochs", "1"],
    "blockdrop.train": ["--recipe", "smoke", "--epochs", "1", "--backbone", "backbone"],
    "epsilon_resnet.train": ["--recipe", "smoke", "--epochs", "1"],
    "adn.train": ["--recipe", "smoke", "--epochs", "1"],
}


def two_machines(module: str, *args: str, cwd: Path) -> list[str]:
    """Run `python -m module` by two launchers of one process each; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launchers = []
    for node in (0, 1):
        place = [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *place, "-m", module, *args]
        launchers.append(
            subprocess.Popen(
                [sys.executable, *command],
                cwd=cwd,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [launcher.communicate(timeout=TIMEOUT_S)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(printed)
    return printed


def test_two_machines_are_as_two_processes(tmp_path: Path) -> None:
    first, second = two_machines("resless.train", *LENET, "--run-dir", "machines", cwd=tmp_path)
    assert "2 process(es)" in first
    assert "process(es)" not in second, "one machine tells"
    run(two_processes("resless.train", *LENET, "--run-dir", "processes"), tmp_path)
    assert_same_run(tmp_path / "machines", tmp_path / "processes")


@pytest.mark.parametrize("module", LOOPS)
def test_every_package_trains_on_two_machines(module: str, tmp_path: Path) -> None:
    backbone = models.create("resnet20", in_channels=1)
    weights.save_pretrained(
        backbone, tmp_path / "backbone", preprocessing={"mean": [0.3], "std": [0.4]}, example=torch.zeros(1, 1, 8, 8)
    )
    first, _ = two_machines(module, *LOOPS[module], "--run-dir", "run", cwd=tmp_path)
    assert "2 process(es)" in first
    starts = json.loads((tmp_path / "run" / "env.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]
    assert (tmp_path / "run" / "result.json").exists()
    assert weights.from_pretrained(tmp_path / "run" / "model")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
