"""Every training command killed at random moments, on a disk that fills up, in a folder that is taken or read-only.

The commands run on few images and save after every step, so that most moments are close to a write.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import adn.cli
import blockdrop.cli
import deephoyer.cli
import epsilon_resnet.cli
import pytest
import resless.cli
import torch
from resless import checkpoint, models, weights
from resless.run import Run
from resless.testing import TIMEOUT_S, Ended, assert_same_run, disk, entered, few_images, succeeded, undrawn

KILLS = int(os.environ.get("RESLESS_KILLS", "3"))  # of each of the seven commands
Entry = Callable[[], None]
COMMANDS: dict[str, tuple[Entry, list[str]]] = {
    "resless-train": (resless.cli.train, ["--recipe", "smoke_resnet"]),
    "deephoyer-train": (deephoyer.cli.train, ["--recipe", "smoke_resnet"]),
    "deephoyer-prune": (deephoyer.cli.prune, ["--recipe", "smoke_resnet", "--model", "backbone"]),
    "blockdrop-train": (blockdrop.cli.train, ["--recipe", "smoke", "--backbone", "backbone"]),
    "blockdrop-finetune": (blockdrop.cli.finetune, ["--recipe", "smoke", "--pretrained", "policy/model"]),
    "epsilon-resnet-train": (epsilon_resnet.cli.train, ["--recipe", "smoke"]),
    "adn-train": (adn.cli.train, ["--recipe", "smoke"]),
}
SHORT = ["--epochs", "2", "--batch-size", "16", "--checkpoint-steps", "1"]


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Three steps an epoch, and no pictures."""
    with few_images(train=48, test=32), undrawn():
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the networks that some commands start from."""
    cwd = tmp_path_factory.mktemp("start")
    preprocessing = {"mean": [0.3], "std": [0.4]}
    backbone = models.create("resnet20", in_channels=1)
    weights.save_pretrained(backbone, cwd / "backbone", preprocessing=preprocessing, example=torch.zeros(1, 1, 8, 8))
    entry, options = COMMANDS["blockdrop-train"]
    succeeded(entry, *options, "--epochs", "0", "--batch-size", "16", "--run-dir", "policy", cwd=cwd)
    return cwd


@pytest.fixture(scope="module", params=COMMANDS)
def command(request: pytest.FixtureRequest, start: Path) -> tuple[Entry, list[str]]:
    """A command's entry point and options, but for its run folder."""
    entry, options = COMMANDS[request.param]
    return entry, [str(start / word) if (start / word).exists() else word for word in [*options, *SHORT]]


@pytest.fixture(scope="module")
def whole(command: tuple[Entry, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the command when nothing happens to it."""
    entry, options = command
    cwd = tmp_path_factory.mktemp("whole")
    succeeded(entry, *options, "--run-dir", "run", cwd=cwd)
    return cwd / "run"


def seconds(folder: Path) -> float:
    """What a finished run took, from its first file to its last."""
    return (folder / "result.json").stat().st_mtime - (folder / "env.json").stat().st_mtime


def damaged(folder: Path) -> dict[str, str]:
    """What is wrong with the checkpoints that a run folder shows, by name."""
    faults = {path.name: checkpoint.damage(path) for path in folder.glob("checkpoints/epoch_*")}
    return {name: fault for name, fault in faults.items() if fault is not None}


def killed_after(moment: float, entry: Entry, *args: str, cwd: Path) -> Ended:
    """A command that the kernel ends so many seconds into its run, wherever it is: no line of Python runs any more."""
    prepare = Run.prepare

    def timed(self: Run, *networks: Any, **state: Any) -> Any:
        signal.setitimer(signal.ITIMER_REAL, moment)
        return prepare(self, *networks, **state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "prepare", timed)
        return entered(entry, *args, cwd=cwd)[0]


def stopped(entry: Entry, *args: str, cwd: Path) -> str:
    """The last line of a command that cannot go on: exit code 2, no traceback."""
    ended = entered(entry, *args, cwd=cwd)[0]
    assert ended.code == 2, ended.printed
    assert "Traceback" not in ended.printed
    return ended.printed.splitlines()[-1]


def assert_as_whole(folder: Path, whole: Path) -> None:
    """A run ended as the one to which nothing happened."""
    assert_same_run(whole, folder)
    assert (folder / "result.json").read_text() == (whole / "result.json").read_text()


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    command: tuple[Entry, list[str]], whole: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    entry, options = command
    args = [*options, "--run-dir", "run", "--resume", "auto"]
    moments, killed, cwd = random.Random(0), 0, Path(mkdtemp(dir=tmp_path))
    while killed < KILLS:
        ended = killed_after(moments.uniform(0.01, seconds(whole) / 2), entry, *args, cwd=cwd)
        assert ended.code in (-signal.SIGALRM, 0), ended.printed
        assert damaged(cwd / "run") == {}
        killed += ended.code != 0
        if ended.code == 0:  # the moment came too late, and the next is one of another run
            assert_as_whole(cwd / "run", whole)
            cwd = Path(mkdtemp(dir=tmp_path))
    succeeded(entry, *args, cwd=cwd)
    assert_as_whole(cwd / "run", whole)
    record_property("killed", killed)


def size(folder: Path) -> int:
    """Bytes in the files of a folder, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_on_a_full_disk_nothing_finished_is_lost(command: tuple[Entry, list[str]], whole: Path, tmp_path: Path) -> None:
    entry, options = command
    newest = max((whole / "checkpoints").glob("epoch_*"))
    args = [*options, "--run-dir", "run", "--keep-checkpoints", "9"]
    with disk(tmp_path, f"size={5 * size(newest) // 2 + 64 * 1024}"):  # room for two checkpoints and a half
        sentence = stopped(entry, *args, cwd=tmp_path)
        assert len(list((tmp_path / "run" / "checkpoints").glob("epoch_*"))) > 0
        assert damaged(tmp_path / "run") == {}
        subprocess.run(["mount", "-o", "remount,size=512m", str(tmp_path)], check=True)
        assert "resumed from run/checkpoints/epoch_" in succeeded(entry, *args, "--resume", "auto", cwd=tmp_path)
        assert_same_run(whole, tmp_path / "run")
    assert "to run (No space left on device)" in sentence
    assert "the checkpoints that are there are unharmed, make room and go on with --resume auto" in sentence


def test_a_folder_that_cannot_be_written_is_refused(command: tuple[Entry, list[str]], tmp_path: Path) -> None:
    entry, options = command
    with disk(tmp_path, "ro,size=1m"):
        sentence = stopped(entry, *options, "--run-dir", "run", cwd=tmp_path)
    assert sentence == "error: cannot write to run folder run: Read-only file system"


def test_a_folder_in_which_another_run_is_at_work_is_refused(command: tuple[Entry, list[str]], tmp_path: Path) -> None:
    entry, options = command
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sentence = stopped(entry, *options, "--run-dir", "run", cwd=tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", ".lock"]
    assert sentence == "error: run folder run is in use by another run: wait, or choose --run-dir"


def test_of_two_runs_started_at_once_in_one_folder_one_ends_and_the_other_says_why(tmp_path: Path) -> None:
    entry, options = COMMANDS["resless-train"]
    both, prepare = multiprocessing.get_context("fork").Barrier(2), Run.prepare

    def prepared_at_once(self: Run, *networks: Any, **state: Any) -> Any:
        both.wait(TIMEOUT_S)  # each has found the folder free
        return prepare(self, *networks, **state)

    def started(seed: int) -> Ended:
        return entered(entry, *options, *SHORT, "--run-dir", "run", "--seed", str(seed), cwd=tmp_path)[0]

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(Run, "prepare", prepared_at_once)
        ended = list(pool.map(started, range(2)))
    codes = [run.code for run in ended]
    assert sorted(codes) == [0, 2], "\n".join(run.printed for run in ended)
    assert ended[codes.index(2)].printed.splitlines()[-1] in (
        "error: run folder run is in use by another run: wait, or choose --run-dir",
        # Where the machine was so busy that the other had ended before.
        "error: run folder run exists: go on with --resume auto, replace it with --overwrite, or choose --run-dir",
    )
    first = codes.index(0)
    starts = json.loads((tmp_path / "run" / "env.json").read_text())["starts"]
    assert [start["seed"] for start in starts] == [first]
    succeeded(entry, *options, *SHORT, "--run-dir", "alone", "--seed", str(first), cwd=tmp_path)
    assert_same_run(tmp_path / "alone", tmp_path / "run")
