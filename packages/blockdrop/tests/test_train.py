"""The curriculum: what learns and what stays, which blocks are open, and runs that are killed or shared."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blockdrop import method
from blockdrop.analyse import Decisions
from blockdrop.config import EvalConfig, Optim, Run, TrainConfig
from blockdrop.evaluate import main as evaluate
from blockdrop.model import BlockDropNet, PolicyNetwork
from blockdrop.rollouts import CurriculumRollouts, Rollouts
from blockdrop.train import train
from resless import models, weights
from resless.config import DataConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.testing import assert_resumes_exactly, assert_same_run, done, forked, metrics
from safetensors.torch import load_file
from torch import Tensor, nn

BLOCKS = 9
SGD = Optim("sgd", lr=0.01, momentum=0.0, batch_size=256, epochs=1)

pytestmark = pytest.mark.usefixtures("few_images", "no_pictures")  # 256 images to train on


def training(backbone: str, folder: Path, /, run: dict[str, Any] | None = None, **fields: Any) -> TrainConfig:
    defaults = {"model": "resnet20", "backbone": backbone, "data": DataConfig(pad=1), "curriculum_step": 4}
    optim = Optim("adam", lr=3e-3, batch_size=64, epochs=2)
    return TrainConfig(**(defaults | {"optim": optim, "run": Run(run_dir=str(folder), **(run or {}))} | fields))


def state_of(run_folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(run_folder) / "model" / "model.safetensors")


# --- what learns


def test_only_the_policy_network_learns(curriculum: Path, backbone: str) -> None:
    before, after = load_file(Path(backbone) / "model.safetensors"), state_of(curriculum)
    assert sum("running_mean" in name for name in before) > 20, "the statistics are compared, too"
    for name, tensor in before.items():
        assert torch.equal(after[f"resnet.net.{name}"], tensor), name
    policy = {name: tensor for name, tensor in after.items() if name.startswith("policy.")}
    assert len(policy) + len(before) == len(after)
    fresh = BlockDropNet("resnet20", in_channels=1).policy.state_dict()
    assert len(fresh) == len(policy) > 20
    assert not torch.equal(policy["policy.features.bn1.running_mean"], fresh["features.bn1.running_mean"])


def test_zero_epochs_change_nothing(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = Optim("adam", lr=3e-3, batch_size=64, epochs=0)
    folder = train(training(backbone, tmp_path / "run", optim=none))
    before, after = load_file(Path(backbone) / "model.safetensors"), state_of(tmp_path / "run")
    assert len(before) > 50
    assert all(torch.equal(after[f"resnet.net.{name}"], tensor) for name, tensor in before.items())
    assert after["policy.features.bn1.running_mean"].eq(0).all(), "no image was seen in training mode"
    assert weights.read_config(folder)["preprocessing"] == weights.read_config(backbone)["preprocessing"]
    assert metrics(tmp_path / "run") == []
    assert "warning: 9 of 9 blocks were never decided on" in capsys.readouterr().out


def test_a_run_is_repeatable_and_its_seed_matters(backbone: str, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train(training(backbone, tmp_path / name, {"seed": seed}, optim=Optim("adam", batch_size=128, epochs=1)))
    assert_same_run(tmp_path / "one", tmp_path / "again")
    one, other = state_of(tmp_path / "one"), state_of(tmp_path / "other")
    assert not torch.equal(one["policy.logit.weight"], other["policy.logit.weight"])


# --- what is said of the backbone


NOTHING = Optim("adam", batch_size=16, epochs=0)


def test_it_is_said_how_good_the_backbone_is(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = training(backbone, tmp_path / "run", optim=NOTHING, data=DataConfig(holdout=0.25))
    train(config)
    net, preprocessing = weights.from_pretrained(backbone), weights.read_config(backbone)["preprocessing"]
    data = Pipeline(config.data, 0, Shards(), preprocessing)
    kept, _ = data.split
    with torch.inference_mode():
        right = [net(images).argmax(dim=1) == labels for images, labels in data.evaluation(data.train, indices=kept)]
    top1, printed = torch.cat(right).float().mean().item(), capsys.readouterr().out
    assert top1 > 0.5
    assert f"the backbone is right on {100 * top1:.1f} % of {len(kept)} training images\n" in printed
    assert "that is little" not in printed


@pytest.mark.parametrize("wrong", ["untrained", "shifted"])
def test_a_wrong_backbone_is_warned_of(
    wrong: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the training, which goes on. Shifted: a checkpoint whose images had other statistics."""
    torch.manual_seed(0)
    net = models.create("resnet20", in_channels=1) if wrong == "untrained" else weights.from_pretrained(backbone)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    statistics = {} if wrong == "untrained" else {"mean": (0.9,), "std": (0.02,)}
    train(training(str(tmp_path / "a.pth"), tmp_path / "run", optim=NOTHING, **statistics))
    printed = capsys.readouterr().out
    warning = "warning: that is little for a trained network: check --shortcut, --mean and --std"
    assert printed.index("the backbone is right on") < printed.index(warning) < printed.index("run folder")


# --- a data set without a size


@pytest.mark.parametrize("fields", [{}, {"mean": (0.3,), "std": (0.4,)}], ids=["own statistics", "given statistics"])
def test_images_are_resized_to_those_of_the_backbone(
    backbone: str, tmp_path: Path, digit_folder: Callable[..., str], fields: dict[str, Any]
) -> None:
    data = DataConfig(digit_folder("train", "test", side=16))
    folder = train(training(backbone, tmp_path / "run", data=data, optim=NOTHING, **fields))
    found, own = weights.read_config(folder)["preprocessing"], weights.read_config(backbone)["preprocessing"]
    assert own["image_size"] == 8
    assert found == own | {name: list(values) for name, values in fields.items()}
    other = train(training(backbone, tmp_path / "other", data=replace(data, image_size=12), optim=NOTHING, **fields))
    assert weights.read_config(other)["preprocessing"]["image_size"] == 12, "unless another size is asked for"


def test_a_mean_of_each_pixel_is_that_of_the_backbone(backbone: str, tmp_path: Path) -> None:
    own = {"image_size": 8, "mean": torch.rand(1, 8, 8).tolist(), "std": [128 / 255]}
    weights.save_pretrained(weights.from_pretrained(backbone), tmp_path / "pixel", preprocessing=own)
    folder = train(training(str(tmp_path / "pixel"), tmp_path / "run", optim=NOTHING))
    found = weights.read_config(folder)
    assert found["preprocessing"] == own
    evaluated = evaluate(EvalConfig(model=str(folder), repeats=0, controls=False))
    assert evaluated["top1"] == found["metrics"]["top1"]
    with pytest.raises(InputError, match="--normalize is 'pixel', but must be left out"):
        train(training(str(tmp_path / "pixel"), tmp_path / "other", data=DataConfig(normalize="pixel")))


# --- the curriculum


def test_blocks_are_opened_from_the_last_one_on(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Rollouts] = []
    forward = CurriculumRollouts.forward

    def recorded(self: CurriculumRollouts, images: Tensor, num_open: int) -> Rollouts:
        seen.append(forward(self, images, num_open))
        return seen[-1]

    monkeypatch.setattr(CurriculumRollouts, "forward", recorded)
    optim = Optim("adam", lr=3e-3, batch_size=64, epochs=4)
    data = DataConfig(pad=1, holdout=0.25)
    train(training(backbone, tmp_path / "run", optim=optim, data=data, curriculum_step=3))
    records = metrics(tmp_path / "run")
    assert [record["open_blocks"] for record in records] == [3, 6, 9, 9], "never more than there are"
    assert len(seen) == 12
    for step, rollouts in enumerate(seen):
        closed = max(0, BLOCKS - 3 * (step // 3 + 1))
        for policy in (rollouts.sampled, rollouts.baseline):
            assert policy[:, :closed].all()
        dropped = (~rollouts.sampled[:, closed:]).float().mean(dim=0)
        assert (dropped > 0.05).all(), "every open block is dropped for some of 64 images"
    assert "never decided" not in capsys.readouterr().out
    for record in records:
        assert record["held_out_blocks_used"] >= BLOCKS - record["open_blocks"], "closed blocks are kept there, too"


def test_blocks_that_were_never_open_are_said(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(training(backbone, tmp_path / "run", optim=replace(SGD, epochs=2)))
    assert "warning: 1 of 9 blocks were never decided on" in capsys.readouterr().out


# --- one step, against the formula


def evaluating_policies() -> None:
    """In a fork: batch norm by running statistics, so that an image's gradient is its own."""
    CurriculumRollouts.train = lambda self, mode=True: nn.Module.train(self, False)


def scripted(count: int) -> Tensor:
    """What is drawn for the images of a global batch: bool [count, K], half of it true."""
    return torch.rand(count, BLOCKS, generator=torch.Generator().manual_seed(4)) < 0.5


def drawing(probabilities: Tensor) -> Tensor:
    """This process's contiguous share of what is scripted."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return scripted(len(probabilities) * processes).chunk(processes)[rank]


def one_step(config: TrainConfig) -> Callable[[], None]:
    def task() -> None:
        evaluating_policies()
        method.sample = drawing
        train(config)

    return task


def test_a_step_follows_the_formula_on_one_process_and_on_two(backbone: str, tmp_path: Path) -> None:
    config = training(backbone, tmp_path / "none", optim=replace(SGD, epochs=0), penalty=-2.0, entropy_bonus=0.05)
    train(config)
    steps = {1: replace(config, optim=SGD), 2: replace(config, optim=SGD)}
    for processes, step in steps.items():
        run = Run(run_dir=str(tmp_path / str(processes)))
        done(forked(one_step(replace(step, run=run)), processes))
    before = state_of(tmp_path / "none")

    # -(R(u) - R(ũ)) · log P(u) - β H, means over the batch; of nine blocks, four are open.
    net = weights.from_pretrained(tmp_path / "none" / "model")
    assert isinstance(net, BlockDropNet)
    data = Pipeline(config.data, 0, Shards(), weights.read_config(backbone)["preprocessing"])
    images, labels = next(iter(data.training(256).epoch(0)))
    p = 0.8 * net.policy(images) + 0.2 * (1 - net.policy(images))
    drawn, greedy = scripted(256), p >= 0.5
    drawn[:, :5], greedy[:, :5] = True, True
    rewards = []
    for policy in (drawn, greedy):
        with torch.no_grad():
            right = net.resnet(images, policy, "masked").argmax(dim=1) == labels
        rewards.append(torch.where(right, 1 - (policy.sum(dim=1) / 9) ** 2, -2.0))
    assert 0 < (rewards[0] - rewards[1]).abs().gt(0.01).float().mean() <= 1
    likelihood = torch.where(drawn, p, 1 - p).log()[:, 5:].sum(dim=1)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())[:, 5:].sum(dim=1)
    loss = (-(rewards[0] - rewards[1]) * likelihood - 0.05 * entropy).mean()
    loss.backward()

    record = metrics(tmp_path / "1")[0]
    assert record["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert record["train_entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert record["train_reward"] == pytest.approx(rewards[1].mean().item(), rel=1e-4)
    assert record["train_sampled_reward"] == pytest.approx(rewards[0].mean().item(), rel=1e-4)
    assert metrics(tmp_path / "2")[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for processes in steps:
        after = state_of(tmp_path / str(processes))
        compared = 0
        for name, parameter in net.policy.named_parameters():
            change = after[f"policy.{name}"] - before[f"policy.{name}"]
            assert parameter.grad is not None
            torch.testing.assert_close(change, -0.01 * parameter.grad, rtol=1e-3, atol=2e-6, msg=name)
            compared += int((change.abs() > 1e-5).sum())
        assert compared > 100, "there was something to compare"
        # What is closed gets no gradient.
        assert torch.equal(after["policy.logit.weight"][:5], before["policy.logit.weight"][:5])


# --- several processes


def test_two_processes_see_the_same_data_and_leave_the_backbone_alone(backbone: str, tmp_path: Path) -> None:
    def task() -> None:
        fetched: list[Tensor] = []
        forward = CurriculumRollouts.forward

        def recorded(self: CurriculumRollouts, images: Tensor, num_open: int) -> Rollouts:
            fetched.append(images)
            rollouts = forward(self, images, num_open)
            fetched.append(rollouts.sampled.float())
            return rollouts

        CurriculumRollouts.forward = recorded
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        train(training(backbone, tmp_path / str(processes)))
        torch.save(fetched, tmp_path / f"{processes}-{os.environ.get('RANK', '0')}.pt")

    assert "1 process(es)" in done(forked(task))
    assert "2 process(es)" in done(forked(task, 2))
    whole = torch.load(tmp_path / "1-0.pt", weights_only=True)
    halves = [torch.load(tmp_path / f"2-{rank}.pt", weights_only=True) for rank in range(2)]
    assert len(whole) == 16
    for step in range(0, 16, 2):
        assert torch.equal(whole[step], torch.cat([half[step] for half in halves]))
        assert not torch.equal(halves[0][step + 1], halves[1][step + 1]), "each process draws its own policies"
    before, after = load_file(Path(backbone) / "model.safetensors"), state_of(tmp_path / "2")
    assert all(torch.equal(after[f"resnet.net.{name}"], tensor) for name, tensor in before.items())
    assert np.array_equal(Decisions.load(tmp_path / "2" / "policies.npz").images, np.arange(120))


# --- killed and resumed


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(
    backbone: str, tmp_path: Path, processes: int
) -> None:
    """The policies that are drawn, the blocks that are open and the optimiser's moments included."""
    assert_resumes_exactly(train, partial(training, backbone), tmp_path, processes)
    first, second = (Decisions.load(tmp_path / name / "policies.npz") for name in ("whole", "broken"))
    assert np.array_equal(first.kept, second.kept)


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_outputs_that_are_not_finite_end_the_training_in_one_sentence(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: float
) -> None:
    forward, calls = PolicyNetwork.forward, [0]

    def diverging(self: PolicyNetwork, images: Tensor) -> Tensor:
        calls[0] += self.training
        return forward(self, images) * (math.nan if calls[0] >= 6 else 1)

    monkeypatch.setattr(PolicyNetwork, "forward", diverging)
    steps = 4 if holdout == 0 else 3
    with pytest.raises(InputError, match=f"the loss is not finite at epoch 2, step {6 - steps}: lower the learning"):
        train(training(backbone, tmp_path / "run", data=DataConfig(holdout=holdout)))
    assert len(metrics(tmp_path / "run")) == 1


# --- bad input


def test_a_data_set_without_test_images_is_refused_before_the_training(
    backbone: str, tmp_path: Path, digit_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CurriculumRollouts, "forward", lambda *_: pytest.fail("it was trained"))
    config = training(
        backbone, tmp_path / "run", data=DataConfig(digit_folder("train")), optim=replace(NOTHING, epochs=1)
    )
    with pytest.raises(InputError, match=r"^no test images of .*digits"):
        train(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": None}, r"--backbone is missing.*resless-train --model resnet20 --dataset"),
        # Said before the data set is looked for, which is not there.
        (
            {"backbone": None, "model": "R110_C10", "data": DataConfig("cifar10", data_dir="nowhere")},
            r"--backbone is missing.*resless-train --model resnet110 --dataset cifar10 --shortcut avgpool",
        ),
        (
            {"backbone": "nowhere"},
            r"^--backbone is nowhere, but nothing is there: BlockDrop starts from a trained resnet20\..*"
            r"resless-train --model resnet20 --dataset",
        ),
        (
            {"backbone": "nowhere", "model": "R110_C10", "data": DataConfig("cifar10", data_dir="nowhere")},
            "^--backbone is nowhere, but nothing is there: BlockDrop starts from a trained resnet110",
        ),
        ({"model": "resnet32"}, "--model is resnet32, but .* holds a resnet20"),
        ({"shortcut": "avgpool"}, "--shortcut is 'avgpool', but must be conv"),
        ({"model": "R32_C10"}, "must be 10 classes in 3 channels for R32_C10"),
        ({"model": "resnet21"}, r"nearest are \[14, 20, 26, 29\]"),
        ({"policy_weights": "nowhere"}, "there is no file nowhere"),
        ({"optim": Optim(batch_size=10_000)}, "batch_size is 10000"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    backbone: str, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(training(backbone, tmp_path / "run", **fields))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"num_classes": 7}, "'10 classes in 1 channels', but must be 7 classes in 1 channels, as the backbone's"),
        ({"in_channels": 3}, "'10 classes in 1 channels', but must be 10 classes in 3 channels, as the backbone's"),
    ],
)
def test_a_backbone_for_other_images_is_refused(tmp_path: Path, spec: dict[str, int], message: str) -> None:
    made = models.create("resnet20", **({"num_classes": 10, "in_channels": 1} | spec))
    statistics = [0.5] * made.conv1.in_channels
    weights.save_pretrained(made, tmp_path / "other", preprocessing={"mean": statistics, "std": statistics})
    with pytest.raises(InputError, match=message):
        train(training(str(tmp_path / "other"), tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
