from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from resless import cli, models, weights
from resless.calibrate import calibration_batches, recalibrate
from resless.config import DataConfig, EvalConfig, SourceConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import Confusion, Evaluation, average_buffers, evaluate, evaluate_each, main
from resless.run import accelerator
from resless.testing import forked
from torch import nn


@dataclass
class Rows:
    """Logits and labels in batches, as if they were images."""

    batches: list[tuple[torch.Tensor, torch.Tensor]]
    num_images: int

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.batches)


def rows(logits: list[list[float]], labels: list[int], batch_size: int, num_images: int | None = None) -> Rows:
    pairs = zip(torch.tensor(logits).split(batch_size), torch.tensor(labels).split(batch_size), strict=True)
    return Rows(list(pairs), len(labels) if num_images is None else num_images)


LOGITS = [
    [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
    [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
    [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
]


def test_accuracies_and_loss_are_those_of_the_definition():
    found = evaluate(nn.Identity(), rows(LOGITS, [0, 4, 5], batch_size=2), accelerator("no"))
    # Right at first once; among the first five twice; the loss is log Σ exp(logits) - logit of the label.
    total = torch.tensor(LOGITS[0]).double().exp().sum().log().item()
    assert found == Evaluation(1 / 3, 2 / 3, pytest.approx(total - (6 + 2 + 1) / 3, rel=1e-6), 3)


def test_with_fewer_than_five_classes_all_are_among_the_first_five():
    found = evaluate(nn.Identity(), rows([[1.0, 0.0], [1.0, 0.0]], [0, 1], batch_size=2), accelerator("no"))
    assert (found.top1, found.top5) == (0.5, 1.0)


def test_the_mode_of_the_model_is_put_back_and_statistics_stay():
    model = nn.Sequential(nn.BatchNorm1d(6))
    for training in (True, False):
        model.train(training)
        evaluate(model, rows(LOGITS, [0, 1, 2], batch_size=3), accelerator("no"))
        assert model.training == training
    assert model[0].num_batches_tracked == 0


def test_an_image_that_is_missing_or_counted_twice_is_an_error():
    with pytest.raises(RuntimeError, match="evaluated 3 images, but the data set has 4"):
        evaluate(nn.Identity(), rows(LOGITS, [0, 1, 2], batch_size=2, num_images=4), accelerator("no"))


def test_outputs_that_overflow_are_refused():
    broken = rows([[float("nan"), 0.0]], [1], batch_size=1)
    with pytest.raises(InputError, match="the loss on 1 images is not finite"):
        evaluate(nn.Identity(), broken, accelerator("no"))


def test_a_confusion_has_a_row_a_class_and_its_diagonal_is_what_is_right():
    logits = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]]
    confusion = Confusion(3)
    found = evaluate(nn.Identity(), rows(logits, [0, 1, 2, 1, 1], batch_size=2), accelerator("no"), confusion)
    assert confusion.counts.tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 1]]
    assert found.top1 == confusion.counts.trace() / confusion.counts.sum()


# --- several ways to run one model


class TwoWays(nn.Module):
    """Logits [n, 6], as they are or negated; a batch norm, and a dropout that would show training mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(6), nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(6).eval()

    def forward(self, logits: torch.Tensor, sign: float = 1.0) -> torch.Tensor:
        return sign * self.dropout(self.frozen(self.norm(logits)))


def ways(model: nn.Module) -> dict:
    return {"plain": model, "negated": partial(model, sign=-1.0), 3: lambda logits: model(logits).exp()}


def random_rows(count: int, batch_size: int) -> Rows:
    torch.manual_seed(0)
    return rows(torch.randn(count, 6).tolist(), torch.randint(6, (count,)).tolist(), batch_size)


def test_each_way_is_evaluated_as_if_it_were_alone():
    model, used, batches = TwoWays(), accelerator("no"), random_rows(23, batch_size=5)
    found = evaluate_each(model, ways(model), batches, used)
    assert list(found) == ["plain", "negated", 3]

    class Alone(nn.Module):
        def __init__(self, forward):
            super().__init__()
            self.inner, self.way = model, forward

        def forward(self, images):
            return self.way(images)

    for name, forward in ways(model).items():
        assert found[name] == evaluate(Alone(forward), batches, used)
    assert len({result.top1 for result in found.values()}) > 1
    assert found["plain"] == evaluate(model, batches, used)
    assert found[3].top1 == found["plain"].top1
    assert found[3].loss != found["plain"].loss


def test_all_ways_share_one_pass_over_the_images():
    passes, calls = [], []

    class Counted(Rows):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    def counted(name):
        return lambda images: (calls.append((name, len(images))), images)[1]

    batches = Counted(random_rows(7, batch_size=3).batches, 7)
    evaluate_each(nn.Identity(), {name: counted(name) for name in "ab"}, batches, accelerator("no"))
    assert passes == [1]
    assert calls == [("a", 3), ("b", 3), ("a", 3), ("b", 3), ("a", 1), ("b", 1)]


def test_the_modes_of_all_modules_are_put_back():
    model = TwoWays()  # in training mode, but for one norm
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    evaluate_each(model, ways(model), random_rows(6, batch_size=3), accelerator("no"))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.norm.num_batches_tracked == 0


def test_a_way_whose_outputs_overflow_is_refused():
    model = nn.Identity()
    broken = {"good": model, "bad": lambda logits: logits * float("inf")}
    with pytest.raises(InputError, match="the loss on 4 images is not finite"):
        evaluate_each(model, broken, random_rows(4, batch_size=2), accelerator("no"))


def test_an_image_that_is_missing_is_an_error_for_each_way():
    batches = Rows(random_rows(4, batch_size=2).batches, 5)
    with pytest.raises(RuntimeError, match="evaluated 4 images, but the data set has 5"):
        evaluate_each(nn.Identity(), {0: nn.Identity(), 1: nn.Identity()}, batches, accelerator("no"))


def test_two_processes_evaluate_each_way_as_one_does(tmp_path):
    torch.manual_seed(0)
    model = models.create("lenet_300_100", in_channels=1, image_size=8)

    def task() -> None:
        used = accelerator("no")
        data = Pipeline(DataConfig(), seed=0, shards=Shards.of(used, channels_last=False))
        batches = data.evaluation(data.test, batch_size=50, indices=torch.arange(101))
        forwards = {"plain": model, "flipped": lambda images: model(images.flip(-1))}
        found = evaluate_each(model, forwards, batches, used)
        plain = {name: asdict(result) for name, result in found.items()}
        (tmp_path / f"{used.num_processes}-{used.process_index}").write_text(json.dumps(plain))

    succeeds(task, 1)
    succeeds(task, 2)
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    for name in ("plain", "flipped"):
        assert first[name] == pytest.approx(one[name], rel=1e-6)
        assert first[name]["images"] == 101
    assert first["plain"]["loss"] != first["flipped"]["loss"]


def succeeds(task, processes: int) -> None:
    for ended in forked(task, processes):
        assert ended.code == 0, ended.printed


@pytest.mark.parametrize("count", [1, 7, 101])
def test_two_processes_see_every_image_once(count, tmp_path):
    torch.manual_seed(0)
    model = models.create("lenet_300_100", in_channels=1, image_size=8)

    def on(processes: int):
        def task() -> None:
            used = accelerator("no")
            assert used.num_processes == processes
            data = Pipeline(DataConfig(), seed=0, shards=Shards.of(used, channels_last=False))
            batches = data.evaluation(data.test, batch_size=4, indices=torch.arange(count))
            found = evaluate(used.prepare(model), batches, used)
            (tmp_path / f"{processes}-{used.process_index}").write_text(json.dumps(asdict(found)))

        return task

    succeeds(on(1), 1)
    succeeds(on(2), 2)
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert (first["images"], first["top1"], first["top5"]) == (count, one["top1"], one["top5"])
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_two_processes_confuse_as_one_does(tmp_path):
    torch.manual_seed(0)
    model = models.create("lenet_300_100", in_channels=1, image_size=8)

    def task() -> None:
        used = accelerator("no")
        data = Pipeline(DataConfig(), seed=0, shards=Shards.of(used, channels_last=False))
        batches = data.evaluation(data.test, batch_size=50, indices=torch.arange(101))
        confusion = Confusion(10, used.device)
        evaluate(used.prepare(model), batches, used, confusion)
        torch.save(confusion.counts, tmp_path / f"{used.num_processes}-{used.process_index}")

    succeeds(task, 1)
    succeeds(task, 2)
    one, first, second = (torch.load(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(first, one)
    assert torch.equal(second, one)
    data = Pipeline(DataConfig(), seed=0, shards=Shards())
    assert one.sum(dim=1).tolist() == data.test.labels[:101].bincount(minlength=10).tolist()


def test_processes_evaluate_the_mean_of_their_statistics():
    def task() -> None:
        used = accelerator("no")
        norm = nn.BatchNorm1d(2)
        norm.running_mean.copy_(torch.tensor([1.0, 2.0]) + 10 * used.process_index)
        norm.num_batches_tracked.fill_(7)
        average_buffers(norm, used)
        assert norm.running_mean.tolist() == [6.0, 7.0]
        assert norm.num_batches_tracked == 7

    succeeds(task, 2)


# --- resless-eval


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder with a network for the digits."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "lenet"
    preprocessing = {"image_size": 8, "mean": [0.25], "std": [0.5]}
    weights.save_pretrained(
        models.create("lenet_300_100", in_channels=1, image_size=8), folder, preprocessing=preprocessing
    )
    return folder


def expected(folder: Path, mean: float, std: float, split: str = "test") -> float:
    """Accuracy, computed without a loader."""
    data = Pipeline(DataConfig(), seed=0, shards=Shards())
    images = data.test if split == "test" else data.train
    with torch.inference_mode():
        logits = weights.from_pretrained(folder)((images.images.float() / 255 - mean) / std)
    return (logits.argmax(dim=1) == images.labels).double().mean().item()


def test_a_model_folder_is_evaluated_as_it_was_trained(folder, tmp_path, capsys):
    result = main(EvalConfig(model=str(folder), output=str(tmp_path / "result.json")))
    assert result.images == 360
    assert result.top1 == pytest.approx(expected(folder, 0.25, 0.5), abs=1e-9)
    written = json.loads((tmp_path / "result.json").read_text())
    parameters = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert written == asdict(result) | {"parameters": parameters, "macs": 64 * 300 + 300 * 100 + 100 * 10}
    printed = capsys.readouterr().out
    for text in ("test images", f"{100 * result.top1:.2f}", f"{parameters:,}", "50,200"):
        assert text in printed


def test_mean_std_and_split_can_be_given(folder):
    result = main(EvalConfig(model=str(folder), mean=(0.0,), std=(1.0,), split="train"))
    assert result.images == 1437
    assert result.top1 == pytest.approx(expected(folder, 0.0, 1.0, "train"), abs=1e-9)


def test_a_foreign_checkpoint_is_evaluated_in_the_network_that_is_named(folder, tmp_path):
    torch.save({"state_dict": weights.from_pretrained(folder).state_dict()}, tmp_path / "foreign.pth")
    config = EvalConfig(model="lenet_300_100", weights=str(tmp_path / "foreign.pth"))
    # The data set's mean and standard deviation, since a checkpoint has none.
    assert main(config).top1 == pytest.approx(expected(folder, 0.3056, 0.3760), abs=1e-9)


def test_bf16_and_channels_last_change_the_accuracy_little(tmp_path):
    torch.manual_seed(0)
    weights.save_pretrained(models.create("resnet8", in_channels=1), tmp_path / "model")
    plain = EvalConfig(model=str(tmp_path / "model"))
    exact, fast = main(plain), main(replace(plain, mixed_precision="bf16", channels_last=True))
    assert fast.loss != exact.loss
    assert fast.loss == pytest.approx(exact.loss, rel=0.05)


@pytest.mark.parametrize("named", [True, False])
def test_images_of_a_part_of_the_classes_count_as_what_the_network_calls_them(named, tmp_path, monkeypatch):
    """Folders of images are numbered anew where a class has none; a table states its numbers."""
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    names = ["cat", "cow", "dog", "owl"]
    model = models.create("lenet_300_100", num_classes=4, in_channels=1, image_size=2)
    with torch.no_grad():
        model.fc3.weight.zero_()
        model.fc3.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))  # whatever it sees is an owl
    statistics = {"image_size": 2, "mean": [0.5], "std": [0.5]}
    weights.save_pretrained(model, tmp_path / "m", preprocessing=statistics, class_names=names if named else None)
    for kind, count in {"cow" if named else "1": 1, "owl" if named else "2": 3}.items():
        (tmp_path / "data" / "test" / kind).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (2, 2)).save(tmp_path / "data" / "test" / kind / f"{number}.png")
    files = {"confusion_matrix": str(tmp_path / "c.png"), "output": str(tmp_path / "result.json")}
    config = EvalConfig(model=str(tmp_path / "m"), data=SourceConfig(str(tmp_path / "data")), **files)
    result = main(config)
    counts = json.loads((tmp_path / "result.json").read_text())["confusion"]
    found = {1: 1, 3: 3} if named else {1: 1, 2: 3}
    assert counts == [[0, 0, 0, found.get(label, 0)] for label in range(4)]
    assert (result.images, result.top1) == (4, 0.75 if named else 0.0)


def test_a_confusion_matrix_is_drawn_and_its_counts_are_written(folder, tmp_path):
    files = {"confusion_matrix": str(tmp_path / "confusion.png"), "output": str(tmp_path / "result.json")}
    result = main(EvalConfig(model=str(folder), **files))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    counts = torch.tensor(json.loads((tmp_path / "result.json").read_text())["confusion"])
    assert counts.shape == (10, 10)
    assert counts.trace().item() == round(result.top1 * result.images)


def test_batch_norms_are_recalibrated_before_the_evaluation(tmp_path):
    torch.manual_seed(0)
    model = models.create("wrn10_1", in_channels=1, dropout=0.5)
    weights.save_pretrained(model, tmp_path / "model")
    plain = EvalConfig(model=str(tmp_path / "model"), batch_size=128)
    as_written, anew = main(plain), main(replace(plain, recalibrate_bn=200))
    data, used = Pipeline(DataConfig(), seed=0, shards=Shards()), accelerator("no")
    recalibrate(model, calibration_batches(data, 200, 128), used)
    expected = evaluate(model, data.evaluation(data.test), used)
    assert anew.loss == pytest.approx(expected.loss, rel=1e-6)
    assert anew.loss != pytest.approx(as_written.loss, rel=1e-3)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--model", "nowhere"], "nowhere"),
        (
            ["--model", "resnet14", "--weights", "resnet8.pth"],
            "resnet8.pth does not match the network: it lacks layer1.1.bn1.bias, layer1.1.bn1.num_batches_tracked, ",
        ),
        (
            ["--model", "resnet8", "--weights", "resnet14.pth"],
            "resnet14.pth does not match the network: it has layer1.1.bn1.bias, ",
        ),
        (
            ["--model", "resnet8", "--weights", "7classes.pth"],
            "it has linear.weight [7, 64] float32 where the network has [10, 64] float32, linear.bias [7] float32",
        ),
        (["--model", "resnet8", "--weights", "resnet8.pth", "--dropout", "0.3"], "unknown option of resnet8 'dropout'"),
        (
            ["--model", "lenet", "--recalibrate-bn", "100"],
            "--recalibrate-bn is 100, but must be 0 for lenet, which has",
        ),
        (["--model", "lenet", "--recalibrate-bn", "-1"], "--recalibrate-bn is -1, but must be 0 (off) or a number of"),
        (
            ["--model", "lenet", "--confusion-matrix", "no/where.png"],
            "--confusion-matrix is 'no/where.png', but must be",
        ),
        (
            ["--model", "lenet", "--confusion-matrix", "matrix"],
            "--confusion-matrix is 'matrix', but must be a .png file",
        ),
        (["--model", "resnet19", "--weights", "nowhere.pth"], "depth is 19, but must be 6n+2"),
        (["--model", "lenet_300_100", "--weights", "nowhere.pth"], "nowhere.pth"),
        (
            ["--model", "wide"],
            "the images are 1 x 8 x 8 in 10 classes, but lenet_300_100 was trained on 1 x 28 x 28 in",
        ),
        (["--model", "lenet", "--mean", "0.5"], "--std is None, but must be given together with --mean"),
        (["--model", "lenet", "--mean", "0.5", "0.5", "--std", "1", "1"], "the images of digits have 1 channel, but"),
        (["--model", "lenet", "--data-dir", "."], "--data-dir is '.', but must be left out, for digits come with the"),
        (
            ["--model", "lenet", "--shortcut", "conv", "--dropout", "0.1"],
            "--model is 'lenet', but must be given without",
        ),
        (
            ["--model", "lenet", "--output", "no/where.json"],
            "--output is 'no/where.json', but must be a file in a folder",
        ),
        (["--model", "lenet", "--batch-size", "0"], "--batch-size is 0, but must be 1 or more"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, tmp_path, args, sentence):
    shutil.copytree(folder, tmp_path / "lenet")
    weights.save_pretrained(models.create("lenet_300_100", in_channels=1), tmp_path / "wide")
    for name, classes in (("resnet8", 10), ("resnet14", 10), ("7classes", 7)):
        model = models.create("resnet8" if name == "7classes" else name, num_classes=classes, in_channels=1)
        torch.save({"state_dict": model.state_dict()}, tmp_path / f"{name}.pth")
    before = sorted(tmp_path.rglob("*"))

    def task() -> None:
        os.chdir(tmp_path)
        sys.argv = ["resless-eval", *args]
        cli.evaluate()

    ended = forked(task)[0]
    assert ended.code == 2, ended.printed
    assert ended.printed.startswith("error: "), ended.printed
    assert ended.printed.count("\n") == 1, ended.printed
    assert sentence in ended.printed
    assert sorted(tmp_path.rglob("*")) == before
