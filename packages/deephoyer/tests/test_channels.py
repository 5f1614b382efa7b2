"""Channels that come and go together: which they are, which are kept, and what is left of a network."""

from __future__ import annotations

import pytest
import torch
from deephoyer.channels import coupling
from deephoyer.compact import compact
from deephoyer.prune import cut, structure
from deephoyer.report import prunable
from resless import costs, models
from resless.errors import InputError
from resless.models import shrunk
from torch import nn

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_stage_has_the_same_channels_everywhere() -> None:
    found = coupling(models.create("resnet14", shortcut="conv"), IMAGES)
    stream = found.rows["conv1.weight"]
    for block in ("layer1.0", "layer1.1"):
        assert torch.equal(found.columns[f"{block}.conv1.weight"], stream)
        assert torch.equal(found.rows[f"{block}.conv2.weight"], stream)
        inner = found.rows[f"{block}.conv1.weight"]
        assert torch.equal(found.columns[f"{block}.conv2.weight"], inner)
        assert not set(inner.tolist()) & set(stream.tolist())
    assert torch.equal(found.columns["layer2.0.conv1.weight"], stream)
    assert not set(found.rows["layer2.0.conv2.weight"].tolist()) & set(stream.tolist())
    assert set(found.fixed.tolist()) == {
        *found.columns["conv1.weight"].tolist(),
        *found.rows["linear.weight"].tolist(),
    }


def test_a_shortcut_that_pads_ties_stages() -> None:
    found = coupling(models.create("resnet8", shortcut="subsample"), IMAGES)
    narrow, wide = found.rows["conv1.weight"], found.rows["layer2.0.conv2.weight"]
    assert torch.equal(wide[8:24], narrow)
    assert not set(wide[:8].tolist()) & set(narrow.tolist())


def test_groups_of_a_grouped_convolution_go_whole() -> None:
    found = coupling(models.create("resnext11_4x4"), IMAGES)
    rows = found.rows["layer1.0.conv2.weight"].view(4, -1)
    assert (rows == rows[:, :1]).all()
    assert len(rows.unique()) == 4
    assert torch.equal(found.rows["layer1.0.conv1.weight"].view(4, -1)[:, 0], rows[:, 0])
    assert "layer1.0.conv2.weight" not in found.columns


class Two(nn.Module):
    """Two convolutions, three channels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).mean((2, 3))


@torch.no_grad()
def test_the_mean_of_a_channels_norms_decides() -> None:
    net = Two()
    net.first.weight.copy_(torch.tensor([1.0, 0.5, 3.0]).view(3, 1, 1, 1))
    net.second.weight.copy_(torch.tensor([[0.0, 3.0, 0.0], [0.5, 4.0, 0.2]]).view(2, 3, 1, 1))
    limits = {"first.weight": 1.0, "second.weight": 2.0}
    norms = [(1.0, 0.5), (0.5, 5.0), (3.0, 0.2)]  # of the filter, and of the input channel
    kept = [((a / 1.0) ** 2 + (b / 2.0) ** 2) / 2 > 1 for a, b in norms]
    assert kept == [False, True, True]
    masks = coupling(net, torch.ones(1, 1, 2, 2)).masks(prunable(net), limits)
    assert masks["first.weight"].flatten().tolist() == kept
    assert masks["second.weight"].view(2, 3).tolist() == [kept, kept]
    all_of_them = coupling(net, torch.ones(1, 1, 2, 2)).masks(prunable(net), limits, round_to=4)
    assert all(mask.all() for mask in all_of_them.values()), "at most all"


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet14", {"shortcut": "conv"}),
        ("resnet14", {"shortcut": "subsample"}),
        ("preresnet11", {"block": "bottleneck"}),
        ("vgg11_bn", {}),
        ("densenet_bc_16_4", {}),
        ("resnext11_4x4", {}),
    ],
)
def test_a_tied_cut_leaves_nothing_to_copy(name: str, options: dict, round_to: int) -> None:
    torch.manual_seed(0)
    model = models.create(name, **options).eval()
    known = structure(model, IMAGES, "tied")
    assert known.coupling is not None
    factors = torch.exp(torch.randn(known.coupling.count))
    with torch.no_grad():
        for tensor, weight in prunable(model).items():
            weight.mul_(factors[known.coupling.rows[tensor]].view(-1, *[1] * (weight.dim() - 1)))
            if tensor in known.coupling.columns:
                weight.mul_(factors[known.coupling.columns[tensor]].view(1, -1, *[1] * (weight.dim() - 2)))
        limits = {
            tensor: 0.8 * float(weight.norm()) / max(weight.shape[:2]) ** 0.5
            for tensor, weight in prunable(model).items()
        }
        cut(model, limits, "tied", known, round_to)
    small = compact(model, IMAGES)  # compares outputs
    assert costs.macs(small, IMAGES[:1]) < 0.9 * costs.macs(model, IMAGES[:1])
    widths = [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]
    if round_to == 8 and name != "densenet_bc_16_4":  # whose layers are 4 channels wide
        assert all(width % 8 == 0 for width in widths)
    copying = [path for path, module in small.named_modules() if isinstance(module, shrunk.Slim)]
    assert all("shortcut" in path for path in copying), "padding shortcuts alone have a place of their own"


def test_groups_count_with_all_of_their_channels_when_widths_are_rounded() -> None:
    torch.manual_seed(0)
    net = models.create("resnext11_4x4")
    masks = coupling(net, IMAGES).masks(prunable(net), dict.fromkeys(prunable(net), 1e6), round_to=8)
    assert not masks["layer1.0.conv2.weight"].any(), "nothing above the limits, and none is a multiple"
    weight = net.layer1[0].conv2.weight
    with torch.no_grad():
        net.layer1[0].conv1.weight[:4] *= 1e9  # the first group of 4 channels is far above them
    masks = coupling(net, IMAGES).masks(prunable(net), dict.fromkeys(prunable(net), 1e6), round_to=8)
    assert int(masks["layer1.0.conv2.weight"].flatten(1).any(dim=1).sum()) == 8 < len(weight)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("net", "image", "message"),
    [
        (Twice(), torch.ones(1, 3, 4, 4), r"cannot follow layer: it runs more than once"),
        (models.create("lenet5"), torch.ones(1, 3, 28, 28), r"--rule is 'tied', but must be group or elementwise"),
    ],
    ids=["a layer that runs twice", "LeNet"],
)
def test_what_cannot_be_tied_is_refused(net: nn.Module, image: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        structure(net, image, "tied")
