"""Networks side by side: what is counted, what is drawn, and the console script."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resless import cli, compare, costs, models, weights
from resless.config import CompareConfig, SourceConfig
from resless.errors import InputError
from resless.testing import succeeded
from torch import nn

STATISTICS = {"mean": [0.3], "std": [0.4]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small networks for digits, one twice as wide in its hidden layers."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for name in ("resnet8", "resnet14"):
        torch.manual_seed(0)
        net = models.create(name, in_channels=1)
        weights.save_pretrained(net, root / name, preprocessing=STATISTICS, example=torch.zeros(1, 1, 8, 8))
        found[name] = root / name
    return found


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> list[compare.Measured]:
    return compare.compare(
        {"long": folders["resnet14"], "short": folders["resnet8"]}, SourceConfig(), batch_sizes=(1, 400), repeats=2
    )


def test_numbers_are_those_of_each_network(folders: dict[str, Path], measured: list[compare.Measured]) -> None:
    assert [one.name for one in measured] == ["long", "short"]
    for one, name in zip(measured, ("resnet14", "resnet8"), strict=True):
        net = weights.from_pretrained(folders[name])
        assert one.macs == costs.macs(net, torch.zeros(1, 1, 8, 8))
        assert one.parameters == sum(parameter.numel() for parameter in net.parameters())
        assert one.file_bytes == (folders[name] / "model.safetensors").stat().st_size
        assert one.accuracy.images == 360
        assert set(one.latencies) == {1, 400}
    long, short = measured
    assert long.latencies[1].speedup.median == 1
    assert short.latencies[400].ideal_speedup == pytest.approx(long.macs / short.macs)


def test_each_network_gets_the_images_in_its_own_normalisation(tmp_path: Path) -> None:
    """Of two networks that are equal but for the scale of their images, both see the same."""
    torch.manual_seed(0)
    net = models.create("lenet_300_100", in_channels=1, image_size=8)
    weights.save_pretrained(net, tmp_path / "a", preprocessing={"mean": [0.0], "std": [1.0]})
    with torch.no_grad():
        next(layer for layer in net.modules() if isinstance(layer, nn.Linear)).weight.div_(2)
    weights.save_pretrained(net, tmp_path / "b", preprocessing={"mean": [0.0], "std": [0.5]})
    a, b = compare.compare({"a": tmp_path / "a", "b": tmp_path / "b"}, SourceConfig(), batch_sizes=(1,), repeats=2)
    assert a.accuracy.loss == pytest.approx(b.accuracy.loss, rel=1e-5)


class Undecided(nn.Module):
    """A layer more for images whose middle is bright, as networks with policies do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.threshold = nn.Linear(64, 64), nn.Linear(64, 10), 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, bright = x.flatten(1), x[:, 0, 3, 3] > self.threshold
        if bright.any():
            x = torch.cat([x[~bright], self.layer(x[bright])])
        return self.head(x)


def test_multiply_adds_are_of_the_images_in_the_batch(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    undecided = Undecided().eval()
    undecided.spec = models.spec_of(weights.from_pretrained(folders["resnet8"]))
    monkeypatch.setattr(compare.weights, "from_pretrained", lambda _: undecided)
    (found,) = compare.compare({"a": folders["resnet8"]}, SourceConfig(), batch_sizes=(1, 300), repeats=2)
    assert 64 * 10 < found.macs < 64 * 10 + 64 * 64, "some images have the layer, and some have not"
    monkeypatch.setattr(undecided, "threshold", -100.0)
    (found,) = compare.compare({"a": folders["resnet8"]}, SourceConfig(), batch_sizes=(1,), repeats=2)
    assert found.macs == 64 * 10 + 64 * 64


def test_a_folder_may_have_the_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1" / "model").mkdir(parents=True)
    folders = CompareConfig(("lr=0.1/model", "other=lr=0.1/model")).folders
    assert folders == {"model": "lr=0.1/model", "other": "lr=0.1/model"}
    with pytest.raises(InputError, match="NAME=FOLDER or FOLDER"):
        CompareConfig(("=model",))


def test_few_images_are_repeated() -> None:
    batches = [(torch.arange(4.0).view(-1, 1), torch.zeros(4)), (torch.arange(4.0, 6).view(-1, 1), torch.zeros(2))]
    assert compare._first(8, batches).flatten().tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert compare._first(3, batches).flatten().tolist() == [0, 1, 2]
    last = torch.rand(3, 2, 4, 4).to(memory_format=torch.channels_last)
    for count in (2, 7):
        assert compare._first(count, [(last, torch.zeros(3))]).is_contiguous(memory_format=torch.channels_last)


def test_one_table_has_a_row_a_network_and_fits_a_terminal(
    measured: list[compare.Measured], capsys: pytest.CaptureFixture[str]
) -> None:
    named = [replace(one, name=f"{one.name}, everything skipped") for one in measured]
    compare.show(named)
    title, _, columns, _, *rows, _ = capsys.readouterr().out.splitlines()
    assert title == "360 test images; speed-ups over long, everything skipped; times with quartiles"
    assert [column.strip() for column in columns.strip("┃").split("┃")] == [
        *("network", "top-1 %", "MACs", "parameters", "file, kB"),
        *("batch 1, ms", "speed-up", "batch 400, ms", "speed-up", "by MACs"),
    ]
    assert len(rows) == len(named)
    for row, one in zip(rows, named, strict=True):
        assert len(row) <= 160
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        known = [one.name, f"{100 * one.accuracy.top1:.2f}", f"{round(one.macs):,}", f"{one.parameters:,}"]
        assert cells[:5] == [*known, f"{round(one.file_bytes / 1000):,}"]
        for cell, faster, time in ((*cells[5:7], one.latencies[1]), (*cells[7:9], one.latencies[400])):
            shown = [float(number.replace(",", "")) for number in re.findall(r"[\d.,]+", cell)]
            assert shown == pytest.approx([time.median_ms, time.q25_ms, time.q75_ms], rel=0.006)
            assert faster == f"{time.speedup.median:.2f}"
        assert cells[9] == f"{measured[0].macs / one.macs:.2f}"


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(0.01234, "0.0123"), (0.5, "0.500"), (1.0, "1.00"), (26.75, "26.8"), (612.31, "612"), (12345.6, "12,346")],
)
def test_times_have_three_digits(milliseconds: float, shown: str) -> None:
    assert compare._digits(milliseconds) == shown


def test_script_writes_numbers_and_picture(folders: dict[str, Path], tmp_path: Path) -> None:
    named = [f"long={folders['resnet14']}", str(folders["resnet8"])]
    options = ["--batch-sizes", "1", "2", "--repeats", "2", "--output", "found.json", "--picture", "found.png"]
    printed = succeeded(cli.compare, *named, *options, cwd=tmp_path)
    assert printed.count("speed-ups over long") == 1
    said = printed.splitlines()
    assert said[:4] == [
        "network 1 of 2, long: evaluating",
        "network 2 of 2, resnet8: evaluating",
        "timing all of them in turns, 2 times: batch 1",
        "timing all of them in turns, 2 times: batch 2",
    ]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [network["name"] for network in found["networks"]] == ["long", "resnet8"]
    assert found["networks"][1]["latencies"]["2"]["ideal_speedup"] > 1
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": ()}, "the list of networks is"),
        ({"models": ("a/model", "b/model")}, "of different names"),
        ({"models": ("a",), "repeats": 0}, r"--repeats is 0, but must be 2 or more: .* there is resless-eval"),
        ({"models": ("a",), "batch_sizes": (0,)}, "--batch-sizes is"),
        ({"models": ("a",), "picture": "a.jpg"}, "a .png file"),
    ],
)
def test_bad_options_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompareConfig(**fields)


def test_a_folder_that_cannot_be_used_is_refused_before_any_is_evaluated(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="nowhere is not a folder"):
        compare.compare({"a": folders["resnet8"], "b": tmp_path / "nowhere"}, SourceConfig(), say=said.append)
    assert said == []


def test_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    weights.save_pretrained(
        models.create("resnet8"), tmp_path / "colour", preprocessing={"mean": [0.0] * 3, "std": [1.0] * 3}
    )
    with pytest.raises(InputError, match=r"the images are 1 x 8 x 8 in 10 classes, but resnet8 was trained on 3 x"):
        compare.compare({"colour": tmp_path / "colour"}, SourceConfig())
