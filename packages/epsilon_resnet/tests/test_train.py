"""The loop: its limits, what it does to discarded blocks, what it records, runs that are killed, and two processes."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from epsilon_resnet import cli, method
from epsilon_resnet import train as train_module
from epsilon_resnet.compress import compress
from epsilon_resnet.config import EvalConfig, Optim, Run, TrainConfig
from epsilon_resnet.evaluate import main as evaluate
from epsilon_resnet.model import EpsilonResNet, Responses, SideHead
from epsilon_resnet.train import train
from resless import checkpoint, models, weights
from resless import run as run_module
from resless.cli import main
from resless.config import DataConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.models.preresnet import BasicBlock
from resless.testing import assert_same_run, done, forked, metrics, run, two_processes
from safetensors.torch import load_file
from torch import Tensor

QUIET = (1, 4)  # of the planted network's six blocks
STEPS = 4  # an epoch of 256 images

small = pytest.mark.usefixtures("few_images", "no_pictures")  # 256 images to train on, 120 to test on


def training(folder: Path, /, run: dict[str, Any] | None = None, **fields: Any) -> TrainConfig:
    """Two blocks a stage, on the digits, in the given run folder."""
    defaults: dict[str, Any] = {"n": 2, "epsilon": 1.0, "retire_after": 1, "data": DataConfig(pad=1), "optim": OPTIM}
    return TrainConfig(**(defaults | {"run": Run(run_dir=str(folder), **(run or {}))} | fields))


OPTIM = Optim(lr=0.05, weight_decay=1e-2, batch_size=64, epochs=2, milestones=(2,), restart_milestones=(1,))


def state_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def story_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "blocks.json").read_text())


def trained_network(folder: Path) -> EpsilonResNet:
    net = weights.from_pretrained(folder / "model")
    assert isinstance(net, EpsilonResNet)
    return net


def blocks_name(index: int) -> str:
    return f"resnet.layers.{index // 2}.{index % 2}."


def of_blocks(name: str, indices: tuple[int, ...] | list[int]) -> bool:
    return any(name.startswith(blocks_name(index)) for index in indices)


# --- limits


@small
@pytest.mark.parametrize("retire_after", [0, 1])
def test_switched_off_it_is_plain_training_bit_for_bit(tmp_path: Path, retire_after: int) -> None:
    optim = Optim(lr=0.05, weight_decay=1e-2, batch_size=64, epochs=3, milestones=(1,))
    config = training(tmp_path / "run", epsilon=0.0, side_weight=0.0, retire_after=retire_after, optim=optim)
    train(config)

    torch.manual_seed(config.run.seed)
    net = models.create("preresnet14", num_classes=10, in_channels=1, **config.backbone_options)
    decayed = [parameter for name, parameter in net.named_parameters() if name in DECAYED]
    others = [parameter for name, parameter in net.named_parameters() if name not in DECAYED]
    assert (len(decayed), len(others)) == (1 + 12 + 1, 2 + 11 * 2 + 2 + 1)
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, fused=True)  # as the loop: others round otherwise
    batches = Pipeline(config.data, config.run.seed, Shards()).training(64)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 if epoch < 1 else 0.005
        for images, labels in batches.epoch(epoch):
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    after, expected = state_of(tmp_path / "run"), net.state_dict()
    assert after.keys() == {f"resnet.{name}" for name in expected} | {"discarded", "retired"}
    for name, tensor in expected.items():
        assert torch.equal(after[f"resnet.{name}"], tensor), name
    assert not after["discarded"].any()
    assert [record["discarded_blocks"] for record in metrics(tmp_path / "run")] == [0, 0, 0]


DECAYED = {
    "stem.0.weight",
    "linear.weight",
    *(f"layers.{stage}.{unit}.conv{conv}.weight" for stage in range(3) for unit in range(2) for conv in (1, 2)),
}
"""What the paper decays of the network of 14 layers: all convolutions and the linear layer; nothing else."""


@small
def test_zero_epochs_change_nothing(planted: str, tmp_path: Path) -> None:
    train(training(tmp_path / "run", pretrained=planted, optim=replace(OPTIM, epochs=0)))
    before, after = torch.load(planted, weights_only=True), state_of(tmp_path / "run")
    assert len(before) > 50
    assert all(torch.equal(after[f"resnet.{name}"], tensor) for name, tensor in before.items())
    assert metrics(tmp_path / "run") == story_of(tmp_path / "run")["epochs"] == []
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["discarded"], result["retired"], result["restarts"], result["images"]) == ([], [], 0, 120)


@small
def test_when_epsilon_stops_the_discarded_blocks_are_gone_and_no_other_goes(planted: str, tmp_path: Path) -> None:
    """Their weights have hardly decayed after one epoch, and --retire-after is off."""
    config = training(tmp_path / "run", pretrained=planted, epsilon_stop=1, retire_after=0, weight_bound=1e-6)
    train(config)
    assert story_of(tmp_path / "run")["retired"] == {"1": 0, "4": 0}
    net = trained_network(tmp_path / "run")
    assert net.retired.tolist() == [False, True, False, False, True, False]
    assert net.closed() == net.retired.tolist()
    images = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(compress(net)(images), net(images), atol=1e-5, rtol=1e-5)


@small
def test_before_epsilon_starts_nothing_is_discarded(planted: str, tmp_path: Path) -> None:
    """Not even blocks that respond as little as the planted ones do: until then it is a run with ε = 0."""
    options: dict[str, Any] = {"pretrained": planted, "optim": replace(OPTIM, lr=0.001, epochs=3), "retire_after": 0}
    train(training(tmp_path / "late", epsilon_start=2, **options))
    train(training(tmp_path / "never", epsilon=0.0, **options))
    late, never = story_of(tmp_path / "late"), story_of(tmp_path / "never")
    assert [epoch["discarded"] for epoch in late["epochs"]] == [[0.0] * 6] * 2 + [[0.0, 1.0, 0.0, 0.0, 1.0, 0.0]]
    assert late["epochs"][:2] == never["epochs"][:2], "weights and responses are equal, too"
    assert metrics(tmp_path / "late")[:2] == metrics(tmp_path / "never")[:2]
    assert (late["epsilon"], late["epsilon_start"], never["epsilon"]) == (1.0, 2, 0.0)


# --- one step, against the formula


@small
@pytest.mark.parametrize("side_weight", [None, 0.7])
def test_a_step_follows_the_formula(side_weight: float | None, planted: str, tmp_path: Path) -> None:
    """Cross-entropy and a tenth, or what is asked for, of that of the side head; discarded blocks only decay."""
    optim = Optim(lr=0.1, momentum=0.0, weight_decay=0.5, batch_size=256, epochs=1)
    given: dict[str, Any] = {} if side_weight is None else {"side_weight": side_weight}
    config = training(tmp_path / "run", pretrained=planted, retire_after=0, optim=optim, **given)
    train(config)
    data = Pipeline(config.data, 0, Shards())
    torch.manual_seed(0)
    net = train_module.gated_network(config, data)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    images, labels = next(iter(data.training(256).epoch(0)))

    x = net.resnet.stem(images)
    for index, block in enumerate(net.blocks()):
        if index == 3:
            assert isinstance(net.side, SideHead)
            side_logits = net.side(x)
        response = block.residual(x)
        assert (response.abs().max() < 1) == (index in QUIET)
        x = block.shortcut(x) if index in QUIET else block.shortcut(x) + response
    losses = F.cross_entropy(net.resnet.head(x), labels), F.cross_entropy(side_logits, labels)
    loss = losses[0] + (side_weight or 0.1) * losses[1]
    loss.backward()

    record = metrics(tmp_path / "run")[0]
    assert record["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["train_side_accuracy"] == pytest.approx((side_logits.argmax(1) == labels).float().mean().item())
    after, quiet = state_of(tmp_path / "run"), 0
    for name, parameter in net.named_parameters():
        decay = 0.5 * before[name] if parameter.dim() > 1 else torch.zeros_like(before[name])
        assert (parameter.grad is None) == of_blocks(name, QUIET), name
        gradient = torch.zeros_like(decay) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(after[name], before[name] - 0.1 * (gradient + decay), rtol=1e-4, atol=1e-6, msg=name)
        quiet += parameter.grad is None
    assert quiet == len(QUIET) * 6, "two convolutions and two batch norms each"


# --- discarded blocks


def scripted(monkeypatch: pytest.MonkeyPatch, epochs: list[list[str]]) -> None:
    """Responses to order: of each epoch, a line a block and a sign a step, `o` reaches an ε of 1 and `-` does not."""
    steps = [(epoch, step) for epoch in range(len(epochs)) for step in range(STEPS)]
    values = iter([2.0 if epochs[epoch][block][step] == "o" else 0.5 for epoch, step in steps for block in range(6)])
    monkeypatch.setattr(method, "largest_response", lambda response: torch.tensor(next(values)))


OPEN, CLOSED = "oooo", "----"
SCRIPT = [
    [OPEN, OPEN, OPEN, OPEN, OPEN, OPEN],
    [OPEN, OPEN, CLOSED, OPEN, OPEN, OPEN],  # block 2 is lost
    [OPEN, OPEN, OPEN, OPEN, CLOSED, "---o"],  # 4 and 5 are, 2 is back
    [OPEN, CLOSED, OPEN, OPEN, CLOSED, OPEN],  # as many as before: 1 instead of 5
    ["o--o", "o-oo", CLOSED, OPEN, CLOSED, OPEN],  # half of the steps are most of them, a quarter is not: 0 and 2
    [OPEN, OPEN, OPEN, OPEN, OPEN, OPEN],
]


@small
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_learning_rate_starts_anew_when_blocks_are_lost(
    adaptive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, SCRIPT)
    optim = replace(OPTIM, epochs=6, milestones=(1, 5), restart_milestones=(2, 3) if adaptive else ())
    optim = replace(optim, factors=(0.5, 0.1))
    train(training(tmp_path / "run", retire_after=0, optim=optim))
    records, story = metrics(tmp_path / "run"), story_of(tmp_path / "run")
    # Epochs from the loss on: the second has the first rate, the third the second one, the fourth the third one.
    rates = [0.05, 0.025, 0.05, 0.05, 0.025, 0.05] if adaptive else [0.05, 0.025, 0.025, 0.025, 0.025, 0.005]
    assert [record["lr"] for record in records] == pytest.approx(rates)
    assert [record["discarded_blocks"] for record in records] == [0, 1, 2, 2, 3, 0]
    restarts = [{"epoch": 1, "blocks": [2]}, {"epoch": 2, "blocks": [4, 5]}, {"epoch": 4, "blocks": [0, 2]}]
    assert story["restarts"] == (restarts if adaptive else [])
    printed = capsys.readouterr().out
    anew = ", the learning rate starts anew" if adaptive else ""
    for line in (
        f"epoch 2: block 2 discarded{anew}\n",
        f"epoch 3: blocks 4, 5 discarded{anew}\n",
        "epoch 4: block 1 discarded\n",
        f"epoch 5: blocks 0, 2 discarded{anew}\n",
    ):
        assert line in printed
    assert printed.count("starts anew") == 3 * adaptive

    assert [epoch["discarded"] for epoch in story["epochs"]] == [
        [line.count("-") / STEPS for line in epoch] for epoch in SCRIPT
    ]
    assert [epoch["largest"] for epoch in story["epochs"]] == [
        [2 - 1.5 * line.count("-") / STEPS for line in epoch] for epoch in SCRIPT
    ]
    assert story["retired"] == {}
    # The moving averages, by hand: of the second block, the 6 steps of its 24 in which it was closed.
    average = 0.0
    for line in (epoch[1] for epoch in SCRIPT):
        for sign in line:
            average = 0.95 * average + 0.05 * (sign == "-")
    assert state_of(tmp_path / "run")["discarded"][1].item() == pytest.approx(average, rel=1e-5)


def losing(folder: Path, retire_after: int) -> TrainConfig:
    """A weight decay and an ε with which blocks go by themselves."""
    optim = Optim(
        lr=0.1, weight_decay=3e-2, batch_size=16, epochs=LOSING_EPOCHS, milestones=(9,), restart_milestones=(8,)
    )
    return training(folder, epsilon=3.25, retire_after=retire_after, optim=optim)


LOSING_EPOCHS = 10


@small
def test_retired_blocks_are_not_computed_and_all_else_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks that go by themselves, which ones and when depends on the machine."""
    calls: dict[int, int] = {}
    residual = BasicBlock.residual

    def counted(self: BasicBlock, x: Tensor) -> Tensor:
        calls[id(self)] = calls.get(id(self), 0) + self.training
        return residual(self, x)

    monkeypatch.setattr(BasicBlock, "residual", counted)
    train(losing(tmp_path / "on", 2))
    story, steps = story_of(tmp_path / "on"), 16
    retired = {int(block): epoch for block, epoch in story["retired"].items()}
    assert len(retired) > 0, "nothing was lost: there is nothing to compare"
    last = LOSING_EPOCHS - 1
    assert min(retired.values()) < last, "retired as the last epoch ended: there is nothing to compare"
    # Dictionaries keep their order: that in which the blocks ran first.
    assert list(calls.values()) == [steps * (1 + retired.get(block, last)) for block in range(6)]
    calls.clear()
    said = capsys.readouterr().out
    for block, epoch in retired.items():
        assert any(f"epoch {epoch + 1}: block" in line and str(block) in line for line in said.splitlines())

    train(losing(tmp_path / "off", 0))
    assert list(calls.values()) == [steps * LOSING_EPOCHS] * 6
    on, off = state_of(tmp_path / "on"), state_of(tmp_path / "off")
    assert on.keys() == off.keys()
    for name in on.keys() - {"retired", "discarded"}:
        if not of_blocks(name, list(retired)):
            assert torch.equal(on[name], off[name]), name
    left = [block for block in range(6) if block not in retired]
    assert torch.equal(on["discarded"][left], off["discarded"][left])
    assert torch.equal(on["discarded"] >= 0.5, off["discarded"] >= 0.5)
    assert on["retired"].nonzero().flatten().tolist() == sorted(retired)
    assert not off["retired"].any()
    for block in retired:
        shrunk = on[f"{blocks_name(block)}conv2.weight"].norm() - off[f"{blocks_name(block)}conv2.weight"].norm()
        assert shrunk > 0 or retired[block] == last, "not retired, it went on to decay"

    without = story_of(tmp_path / "off")
    assert without["restarts"] == story["restarts"] != []
    assert without["retired"] == {}
    for epoch, (one, other) in enumerate(zip(story["epochs"], without["epochs"], strict=True)):
        assert one["discarded"] == other["discarded"]
        for block in range(6):
            if epoch <= retired.get(block, last):
                assert one["largest"][block] == other["largest"][block]
                assert one["size"][block] == other["size"][block]
            else:
                assert one["largest"][block] == 0
                assert one["size"][block] == story["epochs"][retired[block]]["size"][block]
    for one, other in zip(metrics(tmp_path / "on"), metrics(tmp_path / "off"), strict=True):
        assert one | {"retired_blocks": 0} == other
    assert metrics(tmp_path / "on")[-1]["retired_blocks"] == len(retired)

    nets = [compress(trained_network(tmp_path / name), force=True) for name in ("on", "off")]
    assert models.spec_of(nets[0]) == models.spec_of(nets[1])
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(of_blocks(f"resnet.{name}", list(retired)) and "shortcut" not in name for name in states[0])


@small
@pytest.mark.parametrize("processes", [1, 2])
def test_an_epsilon_that_leaves_no_block_ends_the_run_in_one_sentence(processes: int, tmp_path: Path) -> None:
    config = training(tmp_path / "run", epsilon=1e6, epsilon_start=1)

    def command() -> None:
        train(config)

    ended = forked(lambda: main(command), processes)
    assert [process.code for process in ended] == [2] * processes
    for rank, process in enumerate(ended):
        assert "Traceback" not in process.printed
        (sentence,) = [line for line in process.printed.splitlines() if line.startswith("error: ")]
        where = f"[process {rank}] " if rank else ""
        assert sentence == (
            f"error: {where}all 6 blocks are discarded in epoch 2 with --epsilon 1e+06: start anew with a smaller one "
            "(the run folder's blocks.json has the largest responses) or a later --epsilon-start"
        )
    story = story_of(tmp_path / "run")
    assert [epoch["discarded"] for epoch in story["epochs"]] == [[0.0] * 6, [1.0] * 6]
    assert all(0 < largest < 1e3 for largest in story["epochs"][1]["largest"])
    assert story["restarts"] == [{"epoch": 1, "blocks": [0, 1, 2, 3, 4, 5]}]
    assert not (tmp_path / "run" / "model").exists()


# --- what a run leaves behind


def test_a_run_folder_holds_the_story_of_its_blocks(trained: Path) -> None:
    records, story = metrics(trained), story_of(trained)
    assert [record["epoch"] for record in records] == list(range(1, 9))
    # The planted blocks are lost in the first epoch, and the rate then falls after the fifth from that one on.
    assert [record["lr"] for record in records] == pytest.approx([0.05] * 5 + [0.005] * 3)
    assert [record["discarded_blocks"] for record in records] == [2] * 8
    assert [record["retired_blocks"] for record in records] == [0] + [2] * 7
    for record in records:
        assert record.keys() >= {"train_loss", "train_accuracy", "train_side_accuracy", "held_out_top1"}
        assert 0 <= record["held_out_top1"] <= 1
    assert records[-1]["train_accuracy"] > 0.9
    assert records[-1]["train_side_accuracy"] > 0.25

    assert list(story) == ["epsilon", "epsilon_start", "epsilon_stop", "stages", "retired", "restarts", "epochs"]
    assert (story["epsilon"], story["epsilon_start"], story["stages"]) == (1.0, 0, [2, 2, 2])
    assert story["retired"] == {"1": 1, "4": 1}
    assert story["restarts"] == [{"epoch": 0, "blocks": [1, 4]}]
    assert len(story["epochs"]) == 8
    for epoch in story["epochs"]:
        assert epoch["discarded"] == [0, 1, 0, 0, 1, 0]
        assert all(len(values) == 6 for values in epoch.values())
        assert [size < 0.05 for size in epoch["size"]] == [False, True, False, False, True, False]
    for epoch in story["epochs"][:2]:
        assert all(0 < epoch["largest"][block] < 1 for block in QUIET)
    for epoch in story["epochs"][2:]:
        assert all(epoch["largest"][block] == 0 for block in QUIET)

    config = weights.read_config(trained / "model")
    network = json.loads((trained / "network.json").read_text())
    assert network["preprocessing"] == config["preprocessing"]
    assert network["image_shape"] == config["costs"]["image_shape"] == [1, 8, 8]
    spec = models.Spec(**network["model"])
    assert models.spec_of(models.build(spec)) == models.spec_of(trained_network(trained))

    result = json.loads((trained / "result.json").read_text())
    assert result == config["metrics"]
    assert (result["images"], result["num_blocks"], result["restarts"], result["retired"]) == (360, 6, 1, [1, 4])
    assert result["top1"] > 0.9
    dropped = [(block["block"], block["stage"]) for block in result["discarded"]]
    assert dropped == [(1, 1), (4, 3)]
    for block in result["discarded"]:
        assert block["discarded"] == 1
        assert block["size"] == pytest.approx(story["epochs"][-1]["size"][block["block"]], abs=1e-6)


def test_a_run_draws_its_pictures(trained: Path) -> None:
    for name in ("blocks", "learning_rate", "errors", "responses", "curves"):
        assert (trained / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


@small
def test_the_next_command_is_said_where_blocks_are_gone(
    planted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(training(tmp_path / "run", pretrained=planted))
    assert f"next: epsilon-resnet-compress --model {tmp_path / 'run'}\n" in capsys.readouterr().out
    train(training(tmp_path / "none", epsilon=0.0, optim=replace(OPTIM, epochs=1)))
    assert "block" not in capsys.readouterr().out.split("wrote")[1].splitlines()[-1]


@small
def test_how_near_the_first_block_is_to_be_discarded_is_said_where_none_is(
    planted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(training(tmp_path / "run", pretrained=planted, epsilon=1e-6, optim=replace(OPTIM, epochs=1)))
    said, largest = capsys.readouterr().out, story_of(tmp_path / "run")["epochs"][-1]["largest"]
    assert "next:" not in said
    assert said.endswith(
        f"no block is discarded: the weakest is block {largest.index(min(largest))}, whose largest responses in "
        f"epoch 1 were {min(largest):.3g}, where --epsilon is 1e-06: raise it or train longer\n"
    )


@small
def test_blocks_that_are_not_gone_yet_are_said_with_the_next_command(
    planted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are discarded from the first of 16 steps on, their weights small, which is too short a time."""
    train(training(tmp_path / "run", pretrained=planted, retire_after=0, optim=replace(OPTIM, epochs=4)))
    said = capsys.readouterr().out
    assert "\nblocks 1, 4 discarded, but not gone for good: train for longer, or drop all that is discarded" in said
    assert said.endswith(f"next: epsilon-resnet-compress --model {tmp_path / 'run'} --force --dataset digits\n")


@small
def test_images_are_normalised_as_the_network_to_start_from_expects(tmp_path: Path) -> None:
    expected = {"image_size": 8, "mean": [0.7], "std": [0.125]}
    net = models.create("preresnet14", in_channels=1, **TrainConfig(n=2).backbone_options)
    weights.save_pretrained(net, tmp_path / "dense", preprocessing=expected)
    options: dict[str, Any] = {"pretrained": str(tmp_path / "dense"), "optim": replace(OPTIM, epochs=0)}
    folder = train(training(tmp_path / "run", **options))
    assert weights.read_config(folder)["preprocessing"] == expected
    assert json.loads((tmp_path / "run" / "network.json").read_text())["preprocessing"] == expected
    with pytest.raises(InputError, match="--normalize is 'pixel', but must be left out"):
        train(training(tmp_path / "other", data=DataConfig(normalize="pixel"), **options))


@small
def test_training_in_bf16_and_channels_last_loses_the_same_blocks(planted: str, tmp_path: Path) -> None:
    options = {"mixed_precision": "bf16", "channels_last": True}
    train(training(tmp_path / "run", options, pretrained=planted))
    story = story_of(tmp_path / "run")
    assert story["retired"] == {"1": 0, "4": 0}
    assert [epoch["discarded"] for epoch in story["epochs"]] == [[0, 1, 0, 0, 1, 0]] * 2
    before, after = torch.load(planted, weights_only=True), state_of(tmp_path / "run")
    learnt = [name for name, tensor in before.items() if not torch.equal(after[f"resnet.{name}"], tensor)]
    assert len(learnt) == len(before) - len(QUIET) * 4, "all but scale and shift of the batch norms of discarded blocks"


@small
def test_imagenets_networks_are_trained_too(tmp_path: Path) -> None:
    data = DataConfig(pad=1, image_size=32)
    optim = Optim(lr=0.01, batch_size=64, epochs=1)
    train(training(tmp_path / "run", n=None, depth=18, epsilon=0.01, data=data, optim=optim))
    story = story_of(tmp_path / "run")
    assert story["stages"] == [2, 2, 2, 2]
    assert len(story["epochs"][0]["discarded"]) == 8
    assert models.spec_of(trained_network(tmp_path / "run")).options["backbone"] == "imagenet/preresnet18"


# --- stopped and resumed


def at_step(number: int, action: Callable[[], object]) -> None:
    """In a fork: do something at the end of the n-th step from now."""
    track, steps = run_module.Run.track, [0]

    def tracked(self: run_module.Run, **values: Tensor) -> None:
        track(self, **values)
        steps[0] += 1
        if steps[0] == number:
            action()

    run_module.Run.track = tracked  # type: ignore[method-assign]


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Contents of checkpoints, tensors bit for bit; epochs' seconds aside."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        keys = one.keys() - {"seconds"}
        assert keys == other.keys() - {"seconds"}, where
        for key in keys:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_equal(first, second, f"{where}.{index}")
    else:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, where


def power_cut() -> None:
    os.killpg(0, signal.SIGKILL)


def asked_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def three_epochs(planted: str, folder: Path, **options: Any) -> TrainConfig:
    """The planted blocks are discarded from the first step on, and retired when the first epoch ends."""
    optim = replace(OPTIM, epochs=3, milestones=(1,), restart_milestones=(2,))
    return training(folder, options, pretrained=planted, optim=optim)


@pytest.fixture(scope="module")
def whole(planted: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a run that nothing stopped, by its number of processes; where `small` is in force."""

    @cache
    def trained_by(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        done(forked(lambda: train(three_epochs(planted, folder)), processes))
        return folder

    return trained_by


@small
@pytest.mark.parametrize(
    ("processes", "step", "action", "every", "source"),
    [
        (1, 2, asked_to_stop, None, "epoch_0000_step_000002"),
        (1, STEPS, asked_to_stop, None, "epoch_0001"),
        (1, STEPS + 3, power_cut, 1, "epoch_0001_step_000002"),
        (1, 2 * STEPS + 1, power_cut, None, "epoch_0002"),
        (2, STEPS + 3, power_cut, 1, "epoch_0001_step_000002"),
    ],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    processes: int,
    step: int,
    action: Callable[[], None],
    every: int | None,
    source: str,
    planted: str,
    whole: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    """Before the planted blocks were retired, and after: weights, momenta, averages, learning rate, record, random
    numbers, all that a checkpoint holds."""
    expected, broken = whole(processes), tmp_path / "broken"
    config = three_epochs(planted, broken, checkpoint_steps=every)

    def stopped() -> None:
        at_step(step, action)
        train(config)

    code = 143 if action is asked_to_stop else -signal.SIGKILL
    assert [ended.code for ended in forked(stopped, processes)] == [code] * processes
    again = replace(config, run=replace(config.run, resume="auto"))
    printed = done(forked(lambda: train(again), processes))
    assert f"resumed from {broken}/checkpoints/{source}\n" in printed

    assert_same_run(expected, broken)
    # Of the schedule before a loss the rate would fall after the first epoch, of that from the loss on after the next.
    assert [record["lr"] for record in metrics(broken)] == pytest.approx([0.05, 0.05, 0.005])
    assert [record["retired_blocks"] for record in metrics(broken)] == [2, 2, 2]
    assert story_of(broken)["retired"] == {"1": 0, "4": 0}
    for name in ("result.json", "blocks.json"):
        assert (expected / name).read_text() == (broken / name).read_text()
    for rank in range(processes):
        saved = [checkpoint.load(run / "checkpoints" / "epoch_0003", rank=rank) for run in (expected, broken)]
        for one, other in zip(*saved, strict=True):
            assert len(one) > 3
            assert_equal(one, other)


@small
def test_a_finished_run_can_be_resumed(planted: str, tmp_path: Path) -> None:
    config = training(tmp_path / "run", pretrained=planted)
    train(config)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*") if path.name != "env.json"}
    train(replace(config, run=replace(config.run, resume="auto")))
    assert len(before) == 5
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == ["config.json"], "where --resume is"


# --- several processes


@small
def test_gates_are_those_of_the_global_batch(planted: str, tmp_path: Path) -> None:
    """A block is open on both processes where one of them has a response that reaches ε; where none has, it is closed,
    gets no gradient and is retired, and nothing waits for it."""
    LOUD = {0: {0, 2, 3, 5}, 1: {0, 1, 3, 5}}  # blocks whose responses are said to reach ε, by process

    def task() -> None:
        rank, processes = int(os.environ["RANK"]), 2
        response_of, found = EpsilonResNet.forward, []

        def forward(self: EpsilonResNet, images: Tensor) -> Any:
            running = [index for index in range(6) if not self.retired[index]]
            values = iter([5.0 + rank if index in LOUD[rank] else 0.5 + 0.1 * rank for index in running])
            method.largest_response = lambda response: torch.tensor(next(values))
            result = response_of(self, images)
            if isinstance(result, Responses):
                found.append(torch.stack([result.gates, result.largest]))
                assert next(values, None) is None, "retired blocks are not computed"
            return result

        EpsilonResNet.forward = forward  # type: ignore[method-assign]
        train(training(tmp_path / "run", pretrained=planted, optim=replace(OPTIM, epochs=3)))
        assert len(found) == processes * 6
        torch.save(torch.stack(found), tmp_path / f"{rank}.pt")

    assert "2 process(es)" in done(forked(task, 2))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    assert first[:, 0].tolist() == [[1, 1, 1, 1, 0, 1]] * 12
    largest = torch.tensor([[6, 6, 5, 6, 0.6, 6]] * STEPS + [[6, 6, 5, 6, 0, 6]] * 2 * STEPS)
    torch.testing.assert_close(first[:, 1], largest)
    story = story_of(tmp_path / "run")
    assert story["retired"] == {"4": 0}
    assert [epoch["discarded"] for epoch in story["epochs"]] == [[0, 0, 0, 0, 1, 0]] * 3
    after = state_of(tmp_path / "run")
    assert after["discarded"].tolist() == [0, 0, 0, 0, 1, 0]

    # Weight decay with momentum alone, until it was retired; its batch norms stay as they were.
    before = torch.load(planted, weights_only=True)
    for name, tensor in before.items():
        if not of_blocks(f"resnet.{name}", [4]) or "running" in name or "num_batches" in name:
            continue
        weight, momentum = tensor.clone(), torch.zeros_like(tensor)
        for _ in range(STEPS):
            momentum = 0.9 * momentum + (1e-2 * weight if weight.dim() > 1 else 0)
            weight -= 0.05 * momentum
        torch.testing.assert_close(after[f"resnet.{name}"], weight, rtol=1e-5, atol=0)
    # What is open on one process alone is trained on both.
    for block, conv in ((1, "conv1"), (2, "conv2")):
        name = f"layers.{block // 2}.{block % 2}.{conv}.weight"
        decayed = before[name] * (after[f"{blocks_name(4)}conv2.weight"].norm() / before[QUIET_CONV].norm())
        assert (after[f"resnet.{name}"] - decayed).norm() > 0.01 * decayed.norm()


QUIET_CONV = "layers.2.0.conv2.weight"


@small
def test_one_and_two_processes_lose_the_same_blocks_in_the_same_epochs(tmp_path: Path) -> None:
    """With the same global batches, batch norm still sees only a process's own images: weights and responses differ
    slightly, and a block near ε could be lost in one epoch here and in another there. In this run it cannot: the
    learning rate is next to nothing, and responses shrink with the weights alone, by 7 % a step, from where they reach
    ε at the start of an epoch. It would take half an epoch, a factor of 1.8, to count for the one before or after."""
    epsilon, decay, steps = 0.005, 0.07, 16
    reaches = {3: 16, 0: 32}  # the step in which the response reaches ε, by block; the others do not come near it
    optim = Optim(
        lr=1e-6,
        momentum=0.0,
        weight_decay=decay / 1e-6,
        batch_size=16,
        epochs=4,
        milestones=(3,),
        restart_milestones=(3,),
        factors=(1.0,),
    )
    config = training(tmp_path, epsilon=epsilon, optim=optim)
    data = Pipeline(config.data, 0, Shards())
    torch.manual_seed(0)
    net = train_module.gated_network(config, data)
    largest = net(next(iter(data.training(16).epoch(0)))[0]).largest
    assert largest.min() > 2
    for block, step in reaches.items():
        weight = net.state_dict()[f"{blocks_name(block)}conv2.weight"]
        weight *= epsilon / largest[block] / (1 - decay) ** step
    torch.save(net.resnet.state_dict(), tmp_path / "a.pth")

    stories = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        own = replace(config, pretrained=str(tmp_path / "a.pth"), run=Run(run_dir=str(folder)))
        assert f"{processes} process(es)" in done(forked(partial(train, own), processes))
        stories[processes] = story_of(folder)
    for story in stories.values():
        assert story["restarts"] == [{"epoch": 1, "blocks": [3]}, {"epoch": 2, "blocks": [0]}]
        # Closed in all steps of an epoch, and their weights at 0.93^48 and 0.93^64 of what they were.
        assert story["retired"] == {"3": 2, "0": 3}
        assert [epoch["discarded"][3] for epoch in story["epochs"]][2:] == [1, 1]
        assert story["epochs"][3]["discarded"] == [1, 0, 0, 1, 0, 0]
    one, two = (torch.tensor([epoch["largest"] for epoch in stories[processes]["epochs"]]) for processes in (1, 2))
    torch.testing.assert_close(one, two, rtol=0.3, atol=0)
    assert not torch.equal(one, two)
    assert data.training(16).steps_per_epoch == steps


@small
def test_two_processes_evaluate_every_image_once(planted: str, tmp_path: Path) -> None:
    """Batch norm's statistics are averaged first: both processes, and whoever loads the network, have the same."""
    config = training(tmp_path / "run", pretrained=planted, data=DataConfig(pad=1, holdout=0.25))
    done(forked(lambda: train(config), 2))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == 120
    for processes in (1, 2):
        output = tmp_path / f"{processes}.json"
        options = EvalConfig(str(tmp_path / "run"), batch_size=50, output=str(output))
        done(forked(partial(evaluate, options), processes))
        found = json.loads(output.read_text())
        assert found["images"] == 120
        assert (found["top1"], found["top5"]) == (result["top1"], result["top5"])
        assert found["loss"] == pytest.approx(result["loss"], rel=1e-5)
        assert (found["blocks"], found["running_blocks"]) == (6, 4)


def test_two_processes_by_torchrun(planted: str, tmp_path: Path) -> None:
    options = ["--dataset", "digits", "-n", "2", "-e", "1", "--pretrained", planted, "--retire-after", "1"]
    options += ["--batch-size", "64", "--epochs", "2", "--milestones", "1", "--restart-milestones", "1", "-o", "run"]
    said = run(two_processes("epsilon_resnet.train", *options), tmp_path)
    assert said.stdout.count("run folder run, 2 process(es)") == 1
    assert said.stdout.count("epoch 1: blocks 1, 4 gone for good, not computed any more\n") == 1
    starts = json.loads((tmp_path / "run" / "env.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["images"], result["retired"]) == (360, [1, 4])


# --- bad input


@small
def test_outputs_that_are_not_finite_end_the_training_in_one_sentence(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = EpsilonResNet.forward, [0]

    def diverging(self: EpsilonResNet, images: Tensor) -> Any:
        calls[0] += self.training
        return forward(self, images * (math.nan if calls[0] >= STEPS + 2 else 1))

    monkeypatch.setattr(EpsilonResNet, "forward", diverging)
    with pytest.raises(InputError, match="the loss is not finite at epoch 2, step 2: lower the learning rate"):
        train(training(tmp_path / "run", pretrained=planted))
    assert len(metrics(tmp_path / "run")) == 1


@small
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrained": "PLANTED", "n": 3}, "--pretrained must be a plain preresnet20 of this .* it lacks layers.0.2"),
        ({"pretrained": "PLANTED", "n": 1}, r"does not match the network: it has layers.0.1.bn1.bias.*unknown to the"),
        ({"pretrained": "TRAINED"}, "does not match the network"),
        ({"pretrained": "nowhere"}, "there is no file nowhere"),
        ({"optim": replace(OPTIM, batch_size=10_000)}, "batch_size is 10000"),
        ({"n": None, "depth": 18, "pretrained": "PLANTED"}, "does not match the network"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    planted: str, trained: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    named = {"PLANTED": planted, "TRAINED": str(trained / "model")}
    fields = {name: named.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(InputError, match=message):
        train(training(tmp_path / "run", **fields))
    assert list(tmp_path.iterdir()) == []


@small
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 3}, r"was trained with --n = 2 \(now 3\): give the same, or start anew"),
        ({"n": None, "depth": 18}, r"was trained with --n = 2 \(now None\), --depth = None \(now 18\)"),
        ({"epsilon": 2.0}, r"was trained with --epsilon = 1\.0 \(now 2\.0\)"),
        ({"retire_after": 3}, r"was trained with --retire-after = 1 \(now 3\)"),
    ],
)
def test_a_run_is_resumed_with_its_own_configuration(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = training(tmp_path / "run", optim=replace(OPTIM, epochs=1))
    train(config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = replace(config, run=replace(config.run, resume="auto"), **fields)
    with pytest.raises(InputError, match=message):
        train(other)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_script_is_the_loop(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`epsilon-resnet-train` calls `train` with what it has parsed."""
    given: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", given.append)
    monkeypatch.setattr("sys.argv", ["epsilon-resnet-train", "-n", "5", "-e", "1.5", "--svhn", "-o", str(tmp_path)])
    cli.train()
    (config,) = given
    assert (config.n, config.epsilon, config.data.dataset) == (5, 1.5, "svhn")
