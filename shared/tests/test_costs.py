"""MACs and parameters: expected numbers are derived here from shapes, and compared with what ran."""

from __future__ import annotations

import pytest
import torch
from resless import costs, models
from torch import Tensor, nn
from torch.nn import functional as F


def resnet110_macs() -> int:
    """Basic blocks, 18 a stage, 1x1 convolutions between stages, 32x32 pixels."""
    total = 3 * 16 * 9 * 32**2
    for width, size, inputs in ((16, 32, 16), (32, 16, 16), (64, 8, 32)):
        first = inputs * width * 9 + (inputs * width if inputs != width else 0)
        total += (first + 35 * width * width * 9) * size**2
    return total + 64 * 10


def resnet164_macs() -> int:
    """Bottleneck blocks, 18 a stage; the 3x3 convolution has the stride, so the 1x1 before it sees the larger image."""
    total = 3 * 16 * 9 * 32**2
    for width, size, inputs, input_size in ((16, 32, 16, 32), (32, 16, 64, 32), (64, 8, 128, 16)):
        total += inputs * width * input_size**2
        total += (width * width * 9 + width * 4 * width + inputs * 4 * width) * size**2
        total += 17 * (4 * width * width + width * width * 9 + width * 4 * width) * size**2
    return total + 256 * 10


@pytest.mark.parametrize(
    ("name", "channels", "size", "derived", "published"),
    [
        ("lenet_300_100", 1, 28, 784 * 300 + 300 * 100 + 100 * 10, 266_200),
        ("lenet5", 1, 28, 20 * 25 * 24**2 + 50 * 20 * 25 * 8**2 + 800 * 500 + 500 * 10, 2_293_000),
        ("resnet110", 3, 32, resnet110_macs(), 253_149_824),
        ("resnet164", 3, 32, resnet164_macs(), 247_646_720),
    ],
)
def test_macs_of_the_papers_networks(name: str, channels: int, size: int, derived: int, published: int) -> None:
    model = models.create(name, in_channels=channels)
    assert derived == published
    assert costs.macs(model, torch.zeros(1, channels, size, size)) == published


def test_macs_are_summed_over_the_batch_and_given_per_layer() -> None:
    model = models.create("lenet5", in_channels=1, image_size=16, widths=(3, 5, 7))
    expected = {
        "conv1": 6 * 3 * 25 * 12**2,
        "conv2": 6 * 5 * 3 * 25 * 2**2,
        "fc1": 6 * 5 * 7,
        "fc2": 6 * 7 * 10,
    }
    images = torch.zeros(6, 1, 16, 16)
    assert costs.layer_macs(model, images) == expected
    assert costs.macs(model, images) == sum(expected.values())
    parameters = {cost.name: cost.parameters for cost in costs.layer_costs(model, images)}
    assert parameters == {"conv1": 78, "conv2": 380, "fc1": 42, "fc2": 80}
    values = {cost.name: cost.values for cost in costs.layer_costs(model, images)}
    # conv1 reads the image and writes 12 x 12, which are pooled to 6 x 6 for conv2, whose 2 x 2 are pooled to one.
    assert values == {"conv1": 6 * (16**2 + 3 * 12**2), "conv2": 6 * (3 * 6**2 + 5 * 2**2), "fc1": 72, "fc2": 102}
    assert sum(parameters.values()) == costs.count_parameters(model)


def test_groups_strides_dilation_and_other_dimensions() -> None:
    grouped = nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=1, groups=4)
    assert costs.macs(grouped, torch.zeros(2, 8, 9, 11)) == 2 * 12 * 5 * 9 * (8 // 4) * 15
    depthwise = nn.Conv2d(8, 8, 3, groups=8, dilation=2)
    assert costs.macs(depthwise, torch.zeros(1, 8, 7, 7)) == 8 * 3 * 3 * 9
    assert costs.macs(nn.Conv1d(2, 3, 4), torch.zeros(1, 2, 10)) == 3 * 7 * 2 * 4
    assert costs.macs(nn.Conv3d(2, 3, 2), torch.zeros(1, 2, 4, 4, 4)) == 3 * 27 * 2 * 8
    assert costs.macs(nn.Linear(5, 7), torch.zeros(2, 3, 5)) == 2 * 3 * 5 * 7


class Skipping(nn.Module):
    """Runs a layer for the positive images only, another one twice and a third one never."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        chosen = x[:, 0] > 0
        x[chosen] = self.sometimes(x[chosen])
        return self.twice(self.twice(x))


def test_only_what_ran_is_counted() -> None:
    x = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [-1.0]]).expand(5, 4)
    assert costs.layer_macs(Skipping(), x) == {"sometimes": 3 * 16, "twice": 2 * 5 * 16, "never": 0}


def test_blocks_that_are_skipped_for_a_part_of_the_batch_cost_that_part() -> None:
    model = models.create("resnet8", shortcut="avgpool").eval()

    class FirstBlockForHalf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.resnet = model

        def forward(self, x: Tensor) -> Tensor:
            x = self.resnet.stem(x)
            first, *others = self.resnet.blocks()
            x = torch.cat([first(x[:2]), first.shortcut(x[2:])])
            for block in others:
                x = block(x)
            return self.resnet.head(x)

    images = torch.zeros(4, 3, 8, 8)
    saved = 2 * 2 * 16 * 16 * 9 * 8**2
    assert costs.macs(model, images) - costs.macs(FirstBlockForHalf(), images) == saved


def test_attention_counts_with_its_products() -> None:
    tokens, width, hidden = 7, 8, 12
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    projections = tokens * width * (3 * width + width)
    attention = 2 * tokens * tokens * width
    feed_forward = 2 * tokens * width * hidden
    x = torch.zeros(3, tokens, width)
    assert costs.macs(layer, x) == 3 * (projections + attention + feed_forward)
    assert costs.layer_macs(layer, x)["<aten.bmm>"] == 3 * attention
    assert torch.backends.mha.get_fastpath_enabled()


class Product(nn.Module):
    def __init__(self, product: str) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        if self.product == "mv":
            return torch.mv(x, x[0])
        if self.product == "functional":
            return F.linear(x, x)
        return torch.einsum("ij,kj->ik", x, x)


def test_products_outside_layers_are_counted_by_operator() -> None:
    assert sum(costs.layer_macs(Product("einsum"), torch.zeros(4, 4)).values()) == 4**3
    assert sum(costs.layer_macs(Product("functional"), torch.zeros(3, 5)).values()) == 3 * 5 * 3


def test_operators_that_cannot_be_counted_are_named() -> None:
    with pytest.raises(RuntimeError, match="operators cannot be counted: mv"):
        costs.macs(Product("mv"), torch.zeros(4, 4))


class HalfLinear(nn.Linear):
    """Computes only half of what its shape says."""

    def forward(self, x: Tensor) -> Tensor:
        half = self.out_features // 2
        return F.pad(F.linear(x, self.weight[:half], self.bias[:half]), (0, self.out_features - half))


def test_layers_that_do_not_run_as_their_shape_says_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), HalfLinear(4, 6))
    with pytest.raises(RuntimeError, match="disagree: 1 has 24 by its shapes, 12 by its operators"):
        costs.macs(model, torch.zeros(1, 4))


def test_counting_changes_nothing() -> None:
    model = models.create("resnet8")
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    costs.macs(model, torch.randn(4, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_forward_restores_everything() -> None:
    model = models.create("resnet8")
    with pytest.raises(RuntimeError):
        costs.macs(model, torch.zeros(1, 4, 8, 8))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert costs.count_parameters(model) == 16 + 4 + 4 + 8
