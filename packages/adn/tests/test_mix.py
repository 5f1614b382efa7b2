"""Mixup and CutMix: mixed images, and labels in the same shares."""

from __future__ import annotations

import pytest
import torch
from adn.config import TrainConfig
from adn.mix import mixing
from torch import Tensor

CLASSES = 5


def batch() -> tuple[Tensor, Tensor]:
    """Images in which no two pixels are equal; neighbours have different classes."""
    images = torch.randperm(8 * 3 * 12 * 12, generator=torch.Generator().manual_seed(0)).float()
    return images.view(8, 3, 12, 12), torch.arange(8) % CLASSES


def mixed(seed: int, **alphas: float) -> tuple[Tensor, Tensor]:
    mix = mixing(TrainConfig(**alphas), CLASSES)
    assert mix is not None
    torch.manual_seed(seed)
    return mix(*batch())


def share(targets: Tensor) -> float:
    """What images have of themselves; the rest is of the image before. Asserts that labels say just that."""
    own = torch.nn.functional.one_hot(batch()[1], CLASSES).float()
    found = float(targets[0, 0])
    torch.testing.assert_close(targets, found * own + (1 - found) * own.roll(1, 0))
    assert targets.dtype == torch.float32
    return found


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert mixing(TrainConfig(), CLASSES) is None


def test_mixup_adds_images_in_the_shares_of_their_labels() -> None:
    images, _ = batch()
    shares = set()
    for seed in range(20):
        found, targets = mixed(seed, mixup_alpha=0.8)
        part = share(targets)
        torch.testing.assert_close(found, part * images + (1 - part) * images.roll(1, 0))
        shares.add(round(part, 3))
    assert len(shares) > 15
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_cutmix_pastes_a_rectangle_of_the_share_of_the_labels() -> None:
    images, _ = batch()
    sizes = set()
    for seed in range(20):
        found, targets = mixed(seed, cutmix_alpha=1.0)
        pasted = found != images
        assert torch.equal(found[pasted], images.roll(1, 0)[pasted])
        assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted)), "the same pixels of all images and channels"
        rows, columns = pasted[0, 0].any(dim=1), pasted[0, 0].any(dim=0)
        assert torch.equal(pasted[0, 0], rows[:, None] & columns)
        assert share(targets) == pytest.approx(1 - pasted.float().mean().item())
        sizes.add(int(pasted[0, 0].sum()))
    assert len(sizes) > 8


def test_with_both_each_batch_draws_one_of_them() -> None:
    images, _ = batch()
    kinds = []
    for seed in range(40):
        found, targets = mixed(seed, mixup_alpha=0.8, cutmix_alpha=1.0)
        part = share(targets)
        blended = torch.allclose(found, part * images + (1 - part) * images.roll(1, 0))
        assert blended or bool(((found == images) | (found == images.roll(1, 0))).all())
        kinds.append(blended)
    assert 10 < sum(kinds) < 30


def test_draws_are_those_of_torchs_generator() -> None:
    """Which a run saves and puts back."""
    first, again, other = (mixed(seed, mixup_alpha=0.8, cutmix_alpha=1.0) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
