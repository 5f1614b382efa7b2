from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resless import models
from resless.calibrate import batch_norms, calibration_batches, check_recalibration, recalibrate
from resless.config import DataConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.folding import fold
from resless.run import accelerator
from resless.testing import done, forked
from torch import Tensor, nn


def network() -> nn.Module:
    """Two batch norms, and dropout before the second."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 2, 3))
    return nn.Sequential(*layers, nn.BatchNorm2d(2), nn.Flatten())


def pairs(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(size, 1, 6, 6), torch.zeros(size, dtype=torch.int64)) for size in sizes]


def expected(model: nn.Module, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """By hand: for each of the two norms the mean of the batches' means and unbiased variances."""
    conv1, norm1, conv2 = model[0], model[1], model[4]
    first, second = [], []
    for images in batches:
        x = conv1(images)
        first.append(torch.var_mean(x, dim=(0, 2, 3), correction=1))
        x = nn.functional.batch_norm(x, None, None, norm1.weight, norm1.bias, training=True).relu()
        second.append(torch.var_mean(conv2(x), dim=(0, 2, 3), correction=1))
    return [tuple(torch.stack(values).mean(dim=0) for values in zip(*seen, strict=True)) for seen in (first, second)]


def test_statistics_are_the_mean_over_batches_with_dropout_off() -> None:
    model, batches = network(), pairs(8, 8, 3)
    for norm in batch_norms(model):
        norm.running_mean.fill_(7)
    recalibrate(model, batches, accelerator("no"))
    with torch.no_grad():
        wanted = expected(model, [images for images, _ in batches])
    for norm, (variance, mean) in zip(batch_norms(model), wanted, strict=True):
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
        assert norm.num_batches_tracked == 3


def test_modes_and_momenta_are_put_back_even_after_an_error() -> None:
    model = network().train()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    recalibrate(model, pairs(4), accelerator("no"))
    with pytest.raises(RuntimeError):
        recalibrate(model, [(torch.zeros(1, 5, 6, 6), torch.zeros(1))], accelerator("no"))
    assert [module.training for module in model.modules()] == modes
    assert [norm.momentum for norm in batch_norms(model)] == [0.3, 0.1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_networks_without_running_statistics_have_none_to_compute() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.LayerNorm(6))
    assert batch_norms(model) == []
    recalibrate(model, pairs(2), accelerator("no"))
    assert len(batch_norms(models.create("resnet8"))) == 9  # a stem, three blocks of two, two shortcuts


def first_half(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A forward pass that never comes to the second batch norm."""
    return lambda images: model[1](model[0](images))


def test_statistics_of_a_norm_that_no_image_reaches_stay() -> None:
    model, batches = network(), pairs(8, 8)
    first, second = batch_norms(model)
    for norm in (first, second):
        norm.running_mean.fill_(7)
        norm.running_var.fill_(5)
        norm.num_batches_tracked.fill_(3)
    recalibrate(model, batches, accelerator("no"), first_half(model))
    with torch.no_grad():
        (variance, mean), _ = expected(model, [images for images, _ in batches])
    torch.testing.assert_close((first.running_mean, first.running_var), (mean, variance))
    assert first.num_batches_tracked == 2
    assert (second.running_mean == 7).all()
    assert (second.running_var == 5).all()
    assert second.num_batches_tracked == 3


def test_networks_without_statistics_to_compute_anew_are_refused() -> None:
    model, plain = models.create("resnet8", in_channels=1), nn.Sequential(nn.Linear(1, 1))
    small = fold(model.eval(), torch.zeros(1, 1, 8, 8))
    for fine in (model, plain, small):
        check_recalibration(fine, 0, "x")
    check_recalibration(model, 100, "x")
    with pytest.raises(InputError, match="--recalibrate-bn is 100, but must be 0 for x, which has no batch norm"):
        check_recalibration(plain, 100, "x")
    with pytest.raises(InputError, match="the network is folded, for inference only: it cannot be recalibrated"):
        check_recalibration(small, 100, "x")


def test_processes_average_by_the_batches_that_each_has_seen(tmp_path: Path) -> None:
    """Of three batches the first process sees two and the second one; then all three and none. A norm that neither
    reaches stays as it was."""
    batches = pairs(8, 8, 8)

    def task() -> None:
        used = accelerator("no")
        for name, shares in (("uneven", (batches[::2], batches[1::2])), ("none", (batches, []))):
            model = network()
            recalibrate(model, shares[used.process_index], used)
            torch.save(model.state_dict(), tmp_path / f"{name}-{used.process_index}")
        model = network()
        recalibrate(model, batches[:1], used, first_half(model))
        torch.save(model[5].state_dict(), tmp_path / f"unseen-{used.process_index}")

    done(forked(task, 2))
    whole = network()
    recalibrate(whole, batches, accelerator("no"))
    for name in ("uneven-0", "uneven-1", "none-0", "none-1"):
        found = torch.load(tmp_path / name)
        assert len(found) == len(whole.state_dict())
        for key, tensor in whole.state_dict().items():
            torch.testing.assert_close(found[key], tensor)
    for name in ("unseen-0", "unseen-1"):
        torch.testing.assert_close(torch.load(tmp_path / name, weights_only=True), network()[5].state_dict())


def test_images_are_drawn_from_those_that_are_not_held_out() -> None:
    data = Pipeline(DataConfig(holdout=0.5), seed=0, shards=Shards())
    drawn, again = calibration_batches(data, 100, 30), calibration_batches(data, 100, 30)
    labels = torch.cat([labels for _, labels in drawn])
    assert (drawn.num_images, len(labels)) == (100, 100)
    assert set(labels.tolist()) == set(range(10))
    assert torch.equal(drawn.order, again.order)
    assert set(drawn.order.tolist()) <= set(data.split[0].tolist())
    assert drawn.order.tolist() != data.split[0][:100].tolist(), "the first ones may all be of one class"
    assert calibration_batches(data, 10_000, 30).num_images == len(data.split[0])
