"""Training with a regulariser, cutting, and fine-tuning with the zeros fixed, on the embedded digits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deephoyer import cli, evaluate, sweep
from deephoyer import prune as stage
from deephoyer.config import EvalConfig, PruneConfig, TrainConfig
from deephoyer.plan import EmptyLayer
from deephoyer.prune import cut, cut_as_asked, prune, scaled, unit_thresholds
from deephoyer.report import prunable, sparsity
from deephoyer.sweep import Point, choose, sweep_strengths, sweep_thresholds
from deephoyer.train import regularised_tensors, train
from resless import models, weights
from resless.config import DataConfig, OptimConfig, RunConfig
from resless.config import TrainConfig as DenseConfig
from resless.errors import InputError
from resless.testing import (
    assert_every_parameter_gets_gradient,
    assert_same_run,
    assert_same_weights,
    metrics,
    succeeded,
)
from resless.train import train as train_dense

DIGIT = torch.zeros(1, 1, 8, 8)
ADAM = OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=3)


def run_in(folder: Path, **settings: object) -> RunConfig:
    return RunConfig(run_dir=str(folder), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder, trained for a few epochs with Hoyer-Square."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = TrainConfig(reg="hoyer_square", strength=1e-3, optim=replace(ADAM, epochs=8), run=run_in(folder))
    return str(train(config))


def pruning(model: str, folder: Path, **fields: object) -> PruneConfig:
    defaults = {"sensitivity": 0.3, "optim": replace(ADAM, epochs=2), "run": run_in(folder)}
    return PruneConfig(model=(model,), **(defaults | fields))


# -- training


def test_strength_zero_is_dense_training(tmp_path: Path) -> None:
    train_dense(DenseConfig(optim=ADAM, run=run_in(tmp_path / "dense")))
    train(TrainConfig(reg="none", optim=ADAM, run=run_in(tmp_path / "none")))
    train(TrainConfig(reg="hoyer_square", strength=0.0, optim=ADAM, run=run_in(tmp_path / "zero")))
    assert_same_weights(tmp_path / "dense" / "model", tmp_path / "none" / "model")
    assert_same_weights(tmp_path / "dense" / "model", tmp_path / "zero" / "model")


def test_the_regulariser_makes_weights_sparser_than_training_without_it(tmp_path: Path) -> None:
    last = {}
    for strength in (0.0, 1e-3):
        folder = tmp_path / f"{strength}"
        train(TrainConfig(reg="hoyer_square", strength=strength, optim=ADAM, run=run_in(folder)))
        last[strength] = metrics(folder)[-1]["train_penalty"]
    assert last[1e-3] < 0.6 * last[0.0]


def test_element_wise_takes_every_parameter_and_structural_the_weights() -> None:
    model = models.create("lenet5", in_channels=1)
    assert len(regularised_tensors(model, "hoyer_square")) == 8
    structural = regularised_tensors(model, "group_hoyer_square")
    assert [tuple(tensor.shape) for tensor in structural] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    assert regularised_tensors(model, "none") == []


def test_every_parameter_is_trained() -> None:
    torch.manual_seed(0)
    model = models.create("lenet5", in_channels=1)
    assert_every_parameter_gets_gradient(model, model(torch.randn(8, 1, 28, 28)).square().sum())


def test_training_starts_from_the_pretrained_folder(trained: str, tmp_path: Path) -> None:
    config = TrainConfig(pretrained=trained, optim=replace(ADAM, epochs=0), run=run_in(tmp_path / "run"))
    assert_same_weights(trained, train(config))


# -- cutting


def test_threshold_zero_and_no_fine_tuning_change_nothing(trained: str, tmp_path: Path) -> None:
    prune(pruning(trained, tmp_path / "run", sensitivity=0.0, optim=replace(ADAM, epochs=0)))
    assert_same_weights(trained, tmp_path / "run" / "model")


def test_a_network_is_pruned_and_evaluated_on_images_normalised_as_it_was_trained(tmp_path: Path) -> None:
    train(TrainConfig(optim=ADAM, data=DataConfig(normalize="pixel"), run=run_in(tmp_path / "run")))
    folder = tmp_path / "run" / "model"
    config = weights.read_config(folder)
    assert torch.tensor(config["preprocessing"]["mean"]).shape == (1, 8, 8)
    found = prune(pruning(str(folder), tmp_path / "pruned", sensitivity=0.0, optim=replace(ADAM, epochs=0)))
    assert found.test["tuned"].top1 == config["metrics"]["top1"]
    pruned = tmp_path / "pruned" / "model"
    assert weights.read_config(pruned)["preprocessing"] == config["preprocessing"]
    evaluate.main(EvalConfig(str(pruned), output=str(tmp_path / "result.json")))
    assert json.loads((tmp_path / "result.json").read_text())["top1"] == config["metrics"]["top1"]


def test_std_rule_cuts_below_so_many_standard_deviations(trained: str) -> None:
    model = weights.from_pretrained(trained)
    expected = {}
    for name, weight in prunable(model).items():
        values = weight.detach().double()
        std = float(((values - values.mean()) ** 2).mean().sqrt())
        expected[name] = (weight.detach().abs() > 0.4 * std).sum()
    config = PruneConfig(model=(trained,), threshold="std")
    masks = cut(model, scaled(unit_thresholds(model, config, DIGIT), 0.4), "elementwise")
    assert [int(mask.sum()) for _, mask in masks] == list(map(int, expected.values()))
    assert all(torch.equal(weight != 0, mask) for weight, mask in masks)


def test_group_rule_leaves_whole_rows_and_columns(trained: str) -> None:
    model = weights.from_pretrained(trained)
    norms = {name: weight.detach().norm(dim=1) for name, weight in prunable(model).items()}
    limit = float(norms["fc1.weight"].median())
    cut(model, dict.fromkeys(norms, limit), "group")
    left = (prunable(model)["fc1.weight"] != 0).any(dim=1)
    assert torch.equal(left, norms["fc1.weight"] > limit)


def test_macs_rule_spares_weights_in_proportion_to_how_seldom_they_are_used() -> None:
    model = models.create("lenet5", in_channels=1)
    config = PruneConfig(model=("any",), threshold="macs")
    found = scaled(unit_thresholds(model, config, torch.zeros(1, 1, 28, 28)), 0.9)
    # A weight of conv1 is used at 24 x 24 places of an image, one of conv2 at 8 x 8, one of a linear layer once.
    expected = {"conv1.weight": 0.9, "conv2.weight": 0.9 * 64 / 576, "fc1.weight": 0.9 / 576, "fc2.weight": 0.9 / 576}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["elementwise", "group"])
@pytest.mark.parametrize("target", [{"target_macs": 20_000}, {"target_weights": 30_000}])
def test_target_is_met_by_the_least_cut_that_does(trained: str, rule: str, target: dict[str, int]) -> None:
    model = weights.from_pretrained(trained)
    found, *_ = cut_as_asked(model, PruneConfig(model=(trained,), rule=rule, threshold="fixed", **target), DIGIT)

    def left(sensitivity: float) -> int:
        trial = weights.from_pretrained(trained)
        cut(trial, dict.fromkeys(prunable(trial), sensitivity), rule)
        if "target_macs" in target:
            return sparsity(trial, DIGIT).macs
        return sum(int((weight != 0).sum()) for weight in prunable(trial).values())

    assert left(found) <= next(iter(target.values())) < left(0.999 * found)


@pytest.mark.parametrize("rule", ["elementwise", "group"])
@pytest.mark.parametrize("option", ["target_macs", "target_weights"])
def test_a_target_that_cannot_be_met_is_refused_with_the_least_that_can(trained: str, rule: str, option: str) -> None:
    config = PruneConfig(model=(trained,), rule=rule, **{option: 3})
    with pytest.raises(EmptyLayer, match=rf"--{option.replace('_', '-')} is 3, but must be ") as refusal:
        cut_as_asked(weights.from_pretrained(trained), config, DIGIT)
    empties = r"must be ([\d,]+) or more, for with less .*(would empty layer fc\d\.weight|nothing is left of a layer)"
    said = re.search(empties, str(refusal.value))
    least = int(said[1].replace(",", ""))
    model = weights.from_pretrained(trained)
    cut_as_asked(model, replace(config, **{option: least}), DIGIT)
    assert (sparsity(model, DIGIT).macs if option == "target_macs" else sparsity(model, DIGIT).weights) <= least
    with pytest.raises(EmptyLayer, match=rf"must be {said[1]} or more"):
        cut_as_asked(weights.from_pretrained(trained), replace(config, **{option: least - 1}), DIGIT)


@pytest.mark.parametrize(("option", "unit"), [("target_macs", "MACs"), ("target_weights", "weights")])
def test_a_target_above_the_network_is_refused(trained: str, option: str, unit: str) -> None:
    model, dense = weights.from_pretrained(trained), 64 * 300 + 300 * 100 + 100 * 10
    cut_as_asked(model, PruneConfig(model=(trained,), **{option: dense}), DIGIT)
    assert sparsity(model, DIGIT).weights == dense, "all of it is left"
    sentence = f"is {dense + 1}, but must be at most {dense:,}, the {unit} of the network as it is"
    with pytest.raises(InputError, match=sentence):
        cut_as_asked(model, PruneConfig(model=(trained,), **{option: dense + 1}), DIGIT)


def test_a_threshold_that_empties_a_layer_is_refused_and_nothing_is_cut(trained: str, tmp_path: Path) -> None:
    model = weights.from_pretrained(trained)
    before = {name: weight.detach().clone() for name, weight in prunable(model).items()}
    with pytest.raises(EmptyLayer, match=r"would empty layer fc1\.weight, where the largest weight is .*: cut less"):
        cut(model, dict.fromkeys(before, 1e6), "elementwise")
    assert all(torch.equal(weight, before[name]) for name, weight in prunable(model).items())
    with pytest.raises(EmptyLayer):
        prune(pruning(trained, tmp_path / "run", threshold="fixed", sensitivity=1e6))
    assert not (tmp_path / "run").exists()


# -- fine-tuning


def test_two_processes_prune_and_evaluate_as_one(trained: str, tmp_path: Path) -> None:
    given = ["--model", trained, "--sensitivity", "0.3", "--optimizer", "sgd", "--lr", "0.01", "--epochs", "2"]
    for name, processes in (("one", 1), ("two", 2)):
        succeeded(cli.prune, *given, "--run-dir", name, cwd=tmp_path, processes=processes)
        evaluating = ["--model", "one/model", "--output", f"{name}.json"]
        succeeded(cli.evaluate, *evaluating, cwd=tmp_path, processes=processes)
    one, two = (prunable(weights.from_pretrained(tmp_path / name / "model")) for name in ("one", "two"))
    for name, weight in one.items():
        assert torch.equal(weight == 0, two[name] == 0), name
        torch.testing.assert_close(weight, two[name], atol=1e-5, rtol=1e-4)
    alone, together = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert alone.pop("loss") == pytest.approx(together.pop("loss"), rel=1e-6)
    assert alone == together


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zeros_stay_zero_under_every_optimizer(trained: str, tmp_path: Path, optimizer: str) -> None:
    optim = OptimConfig(optimizer=optimizer, lr=1e-2, weight_decay=1e-3, batch_size=64, epochs=2)
    result = prune(pruning(trained, tmp_path / "run", optim=optim))
    model = weights.from_pretrained(trained)
    config = pruning(trained, tmp_path)
    masks = cut(model, scaled(unit_thresholds(model, config, DIGIT), config.sensitivity), "elementwise")
    tuned = weights.from_pretrained(tmp_path / "run" / "model")
    for (before, mask), after in zip(masks, prunable(tuned).values(), strict=True):
        assert torch.all(after[~mask] == 0)
        assert not torch.equal(before[mask], after[mask])
    assert result.left.weights <= sum(int(mask.sum()) for _, mask in masks) < result.left.total_weights


def test_report_names_three_accuracies_and_what_is_left(trained: str, tmp_path: Path) -> None:
    result = prune(pruning(trained, tmp_path / "run", data=DataConfig(holdout=0.2)))
    assert {name: found.images for name, found in result.held_out.items()} == {"before": 287, "cut": 287, "tuned": 287}
    assert {name: found.images for name, found in result.test.items()} == {"before": 360, "cut": 360, "tuned": 360}
    assert result.test["tuned"].top1 > 0.9
    assert result.left.macs < result.left.dense_macs
    assert (tmp_path / "run" / "histogram.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_with_an_empty_layer_is_evaluated_all_the_same(trained: str, tmp_path: Path) -> None:
    model = weights.from_pretrained(trained)
    torch.nn.init.zeros_(model.get_submodule("fc2").weight)
    weights.save_pretrained(model, tmp_path / "empty", example=DIGIT)
    text = succeeded(cli.evaluate, "--model", "empty", "--output", "found.json", cwd=tmp_path)
    assert "not compacted: nothing is left of" in text
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 < found["top1"] < 0.3, "one class for all images"
    assert found["macs"] == found["dense_macs"]


def test_interrupted_fine_tuning_resumes_exactly(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pruning(trained, tmp_path / "whole", run=run_in(tmp_path / "whole", checkpoint_steps=5))
    prune(whole)
    steps = iter(range(1000))

    def fail_at_step_33(masks: list) -> None:
        if next(steps) == 33:
            raise RuntimeError("cut short")
        fix_zeros(masks)

    fix_zeros = stage.fix_zeros
    monkeypatch.setattr(stage, "fix_zeros", fail_at_step_33)
    parts = replace(whole, run=run_in(tmp_path / "parts", checkpoint_steps=5))
    with pytest.raises(RuntimeError, match="cut short"):
        prune(parts)
    monkeypatch.undo()
    prune(replace(parts, run=replace(parts.run, resume="auto")))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# -- sweeps


def point(top1: float, macs: int, before: float = 0.98) -> Point:
    return Point("model", 0.1, before, top1, macs, macs, "")


def test_choice_by_macs_is_the_most_accurate_within_them() -> None:
    points = [point(0.98, 900), point(0.95, 500), point(0.96, 400), point(0.90, 100)]
    assert choose(points, None, 500) == points[2]
    with pytest.raises(InputError, match="the least is 100: sweep higher"):
        choose(points, None, 50)


def test_choice_by_accuracy_is_the_cheapest_within_the_drop() -> None:
    points = [point(0.98, 900), point(0.975, 500), point(0.96, 400), point(0.90, 100)]
    assert choose(points, 0.02, None) == points[2]
    assert choose(points, 0.0, None) == points[0]
    with pytest.raises(InputError, match=r"the least is 0\.0800"):
        choose(points[3:], 0.01, None)
    with pytest.raises(InputError, match="every point of the sweep would empty a layer"):
        choose([], 0.01, None)


def test_sweep_trains_cuts_and_chooses_on_held_out_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(holdout=0.2)
    strengths = (1e-4, 1e-3)
    folders = sweep_strengths(TrainConfig(sweep=strengths, data=data, optim=ADAM, run=run_in(tmp_path / "train")))
    assert len(folders) == 2
    assert all("top1" not in weights.read_config(folder)["metrics"] for folder in folders), "the test set was read"
    config = PruneConfig(
        model=tuple(map(str, folders)),
        sweep=(0.1, 0.5, 1e6),
        sweep_epochs=1,
        max_accuracy_drop=0.05,
        data=data,
        optim=replace(ADAM, epochs=2),
        run=run_in(tmp_path / "sweep"),
    )
    result = sweep_thresholds(config)
    assert result.test["tuned"].images == 360
    found = (tmp_path / "sweep" / "sweep.json").read_text()
    assert found.count('"sensitivity": 0.5') == 2, "a point for each strength"
    assert '"sensitivity": 1000000.0' not in found, "a threshold that empties a layer is no point"
    points = json.loads(found)
    assert (tmp_path / "sweep" / "sweep.png").exists()
    # Done runs are not repeated: going on only reads them.
    going_on = replace(config, run=replace(config.run, resume="auto"))
    assert sweep_thresholds(going_on).left == result.left
    with pytest.raises(InputError, match=r"holds a sweep: go on with --resume auto"):
        sweep_thresholds(config)
    # Another limit may choose another point, here the one that was not chosen before; what that one made stays.
    other = min((point for point in points if point["macs"] != result.left.macs), key=lambda point: point["macs"])
    monkeypatch.setattr(sweep, "choose", lambda *_: Point(**other))
    sweep_thresholds(replace(going_on, max_accuracy_drop=1.0))
    monkeypatch.undo()
    assert len(list((tmp_path / "sweep" / "chosen").glob("*/model/config.json"))) == 2
    with pytest.raises(InputError, match=r"no point has at most 1 MACs, the least is"):
        sweep_thresholds(replace(going_on, max_accuracy_drop=None, target_macs=1))
    with pytest.raises(InputError, match=r"holds a sweep with sweep_epochs = 1, now 2"):
        sweep_thresholds(replace(going_on, sweep_epochs=2))
    for damaged in ("{", "[]"):
        (tmp_path / "sweep" / "sweep-config.json").write_text(damaged)
        with pytest.raises(InputError, match=r"sweep-config\.json is (not valid JSON|damaged)"):
            sweep_thresholds(going_on)
