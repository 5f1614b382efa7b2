"""BlockDrop's networks: a residual network whose blocks can be skipped, and the policy network that decides.

Wu et al., BlockDrop (CVPR 2018, arXiv 1711.08393), sections 3.1 and 4.1. Letters: N images, C channels, H x W pixels,
K blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resless import models, weights
from resless.errors import InputError, check, unknown_name
from resless.models.blocks import ResidualBlock
from resless.models.folded import check_unfolded
from resless.models.pooling import average
from resless.models.resnet import ResNet, resnet
from resless.models.torchvision_resnet import ResNet as ImageNetResNet
from resless.models.torchvision_resnet import of_layers
from torch import Tensor, nn

from blockdrop import execute, method
from blockdrop.config import MODELS, POLICY_NETWORKS
from blockdrop.original import agent_keys, resnet_keys


class SkippingResNet(nn.Module):
    """A residual network that runs only the blocks that a policy keeps.

    Args:
        net: a CIFAR ResNet of `resless.models`, or one of torchvision's there.

    Raises:
        InputError: another network, or one without residual blocks.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, ResNet | ImageNetResNet):
            name, allowed = models.spec_of(net).name, "a CIFAR ResNet or one of torchvision's, such as resnet32"
            raise InputError(f"the backbone is {name}, but must be {allowed}")
        self.net = net
        self.blocks: list[Any] = list(net.blocks())  # a plain list: the modules are registered in `net` already
        # Of a block that was removed only its shortcut is left: there is nothing to decide.
        self._decided = [index for index, block in enumerate(self.blocks) if isinstance(block, ResidualBlock)]
        check(len(self._decided) > 0, "the number of residual blocks", 0, "1 or more, for a policy to decide on")

    @property
    def num_blocks(self) -> int:
        """K."""
        return len(self._decided)

    @property
    def stages(self) -> list[int]:
        """Blocks that are decided in each stage; they add up to K."""
        counts = (sum(isinstance(block, ResidualBlock) for block in stage) for stage in self.net.stages())
        return [count for count in counts if count]

    def forward(self, images: Tensor, policy: Tensor, executor: str = "auto") -> Tensor:
        """Logits [N, num_classes] of images [N, C, H, W] under policies, 0/1 [N, K]; see `execute.run`."""
        return self.net.head(self.features(images, policy, executor))

    def features(self, images: Tensor, policy: Tensor, executor: str = "auto") -> Tensor:
        """Features [N, C', H', W'] after the blocks."""
        return execute.run(self.blocks, self.net.stem(images), policy, executor)

    def rollouts(self, images: Tensor, policies: Sequence[Tensor], first_open: int = 0) -> list[Tensor]:
        """Logits under several policies, which all keep every block before `first_open`: those run once for all."""
        first = self._decided[first_open]
        x = self.net.stem(images)
        for block in self.blocks[:first]:
            x = block(x)
        x = x.repeat(len(policies), 1, 1, 1).contiguous(memory_format=_layout(x))
        x = execute.run(self.blocks[first:], x, torch.cat([policy[:, first_open:] for policy in policies]))
        return list(self.net.head(x).chunk(len(policies)))


class PolicyNetwork(nn.Module):
    """Images [N, C, H, W] -> probabilities [N, K] with which their blocks are to be kept (section 3.1).

    Args:
        kind: `resnet8`, a CIFAR ResNet of one block a stage; or `resnet10`, an ImageNet ResNet of one block a stage.
        num_blocks: K.
        in_channels: C.
        pool: side of the squares of pixels that are averaged before the network sees the images.
    """

    def __init__(self, kind: str, num_blocks: int, in_channels: int, pool: int = 1) -> None:
        super().__init__()
        if kind not in POLICY_NETWORKS:
            raise unknown_name("policy network", kind, POLICY_NETWORKS)
        self.pool = pool
        if kind == "resnet8":
            self.features: Any = resnet(8, num_classes=1, in_channels=in_channels, shortcut="avgpool")
            classifier = "linear"
        else:
            self.features = of_layers("basic", (1, 1, 1, 1), num_classes=1, in_channels=in_channels)
            classifier = "fc"
        self.logit = nn.Linear(getattr(self.features, classifier).in_features, num_blocks)
        setattr(self.features, classifier, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        # In float32: bf16 has no number between 0.996 and 1.
        return torch.sigmoid(self.logit(self.features.head(self.maps(images))).float())

    def maps(self, images: Tensor) -> Tensor:
        """Features [N, C', H', W'] of images [N, C, H, W] before they are pooled."""
        if self.pool > 1:
            images = average(images, self.pool)
        return execute.whole(list(self.features.blocks()), self.features.stem(images))


class BlockDropNet(nn.Module):
    """A residual network and its policy network: images [N, C, H, W] -> logits [N, num_classes].

    Each image runs through the blocks that `policy` gives probability 1/2 or more, and through no others.

    Args:
        name: one of the paper's models (`blockdrop.config.MODELS`), or a residual network of `resless.models`.
        num_classes, in_channels: None takes the model's, or 10 and 3.
        policy: kind of policy network, see `PolicyNetwork`; None takes the model's, or resnet8.
        policy_pool: its `pool`; None takes the model's, or 1.
        **options: options of the residual network, such as `shortcut`, in place of the model's.

    Raises:
        InputError: an unknown name or option, or a network without residual blocks.
    """

    plain_parts = ("resnet.net", "policy.features")
    """Where `resless.folding` finds batch norms: in networks that this one runs block by block."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        in_channels: int | None = None,
        policy: str | None = None,
        policy_pool: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        known = MODELS.get(name)
        backbone = known.backbone if known else name
        options = {**(known.options if known else {}), **options}
        if num_classes is None:
            num_classes = known.num_classes if known else 10
        in_channels = 3 if in_channels is None else in_channels
        net = models.create(backbone, num_classes=num_classes, in_channels=in_channels, **options)
        spec = models.spec_of(net)
        policy = policy or (known.policy if known else "resnet8")
        pool = policy_pool or (known.policy_pool if known else 1)
        self.resnet = SkippingResNet(net)
        self.policy = PolicyNetwork(policy, self.num_blocks, spec.in_channels, pool)
        self.spec: Any = models.Spec(
            "blockdrop",
            spec.num_classes,
            spec.in_channels,
            {"backbone": spec.name, "backbone_options": spec.options, "policy": policy, "policy_pool": pool},
        )

    @property
    def num_blocks(self) -> int:
        """K."""
        return self.resnet.num_blocks

    def decide(self, images: Tensor) -> Tensor:
        """The policies of images, bool [N, K]."""
        return method.greedy(self.policy(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.resnet(images, self.decide(images))

    def specialised(self, kept: Sequence[bool] | np.ndarray) -> nn.Module:
        """The plain network of one policy, 0/1 [K]: dropped blocks are gone; in eval mode, a copy.

        Raises:
            InputError: a policy of another length, or a network that is folded or whose layers were made smaller.
        """
        check_unfolded(self, "specialised")
        check(len(kept) == self.num_blocks, "the length of the policy", len(kept), f"{self.num_blocks}, one a block")
        backbone = models.spec_of(self.resnet.net)
        if "kept_blocks" not in backbone.options:
            raise InputError(
                f"a {backbone.name} network cannot lose blocks: take one of full width, then make it smaller"
            )
        # Counted over all blocks of the network's name, of which some may have been removed before.
        present = backbone.options["kept_blocks"] or range(self.num_blocks)
        left = tuple(index for index, keep in zip(present, kept, strict=True) if keep)
        plain = models.build(replace(backbone, options={**backbone.options, "kept_blocks": left}))
        own = self.resnet.net.state_dict()
        plain.load_state_dict({name: own[name] for name in plain.state_dict()})
        return plain.eval()


def build(
    *,
    num_classes: int,
    in_channels: int,
    backbone: str,
    backbone_options: Mapping[str, Any],
    policy: str = "resnet8",
    policy_pool: int = 1,
) -> BlockDropNet:
    """The network of a model folder: how `resless.models` builds one that is called `blockdrop`."""
    check(isinstance(backbone, str), "backbone", backbone, "the name of a residual network")
    check(isinstance(backbone_options, Mapping), "backbone_options", backbone_options, "options by name")
    check(backbone != "blockdrop" and backbone not in MODELS, "backbone", backbone, "a plain residual network")
    known = models.option_defaults(backbone)
    for option in backbone_options:
        if option not in known:
            raise unknown_name(f"option of {backbone}", option, known)
    models.options.choice("policy", policy, POLICY_NETWORKS)
    models.options.whole_number("policy_pool", policy_pool, 1, 64)
    return BlockDropNet(
        backbone,
        num_classes=num_classes,
        in_channels=in_channels,
        policy=policy,
        policy_pool=policy_pool,
        **backbone_options,
    )


def load_original(name: str, path: str | Path) -> BlockDropNet:
    """The network of an authors' checkpoint `{'resnet': ..., 'agent': ...}`, in eval mode.

    Args:
        name: which of the paper's models it is, such as R110_C10.
        path: a torch file.

    Raises:
        InputError: an unknown name, a file without both parts, keys or shapes of another model.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    content = weights.read_checkpoint(path)
    parts = content.keys() if isinstance(content, Mapping) else ()
    if not {"resnet", "agent"} <= set(parts):
        found = ", ".join(map(str, parts)) or type(content).__name__
        raise InputError(f"{path} holds {found}, but a checkpoint with the parts resnet and agent is needed")
    net = BlockDropNet(name)
    load_agent(net, content["agent"], f"{path}, agent")
    state = weights.unwrapped(content["resnet"], f"{path}, resnet")
    weights.load_state(net.resnet.net, state, f"{path}, resnet", resnet_keys(state))
    return net.eval()


def load_agent(net: BlockDropNet, content: Any, source: str) -> None:
    """Load the authors' policy network, without its value head, which nothing uses. Raises InputError on mismatch."""
    state = weights.unwrapped(content, source)
    weights.load_state(net.policy, state, source, agent_keys(state))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
