"""The two-path loss, derived again."""

from __future__ import annotations

import math

import pytest
import torch
from adn.method import distillation, feature_distillation, two_path_loss
from torch import Tensor
from torch.nn import functional as F

N, M = 4, 12


def logits(seed: int, *shape: int) -> Tensor:
    shape = shape or (N, M)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl_by_hand(base: Tensor, reference: Tensor, temperature: float) -> float:
    """Mean over images of Σ p log(p / q), one number after another."""
    total = 0.0
    for q_row, p_row in zip(base.tolist(), reference.tolist(), strict=True):
        p_exp, q_exp = ([math.exp(value / temperature) for value in row] for row in (p_row, q_row))
        p, q = [value / sum(p_exp) for value in p_exp], [value / sum(q_exp) for value in q_exp]
        total += sum(p_i * math.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True))
    return total / len(base)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_from_the_super_net(temperature: float) -> None:
    base, reference = logits(1), logits(2)
    expected = temperature**2 * kl_by_hand(base, reference, temperature)
    assert distillation(base, reference, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(temperature**2 * kl_by_hand(reference, base, temperature), rel=1e-2)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_its_gradient_is_the_difference_of_the_probabilities(temperature: float) -> None:
    base, reference = logits(1).requires_grad_(), logits(2).requires_grad_()
    distillation(base, reference, temperature).backward()
    difference = F.softmax(base / temperature, dim=1) - F.softmax(reference / temperature, dim=1)
    assert base.grad is not None
    assert torch.allclose(base.grad, temperature * difference.detach() / N, rtol=1e-4, atol=1e-7)
    assert reference.grad is None, "the super-net does not learn from the base-net"


def test_only_the_most_likely_classes_of_the_super_net_are_compared() -> None:
    base, reference = logits(1).requires_grad_(), logits(2)
    rows = [sorted(range(M), key=lambda c, row=row: -reference[row, c].item())[:5] for row in range(N)]
    chosen = torch.tensor(rows)
    found = distillation(base, reference, top_classes=5)
    assert found.item() == pytest.approx(kl_by_hand(base.gather(1, chosen), reference.gather(1, chosen), 1.0), rel=1e-5)
    found.backward()
    assert base.grad is not None
    others = torch.ones(N, M, dtype=torch.bool).scatter(1, chosen, False)
    assert base.grad[others].abs().max() == 0
    assert base.grad[~others].abs().min() > 0


@pytest.mark.parametrize("classes", [2, 499, 500, 501, 1000])
def test_any_number_of_classes(classes: int) -> None:
    base, reference = logits(1, 2, classes), logits(2, 2, classes)
    kept = min(classes, 500)
    values, chosen = reference.topk(kept, dim=1)
    expected = kl_by_hand(base.gather(1, chosen), values, 1.0)
    assert distillation(base, reference).item() == pytest.approx(expected, rel=1e-5)


def test_a_base_net_that_agrees_has_nothing_to_learn() -> None:
    assert distillation(logits(1) + 5, logits(1)).item() == pytest.approx(0, abs=1e-6)
    features = [logits(3, 2, 4, 3, 3)]
    assert feature_distillation(features, features, 1.0, logits(1)).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_weighs_labels_and_super_net() -> None:
    base, reference, labels = logits(1), logits(2), torch.tensor([3, 0, 11, 5])
    by_hand = -sum(F.log_softmax(reference, dim=1)[row, label].item() for row, label in enumerate(labels)) / N
    kl = 4 * kl_by_hand(base, reference, 2.0)
    loss = two_path_loss(reference, base, labels, alpha=0.3, temperature=2.0)
    assert loss.cross_entropy.item() == pytest.approx(by_hand, rel=1e-5)
    assert loss.distillation.item() == pytest.approx(kl, rel=1e-5)
    assert loss.feature_distillation.item() == 0
    assert loss.total.item() == pytest.approx(0.3 * by_hand + 0.7 * kl, rel=1e-5)
    default = two_path_loss(reference, base, labels)
    assert default.total.item() == pytest.approx(0.5 * by_hand + 0.5 * kl_by_hand(base, reference, 1.0), rel=1e-5)


def test_labels_may_be_smoothed_and_mixed() -> None:
    base, reference, labels = logits(1), logits(2), torch.tensor([3, 0, 11, 5])
    log_p = F.log_softmax(reference, dim=1)
    hard = F.one_hot(labels, M).double()
    smooth = 0.9 * hard + 0.1 / M
    soft = 0.7 * hard + 0.3 * hard.roll(1, 0)
    expected = {name: -(target * log_p).sum(1).mean().item() for name, target in (("smooth", smooth), ("soft", soft))}
    assert two_path_loss(reference, base, labels, label_smoothing=0.1).cross_entropy.item() == pytest.approx(
        expected["smooth"], rel=1e-5
    )
    assert two_path_loss(reference, base, soft.float()).cross_entropy.item() == pytest.approx(
        expected["soft"], rel=1e-5
    )


def test_features_are_compared_channel_by_channel_at_every_pixel() -> None:
    base, reference = [logits(3, 2, 4, 3, 3), logits(4, 2, 6, 1, 2)], [logits(5, 2, 4, 3, 3), logits(6, 2, 6, 1, 2)]
    expected = 0.0
    for b, r in zip(base, reference, strict=True):
        pixels = b.shape[2] * b.shape[3]
        rows = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in (b, r)]
        expected += pixels * kl_by_hand(rows[0], rows[1], 1.0)  # summed over pixels, a mean over images
    loss = two_path_loss(
        logits(2), logits(1), torch.zeros(N, dtype=torch.int64), super_features=reference, base_features=base
    )
    assert loss.feature_distillation.item() == pytest.approx(expected, rel=1e-5)
    assert loss.total.item() == pytest.approx(0.5 * (loss.cross_entropy + loss.distillation).item() + 0.5 * expected)
    with pytest.raises(ValueError, match="zip"):
        feature_distillation(base, reference[:1], 1.0, logits(1))


def test_two_backward_passes_give_the_gradient_of_one() -> None:
    weight, x = logits(1, M, 5), logits(2, N, 5)
    labels = torch.tensor([3, 0, 11, 5])

    def outputs(weight: Tensor) -> tuple[Tensor, Tensor]:
        return x @ weight.T, (x * 0.5).relu() @ weight.T

    once = weight.clone().requires_grad_()
    super_logits, base_logits = outputs(once)
    two_path_loss(super_logits, base_logits, labels, alpha=0.3).total.backward()
    twice = weight.clone().requires_grad_()
    reference = outputs(twice)[0]
    (0.3 * F.cross_entropy(reference, labels)).backward()
    (0.7 * distillation(outputs(twice)[1], reference.detach())).backward()
    assert once.grad is not None
    assert twice.grad is not None
    assert torch.allclose(once.grad, twice.grad, rtol=1e-4, atol=1e-7)


def test_half_precision_logits_are_compared_in_full() -> None:
    base, reference = logits(1).bfloat16(), logits(2).bfloat16()
    loss = two_path_loss(reference, base, torch.tensor([3, 0, 11, 5]))
    assert {part.dtype for part in loss} == {torch.float32}
    assert loss.distillation.item() == pytest.approx(kl_by_hand(base.double(), reference.double(), 1.0), rel=1e-4)
