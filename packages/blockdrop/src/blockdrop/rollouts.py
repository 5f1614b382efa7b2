"""One training step's forward passes, as one module: wrapped once, its gradients are reduced once.

Each image runs under a sampled policy and under the greedy one, whose reward is the baseline.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from resless.modes import in_eval_mode
from torch import Tensor, nn

from blockdrop import method
from blockdrop.model import BlockDropNet


class Rollouts(NamedTuple):
    """What a step saw: N images, K blocks."""

    probabilities: Tensor
    """Bounded probabilities [N, K], with gradient."""
    sampled: Tensor
    """Policies drawn from them, bool [N, K]."""
    baseline: Tensor
    """The greedy policies, bool [N, K]."""
    sampled_logits: Tensor
    """Logits [N, classes] under the sampled policies."""
    baseline_logits: Tensor
    """Logits [N, classes] under the greedy policies, without gradient."""

    def rewards(self, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Rewards [N] of the sampled and of the greedy policies."""
        sampled = method.reward(self.sampled_logits.argmax(dim=1) == labels, self.sampled, penalty)
        return sampled, method.reward(self.baseline_logits.argmax(dim=1) == labels, self.baseline, penalty)

    def metrics(self, labels: Tensor, rewards: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What a run records of a step."""
        return {
            "accuracy": (self.baseline_logits.argmax(dim=1) == labels).float().mean(),
            "sampled_accuracy": (self.sampled_logits.argmax(dim=1) == labels).float().mean(),
            "reward": rewards[1].mean(),
            "sampled_reward": rewards[0].mean(),
            "blocks_used": self.baseline.float().sum(dim=1).mean(),
            "sampled_blocks_used": self.sampled.float().sum(dim=1).mean(),
        }


class CurriculumRollouts(nn.Module):
    """The residual network frozen and in eval mode: only the policy network learns, and no statistics move."""

    def __init__(self, net: BlockDropNet, alpha: float) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha
        net.resnet.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> CurriculumRollouts:
        super().train(mode)
        self.net.resnet.eval()
        return self

    def forward(self, images: Tensor, num_open: int) -> Rollouts:
        """Rollouts of images [N, C, H, W] with the last `num_open` blocks decided, the others kept."""
        certain = self.net.policy(images)
        probabilities = method.bounded(certain, self.alpha)
        closed = ~method.open_blocks(num_open, self.net.num_blocks, device=images.device)
        sampled = method.sample(probabilities.detach()) | closed
        baseline = method.greedy(certain) | closed
        with torch.no_grad():
            first_open = self.net.num_blocks - num_open
            logits = self.net.resnet.rollouts(images, [sampled, baseline], first_open)
        return Rollouts(probabilities, sampled, baseline, *logits)


class JointRollouts(nn.Module):
    """Both networks learn: the sampled pass in training mode, the baseline's, before it, in eval mode."""

    # Deviation: the authors run both passes in training mode and on all images of the batch, so that the baseline
    # moves the running statistics too, and a block's statistics are those of images that drop it as well.

    def __init__(self, net: BlockDropNet, alpha: float) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha

    def forward(self, images: Tensor) -> Rollouts:
        """Rollouts of images [N, C, H, W], all blocks decided."""
        certain = self.net.policy(images)
        probabilities = method.bounded(certain, self.alpha)
        sampled, baseline = method.sample(probabilities.detach()), method.greedy(certain)
        with torch.no_grad(), in_eval_mode(self.net.resnet):
            baseline_logits = self.net.resnet(images, baseline)
        # Older torch versions would go on with the weights that were cast in the pass above, which have no gradient.
        torch.clear_autocast_cache()
        return Rollouts(probabilities, sampled, baseline, self.net.resnet(images, sampled), baseline_logits)
