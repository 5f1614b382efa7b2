"""Helpers that every package's tests use: real data where it is, console scripts, two processes, exact resume, limits.

Nothing here is needed to use a package, so that pytest is no dependency: whoever tests has it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NoReturn

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from resless import report, weights
from resless import run as run_module
from resless.calibrate import batch_norms, calibration_batches, recalibrate
from resless.config import DataConfig
from resless.data import Images, Shards, pipeline
from resless.evaluate import evaluate

TIMEOUT_S = 300
IMPORTED_LATE = ("torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.figure")
"""By an optimizer and by pictures, for seconds; forks find these here."""
_ON_CPU = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def shared_data(*parts: str) -> Path:
    """A file or folder of real images and weights, beside the repository or in $RESLESS_SHARED; skips without it."""
    roots = [Path(os.environ["RESLESS_SHARED"])] if "RESLESS_SHARED" in os.environ else []
    roots += [folder.parent / "shared" for folder in Path.cwd().resolve().parents]
    roots += [Path.cwd().resolve().parent / "shared"]
    for root in roots:
        # The repository has a folder `shared` too: only the one with this file or folder is meant.
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    return pytest.skip(f"needs {'/'.join(parts)}: not beside the repository, nor in $RESLESS_SHARED")


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own at `folder`, in memory, mounted with options such as `size=1m`; skips without the right to."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def script(name: str) -> str:
    """Path of an installed console script of the running environment."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"console script {name} is not installed beside {sys.executable}"
    return str(path)


def run(command: list[str], cwd: Path, *, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command, without the hub, on one thread, and assert its exit code."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == code, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def refusal(command: list[str], cwd: Path) -> str:
    """The one sentence with which a console script refuses bad input: exit code 2, no traceback, nothing written."""
    before = sorted(cwd.rglob("*"))
    done = run(command, cwd, code=2)
    assert "Traceback" not in done.stderr, done.stderr
    assert sorted(cwd.rglob("*")) == before, "bad input left files behind"
    return done.stderr


def two_processes(module: str, *args: str) -> list[str]:
    """The command that runs `python -m module` on two processes of this machine.

    By torchrun: `accelerate launch --cpu --num_processes 2` would silently start one.
    """
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        *("-m", module, *args),
    ]


def environment() -> dict[str, str]:
    """Environment of a subprocess: offline, on the CPU, one thread, no colours."""
    return os.environ | _ON_CPU | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def kill_when(command: list[str], cwd: Path, path: Path, number: int = signal.SIGKILL) -> int:
    """Start a command, send it a signal as soon as `path` exists, and return its exit code.

    With SIGKILL its children die too, as in a power cut: torchrun's would otherwise go on without it.
    """
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=silent, stderr=silent)
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert process.poll() is None, f"{command} ended with {process.returncode} before {path} was there"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    if number == signal.SIGKILL:
        for child in children:
            child.kill()
        psutil.wait_procs(children, TIMEOUT_S)
    return process.wait(TIMEOUT_S)


@dataclass(frozen=True)
class Ended:
    """How a forked process ended: its exit code (-9 if killed), and what it printed."""

    code: int
    printed: str


def forked(task: Callable[[], object], processes: int = 1) -> list[Ended]:
    """Run `task` in forked copies of this process, on the CPU and on one thread each, and wait for them.

    A fresh interpreter takes seconds to import torch, a fork none; it may die (`os.killpg(0, signal.SIGKILL)` kills
    all of them at once) and leaves nothing in this process. Several form a group, as under torchrun.
    """
    for module in IMPORTED_LATE:
        import_module(module)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(processes)]
        children: list[int] = []
        # Garbage of this process stays untouched in the forks: its finalizers would run there a second time, and at any
        # moment, in Python 3.11 even inside of a parser, which then fails ("AST constructor recursion depth mismatch").
        gc.freeze()
        for rank, output in enumerate(outputs):
            group = children[0] if children else 0
            child = os.fork()
            if child == 0:
                os.setpgid(0, group)
                _child(task, output, rank, processes, port)
            os.setpgid(child, group or child)  # here too: whichever comes first
            children.append(child)
        gc.unfreeze()
        codes = _wait(children)
        return [Ended(code, output.read_text()) for code, output in zip(codes, outputs, strict=True)]


def done(ended: list[Ended]) -> str:
    """What the first process printed, once all have succeeded."""
    for rank, process in enumerate(ended):
        assert process.code == 0, f"process {rank} gave {process.code}:\n{process.printed}"
    return ended[0].printed


def entered(entry: Callable[[], None], *args: str, cwd: Path, processes: int = 1) -> list[Ended]:
    """A console script's entry point in forks: as the script, without its seconds of imports."""

    def task() -> None:
        os.chdir(cwd)
        sys.argv = ["script", *args]
        entry()

    return forked(task, processes)


def succeeded(entry: Callable[[], None], *args: str, cwd: Path, processes: int = 1) -> str:
    """What a console script's entry point printed, which succeeded."""
    return done(entered(entry, *args, cwd=cwd, processes=processes))


def refused(entry: Callable[[], None], *args: str, cwd: Path, processes: int = 1) -> str:
    """The one sentence with which an entry point refuses bad input: exit code 2, no traceback, nothing written."""
    before = {path: path.stat().st_mtime_ns for path in cwd.rglob("*")}
    ended = entered(entry, *args, cwd=cwd, processes=processes)
    assert [process.code for process in ended] == [2] * processes, ended[0].printed
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob("*")} == before, "bad input left files behind"
    lines = ended[0].printed.splitlines()
    assert len(lines) == 1, ended[0].printed
    assert lines[0].startswith("error: ")
    return lines[0]


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an exception, or one of those that led to it, is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def reset_peak_memory() -> int:
    """Let the peak begin anew, where the system can (Linux), and return it: what this process has now, in bytes."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # man proc
    return peak_memory()


def peak_memory() -> int:
    """The most memory that this process has had since `reset_peak_memory`, in bytes."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


@contextmanager
def undrawn(*places: tuple[ModuleType, str]) -> Iterator[None]:
    """Runs draw nothing, neither curves nor by the functions at these places: pictures take most of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((report, "curves"), *places):
            patch.setattr(module, name, lambda *_: None)
        yield


@contextmanager
def few_images(train: int, test: int) -> Iterator[None]:
    """Data sets in memory have so many images to train and to test on."""
    load = pipeline.load

    def first(name: str, split: str = "train", *args: Any, **options: Any) -> Images:
        images, count = load(name, split, *args, **options), train if split == "train" else test
        return replace(images, images=images.images[:count], labels=images.labels[:count])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load", first)
        yield


def power_cut_at(number: int) -> None:
    """In a fork: kill all processes at the end of the n-th step from now."""
    track, steps = run_module.Run.track, [0]

    def tracked(self: run_module.Run, **values: torch.Tensor) -> None:
        track(self, **values)
        steps[0] += 1
        if steps[0] == number:
            os.killpg(0, signal.SIGKILL)

    run_module.Run.track = tracked  # type: ignore[method-assign]


def assert_resumes_exactly(
    stage: Callable[[Any], object], configured: Callable[..., Any], folder: Path, processes: int = 1
) -> None:
    """A run of two epochs of four steps, killed at its seventh step and resumed, ends as if it had not been.

    Args:
        stage: what trains, given a configuration.
        configured: makes a configuration, of a run folder and of fields of its `run` part.
        folder: gets the run folders `whole` and `broken`.
        processes: how many train.
    """
    whole, broken = folder / "whole", folder / "broken"
    done(forked(lambda: stage(configured(whole)), processes))
    config = configured(broken, {"checkpoint_steps": 1})

    def killed() -> None:
        power_cut_at(7)
        stage(config)

    assert [ended.code for ended in forked(killed, processes)] == [-signal.SIGKILL] * processes
    again = replace(config, run=replace(config.run, resume="auto"))
    printed = done(forked(lambda: stage(again), processes))
    assert f"resumed from {broken}/checkpoints/epoch_0001_step_000002" in printed
    assert_same_run(whole, broken)
    assert (whole / "result.json").read_text() == (broken / "result.json").read_text()
    assert len(metrics(whole)) == 2


def _child(task: Callable[[], object], output: Path, rank: int, processes: int, port: int) -> NoReturn:
    code = 1
    try:
        with output.open("w", buffering=1) as printed:
            sys.stdout = sys.stderr = printed
            try:
                _become(rank, processes, port)
                task()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc(file=printed)
    finally:
        os._exit(code)  # nothing of this process's, such as pytest's own end, is to run a second time


def _become(rank: int, processes: int, port: int) -> None:
    """Make this process one of a group, as torchrun would, on the CPU and on one thread."""
    torch.set_num_threads(1)
    os.environ.update(_ON_CPU)
    if processes > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in group.items()})
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    AcceleratorState._reset_state(reset_partial_state=True)


def _wait(children: list[int]) -> list[int]:
    deadline = time.monotonic() + TIMEOUT_S
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[child] for child in children]


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without their times."""
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_run(run_folder: Path, other: Path) -> None:
    """Two runs ended with the same weights, bit for bit, and recorded the same epochs."""
    assert_same_weights(run_folder / "model", other / "model")
    assert len(metrics(run_folder)) > 0
    assert metrics(run_folder) == metrics(other)


def assert_same_weights(model_folder: Path | str, other: Path | str) -> None:
    """Two model folders hold the same weights, bit for bit.

    For the limits of a method: switched off, it is the plain network's training; zero steps change nothing.
    """
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in (model_folder, other))
    assert first.keys() == second.keys()
    assert len(first) > 0
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs"


def assert_every_parameter_gets_gradient(model: nn.Module, loss: torch.Tensor) -> None:
    """After `loss.backward()`, every trainable parameter has a gradient that is finite and not all zero."""
    loss.backward()
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert parameters, "the model has no trainable parameter"
    for name, parameter in parameters:
        assert parameter.grad is not None, f"{name} got no gradient"
        assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"


def assert_recalibrates(entry: Callable[[], None], net: nn.Module, folder: Path) -> None:
    """`--recalibrate-bn` of a command that evaluates gives a network of the digits the loss that the function gives.

    Args:
        entry: the command's entry point.
        net: takes images [N, 1, 8, 8]; its batch norms lose their statistics.
        folder: where everything is written.
    """
    statistics = {"mean": [0.3056], "std": [0.376]}
    data, used = pipeline.Pipeline(DataConfig(), 0, Shards(), statistics), run_module.accelerator("no")
    recalibrate(net, calibration_batches(data, 100, 64), used)
    expected = evaluate(net, data.evaluation(data.test), used).loss
    for norm in batch_norms(net):  # no images' statistics any more
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.add_(1)
        norm.running_var.mul_(4)
    weights.save_pretrained(net, folder / "model", preprocessing=statistics)
    losses = []
    for given in ([], ["--recalibrate-bn", "100"]):
        succeeded(entry, "--model", "model", "--batch-size", "64", "--output", "eval.json", *given, cwd=folder)
        losses.append(json.loads((folder / "eval.json").read_text())["loss"])
    as_written, anew = losses
    assert anew == pytest.approx(expected, rel=1e-6)
    assert as_written != pytest.approx(expected, rel=1e-3)
