"""Decisions, costs and controls of a network whose policies differ from image to image; on one process and on two."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from blockdrop import cli, costs, evaluate
from blockdrop.analyse import Decisions
from blockdrop.config import EvalConfig
from blockdrop.evaluate import controls, decisions, main, paper_lines, print_summary, recalibrate_kept, summary
from blockdrop.model import BlockDropNet
from blockdrop.specialise import check_specialise, specialise
from resless import weights
from resless.calibrate import batch_norms
from resless.config import DataConfig, SourceConfig
from resless.config import EvalConfig as DenseEvalConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import Evaluation
from resless.evaluate import main as evaluate_dense
from resless.run import accelerator
from resless.testing import Ended, forked, metrics, succeeded
from torch import nn

DIGIT = torch.zeros(1, 1, 8, 8)
IMAGES = 360  # test images of digits


def batches_of(folder: str, size: int, shards: Shards | None = None, indices: torch.Tensor | None = None) -> Any:
    data = Pipeline(DataConfig(), 0, shards or Shards(), weights.read_config(folder)["preprocessing"])
    return data.evaluation(data.test, size, indices=indices)


def net_of(folder: str) -> BlockDropNet:
    net = weights.from_pretrained(folder)
    assert isinstance(net, BlockDropNet)
    return net


def decided(folder: str, size: int = 500, **options: Any) -> Decisions:
    return decisions(net_of(folder), batches_of(folder, size), accelerator("no"), **options)


def evaluating(folder: str, **fields: Any) -> EvalConfig:
    return EvalConfig(**({"model": folder, "repeats": 0, "controls": False} | fields))


def plainly(folder: str | Path) -> Evaluation:
    """As by resless-eval."""
    return evaluate_dense(DenseEvalConfig(model=str(folder)))


# --- decisions


def test_decisions_are_those_of_the_policy_network_and_the_masked_network(undecided: str) -> None:
    net, found = net_of(undecided), decided(undecided, 50)
    kept, correct, labels = [], [], []
    with torch.inference_mode():
        for images, classes in batches_of(undecided, 500):
            policy = net.policy(images) >= 0.5
            kept.append(policy)
            correct.append(net.resnet(images, policy, "masked").argmax(dim=1) == classes)
            labels.append(classes)
    assert np.array_equal(found.kept, torch.cat(kept).numpy())
    assert np.array_equal(found.correct, torch.cat(correct).numpy())
    assert np.array_equal(found.labels, torch.cat(labels).numpy())
    assert np.array_equal(found.images, np.arange(IMAGES))
    assert len({row.tobytes() for row in found.kept}) > 20, "the network is to have many policies"
    assert 0.1 < found.top1 < 0.9


@pytest.mark.parametrize("executor", ["masked", "gathered", "grouped"])
def test_every_executor_decides_the_same(undecided: str, executor: str) -> None:
    found, other = decided(undecided), decided(undecided, 40, executor=executor)
    assert np.array_equal(found.kept, other.kept)
    assert np.array_equal(found.correct, other.correct)


def test_rows_are_in_the_order_of_the_data_set_and_the_mode_is_put_back(undecided: str) -> None:
    net, whole = net_of(undecided).train(), decided(undecided)
    indices = torch.tensor([30, 4, 17, 200, 5])
    found = decisions(net, batches_of(undecided, 2, indices=indices), accelerator("no"))
    assert net.training
    assert found.images.tolist() == [4, 5, 17, 30, 200]
    assert np.array_equal(found.kept, whole.kept[found.images])
    assert np.array_equal(found.labels, whole.labels[found.images])


def test_an_image_that_was_seen_twice_is_an_error(undecided: str) -> None:
    twice = batches_of(undecided, 2, indices=torch.tensor([1, 2, 2]))
    with pytest.raises(RuntimeError, match="evaluated 3 images, but the data set has 3"):
        decisions(net_of(undecided), twice, accelerator("no"))


def poisoned(folder: str, when: bool = True) -> BlockDropNet:
    net = net_of(folder)
    with torch.no_grad():
        net.resnet.net.linear.bias[3] = math.nan if when else 0
    return net


OVERFLOW = "the network's outputs overflow: evaluate it with --mixed-precision no or bf16"


def test_outputs_that_are_not_finite_are_an_error(undecided: str) -> None:
    net = poisoned(undecided).train()
    with pytest.raises(InputError, match=OVERFLOW):
        decisions(net, batches_of(undecided, 100, indices=torch.arange(3)), accelerator("no"))
    assert net.training


def test_outputs_that_are_not_finite_end_all_processes(undecided: str) -> None:
    """Also those whose own images are fine, which would wait for the others."""

    def task(processes: Accelerator) -> None:
        net = poisoned(undecided)
        net.resnet.net.linear.bias.data[3] = math.nan if processes.process_index == 1 else 0
        with pytest.raises(InputError, match=OVERFLOW):
            decisions(net, batches_of(undecided, 100, Shards.of(processes, False)), processes)

    on_two_processes(task)


def on_two_processes(task: Callable[[Accelerator], object]) -> list[Ended]:
    ended = forked(lambda: task(accelerator("no")), 2)
    assert [process.code for process in ended] == [0, 0], ended
    return ended


@pytest.mark.parametrize(("size", "count"), [(7, IMAGES), (1, 5), (3, 1)], ids=["all", "one by one", "only one"])
def test_two_processes_decide_as_one(undecided: str, tmp_path: Path, size: int, count: int) -> None:
    """Seven images make shares of three and four; of batches of one image, a process gets none."""
    indices = torch.arange(count)

    def task(processes: Accelerator) -> None:
        batches = batches_of(undecided, size, Shards.of(processes, False), indices)
        found = decisions(net_of(undecided), batches, processes)
        found.save(tmp_path / f"{processes.process_index}.npz")

    on_two_processes(task)
    one = decisions(net_of(undecided), batches_of(undecided, 500, indices=indices), accelerator("no"))
    for rank in range(2):
        two = Decisions.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(two.images, np.arange(count))
        assert np.array_equal(two.kept, one.kept)
        assert np.array_equal(two.correct, one.correct)
        assert np.array_equal(two.labels, one.labels)


def test_two_processes_evaluate_the_mean_of_their_running_statistics(undecided: str, tmp_path: Path) -> None:
    def shifted(rank: float) -> BlockDropNet:
        net = net_of(undecided)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.2 * rank)
        return net

    def task(processes: Accelerator) -> None:
        batches = batches_of(undecided, 500, Shards.of(processes, False))
        decisions(shifted(processes.process_index), batches, processes).save(tmp_path / f"{processes.process_index}")

    on_two_processes(task)
    one = decisions(shifted(0.5), batches_of(undecided, 500), accelerator("no"))
    two = Decisions.load(tmp_path / "0.npz")
    assert (two.kept == one.kept).mean() > 0.999
    assert not np.array_equal(two.kept, decided(undecided).kept)


# --- numbers


def test_summary_is_what_its_names_say() -> None:
    cost = costs.BlockCosts(always=1000, blocks=(100, 200, 300), policy=50)
    kept = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=bool)
    found = Decisions(kept, np.array([True, False, True, True]), np.array([0, 1, 2, 0]), np.arange(4))
    macs = [1050 + 400, 1050 + 400, 1050 + 500, 1050 + 600]
    mean = sum(macs) / 4
    assert summary(found, cost) == {
        "images": 4,
        "top1": 0.75,
        "num_blocks": 3,
        "blocks_used": 2.25,
        "blocks_used_sd": pytest.approx(math.sqrt(3 * 0.25**2 / 4 + 0.75**2 / 4)),
        "macs": mean,
        "macs_sd": pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in macs) / 4)),
        "dense_macs": 1600,
        "policy_macs": 50,
        "cost_fraction": pytest.approx(mean / 1600),
        "unique_policies": 3,
        "policy_entropy_bits": pytest.approx(0.5 * 1 + 2 * 0.25 * 2),
        "most_frequent_policy": "101",
        "most_frequent_policy_share": 0.5,
        "keep_rates": [0.75, 0.5, 1.0],
        "collapse": None,
    }


def test_the_four_lines_are_the_authors() -> None:
    result = {"top1": 0.936, "blocks_used": 16.9331, "blocks_used_sd": 3.7167, "unique_policies": 469}
    published = "Accuracy: 0.936\nBlock Usage: 16.933 ± 3.717\nFLOPs/img: 1.81E+08 ± 3.43E+07\nUnique Policies: 469"
    lines = paper_lines(result | {"macs": 1.81e8 / 2, "macs_sd": 3.43e7 / 2})
    assert lines == "\n".join(f"    {line}" for line in published.splitlines())


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([True, True, True], "all images keep all blocks"),
        ([False, False, False], "no image keeps any block"),
        ([True, False, True], "all images have the same policy, 101: --specialise"),
        (None, None),
    ],
)
def test_a_collapse_is_said(row: list[bool] | None, sentence: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    kept = np.array([row or [False, True, True], row or [True, True, True]])
    found = Decisions(kept, np.array([True, True]), np.array([0, 1]), np.arange(2))
    print_summary(summary(found, costs.BlockCosts(1000, (100, 200, 300), 50)) | {"controls": {}})
    printed = capsys.readouterr().out
    if sentence is None:
        assert "warning" not in printed
    else:
        assert f"warning: the policies have collapsed: {sentence}" in printed


# --- controls


def test_controls_are_the_backbone_one_policy_and_random_policies(
    undecided: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, found = net_of(undecided), decided(undecided)
    cost = costs.count(net, DIGIT)
    drawn: list[Decisions] = []

    def recorded(*args: Any, **options: Any) -> Decisions:
        drawn.append(decisions(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(evaluate, "decisions", recorded)

    def control(seed: int) -> dict[str, dict[str, Any]]:
        return controls(net, batches_of(undecided, 100), accelerator("no"), found, cost, seed=seed, dense=net.resnet)

    others = control(0)
    assert list(others) == ["most_frequent", "random", "all_blocks", "dense"]
    assert len(drawn) == 4

    # Everything runs: the backbone, and its cost, without a policy network.
    backbone = json.loads((dense / "result.json").read_text())
    assert others["all_blocks"] == others["dense"]
    assert others["all_blocks"]["top1"] == backbone["top1"]
    assert others["all_blocks"]["blocks_used"] == 9
    assert others["all_blocks"]["macs"] == cost.dense
    assert others["all_blocks"]["cost_fraction"] == 1

    # The most frequent policy is that of a plain network.
    (row, _), *_ = Counter(map(tuple, found.kept.tolist())).most_common()
    weights.save_pretrained(net.specialised(row), tmp_path / "one", preprocessing=preprocessing_of(undecided))
    assert others["most_frequent"]["policy"] == "".join("01"[keep] for keep in row)
    assert others["most_frequent"]["blocks_used"] == sum(row)
    assert others["most_frequent"]["top1"] == plainly(tmp_path / "one").top1
    assert (drawn[0].kept == np.array(row)).all()

    # Random policies: as many images keep each block, to within 4.5 standard deviations; blocks are independent.
    rates, kept = found.kept.mean(axis=0), drawn[1].kept
    assert (np.abs(kept.mean(axis=0) - rates) < 4.5 * np.sqrt(rates * (1 - rates) / IMAGES)).all()
    assert not np.array_equal(kept, found.kept)
    assert np.abs(np.corrcoef(kept.T) - np.eye(9)).max() < 4.5 / math.sqrt(IMAGES)
    assert others["random"]["blocks_used"] == pytest.approx(kept.sum(axis=1).mean())
    macs = cost.always + kept.astype(int) @ np.array(cost.blocks)
    assert others["random"]["macs"] == pytest.approx(macs.mean())

    assert control(0)["random"] == others["random"]
    control(1)
    assert not np.array_equal(drawn[-3].kept, kept), "another seed draws other policies"


def test_random_policies_are_the_same_on_two_processes(undecided: str, tmp_path: Path) -> None:
    def task(processes: Accelerator) -> None:
        drawn: list[Decisions] = []
        decide = evaluate.decisions
        evaluate.decisions = lambda *args, **options: drawn.append(decide(*args, **options)) or drawn[-1]
        net, batches = net_of(undecided), batches_of(undecided, 500, Shards.of(processes, False))
        found = decide(net, batches, processes)
        controls(net, batches, processes, found, costs.count(net, DIGIT), seed=0)
        drawn[1].save(tmp_path / f"{processes.num_processes}-{processes.process_index}.npz")

    on_two_processes(task)
    (alone,) = forked(lambda: task(accelerator("no")))
    assert alone.code == 0, alone.printed
    one, first, second = (Decisions.load(tmp_path / f"{name}.npz") for name in ("1-0", "2-0", "2-1"))
    for two in (first, second):
        assert np.array_equal(two.kept, one.kept)
        assert np.array_equal(two.correct, one.correct)
    # Not one half's policies for both.
    assert (one.kept[: IMAGES // 2] == one.kept[IMAGES // 2 :]).mean() < 0.7


def preprocessing_of(folder: str) -> dict[str, Any]:
    return weights.read_config(folder)["preprocessing"]


# --- the command


def test_the_command_gives_the_accuracy_of_the_run(curriculum: Path, tmp_path: Path) -> None:
    result = json.loads((curriculum / "result.json").read_text())
    found = main(evaluating(str(curriculum / "model"), controls=True, output=str(tmp_path / "out.json")))
    others, run_controls = found.pop("controls"), result.pop("controls")
    assert found == result
    assert others["all_blocks"] == run_controls["all_blocks"]
    assert json.loads((tmp_path / "out.json").read_text()) == found | {"controls": others}
    kept = Decisions.load(curriculum / "policies.npz").kept
    assert found["blocks_used"] == kept.sum(axis=1).mean()
    assert plainly(curriculum / "model").top1 == result["top1"], "any command that reads model folders skips, too"


def test_the_command_measures_speed(undecided: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = main(evaluating(undecided, repeats=2, batch_size=100))
    speed = found["speed"]
    assert (speed["batch_size"], speed["images"]) == (100, IMAGES)
    assert speed["images_per_second"].keys() == {"dense", "masked", "skipping"}
    assert all(rate > 0 for rate in speed["images_per_second"].values())
    assert speed["ideal_speedup"] == pytest.approx(1 / found["cost_fraction"])
    assert speed["share_of_ideal"] == pytest.approx(speed["speedup"]["median"] * found["cost_fraction"])
    assert "by MACs it could be" in capsys.readouterr().out


def test_the_training_images_are_evaluated_on_request(undecided: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluating(undecided, split="train"))["images"] == 1437
    printed = capsys.readouterr().out
    assert "train images" in printed
    assert "test images" not in printed


def test_a_folder_of_test_images_only_is_evaluated(undecided: str, digit_folder: Callable[..., str]) -> None:
    """No training images are looked for: the network's folder knows what it expects. They are made 8 x 8 again."""
    folder, few = digit_folder("test"), torch.arange(40)
    expected = decisions(net_of(undecided), batches_of(undecided, 40, indices=few), accelerator("no"))
    found = main(evaluating(undecided, controls=True, repeats=2, data=SourceConfig(folder)))
    assert found["images"] == 40
    assert found["top1"] == expected.top1
    assert found["keep_rates"] == pytest.approx(expected.kept.mean(axis=0).tolist())
    larger = main(evaluating(undecided, data=SourceConfig(digit_folder("test", side=16))))
    assert larger["dense_macs"] == found["dense_macs"]
    with pytest.raises(InputError, match="no train images of"):
        main(evaluating(undecided, split="train", data=SourceConfig(folder)))


def test_two_processes_evaluate_as_one(undecided: str, tmp_path: Path) -> None:
    config = evaluating(undecided, batch_size=50, output=str(tmp_path / "two.json"))
    first, second = on_two_processes(lambda _: main(config))
    assert "Accuracy:" in first.printed
    assert second.printed == ""
    two = json.loads((tmp_path / "two.json").read_text())
    assert two == main(evaluating(undecided)) | {"controls": {}}


@pytest.mark.parametrize("policy", [None, "110100101", "000000000", "111111111"])
def test_a_specialised_network_is_the_skipping_one_under_a_constant_policy(
    undecided: str, tmp_path: Path, policy: str | None
) -> None:
    result = main(evaluating(undecided, specialise=str(tmp_path / "one"), policy=policy))
    net, digits = net_of(undecided), policy or result["most_frequent_policy"]
    kept = torch.tensor([digit == "1" for digit in digits])
    constant = decided(undecided, choose=lambda images: kept.expand(len(images), -1))
    assert (constant.kept == kept.numpy()).all()
    assert plainly(tmp_path / "one").top1 == constant.top1

    cost, folder = costs.count(net, DIGIT), weights.read_config(tmp_path / "one")
    assert folder["costs"]["macs_per_image"] == cost.always + int(kept.numpy() @ np.array(cost.blocks))
    assert (folder["costs"]["macs_per_image"] < cost.dense) == ("0" in digits)
    assert folder["preprocessing"] == preprocessing_of(undecided)
    assert digits in folder["description"]
    images = torch.randn(4, 1, 8, 8)
    with torch.inference_mode():
        plain, skipping = weights.from_pretrained(tmp_path / "one")(images), net.resnet(images, kept.expand(4, -1))
    torch.testing.assert_close(plain, skipping)


def test_a_specialised_network_replaces_a_model_folder_only_when_told_to(undecided: str, tmp_path: Path) -> None:
    once = evaluating(undecided, specialise=str(tmp_path / "one"))
    main(once)
    before = (tmp_path / "one" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="one exists and is not empty: choose another folder"):
        main(once)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == before
    main(replace(once, policy="1" * 9, overwrite=True))
    assert len((tmp_path / "one" / "model.safetensors").read_bytes()) > len(before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "101"}, "--policy is '101', but must be 9 digits, not 3"),
        ({"policy": "1" * 10}, "but must be 9 digits, not 10"),
        ({"specialise": "."}, r"\. exists and is not empty: choose another folder"),
        ({"specialise": ".", "overwrite": True}, r"\. is not a model folder"),
    ],
)
def test_what_cannot_be_specialised_is_refused_before_the_evaluation(
    undecided: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / "valuable").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "decisions", lambda *_, **__: pytest.fail("it was evaluated"))
    with pytest.raises(InputError, match=message):
        main(evaluating(undecided, **({"specialise": "one"} | fields)))
    assert [path.name for path in tmp_path.iterdir()] == ["valuable"]


def test_a_model_folder_does_not_hold_the_accuracy_on_training_images(undecided: str, tmp_path: Path) -> None:
    main(evaluating(undecided, split="train", controls=True, specialise=str(tmp_path / "one")))
    assert weights.read_config(tmp_path / "one")["metrics"] == {}


def test_two_networks_are_not_evaluated_at_once(undecided: str, tmp_path: Path) -> None:
    main(evaluating(undecided, load=undecided))
    with pytest.raises(InputError, match=f"--model is the folder {undecided}, but --load is {tmp_path}: give one of t"):
        main(evaluating(undecided, load=str(tmp_path)))


def test_what_is_to_be_specialised_is_checked(undecided: str, tmp_path: Path) -> None:
    net = net_of(undecided)
    check_specialise(EvalConfig(model="m"), net)
    check_specialise(EvalConfig(model="m", specialise=str(tmp_path / "new"), policy="1" * 9), net)
    with pytest.raises(InputError, match="--policy is '11111111', but must be 9 digits, not 8"):
        check_specialise(EvalConfig(model="m", specialise=str(tmp_path / "new"), policy="1" * 8), net)
    weights.save_pretrained(net, tmp_path / "old")
    old = EvalConfig(model="m", specialise=str(tmp_path / "old"))
    with pytest.raises(InputError, match="old exists and is not empty: choose another folder"):
        check_specialise(old, net)
    check_specialise(replace(old, overwrite=True), net)
    assert [path.name for path in tmp_path.iterdir()] == ["old"], "nothing is written"


@pytest.mark.parametrize("policy", [None, "100000001"])
def test_one_policys_network_is_written_where_it_is_asked_for(
    undecided: str, tmp_path: Path, policy: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    net, frequent = net_of(undecided), "110000111"
    statistics = {"mean": [0.5], "std": [0.25]}
    specialise(net, EvalConfig(model="m"), frequent, {"top1": 0.5}, statistics, DIGIT)
    assert list(tmp_path.iterdir()) == []
    asked = EvalConfig(model="m", specialise=str(tmp_path / "one"), policy=policy)
    specialise(net, asked, frequent, {"top1": 0.5}, statistics, DIGIT)
    digits, folder = policy or "110000111", weights.read_config(tmp_path / "one")
    kept = [index for index, digit in enumerate(digits) if digit == "1"]
    assert folder["model"]["options"]["kept_blocks"] == kept
    assert folder["preprocessing"] == statistics
    assert folder["metrics"] == ({"top1": 0.5} if policy is None else {}), (
        "what was measured is of the most frequent one"
    )
    assert (
        folder["description"]
        == f"The network of BlockDrop's policy {digits}: the blocks of digit 1, first block first."
    )
    printed = capsys.readouterr().out
    assert printed == f"wrote {tmp_path}/one: {len(kept)} of 9 blocks, policy {digits}\n"


# --- statistics computed anew


def recalibrated(net: BlockDropNet, batches: list[torch.Tensor]) -> nn.Module:
    """By hand: the residual network with the mean of the batches' statistics, of the images that keep a block each."""
    resnet = copy.deepcopy(net.resnet)
    norms, found = batch_norms(resnet), []
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the statistics are those of the last batch
    with torch.no_grad():
        for images in batches:
            x, policy = resnet.net.stem(images), net.policy(images) >= 0.5
            for block, keeps in zip(resnet.net.blocks(), policy.T, strict=True):
                residual = block.residual(x[keeps])
                x = block.shortcut(x)
                x[keeps] = torch.relu(x[keeps] + residual)
            found.append([(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms])
        for norm, seen in zip(norms, zip(*found, strict=True), strict=True):
            means, variances = zip(*seen, strict=True)
            norm.running_mean.copy_(torch.stack(means).mean(dim=0))
            norm.running_var.copy_(torch.stack(variances).mean(dim=0))
    return resnet.net.eval()


def statistics_of(net: nn.Module) -> list[torch.Tensor]:
    return [statistic for norm in batch_norms(net) for statistic in (norm.running_mean, norm.running_var)]


@pytest.fixture
def spoiled(undecided: str, tmp_path: Path) -> str:
    """The folder of `undecided`, the residual network's batch norms with statistics that are not of any images."""
    net = net_of(undecided)
    for norm in batch_norms(net.resnet):
        norm.running_mean.add_(1)
        norm.running_var.mul_(4)
    weights.save_pretrained(net, tmp_path / "spoiled", preprocessing=preprocessing_of(undecided))
    return str(tmp_path / "spoiled")


def test_batch_norms_are_recalibrated_with_the_images_that_keep_their_block(
    undecided: str, spoiled: str, tmp_path: Path
) -> None:
    """Whatever the executor; and a specialised network has the same statistics."""
    arguments = ["--model", spoiled, "--batch-size", "64", "--repeats", "0", "--no-controls"]
    given = ["--recalibrate-bn", "96", "--executor", "masked", "--specialise", "one", "--policy", "1" * 9]
    succeeded(cli.evaluate, *arguments, "--output", "spoiled.json", cwd=tmp_path)
    succeeded(cli.evaluate, *arguments, *given, "--output", "anew.json", cwd=tmp_path)
    as_written, anew = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("spoiled", "anew"))

    net, data = net_of(undecided), Pipeline(DataConfig(), 0, Shards(), preprocessing_of(undecided))
    drawn = torch.randperm(1437, generator=torch.Generator().manual_seed(0))[:96]
    batches = [images for images, _ in data.evaluation(data.train, 64, indices=drawn)]
    net.resnet.net.load_state_dict(recalibrated(net, batches).state_dict())
    found = weights.from_pretrained(tmp_path / "one")
    assert len(statistics_of(found)) == 2 * 21, "of a stem, nine blocks of two, and two shortcuts"
    for one, other in zip(statistics_of(found), statistics_of(net.resnet), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    expected = decisions(net, batches_of(undecided, 64), accelerator("no"))
    assert anew["top1"] == pytest.approx(expected.top1, abs=1 / IMAGES)
    assert abs(anew["top1"] - as_written["top1"]) > 0.1
    assert anew["keep_rates"] == as_written["keep_rates"] == expected.kept.mean(axis=0).tolist()


def test_a_block_that_no_image_keeps_keeps_its_statistics(spoiled: str) -> None:
    net = net_of(spoiled)
    with torch.no_grad():
        net.policy.logit.bias[4] = -1e6
    before, block = net_of(spoiled).resnet.blocks, net.resnet.blocks
    data = Pipeline(DataConfig(), 0, Shards(), preprocessing_of(spoiled))
    recalibrate_kept(net, data.evaluation(data.train, 64, indices=torch.arange(96)), accelerator("no"))
    for index in range(9):
        same = zip(statistics_of(block[index]), statistics_of(before[index]), strict=True)
        assert all(torch.equal(one, other) for one, other in same) == (index == 4)


def test_the_last_epoch_decides_nearly_what_the_network_was_trained_to(curriculum: Path) -> None:
    """The numbers of training are those of the greedy policies, too: of augmented images, and of moving weights."""
    result, last = json.loads((curriculum / "result.json").read_text()), metrics(curriculum)[-1]
    assert last["open_blocks"] == 9
    assert abs(result["blocks_used"] - last["train_blocks_used"]) < 1.5
