"""Joint fine-tuning: its limits, its gradients where processes keep different blocks, and runs that are killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blockdrop import method
from blockdrop.analyse import Decisions
from blockdrop.config import FinetuneConfig, Optim, Run
from blockdrop.finetune import check_batch_norm, finetune
from blockdrop.model import BlockDropNet, PolicyNetwork
from blockdrop.rollouts import JointRollouts
from resless import weights
from resless.config import DataConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.testing import assert_resumes_exactly, assert_same_weights, done, forked, metrics
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 256
SGD = Optim("sgd", lr=1e-3, momentum=0.0, batch_size=BATCH, epochs=1)
NO_EPOCHS = Optim("adam", batch_size=64, epochs=0)

pytestmark = pytest.mark.usefixtures("no_pictures")


def finetuning(pretrained: str, folder: Path, /, run: dict[str, Any] | None = None, **fields: Any) -> FinetuneConfig:
    optim = Optim("adam", lr=1e-3, batch_size=64, epochs=2)
    defaults = {"model": "resnet20", "pretrained": pretrained, "data": DataConfig(pad=1), "optim": optim}
    return FinetuneConfig(**(defaults | {"run": Run(run_dir=str(folder), **(run or {}))} | fields))


def state_of(run_folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(run_folder) / "model" / "model.safetensors")


# --- limits


def test_zero_epochs_change_nothing(curriculum: Path, dense: Path, tmp_path: Path) -> None:
    folder = finetune(finetuning(str(curriculum / "model"), tmp_path / "run", optim=NO_EPOCHS))
    assert_same_weights(curriculum / "model", folder)
    before, after = (json.loads((run / "result.json").read_text()) for run in (curriculum, tmp_path / "run"))
    # The residual network before fine-tuning: here, the backbone, and all blocks of the network as it is now.
    dense_control = after["controls"].pop("dense")
    assert after == before
    assert dense_control == after["controls"]["all_blocks"]
    assert dense_control["top1"] == json.loads((dense / "result.json").read_text())["top1"]
    first, second = (Decisions.load(run / "policies.npz") for run in (curriculum, tmp_path / "run"))
    assert np.array_equal(first.kept, second.kept)
    preprocessing = [weights.read_config(model)["preprocessing"] for model in (curriculum / "model", folder)]
    assert preprocessing[0] == preprocessing[1]


@pytest.mark.usefixtures("few_images")
def test_both_networks_learn_and_the_dense_control_stays(undecided: str, tmp_path: Path) -> None:
    before = load_file(Path(undecided) / "model.safetensors")
    finetune(finetuning(undecided, tmp_path / "none", optim=NO_EPOCHS))
    finetune(finetuning(undecided, tmp_path / "run"))
    after = state_of(tmp_path / "run")
    assert after.keys() == before.keys()
    assert len(before) > 100
    unchanged = [name for name, tensor in before.items() if torch.equal(after[name], tensor)]
    assert unchanged == []
    none, run = (json.loads((tmp_path / name / "result.json").read_text())["controls"] for name in ("none", "run"))
    assert run["dense"] == none["dense"]
    assert run["all_blocks"] != none["all_blocks"]
    losses = [record["train_cross_entropy"] for record in metrics(tmp_path / "run")]
    assert losses[1] < losses[0], "images that skip blocks are learnt"


@pytest.mark.usefixtures("few_images")
def test_both_networks_learn_in_bf16(undecided: str, tmp_path: Path) -> None:
    optim = Optim("adam", lr=1e-3, batch_size=64, epochs=1)
    finetune(finetuning(undecided, tmp_path / "run", {"mixed_precision": "bf16"}, optim=optim))
    before, after = load_file(Path(undecided) / "model.safetensors"), state_of(tmp_path / "run")
    assert len(before) > 100
    assert [name for name, tensor in before.items() if torch.equal(after[name], tensor)] == []


@pytest.mark.parametrize("fields", [{}, {"mean": (0.3,), "std": (0.4,)}], ids=["own statistics", "given statistics"])
def test_images_are_resized_to_those_of_the_network(
    undecided: str, tmp_path: Path, digit_folder: Callable[..., str], fields: dict[str, Any]
) -> None:
    """Of a data set that has no size of its own."""
    data = DataConfig(digit_folder("train", "test", side=16))
    folder = finetune(
        finetuning(undecided, tmp_path / "run", data=data, optim=replace(NO_EPOCHS, batch_size=16), **fields)
    )
    found, own = weights.read_config(folder)["preprocessing"], weights.read_config(undecided)["preprocessing"]
    assert own["image_size"] == 8
    assert found == own | {name: list(values) for name, values in fields.items()}


# --- one step, against the formula

KEPT_BY_NONE, KEPT_BY_FIRST_HALF, KEPT_BY_SECOND_HALF = 5, 2, 7


def scripted(count: int) -> Tensor:
    """What is drawn for the images of a global batch, bool [count, K]: each half, which is a process's share, keeps a
    block that the other does not, and one block is kept by none."""
    drawn = torch.rand(count, 9, generator=torch.Generator().manual_seed(4)) < 0.7
    drawn[:, KEPT_BY_NONE] = False
    drawn[count // 2 :, KEPT_BY_FIRST_HALF] = False
    drawn[: count // 2, KEPT_BY_SECOND_HALF] = False
    return drawn


def drawing(probabilities: Tensor) -> Tensor:
    """This process's contiguous share of what is scripted."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return scripted(len(probabilities) * processes).chunk(processes)[rank]


def one_step(config: FinetuneConfig) -> Callable[[], None]:
    """In a fork: with batch norm by running statistics, so that an image's gradient is its own."""

    def task() -> None:
        JointRollouts.train = lambda self, mode=True: nn.Module.train(self, False)
        method.sample = drawing
        finetune(config)

    return task


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_step_follows_the_formula_on_one_process_and_on_two(undecided: str, tmp_path: Path, reduction: str) -> None:
    config = finetuning(undecided, tmp_path, optim=SGD, penalty=-2.0, policy_reduction=reduction)
    for processes in (1, 2):
        run = Run(run_dir=str(tmp_path / str(processes)))
        done(forked(one_step(replace(config, run=run)), processes))
    before = load_file(Path(undecided) / "model.safetensors")

    # -Σ_images (R(u) - R(ũ)) · log P(u), plus the mean cross-entropy under u
    net = weights.from_pretrained(undecided)
    assert isinstance(net, BlockDropNet)
    data = Pipeline(config.data, 0, Shards(), weights.read_config(undecided)["preprocessing"])
    images, labels = next(iter(data.training(BATCH).epoch(0)))
    p = 0.8 * net.policy(images) + 0.2 * (1 - net.policy(images))
    logits = {policy: net.resnet(images, policy, "masked") for policy in (scripted(BATCH), p >= 0.5)}
    rewards = [
        torch.where(given.argmax(dim=1) == labels, 1 - (policy.sum(dim=1) / 9) ** 2, -2.0)
        for policy, given in logits.items()
    ]
    drawn, given = next(iter(logits.items()))
    advantage = (rewards[0] - rewards[1]).detach()
    assert advantage.abs().gt(0.01).float().mean() > 0.2
    terms = -advantage * torch.where(drawn, p, 1 - p).log().sum(dim=1)
    policy_loss = terms.sum() if reduction == "sum" else terms.mean()
    cross_entropy = F.cross_entropy(given, labels)
    (policy_loss + cross_entropy).backward()

    for processes in (1, 2):
        record = metrics(tmp_path / str(processes))[0]
        assert record["train_policy_loss"] == pytest.approx(policy_loss.item(), rel=1e-4)
        assert record["train_cross_entropy"] == pytest.approx(cross_entropy.item(), rel=1e-4)
        assert record["train_loss"] == pytest.approx((policy_loss + cross_entropy).item(), rel=1e-4)
        after = state_of(tmp_path / str(processes))
        compared = 0
        for name, parameter in net.named_parameters():
            change = after[name] - before[name]
            expected = torch.zeros_like(change) if parameter.grad is None else -1e-3 * parameter.grad
            # Weights of up to some hundred, of which the changes are the last digits.
            atol = 1e-6 + 1e-7 * before[name].abs().max().item()
            torch.testing.assert_close(change, expected, rtol=2e-3, atol=atol, msg=name)
            compared += int((expected.abs() > 20 * atol).sum())
        assert compared > 500, "there was something to compare"

        blocks = [f"resnet.net.{layer}" for layer in net_blocks(net)]
        assert len(blocks) == 9
        for index, block in enumerate(blocks):
            changed = any(
                not torch.equal(after[name], before[name]) for name in before if name.startswith(f"{block}.conv1")
            )
            assert changed == (index != KEPT_BY_NONE), block


def net_blocks(net: BlockDropNet) -> list[str]:
    """Names of the residual blocks, in order."""
    names = {id(module): name for name, module in net.resnet.net.named_modules()}
    return [names[id(block)] for block in net.resnet.blocks]


@pytest.mark.usefixtures("few_images")
def test_processes_that_keep_different_blocks_train_on(undecided: str, tmp_path: Path) -> None:
    """In training mode; of the last epoch's images one process keeps all blocks, the other none."""

    def task() -> None:
        def extreme(probabilities: Tensor) -> Tensor:
            return torch.full(probabilities.shape, os.environ["RANK"] == "0")

        method.sample = extreme
        finetune(finetuning(undecided, tmp_path / "run"))

    done(forked(task, 2))
    assert [record["train_sampled_blocks_used"] for record in metrics(tmp_path / "run")] == [4.5, 4.5]
    before, after = load_file(Path(undecided) / "model.safetensors"), state_of(tmp_path / "run")
    assert all(not torch.equal(after[name], before[name]) for name in before if name.endswith("conv1.weight"))
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


@pytest.mark.usefixtures("few_images")
def test_a_batch_that_keeps_no_block_trains_stem_and_classifier(
    undecided: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "sample", lambda probabilities: torch.zeros_like(probabilities, dtype=torch.bool))
    finetune(finetuning(undecided, tmp_path / "run", optim=Optim("adam", batch_size=BATCH, epochs=1)))
    before, after = load_file(Path(undecided) / "model.safetensors"), state_of(tmp_path / "run")
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert {"resnet.net.conv1.weight", "resnet.net.linear.weight", "policy.logit.weight"} <= changed
    residual = [name for name in before if name.startswith("resnet.net.layer") and "shortcut" not in name]
    assert len(residual) == 9 * 12
    assert changed.isdisjoint(residual)


# --- killed and resumed


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(
    undecided: str, processes: int, tmp_path: Path
) -> None:
    """The policies that are drawn, each process's running statistics and the control before fine-tuning included."""
    assert_resumes_exactly(finetune, partial(finetuning, undecided), tmp_path, processes)


@pytest.mark.usefixtures("few_images")
def test_outputs_that_are_not_finite_end_the_training_in_one_sentence(
    undecided: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = PolicyNetwork.forward, [0]

    def diverging(self: PolicyNetwork, images: Tensor) -> Tensor:
        calls[0] += self.training
        return forward(self, images) * (math.nan if calls[0] >= 6 else 1)

    monkeypatch.setattr(PolicyNetwork, "forward", diverging)
    with pytest.raises(InputError, match="the loss is not finite at epoch 2, step 2: lower the learning rate"):
        finetune(finetuning(undecided, tmp_path / "run"))
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.usefixtures("few_images")
def test_weights_that_have_diverged_end_the_training_in_one_sentence(undecided: str, tmp_path: Path) -> None:
    """Before held-out images are evaluated."""
    config = finetuning(undecided, tmp_path / "run", optim=replace(SGD, lr=1e30, batch_size=64))
    with pytest.raises(InputError, match=r"the loss is not finite at epoch 1, step [23]: lower the learning rate"):
        finetune(replace(config, data=DataConfig(holdout=0.25)))


# --- bad input


@pytest.mark.parametrize(
    ("name", "side", "refused"),
    [
        ("torchvision/resnet18", 32, True),
        ("torchvision/resnet18", 33, False),
        ("torchvision/resnet18", 64, False),
        ("resnet8", 4, True),
        ("resnet8", 5, False),
        ("resnet8", 8, False),
    ],
)
def test_networks_whose_last_blocks_see_one_pixel_are_refused(name: str, side: int, refused: bool) -> None:
    """A block that one image alone keeps would have one value a channel there: no variance."""
    torch.manual_seed(0)
    net, data = BlockDropNet(name), SimpleNamespace(example=torch.zeros(1, 3, side, side))
    kept = torch.ones(1, net.num_blocks, dtype=torch.bool)
    net.eval()
    if not refused:
        check_batch_norm(net, data)
        assert net.train().resnet(torch.randn(1, 3, side, side), kept).isfinite().all()
        return
    wanted = f"^the image size is {side}, but must be larger for {name}: its last blocks see one pixel an image"
    with pytest.raises(InputError, match=wanted):
        check_batch_norm(net, data)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net.train().resnet(torch.randn(1, 3, side, side), kept)


def test_a_data_set_without_test_images_is_refused_before_the_training(
    undecided: str, tmp_path: Path, digit_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JointRollouts, "forward", lambda *_: pytest.fail("it was trained"))
    optim = Optim("adam", batch_size=16, epochs=1)
    with pytest.raises(InputError, match=r"^no test images of .*digits"):
        finetune(finetuning(undecided, tmp_path / "run", data=DataConfig(digit_folder("train")), optim=optim))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrained": None}, "--pretrained is missing: give the model folder of a blockdrop-train run"),
        ({"pretrained": "nowhere"}, "^there is no nowhere: give the model folder of a finished run of blockdrop-train"),
        ({"data": DataConfig(image_size=4)}, "^the image size is 4, but must be larger for resnet20"),
        ({"model": "resnet32"}, "--model is resnet32, but .* holds a resnet20"),
        ({"model": "R110_C10"}, "holds a resnet20 of 9 blocks .*, but R110_C10 is a resnet110 of 54 blocks"),
        ({"model": "resnet21"}, r"nearest are \[14, 20, 26, 29\]"),
        ({"optim": Optim(batch_size=10_000)}, "batch_size is 10000"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    undecided: str, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finetune(finetuning(undecided, tmp_path / "run", **fields))
    assert list(tmp_path.iterdir()) == []


def test_a_plain_network_is_refused(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a plain resnet20: give it to blockdrop-train as --backbone first"):
        finetune(finetuning(backbone, tmp_path / "run"))


@pytest.mark.parametrize("spec", [{"num_classes": 7}, {"in_channels": 3}])
def test_networks_for_other_images_are_refused(tmp_path: Path, spec: dict[str, int]) -> None:
    size = {"num_classes": 10, "in_channels": 1} | spec
    net, statistics = BlockDropNet("resnet20", **size), [0.5] * size["in_channels"]
    weights.save_pretrained(net, tmp_path / "other", preprocessing={"mean": statistics, "std": statistics})
    wanted = f"the images are 1 x 8 x 8 in 10 classes, but .* was trained on {size['in_channels']} x any size in"
    with pytest.raises(InputError, match=f"{wanted} {size['num_classes']} classes: give its --dataset"):
        finetune(finetuning(str(tmp_path / "other"), tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
