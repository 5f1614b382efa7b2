"""Accuracy, cost and latency of configurations, against what is computed by hand."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adn import evaluate as evaluate_module
from adn import plot
from adn.config import EvalConfig
from adn.evaluate import flags, letters, main, pareto
from adn.extract import extract
from adn.model import AdaptiveNet, create
from adn.original import original_keys
from matplotlib.figure import Figure
from resless import costs, models, weights
from resless.config import DataConfig
from resless.data import Images, load, pipeline
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.testing import done, forked
from torch import Tensor, nn
from torch.nn import functional as F

NAMES = ["FFF", "FFT", "FTF", "FTT", "TFF", "TFT", "TTF", "TTT"]

pytestmark = pytest.mark.usefixtures("few_images")


def network_of(folder: Path) -> AdaptiveNet:
    net = weights.from_pretrained(folder / "model")
    assert isinstance(net, AdaptiveNet)
    return net


def digits(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, normalised, and their labels."""
    data = Pipeline(DataConfig(), 0, Shards())
    images = data.test if split == "test" else data.train
    assert isinstance(images, Images)
    return (images.images.float() / 255 - 0.3056) / 0.376, images.labels


def measured(forward: Callable[[Tensor], Tensor], split: str = "test") -> dict[str, float]:
    """Accuracy and loss, without a loader."""
    images, labels = digits(split)
    with torch.inference_mode():
        logits = forward(images)
    best = logits.topk(5, dim=1).indices == labels[:, None]
    return {
        "top1": best[:, 0].double().mean().item(),
        "top5": best.any(dim=1).double().mean().item(),
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "images": len(labels),
    }


# --- names, and what none beats


def test_a_configuration_is_a_letter_a_stage() -> None:
    assert letters((False, True, True)) == "FTT"
    assert flags("FTT") == (False, True, True)
    for skip in itertools.product((False, True), repeat=4):
        assert flags(letters(skip)) == skip


def table_of(rows: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"macs": macs, "top1": top1} for name, (macs, top1) in rows.items()}


def test_the_pareto_set() -> None:
    rows = {"FF": (10, 0.9), "FT": (8, 0.7), "TF": (8, 0.8), "TT": (5, 0.75)}
    assert pareto(table_of(rows), "macs") == ["TT", "TF", "FF"]
    assert pareto(table_of(rows | {"TT": (5, 0.95)}), "macs") == ["TT"]
    assert pareto(table_of(rows | {"TF": (8, 0.75)}), "macs") == ["TT", "FF"], "as good, but dearer"
    assert pareto(table_of({"TT": (5, 0.0)}), "macs") == ["TT"], "right on nothing, but there is no other"


def test_the_pareto_set_is_what_none_beats() -> None:
    draw = random.Random(0)
    for _ in range(50):
        rows = {str(index): (draw.randint(1, 10**6), draw.random()) for index in range(16)}
        expected = {
            name
            for name, (macs, top1) in rows.items()
            if not any(m < macs and t >= top1 for other, (m, t) in rows.items() if other != name)
        }
        found = pareto(table_of(rows), "macs")
        assert set(found) == expected
        assert found == sorted(found, key=lambda name: rows[name])


# --- adn-eval


def test_all_configurations_are_evaluated(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EvalConfig(model=str(trained / "model"), output=str(tmp_path / "x.json"), batch_size=50)
    found, net = main(config), network_of(trained)
    assert json.loads((tmp_path / "x.json").read_text()) == found
    assert list(found) == NAMES
    accuracies = set()
    for name, row in found.items():
        skip = flags(name)
        expected = measured(lambda images, skip=skip: net(images, skip))
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5)
        plain = extract(net, skip)
        assert row["macs"] == costs.macs(net, torch.zeros(1, 1, 8, 8), skip)
        assert row["parameters"] == costs.count_parameters(plain) < costs.count_parameters(net)
        assert "latency" not in row
        accuracies.add(row["top1"])
    assert found["FFF"]["top1"] > 0.5, "the digits are learnt"
    assert found["TTT"]["top1"] > 0.5
    assert len(accuracies) > 3
    assert {name for name, row in found.items() if row.get("pareto")} == set(pareto(found, "macs"))
    assert found["TTT"]["pareto"]
    assert found == json.loads((trained / "result.json").read_text())["configurations"], "as at the run's end"
    printed = capsys.readouterr().out
    for name, row in found.items():
        line = next(line for line in printed.splitlines() if f" {name} " in line)
        assert f"{100 * row['top1']:.2f}" in line
        assert f"{row['macs']:,}" in line
    assert "120 test images" in printed


def test_one_configuration_is_evaluated(trained: Path) -> None:
    found = main(EvalConfig(model=str(trained / "model"), skip_cfg=(False, True, True), split="train"))
    net = network_of(trained)
    assert list(found) == ["FTT"]
    expected = measured(lambda images: net(images, (False, True, True)), "train")
    assert {key: found["FTT"][key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert found["FTT"]["images"] == 256


def test_bf16_and_channels_last_change_the_accuracy_little(trained: Path) -> None:
    plain = main(EvalConfig(model=str(trained / "model"), skip_cfg=(True, False, True)))["TFT"]
    layout = EvalConfig(model=str(trained / "model"), skip_cfg=(True, False, True), channels_last=True)
    assert main(layout)["TFT"]["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    fast = EvalConfig(
        model=str(trained / "model"), skip_cfg=(True, False, True), channels_last=True, mixed_precision="bf16"
    )
    assert main(fast)["TFT"]["loss"] == pytest.approx(plain["loss"], rel=0.1)
    assert main(fast)["TFT"]["loss"] != plain["loss"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_latencies_are_measured(channels_last: bool, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"latency_batches": (1, 3), "repeats": 2, "channels_last": channels_last}
    found = main(EvalConfig(model=str(trained / "model"), **options))
    assert len(found) == 8
    for row in found.values():
        assert [time["batch_size"] for time in row["latency"]] == [1, 3]
        for time in row["latency"]:
            assert 0 < time["q25_ms"] <= time["median_ms"] <= time["q75_ms"]
            assert time["environment"]["batch_size"] == time["batch_size"]
            assert {"device", "threads", "dtype", "torch"} <= time["environment"].keys()
    printed = capsys.readouterr().out
    assert "batch 1, ms" in printed
    assert f"{found['TTT']['latency'][1]['median_ms']:.3f}" in printed


def test_images_are_timed_in_the_layout_of_the_networks(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    compare = evaluate_module.latency.compare

    def recorded(networks: dict[str, nn.Module], images: Tensor, **options: Any) -> Any:
        weight = next(p for p in networks["FFF"].parameters() if p.dim() == 4 and p.shape[1] > 1)
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        assert images.stride(1) == (1 if seen[-1] else 64)
        return compare(networks, images, **options)

    monkeypatch.setattr(evaluate_module.latency, "compare", recorded)
    for channels_last in (False, True):
        options: dict[str, Any] = {"latency_batches": (2,), "repeats": 2, "channels_last": channels_last}
        main(EvalConfig(model=str(trained / "model"), **options))
    assert seen == [False, True]


# --- statistics computed anew


def recalibrated(net: AdaptiveNet, skip: tuple[bool, ...], count: int, batch_size: int) -> nn.Module:
    """By hand: batch norms get the mean of the batches' means and unbiased variances."""
    plain = extract(net, skip)
    norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: [torch.zeros(norm.num_features), torch.zeros(norm.num_features)] for norm in norms}

    def note(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(args[0], dim=(0, 2, 3), correction=1)
        sums[norm][0] += mean
        sums[norm][1] += var

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    drawn = torch.randperm(256, generator=torch.Generator().manual_seed(0))[:count]
    batches = digits("train")[0][drawn].split(batch_size)
    with torch.no_grad():
        for images in batches:
            plain.train()(images)
        for hook in hooks:
            hook.remove()
        for norm, (mean, var) in sums.items():
            norm.running_mean.copy_(mean / len(batches))
            norm.running_var.copy_(var / len(batches))
    return plain.eval()


def test_statistics_are_computed_anew_for_each_configuration(trained: Path) -> None:
    """Of all batch norms, those that configurations share included."""
    options: dict[str, Any] = {"model": str(trained / "model"), "batch_size": 64}
    found, net = main(EvalConfig(**options, recalibrate_bn=96)), network_of(trained)
    as_trained = main(EvalConfig(**options))
    for name, row in found.items():
        expected = measured(recalibrated(net, flags(name), count=96, batch_size=64))
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4), name
        assert row["loss"] != pytest.approx(as_trained[name]["loss"], rel=1e-3)
        assert (row["macs"], row["parameters"]) == (as_trained[name]["macs"], as_trained[name]["parameters"])
    (alone,) = main(EvalConfig(**options, recalibrate_bn=96, skip_cfg=(True, True, False))).values()
    assert alone["loss"] == pytest.approx(found["TTF"]["loss"], rel=1e-6), "whatever was evaluated before"
    everything = main(EvalConfig(**options, recalibrate_bn=10_000, skip_cfg=(True, True, True)))
    expected = measured(recalibrated(net, (True,) * 3, count=256, batch_size=64))
    assert everything["TTT"]["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_images_for_statistics_are_of_all_classes(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a data set in the order of its classes, too, as folders of images are."""

    def by_class(name: str, split: str = "train", *args: Any, **options: Any) -> Images:
        images = load(name, split, *args, **options)
        order = images.labels.argsort(stable=True)
        return Images(images.images[order], images.labels[order], images.class_names)

    monkeypatch.setattr(pipeline, "load", by_class)
    seen: list[Tensor] = []

    def recorded(net: nn.Module, batches: Any, accelerator: Any) -> None:
        seen.append(torch.cat([labels for _, labels in batches]))

    monkeypatch.setattr(evaluate_module, "recalibrate", recorded)
    main(EvalConfig(model=str(trained / "model"), recalibrate_bn=100, skip_cfg=(True,) * 3))
    assert len(seen[0]) == 100
    assert set(seen[0].tolist()) == set(range(10))


def test_a_network_without_batch_norms_has_no_statistics_to_compute_anew(
    make: Callable[[str], AdaptiveNet], picture_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make("vit")
    net.spec = models.Spec("adn", 10, 3, {})  # type: ignore[assignment]
    monkeypatch.setattr(evaluate_module, "loaded", lambda *_: net)
    config = EvalConfig("vit", weights="y", data=DataConfig(picture_folder(32)), recalibrate_bn=8)
    with pytest.raises(InputError, match="--recalibrate-bn is 8, but must be 0 for vit, which has no batch norm"):
        main(config)


# --- pictures


def test_a_picture_has_a_point_for_each_configuration(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = plot.save
    monkeypatch.setattr(plot, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    options: dict[str, Any] = {"plot": str(tmp_path / "new" / "x.png"), "repeats": 2, "latency_batches": (2,)}
    found = main(EvalConfig(model=str(trained / "model"), **options))
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(b"\x89PNG")
    macs, latency = drawn[0].axes
    assert macs.get_xlabel() == "MACs an image, millions"
    assert latency.get_xlabel() == "latency at batch 2, ms"
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in macs.lines}
    assert points == {(row["macs"] / 1e6, 100 * row["top1"]) for row in found.values()}
    assert [text.get_text() for text in macs.texts] == NAMES
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in latency.lines}
    assert points == {(row["latency"][0]["median_ms"], 100 * row["top1"]) for row in found.values()}


# --- other weights, other networks


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint in the authors' layout; its last weights are random, its moving average is the trained network."""
    net = network_of(trained)
    torch.manual_seed(0)
    states = []
    for each in (create("resnet14", num_classes=10, in_channels=1), net):
        theirs = original_keys(each.net, each.state_dict())
        states.append({theirs[key]: tensor for key, tensor in each.state_dict().items()})
    average = {"n_averaged": torch.tensor(7), **{f"module.{key}": tensor for key, tensor in states[1].items()}}
    content = {"model": states[0], "model_ema": average, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "model_3.pth")
    return tmp_path / "model_3.pth"


def test_the_authors_checkpoints_are_evaluated(checkpoint: Path, trained: Path) -> None:
    config = EvalConfig(model="resnet14", weights=str(checkpoint), ema=True)
    assert main(config) == json.loads((trained / "result.json").read_text())["configurations"]
    last = main(EvalConfig(model="resnet14", weights=str(checkpoint), skip_cfg=(False,) * 3))
    assert last["FFF"]["top1"] < 0.4


@pytest.mark.parametrize(
    "options", [{"shortcut": "subsample"}, {"second_norms": False}, {"shortcut": "avgpool", "second_norms": False}]
)
def test_checkpoints_of_other_shortcuts_and_norms_are_evaluated(options: dict[str, Any], tmp_path: Path) -> None:
    """As their model folder is, which says itself what it holds."""
    torch.manual_seed(0)
    net = create("resnet14", num_classes=10, in_channels=1, **options)
    theirs = original_keys(net.net, net.state_dict())
    torch.save({theirs[key]: tensor for key, tensor in net.state_dict().items()}, tmp_path / "a.pth")
    weights.save_pretrained(net, tmp_path / "model")
    folder = EvalConfig(model=str(tmp_path / "model"))
    found = main(EvalConfig(model="resnet14", weights=str(tmp_path / "a.pth"), **options))
    assert found == main(folder) == main(replace(folder, **options))
    with pytest.raises(InputError, match="does not match the network"):
        main(EvalConfig(model="resnet14", weights=str(tmp_path / "a.pth")))


def test_two_processes_evaluate_every_image_once(trained: Path, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        output = tmp_path / f"{processes}.json"
        config = EvalConfig(model=str(trained / "model"), batch_size=50, output=str(output))
        printed = done(forked(lambda config=config: main(config), processes))
        assert printed.count("wrote") == 1
        found[processes] = json.loads(output.read_text())
    for name in NAMES:
        assert found[2][name] == pytest.approx(found[1][name], rel=1e-6)
        assert found[2][name]["images"] == 120


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": "resnet20", "weights": "CHECKPOINT"},
            "model_3.pth does not match the network: it lacks net.layer1.2",
        ),
        ({"model": "resnt14", "weights": "CHECKPOINT"}, "unknown model 'resnt14': did you mean resnet14"),
        ({"model": "resnet14", "weights": "nowhere.pth"}, "there is no file nowhere.pth"),
        ({"model": "resnet14", "weights": "PLAIN", "ema": True}, "holds no moving average of the weights, model_ema"),
        ({"model": "resnet14", "weights": "PLAIN"}, "does not match the network: it lacks skip_norms"),
        ({"model": "nowhere"}, "nowhere is not a folder: a model folder with config.json"),
        ({"model": "RUN"}, "is a run folder: give the model folder in it"),
        ({"model": "DENSE"}, "holds a ResNet, which has one depth: evaluate it with resless-eval"),
        (
            {"model": "SEVEN"},
            "the images of digits show 7, 8, 9, not only the 7 classes that the network is for, 0, 1, 2, 3, 4, ...:",
        ),
        (
            {"model": "MODEL", "skip_cfg": (True, True)},
            "skip is (True, True), but must be 3 times True or False, one for",
        ),
        ({"model": "MODEL", "skip_cfg": (True,) * 4}, "they skip layer1.1; layer2.1; layer3.1"),
        ({"model": "MODEL", "skip_cfg": ()}, "skip is (), but must be 3 times True or False"),
    ],
)
def test_what_cannot_be_evaluated(
    fields: dict[str, Any], message: str, trained: Path, checkpoint: Path, tmp_path: Path
) -> None:
    dense = models.create("resnet14", in_channels=1)
    if fields["model"] == "DENSE":
        weights.save_pretrained(dense, tmp_path / "dense")
    if fields["model"] == "SEVEN":
        weights.save_pretrained(create("resnet14", num_classes=7, in_channels=1), tmp_path / "seven")
    if fields.get("weights") == "PLAIN":
        torch.save(dense.state_dict(), tmp_path / "plain.pth")
    places = {
        "CHECKPOINT": checkpoint,
        "PLAIN": tmp_path / "plain.pth",
        "MODEL": trained / "model",
        "RUN": trained,
        "DENSE": tmp_path / "dense",
        "SEVEN": tmp_path / "seven",
    }
    fields = {key: str(places.get(value, value)) if isinstance(value, str) else value for key, value in fields.items()}
    config = EvalConfig(**fields)
    with pytest.raises(InputError) as refusal:
        main(config)
    assert message in str(refusal.value)


def test_images_of_a_size_that_a_transformer_cannot_take(
    make: Callable[[str], AdaptiveNet], picture_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make("vit")
    net.spec = models.Spec("adn", 10, 3, {})  # type: ignore[assignment]
    monkeypatch.setattr(evaluate_module, "loaded", lambda *_: net)
    for recalibrate_bn in (0, 8):
        config = EvalConfig("x", weights="y", data=DataConfig(picture_folder(36)), recalibrate_bn=recalibrate_bn)
        with pytest.raises(InputError, match="the size of the images is 36 x 36, but must be 32 x 32 for this vision"):
            main(config)
