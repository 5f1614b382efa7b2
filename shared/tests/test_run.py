"""Runs end to end on the embedded digits: killed, stopped, resumed, refused; on one process and on two.

Runs happen in forks of this process, where they may be killed and leave nothing behind.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from resless import checkpoint, cli, models, optim
from resless import run as run_module
from resless.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from resless.data.pipeline import Pipeline
from resless.errors import InputError
from resless.recipes import TRAIN
from resless.run import Run
from resless.testing import (
    Ended,
    assert_same_run,
    forked,
    kill_when,
    metrics,
    run,
    script,
    two_processes,
)
from resless.train import train
from safetensors.torch import load_file
from torch import nn

LENET = TrainConfig(
    data=DataConfig(holdout=0.1, pad=1),
    optim=OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=3),
    run=RunConfig(checkpoint_steps=5),
)
RESNET = replace(LENET, model="resnet8", optim=OptimConfig(lr=0.05, weight_decay=1e-4, batch_size=64, epochs=3))
STREAMED = replace(LENET, data=DataConfig(stream=True, workers=2, image_size=8))
STEPS = 20  # of one epoch: 1,437 training images, 1,293 of them not held out, in batches of 64

Loop = Callable[[TrainConfig], object]


def config_in(config: TrainConfig, folder: Path, **changes: object) -> TrainConfig:
    return replace(config, run=replace(config.run, run_dir=str(folder), **changes))


def done(ended: list[Ended]) -> str:
    """What the first process printed, once all have succeeded; the others are to be silent."""
    for rank, process in enumerate(ended):
        assert process.code == 0, f"process {rank} gave {process.code}:\n{process.printed}"
        assert rank == 0 or process.printed == ""
    return ended[0].printed


def refused(task: Callable[[], object], processes: int = 1) -> str:
    """The sentence with which a command ends in exit code 2, without a traceback."""
    ended = forked(lambda: cli.main(task), processes)[0]
    assert ended.code == 2, ended.printed
    assert "Traceback" not in ended.printed
    sentences = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, ended.printed
    return sentences[0]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.find(folder / "checkpoints")]


@pytest.fixture(autouse=True, scope="module")
def _imported_once(tmp_path_factory):
    """What the first run of a process imports on the way (dynamo, matplotlib) takes seconds, forks inherit it."""
    train(config_in(replace(LENET, optim=replace(LENET.optim, epochs=1)), tmp_path_factory.mktemp("first")))


# --- a loop with all that a loop may have


@dataclass
class Average:
    """A number that a loop carries from step to step."""

    value: float = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


def noisy(config: TrainConfig) -> None:
    """A loop that draws from every global generator, carries a state, and logs early in an epoch."""
    with Run(config, "noisy", "noisy") as this:
        data = Pipeline(config.data, config.run.seed, this.shards)
        batches = data.training(config.optim.batch_size)
        model = models.create_for(config.model, data.train)
        optimizer, average = optim.build(model.parameters(), config.optim), Average()
        model, optimizer = this.prepare(model, optimizer, {"average": average})
        for _ in this.epochs(config.optim.epochs):
            for images, labels in this.steps(batches):
                noise = float(torch.rand(())) + random.random() + np.random.random()  # noqa: NPY002
                loss = F.cross_entropy(model(images), labels) * (1 + 0.1 * noise + 0.1 * average.value)
                this.accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                average.value = 0.9 * average.value + 0.1 * float(loss)
                if this.step == 0:
                    this.log(first_loss=float(loss))
                this.track(loss=loss)
        this.finish(model, data, metrics=average.state_dict())


# --- killed and resumed


def at_step(number: int, action: Callable[[], object]) -> None:
    """In a fork: do something at the end of the n-th step from now."""
    track, steps = Run.track, [0]

    def tracked(self: Run, **values: torch.Tensor) -> None:
        track(self, **values)
        steps[0] += 1
        if steps[0] == number:
            action()

    Run.track = tracked


def power_cut(*_: object, **__: object) -> None:
    os.killpg(0, signal.SIGKILL)


def killed(loop: Loop, config: TrainConfig, processes: int, *, step: int | None = None) -> None:
    """Run until the n-th step, or until all epochs are done, and kill every process there."""

    def task() -> None:
        if step is None:
            Run.finish = power_cut
        else:
            at_step(step, power_cut)
        loop(config)

    codes = [ended.code for ended in forked(task, processes)]
    assert codes == [-signal.SIGKILL] * processes


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("loop", "config"), [(noisy, LENET), (train, RESNET)], ids=["noisy", "batch norm"])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, loop, config, processes):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    printed = done(forked(lambda: loop(config_in(config, whole, checkpoint_steps=None)), processes))
    assert f"{processes} process(es)" in printed
    assert json.loads((whole / "env.json").read_text())["starts"][0]["processes"] == processes

    again = config_in(config, broken, resume="auto")
    killed(loop, again, processes, step=3)
    assert checkpoints(broken) == []
    killed(loop, again, processes, step=13)
    assert checkpoints(broken) == ["epoch_0000_step_000010", "epoch_0000_step_000005"]
    killed(loop, again, processes, step=STEPS - 10 + 4)
    assert checkpoints(broken) == ["epoch_0001", "epoch_0000_step_000015"]
    killed(loop, again, processes, step=STEPS + 7)
    assert checkpoints(broken) == ["epoch_0002_step_000005", "epoch_0002"]
    killed(loop, again, processes)
    assert checkpoints(broken) == ["epoch_0003", "epoch_0002_step_000015"]
    printed = done(forked(lambda: loop(again), processes))
    assert f"resumed from {broken}/checkpoints/epoch_0003" in printed

    assert_same_run(whole, broken)
    assert [record["epoch"] for record in metrics(broken)] == [1, 2, 3]
    starts = json.loads((broken / "env.json").read_text())["starts"]
    assert [Path(start["resumed_from"] or "none").name for start in starts] == [
        *("none", "none", "epoch_0000_step_000010", "epoch_0001", "epoch_0002_step_000005", "epoch_0003")
    ]
    assert (whole / "result.json").read_text() == (broken / "result.json").read_text()


def test_the_console_script_killed_from_outside_resumes(tmp_path):
    options = ["--recipe", "smoke", "--epochs", "25", "--holdout", "0.1", "--run-dir", "broken"]
    command = [script("resless-train"), *options]
    assert kill_when(command, tmp_path, tmp_path / "broken/checkpoints/epoch_0003") == -signal.SIGKILL
    assert not (tmp_path / "broken/result.json").exists()
    resumed = run([*command, "--resume", "auto"], tmp_path)
    assert "resumed from broken/checkpoints/epoch_" in resumed.stdout

    smoke = TRAIN["smoke"]
    whole = replace(smoke, data=DataConfig(holdout=0.1), optim=replace(smoke.optim, epochs=25))
    done(forked(lambda: train(config_in(whole, tmp_path / "whole"))))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_torchrun_killed_from_outside_resumes_on_two_processes(tmp_path):
    options = ["--model", "resnet8", "--epochs", "6", "--lr", "0.05", "--checkpoint-steps", "4", "--run-dir", "broken"]
    command = two_processes("resless.train", *options)
    step = tmp_path / "broken/checkpoints/epoch_0001_step_000004"
    assert kill_when(command, tmp_path, step) == -signal.SIGKILL
    assert not (tmp_path / "broken/result.json").exists()
    resumed = run([*command, "--resume", "auto"], tmp_path)
    assert resumed.stdout.count("2 process(es)") == 1, "one process, or one that is not silent"
    assert "Warning" not in resumed.stderr
    starts = json.loads((tmp_path / "broken/env.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 2]

    whole = TrainConfig(model="resnet8", optim=OptimConfig(lr=0.05, epochs=6))
    done(forked(lambda: train(config_in(whole, tmp_path / "whole")), 2))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


# --- stopped by a signal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [7, STEPS], ids=["inside an epoch", "at its end"])
def test_a_signal_saves_and_exits(tmp_path, number, code, step):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = replace(LENET.run, checkpoint_steps=None, checkpoint_epochs=2, run_dir=str(stopped))

    def task() -> None:
        at_step(step, lambda: os.kill(os.getpid(), number))
        cli.main(lambda: train(replace(LENET, run=options)))

    ended = forked(task)[0]
    assert ended.code == code, ended.printed
    where = "epoch 1, step 7" if step == 7 else "epoch 2, step 0"
    assert f"stopped by {signal.Signals(number).name} at {where}; go on with --resume auto" in ended.printed
    assert "Traceback" not in ended.printed
    assert checkpoints(stopped) == ["epoch_0000_step_000007" if step == 7 else "epoch_0001"]
    done(forked(lambda: train(replace(LENET, run=replace(options, resume="auto")))))
    done(forked(lambda: train(config_in(LENET, whole))))
    assert_same_run(whole, stopped)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_saves_though_those_that_decode_images_get_it_too(tmp_path, number, code):
    def signalled() -> None:
        # From outside the group, as torchrun and schedulers send it: what their parent sends, workers know.
        kill = ["kill", f"-{int(number)}", "--", f"-{os.getpgid(0)}"]
        subprocess.run(kill, start_new_session=True, check=True)
        time.sleep(1)  # for them to die, if they do

    def task() -> None:
        at_step(7, signalled)
        cli.main(lambda: train(config_in(STREAMED, tmp_path / "stopped", checkpoint_steps=None)))

    ended = forked(task)[0]
    assert ended.code == code, ended.printed
    assert f"stopped by {signal.Signals(number).name} at epoch 1, step 7" in ended.printed
    assert "Traceback" not in ended.printed
    done(forked(lambda: train(config_in(STREAMED, tmp_path / "stopped", resume="auto"))))
    done(forked(lambda: train(config_in(STREAMED, tmp_path / "whole"))))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_decoding_process_that_dies_stops_the_run_with_a_sentence(tmp_path):
    def task() -> None:
        at_step(7, lambda: psutil.Process().children()[0].kill())  # as the system does when memory runs out
        cli.main(lambda: train(config_in(STREAMED, tmp_path / "broken")))

    ended = forked(task)[0]
    assert ended.code == 2, ended.printed
    assert "error: a process that decodes images has died (DataLoader worker (pid" in ended.printed
    # A thread of multiprocessing may show where it noticed; a traceback of ours would begin at the console script.
    assert "/cli.py" not in ended.printed


def test_each_process_draws_random_numbers_of_its_own(tmp_path):
    def task() -> None:
        at_step(1, lambda: print(f"drew {torch.rand(1).item()}"))
        train(config_in(LENET, tmp_path / "run"))

    drawn = [re.findall(r"drew \S+", ended.printed) for ended in forked(task, 2)]
    assert len(drawn[0]) == len(drawn[1]) == 1
    assert drawn[0] != drawn[1], "the same policies, mixes and dropout on both"


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    def task() -> None:
        if os.environ["RANK"] == "1":
            at_step(12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(config_in(LENET, tmp_path / "stopped", checkpoint_steps=None))

    assert [ended.code for ended in forked(task, 2)] == [143, 143]
    assert checkpoints(tmp_path / "stopped") == ["epoch_0001"]
    done(forked(lambda: train(config_in(LENET, tmp_path / "stopped", resume="auto")), 2))
    done(forked(lambda: train(config_in(LENET, tmp_path / "whole")), 2))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_process_that_is_killed_stops_the_other_with_a_sentence(tmp_path):
    def task() -> None:
        if os.environ["RANK"] == "1":
            at_step(14, lambda: os.kill(os.getpid(), signal.SIGKILL))
        cli.main(lambda: train(config_in(LENET, tmp_path / "broken", checkpoint_steps=4)))

    survivor, killed = forked(task, 2)
    assert killed.code == -signal.SIGKILL
    assert survivor.code == 1, survivor.printed
    assert "error: [process 0] another process of this run ended at epoch 1, step 1" in survivor.printed
    assert "start all of them again with --resume auto" in survivor.printed
    assert "Traceback" not in survivor.printed
    done(forked(lambda: train(config_in(LENET, tmp_path / "broken", resume="auto", checkpoint_steps=4)), 2))
    done(forked(lambda: train(config_in(LENET, tmp_path / "whole")), 2))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_the_sentence_is_out_before_a_launcher_can_end_the_survivor(tmp_path):
    release = Run._release_signals

    def released(self: Run) -> None:
        release(self)
        os.kill(os.getpid(), signal.SIGTERM)

    def task() -> None:
        if os.environ["RANK"] == "1":
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        Run._release_signals = released
        cli.main(lambda: train(config_in(LENET, tmp_path / "broken")))

    survivor, _ = forked(task, 2)
    assert survivor.code == -signal.SIGTERM, survivor.printed
    assert "error: [process 0] another process of this run ended at epoch 1, step " in survivor.printed


def test_ctrl_c_twice_does_not_wait_but_sigterm_twice_still_saves(tmp_path):
    def twice(number: int, folder: Path) -> Callable[[], None]:
        def task() -> None:
            at_step(7, lambda: [os.kill(os.getpid(), number) for _ in range(2)])
            cli.main(lambda: train(config_in(LENET, folder, checkpoint_steps=None)))

        return task

    assert forked(twice(signal.SIGINT, tmp_path / "int")) == [Ended(130, _opening(tmp_path / "int"))]
    assert checkpoints(tmp_path / "int") == []
    assert forked(twice(signal.SIGTERM, tmp_path / "term"))[0].code == 143
    assert checkpoints(tmp_path / "term") == ["epoch_0000_step_000007"]


def _opening(folder: Path) -> str:
    return f"run folder {folder}, 1 process(es), cpu, float32\n"


# --- what a run may go on from


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of LENET with five checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done(forked(lambda: train(config_in(LENET, folder, keep_checkpoints=5))))
    assert checkpoints(folder) == [
        *("epoch_0003", "epoch_0002_step_000015", "epoch_0002_step_000010", "epoch_0002_step_000005", "epoch_0002")
    ]
    return folder


@pytest.mark.parametrize("source", ["checkpoints/epoch_0002_step_000010", "."], ids=["checkpoint folder", "run folder"])
def test_a_run_goes_on_in_a_new_folder_from_what_another_left(tmp_path, finished, source):
    config = config_in(LENET, tmp_path / "new", resume=str(finished / source))
    printed = done(forked(lambda: train(config)))
    expected = "epoch_0003" if source == "." else "epoch_0002_step_000010"
    assert f"resumed from {finished}/checkpoints/{expected}" in printed
    assert_same_run(finished, tmp_path / "new")


def test_a_run_goes_back_to_an_earlier_checkpoint_of_its_own(tmp_path, finished):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    earlier = folder / "checkpoints" / "epoch_0002_step_000005"

    def task() -> None:
        at_step(7, power_cut)
        train(config_in(LENET, folder, resume=str(earlier), keep_checkpoints=1))

    assert forked(task)[0].code == -signal.SIGKILL
    assert checkpoints(folder) == ["epoch_0002_step_000010"]
    printed = done(forked(lambda: train(config_in(LENET, folder, resume="auto"))))
    assert f"resumed from {folder}/checkpoints/epoch_0002_step_000010" in printed
    assert_same_run(finished, folder)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path, finished):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    newest = folder / "checkpoints" / "epoch_0003"
    os.truncate(newest / "state.pt", 1000)
    printed = done(forked(lambda: train(config_in(LENET, folder, resume="auto"))))
    assert f"checkpoint {newest} is damaged (state.pt does not match its checksum): skipped" in printed
    assert f"resumed from {folder}/checkpoints/epoch_0002_step_000015" in printed
    assert_same_run(finished, folder)


def test_what_does_not_fit_is_refused_by_what_differs(tmp_path, finished):
    new = tmp_path / "new"
    resume = str(finished / "checkpoints" / "epoch_0002")
    other = replace(LENET, optim=replace(LENET.optim, lr=0.1), model="resnet8")
    sentence = refused(lambda: train(config_in(other, new, resume=resume)))
    assert "--model = 'lenet_300_100' (now 'resnet8'), --lr = 0.003 (now 0.1)" in sentence
    sentence = refused(lambda: train(config_in(LENET, new, resume=resume)), processes=2)
    assert "was written by 1 processes (world size), but this run has 2" in sentence
    for nonsense, expected in (
        ("nonsense", "must be `auto`, a run folder, or a checkpoint folder"),
        (str(tmp_path), "is damaged (manifest.json cannot be read)"),
    ):
        assert expected in refused(lambda nonsense=nonsense: train(config_in(LENET, new, resume=nonsense)))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_network_is_refused(tmp_path, finished):
    """The configuration is the same, but what it names is another network now, as a replaced model folder would be."""

    def task() -> None:
        models.create_for = lambda name, images, **options: models.create("lenet5", in_channels=1, image_size=28)
        train(config_in(LENET, tmp_path / "new", resume=str(finished)))

    sentence = refused(task)
    assert "epoch_0003 is of another network or optimiser: Error(s) in loading state_dict for LeNet5" in sentence


# --- losses and weights that are not finite


def test_a_loss_that_is_not_finite_stops_the_run_with_epoch_and_step(tmp_path):
    folder = tmp_path / "run"

    def task() -> None:
        track, steps = Run.track, [0]

        def tracked(self: Run, *, loss: torch.Tensor, **values: torch.Tensor) -> None:
            steps[0] += 1
            track(self, loss=loss * (float("nan") if steps[0] == STEPS + 8 else 1), **values)

        Run.track = tracked
        train(config_in(LENET, folder))

    assert "the loss is not finite at epoch 2, step 8: " in refused(task)
    assert checkpoints(folder) == ["epoch_0001_step_000005", "epoch_0001"]
    assert not (folder / "model").exists()


# Decay times rate is above what float32 holds: the first step, whose loss is finite, leaves weights that are not.
OVERFLOW = replace(LENET, optim=OptimConfig(lr=1e38, weight_decay=1e4, batch_size=64, epochs=1))


@pytest.mark.parametrize(
    ("checkpoint_steps", "sentence"),
    [
        (1, "error: fc1.weight is not finite after epoch 1, step 1: "),
        (None, "error: the loss is not finite at epoch 1, step 2: "),
    ],
)
def test_weights_that_are_not_finite_are_never_saved(tmp_path, checkpoint_steps, sentence):
    config = config_in(OVERFLOW, tmp_path / "run", checkpoint_steps=checkpoint_steps)
    assert refused(lambda: train(config)).startswith(sentence)
    assert checkpoints(tmp_path / "run") == []


def test_weights_that_are_not_finite_after_the_last_step_of_all_are_not_saved_either(tmp_path):
    config = replace(OVERFLOW, data=DataConfig(), optim=replace(OVERFLOW.optim, batch_size=1437))
    sentence = refused(lambda: train(config_in(config, tmp_path / "run")))
    assert sentence.startswith("error: fc1.weight is not finite after the last step of epoch 1: ")
    assert checkpoints(tmp_path / "run") == []
    assert not (tmp_path / "run" / "model").exists()


# --- the run folder


def test_a_run_folder_is_used_again_only_when_asked(tmp_path, finished):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = sorted(folder.rglob("*"))
    short = replace(LENET, optim=replace(LENET.optim, epochs=1))
    sentence = refused(lambda: train(config_in(short, folder)))
    expected = "exists: go on with --resume auto, replace it with --overwrite, or choose --run-dir"
    assert sentence == f"error: run folder {folder} {expected}"
    assert sorted(folder.rglob("*")) == before
    done(forked(lambda: train(config_in(short, folder, overwrite=True))))
    assert len(metrics(folder)) == 1
    assert checkpoints(folder)[0] == "epoch_0001"


@pytest.mark.parametrize("option", [{"overwrite": True}, {"resume": "auto"}], ids=["overwrite", "resume"])
def test_a_folder_that_is_no_run_folder_is_left_alone(tmp_path, option):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "config.json").write_text("mine")
    assert f"{folder} is not a run folder" in refused(lambda: train(config_in(LENET, folder, **option)))
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("config.json", "mine")]


@pytest.mark.parametrize("option", [{"overwrite": True}, {"resume": "auto"}], ids=["overwrite", "resume"])
def test_a_folder_in_use_is_refused_and_keeps_what_it_holds(tmp_path, finished, option):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = sorted(folder.rglob("*"))
    with (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        sentence = refused(lambda: train(config_in(LENET, folder, **option)))
    assert sentence == f"error: run folder {folder} is in use by another run: wait, or choose --run-dir"
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_died_before_its_first_record_leaves_a_folder_that_counts_as_new(tmp_path):
    folder = tmp_path / "run"

    def task() -> None:
        run_module.write_text = power_cut
        train(config_in(LENET, folder))

    assert forked(task)[0].code == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == [".lock"]
    (folder / ".writing-env.json").write_text("{")  # as a kill a moment later leaves it
    assert "wrote" in done(forked(lambda: train(config_in(LENET, folder))))


@pytest.mark.parametrize("damaged", ["{", "[]", '{"starts": 5}'])
def test_a_damaged_record_of_earlier_starts_is_written_anew(tmp_path, finished, damaged):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "env.json").write_text(damaged)
    said = done(forked(lambda: train(config_in(LENET, folder, resume="auto"))))
    assert f"warning: {folder}/env.json is damaged" in said
    assert len(json.loads((folder / "env.json").read_text())["starts"]) == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    sentence = refused(lambda: train(config_in(LENET, tmp_path / "file" / "run")))
    assert sentence == f"error: cannot write to run folder {tmp_path}/file/run: Not a directory"


def mounted(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")


def test_a_read_only_folder_is_refused(tmp_path):
    mounted(tmp_path, "ro,size=1m")
    try:
        sentence = refused(lambda: train(config_in(LENET, tmp_path / "run")))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert sentence == f"error: cannot write to run folder {tmp_path}/run: Read-only file system"


def test_a_disk_that_fills_up_leaves_the_checkpoints_before(tmp_path):
    mounted(tmp_path, "size=3500k")  # room for two checkpoints of 1.4 MB, and for nothing else
    config = replace(LENET, optim=replace(LENET.optim, optimizer="sgd"))
    folder = tmp_path / "run"
    try:
        sentence = refused(lambda: train(config_in(config, folder, keep_checkpoints=9)))
        left = checkpoints(folder)
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        assert len(left) > 0
        assert all(checkpoint.damage(folder / "checkpoints" / name) is None for name in left)
        again = config_in(config, folder, resume="auto")
        assert f"resumed from {folder}/checkpoints/{left[0]}" in done(forked(lambda: train(again)))
        whole = config_in(config, tmp_path / "whole")
        done(forked(lambda: train(whole)))
        assert_same_run(tmp_path / "whole", folder)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "No space left on device" in sentence
    assert "the checkpoints that are there are unharmed, make room and go on with --resume auto" in sentence


@pytest.mark.parametrize("what", ["its records", "metrics", "checkpoint epoch_0001", "the result"])
def test_a_disk_error_is_one_sentence_wherever_it_strikes(tmp_path, what):
    def task() -> None:
        writing = Run.writing

        def failing(self: Run, name: str):
            with writing(self, name):
                if name == what:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                yield

        Run.writing = contextmanager(failing)
        train(config_in(LENET, tmp_path / "run", checkpoint_steps=None))

    assert f"error: cannot write {what} to {tmp_path}/run (Input/output error): " in refused(task)


# --- progress


def test_without_a_terminal_an_epoch_is_a_line(tmp_path):
    printed = done(forked(lambda: train(config_in(LENET, tmp_path / "[run]"))))
    lines = printed.splitlines()
    assert lines[0] == f"run folder {tmp_path}/[run], 1 process(es), cpu, float32"
    assert [line.split("  ")[0] for line in lines[1:4]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for text in ("lr 0.003", "train_loss ", "train_accuracy ", "held_out_top1 ", "seconds "):
        assert text in lines[1]
    assert lines[4] == f"wrote {tmp_path}/[run]/model"
    assert "\x1b" not in printed


def test_on_a_terminal_there_is_one_bar_and_the_cursor_comes_back(tmp_path):
    main, terminal = os.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(main, 4096):
                shown.append(chunk)
        except OSError:  # the terminal is gone
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def task() -> None:
        from resless import progress

        progress.REDRAW_SECONDS = 0.0
        os.environ.update(TERM="xterm", COLUMNS="160")
        os.environ.pop("NO_COLOR", None)
        with os.fdopen(terminal, "w", buffering=1) as sys.stdout:
            at_step(STEPS + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
            train(config_in(LENET, tmp_path / "run", checkpoint_steps=None))

    ended = forked(task)[0]
    os.close(terminal)
    reader.join(10)
    os.close(main)
    text = b"".join(shown).decode()
    assert ended.code == 143, ended.printed
    for part in ("epoch 2/3 step 3/20", "loss ", "accuracy ", "lr 0.003", "images/s", " left", "━", "train_loss"):
        assert part in text, f"{part!r} is not in {text[-2000:]!r}"
    hidden, back = text.rfind("\x1b[?25l"), text.rfind("\x1b[?25h")
    assert 0 <= hidden < back, "the cursor stays hidden"


# --- in a library


def test_a_run_gives_back_signals_lock_and_precision_of_the_process(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    short = replace(LENET, optim=replace(LENET.optim, epochs=1))
    first = train(config_in(short, tmp_path / "run"))
    second = train(config_in(short, tmp_path / "run", overwrite=True))
    assert first == second
    train(config_in(short, tmp_path / "bf16", mixed_precision="bf16", channels_last=True))
    with pytest.raises(InputError, match="not finite"):
        train(config_in(replace(short, optim=replace(short.optim, lr=1e38)), tmp_path / "fails"))
    assert {number: signal.getsignal(number) for number in before} == before
    with (tmp_path / "fails" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_works_outside_the_main_thread(tmp_path):
    found = []
    short = config_in(replace(LENET, optim=replace(LENET.optim, epochs=1)), tmp_path / "run")
    thread = threading.Thread(target=lambda: found.append(train(short)))
    thread.start()
    thread.join()
    assert found[0].images == 360


def test_trackers_are_written_or_refused(tmp_path):
    for name in ("tensorbord", "nonsense"):
        with pytest.raises(InputError, match=f"unknown tracker, or one that is not installed, '{name}'"):
            train(config_in(LENET, tmp_path / "run", trackers=(name,)))
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    done(forked(lambda: train(config_in(LENET, tmp_path / "run", trackers=("tensorboard",)))))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_fp16_on_a_cpu_is_refused_rather_than_passed_over(tmp_path):
    sentence = refused(lambda: train(config_in(LENET, tmp_path / "run", mixed_precision="fp16")))
    assert sentence == "error: --mixed-precision is 'fp16', but must be auto, bf16 or no on a CPU"
    assert list(tmp_path.iterdir()) == []


def test_bf16_and_channels_last_are_used_and_resumed(tmp_path):
    config = replace(RESNET, run=replace(RESNET.run, mixed_precision="bf16", channels_last=True))
    seen = []

    def task() -> None:
        forward = nn.Conv2d.forward

        def watched(self: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
            output = forward(self, images)
            layout = images.shape[1] == 1 or images.is_contiguous(memory_format=torch.channels_last)
            seen.append((output.dtype, layout))
            return output

        nn.Conv2d.forward = watched
        train(config_in(config, tmp_path / "whole"))
        assert set(seen) >= {(torch.bfloat16, True)}
        assert (torch.bfloat16, False) not in seen

    done(forked(task))
    killed(train, config_in(config, tmp_path / "broken"), 1, step=13)
    done(forked(lambda: train(config_in(config, tmp_path / "broken", resume="auto"))))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert {tensor.dtype for tensor in weights_in(tmp_path / "whole").values()} == {torch.float32, torch.int64}
