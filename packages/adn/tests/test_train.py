"""The training loop: a step by the formula, on one process and on two; limits; runs that are killed; bad input."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adn import cli
from adn import train as train_module
from adn.config import EvalConfig, Optim, Run, TrainConfig
from adn.evaluate import main as evaluate
from adn.extract import extract
from adn.model import AdaptiveNet, create
from adn.schedule import MovingAverage
from adn.train import TwoPaths, backward, network, train
from resless import costs, models, weights
from resless.cli import parse
from resless.config import DataConfig, OptimConfig
from resless.config import TrainConfig as DenseConfig
from resless.data import load
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.run import accelerator
from resless.testing import (
    assert_resumes_exactly,
    assert_same_run,
    assert_same_weights,
    done,
    forked,
    metrics,
    refused,
    run,
    succeeded,
    two_processes,
)
from resless.train import train as train_dense
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SGD = Optim("sgd", lr=0.05, momentum=0.0, batch_size=256, epochs=1)
NO_EPOCHS = Optim("adam", batch_size=64, epochs=0)

Make = Callable[[str], AdaptiveNet]
Training = Callable[..., TrainConfig]

pytestmark = pytest.mark.usefixtures("few_images", "no_pictures")  # 256 images to train on


def state_of(run_folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(run_folder) / "model" / "model.safetensors")


def result_of(run_folder: Path) -> dict[str, Any]:
    return json.loads((run_folder / "result.json").read_text())


# --- one step, against the formula


def kl(base: Tensor, reference: Tensor, temperature: float, top: int | None = None) -> Tensor:
    """T² · KL(reference ‖ base) over dimension 1, over the reference's `top` largest, divided by N."""
    if top is not None:
        chosen = reference.detach().argsort(dim=1, descending=True)[:, :top]
        base, reference = base.gather(1, chosen), reference.gather(1, chosen)
    p, q = (reference.detach() / temperature).softmax(dim=1), (base / temperature).softmax(dim=1)
    return temperature**2 * (p * (p / q).log()).sum() / len(base)


def by_hand(net: AdaptiveNet, images: Tensor, targets: Tensor, config: TrainConfig) -> dict[str, Tensor]:
    """A step's losses, of two forward passes."""
    classes = F.one_hot(targets, 10).float() if targets.dim() == 1 else targets
    smoothing = config.optim.label_smoothing
    soft = (1 - smoothing) * classes + smoothing / 10
    super_features, super_logits = net.features(images, net.super_skip)
    base_features, base_logits = net.features(images, net.base_skip)
    entropies = [-(soft * logits.log_softmax(dim=1)).sum(dim=1).mean() for logits in (super_logits, base_logits)]
    if config.distill:
        base_loss = kl(base_logits, super_logits, config.temperature, config.top_classes)
        if config.fpn:
            pairs = zip(base_features, super_features, strict=True)
            base_loss = base_loss + torch.stack([kl(b, s, config.temperature) for b, s in pairs]).sum()
    else:
        base_loss = entropies[1]
    total = config.alpha * entropies[0] + (1 - config.alpha) * base_loss
    right = [(logits.argmax(1) == classes.argmax(1)).float().mean() for logits in (super_logits, base_logits)]
    names = ("loss", "cross_entropy", "base_loss", "accuracy", "base_accuracy")
    return dict(zip(names, (total, entropies[0], base_loss, *right), strict=True))


STEPS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "other constants": {"alpha": 0.3, "temperature": 2.5, "top_classes": 4},
    "features": {"fpn": True, "alpha": 0.8},
    "no distillation": {"distill": False, "alpha": 0.3},
    "no second norms": {"second_norms": False},
}


@pytest.mark.parametrize("labels", ["hard", "smooth", "soft"])
@pytest.mark.parametrize("two_passes", [False, True], ids=["one pass", "two passes"])
@pytest.mark.parametrize("fields", list(STEPS.values()), ids=list(STEPS))
def test_a_step_is_that_of_two_paths_written_by_hand(fields: dict[str, Any], two_passes: bool, labels: str) -> None:
    torch.manual_seed(0)
    optim = Optim(label_smoothing=0.2 if "smooth" in labels else 0.0)
    config = TrainConfig(model="resnet14", optim=optim, two_passes=two_passes, **fields)
    net = create("resnet14", num_classes=10, in_channels=1, second_norms=config.second_norms)
    other = create("resnet14", num_classes=10, in_channels=1, second_norms=config.second_norms)
    other.load_state_dict(net.state_dict())
    images, targets = torch.randn(12, 1, 8, 8), torch.arange(12) % 10
    if "soft" in labels:
        targets = 0.7 * F.one_hot(targets, 10).float() + 0.3 * F.one_hot(targets.roll(1), 10).float()
    alone: Any = SimpleNamespace(accelerator=SimpleNamespace(backward=lambda loss: loss.backward()))
    tracked = backward(TwoPaths(net, config.fpn), images, targets, config, alone)
    expected = by_hand(other, images, targets, config)
    expected["loss"].backward()
    assert tracked.keys() == expected.keys()
    for name, value in expected.items():
        assert tracked[name].item() == pytest.approx(value.item(), rel=1e-4), name
    parameters = dict(other.named_parameters())
    assert len(parameters) == len(dict(net.named_parameters())) > 40
    for name, parameter in net.named_parameters():
        theirs = parameters[name].grad
        assert parameter.grad is not None, name
        assert theirs is not None, name
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-3, atol=1e-5, msg=name)
    for (name, buffer), (_, theirs) in zip(net.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, theirs, msg=name)


def evaluating_norms() -> None:
    """In a fork: batch norm by running statistics, so that an image's gradient is its own."""
    AdaptiveNet.train = lambda self, mode=True: nn.Module.train(self, False)


def one_step(config: TrainConfig) -> Callable[[], None]:
    def task() -> None:
        evaluating_norms()
        train(config)

    return task


def test_a_run_of_one_step_follows_the_formula_on_one_process_and_on_two(training: Training, tmp_path: Path) -> None:
    config = training(tmp_path / "none", optim=replace(SGD, epochs=0), alpha=0.4, top_classes=6)
    train(config)
    for processes in (1, 2):
        step = replace(config, optim=SGD, run=Run(run_dir=str(tmp_path / str(processes))))
        done(forked(one_step(step), processes))
    net = weights.from_pretrained(tmp_path / "none" / "model")
    assert isinstance(net, AdaptiveNet)
    data = Pipeline(config.data, 0, Shards())
    images, labels = next(iter(data.training(256).epoch(0)))
    losses = by_hand(net, images, labels, config)
    losses["loss"].backward()
    before = state_of(tmp_path / "none")
    for processes in (1, 2):
        record, after = metrics(tmp_path / str(processes))[0], state_of(tmp_path / str(processes))
        for name, value in losses.items():
            assert record[f"train_{name}"] == pytest.approx(value.item(), rel=1e-3), name
        compared = 0
        for name, parameter in net.named_parameters():
            change = after[name] - before[name]
            assert parameter.grad is not None
            torch.testing.assert_close(change, -SGD.lr * parameter.grad, rtol=1e-3, atol=2e-6, msg=name)
            compared += int((change.abs() > 1e-5).sum())
        assert compared > 10_000, "there was something to compare"


def test_two_passes_are_the_same_training_on_one_process(training: Training, tmp_path: Path) -> None:
    optim = Optim("sgd", lr=0.02, batch_size=128, epochs=2, clip_grad_norm=0.5)
    config = training(tmp_path / "one", optim=optim)
    train(config)
    train(replace(config, two_passes=True, run=Run(run_dir=str(tmp_path / "two"))))
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for first, second in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert first == pytest.approx(second, rel=1e-3)


def test_two_passes_are_refused_on_two_processes(tmp_path: Path) -> None:
    """Each would reduce the gradients of one path only."""
    options = ["--model", "resnet14", "--two-passes", "--run-dir", "run"]
    sentence = refused(cli.train, *options, cwd=tmp_path, processes=2)
    assert "--two-passes is True, but must be left out on 2 processes" in sentence


def test_gradients_are_clipped_all_together(training: Training, tmp_path: Path) -> None:
    train(training(tmp_path / "none", optim=replace(SGD, epochs=0)))
    train(training(tmp_path / "free", optim=SGD))
    train(training(tmp_path / "clipped", optim=replace(SGD, clip_grad_norm=0.01)))
    before, free, clipped = (state_of(tmp_path / name) for name in ("none", "free", "clipped"))
    names = [name for name, _ in create("resnet14", num_classes=10, in_channels=1).named_parameters()]
    steps = {
        name: torch.cat([(after[key] - before[key]).flatten() for key in names])
        for name, after in (("free", free), ("clipped", clipped))
    }
    assert steps["free"].norm() > 2 * 0.01 * SGD.lr
    assert steps["clipped"].norm().item() == pytest.approx(0.01 * SGD.lr, rel=1e-2)
    assert F.cosine_similarity(steps["free"], steps["clipped"], dim=0) > 0.999


# --- every parameter is trained


@pytest.mark.parametrize("second_norms", [True, False])
def test_every_parameter_gets_a_gradient(
    second_norms: bool, plain: dict[str, Callable[[], nn.Module]], randomised: Callable[..., nn.Module]
) -> None:
    """From super-net or base-net: processes wait for each of them. On two, which would raise an error otherwise."""

    def task() -> None:
        used = accelerator("no")
        for family in ("resnet", "mobilenet", "swin", "swin_v2", "vit") if second_norms else ("resnet", "vit"):
            torch.manual_seed(0)
            net = AdaptiveNet(plain[family](), second_norms)
            randomised(net)
            paths, optimizer = used.prepare(TwoPaths(net, False), torch.optim.SGD(net.parameters(), 1e-3))
            for step in range(2):
                torch.manual_seed(used.process_index + step)
                images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
                outputs = paths(images)
                loss = train_module.loss_of(outputs, labels, TrainConfig()).total
                used.backward(loss)
                for name, parameter in net.named_parameters():
                    assert parameter.grad is not None, (family, name)
                    assert parameter.grad.abs().max() > 0, (family, name)
                optimizer.step()
                optimizer.zero_grad()
        print("families done")

    assert "families done" in done(forked(task, 2))


# --- limits


def test_zero_epochs_change_nothing(training: Training, tmp_path: Path) -> None:
    """From a plain network's weights: nothing skipped, it is that network."""
    torch.manual_seed(5)
    dense = models.create("resnet14", in_channels=1)
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    for ema in (False, True):
        optim = replace(NO_EPOCHS, model_ema=ema)
        train(training(tmp_path / str(ema), pretrained=str(tmp_path / "dense.pth"), optim=optim))
        after = state_of(tmp_path / str(ema))
        assert all(torch.equal(after[f"net.{name}"], tensor) for name, tensor in dense.state_dict().items())
        assert metrics(tmp_path / str(ema)) == []
    assert_same_weights(tmp_path / "False" / "model", tmp_path / "True" / "model")
    assert list(result_of(tmp_path / "True")["configurations"]) == [
        "FFF",
        "FFT",
        "FTF",
        "FTT",
        "TFF",
        "TFT",
        "TTF",
        "TTT",
    ]


def test_a_run_is_repeatable_and_its_seed_matters(training: Training, tmp_path: Path) -> None:
    optim = Optim("adam", batch_size=128, epochs=1)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train(training(tmp_path / name, {"seed": seed}, optim=optim, mixup_alpha=0.2))
    assert_same_run(tmp_path / "one", tmp_path / "again")
    one, other = state_of(tmp_path / "one"), state_of(tmp_path / "other")
    assert not torch.equal(one["net.conv1.weight"], other["net.conv1.weight"])


def test_the_super_net_alone_is_dense_training(training: Training, tmp_path: Path) -> None:
    """Bit for bit what `resless-train` does, by the same recipe."""
    config = training(tmp_path / "alone", alone="super", data=DataConfig(pad=1, holdout=0.25))
    folder = train(config)
    optim = OptimConfig("adam", lr=3e-3, batch_size=64, epochs=2)
    dense = DenseConfig("resnet14", data=config.data, optim=optim, run=Run(run_dir=str(tmp_path / "dense")))
    top1 = train_dense(dense).top1
    assert_same_weights(folder, tmp_path / "dense" / "model")
    assert result_of(tmp_path / "alone")["top1"] == top1
    ours, theirs = metrics(tmp_path / "alone"), metrics(tmp_path / "dense")
    assert [record["held_out_alone_top1"] for record in ours] == [record["held_out_top1"] for record in theirs]
    assert [record["train_loss"] for record in ours] == [record["train_loss"] for record in theirs]


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_the_base_net_alone_is_the_base_nets_plain_network(
    mixed_precision: str, training: Training, tmp_path: Path
) -> None:
    optim = Optim("adam", lr=3e-3, batch_size=64, epochs=1, model_ema=mixed_precision == "bf16")
    settings = {"mixed_precision": mixed_precision, "channels_last": mixed_precision == "bf16"}
    folder = train(training(tmp_path / "run", settings, alone="base", optim=optim, mixup_alpha=0.2))
    net = weights.from_pretrained(folder)
    adaptive = create("resnet14", num_classes=10, in_channels=1)
    base, x = extract(adaptive, adaptive.base_skip), torch.zeros(1, 1, 8, 8)
    assert not isinstance(net, AdaptiveNet)
    assert type(net) is type(base)
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == {
        name: tensor.shape for name, tensor in base.state_dict().items()
    }
    # A mandatory block a stage: 16, 32, 64 channels, 8, 4, 2 pixels a side.
    stem, head = 9 * 16 * 64, 64 * 10
    first, second, third = 2 * 9 * 16**2 * 64, (9 * 16 + 9 * 32 + 16) * 32 * 16, (9 * 32 + 9 * 64 + 32) * 64 * 4
    found = result_of(tmp_path / "run")["configurations"]
    assert list(found) == ["alone"]
    assert found["alone"]["macs"] == costs.macs(base, x) == stem + first + second + third + head
    assert found["alone"]["parameters"] == costs.count_parameters(base)
    assert "several depths" not in (folder / "README.md").read_text()
    (record,) = metrics(tmp_path / "run")
    assert {"train_loss", "train_accuracy"} <= record.keys()
    assert "train_base_loss" not in record


def test_without_second_norms_both_paths_share_the_first(training: Training, tmp_path: Path) -> None:
    """A model folder remembers it."""
    folder = train(training(tmp_path / "run", second_norms=False))
    net = weights.from_pretrained(folder)
    assert isinstance(net, AdaptiveNet)
    assert net.skip_norms is None
    assert weights.read_config(folder)["model"]["options"]["second_norms"] is False
    with_norms = create("resnet14", num_classes=10, in_channels=1)
    # Two norms of two numbers a channel in each of the mandatory blocks.
    assert costs.count_parameters(with_norms) - costs.count_parameters(net) == 2 * 2 * (16 + 32 + 64)


@pytest.mark.parametrize("fields", [{"distill": False}, {"fpn": True}], ids=["no distillation", "features"])
def test_what_the_base_net_learns_from_matters(fields: dict[str, Any], training: Training, tmp_path: Path) -> None:
    train(training(tmp_path / "paper"))
    train(training(tmp_path / "other", **fields))
    paper, other = (metrics(tmp_path / name) for name in ("paper", "other"))
    assert other[0]["train_base_loss"] > 3 * paper[0]["train_base_loss"]
    assert other[0].keys() == paper[0].keys()


# --- what is written


def test_the_next_commands_do_what_they_say(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the folder is called, and of the images of the run; there is one depth only of a network alone."""
    data = DataConfig(stream=True, image_size=16, val_resize_size=17, workers=0)
    train(training(tmp_path / "a run", optim=NO_EPOCHS, data=data))
    following = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    model = ["--model", str(tmp_path / "a run" / "model")]
    source = ["--dataset", "digits", "--image-size", "16", "--stream", "--workers", "0", "--val-resize-size", "17"]
    output = str(tmp_path / "a run" / "base")
    assert following == [
        ["next:", "adn-eval", *model, "--repeats", "10", *source],
        ["or:", "adn-extract", *model, "--skip-cfg", "True", "True", "True", "--output", output],
    ]
    parse(EvalConfig, {}, prog="", description="", args=following[0][2:])
    succeeded(cli.extract, *following[1][2:], "--repeats", "0", cwd=tmp_path)
    assert models.spec_of(weights.from_pretrained(output)).options["kept_blocks"] == (0, 2, 4)

    train(training(tmp_path / "alone", optim=NO_EPOCHS, alone="base"))
    assert "next:" not in capsys.readouterr().out


def test_a_moving_average_that_hardly_learns_is_announced(
    training: Training, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    optim = Optim(batch_size=64, epochs=0, model_ema=True)

    def said(**fields: Any) -> list[str]:
        train(training(tmp_path / str(len(fields)), optim=replace(optim, **fields)))
        return [line for line in capfd.readouterr().out.splitlines() if "moving average" in line]

    (warning,) = said()
    assert warning.startswith("warning: 100 % of the moving average of the weights will be what it starts from, for")
    # As far back as the default on the images of ImageNet, for the 256 images that an epoch has.
    suggested = 1 - 2e-5 * 1_281_167 / 256
    assert f"--model-ema-decay {suggested:.3g} --model-ema-steps 1, or leave --model-ema out" in warning
    assert said(epochs=1, lr=1e-9, model_ema_decay=0.5, model_ema_steps=1) == []


@pytest.mark.parametrize("second_norms", [True, False])
def test_a_network_of_adaptive_depth_is_trained_on(second_norms: bool, training: Training, tmp_path: Path) -> None:
    first = train(training(tmp_path / "first", second_norms=second_norms))
    fields = {"pretrained": str(first), "optim": NO_EPOCHS, "second_norms": second_norms}
    train(training(tmp_path / "second", **fields))
    before, after = state_of(tmp_path / "first"), state_of(tmp_path / "second")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(InputError, match=r"does not match the network: it (lacks|has) skip_norms\."):
        train(training(tmp_path / "third", **{**fields, "second_norms": not second_norms}))


@pytest.mark.parametrize("alone", [None, "base"])
def test_images_are_normalised_as_the_network_to_start_from_expects(
    alone: str | None, training: Training, tmp_path: Path
) -> None:
    statistics = {"mean": [0.7], "std": [0.125]}
    net = models.create("resnet14", in_channels=1)
    weights.save_pretrained(net, tmp_path / "dense", preprocessing={"image_size": 8, **statistics})
    folder = train(training(tmp_path / "run", pretrained=str(tmp_path / "dense"), optim=NO_EPOCHS, alone=alone))
    assert weights.read_config(folder)["preprocessing"] == {"image_size": 8, **statistics}
    images, labels = next(iter(Pipeline(DataConfig(), 0, Shards(), statistics).evaluation(load("digits", "test"), 120)))
    with torch.inference_mode():
        loss = F.cross_entropy(weights.from_pretrained(folder)(images), labels)
    assert result_of(tmp_path / "run")["loss"] == pytest.approx(loss.item(), rel=1e-5)
    contradicting = DataConfig(normalize="pixel")
    with pytest.raises(InputError, match="--normalize is 'pixel', but must be left out"):
        train(training(tmp_path / "other", pretrained=str(tmp_path / "dense"), data=contradicting))


def test_both_ends_are_measured_on_held_out_images(training: Training, tmp_path: Path) -> None:
    folder = train(training(tmp_path / "run", data=DataConfig(pad=1, holdout=0.25), test_all=False))
    records = metrics(tmp_path / "run")
    held_out = {name for name in records[0] if name.startswith("held_out")}
    assert held_out == {f"held_out_{path}_{what}" for path in ("FFF", "TTT") for what in ("top1", "loss")}
    data = Pipeline(DataConfig(pad=1, holdout=0.25), 0, Shards())
    net = weights.from_pretrained(folder)
    for name, skip in (("FFF", (False,) * 3), ("TTT", (True,) * 3)):
        with torch.inference_mode():
            right = torch.cat([net(images, skip).argmax(1) == labels for images, labels in data.held_out()])
        assert len(right) == 64
        assert records[-1][f"held_out_{name}_top1"] == pytest.approx(right.double().mean().item())
    assert list(result_of(tmp_path / "run")["configurations"]) == ["FFF", "TTT"]


def test_the_moving_average_is_evaluated_and_written(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, dict[str, Tensor]]] = []
    after_step = MovingAverage.after_step

    def recorded(self: MovingAverage, net: nn.Module, epoch: int, step: int) -> None:
        state = {name: tensor.clone() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
        seen.append((epoch, step, state))
        after_step(self, net, epoch, step)

    monkeypatch.setattr(MovingAverage, "after_step", recorded)
    optim = Optim("adam", lr=3e-3, batch_size=64, epochs=3, model_ema=True, model_ema_steps=2, model_ema_decay=0.995)
    optim = replace(optim, lr_warmup_epochs=1)
    folder = train(training(tmp_path / "run", optim=optim, data=DataConfig(holdout=0.25)))
    assert [(epoch, step) for epoch, step, _ in seen] == [(epoch, step) for epoch in range(3) for step in range(3)]
    share, average = 0.005 * 64 * 2 / 3, seen[0][2]
    for epoch, step, state in seen:
        if step % 2 == 0:
            copied = epoch == 0 or (epoch, step) == (1, 0)
            average = state if copied else {k: (1 - share) * average[k] + share * state[k] for k in state}
    written = {name: tensor for name, tensor in state_of(tmp_path / "run").items() if tensor.is_floating_point()}
    assert written.keys() == average.keys()
    for name, tensor in average.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.allclose(written["net.conv1.weight"], seen[-1][2]["net.conv1.weight"], atol=1e-4)
    evaluated = evaluate(EvalConfig(model=str(folder), batch_size=500))
    assert evaluated == result_of(tmp_path / "run")["configurations"]
    data = Pipeline(DataConfig(holdout=0.25), 0, Shards())
    with torch.inference_mode():
        net = weights.from_pretrained(folder)
        right = torch.cat([net(images).argmax(1) == labels for images, labels in data.held_out()])
    assert metrics(tmp_path / "run")[-1]["held_out_FFF_top1"] == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "swin", "swin_v2", "vit", "cifar"])
def test_a_change_of_layout_reaches_all_configurations(family: str, make: Make) -> None:
    """As `run.prepare` changes it, after the configurations were made; the optimiser still has the parameters."""
    net, x = make(family), torch.randn(2, 3, 32, 32)
    before = {skip: net(x, skip) for skip in net.configurations()}
    parameters = list(net.parameters())
    net.to(memory_format=torch.channels_last)
    assert all(after is parameter for after, parameter in zip(net.parameters(), parameters, strict=True))
    own = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    images = x.to(memory_format=torch.channels_last)
    for skip, expected in before.items():
        path = net.path(skip)
        assert {id(tensor) for tensor in (*path.parameters(), *path.buffers())} <= own
        torch.testing.assert_close(net(images, skip), expected, rtol=1e-4, atol=1e-4)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1]
    assert convolutions
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions)


def test_bf16_and_channels_last_train_nearly_the_same(training: Training, tmp_path: Path) -> None:
    optim = Optim("sgd", lr=0.01, batch_size=64, epochs=2, model_ema=True, model_ema_steps=1)
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "layout": {"channels_last": True},
        "both": {"channels_last": True, "mixed_precision": "bf16"},
    }
    for name, run_settings in settings.items():
        train(training(tmp_path / name, run_settings, optim=optim))
    plain, layout, both = (metrics(tmp_path / name) for name in settings)
    for first, second, third in zip(plain, layout, both, strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-3)
        assert first["train_loss"] == pytest.approx(third["train_loss"], rel=0.05)
        assert first["train_loss"] != third["train_loss"]
    losses = {name: result_of(tmp_path / name)["loss"] for name in settings}
    assert losses["layout"] == pytest.approx(losses["plain"], rel=1e-2)
    assert losses["both"] == pytest.approx(losses["plain"], rel=0.1)


# --- several processes; killed and resumed

EVERYTHING: dict[str, Any] = {
    "optim": Optim(
        "adamw",
        lr=3e-3,
        batch_size=64,
        epochs=2,
        schedule="cosine",
        lr_warmup_epochs=1,
        label_smoothing=0.1,
        clip_grad_norm=1.0,
        model_ema=True,
        model_ema_steps=2,
        model_ema_decay=0.99,
    ),
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(
    processes: int, training: Training, tmp_path: Path
) -> None:
    """The moving average, the shares in which images are mixed, and the optimiser's moments included."""
    assert_resumes_exactly(train, partial(training, **EVERYTHING), tmp_path, processes)


def test_two_processes_by_torchrun(tmp_path: Path) -> None:
    options = (
        "--model resnet14 --batch-size 128 --epochs 2 --lr 0.05 --clip-grad-norm 1 --mixup-alpha 0.2 --cutmix-alpha 1"
    )
    options += " --model-ema --amp --channels-last --fpn --ra-sampler --random-erase 0.1 --output-dir run --holdout 0.1"
    said = run(two_processes("adn.train", *options.split()), tmp_path)
    assert said.stdout.count("run folder run, 2 process(es)") == 1
    assert "unused" not in said.stdout + said.stderr
    starts = json.loads((tmp_path / "run" / "env.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]
    result = result_of(tmp_path / "run")
    assert len(result["configurations"]) == 8
    assert {found["images"] for found in result["configurations"].values()} == {360}
    assert (tmp_path / "run" / "configurations.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(weights.from_pretrained(tmp_path / "run" / "model"), AdaptiveNet)


def test_two_processes_measure_what_they_write(training: Training, tmp_path: Path) -> None:
    """Batch norm's statistics are averaged first: both processes, and whoever loads the network, have the same."""
    done(forked(lambda: train(training(tmp_path / "run")), 2))
    found = evaluate(EvalConfig(model=str(tmp_path / "run" / "model")))
    for name, expected in result_of(tmp_path / "run")["configurations"].items():
        assert (found[name]["top1"], found[name]["images"]) == (expected["top1"], 120)
        assert found[name]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


# --- bad input


def test_outputs_that_are_not_finite_end_the_training_in_one_sentence(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = AdaptiveNet.forward, [0]

    def diverging(self: AdaptiveNet, images: Tensor, skip: Any = None) -> Tensor:
        calls[0] += self.training
        return forward(self, images, skip) * (math.nan if calls[0] > 2 * 5 else 1)

    monkeypatch.setattr(AdaptiveNet, "forward", diverging)
    with pytest.raises(InputError, match="the loss is not finite at epoch 2, step 2: lower the learning rate"):
        train(training(tmp_path / "run"))
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "resnet21"}, r"nearest are \[14, 20, 26, 29\]"),
        ({"model": "resnt14"}, "unknown model 'resnt14': did you mean resnet14"),
        ({"model": "resnet8"}, "stage 0 of the ResNet has one block, but must have 2 or more"),
        ({"model": "resnet50"}, "in_channels is 1, but must be 3 for resnet50"),
        ({"model": "vit_b_16"}, "image_size is 8, but must be a multiple of 16, the side of the patches of vit_b_16"),
        ({"pretrained": "nowhere"}, "there is no file nowhere"),
        ({"pretrained": "CLASSES"}, r"does not match the network: it has net.linear.weight \[7, 64\]"),
        ({"pretrained": "DEEPER"}, "does not match the network: it has net.layer1.2.bn1.bias"),
        ({"optim": Optim(batch_size=10_000)}, "batch_size is 10000"),
        ({"shortcut": "avgpool", "model": "mobilenet_v2"}, "mobilenet_v2 has no option 'shortcut'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    fields: dict[str, Any], message: str, training: Training, tmp_path: Path
) -> None:
    others = {"CLASSES": {"name": "resnet14", "num_classes": 7}, "DEEPER": {"name": "resnet20"}}
    if fields.get("pretrained") in others:
        path = tmp_path / "other.pth"
        torch.save(models.create(in_channels=1, **others[fields["pretrained"]]).state_dict(), path)
        fields = fields | {"pretrained": str(path)}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        train(training(tmp_path / "run", **fields))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("family", "side", "crop", "message"),
    [
        ("vit", 36, None, "the size of the images is 36 x 36, but must be 32 x 32 for this vision transformer"),
        ("vit", 32, 24, "the size of the images is 24 x 24, but must be 32 x 32 for this vision transformer"),
        ("swin", 3, None, "the size of the images is 3 x 3, but must be at least 4 x 4, one patch"),
    ],
)
def test_a_size_that_a_transformer_cannot_take_is_refused_before_the_training(
    family: str,
    side: int,
    crop: int | None,
    message: str,
    make: Make,
    picture_folder: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_module, "create_for", lambda *_, **__: make(family))
    stream = crop is not None
    source = DataConfig(picture_folder(side), stream=stream, workers=0, train_crop_size=crop)
    data = Pipeline(replace(source, image_size=side), 0, Shards())
    with pytest.raises(InputError, match=message):
        network(TrainConfig(model="vit_b_16", data=source), data)


def test_a_run_is_resumed_with_its_own_configuration(training: Training, tmp_path: Path) -> None:
    config = training(tmp_path / "run", optim=Optim("adam", batch_size=128, epochs=1))
    train(config)
    again = replace(config, alpha=0.7, run=replace(config.run, resume="auto"))
    with pytest.raises(InputError, match=r"was trained with --alpha = 0.5 \(now 0.7\)"):
        train(again)
