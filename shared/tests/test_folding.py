"""Batch norms folded into the layers before them: equal outputs, what stays, model folders, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from resless import cli, models, weights
from resless.calibrate import recalibrate
from resless.errors import InputError
from resless.folding import fold
from resless.models import folded
from resless.outputs import check_equal
from resless.testing import refused, succeeded
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SMALL = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in net.modules())


def unsettled(net: nn.Module) -> nn.Module:
    """With batch norms in which every number matters."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(std=0.3)
    return net.eval()


def created(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return unsettled(models.create(name, **options))


class Pair(nn.Module):
    """A layer and the batch norm behind it; the rest is for subclasses."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_the_closed_form(bias: bool, affine: bool) -> None:
    norm = nn.BatchNorm1d(2, eps=0.5, affine=affine)
    norm.running_mean, norm.running_var = torch.tensor([1.0, -2.0]), torch.tensor([3.5, 0.5])  # roots: 2 and 1
    if affine:
        norm.weight.data, norm.bias.data = torch.tensor([4.0, 3.0]), torch.tensor([0.5, 0.25])
    layer = nn.Linear(2, 2, bias)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    if bias:
        layer.bias.data = torch.tensor([7.0, 5.0])
    found = fold(Pair(layer, norm), torch.randn(3, 2)).layer
    scales, shifts = ((2.0, 3.0), (0.5, 0.25)) if affine else ((0.5, 1.0), (0.0, 0.0))
    expected = [[1 * scales[0], 2 * scales[0]], [3 * scales[1], 4 * scales[1]]]
    assert found.weight.tolist() == expected
    before = (7.0, 5.0) if bias else (0.0, 0.0)
    assert found.bias.tolist() == [(before[0] - 1) * scales[0] + shifts[0], (before[1] + 2) * scales[1] + shifts[1]]


@pytest.mark.parametrize(
    ("name", "side", "before", "after"),
    [
        ("resnet20", 16, 19, 0),
        ("resnet11", 16, 13, 0),  # bottlenecks, and three projections
        ("resnext11_4x4", 16, 13, 0),
        ("vgg11_bn", 32, 8, 0),
        ("preresnet8", 16, 7, 4),  # in each of three blocks the first one and, in the head, the last
        ("wrn10_2", 16, 7, 3),  # its stem is read by a batch norm alone
        ("densenet_bc_10_4", 16, 9, 6),  # three layers, two transitions, head
        ("torchvision/resnet18", 64, 20, 0),
        ("torchvision/mobilenet_v2", 64, 52, 0),
        ("torchvision/mnasnet0_5", 64, 52, 0),
    ],
)
def test_networks_stay_equal(name: str, side: int, before: int, after: int, tmp_path: Path) -> None:
    options = {"shortcut": "avgpool"} if name == "resnet20" else {}
    net = created(name, **options)
    images = torch.randn(2, 3, side, side)
    small = fold(net, images)  # raises, if the outputs differ
    assert (norms(net), norms(small)) == (before, after)
    assert type(small) is type(net)
    weights.save_pretrained(small, tmp_path / "model", example=images)
    loaded = weights.from_pretrained(tmp_path / "model")
    assert loaded.spec == small.spec
    assert torch.equal(loaded(images), small(images))


def part(in_width: int, out_width: int, inputs=None, outputs=None) -> dict:
    return {"in_width": in_width, "inputs": inputs, "out_width": out_width, "outputs": outputs, "bias": False}


def shrunk(**layers: dict) -> nn.Module:
    named = {path.replace("_", "."): described for path, described in layers.items()}
    return created(
        "shrunk", base="resnet8", base_options={}, layers={f"layer1.0.{path}": named[path] for path in named}
    )


def test_layers_that_write_some_channels_take_their_norms_in(tmp_path: Path) -> None:
    net = shrunk(conv1=part(16, 5, inputs=(1, 3)), bn1=part(5, 5), conv2=part(5, 2), bn2=part(2, 16, outputs=(0, 2)))
    small = fold(net, SMALL)
    assert norms(small) == 0
    block = small.layer1[0]
    assert block.residual(torch.randn(2, 16, 5, 5))[:, [1, *range(3, 16)]].abs().max() == 0
    weights.save_pretrained(small, tmp_path / "model")
    assert torch.equal(weights.from_pretrained(tmp_path / "model")(SMALL), small(SMALL))


def test_norms_of_more_than_a_layer_writes_stay() -> None:
    """Channels that nobody wrote are shifted too."""
    net = shrunk(conv1=part(16, 5, outputs=(0, 2, 4)), bn1=part(5, 5), conv2=part(5, 16), bn2=part(16, 16))
    small = fold(net, SMALL)
    assert isinstance(small.layer1[0].bn1, nn.BatchNorm2d)
    assert norms(small) == 1


class Idle(Pair):
    """With what does nothing in eval mode in between."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer, norm)
        self.dropout, self.nothing = nn.Dropout2d(0.5), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.nothing(self.dropout(self.layer(x))))


class Alias(Pair):
    """Whose batch norm has two names, of which one is used."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer, norm)
        self.other = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.layer(x))


@pytest.mark.parametrize("kind", [Idle, Alias])
def test_a_network_without_a_name_is_folded_too(kind: type[Pair]) -> None:
    small = fold(unsettled(kind(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))), SMALL)
    assert norms(small) == 0
    assert not hasattr(small, "spec")
    with pytest.raises(InputError, match="it cannot be folded again"):
        fold(small, SMALL)


class ReadTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y) + y


class CalledTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.layer(x)))


class Dependent(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) if x.mean() > 0 else x


class TwoNorms(Pair):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer, norm)
        self.other = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, second: bool = False) -> Tensor:
        return (self.other if second else self.norm)(self.layer(x))


@pytest.mark.parametrize(
    ("kind", "norm", "message"),
    [
        (ReadTwice, nn.BatchNorm2d(3), "the ReadTwice has nothing to fold: no batch norm directly follows"),
        (CalledTwice, nn.BatchNorm2d(3), "nothing to fold"),
        (Pair, nn.BatchNorm2d(3, track_running_stats=False), "nothing to fold"),
        (Pair, nn.Identity(), "nothing to fold"),
        (Dependent, nn.BatchNorm2d(3), "the Dependent cannot be folded: torch.fx cannot trace it"),
        (TwoNorms, nn.BatchNorm2d(3), "a pass uses other 0 times, not once"),
    ],
)
def test_what_cannot_be_folded_is_refused(kind: type[Pair], norm: nn.Module, message: str) -> None:
    net = kind(nn.Conv2d(3, 3, 1), norm)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(InputError, match=message):
        fold(net, SMALL)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_the_network_is_left_as_it_was() -> None:
    net = created("resnet8").train()
    net.layer1.eval()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    small = fold(net, SMALL)
    assert net.training
    assert not net.layer1[0].training
    assert not small.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_batch_norms_that_are_left_are_not_recalibrated() -> None:
    small = fold(created("preresnet8"), SMALL)
    assert norms(small) > 0
    with pytest.raises(InputError, match="it cannot be recalibrated"):
        recalibrate(small, [], Accelerator(cpu=True))


def test_a_diverged_network_is_refused() -> None:
    net = created("resnet8")
    net.linear.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="the network's outputs are not finite"):
        fold(net, SMALL)


def test_outputs_that_differ_are_seen_and_modes_put_back() -> None:
    net, other = created("resnet8").train(), created("resnet8")
    other.linear.bias.data[0] += 1e-3
    with pytest.raises(RuntimeError, match=r"the other network differs by .* of the largest logit: this is a defect"):
        check_equal(net, other, SMALL, 1e-4, "other")
    check_equal(net, other, SMALL, 2e-3, "other")
    with pytest.raises(RuntimeError, match="channels"):
        check_equal(net, other, SMALL[:, :1], 1e-4, "other")
    assert net.training
    assert not other.training


def test_double_precision_stays() -> None:
    net = created("resnet8").double()
    assert fold(net, SMALL.double()).conv1.bias.dtype == torch.float64


def test_a_folded_network_is_not_trained_on() -> None:
    small = fold(created("resnet8"), SMALL)
    for net in (small, nn.Sequential(small)):
        with pytest.raises(InputError, match="folded, for inference only: it cannot be trained; give the one from"):
            folded.check_unfolded(net, "trained")
    folded.check_unfolded(created("resnet8"), "trained")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "folded"}, "base is 'folded'"),
        (
            {"base": "shrunk", "base_options": {"base": "folded", "base_options": {}, "layers": {}}},
            "base is 'folded', but must be the network that was shrunk at first, not folded",
        ),
        ({"base": "resnet9"}, "depth is 9"),
        ({"base_options": []}, "base_options is"),
        ({"norms": []}, "norms is"),
        ({"norms": {"conv9": "bn1"}}, "unknown layer of resnet8 'conv9'"),
        ({"norms": {"conv1": "bn9"}}, "unknown batch norm of resnet8 'bn9'"),
        ({"norms": {"conv1": ["bn1"]}}, "unknown batch norm of resnet8"),
        ({"norms": {"conv1": "layer3.0.bn1"}}, "a batch norm of 16 channels, but it has 64"),
        ({"norms": {"conv1": "bn1", "layer1.0.conv1": "bn1"}}, "names each batch norm once"),
    ],
)
def test_descriptions_that_fit_no_network_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.create("folded", **({"base": "resnet8", "base_options": {}, "norms": {"conv1": "bn1"}} | changes))


# --- resless-fold


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    weights.save_pretrained(
        created("resnet8"),
        folder,
        preprocessing={"mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]},
        metrics={"top1": 0.5},
        description="Trained.",
        example=SMALL,
    )
    return folder


def test_script_writes_a_folder_that_another_process_loads(dense: Path, tmp_path: Path) -> None:
    timed = ["--repeats", "2", "--batch-size", "2", "--channels-last"]
    printed = succeeded(cli.fold, "--model", str(dense), "--output", "fast", *timed, cwd=tmp_path)
    assert "float32, channels_last" in printed
    assert "batch 2" in printed
    config = json.loads((tmp_path / "fast" / "config.json").read_text())
    assert config["metrics"] == {"top1": 0.5}
    assert config["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert config["description"] == (
        "Trained. For inference: batch norms are folded into the layers before them, with equal outputs."
    )
    expected = weights.from_pretrained(dense)(SMALL)
    assert torch.allclose(weights.from_pretrained(tmp_path / "fast")(SMALL), expected, rtol=1e-4, atol=1e-4)


def test_script_writes_onnx(dense: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra that exports ONNX is not installed")
    arguments = ("--output", "fast", "--repeats", "0", "--export", "onnx")
    assert "wrote fast.onnx" in succeeded(cli.fold, "--model", str(dense), *arguments, cwd=tmp_path)
    assert (tmp_path / "fast.onnx").stat().st_size > 0
    shutil.rmtree(tmp_path / "fast")
    sentence = refused(cli.fold, "--model", str(dense), *arguments, cwd=tmp_path)
    assert sentence.startswith("error: fast.onnx, which --export onnx writes, exists: choose another --output, or add")
    assert not (tmp_path / "fast").exists()
    succeeded(cli.fold, "--model", str(dense), *arguments, "--overwrite", cwd=tmp_path)


def test_script_refuses(dense: Path, tmp_path: Path) -> None:
    weights.save_pretrained(created("resnet8"), tmp_path / "shapeless")
    weights.save_pretrained(created("lenet5", in_channels=1), tmp_path / "lenet", example=torch.zeros(1, 1, 28, 28))
    for arguments, message in (
        (("--model", "shapeless", "--output", "fast"), "shapeless does not tell the size of its images"),
        (("--model", "lenet", "--output", "fast"), "the LeNet5 has nothing to fold"),
        (("--model", str(dense), "--output", "lenet"), "lenet exists"),
        (("--model", str(dense), "--output", "fast", "--repeats", "1"), "--repeats is 1, but must be 0, or 2 or more"),
        (("--model", "nowhere", "--output", "fast"), "nowhere is not a folder"),
    ):
        assert message in refused(cli.fold, *arguments, cwd=tmp_path)
    succeeded(cli.fold, "--model", str(dense), "--output", "fast", "--repeats", "0", cwd=tmp_path)
    again = refused(cli.fold, "--model", "fast", "--output", "faster", cwd=tmp_path)
    assert "it cannot be folded again" in again
