from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from resless import cli, models, weights
from resless.config import DataConfig, EvalConfig, NetworkOptions, OptimConfig, RunConfig, TrainConfig, as_dict
from resless.data import load, stratified_split
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import evaluate
from resless.evaluate import main as evaluate_folder
from resless.recipes import TRAIN
from resless.run import accelerator
from resless.testing import few_images, forked, metrics
from resless.train import train
from safetensors.torch import load_file

SMOKE = TRAIN["smoke"]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """The run folder of the smoke recipe with held-out images, and the evaluation that `train` returned."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    config = replace(SMOKE, data=DataConfig(holdout=0.2), run=RunConfig(run_dir=str(folder)))
    return folder, asdict(train(config))


def test_the_smoke_recipe_learns_the_digits(smoke):
    _, result = smoke
    assert result["images"] == 360
    assert result["top1"] > 0.9
    assert result["top5"] >= result["top1"]
    assert 0 < result["loss"] < 0.5


def test_the_run_folder_holds_all_that_is_promised(smoke):
    folder, result = smoke
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "env.json", "metrics.jsonl", "curves.png", "result.json", "checkpoints", "model", ".lock")
    }
    config = json.loads((folder / "config.json").read_text())
    expected = replace(SMOKE, data=DataConfig(holdout=0.2), run=RunConfig(run_dir=str(folder)))
    assert config == {"command": "resless-train", **as_dict(expected)}
    assert json.loads((folder / "result.json").read_text()) == result
    start = json.loads((folder / "env.json").read_text())["starts"][0]
    assert {"commit", "versions", "device", "seed", "processes", "mixed_precision", "threads"} <= start.keys()
    assert torch.__version__.startswith(start["versions"]["torch"])
    with Image.open(folder / "curves.png") as picture:
        picture.load()
        assert min(picture.size) > 200


def test_metrics_have_a_line_an_epoch_with_finite_numbers(smoke):
    lines = metrics(smoke[0])
    assert [line["epoch"] for line in lines] == list(range(1, SMOKE.optim.epochs + 1))
    for line in lines:
        assert set(line) == {"epoch", "lr", "train_loss", "train_accuracy", "held_out_top1", "held_out_loss"}
        assert line["lr"] == SMOKE.optim.lr
        assert 0 <= line["train_accuracy"] <= 1
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_the_model_folder_is_the_network_that_was_evaluated(smoke):
    folder, result = smoke
    model, config = weights.from_pretrained(folder / "model"), weights.read_config(folder / "model")
    # LeNet-300-100 on 8 x 8 images: 64·300 + 300·100 + 100·10.
    assert config["costs"]["macs_per_image"] == 64 * 300 + 300 * 100 + 100 * 10
    assert config["metrics"] == result
    assert config["preprocessing"] == {"image_size": 8, "mean": [0.3056], "std": [0.3760]}
    data = Pipeline(DataConfig(), seed=0, shards=Shards())
    found = evaluate(model, data.evaluation(data.test), accelerator("no"))
    assert found.top1 == result["top1"]
    assert found.loss == pytest.approx(result["loss"], rel=1e-5)


def test_the_mean_of_each_pixel_goes_into_the_model_folder_and_is_subtracted_in_evaluation(tmp_path):
    train_images, test_images = load("digits"), load("digits", "test")
    data = DataConfig(holdout=0.2, normalize="pixel")
    result = train(replace(SMOKE, data=data, run=RunConfig(run_dir=str(tmp_path / "run"))))
    folder = tmp_path / "run" / "model"
    kept, _ = stratified_split(train_images.labels, 0.2, SMOKE.run.seed)
    means = train_images.images[kept].double().mean(dim=0)  # [1, 8, 8], grey levels
    found = weights.read_config(folder)["preprocessing"]
    assert found.keys() == {"image_size", "mean", "std"}
    assert (found["image_size"], found["std"]) == (8, [128 / 255])
    torch.testing.assert_close(torch.tensor(found["mean"]).double() * 255, means, rtol=0, atol=2e-4)
    with torch.inference_mode():
        logits = weights.from_pretrained(folder)(((test_images.images - means) / 128).float())
    right = (logits.argmax(dim=1) == test_images.labels).double().mean().item()
    loss = F.cross_entropy(logits, test_images.labels).item()
    assert right > 0.9
    for evaluation in (result, evaluate_folder(EvalConfig(str(folder)))):
        assert (evaluation.images, evaluation.top1) == (360, pytest.approx(right, abs=1e-9))
        assert evaluation.loss == pytest.approx(loss, rel=1e-5)
    # Readable: a row of pixels is a line.
    rows = [line for line in (folder / "config.json").read_text().splitlines() if line.count(",") >= 7]
    assert [json.loads(row.strip().rstrip(",")) for row in rows] == found["mean"][0]
    assert "| mean | see config.json |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("alexnet", {}),
        ("vgg11_bn", {}),
        ("preresnet11", {"block": "bottleneck"}),
        ("wrn10_1", {"dropout": 0.3}),
        ("resnext11_2x2", {"expansion": 1}),
        ("densenet_7_4", {"compression": 0.5}),
        ("densenet_bc_10_4", {}),
    ],
)
def test_every_network_is_trained_recorded_drawn_and_evaluated(model, options, tmp_path):
    config = TrainConfig(
        model=model,
        network=NetworkOptions(**options),
        optim=OptimConfig(lr=0.01, batch_size=32, epochs=1),
        run=RunConfig(run_dir=str(tmp_path / "run"), mixed_precision="bf16", channels_last=True),
    )
    with few_images(32, 20):
        result = train(config)
        again = evaluate_folder(EvalConfig(model=str(tmp_path / "run" / "model"), channels_last=True))
    (line,) = metrics(tmp_path / "run")
    assert {"epoch", "lr", "train_loss", "train_accuracy"} <= line.keys()
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.size == (1350, 540)
    written = weights.from_pretrained(tmp_path / "run" / "model").spec
    assert (written.name, written.options | options) == (model, written.options)
    assert (result.images, again.images) == (20, 20)
    assert again.loss == pytest.approx(result.loss, rel=0.05)


def test_no_epochs_change_nothing_and_still_write_the_model(tmp_path, smoke):
    pretrained = smoke[0] / "model"
    optim, run = replace(SMOKE.optim, epochs=0), RunConfig(run_dir=str(tmp_path / "run"))
    result = train(replace(SMOKE, pretrained=str(pretrained), optim=optim, run=run))
    before, after = load_file(pretrained / "model.safetensors"), weights_in(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.top1 == smoke[1]["top1"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_smaller_network_is_trained_on_with_the_statistics_of_its_folder(tmp_path):
    net = models.create("resnet8", in_channels=1, shortcut="subsample").eval()
    known = {"mean": [0.25], "std": [0.5]}
    weights.save_pretrained(net, tmp_path / "given", preprocessing=known, example=torch.zeros(1, 1, 8, 8))
    run, optim = RunConfig(run_dir=str(tmp_path / "run")), OptimConfig(lr=0.01, epochs=1)
    config = TrainConfig(model="resnet8", pretrained=str(tmp_path / "given"), optim=optim, run=run)
    with few_images(256, 40):
        train(config)
    described = weights.read_config(tmp_path / "run" / "model")
    assert described["preprocessing"] | known == described["preprocessing"]
    assert described["model"]["options"]["shortcut"] == "subsample"
    before, after = load_file(tmp_path / "given" / "model.safetensors"), weights_in(tmp_path / "run")
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    other = replace(config, model="resnet14")
    with pytest.raises(InputError, match=r"--model is resnet14, but .*given holds a resnet8"):
        train(replace(other, run=RunConfig(run_dir=str(tmp_path / "other"))))
    given = replace(config, network=NetworkOptions(shortcut="conv"))
    with pytest.raises(InputError, match="given without --shortcut: its folder says what it is"):
        train(replace(given, run=RunConfig(run_dir=str(tmp_path / "other"))))


def test_fresh_weights_depend_on_the_seed_alone(tmp_path):
    def fresh(name: str, seed: int) -> dict[str, torch.Tensor]:
        config = replace(
            SMOKE, optim=replace(SMOKE.optim, epochs=0), run=RunConfig(run_dir=str(tmp_path / name), seed=seed)
        )
        train(config)
        return weights_in(tmp_path / name)

    first, again, other = fresh("first", 3), fresh("again", 3), fresh("other", 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


def test_one_and_two_processes_agree_without_batch_norm(tmp_path):
    data = DataConfig(holdout=0.1, pad=1, flip=True)
    config = TrainConfig(data=data, optim=OptimConfig(lr=0.05, batch_size=64, epochs=1, weight_decay=1e-4))

    def task(name: str):
        return lambda: train(replace(config, run=RunConfig(run_dir=str(tmp_path / name))))

    assert [ended.code for ended in forked(task("one"))] == [0]
    assert [ended.code for ended in forked(task("two"), 2)] == [0, 0]
    assert json.loads((tmp_path / "two" / "env.json").read_text())["starts"][0]["processes"] == 2
    one, two = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:  # 2e-8 apart, until rounding moves an activation across zero: 2e-5
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-4)
    for first, second in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert first == pytest.approx(second, abs=1e-4)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--model", "resnet21"], "depth is 21, but must be 6n+2"),
        (["--model", "lenet_300"], "did you mean lenet_300_100"),
        (["--dataset", "cifar-10"], "did you mean cifar10"),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["--dataset", "./nowhere"], "nowhere"),
        (["--dataset", "cifar10", "--recipe", "smoke"], "--data-dir, or use --dataset digits"),
        (["--batch-size", "1438"], "batch_size is 1438, but must be from 1 to the number of images, 1437"),
        (["--holdout", "0.0001"], "--holdout is 0.0001, but must be large enough to hold out one of 1437 images"),
        (["--holdout", "0.99"], "batch_size is 128, but must be from 1 to the number of images, 14"),
        (["--pretrained", "nowhere"], "nowhere"),
        (["--resume", "nowhere"], "--resume is 'nowhere', but must be `auto`, a run folder, or a checkpoint folder"),
        (["--shortcut", "conv"], "shortcut"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, args, sentence):
    def task() -> None:
        os.chdir(tmp_path)
        os.environ["HF_HUB_OFFLINE"] = "1"
        sys.argv = ["resless-train", *args]
        cli.train()

    ended = forked(task)[0]
    assert ended.code == 2, ended.printed
    assert ended.printed.startswith("error: "), ended.printed
    assert ended.printed.count("\n") == 1, ended.printed
    assert sentence in ended.printed
    assert list(tmp_path.iterdir()) == []


def test_every_recipe_names_a_network_and_a_data_set():
    assert len(TRAIN) >= 9
    others = {"smoke": "lenet_300_100", "smoke_resnet": "resnet20", "resnet110_short": "resnet110"}
    for name, recipe in TRAIN.items():
        models.check_name(recipe.model)
        assert recipe.model == others.get(name, name)
