"""Compaction: smaller, the same outputs, and exactly the sizes that the zeros allow."""

from __future__ import annotations

import itertools

import pytest
import torch
from deephoyer.compact import compact, structure
from deephoyer.report import prunable, sparsity
from resless import costs, models, weights
from resless.errors import InputError
from torch import nn

IMAGE = {"lenet_300_100": (1, 28, 28), "lenet5": (1, 28, 28)}


def images(name: str, count: int = 7) -> torch.Tensor:
    return torch.randn(count, *IMAGE[name], generator=torch.Generator().manual_seed(3))


def network(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = models.create(name, in_channels=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases large enough to matter where a unit becomes a constant
                parameter.normal_(0, 0.5)
    return model.requires_grad_(False).eval()


def keep_groups(model: nn.Module, rows: dict[str, int], columns: dict[str, int]) -> None:
    """Zero all but the first so many filters (rows) or channels (columns) of a weight."""
    tensors = prunable(model)
    with torch.no_grad():
        for name, count in rows.items():
            tensors[name][count:] = 0
        for name, count in columns.items():
            tensors[name][:, count:] = 0


@pytest.mark.parametrize("name", IMAGE)
def test_dense_network_is_left_as_it_is(name: str) -> None:
    model = network(name)
    small = compact(model, images(name))
    assert small.spec == model.spec
    assert torch.equal(small(images(name)), model(images(name)))


@pytest.mark.parametrize(("name", "seed"), list(itertools.product(IMAGE, range(6))))
def test_random_zeros_change_no_output(name: str, seed: int) -> None:
    model = network(name, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in prunable(model).values():
            weight *= torch.rand(weight.shape, generator=random) < 0.3
            kept_rows = torch.rand(weight.shape[0], generator=random) < 0.6
            kept_columns = torch.rand(weight.shape[1], generator=random) < 0.6
            kept_rows[0] = kept_columns[0] = True
            weight[~kept_rows] = 0
            weight[:, ~kept_columns] = 0
            weight[0, 0] = 1.0  # no layer is emptied
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    small = compact(model, images(name))
    expected = model(images(name))
    assert torch.allclose(small(images(name)), expected, atol=1e-5 * float(expected.abs().max()))
    assert costs.count_parameters(small) < costs.count_parameters(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()), "the input was changed"
    again = compact(small, images(name))
    assert again.spec == small.spec, "a compacted network has nothing left to take away"


def test_lenet_300_100_of_the_paper_has_its_macs() -> None:
    model = network("lenet_300_100")
    keep_groups(model, {"fc1.weight": 45, "fc2.weight": 11}, {"fc1.weight": 353})
    small = compact(model, images("lenet_300_100"))
    assert structure(small) == "353-45-11"
    assert costs.macs(small, images("lenet_300_100", 1)) == 353 * 45 + 45 * 11 + 11 * 10  # 16.5k


def test_lenet5_of_the_paper_has_its_macs() -> None:
    model = network("lenet5")
    keep_groups(model, {"conv1.weight": 5, "conv2.weight": 12, "fc1.weight": 13}, {})
    features = torch.randperm(12 * 16, generator=torch.Generator().manual_seed(0))[:139]  # of the 12 filters' maps
    unread = torch.ones(800, dtype=torch.bool).index_fill_(0, features, False)
    with torch.no_grad():
        model.fc1.weight[:, unread] = 0
    small = compact(model, images("lenet5"))
    assert structure(small) == "5-12-139-13"
    convolutions = 24 * 24 * 25 * 5 + 8 * 8 * 25 * 5 * 12
    assert costs.macs(small, images("lenet5", 1)) == convolutions + 139 * 13 + 13 * 10  # 169.9k


def test_a_unit_that_reads_nothing_becomes_part_of_the_next_bias() -> None:
    model = network("lenet_300_100")
    with torch.no_grad():
        model.fc1.weight[7] = 0
        model.fc1.bias[7] = 2.0
    small = compact(model, images("lenet_300_100"))
    assert small.fc1.out_features == 299
    assert torch.allclose(small.fc2.bias, model.fc2.bias + 2.0 * model.fc2.weight[:, 7])


def test_taking_a_unit_away_frees_what_only_it_read() -> None:
    model = network("lenet_300_100")
    with torch.no_grad():
        model.fc2.weight[:, 5] = 0  # nobody reads unit 5 of the first layer,
        model.fc1.weight[:, 9] = 0
        model.fc1.weight[5, 9] = 1.0  # which alone reads pixel 9
    small = compact(model, images("lenet_300_100"))
    assert structure(small) == "783-299-100"


@pytest.mark.parametrize("name", IMAGE)
def test_model_folder_rebuilds_the_compacted_network(name: str, tmp_path) -> None:
    model = network(name)
    keep_groups(model, {"fc1.weight": 40}, {"fc1.weight": 200})
    small = compact(model, images(name))
    weights.save_pretrained(small, tmp_path / "model")
    loaded = weights.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(images(name)), small(images(name)))


def test_a_network_with_nothing_left_is_refused() -> None:
    model = network("lenet5")
    with torch.no_grad():
        model.conv2.weight.zero_()
    with pytest.raises(InputError, match="nothing is left of a layer"):
        compact(model, images("lenet5"))


def test_sparsity_counts_weights_filters_and_channels() -> None:
    model = network("lenet5")
    keep_groups(model, {"conv1.weight": 3}, {"fc2.weight": 10})
    report = sparsity(model, images("lenet5", 1))
    by_name = {layer.name: layer for layer in report.layers}
    assert [layer.name for layer in report.layers] == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    assert (by_name["conv1.weight"].weights, by_name["conv1.weight"].filters) == (3 * 25, 3)
    assert (by_name["fc2.weight"].weights, by_name["fc2.weight"].channels) == (10 * 10, 10)
    assert report.total_weights == 20 * 25 + 50 * 20 * 25 + 800 * 500 + 500 * 10
    assert report.weights == 3 * 25 + 50 * 20 * 25 + 800 * 500 + 10 * 10
    assert report.compact_weights == 3 * 25 + 50 * 3 * 25 + 800 * 10 + 10 * 10  # what dead units read is gone
    assert report.dense_macs == 2_293_000
    assert report.structure == "3-50-800-10"
    assert report.macs == 24 * 24 * 3 * 25 + 8 * 8 * 50 * 3 * 25 + 800 * 10 + 10 * 10
