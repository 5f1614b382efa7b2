"""One configuration written as a plain network, by `adn-extract`."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import resless.cli
import torch
from adn import cli
from adn.config import ExtractConfig
from adn.export import main, recalibrate_as_evaluated
from adn.extract import extract
from adn.model import AdaptiveNet, create
from resless import costs, models, onnx, weights
from resless.calibrate import batch_norms, calibration_batches, recalibrate
from resless.config import DataConfig, EvalConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import main as evaluate
from resless.run import accelerator
from resless.testing import refused, succeeded
from torch import Tensor

MIXED = (False, True, True)


def extraction(trained: Path, output: Path, **fields: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {"model": str(trained / "model"), "skip_cfg": MIXED, "output": str(output), "repeats": 0}
    return ExtractConfig(**(defaults | fields))


def digits() -> Tensor:
    data = Pipeline(DataConfig(), 0, Shards())
    return torch.cat([images for images, _ in data.evaluation(data.test)])


def load_without_adn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    with monkeypatch.context() as patch:
        patch.setattr(models, "entry_points", lambda **_: ())
        return weights.from_pretrained(folder)


@pytest.mark.parametrize("skip", [(False,) * 3, MIXED, (True,) * 3])
@pytest.mark.usefixtures("few_images")
def test_a_configuration_is_written_as_a_plain_network(
    skip: tuple[bool, ...], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "".join("FT"[flag] for flag in skip)
    returned = main(extraction(trained, tmp_path / "plain", skip_cfg=skip))
    net, plain = weights.from_pretrained(trained / "model"), load_without_adn(tmp_path / "plain", monkeypatch)
    assert not isinstance(plain, AdaptiveNet)
    assert isinstance(net, AdaptiveNet)
    images = digits()
    with torch.inference_mode():
        assert torch.equal(plain(images), returned(images))
        torch.testing.assert_close(plain(images), net(images, skip), rtol=0, atol=1e-4)

    whole, part = (weights.read_config(folder) for folder in (trained / "model", tmp_path / "plain"))
    assert part["preprocessing"] == whole["preprocessing"]
    assert part["class_names"] == whole["class_names"] == list("0123456789")
    measured = whole["metrics"]["configurations"][name]
    assert part["metrics"] == {key: measured[key] for key in ("top1", "top5", "loss", "images")}
    assert part["costs"]["macs_per_image"] == measured["macs"]
    assert part["costs"]["parameters"] == measured["parameters"]
    assert name in part["description"]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (trained / "model", tmp_path / "plain")]
    assert sizes[1] < sizes[0]
    assert evaluate(EvalConfig(model=str(tmp_path / "plain"))).top1 == measured["top1"]


def test_sizes_and_times_are_printed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(extraction(trained, tmp_path / "plain", repeats=2, batch_size=3))
    net = weights.from_pretrained(trained / "model")
    assert isinstance(net, AdaptiveNet)
    plain, x = extract(net, MIXED), torch.zeros(1, 1, 8, 8)
    printed = capsys.readouterr().out
    for number in (
        costs.count_parameters(net),
        costs.count_parameters(plain),
        costs.macs(net.net, x),
        costs.macs(plain, x),
    ):
        assert f"{number:,}" in printed
    assert f"{costs.macs(net.net, x) / costs.macs(plain, x):.2f}" in printed
    assert "batch 1 " in printed
    assert "batch 3 " in printed
    main(extraction(trained, tmp_path / "untimed"))
    printed = capsys.readouterr().out
    assert "latency" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("next: ")]
    _, script, *given = shlex.split(line)
    assert script == "resless-fold"
    succeeded(resless.cli.fold, *given, "--repeats", "0", cwd=tmp_path)
    assert any(path.name.endswith("-fast") for path in tmp_path.iterdir())


def test_a_folder_that_exists_is_refused_before_anything_else(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").write_text("mine")
    for model in ("nowhere", str(trained / "model")):
        with pytest.raises(InputError, match="plain exists and is not empty: choose another folder"):
            main(extraction(trained, tmp_path / "plain", model=model))
        with pytest.raises(InputError, match="is not a model folder, for it holds other files: it is not overwritten"):
            main(extraction(trained, tmp_path / "plain", model=model, overwrite=True))
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["notes.txt"]
    main(extraction(trained, tmp_path / "other"))
    before = (tmp_path / "other" / "model.safetensors").read_bytes()
    main(extraction(trained, tmp_path / "other", skip_cfg=(True,) * 3, overwrite=True))
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"skip_cfg": (True, True)},
            r"skip is \(True, True\), but must be 3 times True or False, one for each stage; they",
        ),
        ({"model": "nowhere"}, "nowhere is not a folder"),
        ({"model": "DENSE"}, "holds a ResNet, which has one depth: nothing is to be extracted"),
        ({"model": "UNSEEN"}, "does not tell the size of its images: save it again with an `example`"),
    ],
)
def test_what_cannot_be_extracted(fields: dict[str, Any], message: str, trained: Path, tmp_path: Path) -> None:
    folders = {"DENSE": tmp_path / "dense", "UNSEEN": tmp_path / "unseen"}
    weights.save_pretrained(models.create("resnet14", in_channels=1), folders["DENSE"])
    weights.save_pretrained(create("resnet14", num_classes=10, in_channels=1), folders["UNSEEN"])
    if fields.get("model") in folders:
        fields = fields | {"model": str(folders[fields["model"]])}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        main(extraction(trained, tmp_path / "plain", **fields))
    assert sorted(tmp_path.rglob("*")) == before


# --- statistics computed anew


@pytest.mark.usefixtures("few_images")
def test_a_folder_gets_the_statistics_that_the_evaluation_computes_anew(trained: Path, tmp_path: Path) -> None:
    net, described = weights.from_pretrained(trained / "model"), weights.read_config(trained / "model")
    assert isinstance(net, AdaptiveNet)
    for norm in batch_norms(net):  # no images' statistics any more
        norm.running_mean.add_(1)
        norm.running_var.mul_(4)
    kept = {key: described[key] for key in ("preprocessing", "metrics")}
    weights.save_pretrained(net, tmp_path / "model", example=torch.zeros(1, 1, 8, 8), **kept)
    shared = ["--model", "model", "--recalibrate-bn", "200", "--skip-cfg", "False", "True", "True"]
    succeeded(cli.extract, *shared, "--output", "plain", "--repeats", "0", cwd=tmp_path)
    succeeded(cli.evaluate, *shared, "--output", "eval.json", cwd=tmp_path)

    expected, data = extract(net, MIXED), Pipeline(DataConfig(), 0, Shards(), described["preprocessing"])
    recalibrate(expected, calibration_batches(data, 200, 256), accelerator("no"))
    state, found = expected.state_dict(), weights.from_pretrained(tmp_path / "plain").state_dict()
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(found[key], tensor)
    measured = json.loads((tmp_path / "eval.json").read_text())["FTT"]
    assert evaluate(EvalConfig(model=str(tmp_path / "plain"))).loss == pytest.approx(measured["loss"], rel=1e-5)
    assert weights.read_config(tmp_path / "plain")["metrics"] == {}, "what is known was measured with others"


def test_images_are_looked_for_only_where_they_are_needed(trained: Path, tmp_path: Path) -> None:
    given = ["--model", str(trained / "model"), "--skip-cfg", "True", "True", "True", "--repeats", "0"]
    given += ["--output", "plain", "--dataset", "cifar10", "--data-dir", "nowhere"]
    assert "nowhere" in refused(cli.extract, *given, "--recalibrate-bn", "9", cwd=tmp_path)
    succeeded(cli.extract, *given, cwd=tmp_path)


def test_images_and_networks_that_do_not_fit_are_not_recalibrated(
    trained: Path, make: Callable[[str], AdaptiveNet], picture_folder: Callable[..., str], tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"recalibrate_bn": 9, "data": DataConfig(picture_folder(8))}
    with pytest.raises(InputError, match="but resnet14 was trained on 1 x any size in 10 classes: give its --dataset"):
        main(extraction(trained, tmp_path / "plain", **fields))
    vit = make("vit")
    with pytest.raises(InputError, match="--recalibrate-bn is 9, but must be 0 for x, which has no batch norm"):
        recalibrate_as_evaluated(extract(vit, vit.base_skip), extraction(trained, tmp_path, model="x", **fields), {})
    assert list(tmp_path.iterdir()) == []


# --- ONNX


@pytest.mark.parametrize("missing", onnx.PACKAGES)
def test_without_the_packages_for_onnx_nothing_is_written(
    missing: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == missing else object())
    config = extraction(trained, tmp_path / "plain", onnx=str(tmp_path / "x.onnx"))
    with pytest.raises(InputError, match=f"^--onnx needs {missing}: pip install {missing}$"):
        main(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx.PACKAGES),
    reason="needs onnx, onnxscript and onnxruntime",
)
@pytest.mark.parametrize("family", ["TRAINED", "mobilenet", "swin", "vit"])
def test_an_onnx_file_gives_the_same_outputs_at_any_batch_size(
    family: str, trained: Path, make: Callable[[str], AdaptiveNet], tmp_path: Path
) -> None:
    import onnxruntime

    path = tmp_path / "x.onnx"
    if family == "TRAINED":
        plain = main(extraction(trained, tmp_path / "plain", onnx=str(path)))
        example = torch.zeros(1, 1, 8, 8)
    else:
        net = make(family)
        plain, example = extract(net, net.base_skip), torch.zeros(1, 3, 32, 32)
        onnx.export(plain, torch.randn(2, 3, 32, 32), path)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 2, 5):
        images = torch.randn(count, *example.shape[1:])
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(found), plain(images), rtol=0, atol=1e-4)


def test_an_extraction_can_be_repeated(trained: Path, tmp_path: Path) -> None:
    config = extraction(trained, tmp_path / "one")
    main(config)
    main(replace(config, output=str(tmp_path / "two")))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
