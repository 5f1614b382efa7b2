"""Statistics of batch norms computed anew, for a network whose weights or layers have changed since it was trained.

After layers are removed or replaced, a batch norm normalises by the mean and variance of what used to come in; a few
thousand images give those of what comes in now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resless.errors import check
from resless.models.folded import check_unfolded
from resless.modes import in_eval_mode

if TYPE_CHECKING:
    from resless.data.pipeline import Pipeline
    from resless.evaluate import Shares


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those of the network that have running statistics."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.track_running_stats]


def check_recalibration(model: nn.Module, count: int, name: str) -> None:
    """Refuse `--recalibrate-bn` for a network, which messages call `name`, without statistics to compute anew.

    Args:
        model: the network.
        count: images that the option asks for; with 0 there is nothing to refuse.
        name: what the command line calls the network.

    Raises:
        InputError: it is folded, or has no batch norm.
    """
    if count:
        check_unfolded(model, "recalibrated")
        check(len(batch_norms(model)) > 0, "--recalibrate-bn", count, f"0 for {name}, which has no batch norm")


def calibration_batches(data: Pipeline, count: int, batch_size: int) -> Shares:
    """This process's share of `count` training images, all if there are fewer, prepared as for evaluation.

    Args:
        data: of whose training images those that are held out are left out.
        count: images over all processes, drawn at random, the same every time: the first ones may be all of one class.
        batch_size: images in one step, over all processes.
    """
    kept = data.split[0]
    drawn = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:count]
    return data.evaluation(data.train, batch_size, kept[drawn])


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    accelerator: Accelerator,
    forward: Callable[[Tensor], object] | None = None,
) -> None:
    """Give all batch norms, in place, the mean of the batches' means and unbiased variances, over all processes.

    Batch norms alone run as in training meanwhile, dropout does not, and all modes are put back. Those that no image
    reaches, of blocks that are skipped, keep their statistics.

    Args:
        model: images [n, C, H, W] -> anything, on the accelerator's device; the same on all processes, not wrapped.
        batches: this process's images; may be none, if another process has some.
        accelerator: its precision, and its processes.
        forward: what runs the model on images, where a call of the model is not it.

    Raises:
        InputError: the network is folded: what it would need the statistics for is gone.
    """
    check_unfolded(model, "recalibrated")
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    with in_eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative: every batch counts alike
            norm.train()
        try:
            for images, _ in batches:
                with accelerator.autocast():
                    (forward or model)(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if accelerator.num_processes > 1:
        _average(norms, accelerator)
    for norm, statistics in zip(norms, before, strict=True):
        _restore_unseen(norm, statistics)


def _average(norms: Iterable[_BatchNorm], accelerator: Accelerator) -> None:
    """Average the statistics over the processes by how many batches each has seen."""
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        own = norm.num_batches_tracked.clone()
        total = accelerator.reduce(own, reduction="sum")
        for statistic in (norm.running_mean, norm.running_var):
            statistic.copy_(accelerator.reduce(statistic * own, reduction="sum") / total)
        norm.num_batches_tracked.copy_(total)


def _restore_unseen(norm: _BatchNorm, statistics: Mapping[str, Tensor]) -> None:
    """Give a batch norm that has seen no batch its former statistics, by the names of its buffers."""
    if norm.num_batches_tracked == 0:
        for name, buffer in norm.named_buffers():
            buffer.copy_(statistics[name])
