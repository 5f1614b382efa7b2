"""The demo of the README: killed in the middle it goes on where it was, and ends in one comparison of six networks."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import adn.cli
import blockdrop.cli
import deephoyer.cli
import epsilon_resnet.cli
import pytest
import resless.cli
import torch
import tyro
from PIL import Image
from resless import costs, models, weights
from resless.errors import InputError
from resless.testing import Ended, done, environment, few_images, forked, power_cut_at, succeeded, undrawn

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compare.py"
SMALLEST = ["--model", "resnet14", "--epochs", "2", "--repeats", "2", "--runs", "demo"]
ENTRIES: dict[str, Callable[[], None]] = {
    "resless-train": resless.cli.train,
    "resless-compare": resless.cli.compare,
    "deephoyer-train": deephoyer.cli.train,
    "deephoyer-prune": deephoyer.cli.prune,
    "deephoyer-compact": deephoyer.cli.compact,
    "blockdrop-train": blockdrop.cli.train,
    "blockdrop-finetune": blockdrop.cli.finetune,
    "epsilon-resnet-train": epsilon_resnet.cli.train,
    "epsilon-resnet-compress": epsilon_resnet.cli.compress,
    "adn-train": adn.cli.train,
    "adn-extract": adn.cli.extract,
}
STEPS = [
    *("dense", "small-sparse", "small-pruned", "small", "blockdrop-policy", "blockdrop"),
    *("epsilon", "epsilon/compressed", "adn", "adn-super", "adn-base", "comparison"),
]
KILLED = "adn"  # step 9: whatever is before it is finished, and two that need it are not
# After two epochs, ε-ResNet may have discarded no block: then nothing is written, and the step is taken again.
WRITTEN = [name for name in STEPS if name not in ("epsilon/compressed", "comparison")]


def loaded() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["demo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEMO = loaded()


def demo(cwd: Path, killed_at: str | None = None) -> Ended:
    """The demo in a fork, and each of its commands in a fork of that, which spares seconds of imports a command.

    Args:
        cwd: where it runs.
        killed_at: command whose fourth step all of them end at, as in a power cut.
    """

    def call(command: tuple[str, ...]) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sys.argv = list(command)
                if command[0] == killed_at:
                    power_cut_at(4)
                ENTRIES[command[0]]()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    def task() -> None:
        os.chdir(cwd)
        DEMO.call = call
        DEMO.main(tyro.cli(DEMO.Options, args=SMALLEST))

    with few_images(train=192, test=48), undrawn():  # three steps an epoch
        return forked(task)[0]


def results(root: Path) -> dict[str, tuple[int, bytes]]:
    """Each step that is done -> when its last file was written, and what that holds."""
    steps = DEMO.steps(DEMO.Options(model="resnet14", runs=str(root)))
    there = {step.name: step.done for step in steps if step.name in WRITTEN and step.done.exists()}
    return {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in there.items()}


def starts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "env.json").read_text())["starts"]


@dataclass(frozen=True)
class Resumed:
    """A demo that was killed and has gone on: where, what was done by then, and what it printed after that."""

    cwd: Path
    before: dict[str, tuple[int, bytes]]
    printed: str


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    cwd = tmp_path_factory.mktemp("resumed")
    ended = demo(cwd, killed_at="adn-train")
    assert ended.code == -signal.SIGKILL, ended.printed
    assert f"step 9 of 12, {KILLED}" in ended.printed
    before = results(cwd / "demo")
    return Resumed(cwd, before, done([demo(cwd)]))


def test_killed_in_the_middle_it_goes_on_where_it_was(resumed: Resumed) -> None:
    cwd, before, printed = resumed.cwd, resumed.before, resumed.printed
    assert list(before) == WRITTEN[: WRITTEN.index(KILLED)]
    after = results(cwd / "demo")
    assert {name: after[name] for name in before} == before
    assert list(after) == WRITTEN
    first, second = starts(cwd / "demo" / KILLED)
    assert first["resumed_from"] is None
    assert second["resumed_from"] == "demo/adn/checkpoints/epoch_0001"
    assert "resumed from demo/adn/checkpoints/epoch_0001" in printed
    for number, name in enumerate(STEPS, 1):
        assert printed.count(f"step {number} of 12, {name}") == 1
        if name in WRITTEN:
            assert (f"step {number} of 12, {name}: done before" in printed) == (name in before)
    for name in ("dense", "blockdrop", "epsilon"):
        assert len(starts(cwd / "demo" / name)) == 1


def test_the_script_ends_in_one_comparison_of_six_networks(resumed: Resumed) -> None:
    """The script itself, with its commands as a user has them: all networks are there, so that it only measures."""
    cwd, before = resumed.cwd, results(resumed.cwd / "demo")
    command = [sys.executable, str(SCRIPT), *SMALLEST]
    printed = subprocess.run(command, cwd=cwd, env=environment(), check=True, capture_output=True, text=True).stdout
    assert results(cwd / "demo") == before
    found = json.loads((cwd / "demo" / "comparison.json").read_text())["networks"]
    folders = DEMO.networks(DEMO.Options(model="resnet14", runs=str(cwd / "demo")))
    assert [network["name"] for network in found] == list(folders)
    assert len(found) == 6
    dense = found[0]
    for network, (name, folder) in zip(found, folders.items(), strict=True):
        assert printed.count(f"│ {name} ") == 1
        assert network["accuracy"]["images"] == 360
        right = network["accuracy"]["top1"] * 360
        assert right == pytest.approx(round(right))
        assert 0 < network["macs"] <= dense["macs"]
        assert network["parameters"] == costs.count_parameters(weights.from_pretrained(folder))
        assert network["file_bytes"] == (folder / "model.safetensors").stat().st_size
        assert set(network["latencies"]) == {"1", "256"}
        for latency in network["latencies"].values():
            assert 0 < latency["q25_ms"] <= latency["median_ms"] <= latency["q75_ms"]
            assert 0 < latency["speedup"]["q25"] <= latency["speedup"]["median"] <= latency["speedup"]["q75"]
        assert network["latencies"]["256"]["ideal_speedup"] == pytest.approx(dense["macs"] / network["macs"])
    assert found[1]["macs"] <= dense["macs"] / 2, "DeepHoyer's budget"
    with Image.open(cwd / "demo" / "comparison.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) >= 400
        assert len(picture.getcolors(maxcolors=2**24)) > len(found)
    seconds = json.loads((cwd / "demo" / "seconds.json").read_text())
    assert list(seconds["steps"]) == STEPS
    assert seconds["total"] == pytest.approx(sum(seconds["steps"].values()))
    assert all(value > 0 for value in seconds["steps"].values())


def test_ctrl_c_waits_for_the_command_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "saves"
    script.write_text("#!/bin/sh\ntrap 'sleep 1; touch saved; exit 130' INT\nsleep 2\nkill -INT 0\nsleep 20\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def task() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background may ignore
        resless.cli.main(lambda: DEMO.call(("saves",)))

    ended = forked(task)[0]
    assert ended.code == 130, ended.printed
    assert (tmp_path / "saved").exists()


def test_seconds_add_up_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 27.0])
    monkeypatch.setattr(DEMO.time, "perf_counter", lambda: next(clock))
    step, note = DEMO.Step("dense", (), tmp_path / "result.json"), tmp_path / "seconds.json"
    with pytest.raises(KeyboardInterrupt), DEMO.timed(step, note):
        raise KeyboardInterrupt
    with DEMO.timed(step, note):
        step.done.touch()
    assert json.loads(note.read_text()) == {"total": 5.0, "steps": {"dense": 5.0}}
    with DEMO.timed(step, note):  # once more, though it is done
        pass
    assert json.loads(note.read_text()) == {"total": 7.0, "steps": {"dense": 7.0}}


def test_a_folder_belongs_to_its_options_once_something_is_made_there(tmp_path: Path) -> None:
    runs = str(tmp_path / "demo")
    DEMO.claim(DEMO.Options(runs=runs))
    (tmp_path / "demo" / "seconds.json").write_text("damaged")  # nothing depends on it
    assert DEMO.noted_seconds(tmp_path / "demo" / "seconds.json") == {}
    DEMO.claim(DEMO.Options(runs=runs, image_size=16))  # what the first command's refusal advised
    (tmp_path / "demo" / "dense").mkdir()
    DEMO.claim(DEMO.Options(runs=runs, image_size=16, repeats=3, record=True))
    with pytest.raises(InputError, match=r"must be another folder: this one holds a comparison with --image-size 16"):
        DEMO.claim(DEMO.Options(runs=runs))
    with pytest.raises(InputError, match=r"another folder: this one holds a comparison with --model resnet20$"):
        DEMO.claim(DEMO.Options(runs=runs, image_size=16, model="resnet32"))
    note = tmp_path / "demo" / "options.json"
    for content in ('{"dataset": "di', "[1, 2]"):
        note.write_text(content)
        with pytest.raises(InputError, match=rf"{note} is .*: give another folder as --runs"):
            DEMO.claim(DEMO.Options(runs=runs))
    note.unlink()
    with pytest.raises(InputError, match="but must be a folder that is empty or not there"):
        DEMO.claim(DEMO.Options(runs=runs))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"epochs": 0}, "--epochs is 0, but must be 1 or more, or left out for those of the recipes"),
        ({"epochs": -1}, "--epochs is -1"),
        ({"batch_size": 1}, "--batch-size is 1, but must be 2 or more, or left out for those of the recipes"),
        ({"repeats": 1}, "--repeats is 1, but must be 2 or more"),
        ({"image_size": 0}, "--image-size is 0"),
        ({"pad": -1}, "--pad is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"share": 1.0}, "--share is 1.0"),
        ({"model": "resnet8"}, "--model is 'resnet8'"),
        ({"dataset": "digit"}, "did you mean digits"),
        ({"mean": (0.5,)}, r"--mean is \(0.5,\), but must be left out: it is of --pretrained"),
    ],
)
def test_options_are_refused_before_anything_is_made(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        DEMO.Options(**given)


def test_every_option_that_is_given_reaches_the_commands(tmp_path: Path) -> None:
    columns = {"image_column": "photo", "label_column": "kind"}
    options = DEMO.Options(
        data_dir="", image_size=1, batch_size=2, epochs=1, pad=0, seed=0, runs=str(tmp_path), **columns
    )
    given = " ".join(DEMO.training(options, options.epochs))
    assert given.startswith(
        "--dataset digits --data-dir  --image-column photo --label-column kind --image-size 1 "
        "--pad 0 --no-flip --seed 0 --epochs 1 --batch-size 2 "
    )


def test_a_network_that_is_given_is_compared_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = models.create("resnet14", in_channels=1, shortcut="subsample").eval()
    torch.save(given.state_dict(), tmp_path / "given.pth")
    statistics = {"shortcut": "subsample", "mean": (0.25,), "std": (0.5,)}
    options = DEMO.Options(model="resnet14", epochs=2, pretrained="given.pth", runs="demo", **statistics)
    script, *arguments = next(DEMO.steps(options)).command
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second start knows its own folder
        DEMO.claim(options)
    with few_images(train=64, test=32), undrawn():
        succeeded(ENTRIES[script], *arguments, cwd=tmp_path)
    folder, images = tmp_path / "demo" / "dense" / "model", torch.rand(2, 1, 8, 8)
    assert torch.equal(weights.from_pretrained(folder)(images), given(images))
    assert weights.read_config(folder)["preprocessing"] == {"mean": [0.25], "std": [0.5], "image_size": 8}
