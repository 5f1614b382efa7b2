"""The mathematics of ADN: one loss for the super-net, which learns the labels, and the base-net, which learns from it.

Kang and Lee, Adaptive Depth Networks with Skippable Sub-Paths (NeurIPS 2024, arXiv 2312.16392), section 3. Letters:
N images, M classes, C channels, H x W pixels.

| symbol | meaning | here |
|---|---|---|
| ŷ_super, ŷ_base | softmax of the logits with nothing skipped, and with all stages skipping | logits [N, M] |
| α | share of the labels in the loss, 0..1 | `alpha` |
| T | temperature that the logits are divided by | `temperature` |

loss = α · CE(y, ŷ_super) + (1-α) · T² · KL, where KL = Σ ŷ_super · log(ŷ_super / ŷ_base), a mean over images, has no
gradient to the super-net. Only these two paths are trained: skipping then is a small error in each stage by itself, so
that all mixtures of the two work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.5
TEMPERATURE = 1.0
TOP_CLASSES = 500
"""Of ImageNet's 1,000: the authors leave out the tail, which at T = 1 is mostly noise."""


class TwoPathLoss(NamedTuple):
    """Scalars. `total` is to be minimised; the others are without their factors α and 1-α, to be recorded."""

    total: Tensor
    cross_entropy: Tensor
    """Of the super-net."""
    distillation: Tensor
    """T² · KL of the logits."""
    feature_distillation: Tensor
    """T² · KL of the features, all stages together; 0 without features."""


def two_path_loss(
    super_logits: Tensor,
    base_logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = ALPHA,
    temperature: float = TEMPERATURE,
    label_smoothing: float = 0.0,
    top_classes: int = TOP_CLASSES,
    super_features: Sequence[Tensor] = (),
    base_features: Sequence[Tensor] = (),
) -> TwoPathLoss:
    """The loss of one step, of both paths' outputs for the same images.

    Its gradient is the sum of those of α · `cross_entropy`, which only the super-net has, and of (1-α) · (the
    distillations), which only the base-net has: two backward passes, one after each forward pass, give the same.

    Args:
        super_logits: [N, M], nothing skipped.
        base_logits: [N, M], all stages skipping.
        targets: int64 classes [N], or probabilities [N, M] as mixup and CutMix give them.
        alpha, temperature: α and T.
        label_smoothing: as of torch's cross_entropy; 0 trusts the labels.
        top_classes: how many classes are compared.
        super_features, base_features: features [N, C, H, W] of stages, in pairs, for the authors' `--fpn`.
    """
    cross_entropy = F.cross_entropy(super_logits.float(), targets, label_smoothing=label_smoothing)
    logits_kl = distillation(base_logits, super_logits, temperature, top_classes)
    features_kl = feature_distillation(base_features, super_features, temperature, logits_kl)
    total = alpha * cross_entropy + (1 - alpha) * (logits_kl + features_kl)
    return TwoPathLoss(total, cross_entropy, logits_kl, features_kl)


def two_label_loss(
    super_logits: Tensor, base_logits: Tensor, targets: Tensor, *, alpha: float = ALPHA, label_smoothing: float = 0.0
) -> TwoPathLoss:
    """The paper's ablation without distillation: both paths learn the labels; arguments as of `two_path_loss`.

    `distillation` is the base-net's cross-entropy.
    """
    of_super = F.cross_entropy(super_logits.float(), targets, label_smoothing=label_smoothing)
    of_base = F.cross_entropy(base_logits.float(), targets, label_smoothing=label_smoothing)
    return TwoPathLoss(alpha * of_super + (1 - alpha) * of_base, of_super, of_base, of_super.new_zeros(()))


def distillation(
    base_logits: Tensor,
    super_logits: Tensor,
    temperature: float = TEMPERATURE,
    top_classes: int = TOP_CLASSES,
) -> Tensor:
    """T² · KL over the super-net's most likely classes, of logits [N, M]: a scalar without gradient to the super-net.

    The super-net's probabilities weigh the logarithms: KL(ŷ_super ‖ ŷ_base) as textbooks write it, and
    `kl_div(base, super)` as torch orders its arguments and the authors call it. In this direction, with the teacher
    fixed, its gradient is that of cross-entropy on soft labels, (ŷ_base - ŷ_super) · T / N for each logit, and the
    base-net must cover all classes that the super-net holds possible; the other would let it settle for one of them.

    Summed over classes and averaged over images ("batchmean"), as cross-entropy is, so that α means the same for any
    number of classes and any batch. T² keeps the size of the gradient when T changes. Both softmaxes are taken over
    the chosen classes alone.
    """
    reference = super_logits.detach()
    if top_classes < reference.shape[1]:  # topk refuses more classes than there are
        reference, chosen = reference.topk(top_classes, dim=1)
        base_logits = base_logits.gather(1, chosen)
    return _scaled_kl(base_logits, reference, temperature)


def feature_distillation(
    base_features: Sequence[Tensor],
    super_features: Sequence[Tensor],
    temperature: float,
    like: Tensor,
) -> Tensor:
    """T² · KL of the channels at every pixel, of features [N, C, H, W], summed over stages: a scalar.

    Summed over pixels too and averaged over images only, as the authors do: it is the larger part of the loss, by far.
    `like` gives device and type of the 0 that no features make.
    """
    total = like.new_zeros(())
    for base, reference in zip(base_features, super_features, strict=True):
        total = total + _scaled_kl(base, reference.detach(), temperature)
    return total


def _scaled_kl(values: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """T² · Σ p · log(p / q), p and q the softmaxes over dimension 1 of reference / T and values / T, divided by N.

    In float32: bf16 would round differences of logarithms away.
    """
    log_q = F.log_softmax(values.float() / temperature, dim=1)
    log_p = F.log_softmax(reference.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
