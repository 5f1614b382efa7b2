"""The gated network: a pre-activation ResNet whose blocks can discard themselves, with a side head.

Yu, Yu, Ramalingam (CVPR 2018, arXiv 1804.01661), sections 3.1 to 3.3. Letters: N images, C channels, H x W pixels,
K blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed
import torch.nn.functional as F
from resless import models
from resless.errors import InputError, check
from resless.models.preresnet import Block, PreResNet
from torch import Tensor, nn

from epsilon_resnet import method
from epsilon_resnet.config import check_epsilon


class Responses(NamedTuple):
    """What a training step gives: N images, K blocks."""

    logits: Tensor
    """[N, classes]"""
    side_logits: Tensor | None
    """[N, classes] of the side head, where there is one."""
    largest: Tensor
    """max|F| of each block over the global batch, float32 [K]; 0 of a retired block."""
    gates: Tensor
    """S of each block, float32 [K]: 0 where it was discarded."""


class SideHead(nn.Module):
    """Features at half depth [N, C, H, W] -> logits [N, classes]: batch norm, ReLU, pool, linear (section 3.3)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))


class EpsilonResNet(nn.Module):
    """A pre-activation ResNet whose blocks are gated by their largest response.

    In training mode it gives `Responses`, and each gate is that of the batch; over several processes, of the global
    batch. In eval mode it gives logits [N, classes], and a block is closed if it was discarded in most of the last
    steps (moving average of its indicator >= 1/2).

    Args:
        resnet: the network to gate, all of its blocks there.
        num_classes: number of logits of the side head.
        epsilon: ε, see `method.strict_identity`; it may be set between steps.
        side: whether there is a side head.
    """

    # Deviation: the authors gate test batches by their own maximum, so that the outcome of an image depends on the
    # images beside it. Here evaluation is exact: every image alone, whatever the batch size and number of processes.

    made_plain_by = "epsilon-resnet-compress"
    """The command that writes plain networks of it, which `resless.folding` takes."""

    discarded: Tensor
    retired: Tensor

    def __init__(self, resnet: PreResNet, num_classes: int, epsilon: float, side: bool = True) -> None:
        super().__init__()
        self.resnet, self.epsilon = resnet, epsilon
        blocks = list(resnet.blocks())
        self.num_blocks = len(blocks)
        # The side head sees what the first half of the blocks gives.
        self.side_after = self.num_blocks // 2
        self.side = SideHead(_channels_before(resnet, self.side_after), num_classes) if side else None
        self.register_buffer("discarded", torch.zeros(self.num_blocks))  # moving averages of the indicators 1 - S
        self.register_buffer("retired", torch.zeros(self.num_blocks, dtype=torch.bool))
        self._is_retired = [False] * self.num_blocks  # on the host: to ask a device would be to wait for it
        self.register_load_state_dict_post_hook(lambda module, _: module._note_retired())

    def blocks(self) -> Iterator[Block]:
        """The gated blocks, in order of execution."""
        return cast("Iterator[Block]", self.resnet.blocks())

    def retire(self, blocks: Sequence[int]) -> None:
        """Never compute these blocks again, forward or backward: they stay shortcuts."""
        for index in blocks:
            self.retired[index] = True
            self.discarded[index] = 1.0  # for good, however short its past: eval mode and compression go by this
        self._note_retired()

    def forward(self, images: Tensor) -> Responses | Tensor:
        """Images [N, C, H, W] -> `Responses` in training mode, logits [N, classes] in eval mode."""
        return self._train_forward(images) if self.training else self._eval_forward(images)

    def _train_forward(self, images: Tensor) -> Responses:
        x, side_logits = self.resnet.stem(images), None
        nothing = torch.zeros((), device=images.device)
        largest, gates = [nothing] * self.num_blocks, [nothing] * self.num_blocks
        for index, block in enumerate(self.blocks()):
            if index == self.side_after and self.side is not None:
                side_logits = self.side(x)
            if self._is_retired[index]:
                x = block.shortcut(x)
                continue
            response = block.residual(x)
            # The next block needs the gated output: the maxima cannot wait for each other and be reduced as one.
            largest[index] = _over_processes(method.largest_response(response))
            gates[index] = method.is_open(largest[index], self.epsilon)
            x = block.shortcut(x) + gates[index].to(response.dtype) * response
        found = Responses(self.resnet.head(x), side_logits, torch.stack(largest), torch.stack(gates))
        self.discarded.lerp_(1 - found.gates, 1 - method.AVERAGE_DECAY)
        return found

    def _eval_forward(self, images: Tensor) -> Tensor:
        x = self.resnet.stem(images)
        for block, closed in zip(self.blocks(), self.closed(), strict=True):
            x = block.shortcut(x) if closed else block(x)
        return self.resnet.head(x)

    def closed(self) -> list[bool]:
        """Of each block, whether it is closed in eval mode."""
        return [method.mostly(average) for average in self.discarded.tolist()]

    def _note_retired(self) -> None:
        self._is_retired = self.retired.tolist() if not self.retired.is_meta else [False] * self.num_blocks


def _channels_before(resnet: PreResNet, index: int) -> int:
    """Channels that block `index` gets."""
    block: Any = list(resnet.blocks())[index]
    return block.conv1.in_channels


def _over_processes(largest: Tensor) -> Tensor:
    """The maximum over all processes, where there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return largest


def create(
    backbone: str, *, num_classes: int, in_channels: int, epsilon: float, side: bool = True, **options: Any
) -> EpsilonResNet:
    """A freshly initialised gated network.

    Args:
        backbone: a pre-activation ResNet of resless, such as preresnet110 or imagenet/preresnet101.
        num_classes, in_channels: as of `resless.models.create`.
        epsilon: ε.
        side: whether there is a side head.
        **options: of the backbone.

    Raises:
        InputError: no pre-activation ResNet; ε below 0.
    """
    spec = models.Spec(
        "epsilon_resnet",
        num_classes,
        in_channels,
        {"backbone": backbone, "options": options, "epsilon": epsilon, "side": side},
    )
    return models.build(spec)  # type: ignore[return-value]


def build(
    *,
    num_classes: int,
    in_channels: int,
    backbone: str,
    epsilon: float,
    side: bool = True,
    options: dict[str, Any] | None = None,
) -> EpsilonResNet:
    """What `resless.models` calls for the name epsilon_resnet; see `create`."""
    check_epsilon(epsilon)
    check(isinstance(side, bool), "side", side, "true or false")
    check(isinstance(backbone, str), "backbone", backbone, "the name of a pre-activation ResNet")
    check(options is None or isinstance(options, dict), "options", options, "options by name")
    if backbone == "epsilon_resnet":
        raise InputError("the backbone is epsilon_resnet, but must be a pre-activation ResNet such as preresnet110")
    resnet = models.build(models.Spec(backbone, num_classes, in_channels, options or {}))
    if not isinstance(resnet, PreResNet):
        raise InputError(f"the backbone is {backbone}, but must be a pre-activation ResNet such as preresnet110")
    # Not every dropped block leaves a shortcut behind to tell of it.
    if models.spec_of(resnet).options["kept_blocks"] is not None:
        raise InputError(f"the backbone is {backbone} without some of its blocks, but all must be there to be gated")
    return EpsilonResNet(resnet, num_classes, epsilon, side)
