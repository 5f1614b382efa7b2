"""The authors' checkpoints: their names, and the numbers that their networks give."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adn.model import AdaptiveNet, create, load_original
from adn.original import original_keys
from resless.errors import InputError
from resless.testing import shared_data
from torch import Tensor

STAGES = {"resnet50": 4, "mobilenet_v2": 5, "swin_t": 4, "vit_b_16": 4}


def golden(name: str) -> dict[str, Any]:
    layouts = json.loads(shared_data("golden", "adn.json").read_text())
    assert layouts.keys() == STAGES.keys()
    return layouts[name]


def fill_module() -> Any:
    spec = importlib.util.spec_from_file_location("golden_fill", shared_data("golden", "fill.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(name: str) -> dict[str, Tensor]:
    """A state dict of the authors' layout, of weights that their names determine."""
    fill, keys = fill_module().fill, golden(name)["keys"]
    assert len(keys) > 100
    return {key: fill(key, tuple(shape), getattr(torch, dtype.split(".")[1])) for key, shape, dtype in keys}


@pytest.mark.parametrize("name", STAGES)
def test_every_tensor_of_the_authors_has_its_place(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    own = model.state_dict()
    theirs = original_keys(model.net, own)
    layout = golden(name)
    found = sorted([theirs[key], list(tensor.shape), str(tensor.dtype)] for key, tensor in own.items())
    assert found == sorted(layout["keys"])
    assert len(set(theirs.values())) == len(own), "the map can be read both ways"
    assert sum(parameter.numel() for parameter in model.parameters()) == layout["params"]
    assert model.num_skippable_stages == STAGES[name]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_the_authors_logits_are_reproduced(name: str, tmp_path: Path) -> None:
    torch.save(filled(name), tmp_path / "theirs.pth")
    model = create(name).eval()
    load_original(model, tmp_path / "theirs.pth")
    images = fill_module().image_batch(2, 224, 7)
    results = golden(name)["results"]
    assert [result["skip"] for result in results] == [list(model.super_skip), list(model.base_skip)]
    with torch.inference_mode():
        for result in results:
            logits, expected = model(images, result["skip"]), torch.tensor(result["logits"])
            assert expected.shape == (2, 8), "of the first classes"
            assert (logits[:, :8] - expected).abs().max() < 1e-4
            assert float(logits.norm()) == pytest.approx(result["norm"], rel=1e-5)
            assert float(logits.abs().max()) == pytest.approx(result["absmax"], rel=1e-5)


def test_the_transformers_weights_of_the_authors_run_in_any_mix(tmp_path: Path) -> None:
    """They come without logits: what can be seen is that the weights arrive where their names say."""
    torch.manual_seed(0)
    model = create("swin_t").eval()
    table = model.net.features[1][0].attn.relative_position_index.clone()
    state = filled("swin_t")
    # An index table is no weight: a real file holds the one that the network computes.
    state |= {key: table for key in state if key.endswith("relative_position_index")}
    torch.save(state, tmp_path / "theirs.pth")
    load_original(model, tmp_path / "theirs.pth")
    own = model.state_dict()
    assert torch.equal(own["net.features.0.2.weight"], state["pre.2.weight"])
    assert torch.equal(own["net.features.5.3.mlp.0.weight"], state["features.4.3.mlp.0.weight"])
    assert torch.equal(own["skip_norms.features.4.norm.bias"], state["features.3.norm_skip.bias"])
    with torch.inference_mode():
        outputs = [model(torch.ones(1, 3, 32, 32), skip) for skip in ((False, True, False, True), model.base_skip)]
    assert all(torch.isfinite(output).all() for output in outputs)
    assert not torch.allclose(*outputs)


def small() -> AdaptiveNet:
    torch.manual_seed(0)
    return create("resnet14", num_classes=3)


def theirs(model: AdaptiveNet) -> dict[str, Tensor]:
    return {name: model.state_dict()[own] + 1 for own, name in original_keys(model.net, model.state_dict()).items()}


def test_a_training_checkpoint_of_the_authors_holds_two_sets_of_weights(tmp_path: Path) -> None:
    model = small()
    last = theirs(model)
    average = {f"module.{key}": tensor + 1 for key, tensor in last.items()} | {"n_averaged": torch.tensor(5)}
    content = {"model": last, "model_ema": average, "epoch": 145, "args": argparse.Namespace(model="resnet14", lr=0.1)}
    torch.save(content, tmp_path / "model_145.pth")
    for ema in (False, True):
        load_original(model, tmp_path / "model_145.pth", ema=ema)
        own = model.state_dict()["skip_norms.layer2.0.bn2.weight"]
        assert torch.equal(own, last["layer2.0.bn2_skip.weight"] + ema)
    torch.save({"model": last}, tmp_path / "last.pth")
    with pytest.raises(InputError, match=r"last\.pth holds no moving average of the weights"):
        load_original(model, tmp_path / "last.pth", ema=True)


def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path: Path) -> None:
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    others = {"deeper": create("resnet20", num_classes=3), "classes": create("resnet14", num_classes=4)}
    for name, other in others.items():
        torch.save(theirs(other), tmp_path / f"{name}.pth")
    torch.save({"a": 1}, tmp_path / "plain.pth")
    with pytest.raises(InputError, match=r"deeper.pth does not match the network: it has layer1.1.bn1_skip.bias"):
        load_original(model, tmp_path / "deeper.pth")
    with pytest.raises(InputError, match=r"classes.pth .* it has net.linear.* \[4, 64\] float32 where the network has"):
        load_original(model, tmp_path / "classes.pth")
    with pytest.raises(InputError, match="holds no state dict that can be told apart"):
        load_original(model, tmp_path / "plain.pth")
    with pytest.raises(InputError, match="there is no file"):
        load_original(model, tmp_path / "missing.pth")
    with pytest.raises(InputError, match="a ResNet is no network of adaptive depth"):
        load_original(model.net, tmp_path / "deeper.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
