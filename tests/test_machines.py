"""Every package's training on several machines: two launchers that meet over the network, here the loopback.

And what becomes of a run, under one launcher and under two, when the kernel kills one of its processes.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import adn.cli
import blockdrop.cli
import deephoyer.cli
import epsilon_resnet.cli
import psutil
import pytest
import resless.cli
import torch
from resless import checkpoint, models, weights
from resless.recipes import TRAIN
from resless.testing import TIMEOUT_S, assert_same_run, environment, run, succeeded, two_processes, undrawn
from resless.train import train

LENET = ["--recipe", "smoke", "--epochs", "2"]
LOOPS = {
    "deephoyer.train": ["--recipe", "smoke_resnet", "--epochs", "1"],
    "blockdrop.train": ["--recipe", "smoke", "--epochs", "1", "--backbone", "backbone"],
    "epsilon_resnet.train": ["--recipe", "smoke", "--epochs", "1"],
    "adn.train": ["--recipe", "smoke", "--epochs", "1"],
}

# Of what is killed: the console script, and options for more than twenty steps, of which the first five are saved.
KILLED = {
    "resless.train": (resless.cli.train, ["--recipe", "smoke_resnet", "--epochs", "1"]),
    "deephoyer.train": (deephoyer.cli.train, LOOPS["deephoyer.train"]),
    "blockdrop.train": (blockdrop.cli.train, LOOPS["blockdrop.train"]),
    "epsilon_resnet.train": (epsilon_resnet.cli.train, LOOPS["epsilon_resnet.train"]),
    "adn.train": (adn.cli.train, LOOPS["adn.train"]),
}


def by_one_launcher(module: str, *args: str) -> list[list[str]]:
    """The command that runs `python -m module` on two processes of this machine."""
    return [two_processes(module, *args)]


def by_two_launchers(module: str, *args: str) -> list[list[str]]:
    """The commands that run `python -m module` on two machines, on one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    places = [[f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"] for node in (0, 1)]
    return [[*start, *place, "-m", module, *args] for place in places]


@contextmanager
def launched(commands: list[list[str]], cwd: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers at work; afterwards neither they nor their workers are."""
    launchers: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            launchers.append(
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        yield launchers
    finally:
        for launcher in launchers:
            kill_with_workers(launcher)


def kill_with_workers(launcher: subprocess.Popen[str]) -> None:
    """End a launcher that is still there, and its workers, each of which has a process group of its own."""
    if launcher.poll() is not None:
        return
    for process in [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    launcher.wait()


def two_machines(module: str, *args: str, cwd: Path) -> list[str]:
    """Run `python -m module` by two launchers of one process each; what each printed."""
    with launched(by_two_launchers(module, *args), cwd) as launchers:
        printed = [launcher.communicate(timeout=TIMEOUT_S)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(printed)
    return printed


def wait_for_a_checkpoint(run_folder: Path, launchers: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not checkpoint.find(run_folder / "checkpoints"):
        for launcher in launchers:
            assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint appeared in {run_folder}"
        time.sleep(0.005)


def worker(rank: int, launchers: list[subprocess.Popen[str]]) -> psutil.Process:
    """The process of this rank."""
    workers = [child for launcher in launchers for child in psutil.Process(launcher.pid).children()]
    (found,) = [process for process in workers if process.environ().get("RANK") == str(rank)]
    return found


def save_backbone(folder: Path) -> None:
    """What BlockDrop starts from; it need not be trained."""
    backbone, example = models.create("resnet20", in_channels=1), torch.zeros(1, 1, 8, 8)
    weights.save_pretrained(backbone, folder, preprocessing={"mean": [0.3], "std": [0.4]}, example=example)


def test_two_machines_are_as_two_processes(tmp_path: Path) -> None:
    first, second = two_machines("resless.train", *LENET, "--run-dir", "machines", cwd=tmp_path)
    assert "2 process(es)" in first
    assert "process(es)" not in second, "one machine tells"
    run(two_processes("resless.train", *LENET, "--run-dir", "processes"), tmp_path)
    assert_same_run(tmp_path / "machines", tmp_path / "processes")


@pytest.mark.parametrize("module", LOOPS)
def test_every_package_trains_on_two_machines(module: str, tmp_path: Path) -> None:
    save_backbone(tmp_path / "backbone")
    first, _ = two_machines(module, *LOOPS[module], "--run-dir", "run", cwd=tmp_path)
    assert "2 process(es)" in first
    starts = json.loads((tmp_path / "run" / "env.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]
    assert (tmp_path / "run" / "result.json").exists()
    assert weights.from_pretrained(tmp_path / "run" / "model")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.fixture(scope="module")
def _imported_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first run of a process imports on the way takes seconds, forks inherit it."""
    smoke, folder = TRAIN["smoke"], tmp_path_factory.mktemp("first") / "run"
    with undrawn():
        train(replace(smoke, optim=replace(smoke.optim, epochs=1), run=replace(smoke.run, run_dir=str(folder))))


@pytest.mark.usefixtures("_imported_once")
@pytest.mark.parametrize(
    ("module", "launch", "killed"),
    [
        ("resless.train", by_one_launcher, 1),
        ("deephoyer.train", by_one_launcher, 0),
        ("blockdrop.train", by_one_launcher, 1),
        ("adn.train", by_one_launcher, 1),
        ("epsilon_resnet.train", by_two_launchers, 1),
    ],
)
def test_a_killed_process_ends_the_run_with_a_sentence_and_it_resumes_exactly(
    module: str, launch: Callable[..., list[list[str]]], killed: int, tmp_path: Path
) -> None:
    entry, options = KILLED[module]
    save_backbone(tmp_path / "backbone")
    args = [*options, "--checkpoint-steps", "5", "--run-dir", "killed"]
    with launched(launch(module, *args), tmp_path) as launchers:
        wait_for_a_checkpoint(tmp_path / "killed", launchers)
        worker(killed, launchers).kill()
        printed = [launcher.communicate(timeout=TIMEOUT_S)[0] for launcher in launchers]
    told = "\n".join(printed)
    assert [launcher.returncode for launcher in launchers] == [1] * len(launchers), told
    assert not (tmp_path / "killed" / "result.json").exists(), "it was not in the midst of training"
    assert told.count(f"error: [process {1 - killed}] another process of this run ended at epoch ") == 1, told
    assert told.count("start all of them again with --resume auto") == 1
    # A launcher shows where in itself it noticed; a traceback of ours would begin at the console script.
    assert "/cli.py" not in told

    with undrawn():
        resumed = succeeded(entry, *args, "--resume", "auto", cwd=tmp_path, processes=2)
        succeeded(entry, *options, "--run-dir", "whole", cwd=tmp_path, processes=2)
    assert "resumed from killed/checkpoints/epoch_" in resumed
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert (tmp_path / "whole" / "result.json").read_text() == (tmp_path / "killed" / "result.json").read_text()
