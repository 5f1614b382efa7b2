"""Channels that come and go together: which they are, which are kept, and what is left of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from deephoyer import method
from deephoyer.channels import Coupling, coupling
from deephoyer.compact import compact, mac_counter
from deephoyer.config import STRUCTURAL
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
    higher = {name: 3**0.5 * limit for name, limit in limits.items()}
    means = [((a / 1.0) ** 2 + (b / 2.0) ** 2) / 2 / 3 for a, b in norms]
    assert means[1] > 1
    assert means[2] > 1
    assert sum(means) / 3 < 1
    alone = coupling(net, torch.ones(1, 1, 2, 2)).masks(prunable(net), higher)
    assert alone["first.weight"].flatten().tolist() == kept
    together = coupling(net, torch.ones(1, 1, 2, 2)).masks(prunable(net), higher, round_to=4)
    assert not any(mask.any() for mask in together.values()), "a bundle stands or falls by its mean"


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


@torch.no_grad()
def test_room_is_filled_with_bundles_of_what_matters_most() -> None:
    net = nn.Sequential(*(nn.Conv2d(i, o, 1, bias=False) for i, o in ((1, 6), (6, 5), (5, 1))))
    sizes = torch.tensor([0.9, 0.4, 0.8, 5.0, 0.3, 0.7]), torch.tensor([0.6, 6.0, 0.5, 0.1, 0.2])
    net[0].weight.copy_(sizes[0].view(6, 1, 1, 1))
    net[2].weight.copy_(sizes[1].view(1, 5, 1, 1))
    net[1].weight.copy_(sizes[1].view(5, 1, 1, 1) * sizes[0].view(1, 6, 1, 1) / 1e3)  # says the same, by little
    limits = {"0.weight": 1.0, "1.weight": 1.0, "2.weight": 1.0}

    def widths(most: int, round_to: int) -> list[int]:
        def fits(masks: dict[str, torch.Tensor]) -> bool:
            return int(masks["1.weight"].sum()) <= most

        masks = coupling(net, torch.ones(1, 1, 2, 2)).masks(prunable(net), limits, round_to, fits)
        kept = [masks[name].flatten(1).any(dim=1) for name in ("0.weight", "1.weight")]
        for size, mask in zip(sizes, kept, strict=True):
            assert (
                size.argsort(descending=True)[: mask.sum()].sort().values.tolist() == mask.nonzero().flatten().tolist()
            )
        return [int(mask.sum()) for mask in kept]

    # Norms above 1, even numbers of them: 2 and 2. The next pairs: of the first .8 and .7, then .4 and .3; of the other
    # .5 and .2, then .1 alone.
    assert widths(4, 2) == [2, 2]
    assert widths(8, 2) == [4, 2], "after what does not fit, what matters less of another value"
    assert widths(16, 2) == [4, 4]
    assert widths(29, 2) == [6, 4]
    assert widths(30, 2) == [6, 5], "the last one makes a value whole"
    assert widths(7, 1) == [6, 1], "one by one: .9, .8, .7, not .6 of the other, .4, .3"


def one_by_one(
    self: Coupling, kept: torch.Tensor, means: torch.Tensor, round_to: int, fits: Callable[[torch.Tensor], bool]
) -> torch.Tensor:
    """What there is room for, where every bundle is tried."""
    found = sorted(self._bundles(kept, means, round_to), key=lambda of: float(means[of[1]].mean()), reverse=True)
    full = set[int]()
    for value, bundle in found:
        if value not in full:
            more = kept.index_fill(0, bundle, True)
            kept, full = (more, full) if fits(more) else (kept, full | {value})
    return kept


@pytest.mark.parametrize(
    ("name", "round_to"),
    [("resnet8", 1), ("preresnet8", 2), ("densenet_bc_16_4", 1), ("resnext11_4x4", 8)],
)
def test_room_is_filled_in_few_trials_with_what_many_would_fill_it_with(
    name: str, round_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, trials = models.create(name).eval(), []
    with torch.no_grad():
        for weight in prunable(model).values():
            weight.mul_(torch.randn(len(weight)).exp().view(-1, *[1] * (weight.dim() - 1)))
    known, count = structure(model, IMAGES, "tied"), mac_counter(model, IMAGES[:1], round_to)
    limits = {tensor: method.rms_threshold(weight, 1.0) for tensor, weight in prunable(model).items()}
    most = costs.macs(model, IMAGES[:1]) // 2

    def fits(network: nn.Module) -> bool:
        trials.append(count(network))
        return trials[-1] <= most

    filled = [mask for _, mask in cut(copy.deepcopy(model), limits, "tied", known, round_to, fits)]
    few = len(trials)
    monkeypatch.setattr(Coupling, "_filled", one_by_one)
    expected = [mask for _, mask in cut(copy.deepcopy(model), limits, "tied", known, round_to, fits)]
    assert all(torch.equal(found, mask) for found, mask in zip(filled, expected, strict=True))
    assert trials[few] < most, "there was room"
    assert few < len(trials) - few


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


# --- regularised together


def coupled(net: nn.Module) -> Coupling:
    return coupling(net, IMAGES.to(next(net.parameters()).dtype))


def tied_by_hand(net: nn.Module, regulariser: str) -> torch.Tensor:
    """The sum over sides of the regulariser of channels' norms, one channel at a time."""
    found, weights = coupled(net), {name: weight.detach().double() for name, weight in prunable(net).items()}
    sides, squares = [], {}
    for name, weight in weights.items():
        relative = 1.0 if regulariser == "group_lasso" else max(weight.shape[:2]) / weight.square().sum()
        for numbers, dim in ((found.rows[name], 0), (found.columns.get(name), 1)):
            if numbers is None:
                continue
            sides.append(numbers.tolist())
            for index, number in enumerate(numbers.tolist()):
                squares.setdefault(number, []).append(weight.select(dim, index).square().sum() * relative)
    norms = {number: (sum(of) / len(of)).sqrt() for number, of in squares.items()}
    total = torch.zeros((), dtype=torch.double)
    for side in sides:
        free = [norms[number] for number in side if number not in found.fixed.tolist()]
        if not free:
            continue
        absolute, square = sum(free), sum(norm**2 for norm in free)
        total += {
            "group_lasso": absolute,
            "group_hoyer": absolute / square.sqrt(),
            "group_hoyer_square": absolute**2 / square,
        }[regulariser]
    return total


def tied_penalty_of(net: nn.Module, regulariser: str) -> torch.Tensor:
    tensors = prunable(net)
    return method.tied_penalty(list(tensors.values()), coupled(net).ties(list(tensors)), regulariser)


@pytest.mark.parametrize("regulariser", STRUCTURAL)
@pytest.mark.parametrize(
    ("name", "options"), [("resnet8", {}), ("resnet8", {"shortcut": "subsample"}), ("resnext11_4x4", {})]
)
def test_tied_channels_are_regularised_as_a_whole(name: str, options: dict[str, str], regulariser: str) -> None:
    torch.manual_seed(0)
    net = models.create(name, **options).double()
    assert float(tied_penalty_of(net, regulariser).detach()) == pytest.approx(
        float(tied_by_hand(net, regulariser)), rel=1e-9
    )


@pytest.mark.parametrize("regulariser", STRUCTURAL)
def test_its_gradient_is_that_of_the_formula(regulariser: str) -> None:
    torch.manual_seed(0)
    net = models.create("resnet8").double()
    ties = coupled(net).ties(list(prunable(net)))
    tensors = list(prunable(net).values())
    tied_penalty = method.tied_penalty(tensors, ties, regulariser)
    directions = [torch.randn_like(tensor) for tensor in tensors]
    gradients = torch.autograd.grad(tied_penalty, tensors)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    with torch.no_grad():
        ends = [
            float(method.tied_penalty([t + h * d for t, d in zip(tensors, directions, strict=True)], ties, regulariser))
            for h in (1e-6, -1e-6)
        ]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_the_scale_of_a_layer_is_nothing_to_the_hoyer_forms_and_zeros_have_no_gradient() -> None:
    net = models.create("resnet8")
    before = float(tied_penalty_of(net, "group_hoyer_square").detach())
    stream = coupled(net).rows["layer1.0.conv2.weight"]
    with torch.no_grad():
        net.layer2[0].conv1.weight.mul_(7)
        assert float(tied_penalty_of(net, "group_hoyer_square")) == pytest.approx(before, rel=1e-5)
        for name, weight in prunable(net).items():
            found = coupled(net)
            weight[found.rows[name] == stream[0]] = 0
            if name in found.columns:
                weight[:, found.columns[name] == stream[0]] = 0
    penalty = tied_penalty_of(net, "group_hoyer_square")
    assert float(penalty.detach()) < before
    gradients = torch.autograd.grad(penalty, list(prunable(net).values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert float(gradients[0][0].abs().max()) == 0


def test_a_channel_that_is_small_in_every_layer_gets_smaller_in_all_of_them() -> None:
    torch.manual_seed(0)
    net = models.create("resnet8", shortcut="conv")
    found, tensors = coupled(net), prunable(net)
    channel = int(found.rows["layer1.0.conv2.weight"][3])
    with torch.no_grad():
        for name, weight in tensors.items():
            weight[found.rows[name] == channel] *= 0.2
    gradients = dict(
        zip(
            tensors,
            torch.autograd.grad(tied_penalty_of(net, "group_hoyer_square"), list(tensors.values())),
            strict=True,
        )
    )
    for name in ("conv1.weight", "layer1.0.conv2.weight"):
        at = found.rows[name] == channel
        assert float((gradients[name][at] * tensors[name][at]).sum()) > 0, (
            "a step against the gradient makes it smaller"
        )
        assert float((gradients[name][~at] * tensors[name][~at]).sum()) < 0
