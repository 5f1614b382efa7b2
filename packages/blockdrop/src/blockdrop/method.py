"""BlockDrop's mathematics: Wu et al., BlockDrop: Dynamic Inference Paths in Residual Networks (CVPR 2018).

arXiv 1711.08393, section 3. A policy network gives each image x a probability p_k for each of K residual blocks; a
policy u in {0, 1}^K says which blocks run.

    reward (eq. 3)         R(u) = 1 - (|u| / K)^2 if the prediction is right, γ < 0 if it is wrong
    exploration            p' = α p + (1 - α)(1 - p),   u_k ~ Bernoulli(p'_k)
    baseline               ũ_k = 1 if p_k >= 1/2, else 0
    self-critical loss     -(R(u) - R(ũ)) Σ_k log P(u_k | p'_k)                                     (eq. 8)
    curriculum             at step t only the last t blocks are decided, the blocks before them are kept

Letters: N images, K blocks. Policies are bool [N, K] unless said otherwise, True for a block that runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-12
"""Under a logarithm: with α = 1 a policy may have probability 0."""


def reward(correct: Tensor, policy: Tensor, penalty: float) -> Tensor:
    """Reward of policies (eq. 3): few blocks, if they suffice.

    Args:
        correct: whether the prediction under the policy is right, bool [N].
        policy: blocks that ran, 0/1 of any type [N, K].
        penalty: γ, the reward of a wrong prediction, negative.

    Returns:
        float32 [N].
    """
    used = policy.float().mean(dim=1)
    return torch.where(correct, 1 - used.square(), penalty)


def bounded(probabilities: Tensor, alpha: float) -> Tensor:
    """Probabilities [N, K] drawn away from 0 and 1, into [1 - α, α], so that no block is ruled out (section 3.2)."""
    return alpha * probabilities + (1 - alpha) * (1 - probabilities)


def sample(probabilities: Tensor) -> Tensor:
    """A policy drawn from probabilities [N, K], each block by itself: bool [N, K]."""
    # Not torch.bernoulli, which stops on a NaN: let the loss tell, with its epoch and step.
    return torch.rand_like(probabilities) < probabilities


def greedy(probabilities: Tensor) -> Tensor:
    """The policy that runs the blocks of probability 1/2 or more, of the unbounded ones: bool [N, K]."""
    return probabilities >= 0.5


def open_blocks(step: int, num_blocks: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The curriculum's mask: True for the last `step` of K blocks, which are decided; bool [K] (section 3.3)."""
    return torch.arange(num_blocks, device=device) >= num_blocks - step


def log_likelihood(probabilities: Tensor, policy: Tensor, decided: Tensor) -> Tensor:
    """log P(u) [N] of policies under probabilities [N, K], over the blocks that `decided` (bool [K]) marks."""
    taken = torch.where(policy.bool(), probabilities, 1 - probabilities)
    return (taken.clamp_min(LEAST_PROBABILITY).log() * decided).sum(dim=1)


def entropy(probabilities: Tensor, decided: Tensor) -> Tensor:
    """Entropy [N] in nats of the policies that probabilities [N, K] give, over the blocks that `decided` marks."""
    # Deviation: of both outcomes, and of open blocks only; the paper does not write its entropy out.
    terms = sum(-p * p.clamp_min(LEAST_PROBABILITY).log() for p in (probabilities, 1 - probabilities))
    return (terms * decided).sum(dim=1)


def self_critical_loss(advantage: Tensor, log_likelihood: Tensor) -> Tensor:
    """The loss [N] whose gradient is REINFORCE's with a baseline (eq. 8).

    Args:
        advantage: reward of the sampled policy minus that of the baseline, [N]; no gradient passes through it.
        log_likelihood: log P(u) of the sampled policy, [N].
    """
    return -advantage.detach() * log_likelihood
