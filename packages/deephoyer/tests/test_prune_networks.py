"""Pruning of convolution networks by groups: norms cut along, zeros that stay, targets, dry runs, checkpoints."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from deephoyer import cli
from deephoyer.compact import compact
from deephoyer.config import EvalConfig, PruneConfig, TrainConfig
from deephoyer.curve import dry_run
from deephoyer.evaluate import main as evaluate
from deephoyer.method import group_mask, rms_threshold
from deephoyer.plan import EmptyLayer
from deephoyer.prune import cut, cut_as_asked, followers, prune, scaled, structure, unit_thresholds
from deephoyer.report import prunable, sparsity
from deephoyer.train import train
from resless import costs, models, onnx, weights
from resless.config import DataConfig, OptimConfig, RunConfig
from resless.errors import InputError
from resless.testing import few_images, refused, succeeded, undrawn
from torch import nn

DIGIT = torch.zeros(1, 1, 8, 8)
SGD = OptimConfig(lr=0.05, weight_decay=1e-3, batch_size=64, epochs=1)
DATA = DataConfig(holdout=0.2)


@pytest.fixture(autouse=True)
def _small():
    with undrawn(), few_images(256, 64):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder: a ResNet-8 after an epoch with Group-HS."""
    run = RunConfig(run_dir=str(tmp_path_factory.mktemp("trained") / "run"))
    with undrawn(), few_images(256, 64):
        return str(train(TrainConfig("resnet8", reg="group_hoyer_square", strength=1e-3, optim=SGD, run=run)))


def pruning(model: str, folder: Path, **fields: object) -> PruneConfig:
    defaults = {"rule": "group", "threshold": "rms", "data": DATA, "optim": SGD}
    return PruneConfig(model=(model,), run=RunConfig(run_dir=str(folder)), **(defaults | fields))


def test_a_cut_filter_takes_its_norm_along() -> None:
    model = models.create("resnet8", in_channels=1)
    limit = float(model.layer2[0].conv1.weight.detach().flatten(1).norm(dim=1).median())
    follow = structure(model, DIGIT, "group").followers
    assert len(follow) == 9
    assert follow["layer1.0.conv2.weight"] == ["layer1.0.bn2.weight", "layer1.0.bn2.bias"]
    cut(
        model,
        dict.fromkeys(prunable(model), 0.0) | {"layer2.0.conv1.weight": limit},
        "group",
        structure(model, DIGIT, "group"),
    )
    block = model.layer2[0]
    zero = ~block.conv1.weight.flatten(1).any(dim=1)
    assert zero.sum() == 16
    assert torch.equal(block.bn1.weight == 0, zero)
    assert not block.bn1.bias[zero].any()
    assert compact(model, DIGIT).layer2[0].conv2.in_channels == 16


def test_filters_of_a_pre_activation_network_have_the_norm_that_follows_them() -> None:
    model = models.create("preresnet8", in_channels=1)
    follow = followers(model, DIGIT)
    assert follow["layers.0.0.conv1.weight"] == ["layers.0.0.bn2.weight", "layers.0.0.bn2.bias"]
    assert follow["layers.0.0.conv2.weight"] == [], "what follows a sum follows no filter"


def test_biases_of_networks_without_norms_are_cut_too() -> None:
    model = models.create("vgg11", in_channels=1)
    nn.init.ones_(model.features[3].bias)
    limit = float(model.features[3].weight.detach().flatten(1).norm(dim=1).median())
    limits = dict.fromkeys(prunable(model), 0.0) | {"features.3.weight": limit}
    cut(model, limits, "group", structure(model, DIGIT, "group"))
    assert compact(model, DIGIT).features[3].out_channels == 64


def test_zeros_stay_zero_and_the_network_becomes_smaller(trained: str, tmp_path: Path) -> None:
    result = prune(pruning(trained, tmp_path / "run", target_macs=300_000, recalibrate_bn=100))
    model = weights.from_pretrained(tmp_path / "run" / "model")
    small = compact(model, DIGIT)
    assert costs.macs(small, DIGIT) == result.left.macs <= 300_000 < result.left.dense_macs
    before = weights.from_pretrained(trained)
    masks = cut(before, result.thresholds, "group", structure(before, DIGIT, "group"))
    after = dict(model.named_parameters())
    names = {parameter: name for name, parameter in before.named_parameters()}
    assert len(masks) == 10 + 2 * 9  # weights; scale and shift of the norm after each convolution
    for tensor, mask in masks:
        assert not after[names[tensor]][~mask].any(), names[tensor]
    assert set(result.held_out) == set(result.test) == {"before", "cut", "tuned"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet8", {"rule": "tied", "round_to": 8, "recalibrate_bn": 100}),
        ("resnet8", {"rule": "group"}),
        ("resnet8", {"rule": "group", "round_to": 8}),
        ("preresnet11", {"rule": "tied"}),
    ],
)
def test_fine_tuning_the_smaller_network_is_fine_tuning_the_cut_one(name: str, fields: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "start"
    weights.save_pretrained(models.create(name, in_channels=1).eval(), folder, example=DIGIT)
    config = pruning(str(folder), tmp_path / "cut", target_macs=round(0.4 * macs_of(folder)), **fields)
    cut_one, small_one = (prune(each) for each in (config, compacted(config, tmp_path / "small")))
    assert small_one.left.macs == cut_one.left.macs
    assert small_one.left.weights == cut_one.left.weights
    small = weights.from_pretrained(tmp_path / "small" / "model")
    assert costs.macs(small, DIGIT) == cut_one.left.macs
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = weights.from_pretrained(tmp_path / "cut" / "model")(images)
        torch.testing.assert_close(small(images), expected, rtol=1e-3, atol=1e-3)


def macs_of(folder: Path) -> int:
    return costs.macs(weights.from_pretrained(folder), DIGIT)


def compacted(config: PruneConfig, folder: Path) -> PruneConfig:
    return replace(config, compact=True, run=RunConfig(run_dir=str(folder)))


def test_zeros_that_compacting_keeps_stay_zero_while_the_smaller_network_is_fine_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.create("densenet_13_4", in_channels=1).eval()
    with torch.no_grad():
        for weight in layer_of(model):
            weight.mul_(1e-6)
        model.dense1[2].bn1.bias.fill_(0.1)  # a constant that the layer behind the empty one reads, up to the border
    weights.save_pretrained(model, tmp_path / "start", example=DIGIT)
    prune(pruning(str(tmp_path / "start"), tmp_path / "run", threshold="fixed", sensitivity=1e-3, compact=True))
    left = layer_of(weights.from_pretrained(tmp_path / "run" / "model"))
    assert [tuple(weight.shape) for weight in left] == [(4, 1, 3, 3)]
    assert not any(weight.any() for weight in left)


def layer_of(model: nn.Module) -> list[torch.Tensor]:
    return [weight for name, weight in prunable(model).items() if name.startswith("dense1.1.conv")]


def test_nothing_cut_leaves_the_network(trained: str, tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.1, epochs=0)
    result = prune(pruning(trained, tmp_path / "run", sensitivity=0.0, optim=optim))
    assert result.left.macs == result.left.dense_macs
    assert result.test["before"] == result.test["tuned"]


@pytest.mark.parametrize("round_to", [1, 8])
def test_target_is_met_by_the_least_cut_that_does(trained: str, tmp_path: Path, round_to: int) -> None:
    model = weights.from_pretrained(trained)
    config = pruning(trained, tmp_path, target_macs=250_000, round_to=round_to)
    found, *_ = cut_as_asked(model, config, DIGIT)

    def left(sensitivity: float) -> int:
        trial = weights.from_pretrained(trained)
        limits = scaled(unit_thresholds(trial, config, DIGIT), sensitivity)
        cut(trial, limits, "group", structure(trial, DIGIT, "group"), round_to)
        return sparsity(trial, DIGIT, round_to).macs

    assert left(found) <= 250_000 < left(0.999 * found)


@pytest.mark.parametrize("target", ["target_macs", "target_weights"])
def test_tied_widths_in_multiples_fill_the_target(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, more = models.create("resnet8", in_channels=1).eval(), []
    dense = {"target_macs": costs.macs(model, DIGIT), "target_weights": sparsity(model, DIGIT).total_weights}[target]
    for share in (0.3, 0.5, 0.7):
        config = pruning("", tmp_path, rule="tied", round_to=8, **{target: round(share * dense)})
        shallow, by_threshold, filled = (copy.deepcopy(model) for _ in range(3))
        _, limits, _ = cut_as_asked(filled, config, DIGIT)
        lower = {name: 0.999 * limit for name, limit in limits.items()}
        cut(by_threshold, limits, "tied", structure(model, DIGIT, "tied"), round_to=8)
        cut(shallow, lower, "tied", structure(model, DIGIT, "tied"), round_to=8)
        reports = [sparsity(network, DIGIT, 8) for network in (by_threshold, filled, shallow)]
        less, left, too_much = [report.macs if target == "target_macs" else report.weights for report in reports]
        assert less <= left <= share * dense < too_much
        both = zip(*(prunable(network).values() for network in (by_threshold, filled)), strict=True)
        assert all((first == 0)[then == 0].all() for first, then in both), "what the threshold left is left"
        small = compact(filled, DIGIT)
        assert all(module.out_channels % 8 == 0 for module in small.modules() if isinstance(module, nn.Conv2d))
        more.append(left - less)
    assert any(more)


def test_memory_cost_weighs_squares_of_norms_by_the_time_that_a_multiply_add_takes() -> None:
    model = models.create("resnet8", in_channels=1).eval()
    config = PruneConfig(model=("any",), rule="tied", threshold="rms", memory_cost=100.0)
    plain = unit_thresholds(model, replace(config, memory_cost=0.0), DIGIT)
    found = unit_thresholds(model, config, DIGIT)
    # Values read and written over multiply-adds, at each place of the output. A shortcut of stride 2 reads four places
    # for one that it writes, and takes the longest.
    times = {
        "conv1": 1 + 100 * (1 + 16) / (9 * 1 * 16),
        "layer1.0.conv2": 1 + 100 * (16 + 16) / (9 * 16 * 16),
        "layer3.0.conv2": 1 + 100 * (64 + 64) / (9 * 64 * 64),
        "layer2.0.shortcut.0": 1 + 100 * (4 * 16 + 32) / (16 * 32),
        "linear": 1 + 100 * (64 + 10) / (64 * 10),
    }
    for name, time in times.items():
        ratio = found[f"{name}.weight"] / plain[f"{name}.weight"]
        assert ratio == pytest.approx((time / max(times.values())) ** 0.5), name


def test_memory_cost_moves_the_cut_to_where_images_are_large(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.create("resnet8", in_channels=1).eval()
    values = []
    for memory_cost in (0.0, 128.0):
        config = pruning("", tmp_path, rule="tied", target_macs=costs.macs(model, DIGIT) // 2, memory_cost=memory_cost)
        trial = copy.deepcopy(model)
        cut_as_asked(trial, config, DIGIT)
        small = compact(trial, DIGIT)
        assert costs.macs(small, DIGIT) <= config.target_macs
        values.append(sum(cost.values for cost in costs.layer_costs(small, DIGIT)))
    assert values[1] < values[0]


def test_rms_rule_takes_the_mean_square_of_the_smaller_groups() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    over_filters = weight.flatten(1).norm(dim=1).square().mean().sqrt()
    over_channels = weight.transpose(0, 1).flatten(1).norm(dim=1).square().mean().sqrt()
    assert over_filters < over_channels
    assert rms_threshold(weight, 0.7) == pytest.approx(0.7 * float(over_filters))
    assert group_mask(weight, rms_threshold(weight, 0.999)).any()


def test_rounding_restores_the_largest_groups() -> None:
    weight = torch.diag(torch.arange(1.0, 13.0))
    kept = group_mask(weight, 7.0, round_to=4).diagonal()
    assert kept.tolist() == [False] * 4 + [True] * 8  # five are above the threshold, three more come back
    assert group_mask(weight, 7.0).diagonal().sum() == 5
    assert group_mask(weight, 0.5, round_to=8).all(), "at most all"


def test_a_threshold_at_which_nothing_leads_to_the_logits_names_a_layer(trained: str, tmp_path: Path) -> None:
    with pytest.raises(EmptyLayer, match="nothing is left of layer conv1"):
        prune(pruning(trained, tmp_path / "run", sensitivity=1e6))
    assert not (tmp_path / "run").exists()


def test_dry_run_tells_the_curve_and_writes_nothing(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    points = dry_run(pruning(trained, tmp_path / "run", dry_run=True))
    assert list(tmp_path.iterdir()) == []
    dense = costs.macs(weights.from_pretrained(trained), DIGIT)
    macs = [point.macs for point in points]
    assert len(points) > 3
    assert macs[0] == dense
    assert macs[-1] < 0.5 * dense
    assert all(before - after >= 0.05 * dense for before, after in pairwise(macs))
    assert all(0 <= point.top1 <= 1 for point in points)
    assert f"{points[-1].macs:,}" in capsys.readouterr().out
    given = dry_run(
        pruning(trained, tmp_path / "run", dry_run=True, sweep=(0.0, points[-1].sensitivity), data=DataConfig())
    )
    assert [(point.macs, point.top1) for point in given] == [(dense, None), (points[-1].macs, None)]


@pytest.mark.parametrize("target", [{"target_macs": 300_000}, {"target_weights": 40_000}])
def test_dry_run_shows_the_cut_that_the_target_asks_for(
    trained: str, tmp_path: Path, target: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = pruning(trained, tmp_path / "run", dry_run=True, rule="tied", data=DataConfig(), **target)
    points = dry_run(config)
    model = weights.from_pretrained(trained)
    sensitivity, *_ = cut_as_asked(model, config, DIGIT)
    (cut_for_it,) = [point for point in points if point.target == "met: the cut for it"]
    assert (cut_for_it.sensitivity, cut_for_it.macs) == (sensitivity, costs.macs(compact(model, DIGIT), DIGIT))
    assert {point.target for point in points if point.sensitivity < sensitivity} == {""}
    assert {point.target for point in points if point.sensitivity > sensitivity} == {"met"}
    (option,) = target
    assert f"--{option.replace('_', '-')} {target[option]:,}" in capsys.readouterr().out
    swept = dry_run(replace(config, sweep=(0.0, 1.01 * sensitivity)))
    assert [point.target for point in swept] == ["", "met"]


def test_compacting_a_network_without_zeros_says_that_nothing_could_be_removed(trained: str, tmp_path: Path) -> None:
    given = ("--output", "small", "--repeats", "0")
    said = succeeded(cli.compact, "--model", trained, *given, cwd=tmp_path)
    assert f"nothing could be removed: no whole channel of {trained} is zero, which deephoyer-prune sees to" in said
    model = weights.from_pretrained(trained)
    cut(model, dict.fromkeys(prunable(model), 0.3), "group", structure(model, DIGIT, "group"))
    weights.save_pretrained(model, tmp_path / "cut", example=DIGIT)
    assert "nothing" not in succeeded(cli.compact, "--model", "cut", *given, "--overwrite", cwd=tmp_path)


def test_a_smaller_network_is_trained_and_pruned_again(trained: str, tmp_path: Path) -> None:
    prune(pruning(trained, tmp_path / "pruned", target_macs=400_000, optim=OptimConfig(lr=0.1, epochs=0)))
    arguments = ["--model", "pruned/model", "--output", "small", "--repeats", "0"]
    assert "wrote small" in succeeded(cli.compact, *arguments, cwd=tmp_path)
    small = str(tmp_path / "small")
    run = RunConfig(run_dir=str(tmp_path / "again"))
    config = TrainConfig("resnet8", small, reg="group_hoyer_square", strength=1e-3, optim=SGD, run=run)
    again = train(config)
    assert weights.read_config(again)["model"] == weights.read_config(small)["model"]
    result = prune(pruning(str(again), tmp_path / "smaller", target_macs=200_000))
    assert result.left.macs <= 200_000 < result.left.dense_macs <= 400_000
    report = evaluate(EvalConfig(small))
    assert report.macs == report.dense_macs
    with pytest.raises(InputError, match=r"--model is resnet20, but .*small holds a shrunk made of a resnet8"):
        train(TrainConfig("resnet20", small, run=RunConfig(run_dir=str(tmp_path / "never"))))


class Gated(nn.Module):
    """A network with an operation that compaction does not know."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear((x * torch.sigmoid(self.conv2(x))).mean(dim=(2, 3)))


def test_a_strength_that_leaves_nothing_of_a_layer_is_told(tmp_path: Path) -> None:
    training = ["--reg", "group_lasso", "--no-tied", "--strength", "1", "--epochs", "20", "--run-dir", "trained"]
    succeeded(cli.train, "--recipe", "smoke_resnet", "--model", "resnet8", *training, cwd=tmp_path)
    cutting = ["--rule", "group", "--threshold", "fixed", "--sensitivity", "0.1", "--run-dir", "pruned"]
    sentence = refused(cli.prune, "--model", "trained/model", *cutting, cwd=tmp_path)
    told = "error: nothing is left of layer linear, and no image leads to the logits: cut less, or regularise less"
    assert sentence == told


@pytest.mark.parametrize(
    ("rule", "cutting"),
    [("elementwise", ("--sensitivity", "0.5")), ("group", ("--threshold", "rms", "--sensitivity", "1"))],
)
def test_what_cannot_be_made_smaller_is_pruned_all_the_same(
    rule: str, cutting: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("gated", f"{__name__}:Gated", models.ENTRY_POINTS)
    monkeypatch.setattr(models, "entry_points", lambda group, name: [entry] if name == "gated" else [])
    torch.manual_seed(0)
    weights.save_pretrained(models.create("gated", in_channels=1), tmp_path / "dense", example=DIGIT)
    given = ["--model", "dense", "--rule", rule, *cutting, "--run-dir", "pruned", "--epochs", "1"]
    text = succeeded(cli.prune, *given, cwd=tmp_path)
    sentence = "compact cannot follow the network (Gated): it does not know what mul does to channels"
    assert f"not compacted: {sentence}; use the network as it is" in text
    assert "next: deephoyer-eval --model pruned/model" in text
    pruned = prunable(weights.from_pretrained(tmp_path / "pruned" / "model"))
    left = json.loads((tmp_path / "pruned" / "result.json").read_text())
    assert left["macs"] == left["dense_macs"]
    assert 0 < left["weights"] == sum(int(weight.count_nonzero()) for weight in pruned.values()) < left["total_weights"]
    succeeded(cli.evaluate, "--model", "pruned/model", "--output", "eval.json", cwd=tmp_path)
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["weights"] == left["weights"]
    assert found["top1"] == left["test_top1_tuned"]
    assert sentence in refused(cli.compact, "--model", "pruned/model", "--output", "small", cwd=tmp_path)
    if rule == "group":
        assert sentence in refused(cli.prune, *given, "--overwrite", "--compact", cwd=tmp_path)
        assert (tmp_path / "pruned" / "result.json").exists()
    assert not (tmp_path / "small").exists()


def test_every_command_starts_from_a_foreign_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.create("resnet8", in_channels=1, shortcut="subsample")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "foreign.th")
    foreign = [
        "--model",
        "resnet8",
        "--pretrained",
        "foreign.th",
        "--shortcut",
        "subsample",
        "--mean",
        "0.2",
        "--std",
        "0.4",
    ]
    succeeded(cli.train, *foreign, "--epochs", "0", "--run-dir", "trained", cwd=tmp_path)
    cutting = ["--rule", "group", "--threshold", "rms", "--target-macs", "300000", "--epochs", "0"]
    said = succeeded(cli.prune, *foreign, *cutting, "--run-dir", "pruned", cwd=tmp_path)
    assert "after the cut" in said
    for folder in ("trained/model", "pruned/model"):
        found = json.loads((tmp_path / folder / "config.json").read_text())
        assert found["preprocessing"] == {"image_size": 8, "mean": [0.2], "std": [0.4]}
        assert found["model"]["options"]["shortcut"] == "subsample"
    assert "top-1 %" in succeeded(cli.evaluate, *foreign, cwd=tmp_path)
    sentence = refused(cli.evaluate, *foreign[:4], cwd=tmp_path)
    assert "foreign.th does not match the network" in sentence


def test_compact_asks_for_what_a_checkpoint_does_not_say(tmp_path: Path) -> None:
    model = models.create("resnet8")
    torch.save(model.state_dict(), tmp_path / "foreign.pth")
    arguments = ["--model", "resnet8", "--pretrained", "foreign.pth", "--output", "small", "--repeats", "0"]
    assert "does not tell the size of its images: give --image-size" in refused(cli.compact, *arguments, cwd=tmp_path)
    succeeded(cli.compact, *arguments, "--image-size", "8", "--batch-size", "2", cwd=tmp_path)
    assert weights.from_pretrained(tmp_path / "small").spec == model.spec


def test_onnx_file_gives_the_logits_of_the_network(tmp_path: Path) -> None:
    for package in onnx.PACKAGES:
        pytest.importorskip(package)
    import onnxruntime

    torch.manual_seed(0)
    model = models.create("resnet8", shortcut="avgpool").eval()
    with torch.no_grad():
        for name in ("layer1.0.conv1", "layer2.0.conv2"):
            model.get_submodule(name).weight[3:9] = 0
    small, images = compact(model, torch.zeros(1, 3, 8, 8)), torch.randn(5, 3, 8, 8)
    onnx.export(small, images, tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(images), atol=1e-4)


def test_missing_packages_of_the_export_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(InputError, match=r"--export onnx needs onnx: pip install onnx$"):
        onnx.check_installed("--export onnx")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "elementwise", "threshold": "rms"}, "--threshold is 'rms'"),
        ({"round_to": 0}, "--round-to is 0"),
        ({"memory_cost": -1.0}, "--memory-cost is -1.0, but must be 0 or more, and finite"),
        (
            {"memory_cost": 128.0, "threshold": "fixed"},
            "--memory-cost is 128.0, but must be left out, unless --threshold is rms",
        ),
        ({"rule": "elementwise", "round_to": 8}, "unless --rule is group"),
        ({"recalibrate_bn": -1}, "--recalibrate-bn is -1"),
        ({"model": ("a", "b"), "dry_run": True}, "one network for a --dry-run"),
    ],
)
def test_bad_options_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PruneConfig(**({"model": ("a",), "rule": "group"} | fields))
