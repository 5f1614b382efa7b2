"""Where compacted networks go: saved and reloaded, exported and trained on, of every family."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from deephoyer import cli
from deephoyer.compact import compact
from deephoyer.config import PruneConfig
from deephoyer.prune import cut_as_asked
from resless import costs, models, onnx, weights
from resless.data import load
from resless.models import shrunk
from resless.testing import environment, succeeded
from torch import Tensor, nn
from torch.nn import functional as F

FAMILIES = {
    "resnet8": ({"shortcut": "subsample"}, 8),
    "preresnet8": ({"shortcut": "avgpool_centred"}, 8),
    "wrn10_1": ({}, 8),
    "resnext11_4x4": ({}, 8),
    "densenet_7_4": ({}, 8),
    "densenet_bc_16_4": ({}, 8),  # without one of its layers
    "vgg11_bn": ({}, 8),
    "alexnet": ({}, 16),
    "torchvision/resnet18": ({}, 33),
}
"""A network of each family: its options, and the side of its images."""

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in onnx.PACKAGES), reason="needs onnx, onnxscript and onnxruntime"
)


def digits(name: str, count: int = 16) -> Tensor:
    """Real images, [N, 3, H, W], as large as those of a network: the embedded digits, from -1 to 1."""
    _, size = FAMILIES[name]
    pixels = load("digits", "test").images[:count] / 127.5 - 1
    return F.interpolate(pixels, (size, size), mode="bilinear").repeat(1, 3, 1, 1)


@cache
def pruned(name: str) -> nn.Module:
    """A network with statistics, scales and shifts as after training, about half of its groups cut."""
    torch.manual_seed(0)
    options, _ = FAMILIES[name]
    model = models.create(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model(digits(name))
        if name == "densenet_bc_16_4":
            model.dense2[0].conv2.weight.zero_()
    config = PruneConfig(model=("any",), rule="group", threshold="rms", sensitivity=1.0)
    cut_as_asked(model.eval(), config, digits(name, 1))
    return model


@cache
def compacted(name: str) -> nn.Module:
    """The same, smaller: not to be changed."""
    return compact(pruned(name), digits(name))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def logits_of(file: Path, images: Tensor) -> Tensor:
    """What onnxruntime gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


@needs_onnx
def test_the_command_writes_onnx(tmp_path: Path) -> None:
    weights.save_pretrained(pruned("resnet8"), tmp_path / "pruned", example=digits("resnet8", 1))
    arguments = ("--model", "pruned", "--output", "small", "--repeats", "0", "--export", "onnx")
    said = succeeded(cli.compact, *arguments, cwd=tmp_path)
    assert "wrote small.onnx, whose outputs onnxruntime finds equal" in said
    with torch.no_grad():
        expected = pruned("resnet8")(digits("resnet8"))
    assert_equal(logits_of(tmp_path / "small.onnx", digits("resnet8")), expected)


def test_what_is_exported_is_smaller_and_reads_some_channels_where_there_are_branches() -> None:
    for name in FAMILIES:
        assert costs.count_parameters(compacted(name)) < 0.75 * costs.count_parameters(pruned(name)), name
        slim = any(isinstance(module, shrunk.Slim) for module in compacted(name).modules())
        if name == "densenet_bc_16_4":  # what is left of it reads all that there is
            assert models.origin(compacted(name).spec).options["kept_layers"] == (0, 1, 3, 4, 5)
        else:
            assert slim == (name not in ("alexnet", "vgg11_bn")), name


@torch.no_grad()
def test_a_fresh_process_rebuilds_every_network_from_its_folder(tmp_path: Path) -> None:
    folders = {name: name.replace("/", "-") for name in FAMILIES}
    for name, folder in folders.items():
        weights.save_pretrained(compacted(name), tmp_path / folder, example=digits(name, 1))
    torch.save({folder: digits(name) for name, folder in folders.items()}, tmp_path / "images.pt")
    code = (
        "import torch; from resless.weights import from_pretrained;"
        "images = torch.load('images.pt', weights_only=True);"
        "torch.save({folder: from_pretrained(folder)(images[folder]) for folder in images}, 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert len(found) == len(FAMILIES)
    for name, folder in folders.items():
        assert torch.equal(found[folder], compacted(name)(digits(name))), name


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_torch_export_takes_a_compacted_network(name: str) -> None:
    exported = torch.export.export(compacted(name), (digits(name),)).module()
    assert_equal(exported(digits(name)), compacted(name)(digits(name)))


@needs_onnx
@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_an_onnx_file_gives_the_logits_of_a_compacted_network(name: str, tmp_path: Path) -> None:
    onnx.export(compacted(name), digits(name, 2), tmp_path / "small.onnx")
    assert_equal(logits_of(tmp_path / "small.onnx", digits(name)), compacted(name)(digits(name)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_compacted_network_is_trained_on(name: str) -> None:
    small = copy.deepcopy(compacted(name)).train()
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    loss = F.cross_entropy(small(digits(name)), load("digits", "test").labels[:16])
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    unchanged = [name for name, parameter in small.named_parameters() if torch.equal(parameter, before[name])]
    assert not unchanged
